"""The recorded table: every configuration of one space trained once, learning curves kept. Knows no study.

Owns what was trained on what (the demo recipe with a few overrides, on unequal classes of phantom images), the file
`search_table.parquet`, and the refusal of a file that was recorded under anything else. A real search over the same
rows takes `build_images`, `OVERRIDES` and `SPACE_PATH`.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.config import digest, parse_overrides, to_dict
from cluster.store import LocalStore
from dataloading.config import PackConfig
from dataloading.dataset import Dataset, open_dataset
from dataloading.packing.pack import run_pack
from dataloading.packing.phantom import PhantomConfig, run_phantom
from tune_spaces.space import Space
from tune_spaces.space_file import read_space
from xdist_train.config import fill_identity, identity, read_recipe, resolve_config

__all__ = [
    "OVERRIDES",
    "RECIPE",
    "SPACE_PATH",
    "TABLE_PATH",
    "SearchTable",
    "StaleTableError",
    "Trained",
    "build_images",
    "read_table",
    "table_settings",
    "table_space",
    "write_table",
]

SPACE_PATH = Path(__file__).parent / "search_space.yaml"
TABLE_PATH = Path(__file__).parent / "search_table.parquet"
RECIPE = "demo"
OVERRIDES = (
    "loader.image_size=32",
    "schedule.warmup_epochs=0.5",
    "train.epochs=9",
    "train.batch_size=16",
    "scale.num_workers=1",
    "evaluate.test=false",
    "evaluate.bootstrap=100",
)
"""Laid over the recipe; 9 epochs are the third rung of ASHA with grace 1 and factor 3."""

# Small pictures with large lesions, and shares of the classes that make alpha matter.
_PHANTOM = PhantomConfig(num_images=1600, difficulty=0.25, size_scale=0.25, val_fraction=0, test_fraction=0)
_KEPT = {"CNV": 0.8, "DME": 0.25, "DRUSEN": 0.4, "NORMAL": 0.8}
_PACK = PackConfig(fractions=(0.5, 0.4, 0.1), workers=1)
_COLUMNS = pa.schema(
    [
        ("values", pa.string()),  # as JSON, keys in order
        ("curve", pa.list_(pa.float64())),
        ("cpu_seconds", pa.float64()),
        ("reason", pa.string()),
    ]
)


class StaleTableError(Exception):
    """The table was recorded under other settings; the text says which, and how to record it anew."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A configuration that was trained to its end."""

    values: Mapping[str, Any]
    """By dotted key, what it lays over the recipe."""
    curve: tuple[float, ...]
    """The metric on val by epoch; shorter than the run where that failed."""
    cpu_seconds: float = math.nan
    """Of the whole process, its start and evaluation between epochs with it."""
    reason: str = ""
    """Why it failed; empty if it did not."""

    @property
    def figure(self) -> float | None:
        """That of the epoch which is selected, the best; None if the run failed."""
        return max(self.curve) if not self.reason else None


class SearchTable:
    """Rows by their values.

    Args:
        rows: all configurations of the space, each once.
        epochs: of a run that does not fail.
        notes: versions, hardware, and the fingerprint of the images.
    """

    def __init__(self, rows: Sequence[Trained], epochs: int, notes: Mapping[str, str] | None = None) -> None:
        self.rows, self.epochs, self.notes = tuple(rows), epochs, dict(notes or {})
        self._by_values = {_name(row.values): row for row in rows}
        assert len(self._by_values) == len(self.rows), "a configuration is in the table twice"

    def row(self, values: Mapping[str, Any]) -> Trained:
        """The row of a configuration.

        Raises:
            KeyError: it was not trained.
        """
        return self._by_values[_name(values)]

    def with_rows(self, rows: Sequence[Trained]) -> SearchTable:
        """The table with these rows in the places of those with their values."""
        known = {**self._by_values, **{_name(row.values): row for row in rows}}
        return SearchTable(list(known.values()), self.epochs, self.notes)

    @functools.cached_property
    def best(self) -> Trained:
        """The row with the best figure."""
        return max((row for row in self.rows if row.figure is not None), key=lambda row: row.figure or -math.inf)

    def regret(self, values: Mapping[str, Any]) -> float:
        """How much better the best row's figure is; of a row that failed, all of it."""
        return (self.best.figure or 0.0) - (self.row(values).figure or 0.0)


def table_space() -> Space:
    """The space whose every configuration is a row."""
    return read_space(str(SPACE_PATH), [read_recipe(RECIPE), *parse_overrides(OVERRIDES)])


def build_images(folder: Path) -> Dataset:
    """The images that all rows were trained on, drawn and packed into a folder; equal bytes on each call."""
    drawn, listed, packed = folder / "images", folder / "images.csv", folder / "packed"
    run_phantom(drawn, _PHANTOM, workers=1)
    lines = ["path,label"]
    for name, share in _KEPT.items():
        paths = sorted(drawn.glob(f"*/{name}/*.jpeg"))
        lines += [f"{path.relative_to(drawn)},{name}" for path in paths[: round(len(paths) * share)]]
    listed.write_text("\n".join(lines) + "\n")
    run_pack(drawn, LocalStore(packed), _PACK, csv=listed)
    return open_dataset(str(packed))


def table_settings() -> dict[str, Any]:
    """All that a row depends on, as plain values; a table recorded under others is stale."""
    config = resolve_config(RECIPE, OVERRIDES)
    return {
        "space": table_space().to_dict(),
        "config": identity(config, "", config.train.batch_size),
        "phantom": asdict(_PHANTOM),
        "kept": _KEPT,
        "pack": asdict(_PACK),
    }


def write_table(table: SearchTable, path: Path, settings: Mapping[str, Any]) -> None:
    """Put a table's file in its place, whole."""
    columns = [
        [_name(row.values) for row in table.rows],
        [list(row.curve) for row in table.rows],
        [row.cpu_seconds for row in table.rows],
        [row.reason for row in table.rows],
    ]
    notes = {**table.notes, "settings": json.dumps(settings), "epochs": str(table.epochs)}
    schema = _COLUMNS.with_metadata(notes)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    new = path.with_name(f".{path.name}.new")
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), new)
    os.replace(new, path)


def read_table(path: Path = TABLE_PATH, settings: Mapping[str, Any] | None = None) -> SearchTable:
    """The recorded table.

    Args:
        settings: those that it must have been recorded under; by default the present ones.

    Raises:
        StaleTableError: it was recorded under others.
    """
    read = pq.read_table(path, schema=None)
    notes = {key.decode(): text.decode() for key, text in read.schema.metadata.items()}
    kept = json.loads(notes.pop("settings"))
    if settings is None:  # recorded before a setting was there: at its default
        kept["config"] = json.loads(json.dumps(fill_identity(kept["config"])))
        kept["pack"] = {**to_dict(PackConfig()), **kept["pack"]}
    now = json.loads(json.dumps(table_settings() if settings is None else settings))
    differ = sorted(key for key in kept.keys() | now.keys() if digest(kept.get(key)) != digest(now.get(key)))
    if differ:
        raise StaleTableError(
            f"{path.name} was recorded under another {', '.join(differ)}. "
            "Record it anew: python -m tests.bench.record_search_table"
        )
    rows = [
        Trained(**{**row, "values": json.loads(row["values"]), "curve": tuple(row["curve"])})
        for row in read.to_pylist()
    ]
    return SearchTable(rows, int(notes.pop("epochs")), notes)


def _name(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True)
