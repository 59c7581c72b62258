"""The optimiser and the learning rate's course. The loop sets the rate before each step; nothing here counts.

A schedule is a pure function of the step's number, but for `plateau`, whose few values are in its state.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from cluster.errors import InputError
from xdist_train.config import OptimConfig, ScheduleConfig
from xdist_train.models.stages import find_stages, parameters_of

__all__ = ["Schedule", "build_optimizer", "build_schedule", "set_learning_rate"]

_FACTOR = "stage_factor"
"""In a parameter group: its part of the learning rate. Not there where all have the same, as in earlier checkpoints."""


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of a model's trainable parameters.

    Adam and AdamW are in the fused form: weights, gradients and moments go through memory once a step, not once an
    operation, which on a CPU takes a sixth of the time. SGD is not, since its fused form wants a momentum of all
    parameters of a group or of none, and keeps unwritten memory as momentum where the first step overflows; it goes
    tensor by tensor on a CPU, by all at once on a GPU.
    """
    groups = _parameter_groups(model, config)
    if config.name == "sgd":
        on_cpu = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
        momentum, nesterov = config.momentum, config.nesterov
        return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=nesterov, foreach=not on_cpu)
    rule = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return rule(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate times its stage's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(_FACTOR, 1.0)


def _parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters with and without weight decay, in the model's order; stage by stage where each has its rate.

    Normalisation layers' parameters and biases are those with at most one axis.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trainable, "a model without trainable parameters"
    all_decay = config.decay_norm_and_bias or not config.weight_decay
    factors = _stage_factors(model, config.layer_decay)
    grouped: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in trainable:
        key = (factors.get(parameter, 1.0), not (all_decay or parameter.ndim > 1))
        grouped.setdefault(key, []).append(parameter)
    return [
        {"params": grouped[key], "weight_decay": 0.0 if key[1] else config.weight_decay}
        | ({_FACTOR: key[0]} if config.layer_decay < 1 else {})
        for key in sorted(grouped)
    ]


def _stage_factors(model: nn.Module, layer_decay: float) -> dict[nn.Parameter, float]:
    """The factor of the rate of each parameter before the head; none where all stages have the same."""
    stages = find_stages(model) if layer_decay < 1 else []
    return {
        parameter: layer_decay ** (len(stages) - number)
        for number, stage in enumerate(stages)
        for parameter in parameters_of(model, stage)
    }


@dataclass
class _PlateauState:
    """What `plateau` remembers between epochs: the least loss on val, epochs since, and the factor."""

    best: float | None = None
    bad_epochs: int = 0
    factor: float = 1.0


class Schedule:
    """The learning rate's factor at each step of a run.

    Args:
        config: the schedule section.
        steps_per_epoch: optimiser steps of one epoch.
        epochs: length of the run; only `cosine` depends on it.
    """

    def __init__(self, config: ScheduleConfig, steps_per_epoch: int, epochs: int) -> None:
        self._config = config
        self._steps_per_epoch = steps_per_epoch
        self._steps = steps_per_epoch * epochs
        self._warmup_steps = round(config.warmup_epochs * steps_per_epoch)
        rules = {
            "constant": self._constant,
            "step": self._step,
            "cosine": self._cosine,
            "plateau": self._plateau_factor,
            "exhausted_loss": self._plateau_factor,
        }
        self._rule = rules[config.name]
        self._plateau = _PlateauState()

    def factor(self, step_global: int) -> float:
        """Factor of the learning rate at a step, counted from 0 at the run's start.

        The warm-up rises linearly and reaches the rule's own factor at its last step.
        """
        warmup = min(1.0, (step_global + 1) / self._warmup_steps) if self._warmup_steps else 1.0
        return warmup * self._rule(step_global)

    def end_epoch(self, val_loss: float, exhausted: Collection[str] = ()) -> bool:
        """Tell the loss on val at an epoch's end, and the figures whose patience is used up.

        `plateau` listens to the loss (NaN counts as no improvement), `exhausted_loss` to early stopping: it drops
        where the loss alone improves no more. Returns whether early stopping is to begin anew for that.
        """
        by_patience = self._config.name == "exhausted_loss"
        drops = tuple(exhausted) == ("loss",) if by_patience else self._is_flat(val_loss)
        if drops:
            state = self._plateau
            state.factor = max(state.factor * self._config.gamma, self._config.min_factor)
        return drops and by_patience

    def _is_flat(self, val_loss: float) -> bool:
        """Whether the loss has not improved for `patience` epochs; then they are counted anew."""
        state = self._plateau
        if math.isfinite(val_loss) and (state.best is None or val_loss < state.best):
            state.best, state.bad_epochs = val_loss, 0
        else:
            state.bad_epochs += 1
        if state.bad_epochs < max(1, self._config.patience):
            return False
        state.bad_epochs = 0
        return True

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self._plateau)

    def load(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self._plateau = _PlateauState(**state)

    def _constant(self, step: int) -> float:
        return 1.0

    def _step(self, step: int) -> float:
        drops = step // self._steps_per_epoch // self._config.step_epochs
        return self._config.gamma**drops

    def _cosine(self, step: int) -> float:
        """Half a cosine over the steps after the warm-up (Loshchilov and Hutter 2017, eq. 5, one cycle)."""
        share = (step - self._warmup_steps) / (self._steps - self._warmup_steps)
        rise = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, share))))
        return self._config.min_factor + (1 - self._config.min_factor) * rise

    def _plateau_factor(self, step: int) -> float:
        return self._plateau.factor


def build_schedule(config: ScheduleConfig, steps_per_epoch: int, epochs: int) -> Schedule:
    """The schedule of a run.

    Raises:
        InputError: the warm-up leaves nothing of the run.
    """
    if config.warmup_epochs >= epochs:
        raise InputError(
            f"schedule.warmup_epochs={config.warmup_epochs:g} takes the whole run (train.epochs={epochs}). "
            "Make the warm-up shorter or the run longer."
        )
    return Schedule(config, steps_per_epoch, epochs)
