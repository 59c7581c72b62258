"""A recipe and hardware become an estimate: what is to be done, how fast each part goes, and what that adds up to.

Starts nothing and writes nothing. What stands on a figure that nobody measured is told with it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from cluster.config import load_config, parse_overrides
from cluster.errors import InputError
from dataloading.dataset import Dataset, open_dataset
from dataloading.loading.cache import count_classes
from xdist_train.config import ModelConfig, read_recipe
from xdist_train.estimation.config import EstimateConfig
from xdist_train.estimation.devices import DEVICES
from xdist_train.estimation.measuring import InputRates, input_rates, training_rate
from xdist_train.estimation.model import Epoch, Rates, Work, estimate_epoch
from xdist_train.estimation.network import NetworkCost, network_cost
from xdist_train.models.backbones import check_model

__all__ = ["HERE", "Estimate", "Meeting", "Memory", "run_estimate"]

_CLASSES = 4
"""Without a data set; one more or less changes nothing."""
_IMAGE_BYTES = 60_000
_SHARES = (0.7, 0.15, 0.15)


class Meeting(NamedTuple):
    """How workers exchange gradients: bytes a second (0: by hardware), seconds a message, share beside backward."""

    link: float
    latency_s: float
    overlap: float


HERE = Meeting(link=2e9, latency_s=100e-6, overlap=0.0)
"""Processes of one machine over its loopback: the same cores compute and send."""
_GPUS = Meeting(link=0, latency_s=15e-6, overlap=1.0)
_MACHINE = 0.6e9
"""Bytes of a process with torch in it, or of a GPU's context."""
_MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2}
_OTHERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one worker, on its device and (GPU or not) of a node's disk; `fits` is None where nobody knows."""

    weights: float
    activations: float
    whole: float
    disk: float
    fits: bool | None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take.

    `epoch` is in seconds; `fetched_bytes` come from the object storage in all, `saved_bytes` go to it with each
    checkpoint; `cost` is of an epoch, in worker hours or by hardware.price_per_hour; `others` are epochs on other
    numbers of workers; `assumed` says what was not measured.
    """

    config: EstimateConfig
    work: Work
    rates: Rates
    epoch: Epoch
    memory: Memory
    fetched_bytes: float
    saved_bytes: float
    cost: float
    run_seconds: float
    others: tuple[tuple[int, Epoch], ...]
    measured: tuple[str, ...]
    assumed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "workers": self.work.workers,
            "nodes": self.work.nodes,
            "train_images": self.work.train_images,
            "steps": self.epoch.steps,
            "epoch_seconds": self.epoch.later,
            "first_epoch_seconds": self.epoch.first,
            "run_seconds": self.run_seconds,
            "images_per_s": self.work.train_images / self.epoch.later,
            "bottleneck": self.epoch.bottleneck,
            "first_bottleneck": self.epoch.first_bottleneck,
            "parts": asdict(self.epoch),
            "rates": asdict(self.rates),
            "memory": asdict(self.memory),
            "fetched_bytes": self.fetched_bytes,
            "checkpoint_bytes": self.saved_bytes,
            "cost_per_epoch": self.cost,
            "cost_unit": "price" if self.config.hardware.price_per_hour else "worker hours",
            "others": [
                {"workers": workers, "epoch_seconds": epoch.later, "bottleneck": epoch.bottleneck}
                for workers, epoch in self.others
            ],
            "measured": list(self.measured),
            "assumed": list(self.assumed),
        }


def run_estimate(recipe: str, overrides: Sequence[str], say: Say = lambda text: None) -> Estimate:
    """What a run of a recipe will take on some hardware.

    Args:
        recipe: shipped name, or path.
        overrides: `key=value` of the run, and `hardware.key=value`.
        say: called with what is being measured.

    Raises:
        InputError: something the user gave cannot work.
    """
    config = load_config(EstimateConfig, [read_recipe(recipe), *parse_overrides(overrides)])
    if not config.data.uri and not config.hardware.images:
        raise InputError(
            "an estimate needs a data set: give data.uri=FOLDER, or say how many images there would be, e.g. "
            "hardware.images=84000 (and hardware.image_bytes, if they are not of about 60,000 bytes)."
        )
    dataset = open_dataset(config.data.uri) if config.data.uri else None
    _check(config)
    cost = network_cost(config, len(dataset.info.classes) if dataset else _CLASSES)
    micro = config.train.micro_batch_size or math.ceil(config.train.batch_size / config.scale.most)
    seen = _Seen(config, dataset, cost, say)
    counts = {name: sum(of) for name, of in count_classes(dataset, config.data.split).items()} if dataset else {}
    work = _work(config, dataset, counts, cost, micro, config.scale.most)
    rates = seen.rates(work)
    epoch = estimate_epoch(work, rates)
    unit = config.hardware.price_per_hour or 1.0
    return Estimate(
        config=config,
        work=work,
        rates=rates,
        epoch=epoch,
        memory=_memory(config, cost, work),
        fetched_bytes=work.stored_bytes * work.nodes,
        saved_bytes=4.0 * (cost.parameters + _MOMENTS[config.optim.name] * cost.trainable),
        cost=epoch.later / 3600 * work.workers * unit,
        run_seconds=epoch.first + (config.train.epochs - 1) * epoch.later,
        others=tuple(_others(config, dataset, counts, cost, seen)),
        measured=tuple(seen.measured(micro)),
        assumed=tuple(seen.assumed(micro)),
    )


def _check(config: EstimateConfig) -> None:
    """The network can be built and takes such images; a recipe's weights are not asked for."""
    import torch

    from xdist_train.models.backbones import build_model

    with torch.device("meta"):
        model = build_model(replace(config.model, weights=ModelConfig().weights), _CLASSES)
    check_model(model, config.model.backbone, config.loader.image_size, config.model.in_channels)


