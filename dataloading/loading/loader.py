"""The loader: requests in, batches out, a few of them made ahead.

Joins the pieces of the hot path: rows become records and bytes (`cache`), positions become numbers
(`augment`), an executor makes pixels of both. Keeps no order of its own and no position: what to load comes
as requests, so resuming is asking for later ones.

Work is submitted from the caller's thread and done in the executor's; there is no thread in between.
"""

from __future__ import annotations

import importlib.util
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cluster.errors import InputError
from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.dataset import DatasetInfo, shard_key
from dataloading.loading.augment import Augmentation, View, draw_augmentation, draw_uniforms, plain_view
from dataloading.loading.batch import Batch
from dataloading.loading.cache import Split
from dataloading.loading.executor import Executor, ExecutorSpec, Pending, UndecodableError
from dataloading.loading.plan import Request, in_groups

__all__ = ["BACKENDS", "Loader", "build_view", "choose_backend", "has_dali"]

logger = logging.getLogger(__name__)

Records = npt.NDArray[Any]


def _build_opencv(spec: ExecutorSpec) -> Executor:
    from dataloading.loading.opencv import OpenCVExecutor

    return OpenCVExecutor(spec)


def _build_dali(spec: ExecutorSpec) -> Executor:
    from dataloading.loading.dali import DaliExecutor

    return DaliExecutor(spec)


BACKENDS: dict[str, Callable[[ExecutorSpec], Executor]] = {"dali": _build_dali, "opencv": _build_opencv}


def choose_backend(backend: str, device: torch.device) -> str:
    """The backend that `loader.backend` means on a device: `auto` is dali on a GPU where it is installed.

    Raises:
        InputError: DALI is asked for by name and is not installed.
    """
    there = has_dali()
    if backend == "dali" and not there:
        raise InputError(
            "loader.backend is 'dali', but NVIDIA DALI is not installed here. Install the extra `dali` "
            "(`pip install 'xdist-train[dali]'`, Linux only), or set loader.backend=opencv."
        )
    if backend != "auto":
        return backend
    if device.type == "cuda" and not there:
        logger.warning("NVIDIA DALI is not installed (extra `dali`): pictures are decoded on the CPU by OpenCV.")
    return "dali" if device.type == "cuda" and there else "opencv"


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed here."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def build_view(loader: LoaderConfig, info: DatasetInfo) -> View:
    """What of a picture the model is to see, as configured for a dataset."""
    return View(
        image_size=loader.image_size,
        fit=loader.fit,
        mean_gray=sum(info.mean) / len(info.mean),
        reduce_tolerance=loader.reduce_tolerance,
    )


