"""Objects appear whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster.errors import InputError, StoreError
from cluster.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "root"))


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


def test_errors_name_the_path(store: Store) -> None:
    """Missing, damaged, and a file where a folder must be."""
    with pytest.raises(StoreError, match="nothing"):
        store.read("nothing")
    store.write("torn", b"{")
    with pytest.raises(StoreError, match="torn"):
        store.read_json("torn")
    with pytest.raises(StoreError, match="torn"):
        store.write("torn/below", b"")


def test_schemes_that_cannot_be_used_are_refused() -> None:
    """The scheme is named; `file://` is a path."""
    with pytest.raises(InputError, match="gs://"):
        open_store("gs://bucket/x")
    assert Path("/x/y") == open_store("file:///x/y").root
