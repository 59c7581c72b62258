"""The loader: right pictures for the right rows, ahead of time, alike on any number of workers."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import InputError, StoreError
from cluster.world import World
from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.dataset import Dataset, shard_key
from dataloading.loading import loader as loader_module
from dataloading.loading import plan as plan_module
from dataloading.loading.batch import Batch
from dataloading.loading.cache import Split, open_split
from dataloading.loading.loader import BACKENDS, Loader, choose_backend
from dataloading.loading.opencv import OpenCVExecutor
from dataloading.loading.plan import Plan, Request, StepPlan, evaluation_requests, training_requests
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, stand_in

CPU = torch.device("cpu")
CONFIG = LoaderConfig(backend="opencv", image_size=48)


@pytest.fixture
def split(gray_dataset: Dataset, tmp_path: Path) -> Split:
    """The train split of the small gray set."""
    return open_split(gray_dataset, "patient", "train", tmp_path / "cache")


def build(split: Split, config: LoaderConfig = CONFIG, augment: AugmentConfig | None = None, seed: int = 0) -> Loader:
    """A loader of two threads on the CPU; skips where DALI is not installed."""
    if config.backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed (extra `dali`)")
    return Loader(split, split.dataset.info, config, augment=augment, seed=seed, device=CPU, threads=2)


def training(split: Split, world: World, *, step_size: int = 6, micro: int = 2, epoch: int = 1) -> Iterator[Request]:
    """Requests of a balanced epoch."""
    plan = Plan(split.class_counts, 1.0, seed=3)
    return training_requests(plan, StepPlan(plan.num_draws, step_size, micro), world, epoch)


def by_position(split: Split, size: int, micro: int, seed: int = 0) -> torch.Tensor:
    """All pictures of an epoch on a number of workers, in plan order: uint8 [draws, 1, S, S]."""
    batches: list[Batch] = []
    for rank in range(size):
        with build(split, augment=AugmentConfig(), seed=seed) as loader:
            batches += loader.load(training(split, World(rank=rank, size=size), micro=micro))
    batches.sort(key=lambda batch: (batch.step, batch.index))
    return torch.cat([batch.images for batch in batches])


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_follow_the_requests(split, backend):
    """Each batch carries its request's rows and place, with the labels of those rows."""
    with build(split, dataclasses.replace(CONFIG, backend=backend), AugmentConfig()) as loader:
        requests = list(training(split, World()))
        batches = list(loader.load(iter(requests)))
    assert [(b.epoch, b.step, b.index, b.rows.tolist()) for b in batches] == [
        (r.epoch, r.step, r.index, r.rows.tolist()) for r in requests
    ]
    assert [b.labels.tolist() for b in batches] == [split.labels(r.rows).tolist() for r in requests]
    assert {(b.images.dtype, *b.images.shape[1:]) for b in batches} == {(torch.uint8, 1, 48, 48)}


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_pictures_are_the_same_on_any_number_of_workers(split, size, micro):
    """Bit for bit, whoever runs a draw and in whatever micro batch."""
    assert torch.equal(by_position(split, size, micro), by_position(split, 1, 6))


