"""Rules of the split: whole patients, balanced classes, the same for the same seed."""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from dataloading.splits import SPLIT_COLUMNS, assign_splits, join_patients, split_of

FRACTIONS = (0.7, 0.15, 0.15)


def make_set(num_patients: int, seed: int = 0, mean_images: int = 5) -> tuple[np.ndarray, list[str]]:
    """Labels and patients of a set with four uneven classes."""
    random = np.random.default_rng(seed)
    sizes = random.geometric(1 / mean_images, num_patients)
    classes = random.choice(4, num_patients, p=[0.44, 0.14, 0.11, 0.31])
    return np.repeat(classes, sizes), np.repeat([f"p{n}" for n in range(num_patients)], sizes).tolist()


def parts_by_patient(parts: np.ndarray, patients: list[str]) -> dict[str, set[int]]:
    """The parts that each patient lies in."""
    found = defaultdict(set)
    for part, patient in zip(parts.tolist(), patients, strict=True):
        found[patient].add(part)
    return found


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=80),
    seed=st.integers(0, 2**31),
)
def test_a_patient_is_never_in_two_parts(rows: list[tuple[int, int]], seed: int) -> None:
    """Whatever classes a patient has, all its images lie in one part."""
    patients = [f"p{patient}" for _, patient in rows]
    parts = assign_splits(np.array([label for label, _ in rows]), patients, FRACTIONS, seed)
    assert {1} == {len(found) for found in parts_by_patient(parts, patients).values()}


@given(rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=60), shuffle=st.randoms())
def test_order_of_rows_does_not_matter(rows: list[tuple[int, int]], shuffle) -> None:
    """Rows in another order get the same parts."""

    def by_patient(rows: list[tuple[int, int]]) -> dict[str, set[int]]:
        patients = [f"p{patient}" for _, patient in rows]
        return parts_by_patient(assign_splits(np.array([a for a, _ in rows]), patients, FRACTIONS, 3), patients)

    other = list(rows)
    shuffle.shuffle(other)
    assert by_patient(rows) == by_patient(other)


@given(
    patients=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=9, max_size=40), seed=st.integers(0, 99)
)
def test_a_class_with_three_patients_is_in_each_part(patients: list[tuple[int, int]], seed: int) -> None:
    """A class with at least three patients of its own gets one in train, val and test."""
    labels = np.repeat([label for label, _ in patients], [size for _, size in patients])
    names = np.repeat([f"p{n}" for n in range(len(patients))], [size for _, size in patients]).tolist()
    parts = assign_splits(labels, names, FRACTIONS, seed)
    for label in range(3):
        if sum(label == other for other, _ in patients) >= 3:
            assert {0, 1, 2} == set(parts[labels == label].tolist())


def test_shares_are_met_class_by_class() -> None:
    """With enough patients each class is within two images of its share in each part."""
    labels, patients = make_set(800)
    parts = assign_splits(labels, patients, FRACTIONS, 0)
    for label in range(4):
        counts = np.bincount(parts[labels == label], minlength=3)
        assert np.abs(counts - np.array(FRACTIONS) * counts.sum()).max() <= 2


def test_large_patients_are_spread() -> None:
    """Train does not take all patients with many images: the mean size is alike in each part."""
    labels, patients = make_set(800)
    parts = assign_splits(labels, patients, FRACTIONS, 0)
    _, first, sizes = np.unique(patients, return_index=True, return_counts=True)
    means = [sizes[parts[first] == part].mean() for part in range(3)]
    assert max(means) < 1.15 * min(means)


