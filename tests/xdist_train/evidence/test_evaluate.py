"""The report, the predictions table, and the table for the terminal."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from cluster.errors import RunFailedError
from xdist_train.evidence.evaluate import PriorShift, evaluation_report, predictions_table
from xdist_train.evidence.tables import figures_table

_LABELS = np.array([0, 0, 1, 1, 1])
_PROBABILITIES = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7]])
_PATIENTS = ["p1", "p2", "p2", "p3", "p3"]
_SHIFT = PriorShift(train=(0.2, 0.8), drawn=(0.5, 0.5), learned=(0.5, 0.5))


def test_the_report_has_the_run_folders_keys() -> None:
    """Every figure with value, low and high; counts of images and patients; plain JSON."""
    report = evaluation_report(_LABELS, _PROBABILITIES, _PATIENTS, ["CNV", "NORMAL"], resamples=100)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    figures = ("accuracy", "balanced_accuracy", "macro_f1", "mcc", "auroc_macro", "ece")
    assert all(set(report[name]) == {"value", "low", "high"} for name in figures)
    assert set(report["per_class"]["CNV"]) == {"sensitivity", "specificity", "auroc", "n"}
    assert (report["n_images"], report["n_patients"], report["prior"]) == (5, 3, None)
    assert report["confusion_matrix"] == [[1, 1], [0, 3]]


def test_a_moved_prior_is_said() -> None:
    """Shares by class, and figures under the data's own prior."""
    report = evaluation_report(_LABELS, _PROBABILITIES, _PATIENTS, ["a", "b"], prior=_SHIFT, resamples=100)
    assert report["prior"]["train"] == {"a": 0.2, "b": 0.8}
    assert report["prior"]["learned"] == {"a": 0.5, "b": 0.5}
    assert report["prior"]["corrected"]["accuracy"] == 0.8
    assert report["prior"]["corrected"]["ece"] != report["ece"]["value"]


def test_broken_weights_give_a_failure_and_no_figures() -> None:
    """Output that is not finite is named with its count."""
    broken = _PROBABILITIES.copy()
    broken[3] = np.nan
    with pytest.raises(RunFailedError, match="for 1 of 5 images"):
        evaluation_report(_LABELS, broken, _PATIENTS, ["a", "b"])


def test_predictions_have_a_row_an_image() -> None:
    """id, source, class names, and one probability column a class."""
    table = predictions_table([7, 8], ["x.png", "y.png"], _LABELS[:2], _PROBABILITIES[:2], ["a", "b"])
    assert table.to_pydict() == {
        "id": [7, 8],
        "source": ["x.png", "y.png"],
        "label": ["a", "a"],
        "predicted": ["a", "b"],
        "probability_a": [0.9, 0.4],
        "probability_b": [0.1, 0.6],
    }


def test_the_terminal_table_shows_figures_and_escapes_names() -> None:
    """A class name cannot style or steer the terminal; what is not defined is a dash."""
    name = "[red]x\x1b[2J"
    report = evaluation_report(_LABELS[2:], _PROBABILITIES[2:], _PATIENTS[2:], [name, "b"], resamples=100)
    stream = io.StringIO()
    Console(file=stream, width=100).print(figures_table(report, title="test"))
    text = stream.getvalue()
    assert "[red]x\\x1b[2J (0)" in text
    assert "\x1b" not in text
    assert "test: 3 images, 2 patients" in text
    assert "1.000 to 1.000" in text
