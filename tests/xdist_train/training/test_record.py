"""`run.json` at the start of a run."""

from __future__ import annotations

from pathlib import Path

from cluster.runs import RunFolder
from cluster.store import open_store
from xdist_train.training.record import first_record


def test_what_was_made_of_the_ended_run_may_not_be_read_once_it_goes_on(tmp_path: Path) -> None:
    """Page, ONNX file and card tell of weights that may be replaced; what training left stays listed."""
    kept = ["config.yaml", "model/model.safetensors", "evaluation/val.json"]
    earlier = {"complete": [*kept, "report.html", "model/model.onnx", "model/README.md"]}
    folder = RunFolder(open_store(str(tmp_path / "run")), driver="d")
    record = first_record(folder, earlier, workers=1, hardware={}, attempt=2)
    assert kept == record.values["complete"]
