"""A search at work: order, limits, early stops, failures, and that any kill loses nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from cluster.runs import StaleDriverError
from cluster.store import open_store
from tests.tune_spaces.made_up import Clock, figure_of, open_search, run_all, run_task, write_run
from tests.tune_spaces.written import write_space
from tune_spaces.leaderboard import Leaderboard
from xdist_train.config import resolve_config


def _facts(board: Leaderboard) -> list[tuple[Any, ...]]:
    rows = sorted(board.rows, key=lambda row: row.number)
    return [(row.name, row.status, row.reason, row.figure, row.epochs, row.curve) for row in rows]


def _outcomes(board: Leaderboard) -> list[tuple[str, str, str]]:
    """Of each trial what it tried and how it ended, not how far it came."""
    return [(row.name, row.status, row.reason) for row in sorted(board.rows, key=lambda row: row.number)]


def test_all_trials_run_best_first(tmp_path: Path) -> None:
    """As many as asked for, the recipe's own first; the leaderboard is by figure."""
    search = open_search(tmp_path)
    run_all(search)
    board = search.board("finished")
    assert 5 == len(board.rows)
    assert sorted((row.figure or 0 for row in board.rows), reverse=True) == [row.figure for row in board.rows]
    assert board.best == board.rows[0].name
    own = board.row(board.own)
    assert own is not None
    assert (0, {"optim.lr": 0.004, "optim.name": "adamw"}) == (own.number, own.values)


def test_a_loss_is_best_when_least(tmp_path: Path) -> None:
    """The direction is the metric's."""
    search = open_search(tmp_path, "train.metric=loss")
    run_all(search)
    figures = [row.figure or 0 for row in search.board().rows]
    assert sorted(figures) == figures


def test_no_more_run_than_there_is_room_for(tmp_path: Path) -> None:
    """`next` waits for an end."""
    search = open_search(tmp_path, concurrency=2, trials=3)
    first, second = search.next(), search.next()
    assert first is not None
    assert second is not None
    assert search.next() is None
    assert [first.name, second.name] == [task.name for task in search.live]
    run_task(search, first)
    third = search.next()
    assert third is not None
    assert search.next() is None
    run_task(search, second)
    run_task(search, third)
    assert search.next() is None
    assert search.live == []


def test_asha_stops_the_worse(tmp_path: Path) -> None:
    """Some after the first epoch, some after the third; what is stopped says by what, and stands below."""
    search = open_search(tmp_path, scheduler="asha", trials=20)
    run_all(search)
    board = search.board()
    statuses = [row.status for row in board.rows]
    assert statuses.count("finished") == statuses.index("pruned")
    assert {"asha after epoch 1", "asha after epoch 3"} == {row.reason for row in board.rows if row.status == "pruned"}
    assert {1, 3} == {row.epochs for row in board.rows if row.status == "pruned"}
    assert all(row.epochs == 9 for row in board.rows if row.status == "finished")


@pytest.mark.parametrize(("scheduler", "kills"), [("none", 1), ("asha", 4)])
def test_a_killed_search_ends_as_an_undisturbed_one(scheduler: str, kills: int, tmp_path: Path) -> None:
    """Killed in any epoch of any trial, as often as one likes: same trials, same stops, none twice."""
    whole = open_search(tmp_path / "whole", scheduler=scheduler, sampler="tpe", trials=14)
    run_all(whole)
    for at in range(1, kills + 1):
        search = open_search(tmp_path / "killed", scheduler=scheduler, sampler="tpe", trials=14)
        for _ in range(2):
            task = search.next()
            assert task is not None
            run_task(search, task)
        task = search.next()
        assert task is not None
        run_task(search, task, epochs=at)
    last = open_search(tmp_path / "killed", scheduler=scheduler, sampler="tpe", trials=14)
    run_all(last)
    assert _facts(whole.board()) == _facts(last.board())


def test_what_has_ended_is_not_run_again(tmp_path: Path) -> None:
    """Not even if its driver died before it could tell."""
    search = open_search(tmp_path)
    task = search.next()
    assert task is not None
    write_run(search, task, "finished", {1: 0.4, 2: 0.5})
    again = open_search(tmp_path)
    following = again.next()
    assert following is not None
    assert (1, 0.5) == (following.number, again.board().rows[0].figure)


