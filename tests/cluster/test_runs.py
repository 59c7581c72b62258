"""Who owns a run, and what may be published."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster.errors import InputError
from cluster.runs import RunFolder, StaleDriverError, list_runs, open_run
from cluster.store import open_store
from tests.records import RECORD


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


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ([], "status, heartbeat, attempts, complete"),
        ("text", "status, heartbeat, attempts, complete"),
        ({**RECORD, "status": 7}, "status"),
        ({**RECORD, "heartbeat": "now"}, "heartbeat"),
        ({**RECORD, "attempts": []}, "attempts"),
        ({**RECORD, "attempts": [1]}, "attempts"),
        ({**RECORD, "complete": [{}]}, "complete"),
        ({**RECORD, "selected": {"epoch": 1}}, "selected"),
        ({**RECORD, "seconds": {"train": "long"}}, "seconds"),
        ({**RECORD, "trials": "all"}, "trials"),
    ],
)
def test_a_record_of_another_shape_is_refused(record: object, names: str, tmp_path: Path) -> None:
    """In one paragraph; the other runs are listed beside it."""
    store = open_store(str(tmp_path))
    store.child("bad").write_json("run.json", record)
    store.child("good").write_json("run.json", RECORD)
    with pytest.raises(InputError, match=rf"bad/run.json is not what a run writes \({names} missing"):
        open_run(str(tmp_path / "bad")).read_record()
    listed = dict(list_runs(str(tmp_path)))
    assert RECORD == listed["good"]
    assert "unreadable" == listed["bad"]["status"]
    assert "is not what a run writes" in listed["bad"]["error"]


def test_runs_are_listed_and_opened(tmp_path: Path) -> None:
    """A folder with run.json is a run; others are not."""
    folder = _folder(tmp_path, "d")
    folder.publish_json("run.json", RECORD)
    (tmp_path / "other").mkdir()
    other = {**RECORD, "status": "running"}
    open_store(str(tmp_path)).child("search").write_json("search.json", other)
    assert list(list_runs(str(tmp_path))) == [("run", RECORD), ("search", other)]
    assert open_run(str(tmp_path / "run")).read_record() == RECORD
    with pytest.raises(InputError, match="no run folder"):
        open_run(str(tmp_path / "other"))
