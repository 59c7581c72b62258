"""The CAM job: Ray actors share the parts of a split, then its pictures; `cam.json` is written last.

Ray's own pool hands out parts, and Ray restarts a lost actor and gives it its part again. Parts that are there and
were made under the same facts are not made again; if the facts changed, the folder is emptied first.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console

from cluster.errors import InputError, RunFailedError
from cluster.processes import KEEPS_FREED_MEMORY
from cluster.runs import CAM_IMAGES, CAM_MAPS, CAM_OVERLAYS, CAM_SUMMARY, RUN, cam_part_key, read_record
from cluster.session import ClusterResources, cluster_resources, connect, worker_slots
from cluster.terminal import progress_bar
from xdist_train.config import CamConfig
from xdist_train.evidence.cams.gallery import Shown, choose_gallery
from xdist_train.evidence.cams.localisation import Placed
from xdist_train.evidence.cams.parts import maps_in, part_facts, read_part
from xdist_train.evidence.cams.request import CamRequest, read_request
from xdist_train.evidence.cams.summary import SUMMARY_COLUMNS, figures_of, mean_of_maps, pointing_line
from xdist_train.evidence.cams.worker import CamWorker, PartDone, picture_keys

__all__ = ["explain_run", "run_cam"]

_RESTARTS = 3  # of a worker, and of a part whose worker was lost
_WAIT_S = 300.0  # for the first worker: room in the cluster, and its start
_TOGETHER_S = 20.0  # for the others, from then on

Progress = Callable[[str, int, int], None]


def run_cam(
    run_uri: str, *, split: str = "", data_uri: str = "", overrides: Sequence[str] = (), console: Console
) -> dict[str, Any]:
    """Explain a split of a finished run; the content of its `cam.json`.

    Raises:
        InputError: what `read_request` refuses, or a cluster that cannot reach the data.
        RunFailedError: workers were lost again and again.
    """
    request = read_request(run_uri, split=split, data_uri=data_uri, overrides=overrides)
    with connect() as ray:
        return _run(ray, request, console)


def explain_run(ray: Any, run_uri: str, config: CamConfig, console: Console) -> dict[str, Any]:
    """The same for a run that has just finished, on what it has freed."""
    return _run(ray, read_request(run_uri, cam=config), console)


def _run(ray: Any, request: CamRequest, console: Console) -> dict[str, Any]:
    choice, started = request.order.choice, time.perf_counter()
    pending = _pending_parts(request)
    _say(
        console,
        f"explaining {request.num_images} images of {request.order.split} by {choice.method} at {choice.layer}: "
        f"{len(pending)} of {request.num_parts} parts to do",
    )
    with _workers(ray, request, max(1, len(pending))) as workers, progress_bar() as show:
        ready = time.perf_counter()
        images = _explain(workers, request, pending, show)
        explained = time.perf_counter()
        rows, mean_map, masked = _read_parts(request)
        baselines = _baselines(workers, masked, mean_map)
        shown = choose_gallery(*_answers(rows), request.description.classes, request.order.config.gallery)
        _draw(workers, request, rows, shown, show)
        drawn = time.perf_counter()
        num_workers = len(workers.actors)
    summary = {
        **request.order.facts,
        **_about(request, num_workers),
        "seconds": {"start": ready - started, "maps": explained - ready, "pictures": drawn - explained},
        "images_per_s": images / (explained - ready) if images else None,
        **figures_of(
            rows, baselines, _patients(request, rows), request.description.classes, resamples=request.resamples
        ),
        "gallery": [_entry(item, rows, request) for item in shown],
    }
    request.store.write_json(CAM_SUMMARY, summary)
    _list_in_record(request, [CAM_SUMMARY, *map(cam_part_key, range(request.num_parts))])
    for line in filter(None, (pointing_line(summary), summary["shortcut"]["warning"])):
        _say(console, line)
    _say(console, f"maps: {request.store.uri}")
    return summary


def _pending_parts(request: CamRequest) -> list[int]:
    """Parts that are not there yet. What was made under other facts is removed, and so is what was said of it."""
    store, wanted = request.store, request.order.facts
    there = {name: part_facts(store, f"{CAM_MAPS}/{name}") for name in store.list(CAM_MAPS)}
    if any(facts != wanted for facts in there.values()):
        _list_in_record(request, [])
        store.delete_tree("")
        there = {}
    keys = {number: cam_part_key(number).removeprefix(f"{CAM_MAPS}/") for number in range(request.num_parts)}
    return [number for number, name in keys.items() if name not in there]


def _list_in_record(request: CamRequest, keys: Iterable[str]) -> None:
    """Name what of this job may be read in `run.json`, and nothing else of it."""
    store, folder = request.run.store, request.order.folder
    record = read_record(store)
    others = {key for key in record["complete"] if not key.startswith(f"{folder}/")}
    complete = sorted(others | {f"{folder}/{key}" for key in keys})
    if complete != record["complete"]:
        store.write_json(RUN, {**record, "complete": complete})


@dataclass(frozen=True)
class _Workers:
    """Actors that are ready, and Ray's pool over them."""

    ray: Any
    actors: list[Any]

    def map(self, call: Callable[[Any, Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Answers as they come; `call` gives the actor its item.

        Raises:
            XdistError: what a worker raised; RunFailedError where one was lost too often.
        """
        from ray.util import ActorPool

        pool = ActorPool(self.actors)
        for item in items:
            pool.submit(call, item)
        while pool.has_next():
            with _in_words(self.ray):
                answer = pool.get_next_unordered()
            yield answer


@contextmanager
def _in_words(ray: Any) -> Iterator[None]:
    """What Ray raises in the block: the worker's own error, or that it was lost."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        said = " ".join(str(error).split())[:300]
        raise RunFailedError(
            "lost_workers",
            f"a CAM worker was lost {_RESTARTS + 1} times, or its node was ({said}). The same command goes on with "
            "the parts that are missing; with less memory a worker, cam.batch_size is smaller.",
        ) from None


@contextmanager
def _workers(ray: Any, request: CamRequest, num_parts: int) -> Iterator[_Workers]:
    """As many workers as there are room and parts for; those that get their place late are not waited for."""
    config, resources = request.order.config, cluster_resources(ray)
    _require_reach(request, resources)
    gpus = 1 if config.use_gpu == "yes" or (config.use_gpu == "auto" and resources.gpus >= 1) else 0
    slots = worker_slots(ray, resources, config.cpus_per_worker, gpus)
    if not slots:
        raise InputError(
            f"cam.cpus_per_worker={config.cpus_per_worker}, cam.use_gpu={config.use_gpu}: no node of the cluster "
            f"({resources.cpus:g} CPUs, {resources.gpus:g} GPUs on {resources.nodes} node(s)) can hold such a worker."
        )
    count = min(config.workers or slots, slots, num_parts)
    remote = ray.remote(CamWorker).options(
        num_cpus=config.cpus_per_worker,
        num_gpus=gpus,
        max_restarts=_RESTARTS,
        max_task_retries=_RESTARTS,
        runtime_env=None if gpus else {"env_vars": KEEPS_FREED_MEMORY},
    )
    order = replace(request.order, config=replace(config, use_gpu="yes" if gpus else "no"))
    actors = [remote.remote(order) for _ in range(count)]
    try:
        yield _Workers(ray, _ready(ray, actors))
    finally:
        for actor in actors:
            ray.kill(actor)


def _ready(ray: Any, actors: Sequence[Any]) -> list[Any]:
    """Those that have loaded everything in time."""
    tasks = {actor.prepare.remote(): actor for actor in actors}
    done, rest = ray.wait(list(tasks), num_returns=1, timeout=_WAIT_S)
    if not done:
        raise RunFailedError(
            "no_room",
            f"no CAM worker could start within {_WAIT_S:.0f} s: the cluster is full. Wait for other jobs, or give "
            "cam.cpus_per_worker or cam.use_gpu that fit what is free.",
        )
    if rest:
        done += ray.wait(rest, num_returns=len(rest), timeout=_TOGETHER_S)[0]
    with _in_words(ray):
        ray.get(done)
    return [tasks[task] for task in done]


def _require_reach(request: CamRequest, resources: ClusterResources) -> None:
    stores = {"RUN": request.run.store, "data.uri": request.dataset.store}
    local = [f"{what} {store.uri!r}" for what, store in stores.items() if store.is_local]
    if local and (resources.nodes > 1 or resources.autoscaling):
        raise InputError(
            f"{' and '.join(local)}: a path of this machine, but the cluster has several nodes or an autoscaler. "
            "Workers on them need storage that all reach: s3://BUCKET/PREFIX."
        )


def _explain(workers: _Workers, request: CamRequest, pending: Sequence[int], show: Progress) -> int:
    """Make the parts; how many images they have."""
    images, size = 0, request.order.config.part_size
    total = sum(min(size, request.num_images - number * size) for number in pending)
    done: PartDone
    for done in workers.map(lambda actor, number: actor.explain.remote(number), pending):
        images += done.images
        show("images explained", images, total)
    return images


def _read_parts(request: CamRequest) -> tuple[pa.Table, npt.NDArray[np.float32], list[int]]:
    """All rows in order; the mean of the true classes' maps over images with a mask; the parts that have such."""
    choice = request.order.choice
    tables, masked, count = [], [], 0
    total = np.zeros((choice.map_height, choice.map_width))
    for number in range(request.num_parts):
        table = read_part(request.store, cam_part_key(number))
        chosen = table.filter(table["pointing_hit"].is_valid())
        if chosen.num_rows:
            of_label = maps_in(chosen, "map_of_label")
            maps = np.where(np.isnan(of_label), maps_in(chosen), of_label)
            total, count = mean_of_maps(total, maps), count + chosen.num_rows
            masked.append(number)
        tables.append(table.select(SUMMARY_COLUMNS))
    return pa.concat_tables(tables), (total / max(count, 1)).astype(np.float32), masked


def _baselines(workers: _Workers, masked: Sequence[int], mean_map: npt.NDArray[np.float32]) -> dict[str, Placed]:
    """What looks at the middle, or where all maps look, against the same masks."""
    answers = workers.map(lambda actor, number: actor.place_baselines.remote(number, mean_map), masked)
    by_part = sorted(answers, key=lambda answer: answer[0])
    names = by_part[0][1] if by_part else {}
    return {name: Placed.joined([found[name] for _, found in by_part]) for name in names}


def _answers(rows: pa.Table) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float64]]:
    labels, predicted = (np.asarray(rows[name].to_pylist(), dtype=object) for name in ("label", "predicted"))
    return labels, predicted, rows["probability"].to_numpy()


def _draw(workers: _Workers, request: CamRequest, rows: pa.Table, shown: Sequence[Shown], show: Progress) -> None:
    """The pictures that are asked for and not there yet."""
    config, ids = request.order.config, rows["id"].to_pylist()
    wanted = {"all": range(len(ids)), "gallery": sorted({item.row for item in shown}), "none": ()}[config.overlays]
    there = {*request.store.list(CAM_OVERLAYS)} & {*request.store.list(CAM_IMAGES)}
    by_part: dict[int, list[int]] = defaultdict(list)
    for row in wanted:
        if f"{ids[row]}.jpg" not in there:
            by_part[row // config.part_size].append(ids[row])
    done, total = 0, sum(map(len, by_part.values()))
    for count in workers.map(lambda actor, item: actor.draw.remote(*item), by_part.items()):
        done += count
        show("pictures drawn", done, total)


def _patients(request: CamRequest, rows: pa.Table) -> list[str]:
    patients: list[str] = request.dataset.read_manifest(["patient"]).take(rows["id"])["patient"].to_pylist()
    return patients


def _about(request: CamRequest, num_workers: int) -> dict[str, Any]:
    choice = request.order.choice
    return {
        "map_height": choice.map_height,
        "map_width": choice.map_width,
        "classes": list(request.description.classes),
        "workers": num_workers,
    }


def _entry(item: Shown, rows: pa.Table, request: CamRequest) -> dict[str, Any]:
    """A picture of the gallery; keys are of the run folder, None where pictures are not drawn."""
    row = {name: rows[name][item.row].as_py() for name in ("id", "label", "predicted", "probability")}
    image, overlay = (f"{request.order.folder}/{key}" for key in picture_keys(row["id"]))
    drawn = request.order.config.overlays != "none"
    return {
        "id": row["id"],
        "group": item.group,
        "class": item.class_name,
        "order": item.order,
        "label": row["label"],
        "predicted": row["predicted"],
        "probability": row["probability"],
        "image": image if drawn else None,
        "overlay": overlay if drawn else None,
    }


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
