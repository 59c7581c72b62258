"""Sample order as arithmetic: which image is drawn at a position of an epoch, and which worker runs it.

An epoch has as many draws as the split has images. Nothing here holds a list of them: the order of
any stretch is computed from (seed, epoch, positions), so resuming is computing, a batch costs the same
at any size, and the order does not know how many workers there are.

A keyed Feistel network permutes the positions of the epoch; the slot that a position maps to names a
class (each class owns a run of slots, its quota) and a slot k of that class, whose item is `k % count`
of the class's own permutation for pass `k // count`. Hence each item is drawn floor or ceil of
quota / count times an epoch.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cluster.world import World

__all__ = [
    "Plan",
    "Request",
    "StepPlan",
    "evaluation_requests",
    "in_groups",
    "quotas",
    "samples_digest",
    "training_requests",
]

_T = TypeVar("_T")
Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_DRAWN_AT_ONCE = 512  # and up to one micro batch more
_ROUNDS = 6
_ORDER, _ITEMS = 0, 1  # purposes of the keys drawn from one (seed, epoch)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def quotas(class_counts: Sequence[int], alpha: float) -> Indices:
    """Draws of each class in an epoch of sum(class_counts) draws: int64 [classes].

    In proportion to `count ** (1 - alpha)`, whole numbers by largest remainder (ties to the lower class).
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    num_draws = int(counts.sum())
    weights = np.where(counts > 0, np.maximum(counts, 1) ** (1 - alpha), 0.0)
    exact = weights / weights.sum() * num_draws
    whole: Indices = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.argsort(-(exact - whole), kind="stable")[: num_draws - int(whole.sum())]
    whole[rest] += 1
    return whole


class Plan:
    """The sample order of one split.

    Args:
        class_counts: images of each class; rows of the split are ordered by class.
        alpha: 0 draws each image once an epoch, 1 draws every class equally often.
        seed: of the run.
    """

    def __init__(self, class_counts: Sequence[int], alpha: float, seed: int) -> None:
        assert sum(class_counts) > 0, "a plan needs images"
        self.counts: Indices = np.asarray(class_counts, dtype=np.int64)
        self.quotas = quotas(class_counts, alpha)
        self.seed = seed
        self.num_draws = int(self.counts.sum())
        self._first_row = np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)
        self._slot_ends = np.cumsum(self.quotas)
        self._first_slot = self._slot_ends - self.quotas

    def ids(self, epoch: int, start: int, stop: int) -> Indices:
        """Rows of the split (ordered by class) drawn at positions start..stop of an epoch: int64 [stop - start]."""
        return self.draw(epoch, start, stop)[0]

    def draw(self, epoch: int, start: int, stop: int) -> tuple[Indices, Indices]:
        """Rows as `ids` gives them, and the class of each: two int64 [stop - start]."""
        return self.draw_at(epoch, np.arange(start, stop))

    def draw_at(self, epoch: int, positions: Indices) -> tuple[Indices, Indices]:
        """Rows and classes at any positions of an epoch, int64 [n]: two int64 [n]."""
        slots = self._slots(epoch, positions)
        classes = self._classes(slots)
        return self._first_row[classes] + self._items(epoch, classes, slots), classes

    def classes(self, epoch: int, start: int, stop: int) -> Indices:
        """Class of each draw at positions start..stop: int64 [stop - start]."""
        return self._classes(self._slots(epoch, np.arange(start, stop)))

    def _slots(self, epoch: int, positions: Indices) -> Indices:
        inside = not len(positions) or (positions.min() >= 0 and positions.max() < self.num_draws)
        assert inside, f"positions outside 0..{self.num_draws}"
        keys = _keys(self.seed, epoch, _ORDER)[:, None]
        return _permute(positions.astype(np.uint64), np.uint64(self.num_draws), keys).astype(np.int64)

    def _classes(self, slots: Indices) -> Indices:
        classes: Indices = np.searchsorted(self._slot_ends, slots, side="right")
        return classes

    def _items(self, epoch: int, classes: Indices, slots: Indices) -> Indices:
        """Item within its class for each slot: passes over a class are permuted each by their own key."""
        counts = self.counts[classes]
        passes, items = np.divmod(slots - self._first_slot[classes], counts)
        tag = _mix(classes.astype(np.uint64) * _MIX + passes.astype(np.uint64))
        keys = _keys(self.seed, epoch, _ITEMS)[:, None] ^ tag[None, :]
        return _permute(items.astype(np.uint64), counts.astype(np.uint64), keys).astype(np.int64)


@lru_cache(maxsize=16)
def _keys(seed: int, epoch: int, purpose: int) -> Words:
    """Round keys: uint64 [rounds], from Philox of (seed, epoch, purpose)."""
    sequence = np.random.SeedSequence([seed, epoch, purpose])
    return np.random.Philox(sequence).random_raw(_ROUNDS)