def test_a_verdict_outlives_its_driver(tmp_path: Path) -> None:
    """A trial that was to stop when the driver was killed is stopped by the next one."""
    search = open_search(tmp_path, scheduler="asha", trials=30)
    while True:
        task = search.next()
        assert task is not None
        if search.report(task.name, 1, figure_of(task.config, 1)):
            break
        run_task(search, task)
    write_run(search, task, "running", {1: figure_of(task.config, 1)})
    again = open_search(tmp_path, scheduler="asha", trials=30)
    assert task.name == getattr(again.next(), "name", "")
    assert again.is_pruned(task.name)


def test_a_verdict_stands_though_the_trial_was_faster(tmp_path: Path) -> None:
    """A trial that ends before it hears that it is to stop changes nothing of what the search tries next."""
    whole = open_search(tmp_path / "whole", scheduler="asha", sampler="tpe", trials=14)
    run_all(whole)
    fast = open_search(tmp_path / "fast", scheduler="asha", sampler="tpe", trials=14)
    outran = 0
    while (task := fast.next()) is not None:
        curve = {epoch: figure_of(task.config, epoch) for epoch in range(1, task.config.train.epochs + 1)}
        verdicts = [fast.report(task.name, epoch, figure) for epoch, figure in curve.items()]
        outran += any(verdicts)
        write_run(fast, task, "finished", curve)
        fast.end(task.name)
    assert outran > 0
    again = open_search(tmp_path / "fast", scheduler="asha", sampler="tpe", trials=14)
    for search in (fast, again):
        assert _outcomes(whole.board()) == _outcomes(search.board())
        assert {9} == {row.epochs for row in search.board().rows}


@pytest.mark.parametrize("status", ["running", "stopped", "finished"])
@pytest.mark.parametrize("heard", [True, False])
def test_what_comes_after_a_lost_driver_is_as_if_it_lived(status: str, heard: bool, tmp_path: Path) -> None:
    """The trial that it would have stopped, or had stopped, went on without it, by as many epochs as there was time."""
    whole = open_search(tmp_path / "whole", scheduler="asha", sampler="tpe", trials=14)
    run_all(whole)
    search = open_search(tmp_path / "killed", scheduler="asha", sampler="tpe", trials=14)
    stopped = min(row.number for row in whole.board().rows if row.status == "pruned")
    for _ in range(stopped):
        task = search.next()
        assert task is not None
        run_task(search, task)
    task = search.next()
    assert task is not None
    curve = {epoch: figure_of(task.config, epoch) for epoch in range(1, 10)}
    if heard:
        for epoch in (1, 2, 3):
            search.report(task.name, epoch, curve[epoch])
    write_run(search, task, status, curve)
    again = open_search(tmp_path / "killed", scheduler="asha", sampler="tpe", trials=14)
    while (task := again.next()) is not None:
        if again.is_pruned(task.name):
            write_run(again, task, "pruned", curve)
            again.end(task.name)
        else:
            run_task(again, task)
    assert _outcomes(whole.board()) == _outcomes(again.board())


def test_a_verdict_outlives_its_driver_though_the_trial_was_faster(tmp_path: Path) -> None:
    """The driver was killed in between: the next one finds a trial that has finished, and the verdict."""
    search = open_search(tmp_path, scheduler="asha", trials=30)
    while True:
        task = search.next()
        assert task is not None
        curve = {epoch: figure_of(task.config, epoch) for epoch in range(1, 10)}
        if search.report(task.name, 1, curve[1]):
            break
        run_task(search, task)
    write_run(search, task, "finished", curve)
    row = open_search(tmp_path, scheduler="asha", trials=30).board().row(task.name)
    assert row is not None
    assert ("pruned", "asha after epoch 1", 9) == (row.status, row.reason, row.epochs)


