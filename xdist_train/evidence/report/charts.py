"""The pictures of a run's report. Pure: values in, an image element out.

Colours are those of Okabe and Ito (2008), which colour-blind readers tell apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cluster.terminal import printable
from xdist_train.evidence.curves import ThresholdCurve
from xdist_train.evidence.drawing import drawing_style, svg_image

__all__ = ["confusion", "learning_curves", "precision_recall", "reliability_diagram", "roc", "score_histogram", "times"]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_CURVE_POINTS = 300
_BINS = 20
_LONGEST = 24


def learning_curves(epochs: Sequence[Mapping[str, Any]], metric: str, selected: int | None) -> str:
    """Loss on train and val, and the metric that selects, by epoch; the selected one is marked.

    Args:
        epochs: rows of kind `epoch`.
        selected: epoch from 0.
    """
    numbers = [row["epoch"] + 1 for row in epochs]
    with drawing_style():
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(numbers, [row.get("train_loss") for row in epochs], color=_COLOURS[1], marker=".", label="train")
        left.plot(numbers, [row.get("val_loss") for row in epochs], color=_COLOURS[0], marker=".", label="val")
        left.set(title="Loss", xlabel="epoch", ylim=(0, None))
        values = [np.nan if row.get(f"val_{metric}") is None else row[f"val_{metric}"] for row in epochs]
        right.plot(numbers, values, color=_COLOURS[0], marker=".", label=f"{metric} on val")
        right.set(title=metric.replace("_", " "), xlabel="epoch")
        for axes in (left, right):
            if selected is not None:
                axes.axvline(selected + 1, color="#000000", ls=":", lw=1.2, label="selected epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend()
        return svg_image(figure, f"Learning curves: loss on train and val and {metric} on val, by epoch.")


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Images by true class (rows) and predicted class; colours are shares of the true class."""
    counts = np.asarray(matrix, np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.6, 0.9 * len(classes) + 1.8)
    with drawing_style():
        figure = Figure(figsize=(side, side * 0.85), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(False)
        for row, column in itertools.product(range(len(classes)), repeat=2):
            colour = "#ffffff" if shares[row, column] > 0.55 else "#000000"
            words = f"{int(counts[row, column])}\n{shares[row, column]:.0%}"
            axes.text(column, row, words, ha="center", va="center", color=colour)
        names = [_short(name) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(classes)), names)
        axes.set(xlabel="predicted", ylabel="true")
        return svg_image(figure, "Confusion matrix: images by true and predicted class.")


def roc(curves: Mapping[str, ThresholdCurve], areas: Mapping[str, float | None]) -> str:
    """ROC curves, one class against the rest."""
    with drawing_style():
        figure = Figure(figsize=(5, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#999999", lw=1)
        for (name, curve), look in zip(curves.items(), _looks(), strict=False):
            thin = curve.thinned(_CURVE_POINTS)
            axes.plot(thin.false_positive_rate, thin.sensitivity, label=_with_area(name, areas[name]), **look)
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.legend(loc="lower right", frameon=True, framealpha=0.85, edgecolor="none")
        return svg_image(figure, "ROC curves of each class against the rest.")


def precision_recall(curves: Mapping[str, ThresholdCurve], areas: Mapping[str, float | None]) -> str:
    """Precision-recall curves, one class against the rest."""
    with drawing_style():
        figure = Figure(figsize=(5, 4.6), layout="constrained")
        axes = figure.subplots()
        for (name, curve), look in zip(curves.items(), _looks(), strict=False):
            thin = curve.thinned(_CURVE_POINTS)
            label = _with_area(name, areas[name])
            axes.plot(thin.sensitivity, thin.precision, drawstyle="steps-pre", label=label, **look)
        axes.set(xlabel="sensitivity (recall)", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        axes.legend(loc="lower left", frameon=True, framealpha=0.85, edgecolor="none")
        return svg_image(figure, "Precision-recall curves of each class against the rest.")


def reliability_diagram(before: Mapping[str, Any], after: Mapping[str, Any] | None) -> str:
    """Accuracy by stated confidence; on the diagonal a model means what it says. The size is the number of images."""
    with drawing_style():
        figure = Figure(figsize=(5, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#999999", lw=1)
        for found, name, colour in ((before, "as trained", _COLOURS[1]), (after, "temperature scaled", _COLOURS[0])):
            if found is not None:
                there = found["count"] > 0
                sizes = 20 + 180 * found["count"][there] / found["count"].max()
                axes.plot(found["confidence"][there], found["accuracy"][there], color=colour, lw=1)
                axes.scatter(
                    found["confidence"][there], found["accuracy"][there], s=sizes, color=colour, alpha=0.6, label=name
                )
        axes.set(
            xlabel="confidence (largest probability)", ylabel="share that was right", xlim=(0, 1.02), ylim=(0, 1.02)
        )
        axes.legend(loc="upper left", markerscale=0.6)
        return svg_image(figure, "Reliability: share of right answers by stated confidence.")


def score_histogram(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> str:
    """How sure the model was where it was right, and where it was wrong."""
    edges = np.linspace(0, 1, _BINS + 1)
    with drawing_style():
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        left, other = figure.subplots(1, 2)
        for axes, chosen, name, colour in (
            (left, right, "right answers", _COLOURS[0]),
            (other, ~right, "errors", _COLOURS[1]),
        ):
            axes.hist(confidence[chosen], bins=list(edges), color=colour)
            axes.set(title=f"{name} ({int(chosen.sum())})", xlabel="confidence", ylabel="images", xlim=(0, 1))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        return svg_image(figure, "Histograms of confidence for right answers and errors.")


def times(seconds: Mapping[str, float]) -> str:
    """Parts of a run's time, the longest first."""
    parts = sorted(seconds.items(), key=lambda part: part[1])
    with drawing_style():
        figure = Figure(figsize=(8, 0.8 + 0.34 * len(parts)), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh([name.replace("_", " ") for name, _ in parts], [time for _, time in parts], color=_COLOURS[5])
        axes.bar_label(bars, fmt="%.1f s", padding=3)
        axes.set(xlabel="s")
        axes.margins(x=0.12)
        axes.grid(False, axis="y")
        return svg_image(figure, "Time of the parts of the run.")


def _looks() -> Any:
    """Line styles, each its own: colours first, then dashes."""
    for dash, colour in itertools.product(_DASHES, _COLOURS):
        yield {"color": colour, "ls": dash}


def _with_area(name: str, area: float | None) -> str:
    return f"{_short(name)} ({'-' if area is None else f'{area:.3f}'})"


def _short(name: str) -> str:
    name = printable(name).replace("\n", " ")
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
