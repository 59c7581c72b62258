"""The executor on NVIDIA DALI: one graph for GPU and CPU that decodes, warps and tones.

The one file that imports DALI. Python hands over encoded bytes and the numbers of an augmentation as whole
arrays; everything a sample needs happens in the graph. Work is submitted batch by batch, so nothing is
read ahead of what was asked for, and the last batch may be short.
"""
# DALI's type stubs lack what it defines at run time (types.GRAY, pipeline_def, scheduling).
# mypy: disable-error-code="attr-defined,no-untyped-call,assignment"

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, pipeline_def, types

from dataloading.loading.augment import Augmentation
from dataloading.loading.executor import (
    Decoded,
    Encoded,
    ExecutorSpec,
    UndecodableError,
    is_jpeg,
    scaled_matrices,
)

__all__ = ["DaliExecutor"]

_NUMBERED_SAMPLE = re.compile(r"sample #?(\d+)")


class DaliExecutor:
    """Feeds the graph and takes its batches in order.

    The graph is built for the largest batch seen; a larger one builds it anew. A picture that cannot be
    decoded leaves the graph unusable, so it is given up and the next batch builds another.
    """

    def __init__(self, spec: ExecutorSpec) -> None:
        self._spec = spec
        self._run: _GraphRun | None = None

    def submit(self, pictures: Sequence[Encoded | Decoded], augmentation: Augmentation) -> DaliPending:
        """Start a batch of the graph."""
        pictures = list(pictures)  # read once
        run = self._run
        if run is None or run.is_broken or len(pictures) > run.max_batch_size:
            run = self._run = _GraphRun(self._spec, len(pictures))
        run.schedule(pictures, augmentation)
        pending = DaliPending(run, pictures)
        run.in_flight.append(pending)
        return pending

    def close(self) -> None:
        """Free the graph."""
        self._run = None


@dataclass(frozen=True, eq=False)
class DaliPending:
    """A batch in the graph."""

    run: _GraphRun
    pictures: list[Encoded | Decoded]

    def result(self) -> torch.Tensor:
        """The batch, uint8 [n, C, S, S], on the graph's device (RGB lies in channels-last memory)."""
        assert self.run.in_flight[0] is self, "batches are taken in the order of submission"
        self.run.in_flight.popleft()
        try:
            return self.run.take().permute(0, 3, 1, 2)
        except (RuntimeError, IndexError) as error:
            self.run.is_broken = True
            raise _undecodable(self.pictures, str(error)) from None

    def discard(self) -> None:
        """Take the batch out of the graph and forget it."""
        self.run.in_flight.remove(self)
        if not self.run.is_broken:
            self.run.drop()


class _GraphRun:
    """One built graph and the batches in it."""

    def __init__(self, spec: ExecutorSpec, max_batch_size: int) -> None:
        self.max_batch_size = max_batch_size
        self.in_flight: deque[DaliPending] = deque()
        self.is_broken = False
        self._spec = spec
        self._depth = spec.in_flight + 1
        with self._on_device():
            build = _pixel_graph if spec.decoded else _graph
            self._pipeline = build(
                spec.image_size,
                spec.channels,
                spec.device.type == "cuda",
                batch_size=max_batch_size,
                num_threads=spec.threads,
                device_id=_device_id(spec.device),
                prefetch_queue_depth=self._depth,
                enable_conditionals=True,
            )
            self._fill()

    def schedule(self, pictures: Sequence[Encoded | Decoded], augmentation: Augmentation) -> None:
        """Hand over one batch and start it."""
        with self._on_device():
            self._feed(pictures, augmentation)
            self._pipeline.schedule_run()

    def take(self) -> torch.Tensor:
        """The oldest batch, without a copy: uint8 [n, S, S, C]. Memory that is held is not used again."""
        with self._on_device():
            (batch,) = self._pipeline.share_outputs()
            images: torch.Tensor = torch.from_dlpack(batch.as_tensor())
            self._pipeline.release_outputs()
        return images

    def drop(self) -> None:
        """Wait for the oldest batch and throw it away; a batch that fails here was not wanted anyway."""
        try:
            self._pipeline.share_outputs()
            self._pipeline.release_outputs()
        except (RuntimeError, IndexError):
            self.is_broken = True

    def _fill(self) -> None:
        """Run a dot through each place of the queue.

        The first `schedule_run` of a pipeline starts as many runs as its queue is deep; every later one
        starts one. After this, one batch in is one batch out.
        """
        self._pipeline.build()
        dot = np.zeros((8, 8, self._spec.channels), np.uint8)
        if not self._spec.decoded:
            dot = cv2.imencode(".jpg", dot)[1].ravel()
        one = np.ones(1, np.float32)
        numbers = Augmentation(np.ones((1, 2, 3)), one, one, np.full(1, 2), np.full(1, 8), np.full(1, 8))
        for _ in range(self._depth):
            self._feed([dot], numbers)
        self._pipeline.schedule_run()
        for _ in range(self._depth):
            self.drop()

    def _on_device(self) -> AbstractContextManager[object]:
        """DALI and torch both work on the calling thread's current device."""
        return torch.cuda.device(self._spec.device) if self._spec.device.type == "cuda" else nullcontext()

    def _feed(self, pictures: Sequence[Encoded | Decoded], augmentation: Augmentation) -> None:
        inputs = (_pixel_inputs if self._spec.decoded else _inputs)(pictures, augmentation)
        for name, values in inputs.items():
            self._pipeline.feed_input(name, values)


