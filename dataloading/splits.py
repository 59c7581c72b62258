"""Which images are train, val and test: whole patients, stratified by class, the same for the same seed.

Owns the assignment of patients to parts and the schemes of `data.split`. Pure: values in, values out;
used when a set is packed and again when it is loaded. Knows no files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import InputError
from dataloading.config import MOST_FOLDS, parse_fold
from dataloading.dataset import SPLITS

__all__ = ["SPLIT_COLUMNS", "assign_splits", "join_patients", "split_of"]

SPLIT_COLUMNS = ("label", "patient", "group", "given_split", "patient_split")
"""Columns of the manifest that `split_of` may read."""

Parts = npt.NDArray[np.int8]
Counts = npt.NDArray[np.int64]

_DEAL = 1  # purpose of the random numbers drawn from the seed


def assign_splits(
    labels: npt.NDArray[np.integer],
    patients: Sequence[str],
    fractions: Sequence[float],
    seed: int,
    linked: npt.NDArray[np.integer] | None = None,
) -> Parts:
    """Deal whole patients to parts so that each class comes close to its share in each part.

    Greedy stratified assignment of groups: the largest patients first (equal ones in seeded order), each to the
    part that stays furthest below its share of the patient's classes. Patients tied by `linked` move as
    one. A class with at least as many groups as there are parts gets one in each. The order of the rows
    does not matter.

    Args:
        labels: class numbers [n].
        patients: names [n].
        fractions: share of each part; train, val, test, or N equal ones.
        seed: of the order of equal patients.
        linked: [n], rows with the same number (0 or more) stay on one side; -1 is free.

    Returns:
        Part of each row: int8 [n].
    """
    assert len(labels) == len(patients)
    assert 0 < len(fractions) <= MOST_FOLDS
    if not len(labels):
        return np.empty(0, np.int8)
    names, group_of = np.unique(join_patients(patients, linked), return_inverse=True)
    counts = np.zeros((len(names), int(np.max(labels)) + 1), np.int64)
    np.add.at(counts, (group_of, labels), 1)
    part_of_group = _deal(counts, fractions, seed)
    _cover(part_of_group, counts, len(fractions))
    return part_of_group[group_of]


def join_patients(patients: Sequence[str], linked: npt.NDArray[np.integer] | None = None) -> list[str]:
    """Name of the group of each row: its patient, or the first by name of all that links tie together."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := parent.get(name, name)) != name:
            parent[name] = parent.get(above, above)
            name = above
        return name

    first_of_link: dict[int, str] = {}
    for link, patient in zip([] if linked is None else linked.tolist(), patients, strict=False):
        if link >= 0:
            one, other = root(first_of_link.setdefault(link, patient)), root(patient)
            parent[max(one, other)] = min(one, other)
    return [root(name) for name in patients]


def split_of(manifest: pa.Table, scheme: str, fractions: Sequence[float], seed: int) -> Parts:
    """The part of each row under a scheme: int8 [n], the place in `SPLITS`, or -1 for a row in no part.

    Args:
        manifest: table with the columns `SPLIT_COLUMNS`.
        scheme: `patient`; `given`; `given_test`: its test is kept; or `fold:K/N`: fold K of N equal ones is test.
            With these two, train and val are drawn from the rest.
        fractions: of the dataset.
        seed: of the dataset.

    Raises:
        InputError: `given` where the set has no complete train, val and test of its own, `given_test` where it has
            no test and others; an unknown scheme.
    """
    if scheme == "patient":
        return _coded(manifest.column("patient_split"))
    if scheme == "given":
        return _given(manifest)
    if scheme == "given_test":
        return _given_test(manifest, fractions, seed)
    fold = parse_fold(scheme)
    if fold is None or not (fold[0] < fold[1] and 3 <= fold[1] <= MOST_FOLDS):
        raise InputError(
            f"data.split {scheme!r}: use patient, given, given_test or fold:K/N with 3 <= N <= {MOST_FOLDS} and K < N."
        )
    return _folds(manifest, fractions, seed, *fold)


def _deal(counts: Counts, fractions: Sequence[float], seed: int) -> Parts:
    """Part of each group: int8 [groups], from images by group and class [groups, classes]."""
    # All images together count as one more class, or each small class would round its parts the same way.
    counts = np.concatenate([counts, counts.sum(axis=1, keepdims=True)], axis=1)
    totals = counts.sum(axis=0)
    targets = [[fraction * int(total) for total in totals] for fraction in fractions]
    missing = [list(target) for target in targets]
    placed = np.zeros(len(counts), np.int8)
    for group in _largest_first(counts, seed):
        held = [(int(label), int(counts[group, label])) for label in np.flatnonzero(counts[group])]
        rooms = [
            sum(n / totals[label] * (missing[part][label] - n) / targets[part][label] for label, n in held)
            for part in range(len(fractions))
        ]
        chosen = max(range(len(fractions)), key=rooms.__getitem__)
        placed[group] = chosen
        for label, n in held:
            missing[chosen][label] -= n
    return placed