def test_an_epoch_that_nobody_judged_is_judged_by_the_next_start(tmp_path: Path) -> None:
    """It is in the run's history; the driver died before it heard of it."""
    search = open_search(tmp_path, scheduler="asha")
    first = search.next()
    assert first is not None
    run_task(search, first)
    second = search.next()
    assert second is not None
    write_run(search, second, "running", {1: 0.001})
    again = open_search(tmp_path, scheduler="asha")
    assert again.is_pruned(second.name)


def test_a_trial_that_had_passed_a_rung_is_not_stopped_there_by_the_next_start(tmp_path: Path) -> None:
    """Side by side, another came to the rung later with more, and then the driver was killed."""
    search = open_search(tmp_path, scheduler="asha", concurrency=3)
    _, first, second = search.next(), search.next(), search.next()
    assert first is not None
    assert second is not None
    assert search.report(second.name, 1, 0.5) is None
    assert search.report(first.name, 1, 0.9) is None
    write_run(search, first, "running", {1: 0.9})
    write_run(search, second, "running", {1: 0.5, 2: 0.55})
    again = open_search(tmp_path, scheduler="asha", concurrency=3)
    assert not again.is_pruned(second.name)


def test_a_space_file_in_another_order_is_the_same_search(tmp_path: Path) -> None:
    """Trials keep their names, and so their folders."""
    run_all(open_search(tmp_path, trials=3))
    turned = write_space("optim.name: {choice: [adamw, sgd]}\noptim.lr: {loguniform: [1.0e-4, 1.0]}")
    again = open_search(tmp_path, trials=3, space=turned)
    assert _facts(open_search(tmp_path, trials=3).board()) == _facts(again.board())
    assert again.next() is None


def test_the_recipes_own_trial_is_never_stopped_for_its_figure(tmp_path: Path) -> None:
    """The others are compared with it, also where they report before it."""
    search = open_search(tmp_path, scheduler="asha", concurrency=2)
    own, other = search.next(), search.next()
    assert own is not None
    assert other is not None
    assert not search.report(other.name, 1, 0.9)
    assert not search.report(own.name, 1, 0.1)


def test_a_stopped_trial_goes_on(tmp_path: Path) -> None:
    """Under its name, before any new one."""
    search = open_search(tmp_path)
    task = search.next()
    assert task is not None
    search.stopping = True
    write_run(search, task, "stopped", {1: 0.4})
    search.end(task.name)
    assert search.next() is None
    assert ["stopped"] == [row.status for row in search.board().rows]
    again = open_search(tmp_path)
    assert task.name == getattr(again.next(), "name", "")


def test_a_failed_trial_is_a_row_with_its_reason(tmp_path: Path) -> None:
    """By its run folder, by what it said, or by its silence; the search goes on."""
    search = open_search(tmp_path, trials=4)
    reason = {"kind": "out_of_memory", "message": "out of GPU memory"}
    for number in range(3):
        task = search.next()
        assert task is not None
        if number == 0:
            write_run(search, task, "failed", {}, reason=reason)
        search.end(task.name, "bad_input: no such weights" if number == 1 else "")
    run_all(search)
    rows = sorted(search.board().rows, key=lambda row: row.number)
    assert ["failed", "failed", "failed", "finished"] == [row.status for row in rows]
    assert "out_of_memory: out of GPU memory" == rows[0].reason
    assert "bad_input: no such weights" == rows[1].reason
    assert "its driver was lost" in rows[2].reason
    assert _facts(search.board()) == _facts(open_search(tmp_path, trials=4).board())


def test_a_metric_that_no_trial_reports_fails_them(tmp_path: Path) -> None:
    """With its name; nothing is chosen."""
    search = open_search(tmp_path, "train.metric=auroc_macro", trials=2)
    while (task := search.next()) is not None:
        search.report(task.name, 1, None)
        search.report(task.name, 2, math.nan)
        write_run(search, task, "finished", {})
        search.end(task.name)
    assert ["it gave no figure of auroc_macro"] * 2 == [row.reason for row in search.board().rows]
    assert search.board().best is None
    assert _facts(search.board()) == _facts(open_search(tmp_path, "train.metric=auroc_macro", trials=2).board())


