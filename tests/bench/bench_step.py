"""What a run costs beside its arithmetic: CPU time of a step, ours on Ray against a plain torchrun script.

ResNet-18 at 96 px, 8 images a worker: a small step, so that what is not arithmetic shows. All decode the same real
OCT files by the same functions (`plain_training.py`), keep freed memory by the same environment, and compute on one
thread a worker; one of the two scripts has the optimiser's fused form too, so that what is left is not the
optimiser's. Ours is a whole run: loader with its threads, plan, records, signs of life, progress, gauges. All
live side by side and take turns of 8 steps (`turns.py`); CPU time is of the training processes alone. What Ray's own
processes use meanwhile, beside them, is a row of its own: gcs, raylet, agents, controller and its actors, the run's
monitor and the driver.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

from rich.console import Console

from cluster.processes import KEEPS_FREED_MEMORY
from tests.bench.plain_training import BATCH, CLASSES, FUSED, LR, MEAN, PLAIN, SIZE_PX, STD
from tests.bench.processes import cpu_s, descendants
from tests.bench.results import BenchSkippedError, Row, compare, measured, median_interval, versions
from tests.bench.turned_worker import OURS, run_turned_worker
from tests.bench.turns import STEPS, Turn, Turns, num_steps
from tests.dataloading.loading.packed import find_real_oct_files, write_dataset
from xdist_train.config import resolve_config
from xdist_train.training import worker
from xdist_train.training.launch import LaunchResult, launch

__all__ = ["rows"]

COMMAND = "python -m tests.bench step"
ROUNDS = 30
WORLDS = (1, 2)
_SCRIPTS = {PLAIN: "a plain torchrun script", FUSED: "the same with AdamW fused, as ours is"}
_ALONE = {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"}
_SETTINGS = (
    "model.backbone=resnet18",
    "optim.name=adamw",
    f"optim.lr={LR}",
    "optim.weight_decay=0",
    f"loader.image_size={SIZE_PX}",
    "augment.crop_scale=[0.8,1.0]",
    "augment.crop_ratio=[0.75,1.3333]",
    "augment.rotation_degrees=15",
    "schedule.name=constant",
    "schedule.warmup_epochs=0",
    "train.epochs=1",
    "evaluate.bootstrap=100",
    "evaluate.test=false",
)


def rows() -> Iterable[Row]:
    """CPU and wall time of a step, ours over theirs, for one worker and for two; and what runs beside the workers."""
    files = find_real_oct_files()
    if not files:
        raise BenchSkippedError("no real OCT images; set XDIST_REAL_DATA")
    details = {"versions": versions("ray", "torch", "opencv-python-headless"), "command": COMMAND}
    for size in WORLDS:
        turns, beside = _rounds(files, size)
        about = f"{size} worker(s), ResNet-18, {SIZE_PX} px, {BATCH} images each"
        cpu = {name: [1000 * sum(used.cpu_s for used in turn) / STEPS for turn in turns[name]] for name in turns}
        wall = {name: [1000 * max(used.wall_s for used in turn) / STEPS for turn in turns[name]] for name in turns}
        for name, theirs in _SCRIPTS.items():
            low, high = median_interval([one / other for one, other in zip(cpu[OURS], cpu[name], strict=True)])
            what = f"a step: {about} (95 % interval of the ratio {low:.3f} – {high:.3f})"
            goal = "ratio <= 1.03"
            yield compare(what, cpu[OURS], theirs, cpu[name], unit="CPU ms", goal=goal, **details)
            yield compare(f"a step: {about}", wall[OURS], theirs, wall[name], unit="ms", **details)
        what = f"Ray's own processes, monitor and driver, while {size} worker(s) train"
        yield measured(what, beside, unit="CPU s a second", **details)
    shares = [_data_wait_share(files, size) for size in WORLDS]
    what = f"share of an undisturbed epoch that rank 0 waits for data, {WORLDS} workers"
    yield measured(what, shares, unit="of the time", goal="< 0.02", **details)


def _data_wait_share(files: list[Path], size: int) -> float:
    """Of a run that takes no turns."""
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, _ALONE):
        config = resolve_config("demo", _settings(Path(name), files, size))
        seconds = launch(config, command=COMMAND, console=Console(quiet=True)).seconds
    return seconds["data_wait"] / seconds["train"]


def _rounds(files: list[Path], size: int) -> tuple[dict[str, list[list[Turn]]], list[float]]:
    """By contender its turns, each a figure a rank; CPU seconds a second beside our workers."""
    turns: dict[str, list[list[Turn]]] = defaultdict(list)
    beside: list[float] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "turns").mkdir()
        scripts = {kind: stack.enter_context(_plain_script(folder / "turns", kind, files, size)) for kind in _SCRIPTS}
        run = stack.enter_context(_our_run(folder, files, size))
        alive: dict[str, Callable[[], bool]] = {OURS: partial(_goes_on, run)}
        alive |= {kind: partial(_lives, script) for kind, script in scripts.items()}
        giving = {kind: Turns(folder / "turns", kind, size) for kind in alive}
        for kind, given in giving.items():
            given.wait(alive[kind])
        order = list(giving)
        for number in range(ROUNDS):  # each goes first as often as the others
            for kind in order[number % len(order) :] + order[: number % len(order)]:
                before, started = _beside(), time.perf_counter()
                turns[kind].append(giving[kind].give(alive[kind]))
                if kind == OURS:
                    workers = {used.pid for used in turns[kind][-1]}
                    spent = [value - before.get(pid, 0.0) for pid, value in _beside().items() if pid not in workers]
                    beside.append(sum(spent) / (time.perf_counter() - started))
        for given in giving.values():
            given.let_go()
    return turns, beside


def _lives(script: subprocess.Popen[bytes]) -> bool:
    return script.poll() is None


def _goes_on(run: Future[LaunchResult]) -> bool:
    """Whether our run does; what ended it is raised."""
    if run.done():
        run.result()
    return not run.done()


def _beside() -> dict[int, float]:
    """CPU seconds so far of this process and all that it started, the plain scripts left out."""
    found = {os.getpid(), *descendants(os.getpid())}
    return {pid: cpu_s(pid) for pid in found if b"plain_training" not in _command(pid)}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def _plain_script(folder: Path, name: str, files: list[Path], size: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    command += ["-m", "tests.bench.plain_training", str(folder), name, str(num_steps(ROUNDS)), *map(str, files)]
    environment = {**os.environ, **KEEPS_FREED_MEMORY, "OMP_NUM_THREADS": "1"}
    log = folder / f"{name}.log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
    try:
        yield process
        if process.wait(120):
            raise RuntimeError(f"the {name} script ended with {process.returncode}: {log.read_text()[-2000:]}")
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _our_run(folder: Path, files: list[Path], size: int) -> Iterator[Future[LaunchResult]]:
    """`xdist-train train` in a thread, on a Ray cluster of its own."""
    config = resolve_config("demo", _settings(folder, files, size))
    with (
        mock.patch.dict(os.environ, _ALONE),
        mock.patch.object(worker, "run_worker", run_turned_worker),
        ThreadPoolExecutor(1, "launch") as pool,
    ):
        run = pool.submit(launch, config, command=COMMAND, console=Console(quiet=True))
        try:
            yield run
        finally:
            Turns(folder / "turns", OURS, size).let_go()
        run.result()


def _settings(folder: Path, files: list[Path], size: int) -> list[str]:
    train, other = num_steps(ROUNDS) * BATCH * size, 4 * CLASSES
    images = [files[number % len(files)].read_bytes() for number in range(train + other)]
    labels = [number * CLASSES // len(images) for number in range(len(images))]
    splits = _splits(labels, other)
    dataset = write_dataset(folder / "data", images, labels, splits=splits, rows_per_shard=1000, rows_per_batch=1000)
    assert (dataset.info.mean, dataset.info.std) == ((0.25,), (0.2,)) == (MEAN, STD)
    return [
        *(f"data.uri={dataset.store.uri}", f"storage.uri={folder}/runs", f"loader.cache_dir={folder}/cache"),
        *(f"train.batch_size={BATCH * size}", f"scale.num_workers={size}", *_SETTINGS),
    ]


def _splits(labels: list[int], other: int) -> list[str]:
    """All train but a few of each class: half of those val, half test."""
    each = other // CLASSES
    splits = ["train"] * len(labels)
    for label in range(CLASSES):
        first = labels.index(label)
        for place in range(each):
            splits[first + place] = "val" if place < each // 2 else "test"
    return splits
