"""Loading: ours and seven other loaders on the same files, and the cost of an order of a hundred million images.

Contenders take turns, round by round (three a round where an epoch takes a second), with two workers (processes or
threads) and the same steps: random crop, rotation, brightness and contrast, flip, normalising, to contiguous float32
N x 3 x 224 x 224. Rates are by wall clock on all cores, CPU time is of a contender's process, its threads and its
children; both are from the first batch to the last, so that nobody's start counts. Ratios are ours over theirs.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from cluster.world import World
from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.loading import opencv
from dataloading.loading.augment import View, draw_augmentation, draw_uniforms
from dataloading.loading.batch import normalise
from dataloading.loading.cache import Split, open_split
from dataloading.loading.loader import Loader, build_view
from dataloading.loading.plan import Plan, StepPlan, training_requests
from tests.bench.peer_env import Peer, peer, peer_versions
from tests.bench.processes import cpu_s
from tests.bench.results import BenchSkippedError, Row, compare, measured, versions
from tests.dataloading.loading.packed import find_real_oct_files, write_dataset

__all__ = ["rows"]

COMMAND = "python -m tests.bench loader"
ROUNDS = 5
IMAGES = 2400
BATCH_SIZE, WORKERS, SIZE = 48, 2, 224
MEAN, STD = (0.19,), (0.2,)
STEPS = "PIL RGB, 3 channels, all at full scale"
PEERS = {
    "torchvision": f"torchvision ImageFolder, DataLoader: {STEPS}",
    "timm": f"timm create_loader: {STEPS}",
    "webdataset": f"WebDataset, tar shards: {STEPS}",
    "litdata": f"litData, chunks of JPEGs: {STEPS}",
    "streaming": f"MosaicML Streaming, MDS of JPEGs: {STEPS}",
    "ray": f"Ray Data read_images: {STEPS}",
    "dali": "DALI readers.file on CPU: RGB, 3 channels, crops decoded at full scale",
}
QUICK, TURNS = ("opencv", "opencv uint8", "pixels", "pixels uint8", "decode", "copy"), 3
STORED = ("webdataset", "litdata", "streaming")


@dataclass(frozen=True)
class Epoch:
    """One measured epoch of a contender, from its first batch to its last: images a second, CPU time an image."""

    rate: float
    cpu_ms: float

    @classmethod
    def of(cls, images: int, wall_s: float, cpu_s: float, first_s: float, first_cpu_s: float) -> Epoch:
        """From seconds of the whole epoch, and until its first batch was there."""
        rest = images - BATCH_SIZE
        return cls(rest / (wall_s - first_s), 1000 * (cpu_s - first_cpu_s) / rest)


Contender = Callable[[], Epoch]


def rows() -> Iterable[Row]:
    """The bench's rows; needs the real OCT files."""
    files = find_real_oct_files()
    if not files:
        raise BenchSkippedError("no real OCT images; set XDIST_REAL_DATA")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    torch.set_num_threads(1)
    yield from _side_by_side(files)
    yield _plan_row()
    yield _plan_memory_row()
    yield _augmentation_row()


