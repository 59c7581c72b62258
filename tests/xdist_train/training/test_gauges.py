"""What metrics are made of; that Ray exports them is shown in tests/end_to_end/test_metrics.py."""

from __future__ import annotations

import pytest
import torch

from cluster.world import World
from xdist_train.training import gauges
from xdist_train.training.gauges import (
    METRICS,
    RunGauges,
    group_values,
    memory_values,
    progress_values,
    run_label,
)
from xdist_train.training.messages import Progress

_PROGRESS = Progress(
    epoch=1,
    epochs=4,
    step=30,
    steps_per_epoch=60,
    loss=0.5,
    images_per_s=1234.5,
    step_s=0.039,
    data_wait_share=0.034,
    new_steps=25,
    new_images=1200,
)
_CUDA = {
    "allocated_bytes.all.current": 100,
    "allocated_bytes.all.peak": 300,
    "reserved_bytes.all.current": 400,
    "reserved_bytes.all.peak": 500,
}
"""Keys as of `torch.cuda.memory_stats`."""


class _Metric:
    """Stands for Ray's gauge and counter: keeps what it was told, by name and tags."""

    told: dict[tuple[str, str, str], list[float]]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        self._name, self._keys = name, tag_keys

    def set_default_tags(self, tags: dict[str, str]) -> _Metric:
        assert set(self._keys) == set(tags)
        self._tags = tags
        return self

    def set(self, value: float) -> None:
        self.told.setdefault((self._name, self._tags["run"], self._tags.get("rank", "")), []).append(value)

    inc = set


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str, str], list[float]]:
    """What Ray's metrics are told."""
    _Metric.told = {}
    monkeypatch.setattr(gauges, "Gauge", _Metric)
    monkeypatch.setattr(gauges, "Counter", _Metric)
    return _Metric.told


def test_every_metric_is_set_somewhere() -> None:
    """Progress, group and GPU memory give each metric of the table a value, and nothing else."""
    given = [*progress_values(_PROGRESS), *group_values(1, 2), *memory_values(_CUDA)]
    assert sorted(METRICS) == sorted(given)


def test_a_position_is_in_epochs() -> None:
    """Step 30 of 60 of the second epoch of four: 1.5 of 4 epochs."""
    values = progress_values(_PROGRESS)
    assert (1.5, 4) == (values["xdist_epochs"], values["xdist_epochs_planned"])


@pytest.mark.parametrize(("group", "restarts"), [(0, None), (1, 0), (3, 2)])
def test_restarts_are_the_groups_before(group: int, restarts: int | None) -> None:
    """The third group was restarted twice; a group without a number yet says nothing."""
    assert restarts == group_values(group, 2).get("xdist_group_restarts")


def test_gpu_memory_is_of_tensors_of_the_allocator_and_at_most() -> None:
    """Allocated, reserved and peak by torch's own account; nothing before CUDA is in use."""
    kinds = {"allocated": 100, "reserved": 400, "peak": 300}
    assert {f"xdist_gpu_memory_{kind}_bytes": value for kind, value in kinds.items()} == memory_values(_CUDA)
    assert {} == memory_values({})


@pytest.mark.parametrize(
    ("run_uri", "label"),
    [
        ("s3://b/runs/first", "first"),
        ("s3://b/runs/search/trials/0007", "search/trials/0007"),
        ("/elsewhere/first", "first"),
    ],
)
def test_a_run_is_called_by_its_place_in_the_storage(run_uri: str, label: str) -> None:
    """Its name; for a trial the search too, since other searches have a trial of that name."""
    assert {label} == {run_label(run_uri, storage) for storage in ("s3://b/runs", "s3://b/runs/")}


def test_a_rank_on_cuda_tells_its_own_memory(
    told: dict[tuple[str, str, str], list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 asks its own device, on torch's account of it replaced here, and says nothing of the group."""
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: asked.append(device) or _CUDA)
    RunGauges("first", World(1, 2, 1, 0), torch.device("cuda", 1)).beat(1)
    kinds = {"allocated": 100, "reserved": 400, "peak": 300}
    assert {(f"xdist_gpu_memory_{kind}_bytes", "first", "1"): [value] for kind, value in kinds.items()} == told
    assert [torch.device("cuda", 1)] == asked


def test_nothing_is_added_to_a_counter_that_stands_still(told: dict[tuple[str, str, str], list[float]]) -> None:
    """A Progress without new steps, as Ray refuses to add 0, adds nothing."""
    RunGauges("first", World(), torch.device("cpu")).progress(
        Progress(**{**vars(_PROGRESS), "new_steps": 0, "new_images": 0})
    )
    assert [] == [name for name, *_ in told if METRICS[name].is_counter]
