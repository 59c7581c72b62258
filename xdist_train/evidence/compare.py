"""Runs side by side on the same images: each one's figures, and paired differences to the first. No model is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from cluster.config import load_config
from cluster.errors import InputError
from cluster.runs import open_run, read_config, read_record
from cluster.store import Store
from cluster.terminal import printable
from dataloading.dataset import SPLITS
from xdist_train.config import Config
from xdist_train.evidence.answers import SplitAnswers, patients_of, read_answers
from xdist_train.evidence.metrics import FIGURES, differences, intervals
from xdist_train.evidence.tables import TITLES, figure_cells

__all__ = ["comparison_table", "run_comparison"]


def run_comparison(uris: Sequence[str], split: str) -> dict[str, Any]:
    """Figures of each run with 95 % intervals over patients, and differences to the first, paired by patient.

    Returns:
        `split`, `n_images`, `unit` (patient, or image where the data set is gone), and `runs`: by run `run`, FIGURES as
        {"value", "low", "high"}, and `difference` (None for the first) in the same form.

    Raises:
        InputError: fewer than two runs, no run, no figures of the split, or other images.
    """
    if split not in SPLITS:
        raise InputError(f"--split {split!r}: splits are {', '.join(SPLITS)}.")
    if len(uris) < 2:
        raise InputError(f"compare takes two runs or more, not {len(uris)}. The first is what others are compared to.")
    stores = [open_run(uri).store for uri in uris]
    answers = [_ordered(read_answers(store, split)) for store in stores]
    for store, other in zip(stores[1:], answers[1:], strict=True):
        _require_same_images(stores[0], answers[0], store, other)
    patients = _patients(stores, answers[0])
    scores = [answer.scores(patients) for answer in answers]
    resamples = answers[0].report["interval"]["resamples"]
    found = []
    for store, mine in zip(stores, scores, strict=True):
        figures = intervals(mine, answers[0].classes, resamples=resamples)
        against = None if mine is scores[0] else differences(scores[0], mine, resamples=resamples)
        found.append({"run": store.uri, **{name: figures[name] for name in FIGURES}, "difference": against})
    return {
        "split": split,
        "n_images": len(answers[0].ids),
        "unit": "patient" if patients else "image",
        "runs": found,
    }


def comparison_table(comparison: dict[str, Any]) -> Table:
    """For a terminal: a column a run; a difference whose interval leaves 0 out is marked."""
    unit, count = comparison["unit"], comparison["n_images"]
    table = Table(title=Text(f"{comparison['split']}: {count} images, 95 % intervals over {unit}s"))
    table.add_column("figure")
    for number, run in enumerate(comparison["runs"], start=1):
        table.add_column(Text(printable(f"{number}: {run['run'].rstrip('/').rpartition('/')[2]}")), justify="right")
    for name in FIGURES:
        table.add_section()
        table.add_row(TITLES[name], *(_value(run[name]) for run in comparison["runs"]))
        table.add_row("  minus the first", *(_difference(run["difference"], name) for run in comparison["runs"]))
    table.caption = "* the interval of the difference, paired by resampling the same patients, leaves 0 out"
    return table


def _value(figure: dict[str, float | None]) -> str:
    value, interval = figure_cells(figure)
    return f"{value} ({interval})"


def _difference(figures: dict[str, Any] | None, name: str) -> str:
    if figures is None:
        return ""
    low, high = figures[name]["low"], figures[name]["high"]
    clear = low is not None and high is not None and not low <= 0 <= high
    return f"{_value(figures[name])}{' *' if clear else ''}"


def _ordered(answers: SplitAnswers) -> SplitAnswers:
    order = np.argsort(answers.ids, kind="stable")
    return replace(
        answers,
        ids=answers.ids[order],
        sources=tuple(answers.sources[k] for k in order),
        labels=answers.labels[order],
        probabilities=answers.probabilities[order],
    )


def _require_same_images(first: Store, mine: SplitAnswers, other: Store, theirs: SplitAnswers) -> None:
    fingerprints = [_record(store)["fingerprint"] for store in (first, other)]
    what = ""
    if fingerprints[0] != fingerprints[1]:
        what = f"are of different data sets (fingerprints {fingerprints[0][:12]} and {fingerprints[1][:12]})"
    elif not np.array_equal(mine.ids, theirs.ids):
        shared = len(np.intersect1d(mine.ids, theirs.ids))
        what = f"have other {mine.split} images ({len(mine.ids)} and {len(theirs.ids)}, {shared} of them the same)"
    elif mine.classes != theirs.classes:
        what = f"have other classes ({', '.join(mine.classes)} and {', '.join(theirs.classes)})"
    if what:
        raise InputError(
            f"{first.uri!r} and {other.uri!r} {what}: their figures say nothing of each other. Evaluate both on the "
            "same packed data set and split (data.split)."
        )


def _patients(stores: Sequence[Store], answers: SplitAnswers) -> list[str] | None:
    """From the first run whose data set can still be read."""
    for store in stores:
        config = load_config(Config, [read_config(store)])
        patients = patients_of(config.data.uri, _record(store)["fingerprint"], answers.ids)
        if patients:
            return patients
    return None


def _record(store: Store) -> dict[str, Any]:
    return read_record(store)
