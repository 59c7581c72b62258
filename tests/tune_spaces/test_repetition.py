"""A repetition at work: order, room, failures, and that any end loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.runs import StaleDriverError
from dataloading.dataset import Dataset
from tests.tune_spaces.made_up_parts import open_repetition, part_of, record_of, run_parts, write_part, write_small
from tune_spaces.repetition import Repetition


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """36 images of 3 classes."""
    return write_small(tmp_path_factory.mktemp("repetition") / "set")


def _statuses(repetition: Repetition) -> dict[str, str]:
    return {part.name: row.status for part, row in repetition.rows()}


def test_every_part_runs_once_on_its_own_fold_and_seed(small: Dataset, tmp_path: Path) -> None:
    """Evaluated on test, resumable, under parts/; run.json lists them with their own figure on test."""
    repetition = open_repetition(tmp_path, small, seeds=(0, 5))
    task = repetition.next()
    assert task is not None
    config = task.config
    assert ("fold0-seed0", "parts", "fold:0/3", 0) == (task.name, task.place, config.data.split, config.train.seed)
    assert (True, "auto", False) == (config.evaluate.test, config.run.resume, config.cam.after)
    write_part(repetition.folder, task, small)
    repetition.end(task.name)
    assert ["fold1-seed0", "fold2-seed0", "fold0-seed5", "fold1-seed5", "fold2-seed5"] == run_parts(repetition, small)
    parts = record_of(repetition)["parts"]
    assert {"finished"} == {part["status"] for part in parts}
    figures = repetition.run_of(part_of(repetition, "fold1-seed5")).read_json("evaluation/test.json")
    assert figures["balanced_accuracy"]["value"] == parts[4]["value"]
    assert 60.0 == record_of(repetition)["worker_seconds"]


def test_no_more_run_than_there_is_room_for(small: Dataset, tmp_path: Path) -> None:
    """`next` waits for an end; what is at work is said so."""
    repetition = open_repetition(tmp_path, small, concurrency=2)
    first, second = repetition.next(), repetition.next()
    assert first is not None
    assert second is not None
    assert repetition.next() is None
    assert ["running", "running", "stopped"] == [*_statuses(repetition).values()]
    write_part(repetition.folder, first, small)
    repetition.end(first.name)
    third = repetition.next()
    assert third is not None
    assert "fold2-seed0" == third.name


def test_another_start_does_what_is_left(small: Dataset, tmp_path: Path) -> None:
    """Killed with one part finished and one at work: the finished one is kept, the other goes on first."""
    killed = open_repetition(tmp_path, small)
    run_parts(killed, small, limit=1)
    at_work = killed.next()
    assert at_work is not None
    write_part(killed.folder, at_work, small, status="running")
    again = open_repetition(tmp_path, small)
    assert {"fold0-seed0": "finished", "fold1-seed0": "stopped", "fold2-seed0": "stopped"} == _statuses(again)
    assert ["fold1-seed0", "fold2-seed0"] == run_parts(again, small)
    with pytest.raises(StaleDriverError):
        killed.write()


def test_seeds_may_be_added(small: Dataset, tmp_path: Path) -> None:
    """Only the new ones are trained."""
    run_parts(open_repetition(tmp_path, small), small)
    more = open_repetition(tmp_path, small, seeds=(0, 1))
    assert ["fold0-seed1", "fold1-seed1", "fold2-seed1"] == run_parts(more, small)


def test_a_failed_part_is_named_and_the_others_go_on(small: Dataset, tmp_path: Path) -> None:
    """It is not tried again in this start; another one does."""
    said: list[str] = []
    repetition = open_repetition(tmp_path, small, changed=said.append)
    assert 3 == len(run_parts(repetition, small, failing=["fold1-seed0"]))
    assert "part fold1-seed0 failed: non_finite_loss: the loss is NaN" in said
    assert ["finished", "failed", "finished"] == [*_statuses(repetition).values()]
    assert "non_finite_loss: the loss is NaN" == record_of(repetition)["parts"][1]["reason"]
    assert ["fold1-seed0"] == run_parts(open_repetition(tmp_path, small), small)


def test_the_clusters_fault_is_tried_once_more_and_then_ends_all(small: Dataset, tmp_path: Path) -> None:
    """No room is no fault of a part: what is left can go on when there is some."""
    repetition = open_repetition(tmp_path, small)
    reason: dict[str, Any] = {"kind": "no_room", "message": "a node is away"}
    names = []
    while task := repetition.next():
        failed = {"status": "failed", "reason": reason} if task.name == "fold0-seed0" else {}
        write_part(repetition.folder, task, small, **failed)
        repetition.end(task.name)
        names.append(task.name)
    assert ["fold0-seed0", "fold1-seed0", "fold2-seed0", "fold0-seed0"] == names
    assert repetition.stopping
    assert "fold0-seed0 cannot be run here: no_room: a node is away" == repetition.trouble


def test_a_part_that_is_stopped_is_left_for_later(small: Dataset, tmp_path: Path) -> None:
    """Nothing more starts, and the part is not said to have failed."""
    repetition = open_repetition(tmp_path, small)
    task = repetition.next()
    assert task is not None
    repetition.stopping = True
    write_part(repetition.folder, task, small, status="stopped")
    repetition.end(task.name)
    assert repetition.next() is None
    assert {"stopped"} == {*_statuses(repetition).values()}
    assert ["fold0-seed0", "fold1-seed0", "fold2-seed0"] == run_parts(open_repetition(tmp_path, small), small)


def test_a_part_whose_process_went_without_a_word_has_failed(small: Dataset, tmp_path: Path) -> None:
    """With what its driver knows of it; twice, and it counts as the part's own fault."""
    repetition = open_repetition(tmp_path, small)
    for _ in range(2):
        task = repetition.next()
        while task is not None and task.name != "fold0-seed0":
            write_part(repetition.folder, task, small)
            repetition.end(task.name)
            task = repetition.next()
        assert task is not None
        repetition.end(task.name, "lost_workers: the process that drove it ended")
    assert repetition.next() is None
    assert not repetition.stopping
    assert "lost_workers: the process that drove it ended" == record_of(repetition)["parts"][0]["reason"]


def test_a_beat_says_how_parts_stand(small: Dataset, tmp_path: Path) -> None:
    """At once where something is new."""
    repetition = open_repetition(tmp_path, small)
    repetition.next()
    repetition.beat()
    assert ["running", "stopped", "stopped"] == [part["status"] for part in record_of(repetition)["parts"]]
