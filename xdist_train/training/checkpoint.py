"""A checkpoint as files: safetensors and JSON, nothing that executes on load, and a digest that proves it whole.

    model.safetensors   the model's tensors
    optim.safetensors   the optimiser's tensors, named `<parameter index>.<name>`
    average.safetensors the averaged model's tensors; only of a run that keeps an average of its weights
    state.json          TrainState, and the optimiser's and scaler's plain values
    digest.json         sha256 and bytes of the others; written last

What a checkpoint says of itself is not believed: which files it has, how large they may be and what fits the
learner is decided here, and what it does not say so is damaged. Knows folders and stores; which checkpoints are
kept is Ray's work.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cluster import disk
from cluster.errors import StoreError, XdistError
from cluster.store import DOCUMENT_LIMIT_BYTES, Store
from xdist_train.models.tensors import WEIGHTS_LIMIT_BYTES, read_tensors
from xdist_train.training.learner import Learner
from xdist_train.training.state import TrainState

__all__ = [
    "DamagedCheckpointError",
    "Position",
    "Snapshot",
    "Snapshots",
    "checkpoint_name",
    "fetch_checkpoint",
    "load_checkpoint",
    "parse_checkpoint_name",
]

_MODEL, _OPTIM, _AVERAGE = "model.safetensors", "optim.safetensors", "average.safetensors"
_STATE, _DIGEST = "state.json", "digest.json"
_LIMITS = {
    _MODEL: WEIGHTS_LIMIT_BYTES,
    _OPTIM: 2 * WEIGHTS_LIMIT_BYTES,  # Adam's two moments
    _AVERAGE: WEIGHTS_LIMIT_BYTES,
    _STATE: 256 << 20,  # the history is in it
    _DIGEST: DOCUMENT_LIMIT_BYTES,
}
"""Bytes that a file of a checkpoint may have; more is not even fetched."""
# What values of another shape than a checkpoint's raise where they are used.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
_NAME = re.compile(r"e(\d+)-s(\d+)-a(\d+)")


logger = logging.getLogger(__name__)


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
    average: dict[str, Tensor]
    """Empty where none is kept."""
    values: dict[str, Any]
    release: Callable[[], None]
    """Gives the memory back for a later snapshot; nothing of this one may be read after it."""

    @property
    def judged(self) -> dict[str, Tensor]:
        """The tensors of the model that was evaluated."""
        return self.average or self.model

    def write(self, folder: Path) -> None:
        """Write into an empty folder, the digest last."""
        save_file(_contiguous(self.model), folder / _MODEL)
        save_file(_contiguous(self.optimizer), folder / _OPTIM)
        if self.average:
            save_file(_contiguous(self.average), folder / _AVERAGE)
        (folder / _STATE).write_text(json.dumps(self.values))
        digests = {name: _digest(folder / name) for name in _files(bool(self.average)) if name != _DIGEST}
        (folder / _DIGEST).write_text(json.dumps(digests, indent=2))

    def upload(self, store: Store, moved: Callable[[], None] = lambda: None) -> None:
        """Put it into a store, the digest last; `moved` is called as pieces go."""
        try:
            with tempfile.TemporaryDirectory(prefix="xdist-checkpoint-") as folder:
                self.write(Path(folder))
                for key in _files(bool(self.average)):
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
        average = learner.average.model.state_dict() if learner.average else {}
        memory = self._free.pop() if self._free else {}
        copies = Snapshot(
            model={name: _copy(tensor, f"model/{name}", memory) for name, tensor in model.items()},
            optimizer={name: _copy(tensor, f"optim/{name}", memory) for name, tensor in moments.items()},
            average={name: _copy(tensor, f"average/{name}", memory) for name, tensor in average.items()},
            values={"train": state.to_json(), "optimizer": plain, "scaler": scaler},
            release=lambda: self._free.append(memory),
        )
        if learner.device.type == "cuda":
            torch.cuda.current_stream(learner.device).synchronize()
        return copies


def _files(averaged: bool) -> list[str]:
    """Of a run that keeps an average, or of one that does not; the digest last."""
    return [name for name in _LIMITS if averaged or name != _AVERAGE]


def _copy(tensor: Tensor, name: str, memory: dict[str, Tensor]) -> Tensor:
    """A copy in host memory (pinned where it comes from a GPU), in the tensor's own memory format."""
    old = memory.get(name)
    if old is None or old.shape != tensor.shape or old.dtype != tensor.dtype or old.stride() != tensor.stride():
        memory[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return memory[name].copy_(tensor.detach(), non_blocking=True)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def fetch_checkpoint(store: Store, folder: Path) -> None:
    """The files of a checkpoint, and no others, from a store into an empty folder.

    One that is missing or too large is left out, so that the checkpoint is refused by `load_checkpoint`.

    Raises:
        StoreError: the storage does not give them.
        OSError: the folder cannot be written to.
    """
    for key, limit in _LIMITS.items():
        found = store.info(key)
        if found is None:
            continue
        if found.num_bytes > limit:
            logger.warning(
                "%s has %s, more than such a file of a checkpoint can have: it is not fetched",
                store.locate(key),
                disk.readable_bytes(found.num_bytes),
            )
            continue
        store.download(key, folder / key)


def load_checkpoint(folder: Path, learner: Learner) -> TrainState:
    """Verify a checkpoint and put it into the learner.

    Raises:
        DamagedCheckpointError: missing or altered files; the learner is untouched.
    """
    files = _files(learner.average is not None)
    _verify(folder, files)
    try:
        read = {name: read_tensors(folder / name, _LIMITS[name]) for name in files if name.endswith(".safetensors")}
        values = json.loads((folder / _STATE).read_bytes())
        optimizer, scaler = _join_optimizer(read[_OPTIM], values["optimizer"]), values["scaler"]
        state = TrainState.from_json(values["train"])
        for name in (_MODEL, _AVERAGE) if learner.average else (_MODEL,):
            _require_fit(read[name], name, learner)
        learner.set_epoch(state.epoch)
        learner.load(read[_MODEL], optimizer, scaler, read.get(_AVERAGE, {}))
    except _UNREADABLE as error:
        raise DamagedCheckpointError(f"unreadable: {type(error).__name__}: {error}") from error
    return state


def _require_fit(model: Mapping[str, Tensor], file: str, learner: Learner) -> None:
    """Before anything of the learner is overwritten."""
    wanted = {name: tensor.shape for name, tensor in learner.model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in model.items()}
    if wanted != found:
        names = sorted(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
        raise ValueError(f"{file} holds another network ({', '.join(names[:3])})")


def _verify(folder: Path, files: list[str]) -> None:
    """No file but a checkpoint's own is opened, whatever the digest names, and none that is too large."""
    try:
        large = [name for name in files if (folder / name).stat().st_size > _LIMITS[name]]
        digests = {} if large else json.loads((folder / _DIGEST).read_bytes())
        named = isinstance(digests, dict) and set(digests) == set(files) - {_DIGEST}
        wrong = [name for name in digests if _digest(folder / name) != digests[name]] if named else large or [_DIGEST]
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"incomplete: {error}") from error
    if wrong:
        raise DamagedCheckpointError(f"{', '.join(wrong)} is not what its digest says")


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
