"""Class activation maps by name: from a batch of images to one signed map an image.

A map is what the method gives before its ReLU: positive where the picture speaks for the class. All methods look
at one layer, are batched, and need gradients only down to that layer: what lies below it is computed without a
graph. Knows no data and no disk.

    classic     Zhou et al. 2016, eq. 2; exact where a linear layer follows global average pooling
    gradcam     Selvaraju et al. 2017, eq. 1
    gradcam++   Chattopadhyay et al. 2018, eq. 19
    layercam    Jiang et al. 2021, eq. 7
    scorecam    Wang et al. 2020, eq. 8; a forward pass for each channel of the layer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from xdist_train.models.heads import find_head

__all__ = ["GRADIENT_FAMILY", "METHODS", "Explainer", "LayerError", "View"]

_EPS = 1e-6  # in Grad-CAM++'s denominator, as in the library `grad-cam`
_RANGE_EPS = 1e-8  # in Score-CAM's normalisation, as there
_MASKED_BATCH = 64  # images of one forward of Score-CAM


def _gradcam(features: Tensor, gradients: Tensor) -> Tensor:
    return torch.einsum("nc,nchw->nhw", gradients.mean(dim=(2, 3)), features)


def _gradcam_plus_plus(features: Tensor, gradients: Tensor) -> Tensor:
    squared = gradients**2
    sums = features.sum(dim=(2, 3), keepdim=True)
    alpha = squared / (2 * squared + sums * squared * gradients + _EPS)
    weights = (gradients.clamp(min=0) * alpha).sum(dim=(2, 3))
    return torch.einsum("nc,nchw->nhw", weights, features)


def _layercam(features: Tensor, gradients: Tensor) -> Tensor:
    return (gradients.clamp(min=0) * features).sum(dim=1)


GRADIENT_FAMILY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": _gradcam,
    "gradcam++": _gradcam_plus_plus,
    "layercam": _layercam,
}
"""Maps [n, h, w] of a layer's output and of the target logits' gradients by it, [n, C, h, w] each."""


@dataclass(frozen=True, eq=False)
class View:
    """A batch as the model sees it.

    images: [n, channels, s, s], normalised. features: [n, C, h, w], the layer's output, not to be changed.
    logits: [n, classes].
    """

    model: nn.Module
    images: Tensor
    features: Tensor
    logits: Tensor


def _classic_maps(view: View, rows: Tensor, targets: Tensor) -> Tensor:
    weights, _ = find_head(view.model)[1].logit_weights()
    return torch.einsum("nc,nchw->nhw", _wide(weights[targets]), _wide(view.features[rows]))


def _family_maps(method: str) -> Callable[[View, Tensor, Tensor], Tensor]:
    def maps(view: View, rows: Tensor, targets: Tensor) -> Tensor:
        chosen = view.logits[rows, targets].sum()
        (gradients,) = torch.autograd.grad(chosen, view.features, retain_graph=True)
        return GRADIENT_FAMILY[method](_wide(view.features.detach()[rows]), _wide(gradients[rows]))

    return maps


def _score_maps(view: View, rows: Tensor, targets: Tensor) -> Tensor:
    chosen = zip(view.images[rows], view.features[rows], targets.tolist(), strict=True)
    return torch.stack([_score_map(view.model, *row) for row in chosen])


def _score_map(model: nn.Module, image: Tensor, features: Tensor, target: int) -> Tensor:
    """One image: each channel weighs by the logit of the image seen through it."""
    masks = functional.interpolate(features[:, None], image.shape[-2:], mode="bilinear", align_corners=True)
    low, high = masks.amin(dim=(2, 3), keepdim=True), masks.amax(dim=(2, 3), keepdim=True)
    masks = (masks - low) / (high - low + _RANGE_EPS)
    scores = torch.cat([model(image * chunk.to(image.dtype))[:, target] for chunk in masks.split(_MASKED_BATCH)])
    return torch.einsum("c,chw->hw", _wide(scores).softmax(dim=0), _wide(features))


def _wide(values: Tensor) -> Tensor:
    """float32 or wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


METHODS: dict[str, Callable[[View, Tensor, Tensor], Tensor]] = {
    "classic": _classic_maps,
    **{name: _family_maps(name) for name in GRADIENT_FAMILY},
    "scorecam": _score_maps,
}
"""Signed maps [n, h, w], float32 or wider, of rows of a view for target classes, int64 [n] each."""


class Explainer:
    """A model, the layer to look at, and the method; the model is frozen and in eval mode from here on.

    Args:
        model: from `build_model` or `load_model`, on its device.
        layer: dotted name, from `find_layer`.
        method: a key of METHODS.
    """

    def __init__(self, model: nn.Module, layer: str, method: str) -> None:
        self._model = model.eval().requires_grad_(False)
        self._layer = model.get_submodule(layer)
        self._method = method

    def look(self, images: Tensor) -> View:
        """One forward pass over a batch of normalised images [n, channels, s, s].

        Raises:
            LayerError: the layer did not run once, or gave no tensor.
        """
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor):
                raise LayerError(f"gives a {type(output).__name__}, not a tensor")
            # No parameter takes a gradient, so the graph begins here. The network goes on with a copy: it may
            # change what it is given in place.
            seen.append(output.detach().requires_grad_(self._needs_graph))
            return seen[-1].clone()

        with _hooked(self._layer, keep), torch.set_grad_enabled(self._needs_graph):
            logits = self._model(images)
        if len(seen) != 1:
            raise LayerError(f"runs {len(seen)} times in a forward pass, not once")
        return View(self._model, images, seen[0], logits)

    def maps(self, view: View, targets: Tensor, rows: Tensor | None = None) -> Tensor:
        """Signed maps [n, h, w] of a view from `look`, float32 or wider.

        Args:
            targets: classes, int64 [n].
            rows: of the view, int64 [n]; None is all.
        """
        rows = torch.arange(len(view.logits), device=targets.device) if rows is None else rows
        with torch.set_grad_enabled(self._needs_graph):
            return METHODS[self._method](view, rows, targets).detach()

    @property
    def _needs_graph(self) -> bool:
        return self._method in GRADIENT_FAMILY


class LayerError(Exception):
    """A layer that no map can be made of; the text goes on from its name."""


@contextmanager
def _hooked(layer: nn.Module, hook: Callable[..., Tensor]) -> Iterator[None]:
    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
