"""Peers run in a virtual environment of their own: it is made on first use, and a peer there answers line by line.

A peer is a program `peers/NAME.py` that reads one JSON object a line and prints one for each; whatever it loaded stays
loaded in between, so that contenders can take turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.results import BenchSkippedError

__all__ = ["Peer", "peer", "peer_python", "peer_versions"]

_HERE = Path(__file__).parent
_REQUIREMENTS = _HERE / "peers" / "requirements.txt"
_FOLDER = Path(os.environ.get("XDIST_PEERS_VENV") or _HERE.parents[1] / ".venv-peers")


def peer_python() -> Path:
    """The interpreter of the peers' environment; made anew where the requirements are others than it was made of.

    Raises:
        BenchSkippedError: it cannot be installed.
    """
    python, made_of = _FOLDER / "bin" / "python", _FOLDER / "made-of.txt"
    wanted = _REQUIREMENTS.read_text()
    if not (made_of.exists() and made_of.read_text() == wanted):
        print(f"installing the peers into {_FOLDER}: some minutes, once", flush=True)
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(_FOLDER)],
            [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(_REQUIREMENTS)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchSkippedError(f"the peers cannot be installed: {done.stderr.strip()[-500:]}")
        made_of.write_text(wanted)
    return python


def peer_versions(*packages: str) -> str:
    """Of the peers' requirements, for a row: `litdata 0.2.76`."""
    pins = dict(line.split("==") for line in _REQUIREMENTS.read_text().splitlines() if "==" in line)
    pins = {name.partition("[")[0]: pin for name, pin in pins.items()}
    return ", ".join(f"{package} {pins[package]}" for package in packages)


class Peer:
    """A peer's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **question: Any) -> dict[str, Any]:
        """Its answer.

        Raises:
            RuntimeError: it ended instead.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"peer {self._process.args} ended with {self._process.wait()} at {question}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def peer(name: str, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Peer]:
    """A program of `peers/`, for as long as the context lasts; what it says beside its answers goes to stderr."""
    command = [str(peer_python()), str(_HERE / "peers" / f"{name}.py"), *arguments]
    environment = {**os.environ, **(env or {}), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Peer(process)
        finally:
            process.kill()
