"""Loading: CPU time from files to a normalised batch, and the cost of an order of a hundred million images.

CPU time is of this process, its threads and its children, so it does not depend on what else runs. Contenders
take turns, round by round. All end in the same contiguous float32 N x 3 x 224 x 224 tensor; torch computes on
one thread for both.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.loading.augment import View, draw_augmentation
from dataloading.loading.batch import normalise
from dataloading.loading.cache import Split, open_split
from dataloading.loading.loader import Loader
from dataloading.loading.plan import Plan, Request
from tests.bench.results import BenchSkippedError, Row, compare, hardware, measured, versions
from tests.dataloading.loading.packed import find_real_oct_files, write_dataset
from xdist_train.models.torchvision_shim import declare_missing_operators

__all__ = ["rows"]

COMMAND = "python -m tests.bench loader"
ROUNDS = 7
REPEATS = 4  # of the list of files, a round
BATCH_SIZE = 47
MEAN, STD = (0.19,), (0.2,)
TORCHVISION = "torchvision: PIL RGB, RandomResizedCrop, RandomRotation, ColorJitter, flip, normalise"

Contender = Callable[[], Iterator[torch.Tensor]]


def rows() -> Iterable[Row]:
    """The bench's rows; needs the real OCT files."""
    files = find_real_oct_files()
    if not files:
        raise BenchSkippedError("no real OCT images; set XDIST_REAL_DATA")
    torch.set_num_threads(1)
    yield from _cpu_rows(files)
    yield from _gpu_rows(files)
    yield _plan_row()
    yield _augmentation_row()


def _cpu_rows(files: list[Path]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        split = _packed(files, Path(folder))
        with _loader(split, "opencv") as opencv, _loader(split, "dali") as dali:
            times = _alternate(
                {
                    "opencv": lambda: _batches(opencv, split),
                    "dali": lambda: _batches(dali, split),
                    "torchvision": lambda: _torchvision_batches(files),
                }
            )
    about = f"{len(files)} real OCT files, 2 threads"
    details = {
        "unit": "CPU ms an image",
        "versions": versions("torch", "torchvision", "pillow", "opencv-python-headless", "nvidia-dali-cuda130"),
        "command": COMMAND,
    }
    theirs = times["torchvision"]
    yield compare(f"loader, opencv ({about})", times["opencv"], "torchvision", theirs, goal="ratio <= 0.25", **details)
    yield compare(f"loader, dali on CPU ({about})", times["dali"], "torchvision", theirs, **details)
    yield measured(TORCHVISION, theirs, **details)


def _packed(files: list[Path], folder: Path) -> Split:
    labels = sorted(n % 4 for n in range(len(files)))
    dataset = write_dataset(folder / "dataset", [path.read_bytes() for path in files], labels, rows_per_shard=1000)
    return open_split(dataset, "patient", "train", folder / "cache")


def _loader(split: Split, backend: Any, device: str = "cpu", threads: int = 2) -> Loader:
    return Loader(
        split,
        split.dataset.info,
        LoaderConfig(backend=backend),
        augment=AugmentConfig(),
        seed=0,
        device=torch.device(device),
        threads=threads,
    )


def _batches(loader: Loader, split: Split) -> Iterator[torch.Tensor]:
    everything = np.arange(split.num_images)
    requests = (Request(0, n, 0, n * len(everything), everything) for n in range(REPEATS))
    for batch in loader.load(requests):
        yield normalise(batch.images, MEAN, STD).contiguous()


def _torchvision_batches(files: list[Path]) -> Iterator[torch.Tensor]:
    from PIL import Image

    transform = _torchvision_transform()
    for _ in range(REPEATS):
        yield torch.stack([transform(Image.open(path).convert("RGB")) for path in files])


def _torchvision_transform() -> Callable[[Any], torch.Tensor]:
    declare_missing_operators()
    from torchvision import transforms

    composed: Callable[[Any], torch.Tensor] = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.8, 1.0)),
            transforms.RandomRotation(15),
            transforms.ColorJitter(brightness=0.2, contrast=0.2),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN * 3, STD * 3),
        ]
    )
    return composed


def _alternate(contenders: dict[str, Contender]) -> dict[str, list[float]]:
    """CPU milliseconds an image of each contender in each round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS + 1):
        for name, contender in contenders.items():
            times[name].append(_cpu_ms_an_image(contender))
    return {name: values[1:] for name, values in times.items()}


def _cpu_ms_an_image(contender: Contender) -> float:
    start_s, images = _cpu_s(), 0
    for batch in contender():
        assert batch.dtype == torch.float32
        assert batch.shape[1:] == (3, 224, 224)
        assert batch.is_contiguous()
        images += len(batch)
    return 1000 * (_cpu_s() - start_s) / images


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _gpu_rows(files: list[Path]) -> Iterator[Row]:
    """Throughput of the DALI graph on a GPU, where there is one: batches of 256, normalised on the device."""
    if not torch.cuda.is_available():
        return
    with tempfile.TemporaryDirectory() as folder:
        split = _packed(files, Path(folder))
        with _loader(split, "dali", "cuda", threads=16) as loader:
            rates = [_images_per_s(loader, split) for _ in range(ROUNDS + 1)][1:]
    yield measured(
        "loader, dali on the GPU, 16 threads, batches of 256",
        rates,
        unit="images/s",
        goal="19,000 (DALI's own floor for an RN50 pipeline on one Hopper)",
        versions=versions("torch", "nvidia-dali-cuda130"),
        hardware=f"{torch.cuda.get_device_name()}; {hardware()}",
        command=COMMAND,
    )


def _images_per_s(loader: Loader, split: Split) -> float:
    rows_of_batches = [np.arange(256) % split.num_images for _ in range(100)]
    requests = [Request(0, n, 0, 256 * n, rows) for n, rows in enumerate(rows_of_batches)]
    start_s = time.perf_counter()
    for batch in loader.load(requests):
        normalise(batch.images, MEAN, STD)
    torch.cuda.synchronize()
    return 256 * len(requests) / (time.perf_counter() - start_s)


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


def _augmentation_row() -> Row:
    widths, heights = np.full(256, 768), np.full(256, 496)
    view, config = View(image_size=224), AugmentConfig()
    times_ms = _wall_ms(lambda: draw_augmentation(config, view, widths, heights, seed=0, epoch=1, start=10_000))
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
