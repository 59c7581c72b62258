"""The configuration sections of the data plane. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from dataloading.picture_size import PIXEL_LIMIT

__all__ = [
    "MOST_FOLDS",
    "WHOLE_SPLITS",
    "AugmentConfig",
    "DataConfig",
    "LoaderConfig",
    "PackConfig",
    "SamplerConfig",
    "parse_fold",
]

MOST_FOLDS = 100
WHOLE_SPLITS = ("patient", "given", "given_test")
"""Values of `data.split` but the folds."""
_FOLD = re.compile(r"fold:(\d+)/(\d+)")


def parse_fold(split: str) -> tuple[int, int] | None:
    """(K, N) of `fold:K/N`, or None for another scheme."""
    match = _FOLD.fullmatch(split)
    return (int(match.group(1)), int(match.group(2))) if match else None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and which of them are train, val and test."""

    uri: str = ""
    """Packed dataset (made by `xdist-train pack`): a path or s3://BUCKET/PREFIX."""
    split: str = "patient"
    """`patient`; `given` (the set's own splits); `given_test` (its own test) or `fold:K/N` (fold K of N is test), where
    train and val are drawn by patient from the rest, in the proportion of `pack.fractions`."""

    def __post_init__(self) -> None:
        if self.split in WHOLE_SPLITS:
            return
        fold = parse_fold(self.split)
        if fold is None:
            raise ValueError(f"data.split must be patient, given, given_test or fold:K/N, not {self.split!r}")
        if not (fold[1] >= 3 and 0 <= fold[0] < fold[1]):
            raise ValueError(f"data.split {self.split!r}: fold:K/N needs N >= 3 and 0 <= K < N")


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How images become batches."""

    backend: Literal["auto", "dali", "opencv"] = "auto"
    """Executor of the augmentation: `auto` is dali on a GPU and opencv on a CPU."""
    image_size: int = 224
    """Side of the square that the model sees, in pixels."""
    fit: Literal["stretch", "crop"] = "stretch"
    """`stretch` shows the whole picture; `crop` keeps its aspect and shows the largest centred square."""
    normalise: Literal["auto", "image"] = "auto"
    """`auto` is by the mean and deviation that the first weights were trained with, else the data set's; `image` by
    each picture's own."""
    threads: int = 0
    """Decoding threads of one worker; 0 is the worker's CPUs."""
    prefetch: int = 3
    """Micro batches made ahead."""
    reduce_tolerance: float = 0.9
    """JPEGs are decoded at 1/2 or 1/4 where this many decoded pixels an output pixel are left; 9 switches it off."""
    cache: Literal["encoded", "pixels", "device"] = "encoded"
    """What of a picture is kept on a node: its file, or also its pixels, decoded once by whoever comes first and shared
    by all workers and runs there, at the scale at which the whole picture is decoded for image_size. `device` is
    `pixels`, with a copy of all in the memory of each worker's GPU, where they are warped too. A large PNG is averaged
    to that scale; read from its file it is sampled."""
    cache_dir: str = ""
    """Node-local folder for shards and indexes; empty is `~/.cache/xdist-train`."""
    cache_limit_gib: float = 0.0
    """Size that the cache may have, in GiB; older data sets go first. 0 is as much as the disk has."""

    def __post_init__(self) -> None:
        if not 16 <= self.image_size <= 2048:
            raise ValueError(f"loader.image_size must lie in 16..2048 px, not {self.image_size}")
        if self.threads < 0:
            raise ValueError(f"loader.threads must be 0 (automatic) or more, not {self.threads}")
        if not 1 <= self.prefetch <= 64:
            raise ValueError(f"loader.prefetch must lie in 1..64 batches, not {self.prefetch}")
        if self.cache_limit_gib < 0:
            raise ValueError(f"loader.cache_limit_gib must be 0 or more, not {self.cache_limit_gib}")
        if not self.reduce_tolerance > 0:
            raise ValueError(f"loader.reduce_tolerance must be above 0, not {self.reduce_tolerance}")

    @property
    def pixel_side(self) -> float:
        """Pixels that a decoded picture's short side keeps at least, where it has them; 0 keeps none."""
        return 0.0 if self.cache == "encoded" else self.image_size * self.reduce_tolerance


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of a training picture; every step can be switched off by its neutral value."""

    crop_scale: tuple[float, float] = (0.8, 1.0)
    """Least and most share of the picture's area that a crop keeps; [1, 1] is off."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Least and most change of the aspect ratio of a crop; [1, 1] is off."""
    zoom: float = 0.0
    """What is shown grows or shrinks on both sides by one factor, uniform in 1 +- this; black beyond the picture."""
    rotation_degrees: float = 15.0
    """Rotation is uniform in +- this angle."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    flip_vertical: float = 0.0
    """Probability of a top-bottom flip."""
    brightness: float = 0.2
    """Brightness factor is uniform in 1 +- this."""
    contrast: float = 0.2
    """Contrast factor is uniform in 1 +- this, about the set's mean gray level."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"augment.crop_scale must be 0 < low <= high <= 1, not {[low, high]}")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"augment.crop_ratio must be 0 < low <= high, not {[low, high]}")
        if not 0 <= self.rotation_degrees <= 180:
            raise ValueError(f"augment.rotation_degrees must lie in 0..180, not {self.rotation_degrees}")
        for name in ("flip", "flip_vertical"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} is a probability in 0..1, not {getattr(self, name)}")
        for name in ("zoom", "brightness", "contrast"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"augment.{name} must lie in 0..1 (below 1), not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How often each class is drawn."""

    alpha: float = 0.0
    """0 draws every image once an epoch, 1 draws every class equally often; between, count ** (1 - alpha)."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"sampler.alpha must lie in 0..1, not {self.alpha}")


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How a folder of images becomes a packed dataset."""

    layout: Literal["auto", "oct2017", "chest_xray", "covid_ct", "covid_xray"] = "auto"
    """Layout of a published set, which the folders must be; `auto` finds these, and takes other class folders too."""
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Shares of train, val and test in the patient split."""
    seed: int = 0
    """Seed of the patient split and of the folds."""
    patient: str = "auto"
    """Finds the patient in a file's name: auto, oct2017, nih, chest_xray, covid_ct, stem, or a regular expression."""
    channels: Literal["auto", "gray", "rgb"] = "auto"
    """`auto` packs gray where every picture is gray."""
    near_duplicates: bool = True
    """Look for confirmed near-duplicates, mirrored ones too, and keep them on one side of a split."""
    max_pixels: int = 100_000_000
    """A picture with more pixels is quarantined before it is decoded; at most 2**28."""
    shard_mib: int = 64
    """Size of a shard, in MiB."""
    workers: int = 0
    """Processes; 0 is all cores."""

    def __post_init__(self) -> None:
        if min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"pack.fractions must be above 0 and add up to 1, not {list(self.fractions)}")
        if not 1 <= self.max_pixels <= PIXEL_LIMIT:
            raise ValueError(f"pack.max_pixels must lie in 1..{PIXEL_LIMIT}, not {self.max_pixels}")
        if not 1 <= self.shard_mib <= 1024:
            raise ValueError(f"pack.shard_mib must lie in 1..1024 MiB, not {self.shard_mib}")
        if self.workers < 0 or self.seed < 0:
            raise ValueError(f"pack.{'workers' if self.workers < 0 else 'seed'} must be 0 or more")
