"""A recipe and a space become a search: checks, connection, claim, trials, and what the search leaves.

Everything that can be refused is refused before anything is written.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from cluster.config import Layer, load_config, parse_overrides, to_dict
from cluster.errors import InputError, RunFailedError, StoppedError
from cluster.package import code_revision
from cluster.runs import RUN, SEARCH, RunFolder, evaluation_key, read_record
from cluster.session import cluster_resources, connect, hide_node_messages, worker_slots
from cluster.store import open_store
from tune_spaces import ledger
from tune_spaces.config import TuneConfig
from tune_spaces.driving import LOOK_S, check_name, claim, ended_in_words, run_tasks
from tune_spaces.leaderboard import Leaderboard
from tune_spaces.live import SearchView, estimate_left, search_view
from tune_spaces.search import Plan, Search
from tune_spaces.space import Space, values_layer
from tune_spaces.space_file import read_space, samples, space_names
from tune_spaces.study import Study, open_study
from xdist_train.config import Config, RunConfig, narrow, read_recipe
from xdist_train.evidence.cams.job import explain_run
from xdist_train.evidence.evaluation import run_evaluation
from xdist_train.training.early_stopping import lower_is_better
from xdist_train.training.preflight import (
    Prepared,
    check_fit,
    check_identity,
    check_network,
    check_nodes,
    prepare,
    with_absolute_paths,
)
from xdist_train.training.record import RunRecord, versions
from xdist_train.training.watch import StopWish

__all__ = ["SearchResult", "run_search"]

_SCHEMA = 1


@dataclass(frozen=True)
class SearchResult:
    """Where a finished search lies, and what it found."""

    uri: str
    board: Leaderboard


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A search as far as it can be checked without Ray."""

    recipe: str
    tune: TuneConfig
    config: Config
    space: Space
    prepared: Prepared
    folder: RunFolder
    identity: dict[str, Any]
    """What all starts of the search share."""
    samples: list[tuple[str, Config]]
    """Configurations that together hold all that the space may bring, with what to call each."""


def run_search(recipe: str, overrides: Sequence[str], *, command: str, console: Console) -> SearchResult:
    """Search a space over a recipe.

    Args:
        recipe: shipped name, or path.
        overrides: `key=value`: `space`, `search.*`, and settings that all trials share.
        command: what the user typed.

    Raises:
        InputError: something the user gave cannot work; nothing was written.
        RunFailedError: no trial finished.
        StoppedError: the search was asked to stop; the same command with run.resume=must goes on.
    """
    draft = _draft(recipe, overrides)
    with (
        tempfile.TemporaryDirectory(prefix="xdist-search-") as scratch,
        connect() as ray,
        search_view(console) as view,
        StopWish() as wish,
    ):
        hide_node_messages()
        plan = _plan(ray, draft)
        _open_study(draft, plan, Path(scratch) / "refusals.jsonl")
        if wish.asked:
            raise StoppedError("stopped before the search began; nothing was written.")
        record = _claim(draft, plan, command)
        console.print(f"search folder: {record.folder.store.uri}", highlight=False, markup=False, soft_wrap=True)
        with ended_in_words(record):
            # Opened again: until the claim another start may have written.
            journal = Path(scratch) / ledger.JOURNAL
            search = Search(plan, _open_study(draft, plan, journal), record, journal, changed=view.say)
            _run(ray, search, view, wish, command)
            board = _conclude(ray, search, view, wish)
        if plan.config.cam.after:
            _explain(ray, search, board, console)
    return SearchResult(record.folder.store.uri, board)


def _open_study(draft: _Draft, plan: Plan, journal: Path) -> Study:
    """The study of this and all earlier starts, in a local file.

    Raises:
        InputError: what earlier starts left is another search's.
    """
    ledger.fetch_journal(draft.folder, journal)
    return open_study(
        draft.space,
        plan.located.params,
        sampler=plan.search.sampler,
        scheduler=plan.search.scheduler,
        direction=plan.direction,
        seed=plan.search.seed,
        num_points=plan.search.num_points,
        grace_epochs=plan.search.grace_epochs,
        reduction_factor=plan.search.reduction_factor,
        journal=journal,
        place=draft.folder.store.locate(ledger.JOURNAL),
    )


