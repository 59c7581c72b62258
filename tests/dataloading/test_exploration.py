"""`look --figures`: every page is drawn, says how much of the set it shows, and can be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from dataloading.config import LoaderConfig
from dataloading.dataset import Dataset
from dataloading.exploration import FIGURES, draw_figures
from dataloading.page import Page
from dataloading.verbs import look
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, stand_in, write_dataset

Pages = dict[str, Page]


def make_set(
    folder: Path, counts: Sequence[int], channels: int = 1, splits: Sequence[str] = ("train", "train", "val", "test")
) -> Dataset:
    """So many pictures of each class, with splits by turns."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    images = [encode_jpeg(speckled_picture(n, 60 + n, 90 - n % 40, channels)) for n in range(len(labels))]
    parts = [splits[n % len(splits)] for n in range(len(labels))]
    return write_dataset(folder / "dataset", images, labels, channels=channels, splits=parts)


def named(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The set with other names of classes, and the figure of an audit."""
    audit = {"size_baseline": {"balanced_accuracy": 0.875, "chance": 0.5}}
    counts = dict(zip(names, dataset.info.counts.values(), strict=True))
    return dataclasses.replace(
        dataset, info=dataclasses.replace(dataset.info, classes=tuple(names), counts=counts, audit=audit)
    )


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Pages:
    """The pages drawn in this test, by what they show."""
    drawn: Pages = {}
    encode = Page.encode

    def keep(page: Page, kind: str, dpi: int = 160) -> bytes:
        drawn[list(FIGURES)[len(drawn) % len(FIGURES)]] = page
        return encode(page, kind, dpi)

    monkeypatch.setattr(Page, "encode", keep)
    return drawn


def draw(dataset: Dataset, folder: Path) -> list[str]:
    """All figures with a cache of the test's own."""
    loader = LoaderConfig(image_size=32, cache_dir=str(folder / "cache"))
    return list(draw_figures(dataset, folder / "figures", loader=loader))


def texts(page: Page) -> list[str]:
    """Everything that is written on a page, but for ticks."""
    figure = page.figure
    return [text.get_text() for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]]


def test_each_figure_is_written_and_told(tmp_path: Path) -> None:
    """One PNG a figure, and a line that names it and says how many images it shows."""
    lines = draw(make_set(tmp_path, [8, 12]), tmp_path)
    folder = tmp_path / "figures"
    assert [
        f"{folder}/class_counts.png: 20 images by class and split",
        f"{folder}/image_sizes.png: widths and heights of 20 images by class",
        f"{folder}/samples.png: 10 images of train",
        f"{folder}/pixel_values.png: pixel values of 10 of 10 images of train",
    ] == lines
    assert sorted(FIGURES) == sorted(path.name for path in folder.iterdir())
    assert all(cv2.imread(str(path)) is not None for path in folder.iterdir())


def test_counts_stand_at_their_bars(tmp_path: Path, pages: Pages) -> None:
    """Each class has its train, val and test, by patient and as the set gives them."""
    draw(make_set(tmp_path, [8, 12]), tmp_path)
    (by_patient, given) = pages["class_counts.png"].figure.axes
    expected = ["4", "2", "2", "6", "3", "3"]
    assert expected == [text.get_text() for text in by_patient.texts] == [text.get_text() for text in given.texts]


def test_test_images_are_not_looked_at(tmp_path: Path) -> None:
    """Pictures are train's alone: those of val and test may be undecodable."""
    images = [encode_jpeg(speckled_picture(n, 60, 50)) for n in range(4)]
    images += [stand_in(b"1"), stand_in(b"2"), *(encode_jpeg(speckled_picture(n, 60, 50)) for n in range(4, 6))]
    splits = ["train"] * 4 + ["val", "test"] + ["train"] * 2
    dataset = write_dataset(tmp_path / "dataset", images, [0] * 6 + [1] * 2, splits=splits)
    assert "6 of 6 images of train" in draw(dataset, tmp_path)[-1]


def test_the_work_is_bounded_and_spread_over_classes(tmp_path: Path, pages: Pages) -> None:
    """Of many pictures 50 a class are measured and six shown, and the page says so."""
    draw(make_set(tmp_path, [120, 60], splits=["train"]), tmp_path)
    assert "Pixel values of 100 of 180 images of train, spread evenly: share in each range" in texts(
        pages["pixel_values.png"]
    )
    assert "12 of 180 images of train, with their width and height in pixels" in texts(pages["samples.png"])


