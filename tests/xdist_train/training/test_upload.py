"""Savings appear in the loop's order, never more than two on their way, and one that fails ends the run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import StoreError
from cluster.runs import RunFolder
from cluster.store import open_store
from cluster.world import World
from tests.xdist_train.training.ranks import make_job
from xdist_train.config import ModelConfig, OptimConfig, TrainConfig
from xdist_train.models.export import ModelDescription, Preprocessing, Selection
from xdist_train.training.checkpoint import Snapshots, load_checkpoint
from xdist_train.training.loop import Saving
from xdist_train.training.pulse import Pulse
from xdist_train.training.state import TrainState
from xdist_train.training.upload import Uploads

_SELECTION = Selection(epoch=0, step=2, metric="accuracy", value=0.5)
_MODEL = ModelConfig(backbone="small_cnn")


class _Assembly:
    pulse = Pulse()

    def describe(self, selection: Selection) -> ModelDescription:
        preprocessing = Preprocessing(
            image_size=32, fit="crop", channels=1, mean=(0.4,), std=(0.2,), reduce_tolerance=0.9
        )
        return ModelDescription(
            classes=("a", "b", "c"),
            preprocessing=preprocessing,
            model=_MODEL,
            split="given",
            fingerprint="f",
            selection=selection,
        )


def _learner() -> Any:
    return make_job(
        World(), model=_MODEL, optim=OptimConfig(), train=TrainConfig(batch_size=52), micro_batch_size=26
    ).learner


def _uploads(folder: Path, told: list[Any]) -> Uploads:
    run = RunFolder(open_store(str(folder)), driver="d")
    return Uploads(run, _Assembly(), published=told.append, failed=told.append)  # type: ignore[arg-type]


def _saving(learner: Any, **more: Any) -> Saving:
    return Saving(name="e000-s000001-a01", metrics={}, snapshot=Snapshots().take(learner, TrainState(step=1)), **more)


def test_a_saving_appears_as_model_history_and_checkpoint(tmp_path: Path) -> None:
    """Everything that was named is there, and the checkpoint loads."""
    told: list[Any] = []
    learner, uploads = _learner(), _uploads(tmp_path, told)
    rows = [{"kind": "epoch", "epoch": 0, "step": 1, "time": 0.0, "train_loss": 1.0}]
    uploads.make_room()
    uploads.keep(_saving(learner, selection=_SELECTION, history=rows))
    keys = [key for keys in told for key in keys]
    assert ["model/model.safetensors", "model/model.json", "metrics.jsonl"] == keys[:3]
    assert all((tmp_path / key).exists() for key in keys)
    assert load_checkpoint(tmp_path / "checkpoints/e000-s000001-a01", learner).step == 1
    uploads.wait()


def test_a_third_saving_waits_for_the_first(tmp_path: Path) -> None:
    """Memory is given for two: the third has room once one has been kept."""
    learner, uploads = _learner(), _uploads(tmp_path, [])
    for _ in range(2):
        uploads.make_room()
    passed = threading.Event()
    thread = threading.Thread(target=lambda: (uploads.make_room(), passed.set()))
    thread.start()
    assert not passed.wait(0.2)
    uploads.keep(_saving(learner))
    assert passed.wait(10)
    thread.join()


def test_what_one_saving_met_ends_the_next(tmp_path: Path) -> None:
    """A folder in the way of the checkpoint: told once, raised then, at the next saving and at the end."""
    told: list[Any] = []
    learner, uploads = _learner(), _uploads(tmp_path, told)
    (tmp_path / "checkpoints").write_text("a file in the way")
    uploads.make_room()
    with pytest.raises(StoreError, match="cannot write"):
        uploads.keep(_saving(learner))
    assert [StoreError] == [type(error) for error in told]
    for again in (uploads.make_room, uploads.wait):
        with pytest.raises(StoreError):
            again()
