"""Mixup: pictures and losses in pairs, weights that add up, nothing that depends on what is not mixed."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cluster.world import World
from dataloading.loading.batch import Batch, normalise
from xdist_train.config import LossConfig, OptimConfig, TrainConfig
from xdist_train.models.losses import LossFunction
from xdist_train.training.learner import InputView, Learner
from xdist_train.training.mixup import Mix, draw_mix

_CPU = torch.device("cpu")
_WEIGHTS = np.array([0.5, 1.0, 3.0])


def _batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (6,), generator=generator)
    return Batch(images=images, labels=labels, rows=torch.arange(6), epoch=1, step=2, index=3)


def _learner(mixup: float) -> Learner:
    torch.manual_seed(0)
    return Learner(
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3)),
        LossFunction(LossConfig(), _WEIGHTS),
        OptimConfig(name="sgd", lr=0.1),
        TrainConfig(precision="float64", mixup=mixup, channels_last=False),
        view=InputView(mean=(0.5,), std=(0.25,), image_size=8, channels=1),
        device=_CPU,
        world=World(),
    )


def test_a_step_is_that_of_the_mixed_pictures_and_labels(monkeypatch) -> None:
    """Against soft labels: the loss of a share of a label is that share of its loss."""
    mix = Mix(0.3, torch.tensor([2, 0, 1, 5, 3, 4]))
    monkeypatch.setattr("xdist_train.training.learner.draw_mix", lambda alpha, count, device: mix)
    learner, batch = _learner(0.4), _batch()
    pixels = normalise(batch.images, (0.5,), (0.25,), 3, torch.float64)
    mixed = 0.3 * pixels + 0.7 * pixels[mix.partners]
    one_hot = nn.functional.one_hot(batch.labels, 3).double()
    targets = 0.3 * one_hot + 0.7 * one_hot[mix.partners]
    with torch.no_grad():
        logits = learner.model(mixed)
    expected = -(torch.from_numpy(_WEIGHTS) * targets * logits.log_softmax(dim=1)).sum() / 5.0
    total = learner.step(iter([batch]), 1, 5.0, 1.0)
    torch.testing.assert_close(total, expected)


def test_weights_of_a_micro_batch_add_up() -> None:
    """So the denominator, which the plan knows, stays what it is: with logits of no preference the loss is ln 3."""
    learner, batch = _learner(0.4), _batch()
    nn.init.zeros_(learner.model[1].weight)
    nn.init.zeros_(learner.model[1].bias)
    weight_sum = learner.loss.weight_sum(batch.labels.numpy())
    total = learner.step(iter([batch]), 1, weight_sum, 1.0)
    torch.testing.assert_close(total, torch.tensor(3.0, dtype=torch.float64).log())


def test_a_step_is_drawn_from_its_place_alone() -> None:
    """The same again after other draws, another one in another epoch; none without mixup."""
    losses = [float(_learner(0.4).step(iter([_batch()]), 1, 6.0, 1.0)) for _ in range(2)]
    assert losses[0] == losses[1]
    other = Batch(**{**vars(_batch()), "epoch": 2})
    assert float(_learner(0.4).step(iter([other]), 1, 6.0, 1.0)) != losses[0]
    plain = [float(_learner(0.0).step(iter([batch]), 1, 6.0, 1.0)) for batch in (_batch(), other)]
    assert plain[0] == plain[1] != losses[0]


def test_shares_are_of_beta() -> None:
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)); partners are a permutation."""
    torch.manual_seed(0)
    for alpha in (0.2, 1.0, 4.0):
        mixes = [draw_mix(alpha, 5, _CPU) for _ in range(2000)]
        shares = np.array([mix.share for mix in mixes])
        assert abs(shares.mean() - 0.5) < 0.03
        assert abs(shares.var() * 4 * (2 * alpha + 1) - 1) < 0.12
        assert all(sorted(mix.partners.tolist()) == list(range(5)) for mix in mixes[:20])
