"""The model card of made-up runs: what it says, what it hides, and what the Hub reads of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from cluster.errors import InputError
from cluster.store import Store, open_store
from dataloading.dataset import Dataset
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, write_dataset
from tests.xdist_train.evidence.made_up_run import CLASSES, write_cam, write_run
from xdist_train import verbs
from xdist_train.config import ModelConfig
from xdist_train.evidence.card.markdown import plain
from xdist_train.evidence.card.writing import write_card
from xdist_train.evidence.metrics import FIGURES
from xdist_train.evidence.tables import TITLES, figure_text
from xdist_train.models.backbones import build_model
from xdist_train.models.export import ModelDescription, Preprocessing, Selection, save_model

_HOSTILE = "<img src=x>|[a](b)`c`\n# d"


def _run(folder: Path, **options: Any) -> Store:
    """A made-up run with a model."""
    run = write_run(folder, **options)
    config = ModelConfig(backbone="small_cnn")
    description = ModelDescription(
        classes=CLASSES,
        preprocessing=Preprocessing(
            image_size=32, fit="stretch", channels=1, mean=(0.2,), std=(0.1,), reduce_tolerance=0.9
        ),
        model=config,
        split="patient",
        fingerprint=run.read_json("run.json")["fingerprint"],
        selection=Selection(epoch=2, step=36, metric="balanced_accuracy", value=0.9),
    )
    torch.manual_seed(0)
    save_model(run, build_model(config, 3).state_dict(), description)
    return run


def _card(run: Store, **options: Any) -> tuple[dict[str, Any], str]:
    """Its head as values, and the text below."""
    write_card(run.uri, **options)
    nothing, head, text = run.read("model/README.md").decode().split("---\n", 2)
    assert not nothing
    return yaml.safe_load(head), text


def test_the_head_is_what_the_hub_reads(tmp_path: Path) -> None:
    """License unknown, library, task, tags, and for each split every figure exactly as evaluation has it."""
    run = _run(tmp_path / "run")
    head, _ = _card(run)
    assert ("unknown", "xdist-train", "image-classification") == tuple(
        head[name] for name in ("license", "library_name", "pipeline_tag")
    )
    assert {"xdist-train", "small_cnn"} < set(head["tags"])
    (model,) = head["model-index"]
    assert "run" == model["name"]
    assert ["test", "val"] == [result["dataset"]["split"] for result in model["results"]]
    for result in model["results"]:
        report = run.read_json(f"evaluation/{result['dataset']['split']}.json")
        said = {metric["name"]: metric["value"] for metric in result["metrics"]}
        assert {TITLES[name]: report[name]["value"] for name in FIGURES} == said
        assert "f" * 64 == result["dataset"]["revision"]


def test_figures_stand_with_their_intervals(tmp_path: Path) -> None:
    """Of the set and of each class, on val and on test."""
    run = _run(tmp_path / "run")
    _, text = _card(run)
    for split in ("val", "test"):
        report = run.read_json(f"evaluation/{split}.json")
        section = text.split(f"## Figures on {split}\n")[1].split("\n## ")[0]
        for name in FIGURES:
            assert f"| {TITLES[name]} | {figure_text(report[name])} |" in section
        for name, figures in report["per_class"].items():
            cells = [figure_text(figures[key]) for key in ("sensitivity", "specificity", "auroc")]
            assert f"| {name} | {' | '.join(cells)} | {figures['n']} |" in section
    for words in ("Thresholds and calibration", "Temperature scaling with", "95% of its images on val"):
        assert words in text


def test_a_card_says_what_it_is_for_and_where_it_comes_from(tmp_path: Path) -> None:
    """Use, no use, commands, digests, revision; it is listed in run.json."""
    run = _run(tmp_path / "run")
    _, text = _card(run)
    sha256 = run.read_json("model/model.json")["weights_sha256"]
    for words in (
        "## Intended use",
        "**not a medical device**",
        "xdist-train predict",
        "d" * 64,
        "0123456789ab",
        sha256,
    ):
        assert words in text
    assert "model/README.md" in run.read_json("run.json")["complete"]


def test_a_run_without_test_figures_says_so(tmp_path: Path) -> None:
    """It has a card all the same, and the head has no result of test."""
    head, text = _card(_run(tmp_path / "run", splits=("val",)))
    assert "**There are no figures of test**" in text
    assert "Thresholds" not in text
    assert ["val"] == [result["dataset"]["split"] for result in head["model-index"][0]["results"]]


def test_what_the_report_warns_of_are_the_limits(tmp_path: Path) -> None:
    """Maps that lie where nothing is, test that was evaluated twice, a data set that is gone."""
    run = _run(tmp_path / "run", test_evaluations=2)
    write_cam(run, range(10_000, 10_012), warning="61% of the maps' energy lies on the border")
    limits = _card(run)[1].split("## Limits\n")[1].split("\n## ")[0]
    for words in ("Test was evaluated 2 times", "energy lies on the border", "was not at hand", "other devices"):
        assert words in limits


def _packed(folder: Path, splits: list[str]) -> Dataset:
    images = [encode_jpeg(speckled_picture(number, 16, 16)) for number in range(60)]
    return write_dataset(folder, images, [number // 20 for number in range(60)], splits=splits)


def test_splits_are_counted_and_nobody_is_named(tmp_path: Path) -> None:
    """Images and patients of each split, and how many patients two share; no patient, file or folder."""
    dataset = _packed(tmp_path / "data", [("train", "train", "val", "test")[number % 4] for number in range(60)])
    facts: dict[str, Any] = {"fingerprint": dataset.info.fingerprint, "data_uri": dataset.store.uri}
    sources = [f"secret-{number}.jpeg" for number in range(15)]
    ids = list(range(3, 60, 4))
    run = _run(tmp_path / "run", ids=ids, num_images=15, splits=("test",), sources=sources, **facts)
    _, text = _card(run)
    for words in ("| train | 30 | 30 | 10 | 10 | 10 |", "| val | 15 | 15 |", "| test | 15 | 15 |", "or more: 0."):
        assert words in text
    patients = [f"p{number}" for number in range(60)]
    assert [] == [name for name in (*patients, *sources, "secret", str(tmp_path)) if name in text.split()]
    assert "secret" not in text
    assert str(tmp_path) not in text


def test_no_name_becomes_markup(tmp_path: Path) -> None:
    """A class called like a tag, a link and a heading is shown as it is called."""
    run = _run(tmp_path / "run", classes=("A", _HOSTILE, "C"))
    _, text = _card(run)
    assert "<img" not in text
    assert "[a](b)" not in text
    assert "\n# d" not in text
    assert f"| {plain(_HOSTILE)} |" in text


def test_a_license_may_be_given(tmp_path: Path) -> None:
    """By the option of the command, which says where the card lies."""
    run = _run(tmp_path / "run")
    app = typer.Typer()
    app.command()(verbs.card)
    result = CliRunner().invoke(app, [run.uri, "--license", "apache-2.0"], catch_exceptions=False)
    assert f"card: {tmp_path}/run/model/README.md" == result.output.strip()
    assert "license: apache-2.0\n" in run.read("model/README.md").decode()


def test_what_has_no_card_says_why(tmp_path: Path) -> None:
    """A run that goes on, one without a model, one without figures; nothing is written."""
    for run, words in (
        (_run(tmp_path / "going", status="running", heartbeat=time.time()), "still running"),
        (write_run(tmp_path / "bare"), "holds no model"),
        (_run(tmp_path / "early", splits=(), status="failed"), "has no figures yet"),
    ):
        with pytest.raises(InputError, match=words):
            write_card(run.uri)
        assert not run.exists("model/README.md")


def test_a_card_elsewhere_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    """--out FILE, in a folder that need not be there."""
    run = _run(tmp_path / "run")
    before = run.read("run.json")
    assert f"{tmp_path}/new/card.md" == write_card(run.uri, out=f"{tmp_path}/new/card.md")
    assert open_store(str(tmp_path / "new")).read("card.md").startswith(b"---\n")
    assert before == run.read("run.json")
    assert not run.exists("model/README.md")
