"""The optimiser's groups and the learning rate's course."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cluster.errors import InputError
from xdist_train.config import ModelConfig, OptimConfig, ScheduleConfig
from xdist_train.models.backbones import build_model
from xdist_train.training.optim import build_optimizer, build_schedule, set_learning_rate


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_norm_and_biases_do_not_decay() -> None:
    """Weight decay acts on weight matrices alone, unless asked."""
    groups = build_optimizer(_model(), OptimConfig(weight_decay=0.1)).param_groups
    assert [(group["weight_decay"], [parameter.ndim for parameter in group["params"]]) for group in groups] == [
        (0.1, [2, 2]),
        (0.0, [1, 1, 1, 1]),
    ]
    every = build_optimizer(_model(), OptimConfig(weight_decay=0.1, decay_norm_and_bias=True)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in every] == [(0.1, 6)]


def test_frozen_parameters_are_left_out() -> None:
    """Only what takes a gradient is in the optimiser."""
    model = _model()
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig())
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in [*model[1].parameters(), *model[2].parameters()]} == held


# Rates of resnet18's parts at optim.lr=1 and optim.layer_decay=0.5: five stages before the head.
_RESNET18 = {
    "conv1": 1 / 32, "bn1": 1 / 32, "layer1": 1 / 16, "layer2": 1 / 8, "layer3": 1 / 4, "layer4": 1 / 2, "fc": 1.0,
}  # fmt: skip


def _rates(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    found = {id(held): group for group in optimizer.param_groups for held in group["params"]}
    groups = {name: found[id(parameter)] for name, parameter in model.named_parameters()}
    return {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_each_stage_has_half_the_rate_of_the_next(factor: float) -> None:
    """By hand for resnet18, times the schedule's factor; norms and biases decay in no stage."""
    with torch.device("meta"):
        model = build_model(ModelConfig(), 3)
    optimizer = build_optimizer(model, OptimConfig(lr=1.0, layer_decay=0.5, weight_decay=0.1))
    set_learning_rate(optimizer, factor)
    expected = {
        name: (factor * _RESNET18[name.split(".")[0]], 0.1 if parameter.ndim > 1 else 0.0)
        for name, parameter in model.named_parameters()
    }
    assert expected == _rates(model, optimizer)


def test_a_step_moves_each_stage_by_its_own_rate() -> None:
    """One step of sgd under a gradient of 1 everywhere moves each parameter by its rate, also after a round trip."""
    model = build_model(ModelConfig(), 3)
    optimizer = build_optimizer(model, OptimConfig(name="sgd", lr=1.0, layer_decay=0.5))
    optimizer.load_state_dict(optimizer.state_dict())
    set_learning_rate(optimizer, 0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = torch.full_like(parameter, 0.5 * _RESNET18[name.split(".")[0]])
        torch.testing.assert_close(before[name] - parameter.detach(), expected, rtol=0, atol=1e-6)


def test_groups_of_one_rate_are_as_they_were() -> None:
    """Checkpoints of earlier versions fit: without layer_decay a group says no more than it did."""
    groups = build_optimizer(_model(), OptimConfig(name="sgd", weight_decay=0.1)).param_groups
    assert [set(torch.optim.SGD(_model().parameters(), lr=1.0).param_groups[0])] * 2 == [set(group) for group in groups]


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (
            OptimConfig(name="sgd", lr=0.1, momentum=0.8, nesterov=True),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
        ),
        (
            OptimConfig(name="adam", lr=0.01, betas=(0.8, 0.99)),
            lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99)),
        ),
        (
            OptimConfig(name="adamw", lr=0.01, weight_decay=0.1, decay_norm_and_bias=True),
            lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        ),
    ],
)
def test_updates_are_torchs(config: OptimConfig, reference: object) -> None:
    """Three steps give the weights that torch's optimiser of these settings gives."""
    torch.manual_seed(0)
    ours, theirs = _model().double(), _model().double()
    theirs.load_state_dict(ours.state_dict())
    optimizers = (build_optimizer(ours, config), reference(theirs.parameters()))  # type: ignore[operator]
    inputs = torch.randn(5, 3, dtype=torch.float64)
    for _ in range(3):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()
    for expected, actual in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_one_rate_for_all_groups() -> None:
    """Setting the rate reaches every group."""
    optimizer = build_optimizer(_model(), OptimConfig(weight_decay=0.1))
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_constant_is_one() -> None:
    """Without a warm-up the factor never moves."""
    schedule = build_schedule(ScheduleConfig(name="constant"), 3, 2)
    assert [schedule.factor(step) for step in range(6)] == [1.0] * 6