def _device_id(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


@pipeline_def
def _graph(image_size: int, channels: int, on_gpu: bool) -> Any:
    """Decode, reduce where asked, warp, tone.

    The reduced picture stands in for libjpeg's own half scale: of DALI's filters the Gaussian one comes
    closest to it. As there, a pixel covers exactly r x r, so the last may reach beyond an odd edge.
    """
    output_type = types.GRAY if channels == 1 else types.RGB
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
    extent = fn.external_source(name="extent", dtype=types.FLOAT, ndim=1)
    is_reduced = fn.external_source(name="is_reduced", dtype=types.BOOL, ndim=0)
    picture = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=output_type)
    if is_reduced:
        picture = fn.resize(
            picture,
            size=size,
            roi_start=[0, 0],
            roi_end=extent,
            interp_type=types.INTERP_GAUSSIAN,
            antialias=True,
        )
    return _warped(picture, image_size)


@pipeline_def
def _pixel_graph(image_size: int, channels: int, on_gpu: bool) -> Any:
    """Warp and tone what is decoded already."""
    picture = fn.external_source(name="picture", dtype=types.UINT8, ndim=3, layout="HWC")
    return _warped(picture.gpu() if on_gpu else picture, image_size)


def _warped(picture: Any, image_size: int) -> Any:
    matrix = fn.external_source(name="matrix", dtype=types.FLOAT, ndim=2)
    gain = fn.external_source(name="gain", dtype=types.FLOAT, ndim=0)
    shift = fn.external_source(name="shift", dtype=types.FLOAT, ndim=0)
    picture = fn.warp_affine(
        picture,
        matrix=matrix,
        size=(image_size, image_size),
        inverse_map=True,
        fill_value=0,
        interp_type=types.INTERP_LINEAR,
    )
    return fn.brightness_contrast(picture, contrast=gain, brightness_shift=shift, contrast_center=0.0)


def _inputs(encoded: Sequence[Encoded], augmentation: Augmentation) -> dict[str, Any]:
    """What the graph's sources are fed, by their names: one array a batch but for the bytes."""
    reductions = np.array(
        [r if r > 1 and is_jpeg(data) else 1 for data, r in zip(encoded, augmentation.reductions, strict=True)]
    )
    sizes = np.stack([augmentation.heights, augmentation.widths], axis=1)
    reduced_sizes = -(-sizes // reductions[:, None])
    return {
        "encoded": list(encoded),
        **_numbers(augmentation, reductions),
        "size": reduced_sizes.astype(np.float32),
        "extent": (reduced_sizes * reductions[:, None]).astype(np.float32),
        "is_reduced": reductions > 1,
    }


def _pixel_inputs(pictures: Sequence[Decoded], augmentation: Augmentation) -> dict[str, Any]:
    return {"picture": list(pictures), **_numbers(augmentation, augmentation.reductions)}


def _numbers(augmentation: Augmentation, reductions: npt.NDArray[np.int64]) -> dict[str, Any]:
    return {
        "matrix": scaled_matrices(augmentation.matrices, reductions).astype(np.float32),
        "gain": augmentation.gains,
        "shift": augmentation.shifts,
    }


def _undecodable(encoded: Sequence[Encoded], message: str) -> UndecodableError:
    """Which picture it was: DALI does not always tell, so look again with another decoder."""
    position = _first_broken(encoded)
    named = _NUMBERED_SAMPLE.search(message)
    if position < 0 and named:
        position = int(named.group(1))
    return UndecodableError(position, f"DALI: {_first_line(message)}")


def _first_broken(encoded: Sequence[Encoded]) -> int:
    for position, data in enumerate(encoded):
        if not len(data) or cv2.imdecode(data, cv2.IMREAD_REDUCED_GRAYSCALE_8) is None:
            return position
    return -1


def _first_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0][:200] if lines else "no reason given"
