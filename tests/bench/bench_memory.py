"""What a set's size costs a worker: memory of its own at 1,000 and 84,000 images, times at up to a million.

One rank without Ray (`lone_worker.py`), looked at from outside every 0.1 s while it checks, opens, and trains from an
epoch's start and from its middle. The sets of the memory rows are of real OCT pictures, reduced to about 15 KB, each
shard with bytes of its own on the disk; those of the time rows have tiny pictures, and shards of one file under many
names, with a manifest of full size. `unique` is USS, pages of mapped files included while nobody else has them; `own`
leaves out what is just a page of a file. The first worker on a node makes the indexes, later ones find them. Up to a
hundred million images there are indexes alone (`lone_index.py`): all that a later worker reads of a set's size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2

from tests.bench.large_set import write_large_set
from tests.bench.processes import private_bytes
from tests.bench.results import BenchSkippedError, Row, compare, measured, versions
from tests.dataloading.loading.packed import encode_jpeg, find_real_oct_files, speckled_picture

__all__ = ["rows"]

COMMAND = "python -m tests.bench memory"
ROUNDS = 3
STEPS, FEW_STEPS = 80, 2
SMALL, LARGE = 1_000, 84_000
SIZES = (SMALL, LARGE, 1_000_000)
INDEX_SIZES = (LARGE, 1_000_000, 100_000_000)
GOAL_MB = 300
_LOOK_S = 0.1
_WIDTH_PX = 384


@dataclass(frozen=True)
class _Found:
    """Of one worker."""

    peaks: dict[str, float]
    """MB by kind."""
    seconds: dict[str, float]


def rows() -> Iterable[Row]:
    """Peaks at both sizes, cold and warm; parts of a start at three sizes."""
    files = find_real_oct_files()
    if not files:
        raise BenchSkippedError("no real OCT images; set XDIST_REAL_DATA")
    yield from _memory_rows([_reduced(path) for path in files])
    tiny = [encode_jpeg(speckled_picture(number, 24, 24)) for number in range(8)]
    yield from _time_rows(tiny)
    yield from _index_rows(tiny)


def _reduced(path: Path) -> bytes:
    """A real picture at a width that gives some 15 KB."""
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    height = picture.shape[0] * _WIDTH_PX // picture.shape[1]
    picture = cv2.resize(picture, (_WIDTH_PX, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()


def _memory_rows(pictures: list[bytes]) -> Iterator[Row]:
    details = {"unit": "MB", "versions": versions("torch", "pyarrow", "numpy"), "command": COMMAND}
    found = _measure(pictures, (SMALL, LARGE), STEPS, linked=False)
    for when in ("first", "later"):
        for kind in ("unique", "own"):
            small, large = ([one.peaks[kind] for one in found[size, when]] for size in (SMALL, LARGE))
            what = f"most memory ({kind}) of a {when} worker, {LARGE:,} images"
            goal = f"within {GOAL_MB} MB of {SMALL:,} images"
            row = compare(what, large, f"{SMALL:,} images", small, goal=goal, **details)
            yield row
            more = [one - other for one, other in zip(large, small, strict=True)]
            yield measured(f"{what}: more than at {SMALL:,}", more, goal=f"<= {GOAL_MB} MB", **details)


def _time_rows(pictures: list[bytes]) -> Iterator[Row]:
    details = {"unit": "ms", "versions": versions("torch", "pyarrow", "numpy"), "command": COMMAND}
    found = _measure(pictures, SIZES, FEW_STEPS, linked=True)
    for when in ("first", "later"):
        for part in found[SMALL, when][0].seconds:
            for size in SIZES:
                values = [1000 * one.seconds[part] for one in found[size, when]]
                yield measured(f"a {when} worker of {size:,} images: {part}", values, **details)


def _index_rows(pictures: list[bytes]) -> Iterator[Row]:
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_large_set(folder / "set", pictures, SMALL)
        for size in INDEX_SIZES * (ROUNDS + 1):
            command = [sys.executable, "-m", "tests.bench.lone_index", str(folder / "set"), str(folder), str(size)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            for part, value in json.loads(said).items():
                found.setdefault((part, size), []).append(value)
    for (part, size), values in sorted(found.items()):
        unit = "MB" if part.startswith("memory") else "ms"
        details = {"unit": unit, "versions": versions("torch", "numpy"), "command": COMMAND}
        yield measured(f"an index of {size:,} images: {part}", values[1:], **details)


def _measure(
    pictures: list[bytes], sizes: tuple[int, ...], steps: int, *, linked: bool
) -> dict[tuple[int, str], list[_Found]]:
    """What first and later workers of each size need, sizes in turns."""
    found: dict[tuple[int, str], list[_Found]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in sizes:
            write_large_set(folder / str(size), pictures, size, linked=linked)
        for number in range(ROUNDS):
            for when in ("first", "later"):
                for size in sizes:
                    one = _look_at_worker(folder / str(size), folder / f"cache-{number}", steps)
                    found.setdefault((size, when), []).append(one)
    return found


def _look_at_worker(dataset: Path, cache: Path, steps: int) -> _Found:
    command = [sys.executable, "-m", "tests.bench.lone_worker", str(dataset), str(cache), str(steps)]
    peaks = {"unique": 0.0, "own": 0.0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            try:
                now = private_bytes(process.pid)
            except (OSError, KeyError):  # it is about to end
                break
            peaks = {kind: max(peaks[kind], now[kind] / 1e6) for kind in peaks}
            time.sleep(_LOOK_S)
        said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a worker ended with {process.returncode}")
    return _Found(peaks, json.loads(said.splitlines()[-1]))
