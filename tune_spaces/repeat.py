"""A recipe becomes a repetition: checks, connection, claim, its parts, and what is pooled of them.

Everything that can be refused is refused before anything is written.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from cluster.config import Layer, dump_yaml, load_config, parse_overrides
from cluster.errors import InputError, RunFailedError, StoppedError
from cluster.runs import CONFIG, SEARCH, RunFolder
from cluster.session import cluster_resources, connect, hide_node_messages, worker_slots
from cluster.store import open_store
from dataloading.dataset import Dataset, open_dataset
from dataloading.splits import SPLIT_COLUMNS
from tune_spaces.config import RepeatConfig
from tune_spaces.driving import check_name, claim, ended_in_words, run_tasks
from tune_spaces.parts import Part, check_folds, describe_scheme, plan_parts, usable_splits
from tune_spaces.repeat_view import RepeatView, repeat_view
from tune_spaces.repetition import PARTS, RepeatPlan, Repetition
from tune_spaces.result import Result, build_result, notes_of
from xdist_train.config import Config, RunConfig, identity_digest, narrow, read_recipe
from xdist_train.evidence.answers import read_answers
from xdist_train.training.preflight import (
    Prepared,
    check_fit,
    check_identity,
    check_nodes,
    prepare,
    with_absolute_paths,
)
from xdist_train.training.record import RunRecord, first_record
from xdist_train.training.watch import StopWish

__all__ = ["REPEAT", "RepeatResult", "run_repetition"]

REPEAT = "repeat.json"


@dataclass(frozen=True)
class RepeatResult:
    """Where a finished repetition lies, and its `repeat.json`."""

    uri: str
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A repetition as far as it can be checked without Ray."""

    repeat: RepeatConfig
    config: Config
    parts: tuple[Part, ...]
    prepared: Prepared
    folder: RunFolder
    earlier: dict[str, Any]
    identity: dict[str, Any]
    """What all starts of the repetition share."""


def run_repetition(recipe: str, overrides: Sequence[str], *, command: str, console: Console) -> RepeatResult:
    """Train a recipe by folds or splits, and seeds, and pool what the models say on test.

    Args:
        recipe: shipped name, or path.
        overrides: `key=value`: `folds`, `seeds`, `splits`, and settings that all parts share.
        command: what the user typed.

    Raises:
        InputError: something the user gave cannot work; nothing was written.
        RunFailedError: parts of every seed failed.
        StoppedError: the repetition was asked to stop; the same command with run.resume=must goes on.
    """
    draft = _draft(recipe, overrides)
    with connect() as ray, repeat_view(console) as view, StopWish() as wish:
        hide_node_messages()
        plan, hardware = _plan(ray, draft)
        if wish.asked:
            raise StoppedError("stopped before the repetition began; nothing was written.")
        record = _claim(draft, plan, command, hardware)
        console.print(f"run folder: {record.folder.store.uri}", highlight=False, markup=False, soft_wrap=True)
        with ended_in_words(record):
            repetition = Repetition(plan, record, changed=view.say)
            repetition.write()
            view.begin(repetition.rows(), plan.concurrency)
            _run(ray, repetition, view, wish, command)
            result = _conclude(repetition, draft.prepared.dataset, view)
    return RepeatResult(record.folder.store.uri, result.values)


def _draft(recipe: str, overrides: Sequence[str]) -> _Draft:
    """All checks that need no cluster."""
    layers = [read_recipe(recipe), *parse_overrides(overrides)]
    repeat = load_config(RepeatConfig, layers)
    _check_choices(repeat, layers)
    config = with_absolute_paths(narrow(repeat))
    name = config.run.name or f"{Path(recipe).stem}-repeat-{datetime.now():%Y%m%d-%H%M%S}"
    folder = RunFolder(open_store(config.storage.uri).child(name), driver=uuid.uuid4().hex)
    earlier = _check_name(folder, config.run.resume)
    seeds = repeat.seeds or [config.train.seed]
    parts = plan_parts(repeat.folds, _splits(repeat, config, layers), seeds)
    if repeat.folds and config.data.uri:
        dataset = open_dataset(config.data.uri)
        check_folds(dataset.read_manifest(list(SPLIT_COLUMNS)), dataset.info, repeat.folds)
    # All parts have the micro batches of the first start, on however many workers they run.
    micro = config.train.micro_batch_size or int(earlier.get("micro_batch_size", 0))
    config = replace(config, train=replace(config.train, micro_batch_size=micro))
    first_of_scheme = {part.scheme: part for part in reversed(parts)}
    checked = {scheme: _prepare(config, part, folder) for scheme, part in first_of_scheme.items()}
    prepared = checked[parts[0].scheme]
    config = replace(config, train=replace(config.train, micro_batch_size=prepared.micro_batch_size))
    return _Draft(
        repeat=repeat,
        config=config,
        parts=parts,
        prepared=prepared,
        folder=folder,
        earlier=earlier,
        identity=_identity(name, earlier, prepared, parts, config),
    )