@pytest.mark.parametrize("drawn_at_once", [1, 5, 1000])
@pytest.mark.parametrize("cache", ["encoded", "pixels"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_do_not_depend_on_what_is_drawn_with_them(
    gray_dataset, tmp_path, monkeypatch, backend, cache, drawn_at_once
):
    """Requests of two epochs and of an evaluation in one stream give what each of them gives by itself."""
    config, half = dataclasses.replace(CONFIG, backend=backend, cache=cache), World(rank=1, size=2)
    split = open_split(gray_dataset, "patient", "train", tmp_path / "cache", pixel_side=config.pixel_side)
    requests = [[*training(split, half, epoch=0)], [*evaluation_requests(9, 2, half)], [*training(split, half)]]
    with build(split, config, AugmentConfig()) as loader:
        apart = [batch.images.clone() for some in requests for one in some for batch in loader.load([one])]
        monkeypatch.setattr(plan_module, "_DRAWN_AT_ONCE", drawn_at_once)
        together = [batch.images.clone() for batch in loader.load(itertools.chain(*requests))]
    assert torch.equal(torch.cat(together), torch.cat(apart))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shard_that_has_become_shorter_is_named(gray_dataset, tmp_path, backend):
    """Whoever reads it, the caller is told; what does not lie there is loaded afterwards."""
    split = open_split(gray_dataset, "patient", "train", tmp_path / "cache")
    records = split.records(np.arange(len(split)))
    last = int(records["shard"].max())
    whole = np.flatnonzero(records["shard"] != last)
    os.truncate(gray_dataset.store.path(shard_key(last)), 64)
    with build(split, dataclasses.replace(CONFIG, backend=backend)) as loader:
        with pytest.raises(StoreError, match=f"{last:05d}.arrow has become shorter since it was verified"):
            list(loader.load(evaluation_requests(len(split), 2, World())))
        assert len(list(loader.load([Request(-1, -1, 0, 0, whole[:2])]))) == 1


def test_another_seed_or_epoch_makes_other_pictures(split):
    """The same draw differs between seeds, and the same image between epochs."""
    assert not torch.equal(by_position(split, 1, 6, seed=1), by_position(split, 1, 6, seed=0))


def test_resuming_gives_the_rest_of_the_epoch(split):
    """What is loaded from a step on is what an unbroken epoch gives from there."""
    plan = Plan(split.class_counts, 1.0, seed=3)
    steps = StepPlan(plan.num_draws, 4, 2)
    with build(split, augment=AugmentConfig()) as loader:
        whole = [b.images for b in loader.load(training_requests(plan, steps, World(), 0)) if b.step >= 2]
        rest = [b.images for b in loader.load(training_requests(plan, steps, World(), 0, start_step=2))]
    assert torch.equal(torch.cat(whole), torch.cat(rest))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_evaluation_shows_each_image_once_and_plain(split, size):
    """Over all workers every row appears once, without augmentation even where training has it."""
    batches: list[Batch] = []
    for rank in range(size):
        with build(split, augment=AugmentConfig()) as loader:
            batches += loader.load(evaluation_requests(split.num_images, 4, World(rank=rank, size=size)))
    rows = torch.cat([batch.rows for batch in batches])
    images = torch.cat([batch.images for batch in batches])[rows.argsort()]
    assert sorted(rows.tolist()) == list(range(split.num_images))
    with build(split) as loader:
        plain = [b.images for b in loader.load(training(split, World(), step_size=100, micro=1))]
        first = next(iter(training(split, World(), step_size=100, micro=1))).rows[0]
    assert torch.equal(plain[0][0], images[first])


def test_colour_sets_have_three_channels(build_dataset, tmp_path):
    """An RGB set gives RGB batches, a gray one gray ones."""
    images = [encode_jpeg(speckled_picture(n, 80, 60, channels=3)) for n in range(4)]
    dataset = build_dataset(images, [0, 0, 1, 1], channels=3)
    with build(open_split(dataset, "patient", "train", tmp_path / "cache")) as loader:
        assert [tuple(b.images.shape) for b in loader.load(evaluation_requests(4, 4, World()))] == [(4, 3, 48, 48)]


@pytest.mark.parametrize("prefetch", [1, 3])
def test_the_set_number_of_batches_is_made_ahead(split, monkeypatch, prefetch):
    """Batches are begun `prefetch` ahead of the one that the caller holds, and none beyond the last."""
    begun = 0

    class Counting(OpenCVExecutor):
        def submit(self, pictures: Any, augmentation: Any) -> Any:
            nonlocal begun
            begun += 1
            return super().submit(pictures, augmentation)

    monkeypatch.setitem(BACKENDS, "opencv", Counting)
    num_requests = len(list(training(split, World())))
    with build(split, dataclasses.replace(CONFIG, prefetch=prefetch)) as loader:
        for done, _ in enumerate(loader.load(training(split, World())), start=1):
            assert begun == min(done + prefetch, num_requests)


@pytest.mark.parametrize("backend", BACKENDS)
def test_closing_early_leaves_a_loader_that_works(split, backend):
    """A caller that stops in the middle of an epoch can start the next one."""
    with build(split, dataclasses.replace(CONFIG, backend=backend)) as loader:
        expected = [b.images.clone() for b in loader.load(training(split, World()))]
        for stop_after in (1, 2):
            batches = loader.load(training(split, World()))
            for _ in range(stop_after):
                next(batches)
            batches.close()
        actual = [b.images for b in loader.load(training(split, World()))]
    assert [torch.equal(a, e) for a, e in zip(actual, expected, strict=True)] == [True] * len(expected)


def test_no_thread_outlives_the_loader(split):
    """After `close` no thread that the loader started is alive, also when an epoch was left early."""
    before = set(threading.enumerate())
    with build(split) as loader:
        next(loader.load(training(split, World())))
        started = set(threading.enumerate()) - before
    assert (len(started) > 0, [thread.name for thread in started if thread.is_alive()]) == (True, [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_picture_is_named(build_dataset, tmp_path, backend):
    """The error gives the id in the manifest and the shard; the loader can go on with other rows."""
    images = [encode_jpeg(speckled_picture(n, 60, 50)) for n in range(9)]
    images[7] = stand_in(b" damaged")
    split = open_split(build_dataset(images, [0] * 9), "patient", "train", tmp_path / "cache")
    with build(split, dataclasses.replace(CONFIG, backend=backend)) as loader:
        with pytest.raises(InputError, match=r"image id 7 \(train, shards/00001\.arrow\) cannot be decoded"):
            list(loader.load(evaluation_requests(9, 2, World())))
        assert len(list(loader.load(evaluation_requests(6, 2, World())))) == 3


def test_errors_of_the_requests_reach_the_caller(split):
    """What goes wrong while requests are made is not swallowed."""

    def failing() -> Iterator[Request]:
        yield Request(0, 0, 0, 0, np.array([0]))
        raise RuntimeError("no more")

    with build(split) as loader, pytest.raises(RuntimeError, match="no more"):
        list(loader.load(failing()))


@pytest.mark.parametrize(
    ("backend", "device", "has_dali", "expected"),
    [
        ("auto", "cuda:1", True, "dali"),
        ("auto", "cuda:1", False, "opencv"),
        ("auto", "cpu", True, "opencv"),
        ("dali", "cpu", True, "dali"),
        ("opencv", "cuda:0", True, "opencv"),
    ],
)
def test_the_backend_follows_the_device_and_what_is_installed(monkeypatch, caplog, backend, device, has_dali, expected):
    """`auto` is DALI on a GPU; where it is not installed there, one line of the log says so."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: has_dali or None)
    with caplog.at_level(logging.WARNING, logger=loader_module.__name__):
        assert choose_backend(backend, torch.device(device)) == expected
    assert len(caplog.records) == int(not has_dali)


def test_asking_for_dali_without_it_names_the_extra(monkeypatch):
    """The error says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"xdist-train\[dali\]"):
        choose_backend("dali", CPU)