def test_values_that_are_impossible_together_fail_one_trial(tmp_path: Path) -> None:
    """Each is possible alone."""
    space = write_space("train.batch_size: {choice: [8, 64]}\ntrain.micro_batch_size: {choice: [0, 32]}")
    search = open_search(tmp_path, space=space, sampler="grid", trials=0)
    run_all(search)
    failed = [row for row in search.board().rows if row.status == "failed"]
    assert [{"train.batch_size": 8, "train.micro_batch_size": 32}] == [row.values for row in failed]
    assert "train.micro_batch_size 32 is larger than a step" in failed[0].reason
    assert 4 == len(search.board().rows)


def test_hours_end_a_search_behind_the_epoch(tmp_path: Path) -> None:
    """Trials at work are cut short, no new one starts; hours of earlier starts count; with more of them all goes on."""
    clock = Clock()
    search = open_search(tmp_path, clock=clock, hours=1.0, trials=0)
    assert search.next() is not None
    clock.now += 1800
    search.write()
    again = open_search(tmp_path, clock=clock, hours=1.0, trials=0)
    task = again.next()
    assert task is not None
    assert again.report(task.name, 1, 0.5) is None
    clock.now += 1801
    assert "stopped" == again.report(task.name, 2, 0.6)
    write_run(again, task, "stopped", {1: 0.5, 2: 0.6})
    again.end(task.name)
    assert again.next() is None
    assert again.ended_by.startswith("search.hours=1 is used up")
    assert [("stopped", 0.6, {1: 0.5, 2: 0.6})] == [(r.status, r.figure, r.curve) for r in again.board().rows]
    more = open_search(tmp_path, clock=clock, hours=2.0, trials=0).next()
    assert more is not None
    assert task.name == more.name


def test_gpu_hours_count_all_workers(tmp_path: Path) -> None:
    """Those at work by the clock, those that have ended by their run folders."""
    clock = Clock()
    search = open_search(tmp_path, "scale.num_workers=4", clock=clock, gpu_hours=1.0, trials=0)
    first = search.next()
    assert first is not None
    clock.now += 800
    assert search.report(first.name, 1, 0.5) is None
    clock.now += 101
    assert "stopped" == search.report(first.name, 2, 0.5)
    write_run(search, first, "finished", {1: 0.5}, worker_seconds=3599.0)
    search.end(first.name)
    assert search.next() is None  # it stays reached, though the trial has cost a second less
    again = open_search(tmp_path, "scale.num_workers=4", clock=clock, gpu_hours=1.0, trials=0)
    second = again.next()
    assert second is not None
    write_run(again, second, "finished", {1: 0.5}, worker_seconds=2.0)
    again.end(second.name)
    assert again.next() is None


def test_the_best_are_repeated_with_other_seeds(tmp_path: Path) -> None:
    """After all trials; mean and spread are on the leaderboard; also over a kill, and not twice."""
    search = open_search(tmp_path, repeat_top=2, repeat_seeds=3)
    names = []
    while (task := search.next()) is not None:
        if task.place == "repeats":
            names.append(task.name)
            if len(names) == 2:
                break
        run_task(search, task)
    search = open_search(tmp_path, repeat_top=2, repeat_seeds=3)
    while (task := search.next()) is not None:
        names.append(task.name)
        run_task(search, task)
    board = search.board()
    assert 4 == len(set(names)) == len(names) - 1
    for row in board.rows[:2]:
        own = [row.figure or 0]
        assert [*own, own[0] + 1e-3, own[0] + 2e-3] == pytest.approx(row.figures)
        assert (pytest.approx(own[0] + 1e-3), pytest.approx(1e-3)) == (row.mean, row.spread)
    assert [()] * 3 == [row.repeats for row in board.rows[2:]]


def test_repeats_run_side_by_side_once_trials_have_ended(tmp_path: Path) -> None:
    """Not before: which are the best is not known until then."""
    search = open_search(tmp_path, trials=2, concurrency=2, repeat_top=1, repeat_seeds=3)
    first, second = search.next(), search.next()
    assert first is not None
    assert second is not None
    run_task(search, first)
    assert search.next() is None
    run_task(search, second)
    repeats = [search.next(), search.next()]
    assert ["repeats", "repeats"] == [task.place for task in repeats if task is not None]
    assert search.next() is None