def _check_choices(repeat: RepeatConfig, layers: Sequence[Layer]) -> None:
    """Refuses settings that contradict each other."""
    if repeat.folds and _is_set(layers, "data", "split"):
        raise InputError(
            f"data.split={repeat.data.split} and folds={repeat.folds}: the folds are drawn by patient, and say "
            "themselves what is train, val and test. Leave data.split out, or give folds=0 to train on it."
        )
    if repeat.splits and _is_set(layers, "data", "split"):
        raise InputError(
            f"data.split={repeat.data.split} and splits=[{', '.join(repeat.splits)}]: both say what is trained on. "
            "Leave one of them out."
        )
    if repeat.seeds and _is_set(layers[1:], "train", "seed"):
        raise InputError(
            f"train.seed={repeat.train.seed} and seeds=[{', '.join(map(str, repeat.seeds))}]: both say which seeds are "
            "trained. Leave train.seed out."
        )
    if not repeat.evaluate.test:
        raise InputError("evaluate.test=false: a repetition pools what its parts say on test. Leave it out.")
    if repeat.cam.after:
        raise InputError(
            "cam.after=true: maps are made of one model, and a repetition has many. Leave it out, and explain a part "
            "when all is done: xdist-train cam RUN/parts/NAME."
        )


def _is_set(layers: Sequence[Layer], section: str, key: str) -> bool:
    return any(key in layer.values.get(section, {}) for layer in layers)


def _check_name(folder: RunFolder, resume: str) -> dict[str, Any]:
    """What `run.json` said before this start; empty for a new repetition."""
    earlier = folder.read_record()
    other = "a search" if folder.store.exists(SEARCH) else "a run" if earlier and "parts" not in earlier else ""
    if other:
        raise InputError(
            f"run.name {folder.name!r}: {folder.store.uri} holds {other}, not a repetition. Choose another name."
        )
    check_name(folder, resume, "repetition")
    return earlier


def _splits(repeat: RepeatConfig, config: Config, layers: Sequence[Layer]) -> tuple[str, ...]:
    """What is trained on beside the folds."""
    if repeat.folds or repeat.splits:
        return repeat.splits
    if _is_set(layers, "data", "split") or not config.data.uri:
        return (config.data.split,)
    dataset = open_dataset(config.data.uri)
    return usable_splits(dataset.read_manifest(list(SPLIT_COLUMNS)), dataset.info)


def _prepare(config: Config, part: Part, folder: RunFolder) -> Prepared:
    """What a launch would refuse, of one part of a scheme."""
    probe = replace(config, run=RunConfig(name=f"check-{folder.driver}"), data=replace(config.data, split=part.split))
    return prepare(probe, "check", folder.store.child(PARTS))


def _identity(
    name: str, earlier: Mapping[str, Any], prepared: Prepared, parts: Sequence[Part], config: Config
) -> dict[str, Any]:
    """What all starts share; seeds may be added.

    Raises:
        InputError: an earlier start had another one.
    """
    seeds = list(dict.fromkeys(part.seed for part in parts))
    identity = {
        **prepared.identity,
        "data.split": ", ".join(dict.fromkeys(_described(part, parts) for part in parts)),
        "train.epochs": config.train.epochs,  # parts of different lengths are not comparable
        "train.seed": seeds,
    }
    before = earlier.get("identity", {}).get("train.seed", [])
    check_identity(name, dict(earlier), {**identity, "train.seed": before} if {*before} < {*seeds} else identity)
    return identity


def _described(part: Part, parts: Sequence[Part]) -> str:
    folds = sum(other.fold is not None and other.seed == part.seed for other in parts)
    return describe_scheme(part.scheme, folds)


