"""Pictures in a GPU's memory: the same batches as on the CPU, and a run in bf16 that learns from them."""

from __future__ import annotations

import pytest
import torch

from cluster.world import World
from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.loading.cache import open_split
from dataloading.loading.loader import Loader
from dataloading.loading.plan import Plan, StepPlan, training_requests
from tests.dataloading.loading.agreement import Difference, difference
from tests.dataloading.loading.packed import real_oct_files, write_dataset
from tests.xdist_train.training.ranks import FolderReporter
from xdist_train.config import resolve_config
from xdist_train.training.assembly import Assembly
from xdist_train.training.loop import run_loop
from xdist_train.training.state import TrainState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

SUBPIXELS = Difference(mean=0.5, percentile_99=3, maximum=24)
"""As in tests/dataloading/loading/test_resident.py."""


@pytest.fixture
def dataset(tmp_path):
    """The real OCT files, half of them in train."""
    images = [path.read_bytes() for path in real_oct_files()]
    splits = [("train", "train", "val", "test")[n % 4] for n in range(len(images))]
    labels = sorted(n % 4 for n in range(len(images)))
    return write_dataset(tmp_path / "dataset", images, labels, splits=splits)


def test_a_gpu_warps_as_the_cpu_does(dataset, tmp_path):
    """Every draw of an epoch; batches lie on the GPU."""
    config = LoaderConfig(cache="device", backend="opencv")
    split = open_split(dataset, "given", "train", tmp_path / "cache", pixel_side=config.pixel_side)
    plan = Plan(split.class_counts, 1.0, seed=0)
    batches = {}
    for device in (torch.device("cuda", 0), torch.device("cpu")):
        requests = training_requests(plan, StepPlan(plan.num_draws, 8, 4), World(), 0)
        options = {"augment": AugmentConfig(flip_vertical=0.5), "seed": 0, "device": device, "threads": 2}
        with Loader(split, dataset.info, config, **options) as loader:
            found = [batch.images for batch in loader.load(requests)]
        assert {images.device.type for images in found} == {device.type}
        batches[device.type] = torch.cat([images.cpu() for images in found])
    apart = difference(batches["cuda"], batches["cpu"])
    assert apart.is_within(SUBPIXELS), apart


@pytest.mark.parametrize("cache", ["encoded", "pixels", "device"])
def test_a_run_in_bf16_learns(dataset, tmp_path, cache):
    """`auto` is bf16 on a GPU that has it; by whichever way the pictures come, the loss falls."""
    config = resolve_config(
        "oct",
        [
            f"data.uri={dataset.store.uri}",
            "data.split=given",
            f"loader.cache={cache}",
            f"loader.cache_dir={tmp_path}/cache",
            "model.backbone=resnet18",
            "model.weights=none",
            "optim.lr=1e-3",
            "train.epochs=12",
            "train.batch_size=8",
            "schedule.warmup_epochs=0",
        ],
    )
    assembly = Assembly(config, dataset, world=World(), device=torch.device("cuda", 0), micro_batch_size=8)
    state = run_loop(assembly.job, TrainState(), FolderReporter()).state
    assembly.close()
    losses = [row["train_loss"] for row in state.history if row["kind"] == "epoch"]
    assert losses[-1] < losses[0]
