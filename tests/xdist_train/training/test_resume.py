"""Ranks go on from one checkpoint: the newest that all of them know and can read."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cluster.world import World
from tests.xdist_train.training.ranks import FolderReporter, make_job, run_ranks
from xdist_train.config import CheckpointConfig, ModelConfig, OptimConfig, TrainConfig
from xdist_train.training import resume as resume_module
from xdist_train.training.checkpoint import DamagedCheckpointError, Position, checkpoint_name
from xdist_train.training.collectives import gather_values
from xdist_train.training.loop import Job, run_loop
from xdist_train.training.resume import Bring, resume
from xdist_train.training.state import TrainState

_OLD, _NEW = Position(0, 1, 1), Position(1, 0, 1)


def _job(world: World) -> Job:
    return make_job(
        world,
        model=ModelConfig(backbone="small_cnn"),
        optim=OptimConfig(),
        train=TrainConfig(epochs=1, batch_size=52),
        micro_batch_size=26,
        checkpoint=CheckpointConfig(every_steps=1),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two checkpoints of a run of two steps."""
    folder = tmp_path_factory.mktemp("checkpoints")
    run_loop(_job(World()), TrainState(), FolderReporter(folder))
    assert [checkpoint_name(_OLD), checkpoint_name(_NEW)] == sorted(path.name for path in folder.iterdir())
    return folder


def _bring(folder: Path, position: Position) -> Bring:
    return lambda place: shutil.copytree(folder / checkpoint_name(position), place, dirs_exist_ok=True)


def _resume(world: World, folder: Path, known: list[list[Position]], blind: int = -1) -> Any:
    """Positions of all ranks afterwards; the blind one cannot read the newest."""
    load = resume_module.load_checkpoint

    def load_unless_blind(place: Path, learner: Any) -> TrainState:
        if world.rank == blind and place.name.endswith(checkpoint_name(_NEW)):
            raise DamagedCheckpointError("rewritten while it was read")
        return load(place, learner)

    resume_module.load_checkpoint = load_unless_blind
    local = World(world.rank, world.size, local_rank=world.rank)
    job = _job(local)
    reported = {position: _bring(folder, position) for position in known[world.rank]}
    state = resume(reported, job.learner, local, f"test-{folder.name}")
    weight = next(job.learner.model.parameters()).double().sum()
    mine = weight.detach().new_tensor([state.epoch, state.step, float(weight)])
    return gather_values(mine, local).tolist()


@pytest.mark.parametrize(
    ("known", "blind", "expected"),
    [
        ([[_OLD, _NEW], [_OLD, _NEW]], -1, _NEW),
        ([[_OLD, _NEW], [_OLD, _NEW]], 0, _OLD),
        ([[_OLD, _NEW], [_NEW, _OLD]], 1, _OLD),
        ([[_OLD], [_OLD, _NEW]], -1, _OLD),
        ([[_OLD, _NEW], []], -1, Position(0, 0, 1)),
    ],
)
def test_all_ranks_go_on_from_the_same(
    known: list[list[Position]], blind: int, expected: Position, folder: Path
) -> None:
    """Where one knows less, or cannot read what the others can, all go back; weights too are the same."""
    first, second = run_ranks(2, _resume, folder, known, blind)
    assert [expected.epoch, expected.step] == first[:2] == second[:2]
    assert first[2] == second[2]
    assert [] == list(Path(tempfile.gettempdir()).glob(f"xdist-resume-test-{folder.name}*"))


def test_nothing_that_can_be_read_is_said(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged newest one is passed over, both named; where all are damaged, that is an error."""
    spoilt = shutil.copytree(folder, tmp_path / "spoilt")
    weights = spoilt / checkpoint_name(_NEW) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    job, reported = _job(World()), {position: _bring(spoilt, position) for position in (_OLD, _NEW)}
    state = resume(reported, job.learner, World(), "alone")
    assert (0, 1) == (state.epoch, state.step)
    assert f"checkpoint {checkpoint_name(_NEW)} is passed over" in caplog.text
    assert f"going back to {checkpoint_name(_OLD)}" in caplog.text
    weights = spoilt / checkpoint_name(_OLD) / "model.safetensors"
    weights.write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match="none of the 2 checkpoints"):
        resume(reported, job.learner, World(), "alone")
