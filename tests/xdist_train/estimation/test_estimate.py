"""An estimate from a recipe."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cluster.errors import InputError
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, write_dataset
from xdist_train.cli import build_app
from xdist_train.estimation import measuring
from xdist_train.estimation.estimate import run_estimate

_MANY = ["hardware.images=84484", "scale.num_workers=64", "train.batch_size=256"]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of a moment: three calls."""
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)


def test_gpus_that_are_not_here() -> None:
    """Nothing is started; what was not measured is told."""
    found = run_estimate("demo", [*_MANY, "hardware.device=a100"])
    assert (found.work.workers, found.work.nodes) == (64, 8)
    assert found.epoch.steps == -(-found.work.train_images // 256)
    assert found.fetched_bytes == 8 * 84484 * 60_000
    assert found.memory.fits
    assert len(found.assumed) == 3
    assert not found.measured  # DALI's rate on an A100 is a published one
    json.dumps(found.to_json())


def test_what_was_seen_is_taken() -> None:
    """Of GPUs whose decoding nobody has published, this machine's CPU is."""
    found = run_estimate(
        "demo", ["hardware.images=1000", "hardware.device=t4", "hardware.images_per_s=400", "hardware.link_gbit=10"]
    )
    assert found.rates.train == 400
    assert "decoding thread" in found.measured[0]
    assert ["10 Gbit/s" in line for line in found.assumed] == [True]


def test_more_than_fits_is_told() -> None:
    """Micro batches of 65,536 on 16 GB."""
    found = run_estimate(
        "demo", ["hardware.images=9000", "hardware.device=t4", "train.batch_size=65536", "scale.num_workers=1"]
    )
    assert found.memory.fits is False


def test_this_machine_is_measured(tmp_path) -> None:
    """On the data set's own pictures, which stay where they are."""
    pictures = [encode_jpeg(speckled_picture(seed, 160, 120)) for seed in range(40)]
    labels, splits = sorted(n % 4 for n in range(40)), ["train", "train", "val", "test"] * 10
    dataset = write_dataset(tmp_path / "packed", pictures, labels, splits=splits, rows_per_shard=40)
    place = [f"data.uri={dataset.store.uri}", "data.split=given"]
    found = run_estimate("demo", [*place, "scale.num_workers=1", "train.batch_size=8"])
    assert found.rates.train > 0
    assert found.fetched_bytes == 0
    assert ["trains" in found.measured[0], "pictures of the data set" in found.measured[1]] == [True, True]


def test_without_a_data_set_their_number_is_asked_for() -> None:
    """One paragraph that says what to give."""
    with pytest.raises(InputError, match=r"hardware\.images=84000"):
        run_estimate("oct", [])


def test_the_command_prints_a_table() -> None:
    """The bottleneck is named."""
    done = CliRunner().invoke(build_app(), ["estimate", "demo", *_MANY, "hardware.device=h100"])
    assert done.exit_code == 0, done.output
    assert "held up by" in done.output
    assert "assumed: a worker trains" in done.output.replace("\n", " ")
