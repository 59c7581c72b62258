"""The ONNX file: the model's own answers from pictures as they are decoded, or no file."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cluster.errors import InputError
from xdist_train.config import ModelConfig
from xdist_train.models import onnx_file
from xdist_train.models.backbones import build_model
from xdist_train.models.export import ModelDescription, Preprocessing, Selection
from xdist_train.models.onnx_file import build_onnx

onnxruntime = pytest.importorskip("onnxruntime")

_DESCRIPTION = ModelDescription(
    classes=("CNV", "DME", "NORMAL"),
    preprocessing=Preprocessing(
        image_size=32, fit="stretch", channels=1, mean=(0.2,), std=(0.1,), reduce_tolerance=0.9
    ),
    model=ModelConfig(backbone="small_cnn"),
    split="patient",
    fingerprint="abc",
    selection=Selection(epoch=2, step=30, metric="mcc", value=0.75),
    weights_sha256="def",
)


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(_DESCRIPTION.model, 3).eval()


@pytest.fixture(scope="module")
def data() -> bytes:
    """The file of the model of `_DESCRIPTION`, made once."""
    return build_onnx(_model(), _DESCRIPTION)


def _answers(data: bytes, pictures: Any) -> Any:
    return onnxruntime.InferenceSession(data).run(None, {"images": pictures})[0]


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [(1, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)), (3, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)), (3, (0.5,), (0.5,))],
)
def test_pictures_go_in_and_probabilities_come_out(channels: int, mean: Any, std: Any) -> None:
    """Gray or colour, one figure or one a channel, any batch: uint8 in, the normalised module's softmax out."""
    facts = Preprocessing(image_size=32, fit="crop", channels=channels, mean=mean, std=std, reduce_tolerance=0.9)
    model, description = _model(), dataclasses.replace(_DESCRIPTION, preprocessing=facts)
    data = build_onnx(model, description)
    for size in (1, 2, 7):
        pictures = np.random.default_rng(size).integers(0, 256, (size, channels, 32, 32), dtype=np.uint8)
        mean_, std_ = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (mean, std))
        normalised = ((torch.from_numpy(pictures) / 255 - mean_) / std_).expand(-1, 3, -1, -1)
        with torch.no_grad():
            expected = torch.softmax(model(normalised), dim=1).numpy()
        assert np.abs(expected - _answers(data, pictures)).max() <= 1e-5


def test_each_picture_by_its_own_figures_one_channel_and_one_logit() -> None:
    """`loader.normalise=image`, `model.in_channels=1`, `model.outputs=sigmoid`: all of it is in the graph, and a blank
    picture is no division by zero."""
    facts = Preprocessing(
        image_size=32, fit="stretch", channels=1, mean=(), std=(), reduce_tolerance=0.9, normalise="image"
    )
    config = ModelConfig(backbone="resnet18", in_channels=1, outputs="sigmoid", hidden=8, dropout=0.5)
    torch.manual_seed(0)
    model = build_model(config, 2).eval()
    description = dataclasses.replace(_DESCRIPTION, classes=("NORMAL", "ILL"), preprocessing=facts, model=config)
    pictures = np.random.default_rng(1).integers(0, 256, (3, 1, 32, 32), dtype=np.uint8)
    pictures[1] = 7
    deviation = pictures.std(axis=(1, 2, 3), keepdims=True).clip(255 / 32)
    inputs = (pictures - pictures.mean(axis=(1, 2, 3), keepdims=True)) / deviation
    with torch.no_grad():
        expected = torch.softmax(model(torch.from_numpy(inputs).float()), dim=1).numpy()
    assert np.abs(expected - _answers(build_onnx(model, description), pictures)).max() <= 1e-5


def test_weights_in_double_precision_are_exported_as_float32() -> None:
    """The file's numbers are float32; the model itself stays as it was."""
    model = _model().double()
    answer = _answers(build_onnx(model, _DESCRIPTION), np.zeros((1, 1, 32, 32), np.uint8))
    assert np.float32 == answer.dtype
    assert torch.float64 == next(model.parameters()).dtype


def test_the_file_says_what_it_is(data: bytes) -> None:
    """Classes, preprocessing, input and the sha256 of the weights are read from the file alone."""
    session = onnxruntime.InferenceSession(data)
    said = session.get_modelmeta().custom_metadata_map
    assert list(_DESCRIPTION.classes) == json.loads(said["classes"])
    assert json.loads(json.dumps(dataclasses.asdict(_DESCRIPTION.preprocessing))) == json.loads(said["preprocessing"])
    assert said["weights_sha256"] == "def"
    assert said["input"].startswith("images: uint8 [batch, 1, 32, 32], gray")
    assert session.get_inputs()[0].shape == ["batch", 1, 32, 32]


def test_the_file_does_not_tell_whose_machine_made_it(data: bytes) -> None:
    """No path of a source file or folder of this machine is in it."""
    assert [part for part in (b"site-packages", b".py", str(Path.home()).encode() + b"/") if part in data] == []


def test_a_file_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph of other weights is not the model, however well it was made."""
    other = onnx_file._export(_model(1), _DESCRIPTION)
    monkeypatch.setattr(onnx_file, "_export", lambda *_: other)
    with pytest.raises(InputError, match=r"the model differ by 0\.\d+, more than 0\.0001.*Nothing was written"):
        build_onnx(_model(0), _DESCRIPTION)


def test_answers_that_are_no_numbers_are_refused() -> None:
    """NaN is no agreement."""
    model = _model()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="differ by nan"):
        build_onnx(model, _DESCRIPTION)


class _DecidesByNumbers(nn.Module):
    """What it computes depends on the pictures, which a graph cannot say."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = images.mean(dim=(2, 3))
        logits: Tensor = self.linear(features if features.sum() > 0 else -features)
        return logits


class _KnowsItsBatch(nn.Module):
    """Two pictures are another case for it than one or five."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = images.mean(dim=(2, 3))
        logits: Tensor = self.linear(-features if len(images) == 2 else features)
        return logits


@pytest.mark.parametrize("network", [_DecidesByNumbers, _KnowsItsBatch])
def test_a_network_that_cannot_be_exported_is_refused_in_one_paragraph(network: type[nn.Module]) -> None:
    """The backbone is named with the reason, in one paragraph, without the exporter's page."""
    with pytest.raises(InputError, match=r"model\.backbone 'small_cnn' cannot become an ONNX file") as caught:
        build_onnx(network().eval(), _DESCRIPTION)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_without_a_library_the_error_says_how_to_install_it(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing one is named, and the extra that brings it."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"needs {library}, which is not.*pip install 'xdist-train\[onnx\]'"):
        build_onnx(_model(), _DESCRIPTION)
