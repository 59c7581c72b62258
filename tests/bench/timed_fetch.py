"""Fetch a set into a new cache: `python -m tests.bench.timed_fetch URI CACHE` prints the seconds it took."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dataloading.dataset import open_dataset
from dataloading.loading.cache import open_split

__all__: list[str] = []


def main(uri: str, cache: Path) -> float:
    """Seconds from the address to a split that can be read."""
    started = time.perf_counter()
    open_split(open_dataset(uri), "patient", "train", cache)
    return time.perf_counter() - started


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2])))
