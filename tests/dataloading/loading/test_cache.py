"""The node's view of a dataset: right bytes, flat memory, damage found, several processes at once."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import pickle
import signal
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import InputError, StoreError
from dataloading.dataset import MANIFEST_KEY, Dataset, open_dataset, shard_key
from dataloading.loading import cache, shards
from dataloading.loading.cache import Split, cache_root, open_split
from dataloading.loading.node_cache import locked
from tests.dataloading.loading.packed import stand_in


def open_train(dataset: Dataset, cache_dir: Path) -> Split:
    """The train split by patient."""
    return open_split(dataset, "patient", "train", cache_dir)


def alter_one_byte(path: Path, offset: int) -> None:
    """Flip the bits of one byte, in place, as a bad disk would."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def test_rows_are_the_manifests_in_order_of_class(gray_dataset, tmp_path):
    """Each split's rows, ordered by (label, id), are exactly its images of the manifest."""
    manifest = gray_dataset.read_manifest().to_pylist()
    seen = 0
    for name in ("train", "val", "test"):
        expected = [image for image in manifest if image["patient_split"] == name]
        split = open_split(gray_dataset, "patient", name, tmp_path / "cache")
        rows = np.arange(split.num_images)
        assert split.ids(rows).tolist() == [image["id"] for image in expected]
        assert split.labels(rows).tolist() == [image["label"] for image in expected]
        assert split.widths(rows).tolist() == [image["width"] for image in expected]
        assert split.heights(rows).tolist() == [image["height"] for image in expected]
        assert split.class_counts == tuple(split.labels(rows).tolist().count(label) for label in range(3))
        seen += len(split)
    assert seen == len(manifest)


def test_images_are_the_packed_bytes(build_dataset, tmp_path):
    """`image` gives the bytes of its row, from any shard and record batch, and nobody can write to them."""
    images = [stand_in(bytes([number]) * (number + 1)) for number in range(17)]
    split = open_train(build_dataset(images, [0] * 17, rows_per_shard=7, rows_per_batch=3), tmp_path / "cache")
    assert [split.image(row).tobytes() for row in range(17)] == images
    assert not split.image(3).flags.writeable
    assert not split.image(3).flags.owndata


def test_few_files_are_open_at_a_time(gray_dataset, tmp_path, monkeypatch):
    """However many shards are read: a process may open fewer than a set has."""
    monkeypatch.setattr(cache, "_OPEN_FILES", 2)
    split = open_train(gray_dataset, tmp_path / "cache")
    before = len(os.listdir("/proc/self/fd"))
    assert all(len(split.image(row)) for row in range(len(split)))
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del split
    assert len(os.listdir("/proc/self/fd")) <= before


def test_pictures_leave_no_pages_behind(gray_dataset, tmp_path):
    """No part of a shard stays in the address space of who read all of it."""
    before = mapped_shards()
    split = open_train(gray_dataset, tmp_path / "cache")
    assert all(len(data) for data in split.images(split.records(np.arange(len(split)))))
    assert mapped_shards() <= before


def mapped_shards() -> set[str]:
    """Places in this process's memory where files of shards are; other tests may have left some."""
    return {line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".arrow")}


def test_a_shard_that_becomes_shorter_or_goes_is_a_sentence(gray_dataset, tmp_path):
    """Not a signal, as with a mapped file; whoever opens the split anew judges the file."""
    split = open_train(gray_dataset, tmp_path / "cache")
    path = gray_dataset.store.path(shard_key(0))
    os.truncate(path, 600)
    with pytest.raises(StoreError, match=r"00000\.arrow has become shorter"):
        split.image(0)
    path.unlink()
    split._open.cache_clear()
    with pytest.raises(StoreError, match=r"00000\.arrow of the data set cannot be read any more: .*No such file"):
        split.image(0)


