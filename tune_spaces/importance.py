"""How much each key of a search decides about being among its best trials. Draws nothing, reads nothing.

The measure is that of PED-ANOVA (Watanabe et al., IJCAI 2023): the share of the variance of "is among the best
trials" that a key explains alone, 0..1. Keys are measured one by one, so shares need not add up to 1, and what two
keys do only together is in neither. For ranges it is Optuna's, which smooths values by a kernel. For choices it is
counted: Optuna smooths these so that a switch that decides alone comes out at a quarter of its share.

A share alone misleads: with 12 trials and ten keys one of them always looks important. So each has a level beside
it that chance reaches, from the same trials with the figures shuffled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import InMemoryStorage
from optuna.trial import create_trial

from tune_spaces.axes import place, union
from tune_spaces.domains import Choice, Domain, label
from tune_spaces.leaderboard import Leaderboard, TrialRow
from tune_spaces.space import Space
from tune_spaces.study import Direction

__all__ = ["LEAST_TRIALS", "Importance", "importances"]

Flags = NDArray[np.bool_]
Integers = NDArray[np.int64]

LEAST_TRIALS = 10
"""Trials that ended and have a key, without which nothing is said about it."""
_BEST_SHARE = 0.25
# PED-ANOVA wants five at least; equal figures may leave fewer.
_WANTED_BEST = 5
_LEAST_BEST = 3
_NUM_SHUFFLES = 100
_CHANCE_LEVEL = 0.95
# Of a range, to which its values are rounded.
_MOST_CELLS = 50
_KEY = "key"
_COUNTED = ("finished", "pruned")


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What one key decides; `reason` says why there is no number."""

    value: float | None = None
    """Share of the variance of being among the best trials that the key explains alone, 0..1."""
    chance: float | None = None
    """What a key without any effect stays under 19 times in 20, given these trials."""
    num_trials: int
    """That were counted: those that ended and have the key."""
    tied: tuple[str, ...] = ()
    """Keys that changed whenever this one did, and only then: nothing tells their effects apart."""
    reason: str = ""

    @property
    def is_clear(self) -> bool:
        """Whether it is more than chance."""
        return self.value is not None and self.chance is not None and self.value > self.chance


def importances(board: Leaderboard, space: Space) -> dict[str, Importance]:
    """What each key of the space decides: most decisive first, then what may be chance, then those without a number.

    Trials are ranked so that no figure is compared with one of fewer epochs: finished ones by their figure, after them
    those that the scheduler stopped, the farthest first and among equal epochs by the figure that they had there. The
    best are the best quarter, at least five, fewer or more where figures are equal. Failed trials, and those that the
    end of the search cut short, do not count. A key that exists only in some trials is judged among these.
    """
    rows = [row for row in board.rows if row.status in _COUNTED]
    tied = _tied(space, rows)
    found = {key: _importance(key, union(spec), rows, board.direction, tied[key]) for key, spec in space.specs.items()}
    return dict(sorted(found.items(), key=lambda item: _order(item[1])))


def _order(importance: Importance) -> tuple[bool, float]:
    return not importance.is_clear, 1.0 if importance.value is None else -importance.value


def _tied(space: Space, rows: Sequence[TrialRow]) -> dict[str, tuple[str, ...]]:
    """By key, the other choices that split the trials alike."""
    splits: dict[str, list[int]] = {}
    for key, spec in space.specs.items():
        split = _split([_text(row, key) for row in rows])
        if isinstance(union(spec), Choice) and any(split):
            splits[key] = split
    return {
        key: tuple(other for other in splits if other != key and splits[other] == splits.get(key))
        for key in space.specs
    }


def _text(row: TrialRow, key: str) -> str | None:
    return label(row.values[key]) if key in row.values else None


def _split(texts: Sequence[str | None]) -> list[int]:
    """Which items are equal, whatever they are: each as the place of the first that equals it."""
    return [texts.index(text) for text in texts]


