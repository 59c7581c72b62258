"""Prediction over folders and object storage: one table, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
import typer
from typer.testing import CliRunner

from cluster.errors import InputError, StoreError
from cluster.store import Store, open_store
from tests.xdist_train.evidence.made_up_run import CLASSES, write_run
from xdist_train import verbs
from xdist_train.config import ModelConfig
from xdist_train.evidence import batch
from xdist_train.evidence.batch import find_images, predict_batch
from xdist_train.evidence.calibration import apply_temperature, fit_temperature
from xdist_train.evidence.decisions import Wish
from xdist_train.evidence.predict import predict_images
from xdist_train.models.backbones import build_model
from xdist_train.models.export import ModelDescription, Preprocessing, Selection, save_model


@pytest.fixture
def run(tmp_path: Path) -> Store:
    """A run with figures of val and test and a model of three classes."""
    store, config = write_run(tmp_path / "run"), ModelConfig(backbone="small_cnn", norm="group")
    torch.manual_seed(0)
    description = ModelDescription(
        classes=CLASSES,
        preprocessing=Preprocessing(
            image_size=32, fit="stretch", channels=1, mean=(0.2,), std=(0.1,), reduce_tolerance=0.9
        ),
        model=config,
        split="patient",
        fingerprint="f" * 64,
        selection=Selection(epoch=0, step=1, metric="mcc", value=0.0),
    )
    save_model(store, build_model(config, 3).state_dict(), description)
    return store


def _scans(folder: Path, number: int = 40) -> list[str]:
    """Pictures in two folders; their paths, by name."""
    paths = [folder / ("b" if n % 2 else "a") / f"{n:02d}.png" for n in range(number)]
    for n, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.random.default_rng(n).integers(0, 255, (40, 30 + n), dtype=np.uint8))
    return sorted(map(str, paths))


def _read(path: Path) -> pa.Table:
    return pa.csv.read_csv(path) if path.suffix == ".csv" else pa.parquet.read_table(path)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_folder_becomes_a_table(run: Store, tmp_path: Path, ending: str) -> None:
    """A row for every picture below it, answers as `predict` gives them one by one, calibrated by val's temperature."""
    paths, out = _scans(tmp_path / "scans"), tmp_path / "new" / f"answers.{ending}"
    done = predict_batch(run.uri, [str(tmp_path / "scans")], str(out))
    table = _read(out)
    assert ["source", "predicted", *(f"{title}_{name}" for title in ("probability", "calibrated") for name in CLASSES),
            "decision", "reason"] == table.column_names  # fmt: skip
    assert paths == table["source"].to_pylist()
    alone = predict_images(run.uri, paths)
    assert [answer.predicted for answer in alone] == table["predicted"].to_pylist() == table["decision"].to_pylist()
    probabilities, calibrated = (
        np.stack([table[f"{title}_{name}"].to_numpy() for name in CLASSES], axis=1)
        for title in ("probability", "calibrated")
    )
    assert np.allclose(np.array([list(answer.probabilities.values()) for answer in alone]), probabilities, atol=1e-6)
    val = pa.parquet.read_table(pa.BufferReader(run.read("predictions/val.parquet")))
    labels = np.array([CLASSES.index(name) for name in val["label"].to_pylist()])
    temperature = fit_temperature(labels, np.stack([val[f"probability_{name}"].to_numpy() for name in CLASSES], axis=1))
    assert np.allclose(apply_temperature(probabilities, temperature), calibrated)
    assert (str(out), 40, 0, 0, temperature, None) == done


