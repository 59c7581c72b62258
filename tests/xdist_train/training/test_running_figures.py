"""BatchNorm's figures after a step, by torch's own rule and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cluster.world import World
from xdist_train.training.running_figures import RunningFigures


def _step(model: nn.Module, micro_batches: list[torch.Tensor]) -> None:
    figures = RunningFigures(model, World())
    figures.begin()
    for images in micro_batches:
        model(images)
        figures.add()
    figures.end(len(micro_batches))


def _micro_batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [3 * torch.randn(8, 4, 5, 5, generator=generator) + 2 for _ in range(count)]


def test_one_micro_batch_moves_as_torch_does() -> None:
    """Two steps of one micro batch each: torch's own figures and count, up to the order of sums."""
    ours, torchs = nn.BatchNorm2d(4, momentum=0.3), nn.BatchNorm2d(4, momentum=0.3)
    figures = RunningFigures(ours, World())
    for images in _micro_batches(2):
        figures.begin()
        ours(images)
        figures.add()
        figures.end(1)
        torchs(images)
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=1e-6)


def test_many_weigh_the_same_and_move_as_far_as_they_would_one_by_one() -> None:
    """3 micro batches: 0.9^3 of what was stays, the rest is the mean of their own means, in any order."""
    batches = _micro_batches(3)
    model = nn.BatchNorm2d(4)
    model.running_mean = torch.full((4,), 7.0)
    _step(model, batches)
    mean = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(model.running_mean, 0.9**3 * 7 + (1 - 0.9**3) * mean)
    other = nn.BatchNorm2d(4)
    other.running_mean = torch.full((4,), 7.0)
    _step(other, batches[::-1])
    torch.testing.assert_close(other.running_var, model.running_var)
    assert 3 == int(model.num_batches_tracked or 0)


def test_what_is_in_eval_mode_rests() -> None:
    """A frozen module keeps its figures while another moves; when it trains again, it moves by its own momentum."""
    model = nn.Sequential(nn.BatchNorm2d(4, momentum=0.5), nn.BatchNorm2d(4))
    frozen = model[0].eval()
    before = frozen.running_mean.clone()
    figures = RunningFigures(model, World())
    (images,) = _micro_batches(1)
    for mode in (False, True):
        frozen.train(mode)
        figures.begin()
        model(images)
        figures.add()
        figures.end(1)
        expected = 0.5 * images.mean(dim=(0, 2, 3)) if mode else before
        torch.testing.assert_close(frozen.running_mean, expected)


@pytest.mark.parametrize("model", [nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)])
def test_nothing_to_move_is_no_work(model: nn.Module) -> None:
    """Norms without figures pass."""
    _step(model, _micro_batches(2))
