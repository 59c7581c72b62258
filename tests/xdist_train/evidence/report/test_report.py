"""The report of made-up runs: what it says, what it hides, what it needs from elsewhere (nothing), and bad input."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import InputError
from cluster.store import open_store
from dataloading.dataset import Dataset
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, write_dataset
from tests.xdist_train.evidence.made_up_run import write_cam, write_run
from xdist_train.evidence.report.reading import Names
from xdist_train.evidence.report.writing import write_report

_HOSTILE = "<img src=x onerror=alert(1)>"


class _Page(HTMLParser):
    """Words that are read, addresses that are loaded, and tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def _report(run: Any, **options: Any) -> _Page:
    write_report(run.uri, **options)
    return _Page(run.read("report.html").decode())


def test_a_report_says_what_a_run_left(tmp_path: Path) -> None:
    """The headline, every figure with its interval, curves, thresholds, errors, configuration; listed in run.json."""
    run = write_run(tmp_path / "run")
    page = _report(run)
    test = run.read_json("evaluation/test.json")
    figure = test["balanced_accuracy"]
    said = f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
    assert f"On 300 test images of {test['n_patients']} patients, balanced accuracy is {said}" in page.text
    assert "epoch 3 of 4, the best by balanced_accuracy on val (0.9000)" in page.text
    for heading in ("Thresholds", "Calibration", "Errors", "Where the model looks", "Training", "Time"):
        assert heading in page.text
    assert "xdist-train cam " in page.text
    assert "Temperature scaling with" in page.text
    assert "backbone: small_cnn" in page.text
    assert "report.html" in run.read_json("run.json")["complete"]