def _plan(ray: Any, draft: _Draft) -> tuple[RepeatPlan, dict[str, Any]]:
    """The checks that need a cluster; what is to be done, and on what hardware."""
    resources, scale = cluster_resources(ray), draft.config.scale
    use_gpu = check_fit(draft.config, draft.prepared.dataset, resources)
    room = worker_slots(ray, resources, scale.cpus_per_worker, 1.0 if use_gpu else 0.0) // scale.most
    check_nodes(ray, draft.config, draft.prepared)
    plan = RepeatPlan(
        name=draft.folder.name,
        config=draft.config,
        parts=draft.parts,
        concurrency=max(1, min(draft.repeat.concurrency or room, room)),
        use_gpu=use_gpu,
    )
    return plan, {"host": platform.node(), "cpus": resources.cpus, "gpus": resources.gpus, "use_gpu": use_gpu}


def _claim(draft: _Draft, plan: RepeatPlan, command: str, hardware: dict[str, Any]) -> RunRecord:
    folder = draft.folder
    number = claim(folder, draft.config.run.resume)
    folder.publish(CONFIG, dump_yaml(draft.config).encode())
    record = first_record(
        folder,
        draft.earlier,
        command=command,
        parent=None,
        fingerprint=draft.prepared.dataset.info.fingerprint,
        split=draft.identity["data.split"],
        identity_digest=identity_digest(draft.identity),
        identity=draft.identity,
        micro_batch_size=draft.prepared.micro_batch_size,
        attempt=number,
        parts=[],
        metric=plan.metric,
        group_starts=0,
        epochs=draft.config.train.epochs,
        stopped_early=False,
        workers=draft.config.scale.num_workers,
        hardware=hardware,
    )
    record.write(complete=sorted({*record.values["complete"], CONFIG}))
    return record


def _run(ray: Any, repetition: Repetition, view: RepeatView, wish: StopWish, command: str) -> None:
    """Parts until there are no more, or a stop is asked for."""

    def show(texts: Mapping[str, str]) -> None:
        view.show(repetition.rows(), texts)

    failures = repetition.plan.config.failure.max_failures
    run_tasks(ray, repetition, wish, max_failures=failures, command=command, say=view.say, show=show)


def _conclude(repetition: Repetition, dataset: Dataset, view: RepeatView) -> Result:
    """The last word: what is pooled of the parts that finished."""
    if repetition.stopping:
        _end_stopped(repetition)
    rows, config = repetition.rows(), repetition.plan.config
    answers = {
        part.name: read_answers(repetition.run_of(part), "test") for part, row in rows if row.status == "finished"
    }
    view.say(f"pooling what {len(answers)} of {len(rows)} parts said on test")
    view.show(rows, {})
    result = build_result(
        repetition.plan.name,
        rows,
        answers,
        dataset,
        metric=repetition.plan.metric,
        resamples=config.evaluate.bootstrap,
    )
    objects = result.evidence.objects("test") if result.evidence else {}
    folder = repetition.folder
    for key, data in objects.items():
        folder.publish(key, data)
    folder.publish_json(REPEAT, result.values)
    complete = sorted({*repetition.record.values["complete"], *objects, REPEAT})
    notes = notes_of(result.values)
    if not result.evidence:
        repetition.finish("failed", reason="no seed is whole", complete=complete, notes=notes)
        raise RunFailedError(
            "no_seed",
            f"repetition {folder.name!r} has nothing to pool: {' '.join(notes)} What finished is kept; the same "
            f"command with run.name={folder.name} run.resume=must tries the others again.",
        )
    values, metric = result.values["schemes"][0], result.values["metric"]
    repetition.finish(
        "finished",
        complete=complete,
        notes=notes,
        pooled={"metric": metric, "value": values["pooled"][metric]["value"]},
        test_evaluations=1,
    )
    return result


def _end_stopped(repetition: Repetition) -> NoReturn:
    name, rows = repetition.plan.name, repetition.rows()
    repetition.finish("stopped")
    why = f": {repetition.trouble.rstrip('.')}" if repetition.trouble else ""
    done = sum(row.status == "finished" for _, row in rows)
    raise StoppedError(
        f"repetition {name!r} stopped{why}. {done} of {len(rows)} parts have finished, and what was at work is kept; "
        f"nothing is pooled before all have ended. The same command with run.name={name} run.resume=must goes on."
    )
