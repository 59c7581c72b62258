"""Figures against sklearn and torchmetrics, and intervals against what a bootstrap is."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from xdist_train.evidence import metrics
from xdist_train.evidence.metrics import FIGURES, Scores, confusion_matrix, intervals, point_figures
from xdist_train.models.torchvision_shim import declare_missing_operators


def _draws(n: int, classes: int, seed: int, *, coarse: bool = False) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels of all classes and probabilities that know something of them; coarse ones have ties."""
    generator = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), generator.integers(classes, size=n - classes)]
    scores = generator.gamma(0.5, size=(n, classes)) + np.eye(classes)[labels] * 0.4
    if coarse:
        scores = np.ceil(4 * scores)
    return labels, scores / scores.sum(axis=1, keepdims=True)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(12, 60), classes=st.integers(2, 5), seed=st.integers(0, 99), coarse=st.booleans())
def test_figures_are_sklearns(n: int, classes: int, seed: int, coarse: bool) -> None:
    """Accuracy, balanced accuracy, macro F1, MCC and AUROC agree with the reference, ties too."""
    labels, probabilities = _draws(n, classes, seed, coarse=coarse)
    predicted = probabilities.argmax(axis=1)
    truth = np.eye(classes)[labels]
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
        "macro_f1": sklearn_metrics.f1_score(labels, predicted, average="macro"),
        "mcc": sklearn_metrics.matthews_corrcoef(labels, predicted),
        "auroc_macro": sklearn_metrics.roc_auc_score(truth, probabilities, average="macro"),
    }
    actual = point_figures(Scores.of(labels, probabilities))
    assert pytest.approx(expected, abs=1e-12) == {name: actual[name] for name in expected}


@settings(deadline=None, max_examples=30)
@given(n=st.integers(5, 80), classes=st.integers(2, 5), seed=st.integers(0, 99))
def test_calibration_error_is_torchmetrics(n: int, classes: int, seed: int) -> None:
    """The expected calibration error over 15 bins agrees with the reference."""
    declare_missing_operators()  # torchmetrics imports torchvision
    from torchmetrics.functional.classification import multiclass_calibration_error

    labels, probabilities = _draws(n, classes, seed)
    reference = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), classes, n_bins=15, norm="l1"
    )
    assert pytest.approx(float(reference), abs=1e-6) == point_figures(Scores.of(labels, probabilities))["ece"]


def test_per_class_figures_are_those_of_one_against_the_rest() -> None:
    """Sensitivity, specificity and AUROC of each class agree with sklearn's on the binary problem."""
    labels, probabilities = _draws(80, 3, 0)
    report = intervals(Scores.of(labels, probabilities), "abc", resamples=100)["per_class"]
    for index, name in enumerate("abc"):
        truth, said = labels == index, probabilities.argmax(axis=1) == index
        expected = {
            "sensitivity": sklearn_metrics.recall_score(truth, said),
            "specificity": sklearn_metrics.recall_score(~truth, ~said),
            "auroc": sklearn_metrics.roc_auc_score(truth, probabilities[:, index]),
        }
        assert pytest.approx(expected) == {key: report[name][key]["value"] for key in expected}
        assert int(truth.sum()) == report[name]["n"]


def test_confusion_has_true_classes_as_rows() -> None:
    """Two images of class 0 called 1 stand in row 0, column 1."""
    scores = Scores.of([0, 0, 1], [[0.2, 0.8], [0.1, 0.9], [0.0, 1.0]])
    assert confusion_matrix(scores).tolist() == [[0, 2], [0, 1]]


def test_a_class_without_images_leaves_the_rest_valid() -> None:
    """Its own sensitivity and AUROC are None; macro figures are over the classes that are there."""
    labels, probabilities = _draws(40, 3, 1)
    kept = labels != 2
    report = intervals(Scores.of(labels[kept], probabilities[kept]), "abc", resamples=100)
    absent, empty = report["per_class"]["c"], {"value": None, "low": None, "high": None}
    assert (absent["sensitivity"], absent["auroc"], absent["n"]) == (empty, empty, 0)
    present = [report["per_class"][name]["sensitivity"]["value"] for name in "ab"]
    assert pytest.approx(np.mean(present)) == report["balanced_accuracy"]["value"]
    assert all(report[name]["value"] is not None for name in FIGURES)


def test_one_class_alone_has_no_auroc_but_an_accuracy() -> None:
    """What cannot be defined is None, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = intervals(Scores.of([1, 1], [[0.4, 0.6], [0.7, 0.3]]), "ab", resamples=100)
    assert [report[name]["value"] for name in ("accuracy", "auroc_macro", "mcc")] == [0.5, None, None]


def test_a_constant_answer_has_an_mcc_of_zero() -> None:
    """As the reference has it: no correlation, not an undefined figure."""
    assert point_figures(Scores.of([0, 1, 1], [[0.9, 0.1]] * 3))["mcc"] == 0.0


def test_patients_are_the_unit() -> None:
    """Ten equal images of each patient say no more than one: the interval stays as wide."""
    labels, probabilities = _draws(60, 2, 3)
    patients = np.arange(60)
    once = intervals(Scores.of(labels, probabilities, patients), "ab", resamples=400)["accuracy"]
    repeated = Scores.of(labels.repeat(10), probabilities.repeat(10, axis=0), patients.repeat(10))
    assert pytest.approx(once) == intervals(repeated, "ab", resamples=400)["accuracy"]


def test_an_interval_is_about_the_binomial_one() -> None:
    """100 independent images at 80 %: the 95 % interval is 0.72 to 0.88 within 0.02."""
    labels = np.arange(100) % 2
    said = np.where(np.arange(100) < 80, labels, 1 - labels)
    report = intervals(Scores.of(labels, np.eye(2)[said]), "ab", resamples=4000)["accuracy"]
    assert pytest.approx([0.8, 0.72, 0.88], abs=0.02) == [report["value"], report["low"], report["high"]]


def test_intervals_follow_the_seed_and_not_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same interval however memory is cut; another seed another one."""
    labels, probabilities = _draws(50, 3, 4)
    scores = Scores.of(labels, probabilities, np.arange(50) // 3)
    whole, other = intervals(scores, "abc", seed=1), intervals(scores, "abc", seed=2)
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", 500)
    assert whole == intervals(scores, "abc", seed=1)
    assert whole["auroc_macro"] != other["auroc_macro"]


def test_a_resample_equals_the_figures_of_its_images() -> None:
    """Weights by patient give what repeating the drawn patients' images gives."""
    labels, probabilities = _draws(30, 3, 5, coarse=True)
    patients = np.arange(30) // 3
    scores = Scores.of(labels, probabilities, patients)
    drawn = np.bincount([0, 0, 1, 2, 2, 2, 5, 7, 8, 9], minlength=10).astype(float)
    images = np.repeat(np.arange(30), drawn[patients].astype(int))
    expected = point_figures(Scores.of(labels[images], probabilities[images]))
    actual = metrics._figures(metrics._Sums(scores), drawn[None])
    assert pytest.approx(expected) == {name: float(actual[name][0]) for name in FIGURES}
