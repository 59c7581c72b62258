"""How long an epoch takes, from what is to be done and how fast each part goes. Pure arithmetic.

A step ends when its slowest worker does. A worker's loader works beside its model, so the slower of the two counts;
gradients travel while the backward pass still runs, so what is left of their way behind it counts. In the first epoch
every node fetches the data set before it begins, and decodes it where pictures are kept decoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

__all__ = ["Epoch", "Rates", "Work", "estimate_epoch"]

_BUCKET_BYTES = 25 * 2**20
"""DDP's: the last one begins its way when the backward pass has ended."""
_BACKWARD_SHARE = 2 / 3
_EVALUATION_SPEED = 3.0
"""Images a second forward alone, of those in training."""
_HELD_UP = 0.1
"""Share of an epoch above which a part is named instead of the model."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run has to do. Batches and steps are counted in images."""

    train_images: int
    val_images: int
    step_size: int
    micro_batch_size: int
    workers: int
    nodes: int
    gradient_bytes: float
    """That every worker sends around in a step."""
    stored_bytes: float
    """Of the data set, fetched by each node; 0 where it lies there already."""
    decoded_images: int
    """That each node decodes once, before the first epoch."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast a worker and what it shares are; images and bytes a second, times in seconds."""

    train: float
    input: float
    link: float
    """Between workers: of a node, each way; within one machine, of all its workers together."""
    latency_s: float
    """Of one message between workers."""
    overlap: float
    """Share of the backward pass beside which gradients travel: 1 on GPUs, 0 where the same cores do both."""
    storage: float
    """Of the object storage, to all nodes together."""
    node: float
    """From outside into one node."""
    decode_node: float
    """Images a second that a whole node decodes."""
    step_variation: float


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Seconds of an epoch after the first by part, what the first has beside them, and what holds it up."""

    steps: int
    model: float
    input: float
    """Beyond the model's time."""
    gradients: float
    idle: float
    """Of workers without a micro batch, since a step does not divide."""
    slowest: float
    """Waiting for the slowest worker, by chance."""
    evaluation: float
    fetch: float
    """First epoch alone."""
    decode: float
    """First epoch alone."""

    @property
    def later(self) -> float:
        """Seconds of every epoch but the first."""
        return self.model + self.input + self.gradients + self.idle + self.slowest + self.evaluation

    @property
    def first(self) -> float:
        """Seconds of the first epoch."""
        return self.later + self.fetch + self.decode

    @property
    def bottleneck(self) -> str:
        """Of the epochs after the first: the model, which also evaluates, where nothing else takes a tenth of them."""
        return _bottleneck(self.later, self._beside())

    @property
    def first_bottleneck(self) -> str:
        """Of the first epoch."""
        return _bottleneck(self.first, {**self._beside(), "storage": self.fetch, "decoding": self.decode})

    def _beside(self) -> dict[str, float]:
        parts = {"loader": self.input, "network": self.gradients, "uneven steps": self.idle}
        return {**parts, "slowest worker": self.slowest}


def _bottleneck(whole: float, beside: dict[str, float]) -> str:
    name = max(beside, key=lambda part: beside[part])
    return name if beside[name] > _HELD_UP * whole else "model"


def estimate_epoch(work: Work, rates: Rates) -> Epoch:
    """The parts of an epoch."""
    whole_steps, rest = divmod(work.train_images, work.step_size)
    sizes = [(work.step_size, whole_steps), *([(rest, 1)] if rest else [])]
    busiest = sum(count * _images_of_busiest(size, work) for size, count in sizes)
    even = work.train_images / work.workers
    steps = whole_steps + bool(rest)
    model = even / rates.train
    loaded = busiest / min(rates.train, rates.input)
    computed = busiest / rates.train
    slowest = computed * rates.step_variation * _expected_most(work.workers)
    node_rate = min(rates.node, rates.storage / work.nodes)
    evaluation = work.val_images / work.workers / min(rates.train * _EVALUATION_SPEED, rates.input)
    return Epoch(
        steps=steps,
        model=model,
        input=loaded - computed,
        gradients=steps * _exposed(work, rates),
        idle=computed - model,
        slowest=slowest,
        evaluation=evaluation,
        fetch=work.stored_bytes / node_rate,
        decode=work.decoded_images / rates.decode_node,
    )


def _images_of_busiest(size: int, work: Work) -> int:
    """Images of the worker that has most of a step; micro batches are dealt in turn, and the last may be smaller."""
    micro = math.ceil(size / work.micro_batch_size)
    return min(size, math.ceil(micro / work.workers) * work.micro_batch_size)


def _exposed(work: Work, rates: Rates) -> float:
    """Seconds of a step in which gradients are on their way and nothing is computed."""
    if work.workers == 1:
        return 0.0
    buckets = max(1, math.ceil(work.gradient_bytes / _BUCKET_BYTES))
    sent = 2 * (work.workers - 1) / work.workers * work.gradient_bytes  # of a ring, in and out of every node
    on_the_way = sent / rates.link + buckets * 2 * math.log2(work.workers) * rates.latency_s
    beside = rates.overlap * _BACKWARD_SHARE * work.micro_batch_size / rates.train
    return max(on_the_way / buckets, on_the_way - beside)


def _expected_most(workers: int) -> float:
    """Expected largest of so many standard normal draws (Blom, Statistical Estimates, 1958)."""
    return NormalDist().inv_cdf((workers - 0.375) / (workers + 0.25)) if workers > 1 else 0.0
