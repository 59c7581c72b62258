"""The end of a process, its stack from outside, and its memory."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster.processes import KEEPS_FREED_MEMORY, end_process, stack_of

_CODE = "import sys, time\ndef stands_here():\n    print('up', flush=True)\n    time.sleep(600)\nstands_here()"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", _CODE], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_only_the_expected_process_is_ended(sleeper: subprocess.Popen[str]) -> None:
    """Another title is another process: a pid may have a new owner."""
    assert end_process(sleeper.pid, "ray::") == "had ended before"
    assert sleeper.poll() is None
    assert end_process(sleeper.pid, sys.executable) == "was ended"
    assert sleeper.wait(10) == -signal.SIGKILL
    assert end_process(sleeper.pid, sys.executable) == "had ended before"


def test_a_stopped_process_still_has_a_stack(sleeper: subprocess.Popen[str]) -> None:
    """SIGSTOP: the kernel's state and the function in which it stands, or a reason where that is not allowed."""
    os.kill(sleeper.pid, signal.SIGSTOP)
    os.waitpid(sleeper.pid, os.WUNTRACED)
    text = stack_of(sleeper.pid)
    assert text.startswith("T (stopped)")
    assert "stands_here" in text or "no stack" in text


def test_a_process_that_is_gone_has_no_stack() -> None:
    """A reason instead."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert "no stack" in stack_of(gone.pid)


_AGAIN = """
import resource, threading
import torch

def use():
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(80 * 2**20, dtype=torch.uint8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=use)  # a training runs on one
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so eagerly")
def test_freed_memory_is_kept() -> None:
    """The same 80 MiB again and again: without it each costs its 20,480 pages anew, or 160 larger ones."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = [
        int(subprocess.run([sys.executable, "-c", _AGAIN], env=env, capture_output=True, text=True, check=True).stdout)
        for env in (plain, plain | KEEPS_FREED_MEMORY)
    ]
    assert faults[0] > 150
    assert faults[1] < faults[0] / 10
