"""The DALI graph on a GPU: the same numbers give the same pictures as on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.world import World
from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.loading.batch import normalise
from dataloading.loading.cache import open_split
from dataloading.loading.executor import UndecodableError
from dataloading.loading.loader import BACKENDS, Loader
from dataloading.loading.plan import Plan, StepPlan, training_requests
from tests.dataloading.loading.agreement import (
    AT_REDUCED_SCALE,
    Difference,
    augmentation_of,
    build_spec,
    difference,
    run,
)
from tests.dataloading.loading.packed import encode_jpeg, real_oct_files, speckled_picture, write_dataset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

AT_FULL_SCALE = Difference(mean=0.3, percentile_99=2, maximum=12)
"""nvJPEG and libjpeg-turbo round their inverse transforms differently; a gray level or two is theirs."""


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """The encoded bytes of the real OCT files."""
    return [path.read_bytes() for path in real_oct_files()]


@pytest.fixture
def device() -> torch.device:
    """The current GPU."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed (extra `dali`)")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.parametrize(("reduce_tolerance", "limit"), [(9.0, AT_FULL_SCALE), (0.8, AT_REDUCED_SCALE)])
def test_gpu_and_cpu_executors_agree_on_real_oct_images(images, device, reduce_tolerance, limit):
    """Gray files decoded on the GPU differ from OpenCV's by no more than is stated."""
    augmentation = augmentation_of(images, reduce_tolerance=reduce_tolerance)
    gpu = run(BACKENDS["dali"](build_spec(device, 1)), images, augmentation)
    cpu = run(BACKENDS["opencv"](build_spec(torch.device("cpu"), 1)), images, augmentation)
    assert difference(gpu, cpu).is_within(limit), difference(gpu, cpu)


def test_gpu_and_cpu_executors_agree_on_colour(device):
    """RGB sets too; chroma is upsampled by other filters, so the limit is wider."""
    images = [encode_jpeg(speckled_picture(n, 301 + 13 * n, 277 + 5 * n, channels=3)) for n in range(12)]
    augmentation = augmentation_of(images, reduce_tolerance=9.0, image_size=128)
    gpu = run(BACKENDS["dali"](build_spec(device, 3, 128)), images, augmentation)
    cpu = run(BACKENDS["opencv"](build_spec(torch.device("cpu"), 3, 128)), images, augmentation)
    assert difference(gpu, cpu).is_within(Difference(1.5, 8, 60)), difference(gpu, cpu)


def test_batches_lie_on_the_device_and_stay_whole(images, device):
    """A batch held while later ones are made, on a stream of the caller's own, keeps its pixels."""
    executor = BACKENDS["dali"](build_spec(device, 1))
    numbers = augmentation_of(images, reduce_tolerance=0.9)
    encoded = [np.frombuffer(image, np.uint8) for image in images]
    with torch.cuda.stream(torch.cuda.Stream(device)):
        first = executor.submit(encoded, numbers).result()
        sums = [int(first.sum(dtype=torch.int64))]
        for _ in range(10):
            later = executor.submit(encoded[::-1], numbers).result()
            sums.append(int(first.sum(dtype=torch.int64)))
    assert (first.device, later.device) == (device, device)
    assert len(set(sums)) == 1


def test_a_damaged_picture_is_named(images, device):
    """As on the CPU, the place in the batch is told and the executor can be used again."""
    executor = BACKENDS["dali"](build_spec(device, 1))
    numbers = augmentation_of(images, reduce_tolerance=0.9)
    with pytest.raises(UndecodableError) as caught:
        run(executor, [*images[:5], b"\xff\xd8 no picture", *images[6:]], numbers)
    assert caught.value.position == 5
    assert run(executor, images, numbers).shape == (len(images), 1, 224, 224)


def test_the_loader_trains_from_the_gpu(images, device, tmp_path: Path):
    """`auto` picks DALI on a GPU; every batch of an epoch arrives there, ready to be normalised."""
    dataset = write_dataset(tmp_path / "dataset", images, sorted(n % 4 for n in range(len(images))))
    split = open_split(dataset, "patient", "train", tmp_path / "cache")
    plan = Plan(split.class_counts, 1.0, seed=0)
    requests = training_requests(plan, StepPlan(plan.num_draws, 16, 8), World(), 0)
    config = LoaderConfig()
    with Loader(split, dataset.info, config, augment=AugmentConfig(), seed=0, device=device, threads=4) as loader:
        batches = list(loader.load(requests))
    assert loader.backend == "dali"
    assert sum(len(batch) for batch in batches) == plan.num_draws
    tensors = [normalise(batch.images, dataset.info.mean, dataset.info.std) for batch in batches]
    assert {(t.device, *t.shape[1:]) for t in tensors} == {(device, 3, 224, 224)}