class Loader:
    """Loads micro batches of one split; used for one epoch after another.

    Args:
        split: where images lie.
        info: of the dataset.
        loader: its configuration.
        augment: ranges of the random changes; None shows every picture plain.
        seed: of the run; with epoch and position it decides every random change.
        device: where the model is. DALI's batches lie there; OpenCV's lie in (for a GPU: pinned) host memory.
        threads: that decode, 1 or more.

    Raises:
        InputError: the backend is not installed.
    """

    def __init__(
        self,
        split: Split,
        info: DatasetInfo,
        loader: LoaderConfig,
        *,
        augment: AugmentConfig | None,
        seed: int,
        device: torch.device,
        threads: int,
    ) -> None:
        assert threads >= 1, f"{threads} threads cannot decode"
        self._resident = loader.cache == "device" and device.type == "cuda"
        self.backend = "resident" if self._resident else choose_backend(loader.backend, device)
        self._split = split
        self._view = build_view(loader, info)
        self._augment = augment
        self._seed = seed
        self._prefetch = loader.prefetch
        spec = ExecutorSpec(
            image_size=loader.image_size,
            channels=info.channels,
            threads=threads,
            in_flight=loader.prefetch,
            device=device,
            decoded=split.pixels is not None,
        )
        self._executor = self._build_executor(spec)

    def load(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """The batches of the requests, in order, `prefetch` of them in the making.

        Requests are taken some hundred pictures ahead: an error of theirs comes before the batches of its group.
        Close the generator (or exhaust it) before the next call.

        Raises:
            InputError: a picture cannot be decoded; names its id and shard.
        """
        upcoming = self._drawn(iter(requests))
        in_flight: deque[_Flight] = deque()
        try:
            in_flight.extend(map(self._submit, islice(upcoming, self._prefetch)))
            while in_flight:
                batch = self._finish(in_flight.popleft())
                in_flight.extend(map(self._submit, islice(upcoming, 1)))
                yield batch
        finally:
            for flight in in_flight:
                flight.pending.discard()

    def close(self) -> None:
        """Stop the executor's threads and free its memory."""
        self._executor.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drawn(self, requests: Iterator[Request]) -> Iterator[_Drawn]:
        """Requests with their numbers, those of a few hundred pictures at a time."""
        alike = groupby(requests, _is_plain)
        for group in chain.from_iterable(in_groups(some, lambda request: len(request.rows)) for _, some in alike):
            records = self._split.records(np.concatenate([one.rows for one in group]))
            augmentation = self._augmentation(group, records)
            pictures: Any = self._split.images(records)
            pixels = self._split.pixels
            if pixels is not None:
                places = pixels.places(records["id"])
                pictures = places if self._resident else pixels.pictures(places)
                augmentation = augmentation._replace(reductions=places["reduction"].astype(np.int64))
            start = 0
            for one in group:
                part = slice(start, start + len(one.rows))
                yield _Drawn(one, records[part], pictures[part], augmentation.part(part.start, part.stop))
                start = part.stop

    def _augmentation(self, requests: Sequence[Request], records: Records) -> Augmentation:
        widths, heights = records["width"].astype(np.int64), records["height"].astype(np.int64)
        if self._augment is None or _is_plain(requests[0]):
            return plain_view(self._view, widths, heights)
        uniforms = [draw_uniforms(self._seed, one.epoch, one.start, len(one.rows)) for one in requests]
        return draw_augmentation(self._augment, self._view, widths, heights, np.concatenate(uniforms, axis=1))

    def _submit(self, drawn: _Drawn) -> _Flight:
        pending = self._executor.submit(drawn.pictures, drawn.augmentation)
        return _Flight(drawn.request, drawn.records, pending)

    def _build_executor(self, spec: ExecutorSpec) -> Executor:
        if not self._resident:
            return BACKENDS[self.backend](spec)
        from dataloading.loading.resident import ResidentExecutor

        assert self._split.pixels is not None, "a split for loader.cache=device is opened with its pixels"
        return ResidentExecutor(spec, self._split.pixels)

    def _finish(self, flight: _Flight) -> Batch:
        request = flight.request
        try:
            images = flight.pending.result()
        except UndecodableError as error:
            raise InputError(_describe(error, self._split, flight)) from None
        return Batch(
            images=images,
            labels=torch.from_numpy(flight.records["label"].astype(np.int64)),
            rows=torch.from_numpy(np.asarray(request.rows, dtype=np.int64)),
            epoch=request.epoch,
            step=request.step,
            index=request.index,
        )


class _Drawn(NamedTuple):
    """A batch that nobody works on yet: what was asked for, its records, and an executor's two arguments."""

    request: Request
    records: Records
    pictures: Any
    augmentation: Augmentation


@dataclass(frozen=True, eq=False)
class _Flight:
    """A batch in the making: what was asked for, its records, and the executor's promise."""

    request: Request
    records: Records
    pending: Pending


def _is_plain(request: Request) -> bool:
    """Whether pictures are asked for as evaluation sees them."""
    return request.epoch < 0


def _describe(error: UndecodableError, split: Split, flight: _Flight) -> str:
    suspects = flight.records if error.position < 0 else flight.records[error.position : error.position + 1]
    ids = ", ".join(str(number) for number in suspects["id"].tolist())
    shards = ", ".join(shard_key(number) for number in np.unique(suspects["shard"]).tolist())
    return (
        f"{split.dataset.store.uri}: image id {ids} ({split.name}, {shards}) cannot be decoded: "
        f"{error.reason}. "
        "The manifest gives the file that it came from; remove or repair it and pack the images again."
    )
