"""Decisions: by threshold, by confidence, as val teaches them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.errors import InputError
from tests.xdist_train.evidence.made_up_run import write_run
from xdist_train.evidence.answers import read_answers
from xdist_train.evidence.calibration import apply_temperature, fit_temperature
from xdist_train.evidence.decisions import Rule, Wish, learn_rule, parse_wish

_THREE = np.array([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.05, 0.15, 0.8]])


def test_without_wishes_the_likeliest_class_is_the_decision() -> None:
    """Nothing learned, nothing changed."""
    assert [0, 2, 2] == Rule().decide(_THREE).tolist()
    assert Rule().calibrated(_THREE) is None


def test_a_class_that_is_looked_for_wins_at_its_threshold() -> None:
    """At or above it that class, below it the likeliest of the others."""
    assert [1, 1, 2] == Rule(index=1, threshold=0.3).decide(_THREE).tolist()
    assert [1, 2, 2] == Rule(index=0, threshold=0.6).decide(_THREE).tolist()


def test_what_is_less_sure_is_left_to_a_person() -> None:
    """By the calibrated probability: the same answers are less sure at a higher temperature."""
    assert [-1, -1, 2] == Rule(temperature=1.0, defer_below=0.7).decide(_THREE).tolist()
    assert [-1, -1, -1] == Rule(temperature=3.0, defer_below=0.7).decide(_THREE).tolist()


def test_val_teaches_temperature_and_threshold(tmp_path: Path) -> None:
    """The wished sensitivity is reached on val, and no higher threshold would do."""
    val = read_answers(write_run(tmp_path / "run"), "val")
    rule = learn_rule(val, Wish("DME", 0.9), 0.5)
    own = val.probabilities[val.labels == 1, 1]
    assert (own >= rule.threshold).mean() >= 0.9
    assert (own > rule.threshold).mean() < 0.9
    assert fit_temperature(val.labels, val.probabilities) == rule.temperature
    calibrated = rule.calibrated(val.probabilities)
    assert calibrated is not None
    assert np.array_equal(apply_temperature(val.probabilities, rule.temperature or 0), calibrated)


def test_a_wish_is_a_class_and_a_sensitivity() -> None:
    """The class may hold a sign of equality; all else is refused."""
    assert Wish("a=b", 0.95) == parse_wish("a=b=0.95")
    for text in ("CNV", "CNV=", "=0.9", "CNV=0", "CNV=1.5", "CNV=nan", "CNV=x"):
        with pytest.raises(InputError, match="is not CLASS=SENSITIVITY"):
            parse_wish(text)


def test_what_val_cannot_teach_is_refused(tmp_path: Path) -> None:
    """Another class, and a confidence that is none."""
    val = read_answers(write_run(tmp_path / "run"), "val")
    with pytest.raises(InputError, match="classes are CNV, DME, NORMAL"):
        learn_rule(val, Wish("AMD", 0.9), 0)
    with pytest.raises(InputError, match="confidence lies in"):
        learn_rule(val, None, 1.5)
