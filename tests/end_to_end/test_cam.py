"""The CAM job on a real Ray cluster: killed, resumed, refused, and what it leaves."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cluster.errors import InputError
from cluster.store import open_store
from dataloading.dataset import INFO_KEY, Dataset
from tests.dataloading.loading.packed import write_dataset
from tests.end_to_end.commands import SMALL, copy_dataset
from tests.end_to_end.faults import wait_for
from tests.end_to_end.small import Train
from tune_spaces.launch import run_search
from xdist_train.cli import main
from xdist_train.evidence.cams.job import run_cam
from xdist_train.verbs import cam

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

_SMALL_PARTS = ("cam.part_size=5", "cam.batch_size=5", "cam.workers=2")


@pytest.fixture(scope="module")
def run(train: Train) -> str:
    """A finished run on the bands, explained as soon as it had ended."""
    result = train("cam-run", "cam.after=true", "cam.overlays=all", "cam.workers=1")
    return result.run_uri


def _cam(run_uri: str, *overrides: str, split: str = "", data_uri: str = "") -> dict[str, Any]:
    return run_cam(run_uri, split=split, data_uri=data_uri, overrides=overrides, console=Console(quiet=True))


def _rows(run_uri: str, folder: str) -> pa.Table:
    parts = sorted((Path(run_uri) / folder / "maps").glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts])


def _pids(title: str) -> list[int]:
    """Processes below this one whose title begins so: Ray names a worker by what it does."""
    parents: dict[int, int] = {}
    named = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if (entry / "cmdline").read_bytes().startswith(title.encode()):
                    named.append(int(entry.name))
    return [pid for pid in named if os.getpid() in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


def _copy_run(run_uri: str, target: Path) -> str:
    """A run of its own that a test may spoil."""
    store, copy = open_store(run_uri), open_store(str(target))
    for key in store.walk():
        if not key.startswith(("cam/", "checkpoints/")):
            copy.write(key, store.read(key))
    return str(target)


def test_it_follows_a_training(run: str, bands: Dataset) -> None:
    """`cam.after=true`: one row a test image, what may be read is listed, pictures in the images' own size."""
    folder = Path(run) / "cam/test/classic-stages"
    summary = open_store(run).read_json("cam/test/classic-stages/cam.json")
    rows = _rows(run, "cam/test/classic-stages")
    predictions = pq.read_table(Path(run) / "predictions/test.parquet")
    assert predictions["id"].to_pylist() == rows["id"].to_pylist()
    assert predictions["predicted"].to_pylist() == rows["predicted"].to_pylist()
    best = np.max([predictions[f"probability_{name}"].to_numpy() for name in bands.info.classes], axis=0)
    assert np.abs(best - rows["probability"].to_numpy()).max() < 1e-5
    assert ("classic", "stages", 48, 4) == tuple(summary[key] for key in ("method", "layer", "n_images", "map_height"))
    assert summary["localisation"] is None
    assert summary["faithfulness"]["n"] == 48
    complete = open_store(run).read_json("run.json")["complete"]
    assert {"cam/test/classic-stages/cam.json", "cam/test/classic-stages/maps/part-00000.parquet"} <= set(complete)
    assert [key for key in complete if not (Path(run) / key).is_file()] == []
    assert 48 == len(list((folder / "overlays").iterdir())) == len(list((folder / "images").iterdir()))
    entry = summary["gallery"][0]
    assert (100, 120, 3) == cv2.imread(str(Path(run) / entry["overlay"])).shape
    assert {"id", "group", "class", "order", "label", "predicted", "probability", "image", "overlay"} == set(entry)


def test_a_killed_workers_part_is_done_again(run: str, tmp_path: Path) -> None:
    """kill -9 in the middle: the job ends, each id exactly once, with the rows of a job that nobody disturbed."""
    run = _copy_run(run, tmp_path / "cam-killed")
    maps = tmp_path / "cam-killed/cam/train/gradcam-stages/maps"
    done: list[dict[str, Any]] = []
    settings = ("cam.method=gradcam", "cam.overlays=none", *_SMALL_PARTS)
    thread = threading.Thread(target=lambda: done.append(_cam(run, *settings, split="train")))
    thread.start()
    wait_for(lambda: len(list(maps.glob("part-*"))) >= 3)
    victims = _pids("ray::CamWorker.")
    os.kill(victims[0], signal.SIGKILL)
    assert len(list(maps.glob("part-*"))) < 29
    thread.join(120)
    assert [144] == [summary["n_images"] for summary in done]
    rows = _rows(run, "cam/train/gradcam-stages")
    assert 144 == len(set(rows["id"].to_pylist())) == rows.num_rows
    whole = _copy_run(run, tmp_path / "cam-whole")
    _cam(whole, *settings, split="train")
    assert rows.equals(_rows(whole, "cam/train/gradcam-stages"))