def test_compressed_shards_are_refused(gray_dataset, tmp_path):
    """Pictures would not lie in the file as they are: said when the index is made, before anybody reads."""
    path = gray_dataset.store.path(shard_key(0))
    with pa.ipc.open_file(path) as reader:
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        schema = reader.schema
    with pa.ipc.new_file(path.with_suffix(".new"), schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        for batch in batches:
            file.write_batch(batch)
    path.with_suffix(".new").replace(path)
    with pytest.raises(InputError, match=r"00000\.arrow is compressed, and `pack` compresses no shards"):
        shards.picture_places(path)


def test_a_split_crosses_processes_as_its_address(gray_dataset, tmp_path):
    """A pickled split is small whatever it holds, and opens to the same images."""
    split = open_train(gray_dataset, tmp_path / "cache")
    data = pickle.dumps(split)
    again = pickle.loads(data)
    assert len(data) < 5000
    assert [again.image(r).tobytes() for r in range(5)] == [split.image(r).tobytes() for r in range(5)]


@pytest.mark.parametrize("offset", [0, 1000, -1])
def test_a_shard_altered_by_one_byte_is_refused(gray_dataset, tmp_path, offset):
    """Damage anywhere in a shard is an input error that names the file and what to do."""
    path = gray_dataset.store.path(shard_key(2))
    alter_one_byte(path, offset)
    with pytest.raises(InputError, match=r"00002\.arrow is damaged.*pack the source images again"):
        open_train(gray_dataset, tmp_path / "cache")


def test_a_shard_altered_after_it_was_verified_is_refused(gray_dataset, tmp_path):
    """A stamp holds only for the file that was checked."""
    open_train(gray_dataset, tmp_path / "cache")
    path = gray_dataset.store.path(shard_key(0))
    alter_one_byte(path, 500)
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match=r"00000\.arrow is damaged"):
        open_train(gray_dataset, tmp_path / "cache")


def test_a_wrong_shard_with_the_right_digest_is_refused(gray_dataset, tmp_path):
    """A file that is no Arrow file, or has other rows, is refused before its offsets are trusted."""
    path = gray_dataset.store.path(shard_key(1))
    for data, reason in (
        (b"not arrow at all", "not a readable shard"),
        (_shard_0(gray_dataset)[:-8], "readable"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=reason):
            open_train(_with_digest(gray_dataset, 1, data), tmp_path / "cache")
    last = gray_dataset.store.path(shard_key(len(gray_dataset.info.shards) - 1)).read_bytes()
    path.write_bytes(last)
    with pytest.raises(InputError, match="not a shard of 5 rows"):
        open_train(_with_digest(gray_dataset, 1, last), tmp_path / "cache")


def test_offsets_that_leave_the_shard_are_refused(build_dataset, tmp_path):
    """Well-formed Arrow whose offsets lead elsewhere is found before a reader follows them."""
    images = [stand_in(bytes(count)) for count in (11, 13, 17)]
    dataset = build_dataset(images, [0] * 3)
    ends = np.cumsum([0, *map(len, images)])
    offsets, wrong = ends.tobytes(), (ends + np.array([0, 0, 2400, 0])).tobytes()
    data = _shard_0(dataset).replace(offsets, wrong)
    assert data != _shard_0(dataset)
    dataset.store.path(shard_key(0)).write_bytes(data)
    with pytest.raises(InputError, match="not a readable shard"):
        open_train(_with_digest(dataset, 0, data), tmp_path / "cache")


def _shard_0(dataset: Dataset) -> bytes:
    return dataset.store.path(shard_key(0)).read_bytes()


def _with_digest(dataset: Dataset, number: int, data: bytes) -> Dataset:
    """The dataset as if a shard had been packed with these bytes."""
    import hashlib

    info = dataset.store.read_json("dataset.json")
    info["shards"][number] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    dataset.store.write_json("dataset.json", info)
    return open_dataset(dataset.store.uri)


def test_missing_shard_and_foreign_manifest_are_refused(gray_dataset, tmp_path):
    """What dataset.json lists must be there and be the same."""
    alter_one_byte(gray_dataset.store.path(MANIFEST_KEY), 100)
    with pytest.raises(InputError, match=r"manifest\.parquet is not the manifest"):
        open_train(gray_dataset, tmp_path / "cache")
    gray_dataset.store.path(shard_key(1)).unlink()
    with pytest.raises(InputError, match=r"00001\.arrow is missing"):
        open_train(gray_dataset, tmp_path / "cache")


def test_an_empty_split_is_refused(build_dataset, tmp_path):
    """A split without images says how many the others have."""
    dataset = build_dataset([stand_in(b"x"), stand_in(b"y")], [0, 1], splits=["train", "val"])
    with pytest.raises(InputError, match=r"no images for test \(train 1, val 1, test 0 images\)"):
        open_split(dataset, "patient", "test", tmp_path / "cache")


def test_shards_are_verified_once(gray_dataset, tmp_path, monkeypatch):
    """The second opening, of whatever split, reads no shard."""
    checked: list[Path] = []
    verify = shards._verify
    monkeypatch.setattr(shards, "_verify", lambda path, shard: (checked.append(path), verify(path, shard)))
    open_train(gray_dataset, tmp_path / "cache")
    open_split(gray_dataset, "fold:0/3", "val", tmp_path / "cache")
    assert sorted(checked) == [gray_dataset.store.path(shard_key(n)) for n in range(5)]


def test_the_cache_is_private_and_survives_damage(gray_dataset, tmp_path):
    """The folder is the user's alone; an unreadable list of verified shards only costs another check."""
    open_train(gray_dataset, tmp_path / "cache")
    folder = tmp_path / "cache" / gray_dataset.info.fingerprint
    assert oct(folder.stat().st_mode)[-3:] == "700"
    (folder / "verified.json").write_text("{ torn")
    open_train(gray_dataset, tmp_path / "cache")
    assert len(json.loads((folder / "verified.json").read_text())) == len(gray_dataset.info.shards)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".tmp")] == []


