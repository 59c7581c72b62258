"""The configuration of a search and of a repetition: that of a run, and what is searched or repeated, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dataloading.config import MOST_FOLDS, WHOLE_SPLITS
from xdist_train.config import Config, at_least

__all__ = ["RepeatConfig", "SearchConfig", "TuneConfig"]


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How a search goes, and when it ends: at the first of its limits."""

    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Who picks configurations: Optuna's TPE, chance, or every combination."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """What stops a trial early."""
    trials: int = 20
    """Configurations tried; 0 has no limit."""
    hours: float = 0.0
    """Hours of search, over all its starts; trials at work then end behind their epoch. 0 has no limit."""
    gpu_hours: float = 0.0
    """The same, of all workers' GPUs together."""
    seed: int = 0
    """Seed of the sampler."""
    num_points: int = 3
    """`grid`: points of a range."""
    grace_epochs: int = 3
    """`asha` and `median`: epochs that every trial may run. After one, slow starters that end well are stopped."""
    reduction_factor: int = 3
    """`asha`: one of so many trials goes on, each time that the epochs have grown by this factor."""
    concurrency: int = 0
    """Trials at a time, and never more than the cluster has room for; 0 is as many as that."""
    repeat_top: int = 0
    """Trained again with other seeds at the end: so many of the best."""
    repeat_seeds: int = 3
    """Seeds of each of these in all, the trial's own with them."""

    def __post_init__(self) -> None:
        at_least("search", self, trials=0, hours=0, gpu_hours=0, seed=0, num_points=1, grace_epochs=1)
        at_least("search", self, reduction_factor=2, concurrency=0, repeat_top=0, repeat_seeds=2)
        if not (self.trials or self.hours or self.gpu_hours or self.sampler == "grid"):
            raise ValueError("search.trials=0 has no end: give search.hours or search.gpu_hours")


@dataclass(frozen=True, kw_only=True)
class TuneConfig(Config):
    """A run as every trial is, and the search over it."""

    space: str = ""
    """A shipped space, or the path of a YAML file."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """How it is searched."""


@dataclass(frozen=True, kw_only=True)
class RepeatConfig(Config):
    """A run as every part is, and how often it is trained, on which images."""

    folds: int = 5
    """Each part of the patients is test once, the others train and val; 0 draws no folds: `splits` says what is
    trained on."""
    seeds: Any = None
    """Values of `train.seed`, e.g. [0,1,2]; by default that of the recipe alone."""
    splits: tuple[str, ...] = ()
    """`patient`, `given` or `given_test`, beside the folds, where there are some. Empty with folds=0: data.split where
    it is set, else `patient`, and the set's own where it has one."""
    concurrency: int = 0
    """Parts at a time, and never more than the cluster has room for; 0 is as many as that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds in (1, 2) or not 0 <= self.folds <= MOST_FOLDS:
            raise ValueError(
                f"folds must be 3..{MOST_FOLDS}, or 0 for none, not {self.folds}: one is test, the others are for "
                "train and val"
            )
        seeds = [0] if self.seeds is None else self.seeds
        is_list = isinstance(seeds, list | tuple) and len(seeds) > 0
        if not is_list or not all(type(seed) is int and seed >= 0 for seed in seeds) or len({*seeds}) < len(seeds):
            raise ValueError(f"seeds must be a list of different numbers, 0 or more, e.g. [0,1,2], not {self.seeds!r}")
        unknown = [split for split in self.splits if split not in WHOLE_SPLITS]
        if unknown or len(set(self.splits)) != len(self.splits):
            raise ValueError(f"splits must be different ones of {', '.join(WHOLE_SPLITS)}, not {list(self.splits)}")
        if self.concurrency < 0:
            raise ValueError(f"concurrency must be 0 or more, not {self.concurrency}")
