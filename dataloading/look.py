"""A dataset at a glance: its audit as text, and a sheet of what the model will be shown of it.

The sheet comes through the loader itself, so it shows what training shows. Draws and prints; changes
nothing. matplotlib and torch are imported when a sheet is drawn.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError
from cluster.store import open_store
from cluster.terminal import printable
from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.dataset import SPLITS, Dataset, DatasetInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dataloading.loading.cache import Split

__all__ = ["audit_lines", "run_look"]

Pixels = npt.NDArray[np.uint8]

_FORMATS = ("png", "pdf", "svg", "jpg")
_MOST_ROWS = 24
_INK, _PALE, _PAGE = "#1b2733", "#66727f", "#e8ecf0"  # the page is gray so that white edges of pictures show


def run_look(
    dataset: Dataset,
    out: Path,
    *,
    images_per_class: int = 2,
    draws: int = 6,
    loader: LoaderConfig | None = None,
    augment: AugmentConfig | None = None,
    seed: int = 0,
) -> list[str]:
    """Draw a sheet of a dataset's training images and tell what its audit found.

    Args:
        dataset: the packed dataset.
        out: picture to write; its suffix (png, pdf, svg, jpg) says how.
        images_per_class: rows of the sheet for each class.
        draws: augmented columns beside the plain one.
        loader: view and cache folder; None is the default configuration.
        augment: ranges of the random changes; None is the default configuration.
        seed: of the random changes.

    Returns:
        The audit, line by line, and where the sheet lies.

    Raises:
        InputError: a suffix that cannot be drawn, damaged data, or no training images.
        StoreError: the picture cannot be written.
    """
    kind = out.suffix.lower().removeprefix(".")
    if kind not in _FORMATS:
        raise InputError(
            f"--out {out}: a sheet can be written as {', '.join(_FORMATS)}. Give a name with such a suffix."
        )
    samples = _load_samples(
        dataset,
        images_per_class,
        draws,
        loader=loader or LoaderConfig(),
        augment=augment or AugmentConfig(),
        seed=seed,
    )
    buffer = io.BytesIO()
    _draw_sheet(dataset, samples).savefig(buffer, format=kind, dpi=160)
    open_store(str(out.parent)).write(out.name, buffer.getvalue())
    return [
        *audit_lines(dataset.info),
        "",
        f"{out}: {samples.pixels.shape[0]} images, each plain and in {draws} draws.",
    ]


def audit_lines(info: DatasetInfo) -> list[str]:
    """What `pack` found, for the terminal: counts by split, what the set is made of, and its warnings."""
    facts = [
        f"{info.num_images:,} images of {info.num_patients:,} patients, "
        f"{'gray' if info.channels == 1 else 'RGB'}, mean {_figures(info.mean)}, std {_figures(info.std)}",
        f"shards: {len(info.shards):,}, {info.num_bytes / 2**20:,.1f} MiB; quarantined: {info.num_quarantined:,}",
        f"fingerprint {info.fingerprint[:16]}, from {printable(info.source)}",
    ]
    baseline = info.audit.get("size_baseline")
    if baseline:
        facts.append(
            f"width and height alone reach a balanced accuracy of {baseline['balanced_accuracy']:.2f} "
            f"(chance {baseline['chance']:.2f})"
        )
    warnings = [f"  ! {sentence}" for sentence in info.audit.get("warnings", [])]
    return [*_count_table(info), "", *facts, "", *(warnings or ["No warnings."])]


def _figures(values: tuple[float, ...]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def _count_table(info: DatasetInfo) -> list[str]:
    """Images of each class, in all and by the patient split."""
    parts: dict[str, dict[str, int]] = {"images": info.counts, **info.audit.get("patient_split_counts", {})}
    rows = [["", *parts]] + [
        [printable(name), *(f"{counts.get(name, 0):,}" for counts in parts.values())] for name in info.classes
    ]
    rows.append(["all", *(f"{sum(counts.values()):,}" for counts in parts.values())])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


@dataclass(frozen=True, eq=False)
class _Samples:
    """What the sheet shows: `pixels` uint8 [images, 1 + draws, S, S, C], the plain view first; `labels` [images]."""

    pixels: Pixels
    labels: list[int]


def _load_samples(
    dataset: Dataset, images_per_class: int, draws: int, *, loader: LoaderConfig, augment: AugmentConfig, seed: int
) -> _Samples:
    import torch

    from dataloading.loading.cache import cache_root, open_split
    from dataloading.loading.loader import Loader
    from dataloading.loading.plan import Request

    split = open_split(dataset, "patient", SPLITS[0], cache_root(loader.cache_dir))
    rows = _sample_rows(split, images_per_class)
    requests = [Request(-1, -1, 0, 0, rows)]
    requests += [Request(0, 0, draw, draw * len(rows), rows) for draw in range(draws)]
    device = torch.device("cpu")
    with Loader(split, dataset.info, loader, augment=augment, seed=seed, device=device, threads=2) as source:
        columns = [batch.images.permute(0, 2, 3, 1).numpy().copy() for batch in source.load(requests)]
    return _Samples(np.stack(columns, axis=1), split.labels(rows).tolist())


def _sample_rows(split: Split, images_per_class: int) -> npt.NDArray[np.int64]:
    """Images spread evenly over each class; fewer a class where there are many classes."""
    shown = max(1, min(images_per_class, _MOST_ROWS // len(split.class_counts)))
    chosen, first = [], 0
    for count in split.class_counts:
        steps = min(shown, count)
        chosen += [first + (2 * step + 1) * count // (2 * steps) for step in range(steps)]
        first += count
    return np.array(chosen[:_MOST_ROWS], dtype=np.int64)


def _draw_sheet(dataset: Dataset, samples: _Samples) -> Figure:
    """Lay the pictures out in inches: a row an image, a gap between classes and after the plain column."""
    from matplotlib.figure import Figure

    info = dataset.info
    cell, gap, wide_gap, left, top, margin = 1.25, 0.05, 0.2, 1.35, 0.95, 0.25
    num_images, num_columns = samples.pixels.shape[:2]
    breaks = [0, *np.cumsum(np.diff(samples.labels) != 0).tolist()]
    lefts = [left + column * (cell + gap) + (column > 0) * wide_gap for column in range(num_columns)]
    tops = [top + row * (cell + gap) + breaks[row] * wide_gap for row in range(num_images)]
    width, height = lefts[-1] + cell + margin, tops[-1] + cell + margin
    figure = Figure(figsize=(width, height), facecolor=_PAGE)
    for row, column in np.ndindex(num_images, num_columns):
        box = (lefts[column] / width, 1 - (tops[row] + cell) / height, cell / width, cell / height)
        _show(figure, box, samples.pixels[row, column])

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **{"color": _INK, "va": "baseline", **style})

    write(margin, 0.42, _shortened(printable(Path(dataset.store.uri).name), 60), size=13, weight="bold")
    write(width - margin, 0.42, _title(info), size=9, color=_PALE, ha="right")
    write(lefts[0], top - 0.1, "as evaluated", size=9, color=_PALE)
    if num_columns > 1:
        write(lefts[1], top - 0.1, "as trained on: draws of the augmentation", size=9, color=_PALE)
    for row, label in enumerate(samples.labels):
        if row == 0 or breaks[row] != breaks[row - 1]:
            name = printable(info.classes[label])
            write(margin, tops[row] + 0.2, _shortened(name, 14), size=11, weight="bold")
            write(margin, tops[row] + 0.4, f"{info.counts[info.classes[label]]:,} images", size=8.5, color=_PALE)
    return figure


def _show(figure: Figure, box: tuple[float, float, float, float], picture: Pixels) -> None:
    axes = figure.add_axes(box)
    axes.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()


def _title(info: DatasetInfo) -> str:
    return f"{info.num_images:,} images, {len(info.classes)} classes, {info.num_patients:,} patients"


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
