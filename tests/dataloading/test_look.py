"""`look`: the audit as text, and a sheet that shows what training shows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from cluster.errors import InputError, StoreError
from dataloading.config import LoaderConfig
from dataloading.dataset import Dataset
from dataloading.look import audit_lines, run_look
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, write_dataset

AUDIT = {
    "patient_split_counts": {
        "train": {"class0": 3, "class1": 1},
        "val": {"class0": 1, "class1": 1},
        "test": {"class0": 1, "class1": 0},
    },
    "size_baseline": {"balanced_accuracy": 0.875, "chance": 0.5},
    "warnings": ["Width and height alone predict the class."],
}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Five gray images of class0 and two of class1, with an audit."""
    images = [encode_jpeg(speckled_picture(n, 90 + n, 70)) for n in range(7)]
    packed = write_dataset(tmp_path / "dataset", images, [0] * 5 + [1] * 2)
    return dataclasses.replace(packed, info=dataclasses.replace(packed.info, audit=AUDIT))


def look(dataset: Dataset, out: Path, **options: int) -> list[str]:
    """`run_look` with a cache of the test's own."""
    loader = LoaderConfig(image_size=32, cache_dir=str(out.parent / "cache"))
    return run_look(dataset, out, loader=loader, **options)


def test_the_audit_shows_counts_shortcuts_and_warnings(dataset):
    """Counts by class and split line up; the size-only figure and every warning are told."""
    lines = audit_lines(dataset.info)
    assert [line.split() for line in lines[:4]] == [
        ["images", "train", "val", "test"],
        ["class0", "5", "3", "1", "1"],
        ["class1", "2", "1", "1", "0"],
        ["all", "7", "4", "2", "1"],
    ]
    assert "width and height alone reach a balanced accuracy of 0.88 (chance 0.50)" in lines
    assert lines[-1] == "  ! Width and height alone predict the class."


def test_a_set_without_warnings_says_so(dataset):
    """Silence is not left to be guessed at."""
    assert audit_lines(dataclasses.replace(dataset.info, audit={}))[-1] == "No warnings."


def test_names_from_the_set_cannot_steer_the_terminal(dataset):
    """Control characters of a class name are shown, not sent."""
    info = dataclasses.replace(dataset.info, classes=("a\x1b[31m", "class1"), counts={"a\x1b[31m": 5, "class1": 2})
    assert "\x1b" not in "".join(audit_lines(info))


def test_the_sheet_has_a_row_an_image_and_a_column_a_draw(dataset, tmp_path):
    """More rows make it taller, more draws wider; the last line names the file."""
    sizes = {}
    for rows, draws in ((1, 2), (2, 2), (1, 5)):
        lines = look(dataset, tmp_path / "sheet.png", images_per_class=rows, draws=draws)
        sizes[rows, draws] = cv2.imread(str(tmp_path / "sheet.png")).shape[:2]
        assert lines[-1] == f"{tmp_path}/sheet.png: {2 * rows} images, each plain and in {draws} draws."
    assert sizes[2, 2][0] > sizes[1, 2][0]
    assert sizes[2, 2][1] == sizes[1, 2][1] < sizes[1, 5][1]


def test_the_sheet_is_the_same_for_the_same_seed(dataset, tmp_path):
    """Equal seeds draw equal sheets, another seed another one."""
    sheets = []
    for seed in (0, 0, 1):
        look(dataset, tmp_path / "sheet.png", seed=seed)
        sheets.append(cv2.imread(str(tmp_path / "sheet.png")))
    assert np.array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])


def test_colour_and_many_classes_fit_on_a_sheet(tmp_path):
    """An RGB set of thirty classes is drawn with as many rows as a page holds."""
    images = [encode_jpeg(speckled_picture(n, 60, 60, channels=3)) for n in range(30)]
    dataset = write_dataset(tmp_path / "dataset", images, list(range(30)), channels=3)
    assert look(dataset, tmp_path / "sheet.png", draws=1)[-1].startswith(f"{tmp_path}/sheet.png: 24 images")


def test_what_cannot_be_written_is_refused(dataset, tmp_path):
    """A suffix that is no picture is bad input; a folder that cannot be written to is a storage error."""
    with pytest.raises(InputError, match="png, pdf, svg, jpg"):
        look(dataset, tmp_path / "sheet.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        run_look(
            dataset,
            tmp_path / "file" / "sheet.png",
            loader=LoaderConfig(image_size=32, cache_dir=str(tmp_path / "c")),
        )
