"""Searches over a real cluster: what they leave, what they refuse, and that nothing is lost when they are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from rich.console import Console

from cluster.errors import InputError
from cluster.store import open_store
from dataloading.dataset import Dataset
from tests.end_to_end.commands import SMALL
from tune_spaces.launch import SearchResult, run_search
from tune_spaces.leaderboard import TrialRow
from xdist_train.config import resolve_config
from xdist_train.training.launch import launch

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

Tune = Callable[..., SearchResult]

# Two that train, one whose loss is not finite, and one that its launch refuses: there are three classes.
_MIXED = """
loss.class_weights: {choice: [none, list]}
loss.class_weight_list: {by: loss.class_weights, cases: {list: {choice: [[1.0, 2.0]]}}}
optim.lr: {by: loss.class_weights, cases: {none: {choice: [4.0e-3, 1.0e-3, 1.0e+30]}}}
"""


def _shared(bands: Dataset, storage: Path, space: Path) -> list[str]:
    """Settings that all searches here have."""
    places = [f"data.uri={bands.store.uri}", f"storage.uri={storage}", f"loader.cache_dir={storage}/cache"]
    return [*places, f"space={space}", "scale.num_workers=1", *SMALL]


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage folder of all searches here."""
    return tmp_path_factory.mktemp("searches")


@pytest.fixture
def tune(ray_cluster: Any, bands: Dataset, searches: Path, tmp_path: Path) -> Tune:
    """`run_search` of a small search on `bands`, by its name, the text of its space, and overrides."""

    def tune(name: str, space: str, *overrides: str) -> SearchResult:
        file = tmp_path / "space.yaml"
        file.write_text(space)
        settings = [f"run.name={name}", *_shared(bands, searches, file), *overrides]
        return run_search("demo", settings, command="test", console=Console(quiet=True))

    return tune


def _start_driver(ray: Any, bands: Dataset, storage: Path, space: Path, *settings: str) -> subprocess.Popen[str]:
    """`xdist-train tune` in a process of its own, on the session's cluster."""
    arguments = [*_shared(bands, storage, space), *settings]
    return subprocess.Popen(
        [sys.executable, "-c", "from xdist_train.cli import run; run()", "tune", "demo", *arguments],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wait_until(condition: Callable[[], bool], driver: subprocess.Popen[str], limit_s: float = 150) -> None:
    """Until the condition holds, while the driver lives."""
    end = time.monotonic() + limit_s
    while not condition():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < end, "too late"
        time.sleep(0.05)


def _run_of(result: SearchResult, row: TrialRow) -> dict[str, Any]:
    return dict(open_store(result.uri).child("trials").child(row.name).read_json("run.json"))


def _epochs(run_uri: str) -> list[dict[str, Any]]:
    """Rows of a run's history, without when they were written."""
    lines = [json.loads(line) for line in open_store(run_uri).read("metrics.jsonl").splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith(("time", "_s", "share"))} for line in lines]


def test_a_search_leaves_what_its_trials_left(tune: Tune) -> None:
    """Each row is its run folder's; a failed trial is a row; test is evaluated once; `best.yaml` is the best, again."""
    result = tune("mixed", _MIXED, "search.sampler=grid", "search.scheduler=none")
    board, store = result.board, open_store(result.uri)
    assert ["finished", "finished", "failed", "failed"] == [row.status for row in board.rows]
    reasons = {row.reason.partition(":")[0] for row in board.rows if row.status == "failed"}
    assert {"non_finite_loss", "bad_input"} == reasons
    for row in board.rows[:2]:
        run = _run_of(result, row)
        assert (
            run["status"],
            run["selected"]["value"],
            run["selected"]["epoch"] + 1,
            run["epochs"],
            run["parent"],
        ) == (
            row.status,
            row.figure,
            row.selected_epoch,
            row.epochs,
            "mixed",
        )
        assert (row.name == board.best) == run["test_evaluations"]
    table = pyarrow.parquet.read_table(store.path("leaderboard.parquet")).to_pylist()
    assert [row.name for row in board.rows] == [line["name"] for line in table]
    assert [row.figure for row in board.rows] == [line["balanced_accuracy"] for line in table]
    assert board.test == store.child("trials").child(str(board.best)).read_json("evaluation/test.json")
    assert "finished" == store.read_json("search.json")["status"]
    # Trained again from its recipe alone, under a name and in a place of its own.
    again = launch(
        resolve_config(store.path("best.yaml"), [f"storage.uri={store.uri}/again", "run.name=again"]),
        command="test",
        console=Console(quiet=True),
    )
    assert _epochs(store.child("trials").child(str(board.best)).uri) == _epochs(again.run_uri)
    for name in ("accuracy", "auroc_macro"):  # `evaluate` takes other batches than a run's own evaluation
        assert board.test[name]["value"] == pytest.approx(again.evaluations["test"][name]["value"], abs=1e-9)


