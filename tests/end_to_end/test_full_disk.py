"""A disk without room, as a user of the command meets it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.store import open_store
from dataloading.dataset import Dataset
from tests.end_to_end.commands import SMALL, copy_dataset, xdist_train

pytestmark = pytest.mark.ray

MountDisk = Callable[[int], Path]


@pytest.mark.slow
def test_a_cache_disk_smaller_than_the_data_is_said_before_the_run(
    s3: str, bands: Dataset, mount_disk: MountDisk
) -> None:
    """One paragraph with the folder, the room it has and what to do; nothing was fetched, and no run was begun."""
    copy_dataset(bands, f"{s3}/packed")
    cache = mount_disk(1)
    places = (f"data.uri={s3}/packed", f"storage.uri={s3}/runs", f"loader.cache_dir={cache}")
    done = xdist_train("train", "demo", *places, *SMALL, "run.name=run")
    assert done.returncode == 1
    (told,) = done.stderr.splitlines()
    assert f"loader.cache_dir: {cache} has no room for" in told
    assert "the disk has 1.0 MiB free" in told
    assert "set loader.cache_dir to a folder on a larger disk" in told
    assert (list(cache.rglob("*.arrow")), open_store(s3).list("runs")) == ([], [])


@pytest.mark.slow
def test_a_disk_that_fills_up_under_the_run_folder_ends_the_run_in_words(bands: Dataset, mount_disk: MountDisk) -> None:
    """One paragraph with the path and what is free there."""
    disk = mount_disk(2)
    places = (f"data.uri={bands.store.uri}", f"storage.uri={disk}/runs", f"loader.cache_dir={disk.parent}/cache")
    done = xdist_train("train", "demo", *places, *SMALL, "run.name=run", "checkpoint.every_steps=1")
    assert done.returncode == 1
    (told,) = done.stderr.splitlines()
    assert re.search(rf"{disk}/runs/run/\S+: cannot write \(No space left on device; 0\.\d MiB free", told)
    assert "Traceback" not in told
    assert "File " not in told
