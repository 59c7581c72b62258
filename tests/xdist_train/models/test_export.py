"""The published model: what is written is what is read, and nothing else is accepted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from cluster.errors import InputError
from cluster.store import Store, open_store
from xdist_train.config import ModelConfig
from xdist_train.models.backbones import build_model
from xdist_train.models.export import (
    ModelDescription,
    Preprocessing,
    Selection,
    load_model,
    require_same_classes,
    save_model,
)
from xdist_train.models.prior import PriorShift

_DESCRIPTION = ModelDescription(
    classes=("CNV", "DME", "NORMAL"),
    preprocessing=Preprocessing(
        image_size=32, fit="stretch", channels=1, mean=(0.2,), std=(0.1,), reduce_tolerance=0.9
    ),
    model=ModelConfig(backbone="small_cnn", dropout=0.1, hidden=8, norm="group", freeze="backbone"),
    split="patient",
    fingerprint="abc",
    selection=Selection(epoch=2, step=30, metric="mcc", value=0.75),
    prior=PriorShift(train=(0.5, 0.3, 0.2), drawn=(0.4, 0.3, 0.3), learned=(0.4, 0.3, 0.3)),
)


def _saved(folder: Path) -> tuple[Store, nn.Module, ModelDescription]:
    store, model = open_store(str(folder)), build_model(_DESCRIPTION.model, 3)
    return store, model, save_model(store, model.state_dict(), _DESCRIPTION)


@pytest.mark.parametrize("inside", ["", "model"])
def test_a_run_or_its_model_folder_gives_the_model_back(tmp_path: Path, inside: str) -> None:
    """Description and logits survive, from either folder."""
    _, model, written = _saved(tmp_path)
    loaded, description = load_model(str(tmp_path / inside))
    images = torch.randn(2, 3, 32, 32)
    assert written == description
    assert torch.equal(model.eval()(images), loaded(images))
    assert not loaded.training


def test_double_precision_is_kept(tmp_path: Path) -> None:
    """Float64 weights come back as float64, to the last bit."""
    store, model = open_store(str(tmp_path)), build_model(_DESCRIPTION.model, 3).double()
    with torch.no_grad():
        next(model.parameters()).mul_(1 + 1e-12)
    save_model(store, model.state_dict(), _DESCRIPTION)
    loaded = load_model(str(tmp_path))[0].state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_the_description_reads_without_this_program(tmp_path: Path) -> None:
    """model.json names classes, preprocessing, split, selection and the weights' sha256."""
    _saved(tmp_path)
    values = json.loads((tmp_path / "model" / "model.json").read_text())
    assert values["classes"] == ["CNV", "DME", "NORMAL"]
    assert values["selection"] == {"epoch": 2, "step": 30, "metric": "mcc", "value": 0.75}
    assert {"preprocessing", "model", "split", "fingerprint", "weights_sha256"} < set(values)


def test_an_altered_byte_is_refused(tmp_path: Path) -> None:
    """The weights' sha256 is checked."""
    _saved(tmp_path)
    path = tmp_path / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="other sha256"):
        load_model(str(tmp_path))


def test_weights_without_a_description_are_no_model(tmp_path: Path) -> None:
    """A folder in which only the first of the two files was written holds no model."""
    _saved(tmp_path)
    (tmp_path / "model" / "model.json").unlink()
    with pytest.raises(InputError, match="holds no model"):
        load_model(str(tmp_path))


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    """The versions are named."""
    store, _, description = _saved(tmp_path)
    store.write_json("model/model.json", description.to_json() | {"schema_version": 9})
    with pytest.raises(InputError, match="version is 9, this program reads 1"):
        load_model(str(tmp_path))


def test_a_description_of_another_network_is_refused(tmp_path: Path) -> None:
    """Tensors that do not fit the described network are an error, not a partial load."""
    store, _, description = _saved(tmp_path)
    other = dataclasses.replace(description, model=ModelConfig(backbone="small_cnn"))
    store.write_json("model/model.json", other.to_json())
    with pytest.raises(InputError, match="do not fit the described model"):
        load_model(str(tmp_path))


def test_publishing_again_replaces_the_model(tmp_path: Path) -> None:
    """The newer weights are the ones that are read."""
    store, model, _ = _saved(tmp_path)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_model(store, model.state_dict(), _DESCRIPTION)
    loaded, _ = load_model(str(tmp_path))
    assert torch.equal(next(model.parameters()), next(loaded.parameters()))


def test_other_classes_are_refused() -> None:
    """The same names in another order are other classes."""
    require_same_classes(_DESCRIPTION, ["CNV", "DME", "NORMAL"], "set")
    with pytest.raises(InputError, match="classes are DME, CNV, NORMAL, the model was trained on CNV"):
        require_same_classes(_DESCRIPTION, ["DME", "CNV", "NORMAL"], "set")


def test_a_model_of_one_logit_comes_back_as_one(tmp_path: Path) -> None:
    """model.json records it; a description from before there was the choice is read as one logit a class."""
    described = dataclasses.replace(
        _DESCRIPTION, classes=("a", "b"), model=ModelConfig(backbone="small_cnn", outputs="sigmoid"), prior=None
    )
    store, model = open_store(str(tmp_path)), build_model(described.model, 2)
    save_model(store, model.state_dict(), described)
    loaded, description = load_model(str(tmp_path))
    images = torch.randn(2, 3, 32, 32)
    assert "sigmoid" == description.model.outputs == store.read_json("model/model.json")["model"]["outputs"]
    assert torch.equal(model.eval()(images), loaded(images))
    older = _DESCRIPTION.to_json()
    del older["model"]["outputs"]
    assert _DESCRIPTION == ModelDescription.from_json(older, "older")


def test_how_pixels_are_normalised_is_said_and_checked(tmp_path: Path) -> None:
    """`image` goes with no figures and `fixed` with some; older descriptions, which say neither, are `fixed`."""
    own = dataclasses.replace(_DESCRIPTION.preprocessing, normalise="image", mean=(), std=())
    described = dataclasses.replace(_DESCRIPTION, preprocessing=own)
    values = json.loads(json.dumps(described.to_json()))
    assert described == ModelDescription.from_json(values, "here")
    values["preprocessing"]["mean"] = [0.5]
    with pytest.raises(InputError, match=r"damaged \(normalise 'image' with mean \[0.5\]"):
        ModelDescription.from_json(values, "here")
    older = _DESCRIPTION.to_json()
    del older["preprocessing"]["normalise"]
    assert _DESCRIPTION == ModelDescription.from_json(older, "older")
