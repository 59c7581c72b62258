"""`python -m tests.bench [NAME ...]`: run all benches or those named; their rows go to RESULTS.md.

A bench is a module `bench_NAME.py` here with a docstring whose first line is its title and a function
`rows() -> Iterable[Row]`. All that is measured, ours and theirs, has the environment of a worker.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from cluster.processes import KEEPS_FREED_MEMORY
from tests.bench.results import RESULTS_PATH, BenchSkippedError, write_section

__all__ = ["bench_names", "run_bench"]


def bench_names() -> list[str]:
    """The benches that are here, by their short names."""
    return sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def run_bench(name: str, results_path: Path) -> None:
    """Run one bench and replace its section; one that cannot run here leaves its section as it is."""
    module = importlib.import_module(f"tests.bench.bench_{name}")
    try:
        rows = list(module.rows())
    except BenchSkippedError as reason:
        print(f"{name}: skipped, {reason}")
        return
    write_section(results_path, f"bench_{name}", str(module.__doc__).splitlines()[0].rstrip("."), rows)
    for row in rows:
        ratio = "" if row.ratio is None else f", {row.ratio:.3g} of {row.against}"
        print(f"{name}: {row.what}: {row.median:.4g} {row.unit}{ratio} (goal: {row.goal or 'none'})")


def main(names: list[str]) -> int:
    """Run what was asked for."""
    unknown = sorted(set(names) - set(bench_names()))
    if unknown:
        print(f"no bench named {', '.join(unknown)}; there are {', '.join(bench_names())}", file=sys.stderr)
        return 2
    if not KEEPS_FREED_MEMORY.items() <= os.environ.items():  # read as a process starts
        os.execve(sys.executable, [sys.executable, "-m", "tests.bench", *names], {**os.environ, **KEEPS_FREED_MEMORY})
    for name in names or bench_names():
        run_bench(name, RESULTS_PATH)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
