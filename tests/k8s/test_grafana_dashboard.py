"""The Grafana dashboard shows what the program exports, all of it, and can be imported."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from xdist_train.training.gauges import METRICS

_FILE = Path(__file__).resolve().parents[2] / "k8s" / "monitoring" / "grafana-dashboard.json"
_DASHBOARD: dict[str, Any] = json.loads(_FILE.read_text())
_PANELS = _DASHBOARD["panels"]
_SHOWN = [panel for panel in _PANELS if panel["type"] != "row"]
_WIDTH = 24
"""Columns of Grafana's grid."""


def _expressions() -> list[str]:
    return [target["expr"] for panel in _SHOWN for target in panel["targets"]]


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in ("xw", "yh"))


def test_it_can_be_imported() -> None:
    """No id of another Grafana, but a uid, a title and the schema that it is written in."""
    assert _DASHBOARD["id"] is None
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", _DASHBOARD["uid"])
    assert (_DASHBOARD["title"], _DASHBOARD["schemaVersion"]) == ("xdist-train", 39)


def test_it_shows_every_metric_and_no_other() -> None:
    """Names in its expressions are those that gauges.py defines."""
    names = {name for expression in _expressions() for name in re.findall(r"\bray_xdist_\w+", expression)}
    assert {metric.exported for metric in METRICS.values()} == names


def test_counters_are_read_as_counters() -> None:
    """A counter is seen by its rate or increase or as it stands, a gauge never by a rate."""
    rates = [name for text in _expressions() for name in re.findall(r"(?:rate|increase)\((ray_xdist_\w+)", text)]
    counters = {metric.exported for metric in METRICS.values() if metric.is_counter}
    assert counters == set(rates)


def test_each_of_its_metrics_is_of_the_chosen_runs() -> None:
    """Every metric of ours is filtered by the variable `run`, and all data comes from the chosen source."""
    variables = {variable["name"]: variable for variable in _DASHBOARD["templating"]["list"]}
    assert ("datasource", "query") == (variables["datasource"]["type"], variables["run"]["type"])
    wrong = [text for text in _expressions() if re.search(r'\bray_xdist_\w+(?!\w|\{run=~"\$run"\})', text)]
    assert wrong == []
    sources = [part["datasource"]["uid"] for panel in _SHOWN for part in (panel, *panel["targets"])] + [
        variables["run"]["datasource"]["uid"]
    ]
    assert {"${datasource}"} == set(sources)


@pytest.mark.parametrize("panel", _SHOWN, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    """A title, a description that is a sentence, a unit, and a legend for each of its lines."""
    assert panel["title"].strip()
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])
    assert len(panel["targets"]) == len({target["refId"] for target in panel["targets"]})


def test_panels_have_their_own_number_and_place() -> None:
    """No two share an id or a cell of the grid, and none leaves it."""
    places = [panel["gridPos"] for panel in _PANELS]
    assert len(_PANELS) == len({panel["id"] for panel in _PANELS})
    assert [] == [pair for pair in combinations(places, 2) if _overlap(*pair)]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= _WIDTH for place in places)