def _largest_first(counts: Counts, seed: int) -> list[int]:
    shuffled = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _DEAL]))).permutation(len(counts))
    order: list[int] = shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")].tolist()
    return order


def _cover(placed: Parts, counts: Counts, num_parts: int) -> None:
    """Move the smallest groups, in place, until each class with enough groups has one in each part."""
    held = counts > 0
    enough = np.flatnonzero(held.sum(axis=0) >= num_parts)
    for label in sorted(enough, key=lambda label: int(held[:, label].sum())):
        for part in range(num_parts):
            if not held[placed == part, label].any():
                _move_one(placed, counts, int(label), part, enough)


def _move_one(placed: Parts, counts: Counts, label: int, part: int, enough: Counts) -> None:
    """Bring one group of a class to a part, unless every one is the last of some class where it is."""
    held = counts > 0
    candidates = np.flatnonzero(held[:, label])
    for group in candidates[np.argsort(counts[candidates].sum(axis=1), kind="stable")]:
        kept = [other for other in enough if held[group, other]]
        beside = held[placed == placed[group]][:, kept].sum(axis=0)
        if (beside >= 2).all():
            placed[group] = part
            return


def _coded(column: pa.ChunkedArray) -> Parts:
    codes = {name: number for number, name in enumerate(SPLITS)}
    return np.fromiter((codes.get(name, -1) for name in column.to_pylist()), np.int8, len(column))


def _given(manifest: pa.Table) -> Parts:
    parts = _coded(manifest.column("given_split"))
    present = {SPLITS[part] for part in np.unique(parts) if part >= 0}
    if present != set(SPLITS) or (parts < 0).any():
        advice = (
            "data.split=given_test keeps its test and draws val from train, " if present == {"train", "test"} else ""
        )
        raise InputError(
            "data.split 'given': the source of this dataset has no complete train, val and test of its own "
            f"({_incomplete(parts, SPLITS)}). Use {advice}data.split=patient, which is drawn by patient, or fold:K/N."
        )
    return parts


def _given_test(manifest: pa.Table, fractions: Sequence[float], seed: int) -> Parts:
    parts = _coded(manifest.column("given_split"))
    test = parts == SPLITS.index("test")
    rest = np.flatnonzero(~test)
    if not test.any() or not len(rest) or (parts < 0).any():
        raise InputError(
            "data.split 'given_test': the source of this dataset has no test of its own beside other images "
            f"({_incomplete(parts, ('test',))}). Use data.split=patient, which is drawn by patient, or fold:K/N."
        )
    return _deal_rest(manifest, parts, rest, fractions, seed)


def _incomplete(parts: Parts, wanted: Sequence[str]) -> str:
    lacking = [name for name in wanted if not (parts == SPLITS.index(name)).any()]
    return f"{', '.join(lacking)} missing" if lacking else f"{int((parts < 0).sum())} images are in none of them"


def _groups(manifest: pa.Table) -> list[str]:
    """What must stay on one side, by row: patients, or groups of those that duplicates tie."""
    assert "group" in manifest.column_names, f"split_of reads {SPLIT_COLUMNS}"
    groups: list[str] = pc.coalesce(manifest.column("group"), manifest.column("patient")).to_pylist()
    return groups


def _folds(manifest: pa.Table, fractions: Sequence[float], seed: int, test_fold: int, num_folds: int) -> Parts:
    folds = assign_splits(manifest.column("label").to_numpy(), _groups(manifest), [1 / num_folds] * num_folds, seed)
    parts = np.full(len(folds), SPLITS.index("test"), np.int8)
    return _deal_rest(manifest, parts, np.flatnonzero(folds != test_fold), fractions, seed)


def _deal_rest(manifest: pa.Table, parts: Parts, rest: Counts, fractions: Sequence[float], seed: int) -> Parts:
    """Parts with the rows `rest` dealt to train and val by patient, in the proportion of their fractions."""
    labels, groups = manifest.column("label").to_numpy()[rest], _groups(manifest)
    shares = np.array(fractions[:2]) / sum(fractions[:2])
    parts[rest] = assign_splits(labels, [groups[row] for row in rest], shares.tolist(), seed)
    return parts
