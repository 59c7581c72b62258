"""The demo, small: every part of the path with the same functions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.errors import InputError
from xdist_train.demo import run_demo

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_the_demo_ends_in_figures(ray_cluster: Any, tmp_path: Path) -> None:
    """Phantom, pack, train, evaluate, explain, report: figures of test patients, named parts, the run's folder."""
    shown = io.StringIO()
    overrides = ["phantom.num_images=160", "phantom.size_scale=0.25", "train.epochs=1", "schedule.warmup_epochs=0"]
    overrides.append(f"loader.cache_dir={tmp_path / 'cache'}")
    result = run_demo(str(tmp_path / "demo"), overrides, Console(file=shown, width=200), "test")
    assert Path(result.run_uri) == tmp_path / "demo/runs/demo"
    assert result.evaluations["test"]["n_images"] > 0
    assert "aria-pressed" in (Path(result.run_uri) / "report.html").read_text()
    parts = ("1/3", "2/3", "3/3", "160 images", "epoch 1:", "pointing game", "report: ")
    assert [] == [part for part in parts if part not in shown.getvalue()]
    with pytest.raises(InputError, match="exists"):
        run_demo(str(tmp_path / "demo"), [], Console(quiet=True), "test")