def test_step_drops_every_so_many_epochs() -> None:
    """Two epochs of three steps, then a tenth."""
    schedule = build_schedule(ScheduleConfig(name="step", step_epochs=2, gamma=0.1), 3, 6)
    expected = [1.0] * 6 + [0.1] * 6 + [0.01] * 6
    assert pytest.approx(expected) == [schedule.factor(step) for step in range(18)]


def test_warmup_rises_linearly_and_ends_at_one() -> None:
    """Half an epoch of eight steps: quarters, then the rule."""
    schedule = build_schedule(ScheduleConfig(name="constant", warmup_epochs=0.5), 8, 2)
    assert [schedule.factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_starts_after_the_warmup_and_ends_at_its_least() -> None:
    """1 at the first step after the warm-up, halfway in the middle, the least factor at the end."""
    config = ScheduleConfig(name="cosine", warmup_epochs=1, min_factor=0.2)
    schedule = build_schedule(config, 10, 5)
    actual = [schedule.factor(step) for step in (9, 10, 30, 50, 99)]
    assert pytest.approx([1.0, 1.0, 0.6, 0.2, 0.2]) == actual


@given(
    name=st.sampled_from(["constant", "step", "cosine", "plateau"]),
    warmup=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    least=st.sampled_from([0.0, 0.1]),
    steps=st.integers(1, 30),
)
def test_factors_lie_between_zero_and_one(name: str, warmup: float, least: float, steps: int) -> None:
    """No step has no rate, and none more than the base rate."""
    config = ScheduleConfig(name=name, warmup_epochs=warmup, min_factor=least)  # type: ignore[arg-type]
    schedule = build_schedule(config, steps, 4)
    assert all(0 < schedule.factor(step) <= 1 for step in range(4 * steps))


def test_plateau_drops_after_patience_epochs_without_improvement() -> None:
    """The tutorial's rule: 3 epochs no better, then a fifth; not below the least factor."""
    schedule = build_schedule(ScheduleConfig(name="plateau", gamma=0.2, patience=3, min_factor=0.1), 1, 99)
    factors = []
    for loss in [1.0, 0.5, 0.6, math.nan, 0.5, 0.4, 0.9, 0.9, 0.9]:
        schedule.end_epoch(loss)
        factors.append(schedule.factor(0))
    assert pytest.approx([1, 1, 1, 1, 0.2, 0.2, 0.2, 0.2, 0.1]) == factors


def test_a_first_loss_that_is_nan_does_not_stay_the_best() -> None:
    """After a NaN the next finite loss is an improvement."""
    schedule = build_schedule(ScheduleConfig(name="plateau", patience=2), 1, 9)
    for loss in [math.nan, 1.0, 0.9, 0.8]:
        schedule.end_epoch(loss)
    assert schedule.factor(0) == 1.0


def test_plateau_goes_on_from_its_state() -> None:
    """A schedule restored from JSON continues as if never interrupted."""
    losses = [1.0, 0.9, 0.95, 0.95, 0.8, 0.9, 0.9, 0.9]
    config = ScheduleConfig(name="plateau", patience=2)
    whole = build_schedule(config, 1, 9)
    first, second = build_schedule(config, 1, 9), build_schedule(config, 1, 9)
    for loss in losses:
        whole.end_epoch(loss)
    for loss in losses[:3]:
        first.end_epoch(loss)
    second.load(json.loads(json.dumps(first.state())))
    for loss in losses[3:]:
        second.end_epoch(loss)
    assert whole.state() == second.state()


def test_a_warmup_as_long_as_the_run_is_refused() -> None:
    """Nothing would be left for the rule."""
    with pytest.raises(InputError, match=r"schedule\.warmup_epochs=3 .*train\.epochs=3"):
        build_schedule(ScheduleConfig(warmup_epochs=3), 10, 3)


def test_the_rate_drops_where_the_loss_alone_is_exhausted() -> None:
    """Not for accuracy, not for both (which ends the run), not below the least factor; patience begins anew with it."""
    schedule = build_schedule(ScheduleConfig(name="exhausted_loss", gamma=0.1, min_factor=0.01), 1, 99)
    rows: list[tuple[str, ...]] = [(), ("accuracy",), ("loss",), ("loss", "accuracy"), ("loss",), ("loss",)]
    anew = [schedule.end_epoch(1.0, exhausted) for exhausted in rows]
    assert [False, False, True, False, True, True] == anew
    assert pytest.approx(0.01) == schedule.factor(0)


def test_a_plateau_leaves_early_stopping_alone() -> None:
    """Its drop is no reason to be patient again."""
    schedule = build_schedule(ScheduleConfig(name="plateau", patience=1), 1, 9)
    assert [False] * 3 == [schedule.end_epoch(1.0, ("loss",)) for _ in range(3)]
    assert schedule.factor(0) < 1