def _mix(words: Words) -> Words:
    """splitmix64's finaliser (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _permute(values: Words, size: Words | np.uint64, keys: Words) -> Words:
    """A keyed permutation of 0..size, evaluated at `values`: uint64 [n].

    Feistel rounds on a rectangle of side ceil(sqrt(size)) (Black and Rogaway 2002), walked along its
    cycle until the value lies below `size`; the rectangle is at most a little larger, so few walk.

    Args:
        values: uint64 [n], each below its size.
        size: one for all or one a value.
        keys: uint64 [rounds, 1 or n].
    """
    sizes = np.broadcast_to(size, values.shape)
    sides = _ceil_sqrt(sizes)
    keys = np.broadcast_to(keys, (keys.shape[0], *values.shape))
    result = _feistel(values, sides, keys)
    outside = np.flatnonzero(result >= sizes)
    while outside.size:
        result[outside] = _feistel(result[outside], sides[outside], keys[:, outside])
        outside = outside[result[outside] >= sizes[outside]]
    return result


def _feistel(values: Words, sides: Words, keys: Words) -> Words:
    left, right = np.divmod(values, sides)
    for number, key in enumerate(keys):
        if number % 2:
            left = (left + _mix(right ^ key) % sides) % sides
        else:
            right = (right + _mix(left ^ key) % sides) % sides
    return left * sides + right


def _ceil_sqrt(sizes: Words) -> Words:
    roots = np.sqrt(sizes.astype(np.float64)).astype(np.uint64)
    return roots + (roots * roots < sizes).astype(np.uint64)


@dataclass(frozen=True)
class StepPlan:
    """How one optimiser step is cut: into micro batches of fixed size, in plan order, the last maybe short.

    Worker r runs micro batches r, r + W, ...; a micro batch is never split, so fewer workers run more
    of the same ones.
    """

    num_draws: int
    step_size: int
    micro_batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; the last may be short."""
        return -(-self.num_draws // self.step_size)

    def span(self, step: int) -> tuple[int, int]:
        """Positions start, stop of a step."""
        start = step * self.step_size
        return start, min(start + self.step_size, self.num_draws)

    def num_micro_batches(self, step: int) -> int:
        """Micro batches of a step over all workers."""
        start, stop = self.span(step)
        return -(-(stop - start) // self.micro_batch_size)

    def micro_batches(self, step: int, world: World) -> list[tuple[int, int, int]]:
        """(index, start, stop) of the micro batches that this worker runs in a step; may be empty."""
        first, last = self.span(step)
        size = self.micro_batch_size
        starts = range(first + world.rank * size, last, world.size * size)
        return [((start - first) // size, start, min(start + size, last)) for start in starts]


@dataclass(frozen=True)
class Request:
    """One micro batch to load.

    `rows` are rows of the split (int64 [n]); `start` is the position of the first draw in its epoch, by
    which augmentation is keyed. Evaluation has epoch and step -1: no augmentation.
    """

    epoch: int
    step: int
    index: int
    start: int
    rows: Indices


def training_requests(plan: Plan, steps: StepPlan, world: World, epoch: int, start_step: int = 0) -> Iterator[Request]:
    """This worker's micro batches of an epoch from a step on, in the order in which the loop runs them."""
    places = (
        (step, index, np.arange(start, stop))
        for step in range(start_step, steps.steps_per_epoch)
        for index, start, stop in steps.micro_batches(step, world)
    )
    for group in in_groups(places, lambda place: len(place[2])):
        ends = np.cumsum([len(positions) for *_, positions in group])
        rows, _ = plan.draw_at(epoch, np.concatenate([positions for *_, positions in group]))
        for (step, index, positions), mine in zip(group, np.split(rows, ends[:-1]), strict=True):
            yield Request(epoch, step, index, int(positions[0]), mine)


def in_groups(items: Iterable[_T], count: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Items in their order, in lists of a few hundred draws, by how many each stands for.

    NumPy's calls cost more than their numbers: what is worked out for some hundred draws at once takes little more than
    for one micro batch, and holds the interpreter's lock that much less beside threads that decode.
    """
    group: list[_T] = []
    draws = 0
    for item in items:
        group.append(item)
        draws += count(item)
        if draws >= _DRAWN_AT_ONCE:
            yield group
            group, draws = [], 0
    if group:
        yield group


def samples_digest(epoch: int, step: int, index: int, rows: Indices) -> int:
    """What a micro batch adds to the digest of all samples of a run; a number below 2 ** 40.

    The sum over micro batches, modulo 2 ** 40, depends on which rows were in which micro batch of which step,
    and neither on the number of workers nor on the order in which they report.
    """
    place = struct.pack("<3q", epoch, step, index)
    return int.from_bytes(hashlib.blake2b(place + rows.tobytes(), digest_size=5).digest(), "little")


def evaluation_requests(num_images: int, micro_batch_size: int, world: World) -> Iterator[Request]:
    """Each image of a split exactly once over all workers; workers may run unequal numbers of them."""
    for index, start, stop in StepPlan(num_images, num_images, micro_batch_size).micro_batches(0, world):
        yield Request(-1, -1, index, start, np.arange(start, stop, dtype=np.int64))
