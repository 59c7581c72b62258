"""The published model: a folder with `model.safetensors` and `model.json`, all that prediction needs.

The description is written after the weights and names their sha256, so a reader never takes one model's
description for another's weights. No pickle is read or written. Knows no run beyond the folder's name in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cluster.errors import InputError
from cluster.store import Store, open_store
from xdist_train.config import ModelConfig
from xdist_train.models.backbones import build_model
from xdist_train.models.prior import PriorShift
from xdist_train.models.tensors import WEIGHTS_LIMIT_BYTES, parse_tensors

__all__ = [
    "DESCRIPTION_KEY",
    "MODEL_FOLDER",
    "WEIGHTS_KEY",
    "ModelDescription",
    "Preprocessing",
    "Selection",
    "find_model",
    "load_model",
    "require_same_classes",
    "save_model",
]

MODEL_FOLDER = "model"
WEIGHTS_KEY = "model.safetensors"
DESCRIPTION_KEY = "model.json"
_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image file becomes the model's input; the loader's evaluation view.

    `channels` are those decoded (1 or 3); `mean` and `std` are in [0, 1], one figure or one a channel of the
    model. `normalise` is `fixed`, by these, or `image`: they are then empty, and each picture is taken by its own.
    """

    image_size: int
    fit: str
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reduce_tolerance: float
    normalise: Literal["fixed", "image"] = "fixed"

    def __post_init__(self) -> None:
        if (self.normalise == "image") != (not self.mean) or len(self.mean) != len(self.std):
            raise ValueError(f"normalise {self.normalise!r} with mean {list(self.mean)} and std {list(self.std)}")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Where in training the weights were taken, and by which figure on val."""

    epoch: int
    step: int
    metric: str
    value: float


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """The content of `model.json`.

    `prior` says how training moved the classes' shares, None if it did not; `started_from` names the file
    that training began with; `weights_sha256` is of the published tensors and filled when they are written.
    """

    schema_version: int = _SCHEMA_VERSION
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    model: ModelConfig
    split: str
    fingerprint: str
    selection: Selection
    prior: PriorShift | None = None
    started_from: str | None = None
    weights_sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `model.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Any, where: str) -> ModelDescription:
        """The reverse of `to_json`.

        Raises:
            InputError: another schema version, or fields that do not fit.
        """
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != _SCHEMA_VERSION:
            raise InputError(
                f"{where}: the model's schema version is {version!r}, this program reads {_SCHEMA_VERSION}. "
                "Use the version of xdist-train that wrote it, or train again."
            )
        try:
            preprocessing = dict(values["preprocessing"])
            preprocessing |= {name: tuple(preprocessing[name]) for name in ("mean", "std")}
            parts = {
                "classes": tuple(values["classes"]),
                "preprocessing": Preprocessing(**preprocessing),
                "model": ModelConfig(**values["model"]),
                "selection": Selection(**values["selection"]),
                "prior": _prior_from_json(values["prior"]),
            }
            return cls(**{**values, **parts})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where}: the model's description is damaged ({error}).") from None


def save_model(store: Store, tensors: Mapping[str, Tensor], description: ModelDescription) -> ModelDescription:
    """Publish a model in the `model` folder of a run's store: weights, then description.

    Args:
        store: of the run folder.
        tensors: the state dict of the bare module, not of its DDP or compiled wrapper.
        description: `weights_sha256` is filled in.

    Returns:
        What was written.
    """
    data = _tensor_bytes(tensors)
    description = dataclasses.replace(description, weights_sha256=hashlib.sha256(data).hexdigest())
    folder = store.child(MODEL_FOLDER)
    folder.write(WEIGHTS_KEY, data)
    folder.write_json(DESCRIPTION_KEY, description.to_json())
    return description


def load_model(uri: str) -> tuple[nn.Module, ModelDescription]:
    """The published model of a run folder or of a bare `model` folder, on the CPU, in eval mode.

    Raises:
        InputError: no model there, or one that is damaged.
    """
    folder, description = find_model(uri)
    data = folder.read(WEIGHTS_KEY, WEIGHTS_LIMIT_BYTES)
    if hashlib.sha256(data).hexdigest() != description.weights_sha256:
        raise InputError(
            f"{folder.locate(WEIGHTS_KEY)} is not the file that {DESCRIPTION_KEY} describes (other sha256). "
            "It was damaged, or is being replaced by a running training; copy it again or wait for the run."
        )
    tensors = parse_tensors(data, folder.locate(WEIGHTS_KEY))
    _require_fit(description, tensors, folder.locate(WEIGHTS_KEY))
    model = build_model(description.model, len(description.classes))
    _fill(model, tensors, folder.locate(WEIGHTS_KEY))
    return model.eval(), description


def find_model(uri: str) -> tuple[Store, ModelDescription]:
    """The folder that holds the model of a run or `model` folder, and the model's description.

    Raises:
        InputError: no published model there.
    """
    store = open_store(uri)
    for folder in (store.child(MODEL_FOLDER), store):
        if folder.exists(DESCRIPTION_KEY):
            where = folder.locate(DESCRIPTION_KEY)
            return folder, ModelDescription.from_json(folder.read_json(DESCRIPTION_KEY), where)
    raise InputError(
        f"{uri!r} holds no model (no {MODEL_FOLDER}/{DESCRIPTION_KEY}, no {DESCRIPTION_KEY}). "
        "Give the folder of a run that has finished an epoch, or its model folder; of a search or a repetition, one of "
        "the run folders in its `trials` or `parts`."
    )


def require_same_classes(description: ModelDescription, classes: Sequence[str], uri: str) -> None:
    """Refuse a data set whose classes are not the model's, in the same order.

    Raises:
        InputError: they differ.
    """
    if tuple(classes) != description.classes:
        raise InputError(
            f"{uri}: the data set's classes are {', '.join(classes)}, the model was trained on "
            f"{', '.join(description.classes)}. Evaluate it on a data set with the same classes."
        )


def _prior_from_json(values: dict[str, list[float]] | None) -> PriorShift | None:
    return PriorShift(**{name: tuple(shares) for name, shares in values.items()}) if values else None


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    # Cloned, since safetensors refuses tensors that share memory (tied weights).
    return save({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()})


def _require_fit(description: ModelDescription, tensors: Mapping[str, Tensor], where: str) -> None:
    """By shapes alone: a description may ask for a network that no memory holds, and its file has its size."""
    with torch.device("meta"):
        wanted = build_model(description.model, len(description.classes)).state_dict()
    differ = [name for name in {**wanted, **tensors} if _shape(wanted.get(name)) != _shape(tensors.get(name))]
    if differ:
        shown = f"{differ[0]} is {_shape(tensors.get(differ[0]))}, described is {_shape(wanted.get(differ[0]))}"
        raise InputError(f"{where}: the tensors do not fit the described model ({shown}).")


def _shape(tensor: Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape)


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    try:
        model.to(next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()))
        model.load_state_dict(tensors)
    except (RuntimeError, StopIteration) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{where}: the tensors do not fit the described model ({reason}).") from None