def test_seed_decides() -> None:
    """The same seed gives the same parts, another seed others."""
    labels, patients = make_set(100)
    first, again, other = (assign_splits(labels, patients, FRACTIONS, seed) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_linked_rows_stay_on_one_side() -> None:
    """Patients tied by a duplicate, also through a third, lie in the same part."""
    labels, patients = np.zeros(40, int), [f"p{n:02}" for n in range(40)]
    linked = np.full(40, -1)
    linked[[0, 13]] = 0
    linked[[14, 27]] = 1
    patients[14] = patients[13]
    for seed in range(5):
        parts = assign_splits(labels, patients, FRACTIONS, seed, linked)
        assert 1 == len(set(parts[[0, 13, 14, 27]].tolist()))
    assert ["p00"] == sorted({join_patients(patients, linked)[row] for row in (0, 13, 14, 27)})


def test_the_size_of_oct2017_takes_seconds() -> None:
    """84,000 images of 4,700 patients are dealt in a moment."""
    labels, patients = make_set(4700, mean_images=18)
    start_s = time.process_time()
    parts = assign_splits(labels, patients, FRACTIONS, 0)
    assert len(labels) == len(parts) > 80_000
    assert time.process_time() - start_s < 5


def manifest(given_splits: list[str | None], groups: list[str | None] | None = None) -> pa.Table:
    """A manifest of one patient a row with the columns that a split may read."""
    rows = len(given_splits)
    columns = [
        [n % 2 for n in range(rows)],
        [f"p{n}" for n in range(rows)],
        pa.array(groups or [None] * rows, pa.string()),
    ]
    return pa.table([*columns, pa.array(given_splits, pa.string()), ["train"] * rows], names=list(SPLIT_COLUMNS))


def test_patient_and_given_read_the_stored_columns() -> None:
    """`patient` and `given` are what was stored when the set was packed."""
    table = manifest(["train", "test", "val", "train"])
    assert [0, 0, 0, 0] == split_of(table, "patient", FRACTIONS, 0).tolist()
    assert [0, 2, 1, 0] == split_of(table, "given", FRACTIONS, 0).tolist()


@pytest.mark.parametrize("splits", [[None, None], ["train", "test"], ["train", "val", "test", None]])
def test_given_is_refused_where_the_set_has_none(splits: list[str | None]) -> None:
    """`given` needs train, val and test, and each image in one of them."""
    with pytest.raises(InputError, match=r"data\.split=patient"):
        split_of(manifest(splits), "given", FRACTIONS, 0)


def test_given_without_val_names_the_scheme_that_draws_one() -> None:
    """A set of train and test alone is sent to `given_test`; one without a test is not."""
    with pytest.raises(InputError, match=r"val missing\). Use data\.split=given_test"):
        split_of(manifest(["train", "test"]), "given", FRACTIONS, 0)
    with pytest.raises(InputError, match=r"test missing\). Use data\.split=patient"):
        split_of(manifest(["train", "val"]), "given", FRACTIONS, 0)


@pytest.mark.parametrize("others", [["train"], ["train", "val"]])
def test_given_test_keeps_the_test_and_deals_the_rest_by_patient(others: list[str]) -> None:
    """Test is the set's own; train and val are drawn anew in their proportion, groups whole, the same for a seed."""
    splits = ["test"] * 20 + [others[n % len(others)] for n in range(80)]
    table = manifest(splits, [f"g{n // 4}" for n in range(100)])
    parts = split_of(table, "given_test", (0.6, 0.2, 0.2), 0)
    assert [2] * 20 == parts[:20].tolist()
    assert (60, 20) == tuple(np.bincount(parts[20:]).tolist())
    assert {1} == {len(set(parts[n : n + 4])) for n in range(20, 100, 4)}
    assert parts.tolist() == split_of(table, "given_test", (0.6, 0.2, 0.2), 0).tolist()
    assert parts.tolist() != split_of(table, "given_test", (0.6, 0.2, 0.2), 1).tolist()


@pytest.mark.parametrize("splits", [[None, None], ["train", "val"], ["test", "test"], ["train", "test", None]])
def test_given_test_is_refused_where_the_set_has_none(splits: list[str | None]) -> None:
    """`given_test` needs a test and others beside it, and each image in a split."""
    with pytest.raises(InputError, match=r"data\.split=patient"):
        split_of(manifest(splits), "given_test", FRACTIONS, 0)


@pytest.mark.parametrize("scheme", ["fold:5/5", "fold:0/2", "folds", ""])
def test_an_unknown_scheme_is_refused(scheme: str) -> None:
    """What is no scheme is an input error that names the schemes."""
    with pytest.raises(InputError, match="patient, given, given_test or fold:K/N"):
        split_of(manifest(["train"] * 8), scheme, FRACTIONS, 0)


def test_each_image_is_tested_in_exactly_one_fold() -> None:
    """Over all K, fold:K/N tests each image once; of the rest val has its fraction's share, here 0.15 of 0.85."""
    table = manifest([None] * 60)
    parts = np.stack([split_of(table, f"fold:{fold}/5", FRACTIONS, 0) for fold in range(5)])
    assert [1] * 60 == (parts == 2).sum(axis=0).tolist()
    assert [12] * 5 == (parts == 2).sum(axis=1).tolist()
    assert all(7 <= num_val <= 10 for num_val in (parts == 1).sum(axis=1))


def test_folds_keep_groups_whole() -> None:
    """Patients that a confirmed duplicate ties are in the same fold."""
    groups: list[str | None] = [None] * 30
    groups[3] = groups[20] = groups[29] = "p3"
    parts = split_of(manifest([None] * 30, groups), "fold:1/3", FRACTIONS, 0)
    assert 1 == len({parts[3], parts[20], parts[29]})