def test_a_seed_that_fails_takes_the_first_place_away(tmp_path: Path) -> None:
    """A mean of fewer seeds is none; it is not trained again, and the order is the same for every start."""
    search = open_search(tmp_path, trials=4, repeat_top=2, repeat_seeds=2)
    while (task := search.next()) is not None:
        if task.place == "repeats" and task.name.startswith(f"{search.board().rows[0].number:04d}"):
            write_run(search, task, "failed", {}, reason={"kind": "non_finite_loss", "message": "nan"})
            search.end(task.name)
        else:
            run_task(search, task)
    rows = search.board().rows
    assert [["failed"], ["finished"]] == sorted([repeat.status for repeat in row.repeats] for row in rows[:2])
    assert ["finished"] == [repeat.status for repeat in rows[0].repeats]
    assert (rows[1].figure or 0) > (rows[0].figure or 0)
    again = open_search(tmp_path, trials=4, repeat_top=2, repeat_seeds=2)
    assert again.next() is None
    assert rows == again.board().rows


def test_more_trials_after_repeats_end_as_all_at_once(tmp_path: Path) -> None:
    """Which is the best depends on figures, not on when which repetitions were done."""
    for trials in (3, 8):
        run_all(open_search(tmp_path / "twice", trials=trials, repeat_top=2, repeat_seeds=2))
    run_all(open_search(tmp_path / "once", trials=8, repeat_top=2, repeat_seeds=2))
    twice, once = (open_search(tmp_path / name, trials=8, repeat_top=2, repeat_seeds=2) for name in ("twice", "once"))
    assert once.board().best == twice.board().best
    assert [row.name for row in once.board().rows] == [row.name for row in twice.board().rows]


@pytest.mark.parametrize("kind", ["no_room", "storage", "storage_refused"])
def test_what_the_cluster_does_is_no_verdict_on_a_trial(kind: str, tmp_path: Path) -> None:
    """Tried once more; then the search stops, and goes on where it is started again."""
    search = open_search(tmp_path, trials=2)
    for _ in range(2):
        task = search.next()
        assert task is not None
        assert 0 == task.number
        write_run(search, task, "failed", {}, reason={"kind": kind, "message": "nothing there"})
        search.end(task.name)
    assert search.stopping
    assert f"{kind}: nothing there" in search.trouble
    assert ["stopped"] == [row.status for row in search.board().rows]
    again = open_search(tmp_path, trials=2)
    run_all(again)
    assert ["finished", "finished"] == [row.status for row in again.board().rows]


@pytest.mark.parametrize("kind", ["lost_workers", "hang"])
def test_a_trial_that_loses_its_workers_again_and_again_fails(kind: str, tmp_path: Path) -> None:
    """Its configuration may be to blame; the search goes on."""
    search = open_search(tmp_path, trials=2)
    for _ in range(2):
        task = search.next()
        assert task is not None
        write_run(search, task, "failed", {}, reason={"kind": kind, "message": "gone"})
        search.end(task.name)
    assert not search.stopping
    run_all(search)
    assert [("failed", f"{kind}: gone"), ("finished", "")] == sorted(
        (row.status, row.reason) for row in search.board().rows
    )


def test_a_trial_that_stopped_by_itself_goes_on_in_the_same_start(tmp_path: Path) -> None:
    """Its node was drained, say."""
    search = open_search(tmp_path)
    task = search.next()
    assert task is not None
    write_run(search, task, "stopped", {1: 0.4})
    search.end(task.name)
    assert not search.stopping
    assert task.name == getattr(search.next(), "name", "")


def test_trials_at_work_are_rows_with_figures(tmp_path: Path) -> None:
    """The best so far, with the curve and what it has cost."""
    clock = Clock()
    search = open_search(tmp_path, "scale.num_workers=4", clock=clock)
    task = search.next()
    assert task is not None
    for epochs, figure in enumerate((0.4, 0.6, math.nan, 0.5), 1):
        search.report(task.name, epochs, figure)
    clock.now += 10
    (row,) = search.board().rows
    assert ("running", 0.6, 2, 4, {1: 0.4, 2: 0.6, 4: 0.5}, 40.0) == (
        row.status,
        row.figure,
        row.selected_epoch,
        row.epochs,
        row.curve,
        row.worker_seconds,
    )


