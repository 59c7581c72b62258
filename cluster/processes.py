"""Processes of this machine: where one stands, its end, its memory. Called on the node where the process runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

__all__ = ["ENDED", "GONE", "KEEPS_FREED_MEMORY", "end_process", "stack_of"]

ENDED, GONE = "was ended", "had ended before"

KEEPS_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
"""Environment of a process that keeps what it frees, instead of giving it to the kernel and asking for it again.

A step's activations are large, freed at its end and wanted again in the next: glibc maps each anew, and the kernel
clears every page of it. One arena, since those of threads are pieces of 64 MB, too small for an activation; what is set
from within a process comes too late for it. For processes that do the same again and again; another C library knows
none of it.
"""

_STACK_S = 20.0
_STACK_LINES = 100


def end_process(pid: int, title: str) -> str:
    """SIGKILL for a process, if its title begins as expected (a pid may have a new owner); what was done."""
    command = Path(f"/proc/{pid}/cmdline")
    if command.parent.parent.exists() and not _title(command).startswith(title):
        return GONE
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return GONE
    except PermissionError as error:
        return f"could not be ended ({error.strerror})"
    return ENDED


def stack_of(pid: int) -> str:
    """Stacks of a Python process that does not answer, read from outside by py-spy; why not, if that fails."""
    state = _state(pid)
    spy = Path(sys.executable).with_name("py-spy")
    program = str(spy) if spy.exists() else shutil.which("py-spy")
    if program is None:
        return f"{state}no stack: py-spy is not installed"
    try:
        done = subprocess.run(
            [program, "dump", "--nonblocking", "--pid", str(pid)], capture_output=True, text=True, timeout=_STACK_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{state}no stack: {error}"
    if done.returncode != 0:
        return f"{state}no stack: {' '.join(done.stderr.split())[:200]}"
    return state + "\n".join(done.stdout.splitlines()[:_STACK_LINES])


def _title(command: Path) -> str:
    try:
        return command.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _state(pid: int) -> str:
    """The kernel's word for what the process does, e.g. `T (stopped)`; empty where there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return ""
    return next((f"{line.split(':', 1)[1].strip()}\n" for line in lines if line.startswith("State:")), "")
