"""Maps against references: float64 arithmetic written out, and the library `grad-cam`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xdist_train.config import ModelConfig
from xdist_train.evidence.cams.geometry import upsample
from xdist_train.evidence.cams.layers import find_layer
from xdist_train.evidence.cams.methods import GRADIENT_FAMILY, METHODS, Explainer, LayerError
from xdist_train.models.backbones import build_model
from xdist_train.models.heads import find_head
from xdist_train.models.torchvision_shim import declare_missing_operators

_BACKBONES = ["small_cnn", "resnet18", "mobilenet_v3_small"]


def _model(backbone: str, dtype: torch.dtype = torch.float32, num_classes: int = 3, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(ModelConfig(backbone=backbone, **settings), num_classes).eval()
    for module in model.modules():  # as after some training: figures of BatchNorm are not 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.to(dtype)


def _images(count: int = 3, size: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn((count, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=dtype)


def _maps(model: nn.Module, layer: str, method: str, images: Tensor, targets: Tensor) -> Tensor:
    explainer = Explainer(model, layer, method)
    return explainer.maps(explainer.look(images), targets)


def _output_of(model: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's output and the logits, float64, with the whole graph."""
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(images)
    handle.remove()
    return kept[0], logits


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet18", "efficientnet_b0"])
def test_classic_is_the_layers_output_times_the_heads_weights(backbone: str) -> None:
    """In float32 within 1e-5 of a float64 reference written out channel by channel."""
    images, targets = _images(), torch.tensor([2, 0, 1])
    model = _model(backbone)
    layer = find_layer(model, backbone)
    ours = _maps(model, layer, "classic", images, targets)
    exact = _model(backbone, torch.float64)
    with torch.no_grad():
        features, _ = _output_of(exact, layer, images.double())
    weights = find_head(exact)[1].linear.weight.detach()
    expected = torch.zeros(ours.shape, dtype=torch.float64)
    for image, target in enumerate(targets.tolist()):
        for channel in range(features.shape[1]):
            expected[image] += weights[target, channel] * features[image, channel]
    assert (expected - ours).abs().max() / expected.abs().max() < 1e-5


def test_classic_maps_add_up_to_the_logit() -> None:
    """Mean of a map plus bias is the logit, for every class."""
    model, images = _model("resnet18"), _images(2)
    explainer = Explainer(model, "layer4", "classic")
    view = explainer.look(images)
    bias = find_head(model)[1].linear.bias.detach()
    for target in range(3):
        maps = explainer.maps(view, torch.full((2,), target))
        assert torch.allclose(view.logits[:, target], maps.mean(dim=(1, 2)) + bias[target], atol=1e-5)


@pytest.mark.parametrize("backbone", _BACKBONES)
def test_gradcam_is_a_float64_reference(backbone: str) -> None:
    """Weights are means of the gradients of a whole backward pass through every layer, one image at a time."""
    images, targets = _images(), torch.tensor([1, 1, 2])
    layer = find_layer(_model(backbone), backbone)
    ours = _maps(_model(backbone), layer, "gradcam", images, targets)
    exact = _model(backbone, torch.float64)
    for number, target in enumerate(targets.tolist()):
        features, logits = _output_of(exact, layer, images[number : number + 1].double())
        (gradients,) = torch.autograd.grad(logits[0, target], features)
        expected = (gradients.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1)[0].detach()
        assert (expected - ours[number]).abs().max() / expected.abs().max() < 1e-5