def test_an_unusable_cache_folder_is_a_clear_error(gray_dataset, tmp_path):
    """A file where the folder should be is named, with the setting to change."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"loader\.cache_dir: .*file"):
        open_train(gray_dataset, tmp_path / "file")


def test_a_fingerprint_cannot_lead_out_of_the_cache(gray_dataset, tmp_path):
    """The fingerprint names a folder, so only what `pack` writes is taken."""
    info = gray_dataset.store.read_json("dataset.json") | {"fingerprint": "../../elsewhere"}
    gray_dataset.store.write_json("dataset.json", info)
    with pytest.raises(InputError, match="fingerprint"):
        open_train(open_dataset(gray_dataset.store.uri), tmp_path / "cache")


def _hold_lock(folder: Path, held: multiprocessing.synchronize.Event) -> None:
    with locked(folder):
        held.set()
        signal.pause()


def test_the_lock_survives_a_killed_holder(tmp_path):
    """A process killed while it holds the lock leaves it free."""
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold_lock, args=(tmp_path, held))
    holder.start()
    assert held.wait(30)
    holder.kill()
    with locked(tmp_path):
        pass
    holder.join()


def test_the_lock_keeps_others_out(tmp_path):
    """While one holds the folder no other can."""
    with locked(tmp_path), (tmp_path / ".lock").open("a") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_many_openers_at_once_agree(gray_dataset, tmp_path):
    """Openers that arrive together wait for the first and find the same images."""
    counts: list[tuple[int, ...]] = []
    openers = [
        threading.Thread(target=lambda: counts.append(open_train(gray_dataset, tmp_path / "cache").class_counts))
        for _ in range(6)
    ]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert counts == [open_train(gray_dataset, tmp_path / "cache").class_counts] * 6


def test_cache_root_is_the_users_unless_configured(tmp_path, monkeypatch):
    """Empty means the home folder's cache."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (cache_root(), cache_root("/x/y")) == (tmp_path / ".cache/xdist-train", Path("/x/y"))
