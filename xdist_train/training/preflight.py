"""Everything that can be refused is refused here, before anything is written: first without Ray, then with it."""

from __future__ import annotations

import platform
import uuid
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import torch
from torch import nn

from cluster.disk import readable_bytes
from cluster.errors import InputError, NoRoomError
from cluster.runs import SEARCH, RunFolder
from cluster.session import ClusterResources, on_each_node
from cluster.store import Store, open_store
from dataloading.dataset import Dataset, open_dataset
from dataloading.loading.cache import cache_root, count_classes, open_split
from dataloading.loading.plan import StepPlan
from xdist_train.config import Config, fill_identity, identity
from xdist_train.evidence.cams.request import check_method
from xdist_train.models.backbones import build_model, check_model, require_channels
from xdist_train.models.losses import build_class_weights
from xdist_train.models.tensors import WEIGHTS_LIMIT_BYTES
from xdist_train.models.weights import StoredWeights, read_weights, require_fit, resolve_weights
from xdist_train.training.node_check import NodeCheck
from xdist_train.training.optim import build_schedule

__all__ = [
    "Prepared",
    "already_finished",
    "check_fit",
    "check_identity",
    "check_network",
    "check_nodes",
    "prepare",
    "with_absolute_paths",
]

_NODE_CHECK_S = 60.0


@dataclass(frozen=True)
class Prepared:
    """What the checks without Ray found."""

    dataset: Dataset
    folder: RunFolder
    earlier: dict[str, Any]
    micro_batch_size: int
    identity: dict[str, Any]
    weights: StoredWeights | None


def prepare(config: Config, label: str, place: Store | None = None) -> Prepared:
    """All checks that need no cluster.

    Args:
        label: start of an automatic run name.
        place: where the run folder lies; None is `storage.uri`.

    Raises:
        InputError: something the user gave cannot work.
    """
    if not config.data.uri:
        raise InputError("data.uri is not set: give the packed dataset to train on, data.uri=FOLDER.")
    dataset = open_dataset(config.data.uri)
    name = config.run.name or f"{label}-{datetime.now():%Y%m%d-%H%M%S}"
    place = place or open_store(config.storage.uri)
    folder = RunFolder(place.child(name), driver=uuid.uuid4().hex)
    earlier = _check_name(config, folder, place)
    micro = config.train.micro_batch_size or int(earlier.get("micro_batch_size") or _micro_batch_size(config))
    same = identity(config, dataset.info.fingerprint, micro)
    check_identity(folder.name, earlier, same)
    require_channels(config.model, dataset.info.channels, dataset.store.uri)
    _check_splits(config, dataset, micro)
    build_schedule(config.schedule, 1, config.train.epochs)
    weights = check_network(config, len(dataset.info.classes))
    return Prepared(dataset, folder, earlier, micro, same, weights)


def with_absolute_paths(config: Config) -> Config:
    """Workers and later commands run elsewhere: every path of this machine is spelled from its root."""
    weights = config.model.weights
    if weights not in ("none", "imagenet"):
        weights = open_store(weights).uri
    return replace(
        config,
        data=replace(config.data, uri=config.data.uri and open_store(config.data.uri).uri),
        storage=replace(config.storage, uri=open_store(config.storage.uri).uri),
        loader=replace(config.loader, cache_dir=str(cache_root(config.loader.cache_dir))),
        model=replace(config.model, weights=weights),
    )


def _check_name(config: Config, folder: RunFolder, place: Store) -> dict[str, Any]:
    """What `run.json` said before this start; empty for a new run."""
    if folder.store.exists(SEARCH):
        raise InputError(f"run.name {folder.name!r}: {folder.store.uri} holds a search. Choose another name.")
    exists = folder.exists()
    if exists and config.run.resume == "never":
        raise InputError(
            f"run.name {folder.name!r} is taken in {place.uri!r}. Choose another name, "
            "or go on with it by run.resume=auto."
        )
    if not exists and config.run.resume == "must":
        raise InputError(f"run.resume=must, but there is no run {folder.name!r} in {place.uri!r}.")
    return folder.read_record()


