"""Real searches on Ray Tune: the same as replayed ones, what a trial costs beside its training, killed drivers.

The searches run over the recorded table's space and images, one trial at a time, one worker a trial, so that each can
be compared with the replay of the same sampler, scheduler and seed: asked values, figures by epoch, bit for bit, and
which trials stop where. Another kind of CPU trains other last digits than the table's, so the replay is told the
figures that were trained here for the configurations that were tried. Parts of a trial's time are medians over trials;
spread is the least and the most.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from cluster.store import Store, open_store
from dataloading.dataset import Dataset
from tests.bench.replay import Replay, replay
from tests.bench.results import Row, measured, versions
from tests.bench.search_table import OVERRIDES, RECIPE, SPACE_PATH, Trained, build_images, read_table, table_space
from tune_spaces import ledger
from tune_spaces.launch import run_search
from tune_spaces.study import Told, open_study
from xdist_train.config import resolve_config

__all__ = ["rows"]

COMMAND = "python -m tests.bench tune"
_OURS, _CHANCE = ("tpe", "asha"), ("random", "none")
_GRACE = 1  # the first epoch judges already: more trials are stopped
_TRIALS = {_OURS: 12, _CHANCE: 4}
_NUM_KILLS, _NUM_KILLED_TRIALS, _MEAN_LIFE_S = 3, 6, 45.0


def rows() -> Iterable[Row]:
    """Agreement with the replay, time by part, and what kills cost."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    details = {"versions": versions("ray", "torch", "optuna"), "command": COMMAND}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        dataset = build_images(place / "data")
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            seconds: dict[tuple[str, str], float] = {}
            for search in (_OURS, _CHANCE):
                name = "-".join(search)
                result = run_search(
                    RECIPE, _settings(dataset, place, name, search), command=COMMAND, console=Console(stderr=True)
                )
                seconds[search] = result.board.seconds
                yield _agreement(f"{' + '.join(search)}, Ray Tune", open_store(result.uri), search, details)
            yield from _parts(open_store(f"{place}/runs/{'-'.join(_OURS)}"), seconds[_OURS], details)
            yield from _killed(dataset, place, details)
        finally:
            ray.shutdown()


def _settings(dataset: Dataset, place: Path, name: str, search: tuple[str, str], trials: int = 0) -> list[str]:
    return [
        *OVERRIDES,
        *(f"data.uri={dataset.store.uri}", f"storage.uri={place}/runs", f"loader.cache_dir={place}/cache"),
        *(f"space={SPACE_PATH}", f"run.name={name}", f"search.sampler={search[0]}", f"search.scheduler={search[1]}"),
        *(f"search.trials={trials or _TRIALS[search]}", "search.concurrency=1", f"search.grace_epochs={_GRACE}"),
    ]


def _replayed(search: tuple[str, str], told: Sequence[Told]) -> Replay:
    """The replay of as many trials, on the table with the figures that these had."""
    space = table_space()
    own = space.locate(resolve_config(RECIPE, OVERRIDES)).params
    here = [
        Trained(values=one.values, curve=tuple(one.figures[epochs] for epochs in sorted(one.figures))) for one in told
    ]
    table = read_table().with_rows(here)
    return replay(
        table, space, own, sampler=search[0], scheduler=search[1], seed=0, trials=len(told), grace_epochs=_GRACE
    )


def _told(store: Store, search: tuple[str, str]) -> list[Told]:
    """What a search's journal says of its trials."""
    space = table_space()
    own = space.locate(resolve_config(RECIPE, OVERRIDES)).params
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / ledger.JOURNAL
        journal.write_bytes(store.read(ledger.JOURNAL))
        return open_study(
            space, own, sampler=search[0], scheduler=search[1], grace_epochs=_GRACE, journal=journal
        ).told()


def _agreement(what: str, store: Store, search: tuple[str, str], details: dict[str, Any]) -> Row:
    """Trials that are those of the replay, in asked values, figures of all epochs that were judged, and end."""
    told = _told(store, search)
    replayed = _replayed(search, told).trials
    same = sum(
        (one.values, one.status, [one.figures[epochs] for epochs in sorted(one.figures)])
        == (other.values, other.status, list(other.figures))
        for one, other in zip(told, replayed, strict=True)
    )
    row = measured(f"{what}: trials that are the replay's, bit for bit", [same], unit="trials", **details)
    return Row(**{**vars(row), "n": len(told), "goal": f"{len(told)} of {len(told)}"})


