"""What there is to see of a packed set before training: classes by split, picture sizes, samples, pixel values.

    class_counts.png    images of each class in train, val and test, by patient and as given
    image_sizes.png     widths and heights by class, of all images
    samples.png         pictures of each class, whole and in their own proportions
    pixel_values.png    before and after normalising: by the set's figures, and each picture by its own

Owns these pages. Counts and sizes come from the manifest; pictures are a bounded number of train's, so that test
stays unseen. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.store import open_store
from dataloading.config import LoaderConfig
from dataloading.dataset import SPLITS, Dataset, DatasetInfo
from dataloading.page import COLOURS, INK, LABEL_WIDTH, MARGIN, PALE, Page, shortened
from dataloading.samples import Pixels, Samples, load_samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FIGURES", "draw_figures"]

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Line:
    """What a histogram is of, its colour and dashes, and the sign for it in a key."""

    name: str
    colour: str
    dash: str = "-"
    sign: str = "━"


_MOST_CLASSES = 24
_PER_CLASS, _MOST_PICTURES = 50, 400
_COLUMNS = 6
_TOP, _WIDTH = 1.35, 9.95
_ROW, _GAP, _FOOT = 0.62, 0.2, 0.6
_BINS = 32
_WIDEST = 6.0  # standard deviations that are drawn
_SPLIT_COLOURS = dict(zip(SPLITS, ("blue", "orange", "green"), strict=True))
_SCHEMES = {"patient_split": "data.split=patient", "given_split": "data.split=given, the set's own"}
_GRAY = (_Line("gray", COLOURS["blue"]),)
_RGB = (
    _Line("red", COLOURS["red"]),
    _Line("green", COLOURS["green"], "--", "╍"),
    _Line("blue", COLOURS["blue"], ":", "┄"),
)


@dataclass(frozen=True)
class _Set:
    """What the pages are drawn from."""

    name: str
    info: DatasetInfo
    manifest: pa.Table
    samples: Samples

    @property
    def classes(self) -> list[tuple[int, str]]:
        """(label, name) of the classes that a page has room for."""
        return list(enumerate(self.info.classes))[:_MOST_CLASSES]

    def rows_of(self, label: int) -> npt.NDArray[np.int64]:
        """The manifest's rows of a class."""
        return np.flatnonzero(self.manifest.column("label").to_numpy() == label)


def draw_figures(dataset: Dataset, folder: Path, *, loader: LoaderConfig | None = None) -> Iterator[str]:
    """Draw each page into a folder; yields where it lies and what it shows.

    Raises:
        InputError: damaged data, or no training images.
        StoreError: the folder cannot be written.
    """
    columns = ["label", "patient", "given_split", "patient_split", "width", "height"]
    samples = load_samples(dataset, per_class=_PER_CLASS, most=_MOST_PICTURES, loader=loader or LoaderConfig())
    content = _Set(Path(dataset.store.uri).name, dataset.info, dataset.read_manifest(columns), samples)
    store = open_store(str(folder))
    for name, draw in FIGURES.items():
        page, what = draw(content)
        store.write(name, page.encode("png"))
        yield f"{folder / name}: {what}"


def _draw_counts(content: _Set) -> tuple[Page, str]:
    """Bars by class and split, one panel a scheme."""
    schemes = [name for name in _SCHEMES if content.manifest.column(name).null_count < len(content.manifest)]
    row = len(SPLITS) * 0.2 + _GAP
    height = len(content.classes) * row
    page = _open_page(content, "Images of each class in train, val and test", height)
    width = _panel_width(len(schemes))
    _name_classes(page, content, row)
    for place, scheme in enumerate(schemes):
        counts = _split_counts(content, scheme)
        left = LABEL_WIDTH + place * (width + 0.3)
        page.write(left, _TOP - 0.15, _SCHEMES[scheme], size=9.5, weight="bold")
        axes = page.axes(left, _TOP, width, height)
        _draw_bars(axes, counts, row)
        axes.set_xlabel("images", fontsize=9, color=INK)
    _write_key(page, [_Line(split, COLOURS[colour], sign="■") for split, colour in _SPLIT_COLOURS.items()])
    return page, f"{content.info.num_images:,} images by class and split"


def _split_counts(content: _Set, scheme: str) -> list[list[int]]:
    """Images by class, then by split."""
    splits = np.array(content.manifest.column(scheme).to_pylist(), object)
    return [[int((splits[content.rows_of(label)] == split).sum()) for split in SPLITS] for label, _ in content.classes]


def _draw_bars(axes: Axes, counts: Sequence[Sequence[int]], row: float) -> None:
    """Bars of 0.2 inches, each with its number at its end."""
    most = max(map(max, counts))
    for number, of_class in enumerate(counts):
        for place, (count, colour) in enumerate(zip(of_class, _SPLIT_COLOURS.values(), strict=True)):
            y = number * row + 0.2 * place + 0.1
            axes.barh(y, count, height=0.17, color=COLOURS[colour])
            axes.text(count + 0.01 * most, y, f"{count:,}", va="center", fontsize=8, color=INK)
    axes.set_xlim(0, 1.2 * most)
    axes.set_ylim(len(counts) * row - _GAP / 2, -_GAP / 2)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=4, integer=True)