def test_parts_that_are_there_are_not_done_again(run: str, tmp_path: Path) -> None:
    """Only what is missing is made; pictures too."""
    run = _copy_run(run, tmp_path / "cam-resumed")
    settings = ("cam.overlays=all", "cam.part_size=16", "cam.workers=2")
    first = _cam(run, *settings)
    folder = tmp_path / "cam-resumed/cam/test/classic-stages"
    before = _rows(run, "cam/test/classic-stages")
    lost = [folder / "maps/part-00001.parquet", folder / f"overlays/{before['id'][3].as_py()}.jpg"]
    for path in lost:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.name != "cam.json"}
    again = _cam(run, *settings)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items() if path.parent.name != "images")
    assert [True, True] == [path.is_file() for path in lost]
    assert before.equals(_rows(run, "cam/test/classic-stages"))
    timed = ("seconds", "images_per_s", "workers")
    assert {key: value for key, value in first.items() if key not in timed} == {
        key: value for key, value in again.items() if key not in timed
    }


def test_another_model_starts_over(run: str, train: Train, tmp_path: Path) -> None:
    """Parts of the model that was there before are not mixed with those of the new one, nor its pictures kept."""
    other = train("cam-other", "train.epochs=1", "train.seed=5").run_uri
    run = _copy_run(run, tmp_path / "cam-replaced")
    settings = ("cam.part_size=16", "cam.workers=2", "cam.gallery=1")
    _cam(run, *settings)
    (tmp_path / "cam-replaced/cam/test/classic-stages/maps/part-00002.parquet").unlink()
    for key in ("model/model.safetensors", "model/model.json"):
        open_store(run).write(key, open_store(other).read(key))
    replaced = _cam(run, *settings)
    assert open_store(other).read_json("model/model.json")["weights_sha256"] == replaced["model_sha256"]
    predictions = pq.read_table(Path(other) / "predictions/test.parquet")
    rows = _rows(run, "cam/test/classic-stages")
    assert predictions["predicted"].to_pylist() == rows["predicted"].to_pylist()


