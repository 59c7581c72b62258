"""The average of the weights: its rule, and where it stands in for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cluster.world import World
from dataloading.loading.plan import training_requests
from tests.xdist_train.training.ranks import FolderReporter, make_job
from xdist_train.config import ModelConfig, OptimConfig, TrainConfig
from xdist_train.training.average import WeightAverage, decay_after
from xdist_train.training.checkpoint import DamagedCheckpointError, load_checkpoint
from xdist_train.training.loop import Job, Saving, run_loop
from xdist_train.training.state import TrainState


@pytest.mark.parametrize(("steps", "expected"), [(1, 2 / 11), (2, 3 / 12), (80, 0.9), (81, 0.9), (10**6, 0.9)])
def test_the_first_steps_keep_less(steps: int, expected: float) -> None:
    """(1 + t) / (10 + t), up to the decay that was asked for."""
    assert expected == decay_after(steps, 0.9)


def test_it_follows_weights_and_running_figures() -> None:
    """Three steps by hand: parameters and BatchNorm's figures are averaged, its count and other buffers copied."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    model.register_buffer("mask", torch.full((2,), -torch.inf))
    average = WeightAverage(model, 0.2)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for steps, decay in [(1, 2 / 11), (2, 0.2), (3, 0.2)]:
        with torch.no_grad():
            for value in model.state_dict().values():
                value += steps
        average.update(steps)
        for name, value in model.state_dict().items():
            moves = value.is_floating_point() and name != "mask"
            expected[name] = decay * expected[name] + (1 - decay) * value if moves else value.clone()
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-14, atol=1e-14)


class _Savings(FolderReporter):
    """Remembers the tensors that would be published."""

    def save(self, saving: Saving) -> None:
        assert saving.snapshot is not None
        self.judged = {name: value.clone() for name, value in saving.snapshot.judged.items()}
        super().save(saving)


def _job(ema_decay: float = 0.9, **more: Any) -> Job:
    return make_job(
        World(),
        model=ModelConfig(backbone="small_cnn"),
        optim=OptimConfig(name="sgd", lr=0.05),
        train=TrainConfig(epochs=1, batch_size=26, ema_decay=ema_decay),
        micro_batch_size=13,
        **more,
    )


def test_the_average_is_judged_and_published_and_the_weights_learn_on() -> None:
    """Logits on val and what is published are the average's; the weights end as they would without one."""
    job, reporter = _job(), _Savings()
    run_loop(job, TrainState(), reporter)
    plain = _job(ema_decay=0)
    run_loop(plain, TrainState(), FolderReporter())
    learner = job.learner
    for name, value in plain.learner.model.state_dict().items():
        assert torch.equal(value, learner.model.state_dict()[name])
        assert torch.equal(learner.judged.state_dict()[name], reporter.judged[name])
    assert not torch.equal(learner.judged.head.linear.weight, learner.model.head.linear.weight)  # type: ignore[union-attr]
    batch = next(iter(job.loader.load(training_requests(job.plan, job.steps, job.world, 0))))
    logits = learner.logits(batch)
    learner.model.load_state_dict(learner.judged.state_dict())
    learner.average = None
    learner.model.eval()
    assert torch.equal(logits, learner.logits(batch))


def test_a_checkpoint_without_the_average_is_refused(tmp_path: Path) -> None:
    """And one with it where none is kept: the digest names other files than those of such a run."""
    run_loop(_job(), TrainState(), FolderReporter(tmp_path))
    (folder,) = tmp_path.iterdir()
    names = {"average.safetensors", "digest.json", "model.safetensors", "optim.safetensors", "state.json"}
    assert names == {path.name for path in folder.iterdir()}
    assert 1 == load_checkpoint(folder, _job().learner).epoch
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(folder, _job(ema_decay=0).learner)
    (folder / "average.safetensors").unlink()
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(folder, _job().learner)
