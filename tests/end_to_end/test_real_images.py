"""From real files to figures: pack, train, evaluate, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xdist_train.cli import main

pytestmark = pytest.mark.ray


def _run(*arguments: str) -> None:
    assert 0 == main(arguments)


def test_real_oct_from_files_to_predictions(
    ray_cluster: Any, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """47 real OCT files, 2 epochs on 2 workers: figures for every class, a listed run, and one answer an image."""
    source, packed, runs = real_data / "oct_real", str(tmp_path / "packed"), str(tmp_path / "runs")
    settings = [f"data.uri={packed}", f"storage.uri={runs}", f"loader.cache_dir={tmp_path / 'cache'}", "run.name=oct"]
    _run("pack", str(source), "--out", packed)
    _run("train", "demo", *settings, "train.epochs=2", "train.batch_size=16", "evaluate.bootstrap=100")
    capsys.readouterr()

    _run("evaluate", f"{runs}/oct", "--split", "val", "--json")
    report = json.loads(capsys.readouterr().out)
    assert ["CNV", "DME", "DRUSEN", "NORMAL"] == list(report["per_class"])
    assert 6 == report["n_images"] == sum(map(sum, report["confusion_matrix"]))

    _run("runs", runs)
    assert "finished" in capsys.readouterr().out

    files = sorted(str(path) for path in source.glob("*/*.jpeg"))[:3]
    _run("predict", f"{runs}/oct/model", *files, "--json")
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert files == [answer["source"] for answer in answers]
    assert [pytest.approx(1)] * 3 == [sum(answer["probabilities"].values()) for answer in answers]

    assert 2 == main(["predict", f"{runs}/oct", *files, __file__])
    captured = capsys.readouterr()
    assert "test_real_images.py" in captured.err
    assert "" == captured.out
