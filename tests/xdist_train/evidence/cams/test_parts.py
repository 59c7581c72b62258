"""Parts: what is written comes back, with the facts it was made under."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.store import Store, open_store
from xdist_train.evidence.cams.localisation import THRESHOLDS
from xdist_train.evidence.cams.parts import FIGURES, encode_part, maps_in, part_facts, read_part

_FACTS = {"method": "classic", "model_sha256": "ab", "part_size": 2}


def _columns() -> dict[str, Any]:
    return {
        "id": np.array([7, 9]),
        "label": ["CNV", "DME"],
        "predicted": ["CNV", "CNV"],
        "method": ["classic"] * 2,
        "layer": ["stages"] * 2,
        **{name: np.array([0.5, np.nan]) for name in FIGURES},
        "pointing_hit": np.array([np.nan, 1.0]),
        "iou": np.array([[np.nan] * len(THRESHOLDS), [0.25] * len(THRESHOLDS)]),
    }


def _write(folder: Path, maps: dict[str, np.ndarray]) -> Store:
    store = open_store(str(folder))
    store.write("part", encode_part(_columns(), maps, _FACTS))
    return store


def _maps() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    of_label = generator.normal(size=(2, 3, 4))
    of_label[0] = np.nan
    return {"map": generator.normal(size=(2, 3, 4)) * np.array([1e-7, 1e6])[:, None, None], "map_of_label": of_label}


def test_a_part_has_the_columns_that_readers_know(tmp_path: Path) -> None:
    """Types by name; what is not defined is null."""
    table = read_part(_write(tmp_path, _maps()), "part")
    types = {name: table.schema.field(name).type for name in table.column_names}
    assert pa.list_(pa.float16(), 12) == types["map"] == types["map_of_label"]
    assert (pa.int64(), pa.string(), pa.float64(), pa.bool_(), pa.int32()) == tuple(
        types[name] for name in ("id", "label", "probability", "pointing_hit", "height")
    )
    assert [None, True] == table["pointing_hit"].to_pylist()
    assert [0.5, None] == table["energy_inside"].to_pylist()
    assert table["map_of_label"].to_pylist()[0] is None
    assert table["iou"].to_pylist()[0] is None


def test_maps_of_any_size_keep_their_figures(tmp_path: Path) -> None:
    """float16 alone would lose 1e-7 and overflow at 1e6: kept in shares of the largest, within 0.05 % of it."""
    maps = _maps()
    table = read_part(_write(tmp_path, maps), "part")
    for expected, found in zip(maps["map"], maps_in(table), strict=True):
        assert np.abs(expected - found).max() / np.abs(expected).max() < 5e-4
    of_label = maps_in(table, "map_of_label")
    assert np.isnan(of_label[0]).all()
    assert np.abs(maps["map_of_label"][1] - of_label[1]).max() < 2e-3


def test_a_map_of_zeros_stays_one(tmp_path: Path) -> None:
    """Nothing is divided by nothing."""
    zeros = {"map": np.zeros((2, 3, 4)), "map_of_label": np.full((2, 3, 4), np.nan)}
    assert 0 == np.abs(maps_in(read_part(_write(tmp_path, zeros), "part"))).max()


def test_facts_are_read_without_the_rows(tmp_path: Path) -> None:
    """From the file's end; another file has none."""
    store = _write(tmp_path, _maps())
    assert _FACTS == part_facts(store, "part")
    store.write("other", b"no parquet, and long enough to look for a footer")
    assert part_facts(store, "other") is None
