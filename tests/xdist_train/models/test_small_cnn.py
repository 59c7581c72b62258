"""Our own network: size, shapes, and that group norm keeps images apart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from xdist_train.models.small_cnn import SmallCnn


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [32, 97, 128])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_any_size_gives_logits(size: int, norm: str) -> None:
    """Odd sides work too."""
    logits = SmallCnn(4, norm)(torch.zeros(2, 3, size, size))
    assert tuple(logits.shape) == (2, 4)


def test_it_is_compact() -> None:
    """Between 100,000 and 400,000 parameters."""
    assert 100_000 < sum(parameter.numel() for parameter in SmallCnn(4).parameters()) < 400_000


def test_group_norm_does_not_mix_images() -> None:
    """An image's logits in train mode do not depend on its batch; with batch norm they do."""
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    apart = {
        norm: torch.allclose(network(images)[:1], network(images[:1]), rtol=1e-9)
        for norm in ("group", "batch")
        for network in [SmallCnn(3, norm).double()]
    }
    assert apart == {"group": True, "batch": False}


def test_it_learns_a_batch_by_heart() -> None:
    """Thirty Adam steps bring the loss of eight noise images near 0."""
    torch.manual_seed(0)
    network, images = SmallCnn(4), torch.randn(8, 3, 32, 32)
    labels = torch.arange(8) % 4
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