def _importance(
    key: str, domain: Domain, rows: Sequence[TrialRow], direction: Direction, tied: tuple[str, ...]
) -> Importance:
    rows = [row for row in rows if key in row.values and place(domain, row.values[key]) is not None]
    cells = np.array([_cell(domain, row.values[key]) for row in rows], dtype=np.int64)
    best = _best(rows, direction)
    reason = _refusal(len(rows), cells, best)
    if reason:
        return Importance(num_trials=len(rows), tied=tied, reason=reason)
    shares = _shares_of_choice if isinstance(domain, Choice) else _shares_of_range
    value, *shuffled = shares(cells, _num_cells(domain), [best, *_shuffles(best)])
    chance = float(np.quantile(shuffled, _CHANCE_LEVEL))
    return Importance(value=value, chance=chance, num_trials=len(rows), tied=tied)


def _num_cells(domain: Domain) -> int:
    return len(domain.points(_MOST_CELLS))


def _cell(domain: Domain, value: Any) -> int:
    at = place(domain, value)
    assert at is not None
    return round(at * (_num_cells(domain) - 1))


def _refusal(num_trials: int, cells: Integers, best: Flags) -> str:
    """Why these trials say nothing about a key; empty where they do."""
    if num_trials == 0:
        return "no trial with it came to an end"
    if num_trials < LEAST_TRIALS:
        return f"{num_trials} of the trials with it came to an end; {LEAST_TRIALS} are the least that say anything"
    if len(set(cells.tolist())) == 1:
        return f"it had one value in all {num_trials} trials"
    return "" if best.any() else "nearly all trials with it have the same figure"


def _best(rows: Sequence[TrialRow], direction: Direction) -> Flags:
    """Which trials are the best; none where equal figures leave no such group."""
    standings = [_standing(row, direction) for row in rows]
    wanted = max(_WANTED_BEST, round(_BEST_SHARE * len(rows)))
    groups = [np.array([standing >= least for standing in standings], dtype=bool) for least in set(standings)]
    fitting = [group for group in groups if _LEAST_BEST <= group.sum() < len(rows)]
    return min(fitting, key=lambda group: abs(int(group.sum()) - wanted), default=np.zeros(len(rows), dtype=bool))


def _standing(row: TrialRow, direction: Direction) -> tuple[float, float]:
    """How far a trial came, and its figure there: greater is better."""
    farthest = max(row.curve, default=0)
    epochs, figure = (math.inf, row.figure) if row.status == "finished" else (farthest, row.curve.get(farthest))
    if figure is None or not math.isfinite(figure):
        return epochs, -math.inf
    return epochs, figure if direction == "maximize" else -figure


def _shuffles(best: Flags) -> list[Flags]:
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([len(best), int(best.sum())])))
    return [generator.permutation(best) for _ in range(_NUM_SHUFFLES)]


def _shares_of_choice(cells: Integers, num_cells: int, bests: Sequence[Flags]) -> list[float]:
    """The correlation ratio: variance of the share of best trials from choice to choice, by the variance of all."""
    counts = np.bincount(cells, minlength=num_cells)
    sums = np.stack([np.bincount(cells, best, minlength=num_cells) for best in bests])
    rates = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    overall = np.stack(bests).mean(axis=1)
    between = ((rates - overall[:, None]) ** 2 * counts).sum(axis=1) / len(cells)
    return [float(share) for share in between / (overall * (1 - overall))]


def _shares_of_range(cells: Integers, num_cells: int, bests: Sequence[Flags]) -> list[float]:
    """PED-ANOVA gives the same variance, of densities that a kernel smooths."""
    distribution = IntDistribution(0, num_cells - 1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=InMemoryStorage())
    study.add_trials(
        [create_trial(params={_KEY: cell}, distributions={_KEY: distribution}, value=0.0) for cell in cells.tolist()]
    )
    with warnings.catch_warnings():
        # That it takes low values of a target for good ones, which these are; that `normalize` is new.
        warnings.simplefilter("ignore")
        return [_share_of_range(study, best) for best in bests]


def _share_of_range(study: optuna.Study, best: Flags) -> float:
    rate = float(best.mean())
    # Half a trial less than the best, so that rounding does not take one more.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=rate - 0.5 / len(best))
    found = get_param_importances(
        study, evaluator=evaluator, target=lambda trial: -float(best[trial.number]), normalize=False
    )
    return min(found[_KEY] / (rate * (1 - rate)), 1.0)
