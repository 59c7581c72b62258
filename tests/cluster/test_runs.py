"""Who owns a run, and what may be published."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster.errors import InputError
from cluster.runs import RunFolder, StaleDriverError, list_runs, open_run
from cluster.store import open_store


def _folder(tmp_path: Path, driver: str) -> RunFolder:
    return RunFolder(open_store(str(tmp_path)).child("run"), driver)


def test_a_stale_driver_cannot_publish(tmp_path: Path) -> None:
    """After a second start has claimed the run, the first can write nothing, and what it wrote stays."""
    old, new = _folder(tmp_path, "old"), _folder(tmp_path, "new")
    assert (old.claim(), 0 or _publish_and_claim(old, new)) == (1, 2)
    with pytest.raises(StaleDriverError, match="attempt 2"):
        old.publish("model/x", b"late")
    new.publish("model/y", b"new")
    assert new.store.list("model") == ["x", "y"]
    assert new.store.read("model/x") == b"early"


def _publish_and_claim(old: RunFolder, new: RunFolder) -> int:
    old.publish("model/x", b"early")
    return new.claim()


def test_one_name_goes_to_one_of_many_starts(tmp_path: Path) -> None:
    """Of 8 drivers that start the same new run at once, one gets it."""
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: numbers.append(_folder(tmp_path, str(n)).claim_new())) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [0] * 7 + [1]


def test_racing_attempts_get_numbers_of_their_own(tmp_path: Path) -> None:
    """8 resuming drivers get attempts 1 to 8, and the holder of 8 owns the run."""
    claimed: dict[int, RunFolder] = {}

    def claim(name: str) -> None:
        folder = _folder(tmp_path, name)
        claimed[folder.claim()] = folder

    threads = [threading.Thread(target=claim, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(range(1, 9)) == sorted(claimed)
    claimed[8].check_owner()
    with pytest.raises(StaleDriverError):
        claimed[7].check_owner()


def test_runs_are_listed_and_opened(tmp_path: Path) -> None:
    """A folder with run.json is a run; others are not."""
    folder = _folder(tmp_path, "d")
    folder.publish_json("run.json", {"status": "running"})
    (tmp_path / "other").mkdir()
    open_store(str(tmp_path)).child("search").write_json("search.json", {"status": "finished"})
    assert list(list_runs(str(tmp_path))) == [("run", {"status": "running"}), ("search", {"status": "finished"})]
    assert open_run(str(tmp_path / "run")).read_record() == {"status": "running"}
    with pytest.raises(InputError, match="no run folder"):
        open_run(str(tmp_path / "other"))
