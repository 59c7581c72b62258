"""Decision thresholds in a report: chosen on val for a sensitivity, judged on test; a slider moves the wish. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdist_train.evidence.curves import ThresholdCurve, threshold_curve
from xdist_train.evidence.metrics import Scores
from xdist_train.evidence.operating import choose_threshold, operating_figures
from xdist_train.evidence.page import table, text
from xdist_train.evidence.tables import figure_text

__all__ = ["SENSITIVITY", "THRESHOLD_SCRIPT", "threshold_slider", "threshold_table"]

SENSITIVITY = 0.95
"""The wish that the table with intervals is for."""
_POINTS = 200
_HEADS = ("class", "threshold", "sensitivity", "specificity", "precision")

THRESHOLD_SCRIPT = """
for (const box of document.querySelectorAll("[data-operating]")) {
  const classes = JSON.parse(box.dataset.operating), slider = box.querySelector("input");
  const shown = value => value === null || value === undefined ? "\\u2013" : value.toFixed(3);
  const draw = () => {
    const wish = slider.value / 100;
    box.querySelector("output").textContent = `${slider.value} %`;
    [...box.querySelector("tbody").rows].forEach((row, k) => {
      const {val, test} = classes[k];
      const at = val.sensitivity.findIndex(share => share >= wish - 1e-9);
      const threshold = at < 0 ? null : val.thresholds[at];
      let point = 0;
      test.thresholds.forEach((limit, j) => {
        if (limit !== null && threshold !== null && limit >= threshold) point = j;
      });
      [threshold, test.sensitivity[point], test.specificity[point], test.precision[point]].forEach((value, column) => {
        row.cells[column + 1].textContent = threshold === null ? "\\u2013" : shown(value);
      });
    });
  };
  slider.addEventListener("input", draw);
  draw();
}
"""


def threshold_table(val: Scores, test: Scores, classes: Sequence[str], *, resamples: int) -> str:
    """For each class the threshold that reaches SENSITIVITY on val, and what it does on test, with intervals."""
    rows = []
    for index, name in enumerate(classes):
        threshold = choose_threshold(val, index, SENSITIVITY)
        if threshold is None:
            rows.append([name, *["–"] * 4])
            continue
        figures = operating_figures(test, index, threshold, resamples=resamples)
        rows.append([name, f"{threshold:.3f}", *(figure_text(figures[head]) for head in _HEADS[2:])])
    caption = (
        f"One class against the rest: the highest threshold on its probability that finds {SENSITIVITY:.0%} of its "
        "images on val, and what it does on test, with 95 % intervals over patients."
    )
    return table(caption, _HEADS, rows, folded=False)


def threshold_slider(val: Scores, test: Scores, classes: Sequence[str]) -> str:
    """The same for any sensitivity, without intervals."""
    data = [_curves(val, test, index) for index in range(len(classes))]
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td></td><td></td><td></td><td></td></tr>' for name in classes
    )
    heads = "".join(f'<th scope="col">{text(head)}</th>' for head in _HEADS)
    return (
        f'<div data-operating="{text(json.dumps(data))}">\n<p><label>Sensitivity wished for on val: '
        '<input type="range" min="50" max="100" value="95" step="1"> <output>95 %</output></label></p>\n'
        '<div class="scroll"><table><caption>On test, at the threshold that val gives.</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>\n</div>"
    )


def _curves(val: Scores, test: Scores, index: int) -> dict[str, Any]:
    mine, theirs = (_curve(scores, index).thinned(_POINTS) for scores in (val, test))
    return {
        "val": {"thresholds": _plain(mine.thresholds), "sensitivity": _plain(mine.sensitivity)},
        "test": {
            "thresholds": _plain(theirs.thresholds),
            "sensitivity": _plain(theirs.sensitivity),
            "specificity": _plain(1 - theirs.false_positive_rate),
            "precision": _plain(theirs.precision),
        },
    }


def _curve(scores: Scores, index: int) -> ThresholdCurve:
    return threshold_curve(scores.labels == index, scores.probabilities[:, index])


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [round(float(value), 5) if np.isfinite(value) else None for value in values]