def _work(
    config: EstimateConfig,
    dataset: Dataset | None,
    counts: Mapping[str, int],
    cost: NetworkCost,
    micro: int,
    workers: int,
) -> Work:
    hardware = config.hardware
    there = sum(counts.values())
    whole = hardware.images or there
    if counts:
        shares = {name: count / there for name, count in counts.items()}
    else:
        shares = dict(zip(("train", "val", "test"), _SHARES, strict=True))
    image_bytes = dataset.info.num_bytes / dataset.info.num_images if dataset else hardware.image_bytes or _IMAGE_BYTES
    nodes = 1 if hardware.device == "here" else math.ceil(workers / hardware.workers_per_node)
    stays = dataset is not None and dataset.store.is_local and hardware.device == "here"
    traffic = 2 if config.train.gradient_traffic == "bf16" else 4
    return Work(
        train_images=round(whole * shares["train"]),
        val_images=round(whole * shares["val"]),
        step_size=config.train.step_size,
        micro_batch_size=micro,
        workers=workers,
        nodes=nodes,
        gradient_bytes=cost.trainable * traffic,
        stored_bytes=0.0 if stays else whole * image_bytes,
        decoded_images=whole if config.loader.cache == "pixels" else 0,
    )


class _Seen:
    """Rates, measured once, and what is to be said of them."""

    def __init__(self, config: EstimateConfig, dataset: Dataset | None, cost: NetworkCost, say: Say) -> None:
        self._config, self._cost = config, cost
        self._classes = len(dataset.info.classes) if dataset else _CLASSES
        self._device = DEVICES.get(config.hardware.device)
        self._measured = 0.0
        self._say = say
        say("measuring how fast pictures are decoded here")
        self._input: InputRates = input_rates(config, dataset)

    def rates(self, work: Work) -> Rates:
        """For a number of workers."""
        hardware, threads = self._config.hardware, self._config.scale.cpus_per_worker
        on_gpu, cores = self._device is not None, os.cpu_count() or 1
        crowd = 1.0 if on_gpu else min(1.0, cores / (work.workers * threads))
        load, train = self._load_rate() * crowd, self._train_rate(work.micro_batch_size) * crowd
        if not on_gpu:  # the same cores load and train
            train = 1 / (1 / train + 1 / load)
        meeting = _GPUS if on_gpu else HERE
        link = hardware.link_gbit * 1e9 / 8
        if work.nodes == 1:
            link = self._device.link if self._device else meeting.link
        return Rates(
            train=train,
            input=load,
            link=link,
            latency_s=meeting.latency_s,
            overlap=meeting.overlap,
            storage=hardware.storage_gbit * 1e9 / 8,
            node=hardware.link_gbit * 1e9 / 8,
            decode_node=self._input.decode
            * (min(work.workers, hardware.workers_per_node) * threads if on_gpu else cores),
            step_variation=hardware.step_variation,
        )

    def measured(self, micro: int) -> Iterator[str]:
        """What was seen here."""
        hardware = self._config.hardware
        if not (self._device or hardware.images_per_s):
            yield f"a worker trains {self._train_rate(micro):,.1f} images/s in micro batches of {micro}"
        if not (hardware.input_images_per_s or self._decodes_on_gpu()):
            where = ", as if the nodes had this machine's CPU" if self._device else ""
            yield f"a decoding thread loads {self._input.load:,.0f} images/s ({self._input.seen}){where}"

    def assumed(self, micro: int) -> Iterator[str]:
        """What was not."""
        hardware = self._config.hardware
        if not self._device:
            return
        if not hardware.images_per_s:
            yield (
                f"a worker trains {self._train_rate(micro):,.0f} images/s, from what {hardware.device} is stated to "
                "compute and move (ResNet-50 on an A100 or V100: within a third of what is published); "
                "hardware.images_per_s takes what was seen"
            )
        if self._decodes_on_gpu() and not hardware.input_images_per_s:
            yield (
                f"DALI decodes {self._load_rate():,.0f} images/s on {hardware.device}, by published figures for "
                "ImageNet and the number of pixels; hardware.input_images_per_s takes what was seen"
            )
        yield (
            f"{hardware.link_gbit:g} Gbit/s between nodes, {hardware.storage_gbit:g} Gbit/s from the storage, "
            f"{hardware.workers_per_node} workers a node"
        )

    def _train_rate(self, micro: int) -> float:
        if self._config.hardware.images_per_s:
            return self._config.hardware.images_per_s
        if self._device:
            return self._device.images_per_s(self._cost, micro)
        if not self._measured:  # of the size that is asked for; other numbers of workers take the same
            self._say("measuring how fast the network trains here")
            self._measured = training_rate(self._config, self._classes, micro)
        return self._measured

    def _load_rate(self) -> float:
        config = self._config
        if config.hardware.input_images_per_s:
            return config.hardware.input_images_per_s
        if self._device and self._decodes_on_gpu():
            return self._device.decoded_per_s(self._input.pixels)
        return self._input.load * (config.loader.threads or config.scale.cpus_per_worker)

    def _decodes_on_gpu(self) -> bool:
        loader = self._config.loader
        return bool(self._device and self._device.decode) and loader.backend != "opencv" and loader.cache == "encoded"