def _side_by_side(files: list[Path]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        tree = write_tree(files, folder / "tree", IMAGES)
        split = _packed([files[n % len(files)] for n in range(IMAGES)], folder)
        pixels = open_split(
            split.dataset, "patient", "train", folder / "cache", pixel_side=LoaderConfig(cache="pixels").pixel_side
        )
        ours = {
            name: stack.enter_context(_loader(source, backend))
            for name, source, backend in (
                ("opencv", split, "opencv"),
                ("our dali", split, "dali"),
                ("pixels", pixels, "opencv"),
            )
        }
        contenders: dict[str, Contender] = {
            "opencv": lambda: _epoch(_floats(ours["opencv"], split)),
            "opencv uint8": lambda: _epoch(_uint8(ours["opencv"], split), torch.uint8, 1),
            "our dali": lambda: _epoch(_floats(ours["our dali"], split)),
            "pixels": lambda: _epoch(_floats(ours["pixels"], pixels)),
            "pixels uint8": lambda: _epoch(_uint8(ours["pixels"], pixels), torch.uint8, 1),
            "own dataloader": lambda: _epoch(_own_dataloader(split)),
            "decode": lambda: _decode_only(split),
            "copy": lambda: _epoch(_copies()),
            **{name: stack.enter_context(_peer(name, tree, folder)) for name in PEERS},
        }
        found = _alternate(contenders)
        reduced = _reduced_share(split)
    yield from _rows_of(found, reduced)


def _rows_of(found: dict[str, list[Epoch]], reduced: float) -> Iterator[Row]:
    """Rates first, then CPU time; every row names what is delivered."""
    share = f"{reduced:.0%} decoded at reduced scale"
    floats, small = f"N x 3 x {SIZE} x {SIZE} float32, gray expanded", f"N x 1 x {SIZE} x {SIZE} uint8"
    names = {
        "opencv": f"ours, opencv: {floats}, {share}",
        "opencv uint8": f"ours, opencv: {small}, {share}",
        "our dali": f"ours, dali on CPU: {floats}, 0% decoded at reduced scale",
        "pixels": f"ours, cache=pixels, after the first epoch: {floats}, decoded before, {share}",
        "pixels uint8": f"ours, cache=pixels, after the first epoch: {small}, decoded before, {share}",
        "own dataloader": f"DataLoader of our decode-and-warp: {floats}, {share}",
        "decode": f"decode alone, 2 threads: 1 channel uint8, {share}",
        "copy": f"copy of float32 batches N x 3 x {SIZE} x {SIZE}, 1 thread",
        **{name: f"{what}, N x 3 x {SIZE} x {SIZE} float32" for name, what in PEERS.items()},
    }
    details = {
        "versions": versions("torch", "opencv-python-headless", "nvidia-dali-cuda130")
        + "; peers: "
        + peer_versions(
            "torch", "torchvision", "timm", "webdataset", "litdata", "mosaicml-streaming", "ray", "nvidia-dali-cuda130"
        ),
        "command": COMMAND,
    }
    rates = {name: [epoch.rate for epoch in epochs] for name, epochs in found.items()}
    costs = {name: [epoch.cpu_ms for epoch in epochs] for name, epochs in found.items()}
    goals = {
        **{("opencv", name): ">= 4" for name in PEERS},
        ("our dali", "torchvision"): "",
        ("opencv", "decode"): ">= 0.65",
        ("opencv uint8", "decode"): ">= 0.75",
        ("opencv", "copy"): "",
        ("pixels", "torchvision"): ">= 12",
        ("pixels uint8", "torchvision"): ">= 20",
    }
    for (ours, theirs), goal in goals.items():
        what, goal = f"{names[ours]} (ratio: rate of ours over theirs)", f"ratio {goal}" if goal else ""
        rounds = min(len(rates[ours]), len(rates[theirs]))
        pair = (_by_round(rates[name], rounds) for name in (ours, theirs))
        yield compare(what, next(pair), names[theirs], next(pair), goal=goal, unit="images/s", **details)
    for name in found:
        if name not in ("opencv", "opencv uint8", "our dali", "pixels", "pixels uint8"):
            yield measured(names[name], rates[name], unit="images/s", **details)
    what = f"{names['opencv']} (ratio: CPU time of ours over theirs)"
    own = "own dataloader"
    unit = "CPU ms an image"
    mine = _by_round(costs["opencv"], ROUNDS)
    yield compare(what, mine, names[own], costs[own], goal="ratio <= 1", unit=unit, **details)
    for name in found:
        yield measured(names[name], costs[name], unit=unit, **details)


def write_tree(files: list[Path], folder: Path, count: int) -> Path:
    """Files under new names in four class folders, `count` in all."""
    for number in range(4):
        (folder / str(number)).mkdir(parents=True)
    for number in range(count):
        shutil.copyfile(files[number % len(files)], folder / str(number % 4) / f"{number:06d}.jpeg")
    return folder


@contextmanager
def _peer(name: str, tree: Path, folder: Path) -> Iterator[Contender]:
    """A peer's process, its own format made."""
    with peer("loading", name, str(tree), env={"RAY_AUTH_MODE": "disabled"}) as process:
        source = str(tree)
        if name in STORED:
            source = process.ask(make=str(folder / name))["made"]
        yield lambda: _ask(process, source)


def _ask(process: Peer, source: str) -> Epoch:
    found = process.ask(source=source)
    assert found["images"] == IMAGES, found
    return Epoch.of(**found)


def _packed(files: list[Path], folder: Path) -> Split:
    labels = sorted(n % 4 for n in range(len(files)))
    dataset = write_dataset(folder / "dataset", [path.read_bytes() for path in files], labels, rows_per_shard=1000)
    return open_split(dataset, "patient", "train", folder / "cache")


def _loader(split: Split, backend: Any) -> Loader:
    return Loader(
        split,
        split.dataset.info,
        LoaderConfig(backend=backend),
        augment=AugmentConfig(),
        seed=0,
        device=torch.device("cpu"),
        threads=WORKERS,
    )


def _uint8(loader: Loader, split: Split) -> Iterator[torch.Tensor]:
    plan = Plan(split.class_counts, 0.0, seed=0)
    requests = training_requests(plan, StepPlan(plan.num_draws, BATCH_SIZE, BATCH_SIZE), World(), 0)
    return (batch.images for batch in loader.load(requests))


def _floats(loader: Loader, split: Split) -> Iterator[torch.Tensor]:
    return (normalise(images, MEAN, STD, memory_format=torch.contiguous_format) for images in _uint8(loader, split))


class _OwnImages(torch.utils.data.Dataset[torch.Tensor]):
    """One image an item by the executor's own functions, as a plain DataLoader has it."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._view = build_view(LoaderConfig(), split.dataset.info)

    def __len__(self) -> int:
        return self._split.num_images

    def __getitem__(self, row: int) -> torch.Tensor:
        opencv.cv2.setNumThreads(1)
        records = self._split.records(np.array([row]))
        augmentation = _draw(self._view, records, row)
        pixels = np.empty((1, SIZE, SIZE, 1), np.uint8)
        opencv._execute(self._split.images(records), augmentation, pixels, 0)
        return normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), MEAN, STD)[0].contiguous()


def _own_dataloader(split: Split) -> Iterator[torch.Tensor]:
    return iter(DataLoader(_OwnImages(split), BATCH_SIZE, shuffle=True, num_workers=WORKERS))


def _draw(view: View, records: Any, start: int) -> Any:
    widths, heights = records["width"].astype(np.int64), records["height"].astype(np.int64)
    return draw_augmentation(AugmentConfig(), view, widths, heights, draw_uniforms(0, 0, start, len(widths)))


def _reductions(split: Split) -> tuple[Any, Any]:
    records = split.records(np.arange(split.num_images))
    return records, _draw(build_view(LoaderConfig(), split.dataset.info), records, 0).reductions


def _reduced_share(split: Split) -> float:
    return float((_reductions(split)[1] > 1).mean())


def _decode_only(split: Split) -> Epoch:
    """The limit: nothing but libjpeg-turbo, at the scale that the loader chooses."""
    records, found = _reductions(split)
    reductions = found.tolist()
    pictures = list(split.images(records))
    chunks = np.array_split(np.arange(split.num_images), split.num_images // (BATCH_SIZE // 4))

    def decode(rows: Any) -> None:
        for row in rows.tolist():
            opencv.decode(pictures[row], 1, reductions[row], 0)

    opencv.cv2.setNumThreads(1)
    start_cpu_s, start_s = _cpu_s(), time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(decode, chunks))
    wall_s, cpu_s = time.perf_counter() - start_s, _cpu_s() - start_cpu_s
    return Epoch(split.num_images / wall_s, 1000 * cpu_s / split.num_images)


def _copies() -> Iterator[torch.Tensor]:
    batch, target = (np.ones((BATCH_SIZE, 3, SIZE, SIZE), np.float32) for _ in range(2))
    for _ in range(IMAGES // BATCH_SIZE):
        np.copyto(target, batch)
        yield torch.from_numpy(target)


def _alternate(contenders: dict[str, Contender]) -> dict[str, list[Epoch]]:
    """Each contender's epochs, after one round to warm up; a quick one has `TURNS` a round, one after the other."""
    found: dict[str, list[Epoch]] = {name: [] for name in contenders}
    for number in range(ROUNDS + 1):
        if number == 1:
            found = {name: [] for name in contenders}
        for name in TURNS * QUICK + tuple(name for name in contenders if name not in QUICK):
            found[name].append(contenders[name]())
    return found


def _by_round(values: list[float], rounds: int) -> list[float]:
    """One a round: the middle of its turns."""
    return np.median(np.reshape(values, (rounds, -1)), axis=1).tolist()


def _epoch(batches: Iterator[torch.Tensor], dtype: torch.dtype = torch.float32, channels: int = 3) -> Epoch:
    start_cpu_s, start_s, images, first = _cpu_s(), time.perf_counter(), 0, (0.0, 0.0)
    for batch in batches:
        assert (batch.dtype, batch.shape[1:]) == (dtype, (channels, SIZE, SIZE))
        assert batch.is_contiguous()
        images += len(batch)
        if images == len(batch):
            first = time.perf_counter() - start_s, _cpu_s() - start_cpu_s
    return Epoch.of(images, time.perf_counter() - start_s, _cpu_s() - start_cpu_s, *first)


def _cpu_s() -> float:
    """CPU seconds of this process and of its DataLoader's workers, which count on when they have ended; of no peer."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = sum(cpu_s(child.pid) for child in multiprocessing.active_children() if child.pid)
    return time.process_time() + living + ended.ru_utime + ended.ru_stime


def _plan_row() -> Row:
    """4,096 draws in the middle of an epoch of a hundred million images in four uneven classes."""
    plan = Plan([44_000_000, 13_000_000, 10_000_000, 33_000_000], 0.5, seed=0)
    times_ms = _wall_ms(lambda: plan.ids(3, 50_000_000, 50_004_096))
    return measured(
        "plan: 4,096 positions of 100M images",
        times_ms,
        unit="ms",
        goal="< 5 ms",
        versions=versions("numpy"),
        command=COMMAND,
    )


def _plan_memory_row() -> Row:
    """Most memory that a plan of a hundred million images takes, made and asked once."""
    tracemalloc.start()
    Plan([44_000_000, 13_000_000, 10_000_000, 33_000_000], 0.5, seed=0).ids(3, 50_000_000, 50_004_096)
    most_mb = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    what = "plan: memory of an order of 100M images, made and asked for 4,096"
    return measured(what, [most_mb], unit="MB", goal="< 50 MB", versions=versions("numpy"), command=COMMAND)


def _augmentation_row() -> Row:
    widths, heights = np.full(256, 768), np.full(256, 496)
    view, config = View(image_size=224), AugmentConfig()
    times_ms = _wall_ms(lambda: draw_augmentation(config, view, widths, heights, draw_uniforms(0, 1, 10_000, 256)))
    return measured(
        "augmentation numbers of a batch of 256",
        [1000 * time_ms / 256 for time_ms in times_ms],
        unit="us a sample",
        goal="< 1 us",
        versions=versions("numpy"),
        command=COMMAND,
    )


def _wall_ms(work: Callable[[], object]) -> list[float]:
    """Wall-clock milliseconds of a call, best of three in each of 21 rounds."""
    work()
    return [min(_once_ms(work) for _ in range(3)) for _ in range(21)]


def _once_ms(work: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start_s)
