"""The end of a process, its stack from outside, and its memory."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster.processes import end_process, stack_of

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
import resource, sys
import torch
from cluster.processes import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(50 * 2**20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so eagerly")
def test_freed_memory_is_kept() -> None:
    """The same 50 MiB again and again: without it each costs its 12,800 pages anew, or 100 larger ones."""
    faults = [
        int(subprocess.run([sys.executable, "-c", _AGAIN, word], capture_output=True, text=True, check=True).stdout)
        for word in ("", "keep")
    ]
    assert faults[0] > 100
    assert faults[1] < faults[0] / 10