def _draft(recipe: str, overrides: Sequence[str]) -> _Draft:
    """All checks that need no cluster."""
    tune = load_config(TuneConfig, [read_recipe(recipe), *parse_overrides(overrides)])
    if not tune.space:
        raise InputError(
            f"space is not set: give what to search, space=NAME. Spaces are: {', '.join(space_names())}; "
            "or give the path of a YAML file."
        )
    config = with_absolute_paths(narrow(tune))
    space = read_space(tune.space, [Layer(f"recipe {recipe}", to_dict(config))])
    _check_metric(config, space)
    name = config.run.name or f"{Path(recipe).stem}-{Path(tune.space).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = RunFolder(open_store(config.storage.uri).child(name), driver=uuid.uuid4().hex, record=SEARCH)
    earlier = _check_name(folder, config.run.resume)
    probe = replace(config, run=RunConfig(name=f"check-{folder.driver}"))
    prepared = prepare(probe, "check", folder.store.child(ledger.TRIALS))
    # Trials of different lengths are not comparable, also where a run could be lengthened.
    identity = {**prepared.identity, "train.epochs": config.train.epochs}
    check_identity(name, earlier, identity)
    draft = _Draft(
        recipe=recipe,
        tune=tune,
        config=config,
        space=space,
        prepared=prepared,
        folder=folder,
        identity=identity,
        samples=list(_samples(recipe, config, space)),
    )
    _check_networks(draft)
    return draft


def _check_metric(config: Config, space: Space) -> None:
    """Losses of differently smoothed or weighted labels are no measure of who is better."""
    changed = [key for key in space.specs if key.startswith("loss.")]
    if config.train.metric == "loss" and changed:
        raise InputError(
            f"train.metric=loss, and {space.source} searches {', '.join(changed)}: losses of trials could not be "
            "compared. Give another figure, e.g. train.metric=auroc_macro."
        )


def _check_name(folder: RunFolder, resume: str) -> dict[str, Any]:
    """What `search.json` said before this start; empty for a new search."""
    if folder.store.exists(RUN):
        raise InputError(f"run.name {folder.name!r}: {folder.store.uri} holds a run. Choose another name.")
    check_name(folder, resume, "search")
    return folder.read_record()


def _samples(recipe: str, config: Config, space: Space) -> Iterator[tuple[str, Config]]:
    base = Layer(f"recipe {recipe}", to_dict(config))
    for key, values in samples(space, space.locate(config)):
        sample = load_config(Config, [base, values_layer(values, space.source)])
        yield f"{space.source}: {key}={values[key]}", with_absolute_paths(sample)


def _check_networks(draft: _Draft) -> None:
    """Every network of the space can be built, and its first weights are there."""
    seen = {(draft.config.model, draft.config.loader.image_size)}
    for source, config in draft.samples:
        facts = (config.model, config.loader.image_size)
        if facts not in seen:
            seen.add(facts)
            with _named(source):
                check_network(config, len(draft.prepared.dataset.info.classes))


