"""Frozen stages that train from an epoch on: what learns when, on any number of workers and after any resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cluster.world import World
from tests.xdist_train.training.ranks import FolderReporter, make_job, run_ranks
from xdist_train.config import CheckpointConfig, ModelConfig, OptimConfig, TrainConfig
from xdist_train.training.checkpoint import load_checkpoint
from xdist_train.training.loop import run_loop
from xdist_train.training.state import TrainState

_LAST = "e003-s000001-a01"
_STARTS = {"before": "e001-s000001-a01", "at": "e002-s000000-a01", "after": "e002-s000001-a01"}


def _train(world: World, folder: Path, name: str, start: str = "", wrong: str = "") -> dict[str, Any]:
    """Tensors, and steps of each parameter's moments, after 4 epochs of 2 steps, free from the third on.

    The last rank loads `wrong` first, as one does that can read a checkpoint that another one cannot.
    """
    job = make_job(
        world,
        model=ModelConfig(backbone="small_cnn", dropout=0.1, freeze="stages:2", unfreeze_epoch=3),
        optim=OptimConfig(name="adamw", lr=1e-3, weight_decay=0.01, layer_decay=0.5),
        train=TrainConfig(epochs=4, batch_size=52, precision="float64", ema_decay=0.9),
        micro_batch_size=13,
        checkpoint=CheckpointConfig(every_steps=1, keep=99),
    )
    learner = job.learner
    if wrong and world.rank == world.size - 1:
        load_checkpoint(folder / "whole" / wrong, learner)
    state = load_checkpoint(folder / "whole" / start, learner) if start else TrainState()
    (folder / name).mkdir(exist_ok=True)
    run_loop(job, state, FolderReporter(folder / name if world.is_first else None))
    if world.size > 1:
        torch.distributed.barrier()
    steps = {key: int(learner.optimizer.state[value]["step"]) for key, value in learner.model.named_parameters()}
    tensors = {f"{key}, averaged": value for key, value in learner.judged.state_dict().items()}
    return {"tensors": tensors | learner.model.state_dict(), "steps": steps}


def _whole_and_resumed(world: World, folder: Path) -> dict[str, Any]:
    whole = _train(world, folder, "whole")
    wrongs = {"before": _LAST, "at": "e001-s000001-a01", "after": "e001-s000001-a01"}
    resumed = {name: _train(world, folder, name, start, wrongs[name]) for name, start in _STARTS.items()}
    return {"whole": whole, **resumed}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("one")


@pytest.fixture(scope="module")
def one_worker(folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    return _whole_and_resumed(World(), folder)


def _require_equal_bits(runs: dict[str, Any]) -> None:
    for name in _STARTS:
        different = [
            key for key, value in runs["whole"]["tensors"].items() if not torch.equal(value, runs[name]["tensors"][key])
        ]
        assert (name, []) == (name, different)
        assert runs["whole"]["steps"] == runs[name]["steps"]


def test_a_run_resumed_around_the_boundary_ends_in_equal_bits(one_worker: dict[str, Any]) -> None:
    """Before, at and after it, also on a learner that had loaded a checkpoint from its other side."""
    _require_equal_bits(one_worker)


def test_it_is_the_same_on_two_workers(one_worker: dict[str, Any], tmp_path: Path) -> None:
    """Resumed in equal bits there too, and within 1e-9 of one worker."""
    two = run_ranks(2, _whole_and_resumed, tmp_path)
    _require_equal_bits(two)
    for name, value in one_worker["whole"]["tensors"].items():
        torch.testing.assert_close(two["whole"]["tensors"][name], value, rtol=1e-9, atol=1e-12)


def test_stages_learn_from_their_epoch_on(one_worker: dict[str, Any], folder: Path) -> None:
    """The first two stages rest through 4 steps and learn through 4; what always learned keeps its moments, of 8."""
    names = ["e000-s000001-a01", "e002-s000000-a01", "e002-s000001-a01"]
    first, boundary, after = (load_file(folder / "whole" / name / "model.safetensors") for name in names)
    held = {name for name in first if name.startswith(("stem.", "stages.0."))}
    assert held == {name for name in first if torch.equal(first[name], boundary[name])}
    assert set() == {name for name in first if torch.equal(boundary[name], after[name])}
    steps = one_worker["whole"]["steps"]
    assert {name: 4 if name in held else 8 for name in steps} == steps


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_what_learns_later_learns_in_the_group_of_what_learned_before(name: str) -> None:
    """Without rates by stage they are one group: some of its parameters have moments at the boundary, some none."""
    job = make_job(
        World(),
        model=ModelConfig(backbone="small_cnn", freeze="stages:2", unfreeze_epoch=2),
        optim=OptimConfig(name=name, lr=1e-3),  # type: ignore[arg-type]
        train=TrainConfig(epochs=2, batch_size=52),
        micro_batch_size=26,
    )
    before = {key: value.clone() for key, value in job.learner.model.named_parameters()}
    outcome = run_loop(job, TrainState(), FolderReporter())
    assert "finished" == outcome.status
    assert all((value != before[key]).any() for key, value in job.learner.model.named_parameters())