def test_what_cannot_be_read_is_a_row_with_its_reason(run: Store, tmp_path: Path) -> None:
    """Text, an empty file, half a picture: the others have their answers all the same."""
    paths = _scans(tmp_path / "scans", 5)
    whole = Path(paths[0]).read_bytes()
    bad = {"c/empty.png": b"", "c/half.png": whole[: len(whole) // 2], "c/text.jpg": b"not a picture"}
    (tmp_path / "scans/c").mkdir()
    for name, data in bad.items():
        (tmp_path / "scans" / name).write_bytes(data)
    done = predict_batch(run.uri, [str(tmp_path / "scans")], str(tmp_path / "a.parquet"), defer_below=1.0)
    rows = _read(tmp_path / "a.parquet").to_pylist()
    assert (8, 3, 5) == (done.images, done.unreadable, done.deferred)
    assert [None] * 5 == [row["reason"] for row in rows[:5]]
    assert ["deferred"] * 5 == [row["decision"] for row in rows[:5]]
    for row in rows[5:]:
        assert row["reason"]
        assert {None} == {value for name, value in row.items() if name not in ("source", "reason")}


def test_many_files_are_read_by_processes(run: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are read here: the same table as read here, an unreadable one among them."""
    _scans(tmp_path / "scans", 70)
    (tmp_path / "scans/bad.png").write_bytes(b"no picture")
    tables = []
    for most_here in (1000, 3):
        monkeypatch.setattr(batch, "_IN_PROCESS", most_here)
        predict_batch(run.uri, [str(tmp_path / "scans")], str(tmp_path / "a.parquet"))
        tables.append(_read(tmp_path / "a.parquet"))
    assert 1 == 71 - tables[0]["reason"].null_count
    assert tables[0].equals(tables[1])


def test_a_class_may_be_looked_for(run: Store, tmp_path: Path) -> None:
    """The decision is that class wherever its probability reaches val's threshold; `predicted` stays the likeliest."""
    _scans(tmp_path / "scans", 12)
    out = tmp_path / "a.parquet"
    predict_batch(run.uri, [str(tmp_path / "scans")], str(out), wish=Wish("CNV", 1.0))
    table = _read(out)
    assert {"CNV"} == set(table["decision"].to_pylist())  # all of val's CNV lie above a threshold near 0
    assert "CNV" not in table["predicted"].to_pylist()


def test_object_storage_is_read_and_written(run: Store, tmp_path: Path, s3: str) -> None:
    """Pictures under an s3:// prefix, one named alone, and the table beside them."""
    paths = _scans(tmp_path / "scans", 3)
    bucket = open_store(s3)
    for path in paths:
        bucket.write(f"in/{Path(path).name}", Path(path).read_bytes())
    predict_batch(run.uri, [f"{s3}/in", f"{s3}/in/00.png"], f"{s3}/out/a.parquet")
    table = pa.parquet.read_table(pa.BufferReader(bucket.read("out/a.parquet")))
    expected = [f"{s3}/in/{name}.png" for name in ("00", "01", "02", "00")]
    assert expected == table["source"].to_pylist()
    assert [None] * 4 == table["reason"].to_pylist()


def test_hidden_files_and_other_endings_do_not_exist(tmp_path: Path) -> None:
    """Below a folder; a file that is named is taken at its word."""
    (tmp_path / ".hidden").mkdir()
    for name in ("a.PNG", "b.txt", ".c.png", ".hidden/d.png"):
        (tmp_path / name).write_bytes(b"")
    assert [f"{tmp_path}/a.PNG", f"{tmp_path}/b.txt"] == [
        source.name for source in find_images([f"{tmp_path}/", f"{tmp_path}/b.txt"])
    ]


def test_a_job_that_breaks_leaves_what_was_there(run: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that goes away in the middle ends the job; the table of before is whole."""
    _scans(tmp_path / "scans")
    out = tmp_path / "a.csv"
    out.write_text("before")
    asked: list[Any] = []

    def read(data: bytes) -> Any:
        asked.append(data)
        if len(asked) > 35:
            raise StoreError("away")
        return whole(data)

    whole = batch.read_picture
    monkeypatch.setattr(batch, "read_picture", read)
    with pytest.raises(StoreError, match="away"):
        predict_batch(run.uri, [str(tmp_path / "scans")], str(out))
    assert "before" == out.read_text()
    assert ["a.csv", "run", "scans"] == sorted(path.name for path in tmp_path.iterdir())


def test_a_bare_model_predicts_and_no_more(run: Store, tmp_path: Path) -> None:
    """It knows no val: no calibrated columns, and no wish can be met."""
    _scans(tmp_path / "scans", 3)
    model, out = f"{run.uri}/model", tmp_path / "a.parquet"
    assert predict_batch(model, [str(tmp_path / "scans")], str(out)).temperature is None
    assert [] == [name for name in _read(out).column_names if name.startswith("calibrated")]
    with pytest.raises(InputError, match="bare model folder"):
        predict_batch(model, [str(tmp_path / "scans")], str(out), defer_below=0.5)


def test_bad_input_is_refused_before_anything_is_read(run: Store, tmp_path: Path) -> None:
    """Another ending, a folder without images, one that is not there."""
    (tmp_path / "empty").mkdir()
    for source, out, words in (
        ("empty", "a.xlsx", r"endings are \.csv, \.parquet"),
        ("empty", "a.csv", "no folder with images"),
        ("nowhere", "a.csv", "is no file"),
    ):
        with pytest.raises(InputError, match=words):
            predict_batch(run.uri, [str(tmp_path / source)], str(tmp_path / out))
    assert not (tmp_path / "a.csv").exists()


def test_the_command_says_what_it_did(run: Store, tmp_path: Path) -> None:
    """Counts, the temperature and where the table lies; wishes without a table are refused."""
    _scans(tmp_path / "scans", 3)
    app = typer.Typer()
    app.command()(verbs.predict)
    arguments = [run.uri, str(tmp_path / "scans"), "--defer-below", "1"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "a.csv")], catch_exceptions=False)
    assert result.output.startswith("3 images, 0 unreadable, 3 deferred (temperature ")
    assert result.output.strip().endswith("a.csv")
    arguments += ["--find", "CNV=1"]
    result = CliRunner().invoke(app, [*arguments, "--json", "--out", str(tmp_path / "a.csv")], catch_exceptions=False)
    told = json.loads(result.output)
    assert (3, 3, True) == (told["images"], told["deferred"], 0 < told["threshold"] < 1)
    with pytest.raises(InputError, match="give --out"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
