"""Data sets come to a node once, whole, and go when room is needed."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
import threading
from pathlib import Path

import pytest

from cluster.errors import InputError, StoreError
from cluster.store import Store, open_store
from dataloading.dataset import Dataset, open_dataset, shard_key
from dataloading.loading import node_cache
from dataloading.loading.cache import Split, count_classes, open_split, require_room
from dataloading.loading.node_cache import clear_cache, list_cache, make_room


@pytest.fixture
def remote(s3: str, gray_dataset: Dataset) -> Dataset:
    """The gray dataset in S3."""
    store = open_store(s3)
    for key in gray_dataset.store.walk():
        store.upload(gray_dataset.store.path(key), key)
    return open_dataset(s3)


def open_train(dataset: Dataset, cache: Path, **options: float) -> Split:
    """Its train split."""
    return open_split(dataset, "patient", "train", cache, **options)


def images(split: Split) -> list[bytes]:
    """Every picture's bytes."""
    return [split.image(row).tobytes() for row in range(len(split))]


def cached(dataset: Dataset, cache: Path) -> list[Path]:
    """Its shards on this node."""
    return sorted((cache / dataset.info.fingerprint / "shards").iterdir())


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys that are downloaded."""
    seen: list[str] = []
    download = Store.download

    def counted(store: Store, key: str, path: Path) -> None:
        seen.append(key)
        download(store, key, path)

    monkeypatch.setattr(Store, "download", counted)
    return seen


def test_a_remote_dataset_reads_as_the_local_one(remote, gray_dataset, tmp_path, downloads):
    """Each shard comes once, whoever asks at the same time; class counts need none of them."""
    counts = count_classes(remote, "patient")
    assert downloads == []
    splits: list[Split] = []
    openers = [threading.Thread(target=lambda: splits.append(open_train(remote, tmp_path / "c"))) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert sorted(downloads) == [shard_key(n) for n in range(5)]
    expected = open_train(gray_dataset, tmp_path / "other")
    assert [images(split) for split in splits] == [images(expected)] * 4
    assert counts["train"] == expected.class_counts


def test_a_damaged_cached_shard_is_fetched_again(remote, tmp_path, downloads):
    """A flipped byte in the cache costs one download; who has the old file open keeps it."""
    split = open_train(remote, tmp_path)
    before = images(split)
    path = cached(remote, tmp_path)[2]
    data = bytearray(path.read_bytes())
    data[700] ^= 0xFF
    path.unlink()
    path.write_bytes(data)
    downloads.clear()
    assert images(open_train(remote, tmp_path)) == before == images(split)
    assert downloads == [shard_key(2)]


def test_a_shard_damaged_in_the_store_is_refused(remote, tmp_path):
    """One flipped byte: it never enters the cache, and the error names the object and both digests."""
    data = bytearray(remote.store.read(shard_key(1)))
    data[700] ^= 0xFF
    remote.store.write(shard_key(1), data)
    found, packed = hashlib.sha256(data).hexdigest()[:12], remote.info.shards[1].sha256[:12]
    with pytest.raises(InputError, match=rf"{shard_key(1)} is damaged: its sha256 is {found}.*json says {packed}"):
        open_train(remote, tmp_path)
    assert "00001.arrow" not in [path.name for path in cached(remote, tmp_path)]
    remote.store.delete(shard_key(1))
    with pytest.raises(InputError, match=rf"{shard_key(1)} is missing"):
        open_train(remote, tmp_path)


def _die_holding(dataset: Dataset, cache: Path) -> None:
    """Download some, leave half a file, and be killed with the lock held."""
    done = []

    def download(store: Store, key: str, path: Path) -> None:
        path.write_bytes(b"half")
        done.append(key)
        os.kill(os.getpid(), signal.SIGKILL)

    Store.download = download
    open_train(dataset, cache)


def test_a_killed_downloader_is_taken_over_from(remote, gray_dataset, tmp_path):
    """Its lock goes with it, its half file goes too, and the next one ends with the right images."""
    holder = multiprocessing.get_context("spawn").Process(target=_die_holding, args=(remote, tmp_path / "c"))
    holder.start()
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    split = open_train(remote, tmp_path / "c")
    assert images(split) == images(open_train(gray_dataset, tmp_path / "other"))
    assert [path.name for path in cached(remote, tmp_path / "c")] == [f"0000{n}.arrow" for n in range(5)]


def fill(cache: Path, name: str, num_bytes: int, used_s: int) -> Path:
    """A data set of some size that nobody uses."""
    folder = cache / name
    folder.mkdir(parents=True)
    (folder / "shard").write_bytes(bytes(num_bytes))
    (folder / ".in-use").touch()
    os.utime(folder / ".in-use", (used_s, used_s))
    return folder


def test_the_least_recently_used_go_first_and_none_in_use(remote, tmp_path):
    """At a limit whole data sets are evicted, oldest first, as few as needed; one in use stays."""
    split = open_train(remote, tmp_path)
    names = [fill(tmp_path, f"dataset-{n}", 1 << 20, 1000 + n).name for n in (2, 1, 3)]
    os.utime(tmp_path / remote.info.fingerprint / ".in-use", (1, 1))
    assert [item.folder.name for item in list_cache(tmp_path)][1:] == sorted(names)
    make_room(tmp_path, tmp_path / "new", 2 << 20, limit_bytes=(4 << 20) + (1 << 19))
    assert [item.folder.name for item in list_cache(tmp_path)] == [remote.info.fingerprint, "dataset-2", "dataset-3"]
    with pytest.raises(StoreError, match=r"has no room for 5\.0 MiB .* loader\.cache_limit_gib allows 4\.0 MiB"):
        make_room(tmp_path, tmp_path / "new", 5 << 20, limit_bytes=4 << 20)
    assert len(list_cache(tmp_path)) == 3, "nothing is evicted in vain"
    assert [item.folder.name for item in clear_cache(tmp_path)] == ["dataset-2", "dataset-3"]
    assert (len(images(split)), [item.in_use for item in list_cache(tmp_path)]) == (len(split), [True])
    del split
    assert [item.source for item in clear_cache(tmp_path)] == [remote.store.uri]


def test_a_limit_below_the_dataset_is_refused(remote, tmp_path):
    """Said before a shard is fetched, by the check of a node and by the loader alike."""
    for ask in (require_room, lambda *given: open_train(given[0], given[1], limit_gib=given[2])):
        with pytest.raises(StoreError, match="must fit on each node's disk"):
            ask(remote, tmp_path, 1e-6)
    assert not (tmp_path / remote.info.fingerprint / "shards").exists()


def test_a_full_disk_is_said_before_and_while_downloading(remote, gray_dataset, mount_disk, tmp_path, monkeypatch):
    """Too small from the start, or filled by others meanwhile: one clear error, no half shard, and all of it later."""
    small_disk = mount_disk(1)
    with pytest.raises(StoreError, match=r"the disk has 1\.0 MiB free"):
        open_train(remote, small_disk)
    monkeypatch.setattr(node_cache, "_SPARE_BYTES", 0)
    (small_disk / "other").write_bytes(bytes(900 << 10))
    monkeypatch.setattr("dataloading.loading.shards.make_room", lambda *args: None)
    told = rf"loader\.cache_dir: {small_disk}/.*cannot write \(No space left on device; 0\.\d MiB free .*larger disk"
    with pytest.raises(StoreError, match=told):
        open_train(remote, small_disk)
    assert [path for path in small_disk.rglob("*") if path.name.startswith(".tmp-")] == []
    sizes = {shard_key(number): shard.bytes for number, shard in enumerate(remote.info.shards)}
    assert all(path.stat().st_size == sizes[f"shards/{path.name}"] for path in cached(remote, small_disk))
    (small_disk / "other").unlink()
    assert images(open_train(remote, small_disk)) == images(open_train(gray_dataset, tmp_path))


def test_a_file_that_may_not_grow_is_a_full_disk(remote, tmp_path):
    """Without rights to mount, a limit on file sizes stands for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot write \(File too large\)"):
            open_train(remote, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    digests = [shard.sha256 for shard in remote.info.shards]
    open_train(remote, tmp_path)
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in cached(remote, tmp_path)] == digests
