"""A published model as one ONNX file that needs nothing of this program, tried before it is given out.

The graph takes pictures as they are decoded, uint8, and gives probabilities: normalising and softmax are inside, where
nobody can forget them. The one place that knows ONNX; knows no run and no store.

    images         uint8 [batch, channels, side, side]   gray (1) or RGB (3), as `preprocessing` in the metadata says
    probabilities  float32 [batch, classes]              in the order of `classes` in the metadata
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cluster.errors import InputError
from dataloading.loading.batch import normalise
from xdist_train.models.export import ModelDescription, Preprocessing

__all__ = ["TOLERANCE", "build_onnx"]

TOLERANCE = 1e-4
"""How far a probability of the file may lie from the model's."""

_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
_LIMIT_BYTES = (2 << 30) - 1  # protobuf reads no larger message
_BATCHES = (1, 5)
_INPUT, _OUTPUT = "images", "probabilities"


def build_onnx(model: nn.Module, description: ModelDescription) -> bytes:
    """The bytes of the file.

    Weights are written as float32. Its metadata holds `classes` and `preprocessing` (JSON), `input` and `output` in
    words, and `weights_sha256`, `backbone`, `split` and `fingerprint` of `model.json`.

    Args:
        model: on the CPU in eval mode; it is not changed.
        description: of the model.

    Raises:
        InputError: ONNX is not installed, the network cannot be exported, or the file answers otherwise than the model.
    """
    _require_libraries()
    proto = _export(model, description)
    _strip_traces(proto)
    for key, value in _metadata(description).items():
        proto.metadata_props.add(key=key, value=value)
    if proto.ByteSize() > _LIMIT_BYTES:
        raise _refusal(description, f"it would have {proto.ByteSize():,} bytes, and one file can have 2 GiB")
    data: bytes = proto.SerializeToString()
    difference = _largest_difference(data, model, description)
    if not difference <= TOLERANCE:  # also where it is no number
        reason = f"probabilities of the file and of the model differ by {difference:.2g}, more than {TOLERANCE}"
        raise _refusal(description, reason)
    return data


class _Portable(nn.Module):
    """Pictures to probabilities."""

    scale: Tensor
    bias: Tensor

    def __init__(self, model: nn.Module, description: ModelDescription) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).float()
        preprocessing = description.preprocessing
        self.by_image, self.channels = preprocessing.normalise == "image", description.model.in_channels
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (preprocessing.mean, preprocessing.std))
        self.register_buffer("scale", (1 / (255 * std)).float().reshape(1, -1, 1, 1))
        self.register_buffer("bias", (-mean / std).float().reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float()
        normalised = _standardised(pixels / 255) if self.by_image else pixels * self.scale + self.bias
        return torch.softmax(self.model(normalised.expand(-1, self.channels, -1, -1)), dim=1)


def _standardised(pixels: Tensor) -> Tensor:
    """What `normalise` makes of each picture by its own figures, in operators that ONNX has."""
    centred = pixels - pixels.mean(dim=(1, 2, 3), keepdim=True)
    deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return centred / deviation.clamp(min=pixels[0].numel() ** -0.5)


def _export(model: nn.Module, description: ModelDescription) -> Any:
    portable = _Portable(model, description).eval()
    # Two pictures: what torch sees with one, it takes for a constant.
    example, batch = _pictures(description.preprocessing, 2), torch.export.Dim("batch")
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                portable,
                (example,),
                dynamo=True,
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise _refusal(description, _cause(error)) from None
    assert program is not None
    return program.model_proto


def _strip_traces(proto: Any) -> None:
    """The exporter notes on every node from which line of which file it came: whose machine that is, is nobody's."""
    for node in [*proto.graph.node, *(node for function in proto.functions for node in function.node)]:
        del node.metadata_props[:]
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer]:
        del value.metadata_props[:]


def _metadata(description: ModelDescription) -> dict[str, str]:
    facts = description.preprocessing
    kind = "gray" if facts.channels == 1 else "RGB"
    fit = "stretched" if facts.fit == "stretch" else "its middle square cut out and resized"
    size = f"{facts.channels}, {facts.image_size}, {facts.image_size}"
    return {
        "classes": json.dumps(description.classes),
        "preprocessing": json.dumps(asdict(facts)),
        "input": f"{_INPUT}: uint8 [batch, {size}], {kind}, upright, {fit} to that size; normalising is in the graph",
        "output": f"{_OUTPUT}: float32 [batch, {len(description.classes)}], softmax, in the order of classes",
        "weights_sha256": description.weights_sha256,
        "backbone": description.model.backbone,
        "split": description.split,
        "fingerprint": description.fingerprint,
    }


def _largest_difference(data: bytes, model: nn.Module, description: ModelDescription) -> float:
    """Between a probability of the file and the model's, over batches of several sizes; NaN if one is no number."""
    differences = []
    for size in _BATCHES:
        pictures = _pictures(description.preprocessing, size)
        expected = _probabilities(model, description, pictures)
        differences.append(np.abs(_run(data, description, pictures.numpy()) - expected).max())
    return float(np.max(differences))


@torch.inference_mode()
def _probabilities(model: nn.Module, description: ModelDescription, pictures: Tensor) -> NDArray[np.float64]:
    """By the loader's own normalising, in the model's own precision."""
    dtype, facts = next(model.parameters()).dtype, description.preprocessing
    images = normalise(pictures, facts.mean, facts.std, description.model.in_channels, dtype)
    return torch.softmax(model(images.contiguous()).double(), dim=1).numpy()


def _run(data: bytes, description: ModelDescription, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    # They share no base but Exception.
    errors = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (probabilities,) = session.run([_OUTPUT], {_INPUT: pictures})
    except errors as error:
        raise _refusal(description, f"ONNX Runtime does not run it: {_cause(error)}") from None
    return np.asarray(probabilities, np.float64)


def _pictures(facts: Preprocessing, number: int) -> Tensor:
    """Noise of several contrasts, the same each time."""
    size = (number, facts.channels, facts.image_size, facts.image_size)
    noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    contrast = np.linspace(1, 0.25, number).reshape(-1, 1, 1, 1)
    return torch.from_numpy((noise * contrast).astype(np.uint8))


def _require_libraries() -> None:
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"export: ONNX needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed "
            "here: pip install 'xdist-train[onnx]'."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and what it calls warn of their own deprecations and of what they leave out on purpose."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """What lies under an error of the exporter, in one line: its own text is a page on how to debug it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]


def _refusal(description: ModelDescription, reason: str) -> InputError:
    return InputError(
        f"export: model.backbone {description.model.backbone!r} cannot become an ONNX file ({reason}). Nothing was "
        "written. Use the safetensors of the run folder, or train another backbone."
    )