def test_normalising_moves_values_and_keeps_their_shape(tmp_path: Path, pages: Pages) -> None:
    """By the set's mean and std the histogram is the same on another axis; by itself each picture lies about 0."""
    draw(make_set(tmp_path, [4, 4], splits=["train"]), tmp_path)
    decoded, by_set, by_picture = (pages["pixel_values.png"].figure.axes[number].patches[0] for number in (0, 2, 4))
    assert decoded.get_data().values.tolist() == by_set.get_data().values.tolist()
    assert np.allclose((decoded.get_data().edges / 255 - 0.25) / 0.2, by_set.get_data().edges)
    values, edges, _ = by_picture.get_data()
    assert abs(np.sum(values * (edges[1:] + edges[:-1]) / 2)) < 0.1
    assert pytest.approx(1) == values.sum()


def test_a_class_without_training_images_is_said_to_have_none(tmp_path: Path, pages: Pages) -> None:
    """Its rows are there, empty, with the reason."""
    images = [encode_jpeg(speckled_picture(n, 60, 50)) for n in range(6)]
    splits = ["train"] * 3 + ["val", "val", "test"]
    draw(write_dataset(tmp_path / "dataset", images, [0] * 3 + [1] * 3, splits=splits), tmp_path)
    for name, rows in (("samples.png", 1), ("pixel_values.png", 3)):
        assert rows == texts(pages[name]).count("no image in train")


def test_one_size_and_flat_pictures_can_be_drawn(tmp_path: Path) -> None:
    """Where all pictures are alike and of one gray, there is still a page."""
    images = [encode_jpeg(np.full((40, 40), 90, np.uint8)) for _ in range(4)]
    assert 4 == len(draw(write_dataset(tmp_path / "dataset", images, [0, 0, 1, 1]), tmp_path))


def visible_texts(page: Page) -> list[Text]:
    """Every text on a page that is drawn, with the ticks that lie within their axes."""
    written = [*page.figure.texts]
    for axes in page.figure.axes:
        low, high = axes.get_xlim()
        shown = axes.axison and axes.xaxis.get_tick_params()["labelbottom"]
        ticks = [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        written += [*axes.texts, axes.xaxis.label, *(ticks if shown else [])]
    return [text for text in written if text.get_text()]


@pytest.mark.parametrize(("count", "channels"), [(2, 3), (10, 1)])
def test_no_text_lies_on_another_or_leaves_the_page(tmp_path: Path, pages: Pages, count: int, channels: int) -> None:
    """With few and many classes, long, wide and odd names, in gray and in colour."""
    names = ["PNEUMONIA WITHOUT END", "a$b$ _{x}", "WWWWWWWWWWWWWWWW", *(f"class {n}" for n in range(7))][:count]
    draw(named(make_set(tmp_path, [5] * count, channels), names), tmp_path)
    assert len(FIGURES) == len(pages)
    for name, page in pages.items():
        renderer = FigureCanvasAgg(page.figure).get_renderer()
        page.figure.draw(renderer)
        paper = page.figure.bbox
        boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in visible_texts(page)]
        outside = [text for text, box in boxes if not (paper.contains(*box.min) and paper.contains(*box.max))]
        assert [] == outside, name
        pairs = combinations(boxes, 2)
        assert [] == [(one, other) for (one, first), (other, second) in pairs if first.overlaps(second)], name
        plots = [axes.get_window_extent(renderer) for axes in page.figure.axes]
        beside = [(text.get_text(), text.get_window_extent(renderer)) for text in page.figure.texts]
        assert [] == [text for text, box in beside if any(box.overlaps(plot) for plot in plots)], name


def test_more_classes_than_a_page_holds_are_counted(tmp_path: Path, pages: Pages) -> None:
    """Twenty-four are shown, and every page says how many are not."""
    draw(make_set(tmp_path, [2] * 30, splits=["train"]), tmp_path)
    assert [True] * 4 == [
        any("; 6 more classes are not shown" in text for text in texts(page)) for page in pages.values()
    ]
    assert "class23" in texts(pages["samples.png"])
    assert "class24" not in texts(pages["samples.png"])


def test_the_command_puts_the_sheet_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --figures the augmented sheet lies beside them unless --out says otherwise; without, it is look.png."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    uri = str(make_set(tmp_path, [8, 8]).store.uri)
    look(uri, figures=Path("all"))
    assert sorted([*FIGURES, "augmented.png"]) == sorted(path.name for path in Path("all").iterdir())
    assert not Path("look.png").exists()
    assert "all/samples.png: 8 images of train" in capsys.readouterr().out
    look(uri, out=Path("sheet.png"), figures=Path("rest"))
    assert sorted(FIGURES) == sorted(path.name for path in Path("rest").iterdir())
    look(uri)
    assert Path("sheet.png").exists()
    assert Path("look.png").exists()