def test_a_trial_without_a_number_at_a_rung_is_stopped(tmp_path: Path) -> None:
    """It cannot be among the best."""
    search = open_search(tmp_path, scheduler="asha")
    run_task(search, search.next() or pytest.fail("no trial"))
    task = search.next()
    assert task is not None
    assert "pruned" == search.report(task.name, 1, math.nan)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"trials": 2}, "search.trials=2 is reached"),
        ({"trials": 3, "sampler": "grid"}, "search.trials=3 is reached of a grid of 7; search.trials=0 tries all"),
        ({"trials": 0, "sampler": "grid"}, "no configuration but the 7 that were tried was found in the space"),
    ],
)
def test_a_search_says_what_ended_it(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    """Also where there would be more."""
    search = open_search(tmp_path, **settings)
    assert "" == search.ended_by
    run_all(search)
    assert text == search.ended_by


def test_what_was_tested_is_what_run_folders_say(tmp_path: Path) -> None:
    """Also where the driver died before it could note it."""
    search = open_search(tmp_path, trials=2)
    run_all(search)
    best = search.board().rows[0]
    run = open_store(str(tmp_path / "s")).child("trials").child(best.name)
    run.write_json("run.json", {**run.read_json("run.json"), "test_evaluations": 1})
    assert () == search.board().tested
    search.note_test(best.name)
    assert (best.name,) == search.board().tested
    assert (best.name,) == open_search(tmp_path, trials=2).board().tested


def test_the_files_are_the_board(tmp_path: Path) -> None:
    """After each end: leaderboard, record, best recipe, events, and the journal."""
    search = open_search(tmp_path, "evaluate.bootstrap=200", trials=3)
    run_all(search)
    board, store = search.board(), open_store(str(tmp_path / "s"))
    table = pyarrow.parquet.read_table(store.path("leaderboard.parquet")).to_pylist()
    assert [(row.name, row.figure, row.values["optim.lr"]) for row in board.rows] == [
        (line["name"], line["balanced_accuracy"], line["optim.lr"]) for line in table
    ]
    assert [sorted(row.curve.values()) for row in board.rows] == [line["curve"] for line in table]
    assert 4 == len(store.read("leaderboard.csv").splitlines())
    best = resolve_config(store.path("best.yaml"), [])
    row = board.rows[0]
    assert (row.values["optim.lr"], row.values["optim.name"]) == (best.optim.lr, best.optim.name)
    assert (9, 64, True, 200) == (
        best.train.epochs,
        best.train.micro_batch_size,
        best.evaluate.test,
        best.evaluate.bootstrap,
    )
    assert ("", "never", "runs") == (best.run.name, best.run.resume, best.storage.uri)
    record = store.read_json("search.json")
    assert record["best"] == row.name
    assert [0, 1, 2] == [trial["number"] for trial in record["trials"]]
    assert {f"tensorboard/{row.name}" for row in board.rows} == {
        key.rpartition("/")[0] for key in store.walk() if key.startswith("tensorboard/")
    }


def test_a_search_that_was_taken_over_writes_nothing_more(tmp_path: Path) -> None:
    """The newer start owns it."""
    search = open_search(tmp_path)
    assert search.next() is not None
    open_search(tmp_path)
    with pytest.raises(StaleDriverError, match="search 's' was taken over"):
        search.publish()


@pytest.mark.parametrize(("hours", "expected"), [(0.0, "no"), (1.0, "yes")])
def test_on_what_trials_run_is_decided_once(hours: float, expected: str, tmp_path: Path) -> None:
    """A GPU that is away for a while makes no trial run without; `best.yaml` leaves the choice to its machine again."""
    search = open_search(tmp_path, "scale.use_gpu=auto", gpu_hours=hours, trials=1)
    assert "auto" == search.plan.config.scale.use_gpu
    task = search.next()
    assert task is not None
    assert expected == task.config.scale.use_gpu
    run_task(search, task)
    assert "use_gpu: auto" in search.folder.store.read("best.yaml").decode()
