"""The loss: equal to torch's, additive over micro batches, weights known from labels alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cluster.errors import InputError
from xdist_train.config import LossConfig
from xdist_train.models.heads import BothLogits
from xdist_train.models.losses import LossFunction, build_class_weights


def _draws(n: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, dtype=torch.float64, generator=generator)
    return logits, torch.randint(classes, (n,), generator=generator)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 20),
    weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=5),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 9),
)
def test_it_is_torchs_cross_entropy(n: int, weights: list[float], smoothing: float, seed: int) -> None:
    """sum(w_i l_i) / sum(w_i) is torch's weighted, smoothed mean."""
    logits, labels = _draws(n, len(weights), seed)
    config = LossConfig(class_weights="list", class_weight_list=tuple(weights), label_smoothing=smoothing)
    loss = LossFunction(config, build_class_weights(config, [1] * len(weights)))
    actual = loss.per_sample(logits, labels).sum() / loss.weight_sum(labels.numpy())
    expected = functional.cross_entropy(
        logits, labels, weight=torch.tensor(weights, dtype=torch.float64), label_smoothing=smoothing
    )
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_micro_batches_add_up_to_the_step() -> None:
    """Numerators of parts of any size add up to the whole's, whatever bends the loss."""
    logits, labels = _draws(17, 3, 0)
    loss = LossFunction(LossConfig(label_smoothing=0.1, focal_gamma=2), np.array([0.5, 1.0, 3.0]))
    parts = sum(loss.per_sample(*part).sum() for part in zip(logits.split(5), labels.split(5), strict=True))
    torch.testing.assert_close(parts, loss.per_sample(logits, labels).sum(), rtol=1e-12, atol=0)


def test_inverse_weights_give_every_class_the_same_sum() -> None:
    """count x weight is equal for all classes, and the mean weight of an image is 1."""
    counts = [10, 30, 60]
    weights = build_class_weights(LossConfig(class_weights="inverse"), counts)
    np.testing.assert_allclose(np.array(counts) * weights, np.full(3, 100 / 3))


def test_without_weights_the_denominator_is_the_number_of_images() -> None:
    """`none` counts images."""
    config = LossConfig()
    loss = LossFunction(config, build_class_weights(config, [3, 9]))
    assert loss.weight_sum(np.array([0, 1, 1, 0, 0, 1, 1])) == 7.0


def test_a_list_of_another_length_is_refused() -> None:
    """One weight a class."""
    config = LossConfig(class_weights="list", class_weight_list=(1.0, 2.0))
    with pytest.raises(InputError, match=r"loss\.class_weight_list has 2 figures.*3 classes"):
        build_class_weights(config, [1, 1, 1])


def test_focal_factor_follows_the_paper() -> None:
    """Each image's cross-entropy is scaled by (1 - p)^gamma."""
    logits, labels = _draws(6, 4, 1)
    loss = LossFunction(LossConfig(focal_gamma=2), np.ones(4))
    truth = torch.softmax(logits, dim=1)[torch.arange(6), labels]
    torch.testing.assert_close(loss.per_sample(logits, labels), -((1 - truth) ** 2) * truth.log())


def test_focal_gradient_is_finite_for_a_certain_image() -> None:
    """A probability of exactly 1 gives no infinite slope, for gamma below 1 either."""
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    LossFunction(LossConfig(focal_gamma=0.5), np.ones(2)).per_sample(logits, torch.tensor([0])).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_half_precision_logits_are_widened() -> None:
    """The loss of bfloat16 logits is float32."""
    loss = LossFunction(LossConfig(), np.ones(2))
    assert torch.float32 == loss.per_sample(torch.zeros(1, 2, dtype=torch.bfloat16), torch.tensor([1])).dtype


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 20),
    weights=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    gamma=st.sampled_from([0.0, 0.5, 2.0]),
    seed=st.integers(0, 9),
)
def test_of_one_logit_it_is_torchs_binary_cross_entropy(
    n: int, weights: tuple[float, float], smoothing: float, gamma: float, seed: int
) -> None:
    """Weighted, smoothed and focal: torch's loss with `pos_weight`, a target moved from its end, and (1 - p)^gamma."""
    logits, labels = _draws(n, 1, seed)
    labels = (labels + torch.arange(n)) % 2
    config = LossConfig(class_weights="list", class_weight_list=weights, label_smoothing=smoothing, focal_gamma=gamma)
    actual = LossFunction(config, build_class_weights(config, [1, 1])).per_sample(BothLogits()(logits), labels)
    z, targets = logits[:, 0], labels.double() * (1 - smoothing) + smoothing / 2
    negative, positive = weights
    expected = negative * functional.binary_cross_entropy_with_logits(
        z, targets, pos_weight=torch.tensor(positive / negative, dtype=torch.float64), reduction="none"
    )
    right = torch.where(labels == 1, z.sigmoid(), (-z).sigmoid())
    torch.testing.assert_close(actual, expected * (1 - right) ** gamma, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("label", [0, 1])
def test_one_logit_is_stable_far_out(dtype: torch.dtype, label: int) -> None:
    """Loss and slope at logits of +-500 are those of torch's binary cross-entropy, and finite."""
    labels, results = torch.tensor([label, label]), []
    loss = LossFunction(LossConfig(), np.ones(2))
    for function in (
        lambda z: loss.per_sample(BothLogits()(z[:, None]), labels),
        lambda z: functional.binary_cross_entropy_with_logits(z, labels.to(dtype), reduction="none"),
    ):
        z = torch.tensor([-500.0, 500.0], dtype=dtype, requires_grad=True)
        value = function(z)
        value.sum().backward()
        results.append((value.detach(), z.grad))
    torch.testing.assert_close(*results)
    assert bool(torch.isfinite(torch.cat(results[0])).all())


def test_complement_weights_are_the_share_of_the_other_class() -> None:
    """On 1,349 normal and 3,883 pneumonia images 0.7422 and 0.2578, as the tutorial has them."""
    weights = build_class_weights(LossConfig(class_weights="complement"), [1349, 3883])
    np.testing.assert_allclose(weights, [0.74216361, 0.25783639], atol=5e-9)
    assert [0.7422, 0.2578] == weights.round(4).tolist()


def test_complement_weights_balance_two_classes() -> None:
    """Both classes weigh the same in sum; with more classes each has the share of all others."""
    config = LossConfig(class_weights="complement")
    counts = np.array([1349, 3883])
    assert len(set((counts * build_class_weights(config, counts.tolist())).round(9))) == 1
    np.testing.assert_allclose([0.9, 0.7, 0.4], build_class_weights(config, [10, 30, 60]))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 20), classes=st.integers(2, 6), seed=st.integers(0, 9))
def test_log_softmax_and_nll_are_cross_entropy(n: int, classes: int, seed: int) -> None:
    """A network that ends in LogSoftmax under NLLLoss learns what ours does: the same loss and the same slopes."""
    logits, labels = _draws(n, classes, seed)
    ours, theirs = (logits.clone().requires_grad_(True) for _ in range(2))
    LossFunction(LossConfig(), np.ones(classes)).per_sample(ours, labels).mean().backward()
    functional.nll_loss(torch.log_softmax(theirs, dim=1), labels).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    # Log-probabilities are their own log-probabilities, so such a network's output may be given to ours as it is.
    again = LossFunction(LossConfig(), np.ones(classes)).per_sample(torch.log_softmax(logits, dim=1), labels).mean()
    torch.testing.assert_close(functional.nll_loss(torch.log_softmax(logits, dim=1), labels), again)
