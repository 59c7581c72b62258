"""Sample order: what a plan promises for every size, imbalance, worker count and place to resume."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.world import World
from dataloading.loading.plan import (
    Plan,
    StepPlan,
    evaluation_requests,
    in_groups,
    quotas,
    samples_digest,
    training_requests,
)

COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(lambda counts: sum(counts) > 0)
ALPHAS = st.sampled_from([0.0, 0.3, 0.5, 1.0])
SEEDS = st.integers(0, 2**32 - 1)
EPOCHS = st.integers(0, 500)


@settings(deadline=None)
@given(counts=COUNTS, alpha=ALPHAS, seed=SEEDS, epoch=EPOCHS)
def test_each_sample_is_drawn_floor_or_ceil_of_its_share(counts, alpha, seed, epoch):
    """In an epoch no sample is drawn more than once more often than another of its class."""
    plan = Plan(counts, alpha, seed)
    times = np.bincount(plan.ids(epoch, 0, plan.num_draws), minlength=sum(counts))
    for quota, items in zip(plan.quotas, np.split(times, np.cumsum(counts)[:-1]), strict=True):
        assert len(items) == 0 or (items.min(), items.max()) == (quota // len(items), -(-quota // len(items)))
        assert items.sum() == quota


@given(lengths=st.lists(st.integers(0, 700), max_size=40))
def test_groups_are_of_a_few_hundred_draws_and_in_order(lengths):
    """Nothing is lost; a group ends with the item that fills it, however small those before it were."""
    groups = list(in_groups(enumerate(lengths), lambda item: item[1]))
    assert [item for group in groups for item in group] == list(enumerate(lengths))
    for group in groups[:-1]:
        assert sum(length for _, length in group[:-1]) < 512 <= sum(length for _, length in group)
    assert all(groups)
    assert sum(length for _, length in itertools.chain(*groups[-1:])) < 512 + 700


@settings(deadline=None)
@given(counts=COUNTS, alpha=ALPHAS, seed=SEEDS, size=st.integers(1, 4), micro=st.integers(1, 7))
def test_a_workers_requests_are_the_plans_stretches(counts, alpha, seed, size, micro):
    """However many are worked out together, each has the rows of its own positions."""
    plan = Plan(counts, alpha, seed)
    steps = StepPlan(plan.num_draws, 5 * micro, micro)
    for rank in range(size):
        world = World(rank=rank, size=size)
        requests = training_requests(plan, steps, world, 3)
        places = [(s, *m) for s in range(steps.steps_per_epoch) for m in steps.micro_batches(s, world)]
        assert [(r.step, r.index, r.start, r.rows.tolist()) for r in requests] == [
            (step, index, start, plan.ids(3, start, stop).tolist()) for step, index, start, stop in places
        ]


@given(counts=COUNTS, seed=SEEDS, epoch=EPOCHS)
def test_alpha_0_is_every_sample_exactly_once(counts, seed, epoch):
    """Without balancing an epoch is a permutation of the split."""
    assert sorted(Plan(counts, 0.0, seed).ids(epoch, 0, sum(counts))) == list(range(sum(counts)))


@given(counts=COUNTS)
def test_alpha_1_balances_classes_exactly(counts):
    """With full balancing the quotas of classes that have images differ by one at most."""
    drawn = quotas(counts, 1.0)[np.array(counts) > 0]
    assert drawn.max() - drawn.min() <= 1
    assert drawn.sum() == sum(counts)


@given(counts=COUNTS, alpha=ALPHAS)
def test_a_class_without_images_is_never_drawn(counts, alpha):
    """An empty class has no quota, whatever alpha is."""
    assert [quota for quota, count in zip(quotas(counts, alpha), counts, strict=True) if count == 0 and quota] == []


@settings(deadline=None, max_examples=40)
@given(
    counts=COUNTS,
    alpha=ALPHAS,
    seed=SEEDS,
    micro_batch_size=st.integers(1, 9),
    micro_batches=st.integers(1, 9),
    resume=st.integers(0, 1000),
)
def test_a_step_draws_the_same_ids_on_any_number_of_workers_and_after_resume(
    counts, alpha, seed, micro_batch_size, micro_batches, resume
):
    """Steps and micro batches are cut in plan order; workers and resuming only choose who runs which when."""
    plan = Plan(counts, alpha, seed)
    steps = StepPlan(plan.num_draws, micro_batch_size * micro_batches, micro_batch_size)
    start_step = resume % steps.steps_per_epoch
    expected = [(step, plan.ids(3, *steps.span(step)).tolist()) for step in range(start_step, steps.steps_per_epoch)]
    for size in (1, 2, 3, 4, 7):
        worlds = [World(rank=rank, size=size) for rank in range(size)]
        requests = [r for world in worlds for r in training_requests(plan, steps, world, 3, start_step)]
        requests.sort(key=lambda request: (request.step, request.index))
        assert [len(r.rows) <= micro_batch_size for r in requests] == [True] * len(requests)
        assert [(s, [row for r in requests if r.step == s for row in r.rows]) for s, _ in expected] == expected
        assert np.concatenate([r.start + np.arange(len(r.rows)) for r in requests]).tolist() == list(
            range(steps.span(start_step)[0], plan.num_draws)
        )


@given(step_size=st.integers(1, 40), micro=st.integers(1, 9), draws=st.integers(1, 200), size=st.integers(1, 7))
def test_workers_share_a_step_evenly(step_size, micro, draws, size):
    """No worker runs two micro batches more than another in a step, and together they run each once."""
    steps = StepPlan(draws, step_size, micro)
    for step in range(steps.steps_per_epoch):
        shares = [[m[0] for m in steps.micro_batches(step, World(rank=r, size=size))] for r in range(size)]
        assert sorted(itertools.chain(*shares)) == list(range(steps.num_micro_batches(step)))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(num_images=st.integers(1, 300), micro=st.integers(1, 17), size=st.integers(1, 7))
def test_evaluation_visits_each_sample_once(num_images, micro, size):
    """Over all workers each row of the split is asked for exactly once, without augmentation."""
    worlds = [World(rank=rank, size=size) for rank in range(size)]
    requests = [request for world in worlds for request in evaluation_requests(num_images, micro, world)]
    assert sorted(row for request in requests for row in request.rows) == list(range(num_images))
    assert {(request.epoch, request.step) for request in requests} == {(-1, -1)}


@given(counts=COUNTS, alpha=ALPHAS, seed=SEEDS, epoch=EPOCHS, cuts=st.lists(st.integers(0, 360), max_size=4))
def test_any_stretch_can_be_asked_for_alone(counts, alpha, seed, epoch, cuts):
    """A position's draw does not depend on the stretch in which it was computed, nor its class on how."""
    plan = Plan(counts, alpha, seed)
    bounds = [0, *sorted(min(cut, plan.num_draws) for cut in cuts), plan.num_draws]
    parts = [plan.ids(epoch, start, stop) for start, stop in itertools.pairwise(bounds)]
    whole, classes = plan.draw(epoch, 0, plan.num_draws)
    assert np.concatenate(parts).tolist() == whole.tolist()
    assert classes.tolist() == np.repeat(np.arange(len(counts)), counts)[whole].tolist()


