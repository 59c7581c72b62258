"""Parts: the rows of a stretch of a split as parquet, with the facts they were made under.

A part is written whole and carries its facts in the file, so that a part of another model or another question is
never taken for one of this job. Knows the columns, not what is in them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.store import Store
from xdist_train.evidence.cams.faithfulness import REMOVALS

__all__ = ["FIGURES", "encode_part", "maps_in", "part_facts", "read_part"]

Floats = npt.NDArray[np.floating]

FIGURES = [
    "border_share",
    "outside_share",
    "outside_area",
    "energy_inside",
    "probability",
    *(f"drop_{removal}" for removal in REMOVALS),
]
"""Columns of plain figures, float64, null where not defined."""
_MAPS = ("map", "map_of_label")
_FACTS = b"xdist.cam"


def encode_part(columns: Mapping[str, Any], maps: Mapping[str, Floats], facts: Mapping[str, Any]) -> bytes:
    """A part as parquet.

    Args:
        columns: id, label, predicted, method, layer [n] each; FIGURES, float [n], NaN where not defined; pointing_hit
            [n] and iou [n, thresholds], NaN where there is no mask.
        maps: `map` and `map_of_label`, signed [n, h, w]; the second NaN where it is the first. Each is kept in
            shares of its largest size, which is in `<name>_scale`: float16 has no room for very small figures.
        facts: what the rows depend on.
    """
    height, width = maps["map"].shape[1:]
    arrays: dict[str, pa.Array] = {
        "id": pa.array(columns["id"], pa.int64()),
        **{name: pa.array(columns[name], pa.string()) for name in ("label", "predicted", "method", "layer")},
        **{name: pa.array(np.asarray(columns[name], np.float64), from_pandas=True) for name in FIGURES},
        "pointing_hit": _flags(columns["pointing_hit"]),
        "iou": _lists(np.asarray(columns["iou"], np.float32)),
        "height": pa.array(np.full(len(maps["map"]), height), pa.int32()),
        "width": pa.array(np.full(len(maps["map"]), width), pa.int32()),
    }
    for name in _MAPS:
        flat = maps[name].reshape(len(maps[name]), -1)
        scale = np.abs(flat).max(axis=1)
        arrays[name] = _lists((flat / np.where(scale > 0, scale, 1)[:, None]).astype(np.float16))
        arrays[f"{name}_scale"] = pa.array(scale.astype(np.float64), from_pandas=True)
    table = pa.table(arrays).replace_schema_metadata({_FACTS: json.dumps(dict(facts)).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def part_facts(store: Store, key: str) -> Any:
    """The facts of a part, read from the end of its file; None for one of another kind."""
    with store.open_reader(key) as stream:
        try:
            metadata = pq.read_schema(stream).metadata or {}
        except pa.ArrowInvalid:
            return None
    return json.loads(metadata[_FACTS]) if _FACTS in metadata else None


def read_part(store: Store, key: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of a part."""
    return pq.read_table(io.BytesIO(store.read(key)), columns=columns)


def maps_in(table: pa.Table, name: str = "map") -> npt.NDArray[np.float32]:
    """Signed maps [n, h, w] of a part; NaN where there is none."""
    height, width = table["height"][0].as_py(), table["width"][0].as_py()
    column = table[name].combine_chunks()
    maps = np.full((len(column), height * width), np.nan, np.float32)
    maps[column.is_valid().to_numpy(zero_copy_only=False)] = (
        column.flatten().to_numpy(zero_copy_only=False).reshape(-1, height * width)  # without the nulls
    )
    scale = table[f"{name}_scale"].to_numpy(zero_copy_only=False).astype(np.float32)
    return np.asarray(maps.reshape(-1, height, width) * scale[:, None, None], np.float32)


def _flags(values: Any) -> pa.Array:
    numbers = np.asarray(values, np.float64)
    return pa.array(np.nan_to_num(numbers) > 0.5, pa.bool_(), mask=np.isnan(numbers))


def _lists(values: Floats) -> pa.Array:
    """A list a row; null where its first figure is NaN."""
    flat = pa.array(np.nan_to_num(values).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(np.isnan(values[:, 0])))
