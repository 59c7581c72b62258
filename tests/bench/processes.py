"""What processes of this machine use, read from /proc: CPU time, memory of their own, who descends from whom."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cpu_s", "descendants", "private_bytes"]

_TICKS = os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> set[int]:
    """Processes that a process started, and those that they did."""
    parents = {int(path.parent.name): _stat(path)[1] for path in Path("/proc").glob("[0-9]*/stat") if _stat(path)}
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if int(parent) in new} - found
        found |= new
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, all its threads; 0 of one that has gone."""
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def private_bytes(pid: int) -> dict[str, int]:
    """Memory of a living process: `unique` is what would be free without it (USS, what `psutil` calls so), `own` the
    part of it that is not just a page of a file, which the kernel may take back at any time."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    unique, own = kib["Private_Clean"] + kib["Private_Dirty"], kib["Anonymous"]
    return {"unique": unique * 1024, "own": own * 1024}


def _stat(path: Path) -> list[str]:
    """Fields from the state on; none of a process that has gone."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []
