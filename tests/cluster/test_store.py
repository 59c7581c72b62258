"""Objects appear whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pyarrow.fs import FileSelector, FileType, copy_files

from cluster.errors import InputError, MissingObjectError, StoreError
from cluster.store import Store, open_parent, open_store, ray_filesystem
from tests.seaweed import ACCESS_KEY, SECRET_KEY


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """One contract, two storages."""
    return open_store(str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3"))


def test_what_is_written_is_read(store: Store) -> None:
    """Bytes and JSON, in folders that are made on the way."""
    store.write("a/b.bin", b"\x00\x01")
    store.write_json("a/c.json", {"x": [1]})
    assert (store.read("a/b.bin"), store.read_json("a/c.json")) == (b"\x00\x01", {"x": [1]})
    assert store.list("a") == ["b.bin", "c.json"]


def test_a_reader_sees_old_or_new(store: Store) -> None:
    """While one object is replaced again and again, every read is one of the values, never a mixture."""
    values = [bytes([n]) * 100_000 for n in range(8)]
    store.write("x", values[0])
    writer = threading.Thread(target=lambda: [store.write("x", value) for value in values * 5])
    writer.start()
    seen = set()
    while writer.is_alive():
        seen.add(store.read("x"))
    writer.join()
    assert seen <= set(values)
    assert store.list() == ["x"]


def test_create_gives_a_key_to_one_writer(store: Store) -> None:
    """Of many that race for a key exactly one wins, and its bytes stay."""
    won: list[int] = []
    threads = [threading.Thread(target=lambda n=n: store.create("k", bytes([n])) and won.append(n)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.read("k")] == [bytes([n]) for n in won]


def test_of_two_processes_that_create_one_wins(store: Store) -> None:
    """A claim holds between processes too."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        won = pool.starmap(_create, [(store, b"first"), (store, b"second")])
    assert sorted(won) == [False, True]
    assert store.read("claim") == (b"first", b"second")[won.index(True)]


def _create(store: Store, data: bytes) -> bool:
    return store.create("claim", data)


def test_folders_are_listed_walked_and_deleted(store: Store) -> None:
    """`entries` tells folders from objects, `walk` finds every key, deleting a missing object is nothing."""
    for key in ("a", "f/b", "f/g/c", "fa"):
        store.write(key, b"12")
    assert [(entry.name, entry.is_folder) for entry in store.entries()] == [("a", False), ("f", True), ("fa", False)]
    assert sorted(store.walk()) == ["a", "f/b", "f/g/c", "fa"]
    assert sorted(store.walk("f")) == ["f/b", "f/g/c"]
    assert (store.info("a").num_bytes, store.info("f"), store.info("none")) == (2, None, None)
    assert [store.exists(key) for key in ("", "a", "f", "none")] == [True, True, True, False]
    store.delete("a")
    store.delete("a")
    store.delete_tree("f")
    assert (list(store.walk()), store.list()) == (["fa"], ["fa"])
    assert list(store.child("f").walk()) == []


def test_large_objects_travel_in_pieces(store: Store, tmp_path: Path) -> None:
    """Upload, ranges and download of 40 MiB give the same bytes."""
    data = np.random.default_rng(0).bytes(40 << 20)
    (tmp_path / "up").write_bytes(data)
    store.upload(tmp_path / "up", "big")
    with store.open_reader("big") as stream:
        stream.seek(17 << 20)
        assert stream.read(1000) == data[17 << 20 : (17 << 20) + 1000]
    store.download("big", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == data == store.read("big")


def test_an_aborted_write_leaves_what_was(store: Store) -> None:
    """Until it is closed a writer changes nothing, however much it has sent."""
    store.write("x", b"old")
    writer = store.open_writer("x")
    writer.write(bytes(17 << 20))
    writer.abort()
    assert (store.read("x"), store.list()) == (b"old", ["x"])


def test_a_store_is_pickled_without_credentials(store: Store) -> None:
    """What crosses processes is the URI; it opens to the same objects, and so does the filesystem for Ray."""
    store.write("x", b"1")
    filesystem, path = ray_filesystem(store.uri)
    data = pickle.dumps(store) + pickle.dumps(filesystem)
    secrets = (SECRET_KEY, ACCESS_KEY, os.environ.get("AWS_ENDPOINT_URL", SECRET_KEY))
    assert [secret for secret in secrets if secret.encode() in data] == []
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"
    assert pickle.loads(pickle.dumps(filesystem)).open_input_stream(f"{path}/x").readall() == b"1"


def test_a_forked_process_reads_and_writes(store: Store) -> None:
    """Connections are not shared with a parent."""
    store.write("x", b"1")
    child = os.fork()
    if not child:
        try:
            store.write("y", store.read("x"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert store.read("y") == b"1"


def test_arrow_copies_folders_both_ways(store: Store, tmp_path: Path) -> None:
    """Ray's checkpoint traffic: create, upload, list, download, delete; a stream dropped unclosed leaves nothing."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "x").write_bytes(b"1" * 100_000)
    (tmp_path / "in" / "empty").write_bytes(b"")
    filesystem, root = ray_filesystem(store.uri)
    filesystem.create_dir(f"{root}/ck")
    copy_files(str(tmp_path / "in"), f"{root}/ck", destination_filesystem=filesystem)
    copy_files(f"{root}/ck", str(tmp_path / "out"), source_filesystem=filesystem)
    assert [(tmp_path / "out" / name).read_bytes() for name in ("sub/x", "empty")] == [b"1" * 100_000, b""]
    stream = filesystem.open_output_stream(f"{root}/torn")
    stream.write(b"1" * 1000)
    del stream
    kinds = [(info.base_name, info.type) for info in filesystem.get_file_info(FileSelector(root))]
    assert kinds == [("ck", FileType.Directory)]
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_file(f"{root}/none")
    filesystem.delete_dir(f"{root}/ck")
    assert filesystem.get_file_info(f"{root}/ck").type == FileType.NotFound


def test_a_usable_store_is_tried_without_a_trace(store: Store) -> None:
    """What a run asks of a store works here, and nothing is left."""
    store.try_out()
    assert store.list() == []


def test_errors_name_the_path(store: Store) -> None:
    """Missing, damaged, and a file where a folder must be."""
    with pytest.raises(StoreError, match="nothing"):
        store.read("nothing")
    with pytest.raises(MissingObjectError, match="nothing"):
        store.open_reader("nothing")
    store.write("torn", b"{")
    with pytest.raises(InputError, match="torn"):
        store.read_json("torn")


def test_what_is_too_large_is_not_read(store: Store) -> None:
    """The limit is checked before the bytes come; an object of just that size is read."""
    store.write("x", b"12345")
    assert b"12345" == store.read("x", 5)
    with pytest.raises(InputError, match=r"x has .* and at most"):
        store.read("x", 4)


def test_a_file_where_a_folder_must_be_is_an_error(tmp_path: Path) -> None:
    """On a disk a name is one or the other."""
    (tmp_path / "torn").write_bytes(b"")
    with pytest.raises(StoreError, match="torn"):
        open_store(str(tmp_path)).write("torn/below", b"")


def test_a_full_disk_is_an_error_with_the_path_and_what_is_free(
    mount_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    """However the bytes come: what was there stays whole, and nothing half-written is left."""
    folder = mount_disk(1)
    store = open_store(str(folder / "runs"))
    store.write("x", b"old")
    (folder / "other").write_bytes(bytes(700 << 10))
    data = bytes(400 << 10)
    (tmp_path / "up").write_bytes(data)
    filesystem, root = ray_filesystem(store.uri)

    def through_arrow() -> None:
        with filesystem.open_output_stream(f"{root}/x") as stream:
            stream.write(data)

    for write in (
        lambda: store.write("x", data),
        lambda: store.create("new/x", data),
        lambda: store.upload(tmp_path / "up", "x"),
        through_arrow,
    ):
        with pytest.raises(StoreError, match=rf"{folder}.*/x: cannot write \(No space left on device; 0\.\d MiB free"):
            write()
    assert (store.read("x"), [path.name for path in folder.rglob("*") if path.is_file()]) == (b"old", ["other", "x"])


def test_schemes_that_cannot_be_used_are_refused() -> None:
    """The scheme is named; `file://` is a path."""
    with pytest.raises(InputError, match="gs://"):
        open_store("gs://bucket/x")
    with pytest.raises(InputError, match="s3://BUCKET/PREFIX"):
        open_store("s3://key:secret@bucket/x")
    assert Path("/x/y") == open_store("file:///x/y").root


def test_a_file_has_a_folder_and_a_name(tmp_path: Path) -> None:
    """By path or URI; what ends like a folder is refused."""
    for uri, folder, name in (
        (f"{tmp_path}/a/b.csv", f"{tmp_path}/a", "b.csv"),
        ("b.csv", str(Path.cwd()), "b.csv"),
        ("/b.csv", "/", "b.csv"),
        ("s3://bucket/x/b.csv", "s3://bucket/x", "b.csv"),
    ):
        store, key = open_parent(uri)
        assert (folder, name) == (store.uri, key)
    for uri in (f"{tmp_path}/", "..", "s3://bucket/x/"):
        with pytest.raises(InputError, match="is a folder"):
            open_parent(uri)