@pytest.mark.parametrize("num_images", [1, 2, 3, 7, 97, 1000, 12_345])
def test_orders_of_epochs_and_seeds_are_unrelated(num_images):
    """Two epochs, two seeds, and an order and its own positions agree in about one place, as chance would."""
    orders = [Plan([num_images], 0.0, seed).ids(epoch, 0, num_images) for seed in (0, 1) for epoch in (0, 1)]
    orders.append(np.arange(num_images))
    agreements = [int((a == b).sum()) for n, a in enumerate(orders) for b in orders[:n]]
    assert np.mean(agreements) <= 3.5 or num_images <= 3


def test_the_order_looks_random_at_every_lag():
    """Neighbouring draws are uncorrelated, and a tenth of an epoch holds a tenth of each tenth of the set."""
    order = Plan([10_000], 0.0, seed=5).ids(0, 0, 10_000).astype(np.float64)
    for lag in (1, 2, 10, 100):  # bound: four standard deviations of a random order, 1 / sqrt(n)
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 0.04
    cells = np.histogram2d(np.arange(10_000), order, bins=10)[0]
    assert ((cells - 100) ** 2 / 100).sum() < 130  # chi-squared, 81 degrees of freedom: 0.9995 quantile is 128


def test_balanced_draws_spread_over_a_small_class_anew_each_epoch():
    """Over many epochs a sample of an over-drawn class is drawn about as often as its neighbour."""
    plan = Plan([7, 100], 1.0, seed=1)
    drawn = np.concatenate([plan.ids(epoch, 0, plan.num_draws) for epoch in range(200)])
    times = np.bincount(drawn[drawn < 7], minlength=7)
    assert times.sum() == 200 * plan.quotas[0]
    assert np.abs(times / times.mean() - 1).max() < 0.02


def test_a_hundred_million_images_cost_no_memory_of_their_size():
    """A stretch of a huge epoch is computed alone: its ids are distinct and below the size."""
    ids = Plan([60_000_000, 39_999_999, 1], 0.0, seed=2).ids(9, 55_555_000, 55_559_096)
    assert len(set(ids.tolist())) == 4096
    assert 0 <= ids.min() < ids.max() < 100_000_000


@settings(deadline=None)
@given(world_size=st.integers(1, 7), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_the_digest_of_samples_knows_the_draws_and_not_the_workers(world_size: int, seed: int, epoch: int) -> None:
    """The sum over all workers is that of one; one row moved, or two steps exchanged, give another."""
    plan, steps = Plan((50, 23, 31), 0.5, seed), StepPlan(104, 24, 5)

    def digest(world: World) -> int:
        requests = training_requests(plan, steps, world, epoch)
        return sum(samples_digest(item.epoch, item.step, item.index, item.rows) for item in requests) % 2**40

    alone = digest(World())
    assert alone == sum(digest(World(rank, world_size)) for rank in range(world_size)) % 2**40
    first, second = list(training_requests(plan, steps, World(), epoch))[:2]
    moved = first.rows.copy()
    moved[0] += 1
    own = samples_digest(first.epoch, first.step, first.index, first.rows)
    assert own != samples_digest(first.epoch, first.step, first.index, moved)
    assert own != samples_digest(first.epoch, first.step, second.index, first.rows)
