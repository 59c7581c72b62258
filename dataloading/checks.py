"""What the doctor asks of the data plane: decoders that work on each node, and room for the data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from cluster.disk import readable_bytes
from cluster.doctor import Check, Finding, Visit
from cluster.errors import XdistError

__all__ = ["CHECKS", "judge_decoders"]

_SIDE, _SEEN = 64, 32
_TOLERANCE = 3.0  # gray levels, between decoders


def check_decoders(visit: Visit) -> Iterator[Finding]:
    """A JPEG goes through every executor that a node has, on its GPU where it has one."""
    gpus = {visit.names[node]: count for node, count in visit.gpus.items() if node in visit.names}
    return judge_decoders(visit.ask(_decoders, workers_only=True, with_gpu=True), gpus)


def judge_decoders(there: Mapping[str, Mapping[str, Any]], gpus: Mapping[str, int]) -> Iterator[Finding]:
    """What `_decoders` found by node, against the GPUs that Ray gives out there."""
    for node, found in there.items():
        count = gpus.get(node, 0)
        if count:
            yield Finding(
                what=f"GPUs of {node}",
                ok=bool(found["gpu"]),
                told=f"{count} x {found['gpu']}"
                if found["gpu"]
                else f"Ray counts {count}, torch {found['torch']} none",
                todo="Install a torch that is built for CUDA and a driver for it; in a pod, ask for nvidia.com/gpu.",
            )
        wrong = {name: reason for name, reason in found["decoders"].items() if reason}
        right = [name for name in found["decoders"] if name not in wrong]
        told = "; ".join(f"{name}: {reason}" for name, reason in wrong.items())
        yield Finding(
            what=f"decoders of {node}",
            ok=not wrong,
            told=told or f"{' and '.join(right)} decode a JPEG as it should be",
            todo="Install the extra `dali` with the versions of constraints.txt (a GPU needs a driver of DALI's CUDA), "
            "or set loader.backend=opencv.",
        )


def _decoders() -> dict[str, Any]:
    """Runs on a node: the GPU, and for each executor why it does not work there (empty if it does)."""
    import torch

    from dataloading.loading.loader import BACKENDS, has_dali

    has_gpu = torch.cuda.is_available()
    tried = {"opencv": "opencv"}
    if has_dali():
        tried["DALI on the CPU"] = "dali"
    decoders = {name: _try(BACKENDS[backend], "cpu") for name, backend in tried.items()}
    if has_gpu:
        decoders["DALI on the GPU"] = _try(BACKENDS["dali"], "cuda") if has_dali() else "DALI is not installed"
    gpu = torch.cuda.get_device_name(0) if has_gpu else ""
    return {"gpu": gpu, "torch": torch.__version__, "decoders": decoders}


def _try(build: Any, device: str) -> str:
    import cv2
    import numpy as np
    import torch

    from dataloading.loading.augment import View, plain_view
    from dataloading.loading.executor import ExecutorSpec

    picture = np.tile(np.linspace(0, 255, _SIDE).astype(np.uint8), (_SIDE, 1))
    encoded = cv2.imencode(".jpg", picture)[1].ravel()
    side = np.array([_SIDE])
    try:
        executor = build(
            ExecutorSpec(image_size=_SEEN, channels=1, threads=1, in_flight=1, device=torch.device(device))
        )
        try:
            batch = executor.submit([encoded], plain_view(View(image_size=_SEEN), side, side)).result()
        finally:
            executor.close()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    columns = batch[0, 0].float().mean(dim=0).cpu().numpy()
    off = float(np.abs(columns - np.linspace(0, 255, _SEEN * 2 + 1)[1::2]).max())
    return "" if off < _TOLERANCE else f"gray levels are {off:.0f} off"


def check_cache(visit: Visit) -> Iterator[Finding]:
    """The data set can be read from every node, and what is missing of it fits into the node's cache."""
    places = visit.places
    if not places.data_uri:
        return
    function = partial(_no_room, places.data_uri, places.cache_dir, places.cache_limit_gib)
    for node, answer in visit.ask(function, workers_only=True).items():
        yield Finding(
            what=f"data set on {node}",
            ok=not answer["reason"],
            told=answer["reason"] or f"{readable_bytes(answer['bytes'])} fit into {answer['where']}",
            todo="Give the node a larger disk or another loader.cache_dir, raise loader.cache_limit_gib, or "
            "`xdist-train cache --clear` there.",
        )


def _no_room(uri: str, cache_dir: str, limit_gib: float) -> dict[str, Any]:
    from dataloading.dataset import open_dataset
    from dataloading.loading.cache import require_room
    from dataloading.loading.node_cache import cache_root

    root = cache_root(cache_dir)
    try:
        dataset = open_dataset(uri)
        require_room(dataset, root, limit_gib)
    except XdistError as error:
        return {"reason": str(error)}
    where = dataset.store.uri if dataset.store.is_local else str(root)
    return {"reason": "", "bytes": sum(shard.bytes for shard in dataset.info.shards), "where": where}


CHECKS: dict[str, Check] = {"decoders": check_decoders, "data set": check_cache}
