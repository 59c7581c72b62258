"""What a network costs, counted without computing."""

from __future__ import annotations

import pytest

from xdist_train.config import resolve_config
from xdist_train.estimation.devices import DEVICES
from xdist_train.estimation.network import network_cost


def test_resnet50_costs_what_is_known() -> None:
    """23.5 million parameters with 4 classes; 4.09 billion multiply-adds forward, and twice that backward but for the
    first layer's pictures."""
    cost = network_cost(resolve_config("oct", ["model.backbone=resnet50"]), 4)
    assert cost.parameters == cost.trainable == 25_557_032 - 2_049_000 + 2048 * 4 + 4
    assert cost.flops == pytest.approx(3 * 2 * 4.09e9, rel=0.03)
    assert cost.saved_elements == cost.elements


def test_a_frozen_network_keeps_and_computes_less() -> None:
    """E's VGG-16: only its head learns."""
    cost = network_cost(resolve_config("oct_vgg16", []), 4)
    assert (cost.parameters, cost.trainable) == (135_310_404, 1_049_860)
    assert cost.flops == pytest.approx(2 * 15.5e9, rel=0.03)
    assert cost.saved_elements < cost.elements / 50


def test_gpus_train_resnet50_about_as_is_published() -> None:
    """NVIDIA's own figures (DeepLearningExamples): 2,470 images/s on an A100, 1,270 on a V100; within a third."""
    cost = network_cost(resolve_config("oct", ["model.backbone=resnet50"]), 4)
    for name, published in (("a100", 2470), ("v100", 1270)):
        assert published * 2 / 3 < DEVICES[name].images_per_s(cost, 256) < published * 4 / 3


def test_small_micro_batches_wait_for_the_cpu() -> None:
    """Kernels are started one by one, however little each has to do."""
    cost = network_cost(resolve_config("oct", ["model.backbone=resnet50"]), 4)
    device = DEVICES["h100"]
    assert device.images_per_s(cost, 2) < device.images_per_s(cost, 256) / 10
