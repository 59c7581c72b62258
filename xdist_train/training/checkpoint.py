"""A checkpoint as files: safetensors and JSON, nothing that executes on load, and a digest that proves it whole.

    model.safetensors   the model's tensors
    optim.safetensors   the optimiser's tensors, named `<parameter index>.<name>`
    state.json          TrainState, and the optimiser's and scaler's plain values
    digest.json         sha256 and bytes of the other three; written last

Knows folders and stores; which checkpoints are kept is Ray's work.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster import disk
from cluster.errors import StoreError, XdistError
from cluster.store import Store
from xdist_train.training.learner import Learner
from xdist_train.training.state import TrainState

__all__ = [
    "DamagedCheckpointError",
    "Position",
    "Snapshot",
    "Snapshots",
    "checkpoint_name",
    "load_checkpoint",
    "parse_checkpoint_name",
]

_MODEL, _OPTIM, _STATE, _DIGEST = "model.safetensors", "optim.safetensors", "state.json", "digest.json"
_NAME = re.compile(r"e(\d+)-s(\d+)-a(\d+)")


class DamagedCheckpointError(XdistError):
    """A checkpoint's files are missing or are not what its digest says."""


@dataclass(frozen=True, order=True)
class Position:
    """The next step to run after a checkpoint, and the attempt that wrote it."""

    epoch: int
    step: int
    attempt: int


def checkpoint_name(position: Position) -> str:
    """Folder name of a checkpoint, e.g. `e003-s001200-a02`; new in every attempt, as Ray demands."""
    return f"e{position.epoch:03d}-s{position.step:06d}-a{position.attempt:02d}"


def parse_checkpoint_name(name: str) -> Position | None:
    """The reverse of `checkpoint_name`, or None for another folder."""
    match = _NAME.fullmatch(name)
    return Position(*(int(group) for group in match.groups())) if match else None


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in this process's memory: copies, so that training may go on while it is written."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    values: dict[str, Any]
    release: Callable[[], None]
    """Gives the memory back for a later snapshot; nothing of this one may be read after it."""

    def write(self, folder: Path) -> None:
        """Write into an empty folder, the digest last."""
        save_file(_contiguous(self.model), folder / _MODEL)
        save_file(_contiguous(self.optimizer), folder / _OPTIM)
        (folder / _STATE).write_text(json.dumps(self.values))
        digests = {name: _digest(folder / name) for name in (_MODEL, _OPTIM, _STATE)}
        (folder / _DIGEST).write_text(json.dumps(digests, indent=2))

    def upload(self, store: Store, moved: Callable[[], None] = lambda: None) -> None:
        """Put it into a store, the digest last; `moved` is called as pieces go."""
        try:
            with tempfile.TemporaryDirectory(prefix="xdist-checkpoint-") as folder:
                self.write(Path(folder))
                for key in (_MODEL, _OPTIM, _STATE, _DIGEST):
                    store.upload(Path(folder) / key, key, moved)
        except SafetensorError as error:  # hides the operating system's
            raise StoreError(f"{tempfile.gettempdir()}: cannot write a checkpoint ({error}).") from error
        except OSError as error:
            place = Path(tempfile.gettempdir())
            text = f"{place}: cannot write a checkpoint ({disk.reason(error, place)})."
            raise disk.failure(error, text) from error


class Snapshots:
    """Takes snapshots, into memory that is used again: the loop waits for one copy and for nothing else."""

    def __init__(self) -> None:
        self._free: list[dict[str, Tensor]] = []

    def take(self, learner: Learner, state: TrainState) -> Snapshot:
        """Copy everything that a checkpoint holds now."""
        model, optimizer, scaler = learner.state()
        moments, plain = _split_optimizer(optimizer)
        memory = self._free.pop() if self._free else {}
        copies = Snapshot(
            model={name: _copy(tensor, f"model/{name}", memory) for name, tensor in model.items()},
            optimizer={name: _copy(tensor, f"optim/{name}", memory) for name, tensor in moments.items()},
            values={"train": state.to_json(), "optimizer": plain, "scaler": scaler},
            release=lambda: self._free.append(memory),
        )
        if learner.device.type == "cuda":
            torch.cuda.current_stream(learner.device).synchronize()
        return copies


def _copy(tensor: Tensor, name: str, memory: dict[str, Tensor]) -> Tensor:
    """A copy in host memory (pinned where it comes from a GPU), in the tensor's own memory format."""
    old = memory.get(name)
    if old is None or old.shape != tensor.shape or old.dtype != tensor.dtype or old.stride() != tensor.stride():
        memory[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return memory[name].copy_(tensor.detach(), non_blocking=True)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def load_checkpoint(folder: Path, learner: Learner) -> TrainState:
    """Verify a checkpoint and put it into the learner.

    Raises:
        DamagedCheckpointError: missing or altered files; the learner is untouched.
    """
    _verify(folder)
    try:
        model, tensors = load_file(folder / _MODEL), load_file(folder / _OPTIM)
        values = json.loads((folder / _STATE).read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedCheckpointError(f"unreadable: {error}") from error
    learner.load(model, _join_optimizer(tensors, values["optimizer"]), values["scaler"])
    return TrainState.from_json(values["train"])


def _verify(folder: Path) -> None:
    try:
        digests = json.loads((folder / _DIGEST).read_text())
        wrong = [name for name, digest in digests.items() if _digest(folder / name) != digest]
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"incomplete: {error}") from error
    if wrong or set(digests) != {_MODEL, _OPTIM, _STATE}:
        raise DamagedCheckpointError(f"{', '.join(wrong) or _DIGEST} is not what its digest says")


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by `<parameter index>.<name>`, and all that is plain: groups, and plain values of a parameter."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                plain[f"{index}.{name}"] = value
    return tensors, {"values": plain, "param_groups": state["param_groups"]}


def _join_optimizer(tensors: dict[str, Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**plain["values"], **tensors}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = [{key: _as_tuple(value) for key, value in group.items()} for group in plain["param_groups"]]
    return {"state": state, "param_groups": groups}


def _as_tuple(value: Any) -> Any:
    """JSON turned `betas` into a list, and `params` was one all along; torch takes either for `params`."""
    return tuple(value) if isinstance(value, list) and value and isinstance(value[0], float) else value
