"""A search's folder: what is kept of it, what is read back after a kill, and the files that people open.

    <storage>/<search>/search.json       status, settings, trials, best                    replaced whole
                       journal.jsonl     Optuna's journal: what was asked and told         replaced whole, at each
                       trials/<name>/    run folders, one a trial                          start, epoch and end
                       repeats/<name>/   run folders of the best with other seeds
                       leaderboard.parquet .csv, report.html, best.yaml, tensorboard/

Nothing in it is unpickled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.config import dump_yaml
from cluster.runs import RUN, RunFolder, read_config, read_history, read_record
from cluster.store import Store
from tune_spaces.domains import label
from tune_spaces.leaderboard import Leaderboard, Repeat, TrialRow, leaderboard_csv, leaderboard_parquet
from xdist_train.config import Config

__all__ = [
    "BEST",
    "JOURNAL",
    "LEADERBOARD",
    "REPEATS",
    "TENSORBOARD",
    "TRIALS",
    "best_recipe",
    "events_key",
    "fetch_journal",
    "parse_repeat_name",
    "publish_leaderboard",
    "read_trial",
    "repeat_name",
    "repeat_of",
    "trial_name",
]

JOURNAL, TRIALS, REPEATS = "journal.jsonl", "trials", "repeats"
LEADERBOARD, BEST, TENSORBOARD = "leaderboard.parquet", "best.yaml", "tensorboard"
_LONGEST_NAME = 36
_NAMED_FIRST = ("model", "optim")


def trial_name(number: int, values: Mapping[str, Any]) -> str:
    """A run folder's name that tells what the trial is: `0007-resnet50-lr0.0031-alpha0.5`."""
    # Not in the space file's order, which may change from start to start.
    keys = sorted(values, key=lambda key: (key.partition(".")[0] not in _NAMED_FIRST, key))
    words = [f"{number:04d}", *(_word(key, values[key]) for key in keys)]
    while len("-".join(words)) > _LONGEST_NAME:
        words.pop()
    return "-".join(words)


def _word(key: str, value: Any) -> str:
    if isinstance(value, str):
        text = value
    else:
        text = key.rpartition(".")[2] + (f"{value:.3g}" if isinstance(value, float) else label(value))
    return re.sub(r"[^A-Za-z0-9._]+", "_", text).strip("_")


def events_key(name: str) -> str:
    """A trial's events for TensorBoard."""
    return f"{TENSORBOARD}/{name}/events.out.tfevents.0000000000.trial"


def fetch_journal(folder: RunFolder, path: Path) -> None:
    """The journal of an earlier start to a local file; nothing where there is none."""
    if folder.store.exists(JOURNAL):
        path.write_bytes(folder.store.read(JOURNAL))


def _epoch_figures(run: Store, metric: str) -> dict[int, float]:
    """The metric on val by epochs done, from a run's history; what is not a number is left out."""
    figures = {row["epoch"] + 1: row.get(f"val_{metric}") for row in read_history(run) if row["kind"] == "epoch"}
    return {epochs: figure for epochs, figure in figures.items() if figure is not None and math.isfinite(figure)}


def read_trial(
    run: Store,
    metric: str,
    *,
    number: int,
    values: Mapping[str, Any],
    reason: str = "",
    verdict: str = "",
    ended: bool = True,
) -> TrialRow:
    """A trial's row, from its run folder.

    One that came to its end before it heard of a verdict was stopped early all the same: what a search tries next
    must not hang on which of the two was faster.

    Args:
        run: its folder, of which nothing need be there.
        reason: what else is known of why it ended.
        verdict: that it is to stop early, and by what; empty if nothing was decided.
        ended: whether it is known to be at work no more; then what has no end in its folder has failed.
    """
    record = read_record(run) if run.exists(RUN) else {}
    status = record.get("status", "running")
    if status == "running" and ended:
        status, reason = "failed", reason or "its driver was lost, and no other took it over"
    if status == "failed" and record.get("reason"):
        reason = f"{record['reason']['kind']}: {record['reason']['message']}"
    if verdict and status in ("finished", "pruned"):
        status, reason = "pruned", verdict
    selected, seconds, curve = record.get("selected"), record.get("seconds", {}), _epoch_figures(run, metric)
    return TrialRow(
        number=number,
        name=run.name,
        status=status,
        reason=reason if status in ("failed", "pruned") else "",
        values=dict(values),
        figure=selected["value"] if selected else None,
        selected_epoch=selected["epoch"] + 1 if selected else None,
        epochs=max(record.get("epochs", 0), max(curve, default=0)),
        curve=curve,
        train_seconds=seconds.get("train", 0.0) + seconds.get("evaluate", 0.0),
        worker_seconds=record.get("worker_seconds", 0.0),
        test_evaluations=record.get("test_evaluations", 0),
    )


def repeat_name(number: int, seed: int) -> str:
    """The run folder of a trial's repetition with another seed: `0007-seed1`."""
    return f"{number:04d}-seed{seed}"


def parse_repeat_name(name: str) -> tuple[int, int]:
    """Number and seed of a name that `repeat_name` gave."""
    number, seed = name.split("-seed")
    return int(number), int(seed)


def repeat_of(row: TrialRow, seed: int) -> Repeat:
    """A repetition's run folder that was read as a trial's."""
    figure = row.figure if row.status == "finished" else None
    return Repeat(
        name=row.name,
        number=row.number,
        seed=seed,
        status=row.status,
        figure=figure,
        worker_seconds=row.worker_seconds,
    )


def publish_leaderboard(folder: RunFolder, board: Leaderboard) -> list[str]:
    """The leaderboard's two files; their keys."""
    table = LEADERBOARD.removesuffix(".parquet") + ".csv"
    folder.publish(LEADERBOARD, leaderboard_parquet(board))
    folder.publish(table, leaderboard_csv(board))
    return [LEADERBOARD, table]


def best_recipe(run: Store, board: Leaderboard, config: Config) -> bytes:
    """`best.yaml`: the chosen trial's configuration as a recipe; training it gives the trial's figures again.

    It is whole: a later version's defaults change nothing of it.

    Args:
        run: the chosen trial's folder.
        config: of the search, for what trials have otherwise.
    """
    record = read_record(run)
    values = dict(read_config(run).values)
    for section in ("run", "storage"):
        del values[section]
    del values["loader"]["cache_dir"]
    values["evaluate"]["test"] = config.evaluate.test
    values["scale"]["wait_s"] = config.scale.wait_s
    values["train"]["micro_batch_size"] = record["micro_batch_size"]
    row = board.row(run.name)
    assert row is not None
    values["scale"]["use_gpu"] = row.values.get("scale.use_gpu", config.scale.use_gpu)
    figure = f"{board.metric} {row.figure:.4f} on val" if row.figure is not None else "no figure"
    head = (
        f"# xdist-train train {BEST}\n"
        f"# The best of {len(board.rows)} configurations of search {board.name} (recipe {board.recipe}, space "
        f"{board.space}).\n# Trial {row.name}: {figure}.\n"
    )
    return (head + dump_yaml(values)).encode()
