"""The configuration of an estimate: that of the run, and what it is to run on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from xdist_train.config import Config, at_least

__all__ = ["EstimateConfig", "HardwareConfig"]


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """What a run is to run on. Figures that are 0 are measured here, or taken from what is known of the device."""

    device: Literal["here", "t4", "v100", "l4", "a10g", "a100", "h100", "h200"] = "here"
    """Of a worker: `here` measures this machine for a few seconds; of the others, memory and speed are known."""
    images_per_s: float = 0.0
    """Images a second that one worker trains, where that was seen: images_per_s of a run's metrics by its workers."""
    input_images_per_s: float = 0.0
    """Images a second that one worker's loader delivers."""
    workers_per_node: int = 8
    """Workers that share a node's network and disk."""
    link_gbit: float = 100.0
    """Between two nodes, each way, in Gbit/s."""
    storage_gbit: float = 100.0
    """What the object storage delivers to all nodes together, in Gbit/s."""
    step_variation: float = 0.02
    """Standard deviation of a worker's time for a step, as a share of it: the slowest worker holds up all."""
    price_per_hour: float = 0.0
    """Of one worker, in any currency; 0 tells hours of workers instead."""
    images: int = 0
    """Images of the data set, as if it had so many; 0 takes what it has."""
    image_bytes: int = 0
    """Mean bytes of a stored image, where `data.uri` is not given; 0 is 60,000."""

    def __post_init__(self) -> None:
        at_least("hardware", self, images_per_s=0, input_images_per_s=0, workers_per_node=1, step_variation=0)
        at_least("hardware", self, price_per_hour=0, images=0, image_bytes=0)
        for name in ("link_gbit", "storage_gbit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"hardware.{name} must be above 0, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class EstimateConfig(Config):
    """A run, and what it is to run on."""

    hardware: HardwareConfig = field(default_factory=HardwareConfig)
