"""Runs side by side: paired differences, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cluster.errors import InputError
from tests.xdist_train.evidence.made_up_run import draw_answers, write_run
from xdist_train.evidence.compare import comparison_table, run_comparison
from xdist_train.evidence.metrics import Scores, differences, point_figures


def test_a_difference_is_paired_and_between_figures(tmp_path: Path) -> None:
    """Its value is that of the figures; its interval is tighter than independent ones would be."""
    uris = [write_run(tmp_path / name, skill=skill).uri for name, skill in (("a", 1.5), ("b", 1.9), ("c", 1.5))]
    found = run_comparison(uris, "test")
    first, better, same = found["runs"]
    assert (300, "image", None) == (found["n_images"], found["unit"], first["difference"])
    accuracy = better["difference"]["accuracy"]
    assert accuracy["value"] == pytest.approx(better["accuracy"]["value"] - first["accuracy"]["value"])
    assert 0 < accuracy["low"] < accuracy["value"] < accuracy["high"]
    width = sum(run["accuracy"]["high"] - run["accuracy"]["low"] for run in (first, better))
    assert accuracy["high"] - accuracy["low"] < width / 2
    assert {"value": 0.0, "low": 0.0, "high": 0.0} == same["difference"]["accuracy"]
    json.dumps(found)
    console = Console(width=160, record=True, quiet=True)
    console.print(comparison_table(found))


def test_resamples_are_of_patients() -> None:
    """With many images a patient, an interval is wider than with one."""
    labels = np.arange(400) % 2
    pair = [draw_answers(seed, labels, 1.0, 2) for seed in (0, 1)]
    widths = []
    for patients in (np.arange(400), np.arange(400) // 40):
        first, other = (Scores.of(labels, probabilities, patients) for probabilities in pair)
        found = differences(first, other, resamples=400)["accuracy"]
        assert found["low"] is not None
        assert found["high"] is not None
        widths.append(found["high"] - found["low"])
        expected = (point_figures(other)["accuracy"] or 0) - (point_figures(first)["accuracy"] or 0)
        assert found["value"] == pytest.approx(expected)
    assert widths[0] != pytest.approx(widths[1], rel=0.02)


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    """In one paragraph each."""
    one = write_run(tmp_path / "one").uri
    other_data = write_run(tmp_path / "data", fingerprint="e" * 64).uri
    other_ids = write_run(tmp_path / "ids", ids=range(10_005, 10_305)).uri
    other_classes = write_run(tmp_path / "classes", classes=("CNV", "DME", "OTHER")).uri
    no_test = write_run(tmp_path / "val", splits=("val",)).uri
    damaged = write_run(tmp_path / "damaged")
    damaged.write("predictions/test.parquet", b"PAR1 but not really")
    for uris, split, text in (
        ([one], "test", "takes two runs or more, not 1"),
        ([one, str(tmp_path)], "test", "is no run folder"),
        ([one, other_data], "test", "different data sets"),
        ([one, other_ids], "test", "have other test images .*295 of them the same"),
        ([one, other_classes], "test", "have other classes"),
        ([one, no_test], "test", "has no figures of test .evaluated: val.*xdist-train evaluate"),
        ([one, damaged.uri], "test", "test.parquet cannot be read"),
        ([one, one], "tests", "splits are train, val, test"),
    ):
        with pytest.raises(InputError, match=text):
            run_comparison(uris, split)
