"""The arithmetic of an estimate."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdist_train.estimation.model import Rates, Work, estimate_epoch

WORK = Work(
    train_images=10_240,
    val_images=1_024,
    step_size=256,
    micro_batch_size=32,
    workers=8,
    nodes=1,
    gradient_bytes=100e6,
    stored_bytes=1e9,
    decoded_images=0,
)
FAST = Rates(
    train=1_000,
    input=1e9,
    link=1e15,
    latency_s=0,
    overlap=1,
    storage=1e15,
    node=1e15,
    decode_node=1e9,
    step_variation=0,
)


def test_where_all_else_is_fast_an_epoch_is_the_models() -> None:
    """10,240 images at 8 x 1,000 a second, and 1,024 evaluated three times as fast."""
    epoch = estimate_epoch(WORK, FAST)
    assert epoch.steps == 40
    assert epoch.model == pytest.approx(1.28)
    assert epoch.later == pytest.approx(1.28 + 1024 / 24_000, rel=1e-3)
    assert "model" == epoch.bottleneck == epoch.first_bottleneck


def test_a_slow_loader_is_named() -> None:
    """Half as fast as the model: an epoch takes as long as loading."""
    epoch = estimate_epoch(WORK, replace(FAST, input=500))
    assert epoch.model + epoch.input == pytest.approx(2.56)
    assert epoch.bottleneck == "loader"


def test_gradients_travel_beside_the_backward_pass() -> None:
    """A ring sends 2 x 7/8 x 100 MB; the backward pass of 32 images takes two thirds of 32 ms."""
    rates = replace(FAST, link=10e9)
    seconds = 2 * 7 / 8 * 100e6 / 10e9
    hidden = estimate_epoch(WORK, rates)
    assert hidden.gradients == pytest.approx(40 * seconds / 4)  # the last of 4 buckets has nothing beside it
    bare = estimate_epoch(WORK, replace(rates, overlap=0))
    assert bare.gradients == pytest.approx(40 * seconds)
    slow = estimate_epoch(WORK, replace(rates, link=1e9))
    assert slow.gradients == pytest.approx(40 * (10 * seconds - 0.032 * 2 / 3))
    assert slow.bottleneck == "network"


def test_one_worker_sends_nothing_and_waits_for_nobody() -> None:
    """Whatever the link."""
    epoch = estimate_epoch(replace(WORK, workers=1), replace(FAST, link=1, step_variation=0.5))
    assert epoch.gradients == epoch.slowest == epoch.idle == 0


def test_micro_batches_that_do_not_divide_leave_workers_idle() -> None:
    """8 micro batches on 5 workers: some have 2, so a step lasts as long as on 4."""
    epoch = estimate_epoch(replace(WORK, workers=5), FAST)
    assert epoch.model + epoch.idle == pytest.approx(40 * 64 / 1000)
    assert epoch.bottleneck == "uneven steps"


def test_a_slow_storage_holds_up_the_first_epoch_alone() -> None:
    """8 nodes share it, each fetches all."""
    epoch = estimate_epoch(replace(WORK, nodes=8), replace(FAST, storage=1e9))
    assert epoch.fetch == pytest.approx(8)
    assert (epoch.first_bottleneck, epoch.bottleneck) == ("storage", "model")


def test_the_slowest_of_many_is_slower() -> None:
    """Expected largest of 2 normal draws is 0.564, of 512 about 3.04 (tables of order statistics)."""
    for workers, expected in ((2, 0.564), (512, 3.04)):
        work = replace(WORK, workers=workers, step_size=32 * workers, train_images=32 * workers)
        epoch = estimate_epoch(work, replace(FAST, step_variation=0.1))
        assert epoch.slowest / epoch.model == pytest.approx(0.1 * expected, rel=0.05)


@given(st.integers(1, 64), st.integers(1, 4096), st.integers(1, 64), st.integers(1, 100_000))
def test_no_epoch_is_faster_than_its_models(workers: int, step: int, micro: int, images: int) -> None:
    """And no part is negative."""
    work = replace(WORK, workers=workers, step_size=step, micro_batch_size=micro, train_images=images)
    epoch = estimate_epoch(work, replace(FAST, link=1e9, input=700, latency_s=1e-4))
    parts = (epoch.model, epoch.input, epoch.gradients, epoch.idle, epoch.slowest, epoch.evaluation)
    assert all(part >= -1e-9 for part in parts)
    assert epoch.later >= images / workers / 1000
