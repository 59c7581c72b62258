"""What tests of all packages share."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: with more threads than free cores small networks train a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

_REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images: `$XDIST_REAL_DATA`, by default `../shared/data` beside the repository."""
    folder = Path(os.environ.get("XDIST_REAL_DATA") or _REPOSITORY.parent / "shared" / "data")
    if not (folder / "oct_real").is_dir():
        pytest.skip(f"no real images: {folder}/oct_real is not there; set XDIST_REAL_DATA")
    return folder