@contextmanager
def _named(source: str) -> Iterator[None]:
    """An InputError of the block says where the value came from."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _plan(ray: Any, draft: _Draft) -> Plan:
    """The checks that need a cluster."""
    resources, dataset = cluster_resources(ray), draft.prepared.dataset
    use_gpu = check_fit(draft.config, dataset, resources)
    slots = worker_slots(ray, resources, draft.config.scale.cpus_per_worker, 1.0 if use_gpu else 0.0)
    room = slots // draft.config.scale.most
    for source, config in draft.samples:
        if config.scale != draft.config.scale:
            with _named(source):
                gpu = check_fit(config, dataset, resources)
            slots = worker_slots(ray, resources, config.scale.cpus_per_worker, 1.0 if gpu else 0.0)
            room, use_gpu = min(room, slots // config.scale.most), use_gpu or gpu
    if draft.tune.search.gpu_hours and not use_gpu:
        raise InputError(
            f"search.gpu_hours={draft.tune.search.gpu_hours:g}, but trials use no GPU here, so it would never be "
            "reached. Give search.hours, or scale.use_gpu=yes on a cluster with GPUs."
        )
    check_nodes(ray, draft.config, draft.prepared)
    return Plan(
        name=draft.folder.name,
        recipe=draft.recipe,
        space=draft.tune.space,
        space_keys=draft.space,
        config=draft.config,
        search=draft.tune.search,
        located=draft.space.locate(draft.config),
        direction="minimize" if lower_is_better(draft.config.train.metric) else "maximize",
        concurrency=max(1, min(draft.tune.search.concurrency or room, room)),
        use_gpu=use_gpu,
    )


def _claim(draft: _Draft, plan: Plan, command: str) -> RunRecord:
    folder = draft.folder
    number = claim(folder, draft.config.run.resume)
    earlier = folder.read_record()
    kept = {"seconds": 0.0, "complete": [], "best": None, "trials": []}
    start = {"attempt": number, "concurrency": plan.concurrency, "started": time.time()}
    record = RunRecord(
        folder,
        {
            "schema": _SCHEMA,
            "status": "running",
            **{key: earlier.get(key, default) for key, default in kept.items()},
            "command": command,
            "recipe": plan.recipe,
            "space": {"name": plan.space, "keys": draft.space.to_dict()},
            "search": to_dict(plan.search),
            "metric": plan.metric,
            "direction": plan.direction,
            "identity": draft.identity,
            "fingerprint": draft.prepared.dataset.info.fingerprint,
            "code_revision": code_revision(),
            "versions": versions(),
            "attempts": [*earlier.get("attempts", []), start],
        },
    )
    record.write()
    return record


def _run(ray: Any, search: Search, view: SearchView, wish: StopWish, command: str) -> None:
    """Trials until there are no more, or a stop is asked for."""
    failures = search.plan.config.failure.max_failures
    show = partial(_show, search, view)
    run_tasks(ray, search, wish, max_failures=failures, command=command, say=view.say, show=show)


def _show(search: Search, view: SearchView, texts: Mapping[str, str]) -> None:
    now, limits = search.board(), search.plan.search
    left_s = None if search.stopping else estimate_left(now, limits.trials, limits.hours)
    limit = str(limits.trials) if limits.trials else "all it has time for"
    view.show(now, texts, left_s, limit)


def _conclude(ray: Any, search: Search, view: SearchView, wish: StopWish) -> Leaderboard:
    """The last word: the chosen configuration on test, once, and what is left to read."""
    plan = search.plan
    if search.stopping:
        _end_stopped(search)
    view.say(f"no more trials: {search.ended_by}")
    board = search.board("finished")
    row = board.row(board.best)
    if row is None:
        search.publish(search.board("failed"))
        search.finish("failed", reason="no trial finished")
        raise RunFailedError("no_trial", _nothing_finished(board))
    search.publish(board)
    if plan.config.evaluate.test:
        view.say(f"evaluating test, once, with the best: {row.name}")
        view.show(board, {}, None, str(len(board.rows)))
        figures = _test_figures(ray, search, row.name, wish)
        board = replace(search.board("finished"), test=figures)
        search.publish(board)
    search.finish("finished", ended_by=search.ended_by)
    return board


def _explain(ray: Any, search: Search, board: Leaderboard, console: Console) -> None:
    """Class activation maps of the chosen trial; the search has ended, whatever becomes of them."""
    assert board.best is not None, "a search that found nothing is an error before"
    run = search.folder.store.child(ledger.TRIALS).child(board.best)
    explain_run(ray, run.uri, search.plan.config.cam, console)


def _end_stopped(search: Search) -> NoReturn:
    search.publish(search.board("stopped"))
    search.finish("stopped", ended_by=search.trouble or "a wish to stop")
    why = f": {search.trouble.rstrip('.')}" if search.trouble else ""
    raise StoppedError(
        f"search {search.plan.name!r} stopped{why}. What was at work is kept. The same command with "
        f"run.name={search.plan.name} run.resume=must goes on."
    )


def _test_figures(ray: Any, search: Search, name: str, wish: StopWish) -> dict[str, Any]:
    """The chosen trial's figures on test: once, also over several starts, on a worker's resources."""
    run = search.folder.store.child(ledger.TRIALS).child(name)
    if evaluation_key("test") not in read_record(run)["complete"]:
        scale, gpus = search.plan.config.scale, 1 if search.plan.use_gpu else 0
        task = ray.remote(num_cpus=scale.cpus_per_worker, num_gpus=gpus)(_evaluate_on_test).remote(run.uri)
        while not ray.wait([task], timeout=LOOK_S)[0]:
            if wish.asked:
                ray.cancel(task, force=True)
                _end_stopped(search)
            search.beat()
        try:
            ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        search.note_test(name)
    return dict(run.read_json(evaluation_key("test")))


def _evaluate_on_test(run_uri: str) -> None:
    run_evaluation(run_uri, "test", "")


def _nothing_finished(board: Leaderboard) -> str:
    failed = [row for row in board.rows if row.status == "failed"]
    cut = sum(row.status == "stopped" for row in board.rows)
    again = f" {cut} were cut short by a limit of the search: raise it, with run.resume=must." if cut else ""
    reasons = "; ".join(f"{row.name}: {row.reason}" for row in failed[:3])
    why = f"{len(failed)} failed ({reasons}{'; ...' if len(failed) > 3 else ''})" if failed else "none failed"
    pruned = sum(row.status == "pruned" for row in board.rows)
    return (
        f"no trial of search {board.name!r} came to its end, so nothing can be chosen: of {len(board.rows)} "
        f"{why}, {pruned} stopped early.{again} See leaderboard.csv in its folder."
    )
