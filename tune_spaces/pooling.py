"""Answers of many models become one: folds joined, seeds averaged, and the mean and spread of their figures. Pure.

A fold's model answers for the images that it has not seen; all folds of one seed together answer for every image once.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError
from xdist_train.evidence.answers import SplitAnswers
from xdist_train.evidence.metrics import FIGURES
from xdist_train.models.prior import PriorShift

__all__ = ["average_seeds", "join_folds", "mean_figures", "mean_prior", "mean_spread"]

Ids = NDArray[np.int64]


def join_folds(answers: Mapping[str, SplitAnswers], ids: Ids) -> SplitAnswers:
    """The answers of several parts as one set, in order of id.

    Args:
        answers: by the part's name.
        ids: int64 [n], the images that they must answer for, each once.

    Raises:
        InputError: an image is answered for twice or not at all, or the classes differ.
    """
    parts = list(answers.values())
    for name, part in answers.items():
        if part.classes != parts[0].classes:
            raise InputError(f"part {name} has classes {list(part.classes)}, others {list(parts[0].classes)}.")
    found = np.concatenate([part.ids for part in parts])
    _require_each_once(found, ids, ", ".join(answers))
    order = np.argsort(found, kind="stable")
    sources = [source for part in parts for source in part.sources]
    return replace(
        parts[0],
        report={},
        ids=found[order],
        sources=tuple(sources[row] for row in order),
        labels=np.concatenate([part.labels for part in parts])[order],
        probabilities=np.concatenate([part.probabilities for part in parts])[order],
    )


def _require_each_once(found: Ids, wanted: Ids, names: str) -> None:
    seen, times = np.unique(found, return_counts=True)
    problems = {
        "twice or more": seen[times > 1],
        "not at all": np.setdiff1d(wanted, seen),
        "though they are not in the split": np.setdiff1d(seen, wanted),
    }
    for how, images in problems.items():
        if len(images):
            raise InputError(
                f"the predictions of {names} cannot be pooled: {len(images)} images are answered for {how} "
                f"(the first is image {images[0]}). Start the repetition again under another run.name."
            )


def average_seeds(seeds: Sequence[SplitAnswers]) -> SplitAnswers:
    """The mean probability of each image over models of several seeds: what an ensemble of them says.

    Raises:
        InputError: they are not of the same images in the same order, or disagree about a label.
    """
    first = seeds[0]
    for other in seeds[1:]:
        if not (np.array_equal(first.ids, other.ids) and np.array_equal(first.labels, other.labels)):
            raise InputError("predictions of several seeds cannot be averaged: they are of other images or labels.")
    return replace(first, report={}, probabilities=np.mean([seed.probabilities for seed in seeds], axis=0))


def mean_spread(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Mean and standard deviation (n - 1) of the values that are defined; None where there are too few."""
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "standard_deviation": statistics.stdev(known) if len(known) > 1 else None,
        "n": len(known),
    }


def mean_figures(rows: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float | int | None]]:
    """`mean_spread` of each of FIGURES over rows of them."""
    return {name: mean_spread([row[name] for row in rows]) for name in FIGURES}


def mean_prior(reports: Sequence[Mapping[str, Any]]) -> PriorShift | None:
    """What training did to the classes' shares, as the mean over parts: folds differ in it by a few images.

    Args:
        reports: `evaluation/test.json` of each part.
    """
    moved = [report["prior"] for report in reports if report.get("prior")]
    if not moved:
        return None
    shares = {
        name: tuple(statistics.fmean(prior[name][label] for prior in moved) for label in reports[0]["classes"])
        for name in ("train", "drawn", "learned")
    }
    return PriorShift(**shares)