def _micro_batch_size(config: Config) -> int:
    return -(-config.train.batch_size // config.scale.most)


def check_identity(name: str, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to go on under another identity than the one in an earlier record."""
    before = fill_identity(earlier.get("identity", now))
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if not changed:
        return
    shown = "; ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in changed[:4])
    raise InputError(
        f"run {name!r} cannot go on with another configuration: {shown}. "
        "Start it under a new run.name, or give the values it was started with."
    )


def _check_splits(config: Config, dataset: Dataset, micro_batch_size: int) -> None:
    counts = count_classes(dataset, config.data.split)
    if dataset.store.is_local:  # its shards are verified here; those of a store, as they reach the nodes
        open_split(dataset, config.data.split, "train", cache_root(config.loader.cache_dir))
    missing = [name for name, count in zip(dataset.info.classes, counts["train"], strict=True) if not count]
    if missing:
        raise InputError(f"data.split={config.data.split}: no training image of class {', '.join(missing)}.")
    if sum(count > 0 for count in counts["val"]) < 2:
        raise InputError(
            f"data.split={config.data.split}: val has images of one class only, so no figure on it can select an "
            "epoch. Pack with other pack.fractions or pack.seed, or give more patients."
        )
    build_class_weights(config.loss, counts["train"])
    steps = StepPlan(sum(counts["train"]), config.train.step_size, micro_batch_size)
    if steps.num_micro_batches(0) < config.scale.most:
        raise InputError(
            f"scale.num_workers={config.scale.most}, but a step of {steps.span(0)[1]} images has only "
            f"{steps.num_micro_batches(0)} micro batches of {micro_batch_size}. Use fewer workers, a larger "
            "train.batch_size or a smaller train.micro_batch_size."
        )


def check_network(config: Config, num_classes: int) -> StoredWeights | None:
    """The network can be built, takes images of this size, and its first weights fit: by shapes alone."""
    with torch.device("meta"):
        model = build_model(config.model, num_classes)
    check_model(model, config.model.backbone, config.loader.image_size, config.model.in_channels)
    _check_weights_size(model, config.model.backbone)
    if config.cam.after:
        check_method(config.model, num_classes, config.cam, config.loader.image_size)
    store = open_store(config.storage.uri)
    weights = resolve_weights(config.model.weights, config.model.backbone, store)
    if weights:
        require_fit(model, read_weights(store, weights), weights.source)
    return weights


def _check_weights_size(model: nn.Module, backbone: str) -> None:
    """What a run writes at its end must be of a size that is read back."""
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    if num_bytes > WEIGHTS_LIMIT_BYTES:
        raise InputError(
            f"model.backbone {backbone!r} has {readable_bytes(num_bytes)} of weights, and models of at most "
            f"{readable_bytes(WEIGHTS_LIMIT_BYTES)} are read. Choose a smaller one."
        )


def already_finished(prepared: Prepared, config: Config) -> bool:
    """Whether an earlier start has done all that is asked for."""
    earlier = prepared.earlier
    return earlier.get("status") == "finished" and (
        earlier.get("stopped_early", False) or earlier.get("epochs", 0) >= config.train.epochs
    )


def check_fit(config: Config, dataset: Dataset, resources: ClusterResources) -> bool:
    """Whether workers get a GPU each; refuses what the cluster could never hold."""
    scale = config.scale
    use_gpu = scale.use_gpu == "yes" or (scale.use_gpu == "auto" and resources.gpus >= scale.least)
    wanted = {"CPU": (scale.least * scale.cpus_per_worker, resources.cpus)}
    if use_gpu:
        wanted["GPU"] = (scale.least, resources.gpus)
    for kind, (need, have) in wanted.items():
        if need > have:
            raise NoRoomError(
                f"scale.num_workers={scale.least} (scale.cpus_per_worker={scale.cpus_per_worker}) "
                f"need {need:g} {kind}s, but the cluster has {have:g} on {resources.nodes} node(s). "
                "Use fewer workers, or add nodes."
            )
    places = {"data.uri": dataset.store, "storage.uri": open_store(config.storage.uri)}
    local = [f"{key}={store.uri!r}" for key, store in places.items() if store.is_local]
    if (resources.nodes > 1 or resources.autoscaling) and local:
        nodes = f"{resources.nodes} nodes" if resources.nodes > 1 else "an autoscaler"
        raise InputError(
            f"{' and '.join(local)}: a path of this machine, but the cluster has {nodes}. A run on "
            "several nodes needs storage that all reach: give s3://BUCKET/PREFIX."
        )
    return use_gpu


def check_nodes(ray: Any, config: Config, prepared: Prepared) -> None:
    """Every node can use the storage and hold the data; on a single machine this process speaks for it."""
    check = NodeCheck.of(config)
    if prepared.folder.store.is_local and prepared.dataset.store.is_local:
        check.require({platform.node(): check()})
    else:
        check.require(on_each_node(ray, check, _NODE_CHECK_S))