def _draw_sizes(content: _Set) -> tuple[Page, str]:
    """Shares of widths and heights within each class, on one scale for all."""
    what = (
        "Width and height of all images: share of a class in each range (root scale, so that few show), and its median"
    )
    page = _open_page(content, what, _grid_height(content))
    baseline = content.info.audit.get("size_baseline")
    if baseline:
        known, chance = baseline["balanced_accuracy"], baseline["chance"]
        sentence = f"By size alone the class is told with a balanced accuracy of {known:.2f} (chance {chance:.2f})."
        page.write(MARGIN, 0.93, sentence, size=9.5, color=PALE)
    panels = []
    for side in ("width", "height"):
        sizes = content.manifest.column(side).to_numpy()
        values = [sizes[content.rows_of(label)] for label, _ in content.classes]
        bins = _edges(sizes.min(), sizes.max(), least=2.0 * _BINS)
        panels.append(_Panel(side, "pixels", bins, [[one] for one in values], of_sizes=True))
    _draw_panels(page, content, panels, _GRAY)
    return page, f"widths and heights of {content.info.num_images:,} images by class"


def _draw_samples(content: _Set) -> tuple[Page, str]:
    """A row of pictures a class, each in its proportions, its size below it."""
    gap, row = 0.1, 1.55
    cell = (_WIDTH - LABEL_WIDTH - MARGIN - (_COLUMNS - 1) * gap) / _COLUMNS
    shown = {label: _spread(content.samples.of_class(label), _COLUMNS) for label, _ in content.classes}
    count = sum(map(len, shown.values()))
    what = f"{count:,} of {content.samples.num_images:,} images of train, with their width and height in pixels"
    page = _open_page(content, what, len(shown) * row - _FOOT - 0.1)
    for place, (label, chosen) in enumerate(shown.items()):
        top = _TOP - 0.3 + place * row
        _name_class(page, content, label, top)
        if not chosen:
            page.write(LABEL_WIDTH, top + 0.2, "no image in train", size=9.5, color=PALE)
        for column, sample in enumerate(chosen):
            width, height = content.samples.widths[sample], content.samples.heights[sample]
            scale = cell / max(width, height)
            left = LABEL_WIDTH + column * (cell + gap)
            x, y = left + (cell - width * scale) / 2, top + cell - height * scale
            page.picture(x, y, width * scale, height * scale, content.samples.pixels[sample, 0])
            caption = f"{width:,} x {height:,}"
            page.write(left + cell / 2, top + cell + 0.13, caption, size=7.5, color=PALE, ha="center")
    return page, f"{count:,} images of train"


def _draw_values(content: _Set) -> tuple[Page, str]:
    """Shares of pixel values before and after normalising, by class and channel."""
    info, samples = content.info, content.samples
    count = len(samples.labels)
    what = f"Pixel values of {count:,} of {samples.num_images:,} images of train, spread evenly: share in each range"
    page = _open_page(content, what, _grid_height(content))
    levels = [samples.pixels[samples.of_class(label), 0] for label, _ in content.classes]
    level_bins = np.linspace(-0.5, 255.5, _BINS + 1)
    mean, deviation = np.array(info.mean), np.maximum(info.std, 1e-6)
    ends = (level_bins[[0, -1], None] / 255 - mean) / deviation
    by_picture = [_standardised(values) for values in levels]
    panels = [
        _Panel("as decoded", "level, 0 to 255", level_bins, [_channels(values) for values in levels]),
        _Panel(
            "normalised by the set",
            "(value - mean) / std of the set",
            np.linspace(ends[0].min(), ends[1].max(), _BINS + 1),
            [_channels((values / 255 - mean) / deviation) for values in levels],
        ),
        _Panel(
            "normalised one by one",
            "(value - mean) / std of the picture",
            _range_of(by_picture),
            [_channels(values) for values in by_picture],
        ),
    ]
    lines = _GRAY if info.channels == 1 else _RGB
    _draw_panels(page, content, panels, lines)
    if info.channels > 1:
        _write_key(page, lines)
    return page, f"pixel values of {count:,} of {samples.num_images:,} images of train"


def _standardised(pixels: Pixels) -> Values:
    """Each picture less its mean, by its standard deviation: all its channels together."""
    values = pixels.astype(np.float32)
    axes = (1, 2, 3)
    values -= values.mean(axes, keepdims=True)
    values /= np.maximum(values.std(axes, keepdims=True), 1e-6)
    return values


