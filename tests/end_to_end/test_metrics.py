"""What Prometheus would read of a run: scraped from Ray's own agent while a real run goes on."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dataloading.dataset import Dataset
from tests.end_to_end.commands import SMALL, xdist_train
from tests.end_to_end.faults import wait_for
from tests.nodes import Nodes
from xdist_train.training.gauges import METRICS

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_IMAGES, _STEPS = 2 * 144, 2 * 3
"""Of two epochs of the bands."""
_EXPORT_MS = 1000
"""Ray's shortest interval between exports, which is 10 s by default."""
_POLL_S = 0.2
_GONE_WITHIN_S = 30


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Nodes]:
    """A head for two workers that exports often."""
    nodes = Nodes(tmp_path / "nodes", environment={"RAY_metrics_report_interval_ms": str(_EXPORT_MS)})
    try:
        nodes.add(2, head=True)
        yield nodes
    finally:
        nodes.stop()


def scrape(url: str) -> dict[str, float]:
    """Our metrics as they are exported now, all of the run `first`; none is exported twice."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples if sample.name.startswith("ray_xdist_")]
    assert {"first"} >= {sample.labels["run"] for sample in samples}
    assert len(samples) == len({sample.name for sample in samples})
    return {sample.name: sample.value for sample in samples}


def watch(url: str, done: Callable[[], bool]) -> dict[str, list[float]]:
    """All that was exported until something is done, by name, and once more then."""
    seen: dict[str, list[float]] = {}
    while True:
        last = done()
        for name, value in scrape(url).items():
            seen.setdefault(name, []).append(value)
        if last:
            return seen
        time.sleep(_POLL_S)


def test_a_run_is_seen_by_prometheus_and_leaves_no_gauge(head: Nodes, bands: Dataset, tmp_path: Path) -> None:
    """Each metric but those of GPUs, with the run's name and true values; at the end its counters alone stay."""
    url = head.metrics(head.nodes[0])
    settings = (f"data.uri={bands.store.uri}", f"storage.uri={tmp_path / 'runs'}", f"loader.cache_dir={tmp_path / 'c'}")
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(xdist_train, "train", "demo", *settings, *SMALL, "run.name=first", RAY_ADDRESS=head.address)
        seen = watch(url, run.done)
    assert run.result().returncode == 0, run.result().stderr
    expected = {metric.exported: metric for name, metric in METRICS.items() if "gpu" not in name}
    assert expected.keys() == seen.keys()
    values = {name.removeprefix("ray_xdist_"): found for name, found in seen.items()}
    assert (_IMAGES, _STEPS) == (values["images_total"][-1], values["steps_total"][-1])
    assert all(found == sorted(found) for name, found in values.items() if name.endswith("_total"))
    assert min(values["images_per_second"]) > 0
    assert 0 < min(values["step_seconds"]) < 30
    assert 0 <= min(values["data_wait_ratio"]) <= max(values["data_wait_ratio"]) <= 1
    assert 0 < max(values["loss"]) < 10
    assert 0 < min(values["epochs"]) <= max(values["epochs"]) <= 2
    assert ({2.0}, {2.0}, {0.0}) == tuple(set(values[name]) for name in ("epochs_planned", "workers", "group_restarts"))
    counters = {name for name, metric in expected.items() if metric.is_counter}
    wait_for(lambda: scrape(url).keys() == counters, _GONE_WITHIN_S)
    assert {"ray_xdist_images_total": _IMAGES, "ray_xdist_steps_total": _STEPS} == scrape(url)
