"""`xdist-train export`: the file beside the weights or elsewhere, and the same answers on real pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from cluster.errors import InputError
from cluster.store import Store, open_store
from dataloading.loading.augment import View, plain_view
from dataloading.loading.batch import normalise
from dataloading.loading.executor import ExecutorSpec
from dataloading.loading.opencv import OpenCVExecutor
from dataloading.packing.images import read_file, read_image
from tests.records import RECORD
from xdist_train import verbs
from xdist_train.config import ModelConfig
from xdist_train.evidence.predict import predict_images
from xdist_train.models import onnx_publishing
from xdist_train.models.backbones import build_model
from xdist_train.models.export import ModelDescription, Preprocessing, Selection, save_model
from xdist_train.models.onnx_publishing import publish_onnx

onnxruntime = pytest.importorskip("onnxruntime")

_CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")


def _train_a_little(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Enough for weights, BatchNorm's figures and answers that are not those of a new network."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for start in range(0, len(images), 20):
        loss = nn.functional.cross_entropy(model(images[start : start + 20]), labels[start : start + 20])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()


def _write_run(folder: Path, backbone: str = "small_cnn", size: int = 32, **record: Any) -> tuple[Store, nn.Module]:
    torch.manual_seed(0)
    store, config = open_store(str(folder)), ModelConfig(backbone=backbone)
    model = build_model(config, len(_CLASSES)).eval()
    store.write_json("run.json", {**RECORD, "complete": ["config.yaml"], **record})
    _publish(store, model, config, size)
    return store, model


def _publish(store: Store, model: nn.Module, config: ModelConfig, size: int) -> None:
    facts = Preprocessing(image_size=size, fit="stretch", channels=1, mean=(0.2,), std=(0.2,), reduce_tolerance=0.9)
    selection = Selection(epoch=0, step=1, metric="mcc", value=0.0)
    description = ModelDescription(
        classes=_CLASSES, preprocessing=facts, model=config, split="patient", fingerprint="", selection=selection
    )
    save_model(store, model.state_dict(), description)


def _decode(files: list[Path], size: int) -> torch.Tensor:
    """Pictures as the loader delivers them for evaluation, uint8 [n, 1, size, size]."""
    images = [read_image(read_file(path), 1 << 28) for path in files]
    widths, heights = (np.array([image.pixels.shape[axis] for image in images]) for axis in (1, 0))
    view = plain_view(View(image_size=size, fit="stretch", reduce_tolerance=0.9), widths, heights)
    spec = ExecutorSpec(image_size=size, channels=1, threads=1, in_flight=1, device=torch.device("cpu"))
    executor = OpenCVExecutor(spec)
    try:
        return executor.submit([np.frombuffer(image.data, np.uint8) for image in images], view).result().clone()
    finally:
        executor.close()


@pytest.mark.parametrize(("backbone", "size"), [("small_cnn", 96), ("resnet18", 64)])
def test_onnx_and_safetensors_answer_as_the_trained_module(
    backbone: str, size: int, tmp_path: Path, real_data: Path
) -> None:
    """On 40 real OCT files: the module, `predict` from the run folder, and the ONNX file give one answer."""
    files = sorted(path for name in _CLASSES for path in sorted((real_data / "oct_real" / name).iterdir())[:10])
    assert len(files) == 40
    pixels = _decode(files, size)
    store, model = _write_run(tmp_path / "run", backbone, size)
    images = normalise(pixels, (0.2,), (0.2,)).contiguous()
    _train_a_little(model, images, torch.tensor([_CLASSES.index(path.parent.name) for path in files]))
    _publish(store, model, ModelConfig(backbone=backbone), size)
    with torch.no_grad():
        expected = torch.softmax(model(images).double(), dim=1).numpy()
    session = onnxruntime.InferenceSession(publish_onnx(store.uri))
    answered = session.run(None, {"images": pixels.numpy()})[0]
    predicted = [list(answer.probabilities.values()) for answer in predict_images(store.uri, files)]
    assert expected.max(axis=1).std() > 1e-3  # answers that differ from file to file
    assert np.abs(answered - expected).max() <= 1e-4
    assert np.abs(np.array(predicted) - expected).max() <= 1e-5


def test_the_file_lies_beside_the_weights_and_is_listed(tmp_path: Path) -> None:
    """`export RUN` says where it wrote, and run.json says that it may be read."""
    store, _ = _write_run(tmp_path / "run")
    app = typer.Typer()
    app.command()(verbs.export)
    result = CliRunner().invoke(app, [store.uri], catch_exceptions=False)
    assert f"onnx: {tmp_path}/run/model/model.onnx" == result.output.strip()
    assert ["config.yaml", "model/model.onnx"] == store.read_json("run.json")["complete"]


def _without_exporting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_publishing, "build_onnx", lambda model, description: b"onnx")


@pytest.mark.parametrize("folder", ["run", "run/model"])
def test_it_goes_where_it_is_wished(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--out` names a file in a folder that need not be there; the run folder stays as it was."""
    store, _ = _write_run(tmp_path / "run")
    _without_exporting(monkeypatch)
    publish_onnx(str(tmp_path / folder), str(tmp_path / "new" / "first.onnx"))
    assert b"onnx" == (tmp_path / "new" / "first.onnx").read_bytes()
    assert ["config.yaml"] == store.read_json("run.json")["complete"]
    assert not store.exists("model/model.onnx")


def test_a_bare_model_folder_has_it_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a run there is nothing to list it in."""
    _write_run(tmp_path / "run")
    _without_exporting(monkeypatch)
    assert f"{tmp_path}/run/model/model.onnx" == publish_onnx(str(tmp_path / "run" / "model"))


def test_a_run_that_goes_on_owns_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs, the file may be written elsewhere only."""
    store, _ = _write_run(tmp_path / "run", status="running", heartbeat=time.time())
    _without_exporting(monkeypatch)
    with pytest.raises(InputError, match=r"still running.*--out FILE"):
        publish_onnx(store.uri)
    assert f"{tmp_path}/a.onnx" == publish_onnx(store.uri, str(tmp_path / "a.onnx"))


def test_a_model_that_cannot_be_exported_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes before anything is written."""
    store, _ = _write_run(tmp_path / "run")

    def refuse(*_: Any) -> bytes:
        raise InputError("no")

    monkeypatch.setattr(onnx_publishing, "build_onnx", refuse)
    with pytest.raises(InputError, match="no"):
        publish_onnx(store.uri)
    assert {"model.json", "model.safetensors"} == set(store.list("model"))
    assert ["config.yaml"] == store.read_json("run.json")["complete"]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """`--out` that ends in a slash is refused before anything is computed."""
    store, _ = _write_run(tmp_path / "run")
    with pytest.raises(InputError, match="is a folder"):
        publish_onnx(store.uri, f"{tmp_path}/")
