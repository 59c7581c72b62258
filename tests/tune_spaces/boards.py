"""Leaderboards of searches that never ran, over real spaces."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tune_spaces.domains import Parameter
from tune_spaces.leaderboard import Leaderboard, Repeat, TrialRow, rank
from tune_spaces.space import Space
from tune_spaces.space_file import read_space
from tune_spaces.study import Direction, Study, open_study
from xdist_train.config import read_recipe, resolve_config

EPOCHS = 12


@functools.cache
def oct_space() -> Space:
    """The space `oct` as it ships."""
    return read_space("oct", [read_recipe("oct")])


def oct_board(num_trials: int, *, scheduler: str = "asha", seed: int = 0, num_repeats: int = 0) -> Leaderboard:
    """A search over `oct` with an invented response: freezing decides, then the learning rate and the network.

    Trials with the highest rates diverge; the scheduler stops others; the best and the second have repetitions.
    """
    space = oct_space()
    study = open_study(space, _own(), sampler="random", scheduler=scheduler, seed=seed, reduction_factor=2)
    rows = list(rank([_trial(study, random.Random(f"{seed} {n}")) for n in range(num_trials)], "maximize"))
    for place, row in enumerate(rows[:2]):
        if num_repeats and row.status == "finished":
            rows[place] = _repeated(row, num_repeats)
    board = make_board(rows, name="oct-search", recipe="oct", space="oct")
    figure = board.rows[0].figure if board.rows else None
    test = None if figure is None else {"value": figure - 0.021, "low": figure - 0.043, "high": figure - 0.002}
    return replace(
        board,
        settings={
            "sampler": "random",
            "scheduler": scheduler,
            "trials": num_trials,
            "seed": seed,
            "repeats": num_repeats,
        },
        own="0000" if rows else None,
        test=test and {"balanced_accuracy": test, "n_patients": 120},
        workers=8,
        use_gpu=True,
        seconds=board.worker_seconds / 16,
    )


@functools.cache
def _own() -> dict[str, Parameter]:
    return oct_space().locate(resolve_config("oct", [])).params


def make_board(rows: Sequence[TrialRow], *, direction: Direction = "maximize", **fields: Any) -> Leaderboard:
    """A finished search with these trials; the best is the first that finished."""
    ranked = rank(rows, direction, top=len(rows), seeds=2)
    best = next((row.name for row in ranked if row.status == "finished"), None)
    fields = {"name": "search", "recipe": "demo", "space": "my.yaml", "metric": "balanced_accuracy"} | fields
    fields = {"settings": {"sampler": "random"}, "status": "finished", "best": best} | fields
    return Leaderboard(direction=direction, rows=ranked, **fields)


def make_row(number: int, figure: float | None = None, **fields: Any) -> TrialRow:
    """A trial that finished with this figure after two epochs, or failed without one."""
    status = "failed" if figure is None else "finished"
    curve = {} if figure is None else {1: figure / 2, 2: figure}
    fields = {"status": status, "values": {}, "curve": curve, "epochs": len(curve)} | fields
    fields = {"train_seconds": 60.0, "worker_seconds": 150.0, "selected_epoch": len(curve) or None} | fields
    return TrialRow(number=number, name=f"{number:04d}", figure=figure, **fields)


def _trial(study: Study, chance: random.Random) -> TrialRow:
    asked = study.ask()
    assert asked is not None
    number, values = asked.number, asked.values
    goal, pace = _goal(values) + chance.gauss(0, 0.01), chance.uniform(0.35, 0.6)
    a_worker_s = {"resnet50": 95.0, "efficientnet_b0": 60.0, "convnext_tiny": 130.0}[values["model.backbone"]]
    if values["optim.lr"] > 0.012:
        reason = "non_finite_loss: the loss is nan at step 412 on rank 3. Lower optim.lr."
        study.fail(number, reason)
        return make_row(number, values=values, reason=reason, train_seconds=40.0, worker_seconds=480.0)
    curve: dict[int, float] = {}
    stopped = ""
    for epoch in range(1, EPOCHS + 1):
        curve[epoch] = 0.25 + (goal - 0.25) * (1 - math.exp(-pace * epoch)) + chance.gauss(0, 0.006)
        study.report(number, epoch, curve[epoch])
        if epoch < EPOCHS and study.should_stop(number):
            stopped = f"not among the best half after {epoch} epochs"
            study.prune(number, stopped)
            break
    selected = max(curve, key=lambda epoch: curve[epoch])
    seconds = len(curve) * a_worker_s * chance.uniform(0.95, 1.1)
    if not stopped:
        study.complete(number, curve[selected])
    return make_row(
        number,
        curve[selected],
        status="pruned" if stopped else "finished",
        reason=stopped,
        values=values,
        curve=curve,
        epochs=len(curve),
        selected_epoch=selected,
        train_seconds=seconds,
        worker_seconds=8 * (seconds + 35),
    )


def _goal(values: Mapping[str, Any]) -> float:
    frozen = values["model.freeze"] == "backbone"
    best = (
        -2.3 if frozen else {"resnet50": -3.4, "efficientnet_b0": -3.0, "convnext_tiny": -4.0}[values["model.backbone"]]
    )
    miss = math.log10(values["optim.lr"]) - best
    base = {"resnet50": 0.93, "efficientnet_b0": 0.915, "convnext_tiny": 0.95}[values["model.backbone"]]
    return base - 0.09 * frozen - 0.12 * miss**2 - 0.01 * abs(values["sampler.alpha"] - 0.5)


def _repeated(row: TrialRow, num_repeats: int) -> TrialRow:
    chance = random.Random(row.number)
    assert row.figure is not None
    repeats = tuple(
        Repeat(
            name=f"{row.name}-s{seed}",
            number=row.number,
            seed=seed,
            status="finished",
            figure=row.figure - 0.004 + chance.gauss(0, 0.006),
            worker_seconds=row.worker_seconds,
        )
        for seed in range(1, num_repeats + 1)
    )
    return replace(row, repeats=repeats)
