"""What a run tells Prometheus: names, kinds and meanings of its metrics, and how they are set.

Ray's agent on each node exports them, with `ray_` before the name. A gauge that is not set for two of its export
intervals (20 s) is gone, so a run that has ended leaves none behind; a counter stays as long as the node's agent does.
Every value was computed for somebody else, or is read from torch's own account of GPU memory: nothing here waits for
a device. The only file that knows Ray's metrics; it knows no loop and no monitor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ray.util.metrics import Counter, Gauge

from cluster.world import World
from xdist_train.training.messages import Progress

__all__ = ["METRICS", "Metric", "RunGauges", "group_values", "memory_values", "progress_values", "run_label"]

_RUN, _RANK = ("run",), ("run", "rank")


@dataclass(frozen=True)
class Metric:
    """One metric; the unit is the end of its name."""

    name: str
    description: str
    tags: tuple[str, ...] = _RUN

    @property
    def is_counter(self) -> bool:
        """Whether it only grows, else it is a gauge."""
        return self.name.endswith("_total")

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}"


METRICS = {
    metric.name: metric
    for metric in (
        # Rank 0, at control points (about once a second)
        Metric("xdist_images_per_second", "Images that all ranks trained on in a second, since the last logged row."),
        Metric("xdist_step_seconds", "Mean duration of an optimiser step, since the last logged row."),
        Metric("xdist_data_wait_ratio", "Share of the time that rank 0 waited for data, since the last logged row."),
        Metric("xdist_loss", "Mean training loss since the last logged row."),
        Metric("xdist_epochs", "Epochs behind the present weights; a fraction of the one that is being trained."),
        Metric("xdist_epochs_planned", "Epochs that the run is to have (train.epochs)."),
        Metric("xdist_images_total", "Images that all ranks trained on, those trained again after a loss included."),
        Metric("xdist_steps_total", "Optimiser steps done, those done again after a loss included."),
        # Rank 0, with its signs of life (every 5 s), in every phase
        Metric("xdist_workers", "Workers of the present group."),
        Metric("xdist_group_restarts", "Groups of workers that this start of the run had before the present one."),
        # Every rank on CUDA, with its signs of life
        Metric("xdist_gpu_memory_allocated_bytes", "GPU memory in tensors of a rank now.", _RANK),
        Metric("xdist_gpu_memory_reserved_bytes", "GPU memory that a rank's allocator holds now.", _RANK),
        Metric("xdist_gpu_memory_peak_bytes", "GPU memory in tensors of a rank, the most so far.", _RANK),
    )
}


def run_label(run_uri: str, storage_uri: str) -> str:
    """Value of the tag `run`: the run's name, or a trial's path below the storage, which no other search has."""
    below = run_uri.removeprefix(storage_uri.rstrip("/") + "/")
    return below if below != run_uri else run_uri.rpartition("/")[2]


def progress_values(progress: Progress) -> dict[str, float]:
    """What is to be set, and for counters added, at a control point."""
    return {
        "xdist_images_per_second": progress.images_per_s,
        "xdist_step_seconds": progress.step_s,
        "xdist_data_wait_ratio": progress.data_wait_share,
        "xdist_loss": progress.loss,
        "xdist_epochs": progress.epoch + progress.step / progress.steps_per_epoch,
        "xdist_epochs_planned": progress.epochs,
        "xdist_images_total": progress.new_images,
        "xdist_steps_total": progress.new_steps,
    }


def group_values(group: int, world_size: int) -> dict[str, float]:
    """What is to be set of a group of workers by its number; nothing before the ranks have agreed on it (0)."""
    return {"xdist_workers": world_size, "xdist_group_restarts": group - 1} if group else {}


def memory_values(statistics: Mapping[str, Any]) -> dict[str, float]:
    """What is to be set of `torch.cuda.memory_stats`, which is empty before CUDA is in use."""
    keys = {"allocated": "allocated_bytes.all.current", "reserved": "reserved_bytes.all.current"}
    keys["peak"] = "allocated_bytes.all.peak"
    return {f"xdist_gpu_memory_{kind}_bytes": statistics[key] for kind, key in keys.items() if key in statistics}


class RunGauges:
    """The metrics of one rank's process."""

    def __init__(self, run: str, world: World, device: torch.device) -> None:
        self._world, self._device = world, device
        tags = {"run": run, "rank": str(world.rank)}
        self._metrics: dict[str, Any] = {}
        for name, metric in METRICS.items():
            ray_metric = (Counter if metric.is_counter else Gauge)(name, metric.description, metric.tags)
            self._metrics[name] = ray_metric.set_default_tags({tag: tags[tag] for tag in metric.tags})

    def progress(self, progress: Progress) -> None:
        """Rank 0's, at a control point."""
        self._tell(progress_values(progress))

    def beat(self, group: int) -> None:
        """With each sign of life, from its thread."""
        if self._world.is_first:
            self._tell(group_values(group, self._world.size))
        if self._device.type == "cuda":
            self._tell(memory_values(torch.cuda.memory_stats(self._device)))

    def _tell(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if not METRICS[name].is_counter:
                self._metrics[name].set(value)
            elif value > 0:  # Ray refuses to add nothing
                self._metrics[name].inc(value)
