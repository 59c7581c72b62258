"""The loss of one optimiser step: sum(w_i * l_i) / sum(w_i) over all its images, on any number of workers.

A worker adds up its images' numerators; every worker knows the whole step's denominator from the plan's
labels alone. Knows neither workers nor plan.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cluster.errors import InputError
from xdist_train.config import LossConfig

__all__ = ["LossFunction", "build_class_weights"]


def build_class_weights(config: LossConfig, class_counts: Sequence[int]) -> NDArray[np.float64]:
    """Weight of an image by its class, [K].

    `inverse` is N / (K * count): over the training images its mean is 1. `complement` is 1 - count / N: for two
    classes each has the other's share, so both weigh the same in sum.

    Args:
        config: the loss section.
        class_counts: training images of each class, all above 0.

    Raises:
        InputError: a list of another length than the number of classes.
    """
    if config.class_weights == "list":
        return _listed(config, len(class_counts))
    counts = np.asarray(class_counts, dtype=np.float64)
    if config.class_weights == "none":
        return np.ones_like(counts)
    assert (counts > 0).all(), f"a class without training images: {class_counts}"
    total = counts.sum()
    weights: NDArray[np.float64] = (
        (total - counts) / total if config.class_weights == "complement" else total / (len(counts) * counts)
    )
    return weights


def _listed(config: LossConfig, num_classes: int) -> NDArray[np.float64]:
    if len(config.class_weight_list) != num_classes:
        raise InputError(
            f"loss.class_weight_list has {len(config.class_weight_list)} figures, the data set has "
            f"{num_classes} classes. Give one weight a class, in the order of `xdist-train look`."
        )
    return np.asarray(config.class_weight_list, dtype=np.float64)


class LossFunction:
    """Cross-entropy with class weights, label smoothing and a focal factor.

    For one image with label y, log-probabilities q and class weights w:

        w_i * l_i = (1 - p_y)^gamma * [(1 - s) * w_y * (-q_y) + s / K * sum_c w_c * (-q_c)]

    so without the focal factor sum(w_i * l_i) / sum(w_i) is `torch.nn.functional.cross_entropy` with
    `weight`, `label_smoothing` and the mean; of the two logits of a one-logit head it is the binary one. The
    factor is that of Lin et al. 2017, eq. 4. Computed in the logits' precision, float32 at least.

    Args:
        config: the loss section.
        class_weights: [K], from `build_class_weights`.
    """

    def __init__(self, config: LossConfig, class_weights: NDArray[np.float64]) -> None:
        self._config = config
        self._weights = class_weights
        self._on_device: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def per_sample(self, logits: Tensor, labels: Tensor) -> Tensor:
        """w_i * l_i of each image: logits [n, K], labels [n] int64, to [n]."""
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        weights = self._weights_like(logits)
        log_probabilities = functional.log_softmax(logits, dim=1)
        log_true = log_probabilities.gather(1, labels[:, None]).squeeze(1)
        smoothing = self._config.label_smoothing
        loss = -weights[labels] * log_true
        if smoothing:
            uniform = -(log_probabilities * weights).sum(dim=1) / len(weights)
            loss = (1 - smoothing) * loss + smoothing * uniform
        return loss * self._focal_factor(log_true) if self._config.focal_gamma else loss

    def weight_sum(self, labels: NDArray[np.integer]) -> float:
        """sum(w_i) of a set of labels [n], on the host."""
        return float(np.bincount(labels, minlength=len(self._weights)) @ self._weights)

    def _focal_factor(self, log_true: Tensor) -> Tensor:
        # Not below machine precision: the slope of x^gamma at 0 is infinite for gamma below 1.
        miss = (-torch.expm1(log_true)).clamp_min(torch.finfo(log_true.dtype).eps)
        return miss**self._config.focal_gamma

    def _weights_like(self, logits: Tensor) -> Tensor:
        key = (logits.device, logits.dtype)
        if key not in self._on_device:
            self._on_device[key] = torch.as_tensor(self._weights, dtype=logits.dtype, device=logits.device)
        return self._on_device[key]
