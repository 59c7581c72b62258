"""A dataset at a glance: its audit as text, and a sheet of what the model will be shown of it.

The sheet comes through the loader itself, so it shows what training shows. Draws and prints; changes
nothing. matplotlib and torch are imported when a sheet is drawn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cluster.errors import InputError
from cluster.store import open_store
from cluster.terminal import printable
from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.dataset import Dataset, DatasetInfo
from dataloading.page import LABEL_WIDTH, MARGIN, PALE, Page, shortened
from dataloading.samples import Samples, load_samples

__all__ = ["audit_lines", "run_look"]

_FORMATS = ("png", "pdf", "svg", "jpg")
_MOST_ROWS = 24


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
    samples = load_samples(
        dataset,
        per_class=images_per_class,
        most=_MOST_ROWS,
        draws=draws,
        loader=loader or LoaderConfig(),
        augment=augment or AugmentConfig(),
        seed=seed,
    )
    open_store(str(out.parent)).write(out.name, _draw_sheet(dataset, samples).encode(kind))
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


def _draw_sheet(dataset: Dataset, samples: Samples) -> Page:
    """Lay the pictures out in inches: a row an image, a gap between classes and after the plain column."""
    info = dataset.info
    cell, gap, wide_gap, top = 1.25, 0.05, 0.2, 0.95
    num_images, num_columns = samples.pixels.shape[:2]
    breaks = [0, *np.cumsum(np.diff(samples.labels) != 0).tolist()]
    lefts = [LABEL_WIDTH + column * (cell + gap) + (column > 0) * wide_gap for column in range(num_columns)]
    tops = [top + row * (cell + gap) + breaks[row] * wide_gap for row in range(num_images)]
    page = Page(lefts[-1] + cell + MARGIN, tops[-1] + cell + MARGIN)
    page.header(shortened(Path(dataset.store.uri).name, 60), _title(info))
    for row, column in np.ndindex(num_images, num_columns):
        page.picture(lefts[column], tops[row], cell, cell, samples.pixels[row, column])
    page.write(lefts[0], top - 0.1, "as evaluated", size=9, color=PALE)
    if num_columns > 1:
        page.write(lefts[1], top - 0.1, "as trained on: draws of the augmentation", size=9, color=PALE)
    for row, label in enumerate(samples.labels):
        if row == 0 or breaks[row] != breaks[row - 1]:
            name = info.classes[label]
            page.label(tops[row], name, f"{info.counts[name]:,} images")
    return page


def _title(info: DatasetInfo) -> str:
    return f"{info.num_images:,} images, {len(info.classes)} classes, {info.num_patients:,} patients"