def _memory(config: EstimateConfig, cost: NetworkCost, work: Work) -> Memory:
    on_gpu = config.hardware.device != "here"
    copies = 1 + bool(config.train.ema_decay)
    buckets = work.workers > 1
    weights = 4.0 * (copies * cost.parameters + (1 + buckets + _MOMENTS[config.optim.name]) * cost.trainable)
    size = 2 if on_gpu and config.train.precision in ("auto", "bf16", "fp16") else 4
    activations = float(size * cost.saved_elements * work.micro_batch_size)
    whole = _MACHINE + weights + activations
    side = config.loader.pixel_side
    disk = work.stored_bytes + work.decoded_images * side * side * 1.5  # pictures are a third wider than high
    fits = whole < 0.95 * DEVICES[config.hardware.device].memory if on_gpu else None
    return Memory(weights=weights, activations=activations, whole=whole, disk=disk, fits=fits)


def _others(
    config: EstimateConfig, dataset: Dataset | None, counts: Mapping[str, int], cost: NetworkCost, seen: _Seen
) -> list[tuple[int, Epoch]]:
    """The same step on other numbers of workers, as far as a step divides."""
    found = []
    for workers in _OTHERS:
        micro = config.train.micro_batch_size or math.ceil(config.train.batch_size / workers)
        if math.ceil(config.train.step_size / micro) < workers or workers > 8 * config.scale.most:
            continue
        work = _work(config, dataset, counts, cost, micro, workers)
        found.append((workers, estimate_epoch(work, seen.rates(work))))
    return found