def test_the_command_prints_cam_json(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`cam RUN --split val --json`; another data set of the same classes has a folder of its own."""
    cam(run, ["cam.overlays=none", "cam.method=layercam"], split="val", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == open_store(run).read_json("cam/val/layercam-stages/cam.json")
    assert [None] == list({entry["overlay"] for entry in printed["gallery"]})


def test_what_cannot_be_explained_is_refused(run: str, bands: Dataset, tmp_path: Path) -> None:
    """One paragraph each, and nothing is written."""
    unfinished = _copy_run(run, tmp_path / "cam-unfinished")
    record = open_store(unfinished).read_json("run.json")
    open_store(unfinished).write_json("run.json", {**record, "status": "stopped"})
    other = tmp_path / "cam-data"
    copy_dataset(bands, str(other))
    info = replace(
        bands.info, classes=("a", "b", "c"), counts=dict(zip("abc", bands.info.counts.values(), strict=True))
    )
    open_store(str(other)).write_json(INFO_KEY, info.to_json())
    refused = [
        (lambda: _cam(unfinished), "is stopped, not finished"),
        (lambda: _cam(str(tmp_path)), "is no run folder"),
        (lambda: _cam(run, split="holdout"), "--split 'holdout': splits are train, val, test"),
        (lambda: _cam(run, data_uri=str(other)), "the data set's classes are a, b, c, the model was trained on class0"),
        (lambda: _cam(run, "cam.method=gradcm"), r"command line: cam\.method: .*gradcm.*classic"),
        (lambda: _cam(run, "cam.layer=stages.9"), r"small_cnn has no such layer\. Nearest names: stages\."),
        (lambda: _cam(run, "cam.layer=stages.1", "cam.method=classic"), "classic is not exact for small_cnn"),
        (lambda: _cam(run, "train.epochs=3"), r"'train\.epochs=3' is no setting of this command"),
    ]
    for call, words in refused:
        with pytest.raises(InputError, match=words):
            call()
    assert not (tmp_path / "cam-unfinished/cam").exists()


def test_a_training_that_could_not_be_explained_is_refused_before_it_begins(train: Train, whole_storage: Path) -> None:
    """`cam.after` with a backbone without a known layer: no run folder is left."""
    with pytest.raises(InputError, match=r"no layer is known .*cam\.layer"):
        train("cam-vit", "model.backbone=vit_b_16", "loader.image_size=224", "cam.after=true")
    assert not (whole_storage / "cam-vit").exists()


@pytest.mark.slow
def test_real_oct_is_drawn_in_its_own_aspect(ray_cluster: Any, real_data: Path, tmp_path: Path) -> None:
    """Overlays of 512 x 496 and 768 x 496 files are 512 x 496 and 512 x 331, and as large as the plain pictures."""
    packed, runs = str(tmp_path / "packed"), str(tmp_path / "runs")
    settings = [f"data.uri={packed}", f"storage.uri={runs}", f"loader.cache_dir={tmp_path / 'cache'}"]
    assert 0 == main(["pack", str(real_data / "oct_real"), "--out", packed])
    train = ["train", "demo", *settings, "run.name=cam-oct", "train.epochs=1", "train.batch_size=16"]
    assert 0 == main([*train, "evaluate.bootstrap=100", "schedule.warmup_epochs=0"])
    shown = io.StringIO()
    run_cam(f"{runs}/cam-oct", split="train", overrides=["cam.overlays=all"], console=Console(file=shown, width=200))
    folder = tmp_path / "runs/cam-oct/cam/train/classic-stages"
    shapes = {path.name: cv2.imread(str(path)).shape for path in (folder / "overlays").iterdir()}
    assert {(496, 512, 3), (331, 512, 3)} <= set(shapes.values())
    assert shapes == {path.name: cv2.imread(str(path)).shape for path in (folder / "images").iterdir()}
    assert "explaining 35 images of train by classic at stages" in shown.getvalue()


@pytest.mark.slow
def test_a_wide_picture_has_its_map_where_the_model_saw_it(train: Train, run: str, tmp_path: Path) -> None:
    """On a data set of wide pictures with the same classes, in a folder that names it."""
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 255, (60, 180), dtype=np.uint8) for _ in range(12)]
    images = [cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures]
    splits = ["train", "val", "test", "test"] * 3
    other = write_dataset(tmp_path / "cam-wide", images, [0] * 4 + [1] * 4 + [2] * 4, splits=splits)
    _cam(run, "cam.overlays=all", data_uri=other.store.uri)
    (folder,) = (Path(run) / "cam").glob("test@*/classic-stages")
    assert f"test@{other.info.fingerprint[:8]}" == folder.parent.name
    assert {(60, 180, 3)} == {cv2.imread(str(path)).shape for path in (folder / "overlays").iterdir()}


@pytest.mark.slow
def test_a_search_explains_its_best(ray_cluster: Any, bands: Dataset, tmp_path: Path) -> None:
    """`tune` with `cam.after=true`: the chosen trial has maps, made once, after the search has ended."""
    space, storage = tmp_path / "space.yaml", tmp_path / "storage"
    space.write_text("optim.lr: {choice: [4.0e-3]}\n")
    places = [f"data.uri={bands.store.uri}", f"storage.uri={storage}", f"loader.cache_dir={tmp_path}/cache"]
    settings = ["run.name=cam-search", f"space={space}", "search.sampler=grid", "scale.num_workers=1", "cam.after=true"]
    shown = io.StringIO()
    result = run_search("demo", [*places, *settings, *SMALL], command="test", console=Console(file=shown, width=200))
    trial = Path(result.uri) / "trials" / str(result.board.best)
    assert 48 == json.loads((trial / "cam/test/classic-stages/cam.json").read_text())["n_images"]
    assert 1 == shown.getvalue().count("explaining 48 images of test")
    assert "finished" == json.loads((Path(result.uri) / "search.json").read_text())["status"]
