"""A checkpoint is whole or refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.world import World
from tests.xdist_train.training.ranks import FolderReporter, make_job
from xdist_train.config import ModelConfig, OptimConfig, TrainConfig
from xdist_train.training.checkpoint import (
    DamagedCheckpointError,
    Position,
    Snapshots,
    checkpoint_name,
    load_checkpoint,
    parse_checkpoint_name,
)
from xdist_train.training.loop import Job, run_loop
from xdist_train.training.optim import build_optimizer
from xdist_train.training.state import TrainState

_POSITIONS = st.builds(Position, st.integers(0, 9999), st.integers(0, 10**7), st.integers(1, 999))


def _trained(name: str = "adamw") -> tuple[Job, TrainState]:
    job = make_job(
        World(),
        model=ModelConfig(backbone="small_cnn"),
        optim=OptimConfig(name=name, lr=1e-3),  # type: ignore[arg-type]
        train=TrainConfig(epochs=1, batch_size=52),
        micro_batch_size=26,
    )
    return job, run_loop(job, TrainState(), FolderReporter()).state


@given(_POSITIONS)
def test_names_are_read_back(position: Position) -> None:
    """A folder's name gives its position and attempt back."""
    assert position == parse_checkpoint_name(checkpoint_name(position))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_round_trip(name: str, tmp_path: Path) -> None:
    """Model, optimiser and state come back equal; no file of a checkpoint is a pickle."""
    job, state = _trained(name)
    Snapshots().take(job.learner, state).write(tmp_path)
    fresh, _ = _trained(name)
    assert state == load_checkpoint(tmp_path, fresh.learner)
    for left, right in zip(job.learner.state()[:2], fresh.learner.state()[:2], strict=True):
        assert _flat(left) == _flat(right)
    assert {"digest.json", "model.safetensors", "optim.safetensors", "state.json"} == {
        path.name for path in tmp_path.iterdir()
    }


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_moments_lie_as_their_parameters_do(name: str, tmp_path: Path) -> None:
    """Files know no strides, and torch's fused form on a CPU goes by memory alone."""
    job, state = _trained(name)
    Snapshots().take(job.learner, state).write(tmp_path)
    load_checkpoint(tmp_path, job.learner)
    strides = [
        (parameter.stride(), value.stride())
        for parameter, values in job.learner.optimizer.state.items()
        for value in values.values()
        if value.ndim
    ]
    assert not all(parameter.is_contiguous() for parameter in job.learner.model.parameters())
    assert [left for left, _ in strides] == [right for _, right in strides]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_checkpoint_of_another_form_goes_on_in_this_one(name: str) -> None:
    """As earlier versions wrote it, or a GPU's; a scaler of gradients works with it."""
    job, _ = _trained(name)
    forms = [(group["foreach"], group["fused"]) for group in job.learner.optimizer.param_groups]
    model, optimizer, scaler = job.learner.state()
    groups = [{**group, "foreach": True, "fused": None} for group in optimizer["param_groups"]]
    job.learner.load(model, {**optimizer, "param_groups": groups}, scaler, {})
    assert forms == [(group["foreach"], group["fused"]) for group in job.learner.optimizer.param_groups]
    before = [parameter.clone() for parameter in job.learner.model.parameters()]
    scaling = torch.amp.GradScaler("cpu")
    sum(parameter.sum() for parameter in job.learner.model.parameters()).backward()  # type: ignore[union-attr]
    scaling.scale(torch.zeros((), requires_grad=True)).backward()
    scaling.step(job.learner.optimizer)
    assert all((left != right).any() for left, right in zip(before, job.learner.model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_first_step_that_overflows_leaves_nothing(name: str) -> None:
    """Mixed precision starts with a scale that is too large; the step after it is as if it had been the first."""
    job, _ = _trained(name)
    weights = []
    for overflows in (False, True):
        model = copy.deepcopy(job.learner.model)
        optimizer = build_optimizer(model, OptimConfig(name=name, lr=1e-3))  # type: ignore[arg-type]
        scaling = torch.amp.GradScaler("cpu", init_scale=1.0)
        for gradient in (torch.inf, 1.0) if overflows else (1.0,):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, gradient)
            scaling.scale(torch.zeros(()))
            scaling.step(optimizer)
            scaling.update(1.0)
        weights.append([parameter.tolist() for parameter in model.parameters()])
    assert weights[0] == weights[1]


def test_a_moment_of_another_shape_is_refused(tmp_path: Path) -> None:
    """Its file may be whole by its digest; nothing of the learner is changed."""
    job, state = _trained()
    snapshot = Snapshots().take(job.learner, state)
    name = next(name for name in snapshot.optimizer if name.endswith("exp_avg"))
    snapshot.optimizer[name] = snapshot.optimizer[name].flatten()[:1]
    snapshot.write(tmp_path)
    before = [_flat(part) for part in job.learner.state()[:2]]
    with pytest.raises(DamagedCheckpointError, match=r"exp_avg of parameter \d+ has shape \(1,\)"):
        load_checkpoint(tmp_path, job.learner)
    assert before == [_flat(part) for part in job.learner.state()[:2]]


def _flat(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _flat(item) for key, item in value.items()}
    return [_flat(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["model.safetensors", "optim.safetensors", "state.json", "digest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_refused(name: str, damage: str, tmp_path: Path) -> None:
    """A missing, shortened or altered file is refused, and the learner keeps its weights."""
    job, state = _trained()
    Snapshots().take(job.learner, state).write(tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    before = _flat(job.learner.state()[0])
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(tmp_path, job.learner)
    assert before == _flat(job.learner.state()[0])


def test_a_snapshot_does_not_see_later_steps(tmp_path: Path) -> None:
    """What is written is the state at the snapshot, though the model went on."""
    job, state = _trained()
    snapshot = Snapshots().take(job.learner, state)
    expected = _flat(job.learner.state()[0])
    with torch.no_grad():
        for parameter in job.learner.model.parameters():
            parameter.add_(1.0)
    snapshot.write(tmp_path)
    load_checkpoint(tmp_path, job.learner)
    assert expected == _flat(job.learner.state()[0])