def test_a_page_needs_nothing_and_allows_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Its policy names its own style and script by digest; nothing in it is styled or scripted in place."""
    run = write_run(tmp_path / "run")
    write_cam(run, range(10_000, 10_012))
    page = _report(run)
    (policy,) = [attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    addresses = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert len(addresses) > 20
    assert all(value is not None and value.startswith("data:image/") for value in addresses)
    assert [] == [tag for tag, attrs in page.tags if "style" in attrs or any(name.startswith("on") for name in attrs)]


def test_no_name_becomes_markup(tmp_path: Path) -> None:
    """Neither of a file, a class, a note, nor of a command."""
    sources = [f"{_HOSTILE}.jpeg"] * 300
    run = write_run(
        tmp_path / "run", classes=("A", f"B{_HOSTILE}", "C"), sources=sources, notes=[_HOSTILE], command=_HOSTILE
    )
    write_cam(run, range(10_000, 10_012), classes=("A", f"B{_HOSTILE}", "C"), warning=_HOSTILE)
    page = _report(run, real_names=True)
    assert [] == [attrs for tag, attrs in page.tags if attrs.get("src") == "x"]
    assert page.text.count(f"{_HOSTILE}.jpeg") >= 3


def _packed(folder: Path) -> Dataset:
    images = [encode_jpeg(speckled_picture(number, 16, 16)) for number in range(60)]
    labels = [number // 20 for number in range(60)]
    return write_dataset(folder, images, labels, splits=[("train", "val", "test")[number % 3] for number in range(60)])


def test_patients_and_files_have_numbers(tmp_path: Path) -> None:
    """The same in every report of a data set; with --real-names they are as they are."""
    dataset = _packed(tmp_path / "data")
    ids = range(2, 60, 3)
    facts: dict[str, Any] = {"fingerprint": dataset.info.fingerprint, "data_uri": dataset.store.uri, "num_images": 20}
    runs = [
        write_run(tmp_path / f"run{seed}", seed=seed, skill=0.2, ids=ids, splits=("test",), **facts) for seed in (0, 1)
    ]
    pages = [_report(run).text for run in runs]
    numbers = [dict(re.findall(r"image (\d+), patient (\d+)", text)) for text in pages]
    shared = numbers[0].keys() & numbers[1].keys()
    assert len(shared) >= 3
    assert [numbers[0][image] for image in shared] == [numbers[1][image] for image in shared]
    assert not any(f"p{image}" in text or f"-{image}.jpeg" in text for text in pages for image in ids)
    assert "test/CNV/CNV-" in _report(runs[0], real_names=True).text
    assert "patient p" in _report(runs[0], real_names=True).text


def test_numbers_do_not_depend_on_what_was_evaluated(tmp_path: Path) -> None:
    """A patient has the number that the data set gives it."""
    dataset = _packed(tmp_path / "data")
    facts: dict[str, Any] = {"fingerprint": dataset.info.fingerprint, "data_uri": dataset.store.uri, "skill": 0.2}
    some, all_ = (
        write_run(tmp_path / name, ids=ids, num_images=len(ids), splits=("test",), **facts)
        for name, ids in (("some", range(2, 60, 3)), ("all", range(60)))
    )
    numbers = [dict(re.findall(r"image (\d+), patient (\d+)", _report(run).text)) for run in (some, all_)]
    shared = numbers[0].keys() & numbers[1].keys()
    assert shared
    assert [numbers[0][image] for image in shared] == [numbers[1][image] for image in shared]


def test_maps_of_another_data_set_are_not_shown(tmp_path: Path) -> None:
    """Its images have the same ids."""
    run = write_run(tmp_path / "run")
    write_cam(run, range(10_000, 10_012))
    key = "cam/test/classic-layer4/cam.json"
    run.write_json(key, {**run.read_json(key), "fingerprint": "e" * 64})
    assert "No class activation maps were made" in _report(run).text


def test_numbers_of_patients_are_an_order_that_the_secret_draws() -> None:
    """All different, other ones for another data set."""
    patients = [f"p{number}" for number in range(50)]
    one, other = (Names.of(patients, secret, real=False).patients for secret in ("a", "b"))
    assert list(range(1, 51)) == sorted(one.values())
    assert one != other


def test_what_cannot_be_reported_says_why(tmp_path: Path) -> None:
    """No run, no figures yet, a damaged table or history; and nothing is written."""
    unfinished = write_run(tmp_path / "early", splits=(), status="running")
    damaged = write_run(tmp_path / "damaged")
    damaged.write("predictions/test.parquet", b"PAR1")
    torn = write_run(tmp_path / "torn")
    torn.write("metrics.jsonl", b'{"kind": ')
    for uri, text in (
        (str(tmp_path), "is no run folder"),
        (unfinished.uri, "has no figures yet .the run is running"),
        (damaged.uri, "test.parquet cannot be read"),
        (torn.uri, "metrics.jsonl cannot be read"),
        (write_run(tmp_path / "going", status="running", heartbeat=time.time()).uri, "is still running"),
    ):
        with pytest.raises(InputError, match=text):
            write_report(uri)
        assert not open_store(uri).exists("report.html")


def test_val_alone_and_a_data_set_that_is_gone_are_said(tmp_path: Path) -> None:
    """The page is made all the same."""
    text = _report(write_run(tmp_path / "run", splits=("val",))).text
    assert "Test was not evaluated" in text
    assert "is not at nowhere any more" in text
    assert "both must have been evaluated" in text


def test_warnings_are_weighed_with_the_figures(tmp_path: Path) -> None:
    """Of maps, of test that was evaluated again, of the run itself."""
    run = write_run(tmp_path / "run", test_evaluations=2, notes=["workers lost: a node ended"])
    write_cam(run, range(10_000, 10_012), warning="61% of the maps' energy lies on the border")
    text = _report(run).text
    for words in ("Test was evaluated 2 times", "workers lost: a node ended", "energy lies on the border"):
        assert words in text
    assert "0.800 (0.700 to 0.900)" in text


def test_an_image_that_is_gone_leaves_the_gallery(tmp_path: Path) -> None:
    """The others stay."""
    run = write_run(tmp_path / "run")
    write_cam(run, range(10_000, 10_012))
    shots = [tag for tag, attrs in _report(run).tags if tag == "button" and "aria-pressed" in attrs]
    (tmp_path / "run/cam/test/classic-layer4/images/10000.jpg").unlink()
    assert len(shots) - 1 == sum(tag == "button" and "aria-pressed" in attrs for tag, attrs in _report(run).tags)


def test_the_slider_says_what_the_table_says(tmp_path: Path) -> None:
    """A class a row, a wish a column from 50 to 100 %; thresholds fall; at 95 % it is the table's row."""
    page = _report(write_run(tmp_path / "run"))
    (data,) = [attrs["data-operating"] for _, attrs in page.tags if "data-operating" in attrs]
    classes = json.loads(data or "")
    assert [51] * 3 == [len(wishes) for wishes in classes]
    for name, wishes in zip(("CNV", "DME", "NORMAL"), classes, strict=True):
        assert (np.diff([threshold for threshold, *_ in wishes]) <= 0).all()
        threshold, *figures = wishes[45]
        row = re.search(rf"{name} {threshold:.3f}" + r" ([\d.]+) \([^)]*\)" * 3, page.text)
        assert row is not None
        assert [f"{figure:.3f}" for figure in figures] == list(row.groups())


def test_a_report_elsewhere_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    """--out FILE."""
    run = write_run(tmp_path / "run")
    before = run.read("run.json")
    out = tmp_path / "page.html"
    assert str(out) == write_report(run.uri, out=out)
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert before == run.read("run.json")
    assert not run.exists("report.html")