@pytest.mark.parametrize(
    ("space", "overrides", "text"),
    [
        ("optim.lrr: {uniform: [0.1, 1.0]}", (), "optim.lrr.*Did you mean 'optim.lr'"),
        ("{}", (), "the space is empty"),
        ("optim.lr: {uniform: [0.1, 1.0]}", ("train.metric=kappa",), "train.metric"),
        (
            "optim.lr: {uniform: [0.1, 1.0]}",
            ("scale.num_workers=100", "scale.use_gpu=yes", "train.micro_batch_size=1", "train.batch_size=100"),
            "need 100 GPUs|need 100 CPUs",
        ),
        ("scale.num_workers: {choice: [1, 100]}", (), r"scale.num_workers=100: .*need 100 CPUs, but the cluster has 4"),
        ("model.backbone: {choice: [small_cnn, resnet9000]}", (), "model.backbone=resnet9000: .*resnet9000"),
        ("train.metric: {choice: [loss, mcc]}", (), "is the same in all trials"),
        ("optim.lr: {uniform: [0.1, 1.0]}", ("search.gpu_hours=1",), "trials use no GPU here"),
        ("optim.lr: {uniform: [0.1, 1.0]}", ("run.resume=must",), "there is no search in"),
        ("optim.lr: {uniform: [0.1, 1.0]}", ("search.sampler=tpee",), "search.sampler"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    space: str, overrides: tuple[str, ...], text: str, tune: Tune, searches: Path
) -> None:
    """In one paragraph that says what and where."""
    with pytest.raises(InputError, match=text) as refusal:
        tune("refused", space, *overrides)
    print(refusal.value)
    assert not (searches / "refused").exists()


# Enough for each trial to have a word of its own in TPE, and for ASHA to stop some.
_SEARCHED = """
optim.lr: {loguniform: [3.0e-4, 3.0e-2]}
optim.name: {choice: [adamw, sgd]}
"""
_LONGER = (
    "search.trials=3",
    "search.concurrency=1",
    "train.epochs=4",
    "search.grace_epochs=1",
    "search.reduction_factor=2",
    "evaluate.test=false",
)


def _facts(row: TrialRow) -> tuple[Any, ...]:
    """What a trial is and came to, without times. One that is stopped goes on until it has heard of it."""
    known = (row.number, row.name, row.status, row.values, row.reason)
    return known if row.status == "pruned" else (*known, row.figure, row.selected_epoch, row.curve)


def _by_number(result: SearchResult) -> list[tuple[Any, ...]]:
    return [_facts(row) for row in sorted(result.board.rows, key=lambda row: row.number)]


@pytest.mark.slow
def test_a_killed_search_goes_on(tune: Tune, bands: Dataset, searches: Path, tmp_path: Path, ray_cluster: Any) -> None:
    """kill -9 of the driver in the middle of the second trial: no ended trial runs again, and the end is the same."""
    undisturbed = tune("undisturbed", _SEARCHED, *_LONGER)
    folder = searches / "killed"
    driver = _start_driver(ray_cluster, bands, searches, tmp_path / "space.yaml", "run.name=killed", *_LONGER)
    try:
        _wait_until(lambda: len(list(folder.glob("trials/0001-*/metrics.jsonl"))) == 1, driver)
    finally:
        driver.kill()
        driver.communicate()
    ended = {path: path.read_bytes() for path in sorted(folder.glob("trials/0000-*/run.json"))}
    assert 1 == len(ended)
    result = tune("killed", _SEARCHED, *_LONGER, "run.resume=must")
    assert ended == {path: path.read_bytes() for path in ended}
    assert _by_number(undisturbed) == _by_number(result)
    assert 3 == len(result.board.rows) == len(list(folder.glob("trials/*")))
    second = next(row for row in result.board.rows if row.number == 1)
    assert 2 == len(_run_of(result, second)["attempts"])
    assert 2 == len(open_store(result.uri).read_json("search.json")["attempts"])


@pytest.mark.slow
def test_a_search_that_is_told_to_stop_stops_behind_checkpoints(
    tune: Tune, bands: Dataset, searches: Path, tmp_path: Path, ray_cluster: Any
) -> None:
    """SIGTERM: exit code 75, the trial at work is resumable, and the same command with run.resume=must ends it."""
    (tmp_path / "space.yaml").write_text(_SEARCHED)
    settings = ("run.name=stopped", *_LONGER, "search.trials=2", "train.epochs=8")
    folder = searches / "stopped"
    driver = _start_driver(ray_cluster, bands, searches, tmp_path / "space.yaml", *settings)
    try:
        _wait_until(lambda: len(list(folder.glob("trials/0000-*/metrics.jsonl"))) == 1, driver)
        driver.terminate()
        said = driver.communicate(timeout=120)[0]
    finally:
        driver.kill()
    assert 75 == driver.returncode, said
    assert "run.resume=must goes on" in said
    (run,) = folder.glob("trials/*/run.json")
    assert "stopped" == json.loads(run.read_text())["status"]
    result = tune("stopped", _SEARCHED, *settings[1:], "run.resume=must")
    assert [0, 1] == sorted(row.number for row in result.board.rows)
    assert {"finished", "pruned"} >= {row.status for row in result.board.rows}
    assert 2 == len(json.loads(run.read_text())["attempts"])


def _processes(mark: str, title: str) -> list[int]:
    """Those that began with this variable in their environment and now have this title."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if mark.encode() in environment.split(b"\0") and command.startswith(title.encode()):
            found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_a_search_in_s3_outlives_a_trials_process(bands: Dataset, s3: str, tmp_path: Path) -> None:
    """SIGKILL of what drives a trial: it goes on from its checkpoint; the best is trained again with another seed."""
    space, mark = tmp_path / "space.yaml", f"XDIST_TEST={uuid.uuid4().hex}"
    space.write_text(_SEARCHED)
    places = [f"data.uri={bands.store.uri}", f"storage.uri={s3}", f"loader.cache_dir={tmp_path}/cache"]
    limits = ["search.trials=2", "search.concurrency=1", "search.repeat_top=1", "search.repeat_seeds=2"]
    settings = [*places, f"space={space}", "scale.num_workers=1", *SMALL, "run.name=killed", *limits]
    name, value = mark.split("=")
    driver = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from xdist_train.cli import run; run()",
            "tune",
            "demo",
            *settings,
            "search.scheduler=none",
            "train.epochs=8",
        ],
        env={**os.environ, "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled", name: value},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = open_store(s3).child("killed")
    try:
        _wait_until(lambda: any(key.endswith("/metrics.jsonl") for key in folder.walk("trials")), driver)
        (pid,) = _processes(mark, "ray::ImplicitFunc")
        os.kill(pid, signal.SIGKILL)
        said = driver.communicate(timeout=300)[0]
    finally:
        driver.kill()
        driver.communicate()
    assert 0 == driver.returncode, said
    record = folder.read_json("search.json")
    assert ["finished", "finished", "finished"] == [record["status"], *(row["status"] for row in record["trials"])]
    first = folder.child("trials").child(record["trials"][0]["name"]).read_json("run.json")
    assert 2 == len(first["attempts"])
    table = pyarrow.parquet.read_table(pa.BufferReader(folder.read("leaderboard.parquet"))).to_pylist()
    assert [2, None] == [line["seeds"] for line in table]
    assert record["best"] == table[0]["name"]
    assert [record["best"]] == record["tested"]
    assert {"best.yaml", "leaderboard.csv", "leaderboard.parquet", "report.html"} <= {*record["complete"]}