def _channels(values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return [values[..., channel].ravel() for channel in range(values.shape[-1])]


def _range_of(values: Sequence[Values]) -> npt.NDArray[np.float64]:
    there = [one for one in values if one.size]
    low, high = min(one.min() for one in there), max(one.max() for one in there)
    return _edges(max(low, -_WIDEST), min(high, _WIDEST))


def _edges(low: float, high: float, least: float = 1.0) -> npt.NDArray[np.float64]:
    """Bounds of the bins from low to high, both of which fall inside; `least` is how far apart they are at least."""
    width = max((high - low) * (1 + 1 / _BINS), least)
    middle = (low + high) / 2 + width / (4 * _BINS)  # no single value falls on a bound
    return np.linspace(middle - width / 2, middle + width / 2, _BINS + 1)


@dataclass(frozen=True)
class _Panel:
    """A column of histograms: their bins, and for each class the values of each line.

    Those of sizes show their median, and small shares larger.
    """

    title: str
    unit: str
    edges: npt.NDArray[np.float64]
    values: Sequence[Sequence[npt.NDArray[Any]]]
    of_sizes: bool = False


def _draw_panels(page: Page, content: _Set, panels: Sequence[_Panel], lines: Sequence[_Line]) -> None:
    """Histograms in rows of classes; a column has one scale, so that classes can be compared."""
    width = _panel_width(len(panels))
    _name_classes(page, content, _ROW + _GAP)
    for place, panel in enumerate(panels):
        left = LABEL_WIDTH + place * (width + 0.3)
        page.write(left, _TOP - 0.12, panel.title, size=9.5, weight="bold")
        shares = [[_shares(values, panel) for values in of_class] for of_class in panel.values]
        most = max(float(share.max()) for of_class in shares for share in of_class) or 1.0
        for number, of_class in enumerate(shares):
            axes = page.axes(left, _TOP + number * (_ROW + _GAP), width, _ROW)
            for share, line in zip(of_class, lines, strict=True):
                filled = len(lines) == 1
                axes.stairs(share, panel.edges, color=line.colour, linestyle=line.dash, linewidth=1.2, fill=filled)
            _trim(axes, panel, most, last=number == len(shares) - 1)
            _note(axes, panel, panel.values[number][0])


def _shares(values: npt.NDArray[Any], panel: _Panel) -> npt.NDArray[np.float64]:
    """Share of the values in each bin, of sizes its root; zeros where there are none."""
    shares = np.histogram(values, panel.edges)[0] / max(values.size, 1)
    return np.sqrt(shares) if panel.of_sizes else shares


def _trim(axes: Axes, panel: _Panel, most: float, *, last: bool) -> None:
    axes.set_xlim(panel.edges[0], panel.edges[-1])
    axes.set_ylim(0, (1.5 if panel.of_sizes else 1.1) * most)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(labelbottom=last)
    if last:
        axes.set_xlabel(panel.unit, fontsize=8.5, color=INK)


def _note(axes: Axes, panel: _Panel, values: npt.NDArray[Any]) -> None:
    """The median, above all bars; or that there is nothing."""
    text = "no image in train" if not values.size else f"median {np.median(values):,.0f}" if panel.of_sizes else ""
    axes.text(0.99, 0.93, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=INK)


def _open_page(content: _Set, what: str, height: float) -> Page:
    """A page with its header, and room for a body of a height below it."""
    info = content.info
    page = Page(_WIDTH, _TOP + height + _FOOT)
    page.header(
        shortened(content.name, 40),
        f"{info.num_images:,} images, {len(info.classes)} classes, {info.num_patients:,} patients",
    )
    beyond = len(info.classes) - len(content.classes)
    page.write(MARGIN, 0.7, f"{what}{f'; {beyond} more classes are not shown' if beyond else ''}", size=9.5)
    return page


def _grid_height(content: _Set) -> float:
    return len(content.classes) * (_ROW + _GAP) - _GAP


def _panel_width(count: int) -> float:
    return (_WIDTH - LABEL_WIDTH - MARGIN - 0.3 * (count - 1)) / count


def _name_classes(page: Page, content: _Set, row: float) -> None:
    for place, (label, _) in enumerate(content.classes):
        _name_class(page, content, label, _TOP + place * row)


def _name_class(page: Page, content: _Set, label: int, y: float) -> None:
    name = content.info.classes[label]
    page.label(y, name, f"{content.info.counts[name]:,} images")


def _write_key(page: Page, lines: Sequence[_Line]) -> None:
    """What colours and dashes mean, at the right of the line that says what is shown."""
    for place, line in enumerate(lines):
        x = page.width - MARGIN - 0.7 * (len(lines) - place)
        page.write(x, 0.7, line.sign, size=12, color=line.colour)
        page.write(x + 0.2, 0.7, line.name, size=9.5)


def _spread(samples: npt.NDArray[np.int64], most: int) -> list[int]:
    """So many of the samples, evenly."""
    steps = min(most, len(samples))
    return [int(samples[(2 * step + 1) * len(samples) // (2 * steps)]) for step in range(steps)]


FIGURES: dict[str, Callable[[_Set], tuple[Page, str]]] = {
    "class_counts.png": _draw_counts,
    "image_sizes.png": _draw_sizes,
    "samples.png": _draw_samples,
    "pixel_values.png": _draw_values,
}
