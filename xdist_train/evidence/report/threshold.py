"""Decision thresholds in a report: chosen on val for a sensitivity, judged on test; a slider moves the wish. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xdist_train.evidence.metrics import Scores
from xdist_train.evidence.operating import choose_threshold, operating_figures
from xdist_train.evidence.page import table, text
from xdist_train.evidence.tables import figure_text

__all__ = [
    "SENSITIVITY",
    "THRESHOLD_CAPTION",
    "THRESHOLD_HEADS",
    "THRESHOLD_SCRIPT",
    "threshold_rows",
    "threshold_slider",
    "threshold_table",
]

SENSITIVITY = 0.95
"""The wish that the table with intervals is for."""
_WISHES = range(50, 101)  # percent
THRESHOLD_HEADS = ("class", "threshold", "sensitivity", "specificity", "precision")
THRESHOLD_CAPTION = (
    f"One class against the rest: the highest threshold on its probability that finds {SENSITIVITY:.0%} of its "
    "images on val, and what it does on test, with 95 % intervals over patients."
)

THRESHOLD_SCRIPT = """
for (const box of document.querySelectorAll("[data-operating]")) {
  const classes = JSON.parse(box.dataset.operating), slider = box.querySelector("input");
  const draw = () => {
    box.querySelector("output").textContent = `${slider.value} %`;
    [...box.querySelector("tbody").rows].forEach((row, k) => classes[k][slider.value - slider.min].forEach(
      (value, column) => { row.cells[column + 1].textContent = value === null ? "\\u2013" : value.toFixed(3); }));
  };
  slider.addEventListener("input", draw);
  draw();
}
"""


def threshold_rows(val: Scores, test: Scores, classes: Sequence[str], *, resamples: int) -> list[list[str]]:
    """A class a row under THRESHOLD_HEADS: the threshold that reaches SENSITIVITY on val, and what it does on test."""
    rows = []
    for index, name in enumerate(classes):
        threshold = choose_threshold(val, index, SENSITIVITY)
        if threshold is None:
            rows.append([name, *["–"] * 4])
            continue
        figures = operating_figures(test, index, threshold, resamples=resamples)
        rows.append([name, f"{threshold:.3f}", *(figure_text(figures[head]) for head in THRESHOLD_HEADS[2:])])
    return rows


def threshold_table(val: Scores, test: Scores, classes: Sequence[str], *, resamples: int) -> str:
    """`threshold_rows` as HTML."""
    rows = threshold_rows(val, test, classes, resamples=resamples)
    return table(THRESHOLD_CAPTION, THRESHOLD_HEADS, rows, folded=False)


def threshold_slider(val: Scores, test: Scores, classes: Sequence[str]) -> str:
    """The same for any sensitivity, without intervals."""
    start = round(SENSITIVITY * 100)
    data = [[_operate(val, test, index, wish / 100) for wish in _WISHES] for index in range(len(classes))]
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td></td><td></td><td></td><td></td></tr>' for name in classes
    )
    heads = "".join(f'<th scope="col">{text(head)}</th>' for head in THRESHOLD_HEADS)
    return (
        f'<div data-operating="{text(json.dumps(data))}">\n<p><label>Sensitivity wished for on val: '
        f'<input type="range" min="{_WISHES[0]}" max="{_WISHES[-1]}" value="{start}" step="1"> '
        f"<output>{start} %</output></label></p>\n"
        '<div class="scroll"><table><caption>On test, at the threshold that val gives.</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>\n</div>"
    )


def _operate(val: Scores, test: Scores, index: int, wish: float) -> list[float | None]:
    """The threshold that val gives, and sensitivity, specificity and precision on test."""
    threshold = choose_threshold(val, index, wish)
    if threshold is None:
        return [None] * 4
    positive, yes = test.labels == index, test.probabilities[:, index] >= threshold
    shares = (_share(yes, positive), _share(~yes, ~positive), _share(positive, yes))
    return [round(threshold, 5), *shares]


def _share(values: NDArray[np.bool_], among: NDArray[np.bool_]) -> float | None:
    return round(float(values[among].mean()), 5) if among.any() else None