@pytest.mark.parametrize("method", [*GRADIENT_FAMILY, "scorecam"])
@pytest.mark.parametrize("backbone", _BACKBONES)
def test_the_family_is_that_of_the_library(backbone: str, method: str) -> None:
    """Within 1e-4 of `grad-cam` after its ReLU, scaling and resizing, in a batch with different targets."""
    if method == "scorecam" and backbone != "small_cnn":
        pytest.skip("a forward for each of hundreds of channels")
    declare_missing_operators()
    from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    theirs = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "layercam": LayerCAM, "scorecam": ScoreCAM}[method]
    images, targets = _images(), torch.tensor([0, 2, 1])
    model = _model(backbone)
    layer = find_layer(model, backbone)
    with theirs(model=model, target_layers=[model.get_submodule(layer)]) as library:
        expected = library(images, [ClassifierOutputTarget(target) for target in targets.tolist()])
    ours = _as_the_library_shows(_maps(_model(backbone), layer, method, images, targets), images.shape[-1])
    assert float(np.abs(expected - ours).max()) < 1e-4


def _as_the_library_shows(maps: Tensor, size: int) -> np.ndarray:
    def scaled(values: Tensor) -> Tensor:
        low = values.amin(dim=(1, 2), keepdim=True)
        return (values - low) / (1e-7 + (values - low).amax(dim=(1, 2), keepdim=True))

    return scaled(upsample(scaled(maps.clamp(min=0)), size)).numpy()


@pytest.mark.parametrize("method", list(METHODS))
def test_rows_of_a_view_are_those_of_a_batch(method: str) -> None:
    """Maps of some rows are the maps that the whole batch gives there; other images do not matter."""
    images, targets = _images(4, 32), torch.tensor([0, 1, 2, 0])
    explainer = Explainer(_model("small_cnn"), "stages", method)
    view = explainer.look(images)
    whole, rows = explainer.maps(view, targets), torch.tensor([3, 1])
    assert torch.allclose(whole[rows], explainer.maps(view, targets[rows], rows), atol=1e-6)
    alone = explainer.maps(explainer.look(images[2:3]), targets[2:3])
    assert torch.allclose(whole[2:3], alone, atol=1e-5)


@pytest.mark.parametrize("method", list(METHODS))
def test_nothing_below_the_layer_keeps_a_graph(method: str, count_backwards: Callable[[nn.Module], list[str]]) -> None:
    """The backward pass ends at the layer, and no parameter gathers a gradient."""
    model = _model("resnet18")
    seen = count_backwards(model)
    _maps(model, "layer4", method, _images(1, 32), torch.tensor([0]))
    assert [name for name in seen if not name.startswith(("avgpool", "fc"))] == []
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == []


@pytest.fixture
def count_backwards() -> Callable[[nn.Module], list[str]]:
    """Names of modules through whose output a gradient flows."""

    def watch(model: nn.Module) -> list[str]:
        seen: list[str] = []

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def look(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.requires_grad:
                    output.register_hook(lambda gradient: seen.append(name))

            return look

        for name, module in model.named_modules():
            if name and not list(module.children()):
                module.register_forward_hook(hook(name))
        return seen

    return watch


def test_a_layer_that_runs_twice_is_refused() -> None:
    """A ReLU that a block uses at two places has no one output."""
    with pytest.raises(LayerError, match="runs 2 times"):
        Explainer(_model("resnet18"), "layer4.1.relu", "gradcam").look(_images(1, 32))


def test_of_one_logit_the_classes_have_opposite_maps() -> None:
    """Classic and Grad-CAM maps of the second class are the logit's own, by half, and those of the first minus that."""
    images, backbone = _images(2, dtype=torch.float64), "resnet18"
    model = _model(backbone, torch.float64, 2, outputs="sigmoid")
    layer = find_layer(model, backbone)
    features, logits = _output_of(model, layer, images)
    (gradients,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), features)
    weights = find_head(model)[1].linear.weight.detach()[0]
    expected = {
        "classic": torch.einsum("c,nchw->nhw", weights, features.detach()),
        "gradcam": torch.einsum("nc,nchw->nhw", gradients.mean(dim=(2, 3)), features.detach()),
    }
    for method, of_logit in expected.items():
        first, second = (_maps(model, layer, method, images, torch.full((2,), target)) for target in (0, 1))
        assert torch.equal(first, -second)
        torch.testing.assert_close(second, of_logit / 2, rtol=1e-9, atol=1e-12)