def _parts(store: Store, seconds: float, details: dict[str, Any]) -> Iterable[Row]:
    """Where the time of a search goes."""
    trials = store.child(ledger.TRIALS)
    runs = sorted((trials.child(name).read_json("run.json") for name in trials.list()), key=_claimed)
    trained = [_trained(run) for run in runs]
    row = measured(f"search of {len(runs)} trials: all its time", [seconds], unit="s", **details)
    yield Row(**{**vars(row), "against": "sum of its trials' training", "ratio": seconds / sum(trained)})
    ends = [store.read_json("search.json")["attempts"][0]["started"], *(_ended(run) for run in runs)]
    parts = {
        "between trials: Tune, ledger, checks before a run": [
            _claimed(run) - end for run, end in zip(runs, ends[:-1], strict=True)
        ],
        "Ray: controller and worker processes, their imports": [
            run["groups"][0]["started"] - _claimed(run) for run in runs
        ],
        "worker: data, model, first step": [run["seconds"]["start"] + run["seconds"]["first_step"] for run in runs],
        "training, with evaluation between epochs": trained,
        "end: last upload, last evaluation, the group's end": [
            _ended(run) - run["groups"][0]["started"] - run["seconds"]["start"] - _trained(run) for run in runs
        ],
    }
    for what, values in parts.items():
        yield measured(f"a trial: {what}", values, unit="s", **details)
    yield measured("a trial: all but training", _beside(parts), unit="s", **details)


def _beside(parts: dict[str, list[float]]) -> Sequence[float]:
    kept = [values for what, values in parts.items() if not what.startswith("training")]
    return [sum(values) for values in zip(*kept, strict=True)]


def _claimed(run: dict[str, Any]) -> float:
    return float(run["attempts"][0]["started"])


def _ended(run: dict[str, Any]) -> float:
    return float(run["attempts"][-1]["ended"])


def _trained(run: dict[str, Any]) -> float:
    return float(run["seconds"]["train"] + run["seconds"]["evaluate"])


def _killed(dataset: Dataset, place: Path, details: dict[str, Any]) -> Iterable[Row]:
    """A search whose driver is killed at random times, each time started again."""
    draws, lives = random.Random(0), []
    settings = _settings(dataset, place, "killed", _OURS, _NUM_KILLED_TRIALS)
    store = open_store(f"{place}/runs/killed")
    ended: dict[str, bytes] = {}
    again = 0
    for _ in range(_NUM_KILLS):
        lives.append(20.0 + draws.expovariate(1 / _MEAN_LIFE_S))
        driver = _start([*settings, "run.resume=auto"])
        try:
            driver.wait(lives[-1])
        except subprocess.TimeoutExpired:
            driver.kill()
        driver.wait()
        again += _changed(store, ended)
        ended |= _ended_runs(store)
    result = run_search(RECIPE, [*settings, "run.resume=auto"], command=COMMAND, console=Console(stderr=True))
    again += _changed(store, ended)
    what = f"{_NUM_KILLED_TRIALS} trials, driver killed after {', '.join(f'{life:.0f}' for life in lives)} s"
    row = measured(f"{what}: ended trials that ran again", [again], unit="trials", goal="0", **details)
    yield Row(**{**vars(row), "n": _NUM_KILLS})
    yield measured(f"{what}: rows", [len(result.board.rows)], unit="trials", goal=str(_NUM_KILLED_TRIALS), **details)
    yield _agreement(f"{what}, tpe + asha", store, _OURS, details)


def _start(settings: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "from xdist_train.cli import run; run()", "tune", RECIPE, *settings],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=sys.stderr,
        stderr=sys.stderr,
    )


def _ended_runs(store: Store) -> dict[str, bytes]:
    """run.json of the trials that have ended, by name."""
    trials, found = store.child(ledger.TRIALS), {}
    for name in trials.list():
        run = trials.child(name)
        if run.exists("run.json") and run.read_json("run.json")["status"] in ("finished", "pruned", "failed"):
            found[name] = run.read("run.json")
    return found


def _changed(store: Store, before: dict[str, bytes]) -> int:
    """Ended trials whose record has changed since."""
    now = _ended_runs(store)
    return sum(now.get(name) != data for name, data in before.items())
