"""What a worker makes of phantom images with masks, and what the set's summary says of it. No Ray here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest
import torch

from cluster.config import dump_yaml
from cluster.runs import CONFIG, RUN, cam_part_key
from cluster.store import Store, open_store
from dataloading.config import DataConfig, LoaderConfig, PackConfig
from dataloading.dataset import Dataset, open_dataset
from dataloading.packing.pack import run_pack
from dataloading.packing.phantom import PhantomConfig, run_phantom
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, write_dataset
from tests.records import RECORD
from xdist_train.config import CamConfig, Config, ModelConfig
from xdist_train.evidence.cams.faithfulness import REMOVALS
from xdist_train.evidence.cams.localisation import BLOB, MEAN_MAP
from xdist_train.evidence.cams.parts import maps_in, read_part
from xdist_train.evidence.cams.request import CamRequest, read_request
from xdist_train.evidence.cams.summary import SUMMARY_COLUMNS, figures_of, mean_of_maps, pointing_line
from xdist_train.evidence.cams.worker import CamWorker
from xdist_train.evidence.evaluation import run_evaluation
from xdist_train.models.backbones import build_model
from xdist_train.models.export import ModelDescription, Preprocessing, Selection, save_model

_SIZE = 64


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """96 small phantom images, packed with their masks."""
    folder = tmp_path_factory.mktemp("phantom")
    run_phantom(folder / "images", PhantomConfig(num_images=96, size_scale=0.2))
    run_pack(folder / "images", open_store(str(folder / "packed")), PackConfig(workers=1))
    return open_dataset(str(folder / "packed"))


@pytest.fixture(scope="module")
def run(phantom: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run folder of a network with new weights, as a training leaves it."""
    return _write_run(tmp_path_factory.mktemp("runs") / "run", phantom, ModelConfig(backbone="small_cnn"))


def _write_run(folder: Path, data: Dataset, model: ModelConfig, *, split: str = "patient", own: bool = False) -> Store:
    """`own` takes each picture by its own mean and deviation."""
    store, info = open_store(str(folder)), data.info
    torch.manual_seed(0)
    facts = Preprocessing(
        image_size=_SIZE,
        fit="stretch",
        channels=1,
        mean=() if own else info.mean,
        std=() if own else info.std,
        reduce_tolerance=0.9,
        normalise="image" if own else "fixed",
    )
    description = ModelDescription(
        classes=info.classes,
        preprocessing=facts,
        model=model,
        split=split,
        fingerprint=info.fingerprint,
        selection=Selection(epoch=0, step=1, metric="mcc", value=0.0),
    )
    save_model(store, build_model(model, len(info.classes)).state_dict(), description)
    config = Config(
        data=DataConfig(uri=data.store.uri), model=model, loader=LoaderConfig(cache_dir=f"{store.uri}-cache")
    )
    store.write(CONFIG, dump_yaml(config).encode())
    store.write_json(RUN, {**RECORD, "test_evaluations": 0})
    return store


def _explained(run: Store, **settings: Any) -> tuple[CamRequest, CamWorker, pa.Table]:
    """All parts of train by one worker."""
    request = read_request(run.uri, cam=CamConfig(split="train", part_size=20, batch_size=7, **settings))
    worker = CamWorker(request.order)
    for number in range(request.num_parts):
        worker.explain(number)
    tables = [read_part(request.store, cam_part_key(number)) for number in range(request.num_parts)]
    return request, worker, pa.concat_tables(tables)


def test_rows_are_those_of_evaluation(run: Store) -> None:
    """The same images in the same order, the same answers: maps are of what evaluation saw."""
    _require_rows_of_evaluation(run)


@pytest.mark.parametrize("method", ["auto", "gradcam", "scorecam"])
def test_one_logit_one_channel_and_own_figures_are_explained_as_evaluated(tmp_path: Path, method: str) -> None:
    """Outputs and input of another kind than the usual reach the maps as they reach the figures."""
    images = [encode_jpeg(speckled_picture(number, 70, 60)) for number in range(20)]
    labels, splits = [int(number >= 9) for number in range(20)], [*["train"] * 18, "val", "test"]
    data = write_dataset(tmp_path / "two", images, labels, splits=splits)
    model = ModelConfig(backbone="small_cnn", outputs="sigmoid", in_channels=1)
    run = _write_run(tmp_path / "run", data, model, split="given", own=True)
    request = _require_rows_of_evaluation(run, method=method, faithfulness=4)
    assert request.order.choice.method == ("classic" if method == "auto" else method)


def _require_rows_of_evaluation(run: Store, **settings: Any) -> CamRequest:
    request, _, rows = _explained(run, **settings)
    run_evaluation(run.uri, "train")
    with run.open_reader("predictions/train.parquet") as stream:
        predictions = pa.parquet.read_table(stream)
    assert predictions["id"].to_pylist() == rows["id"].to_pylist()
    assert predictions["label"].to_pylist() == rows["label"].to_pylist()
    probabilities = np.stack([predictions[name].to_numpy() for name in predictions.column_names[4:]], axis=1)
    assert np.abs(probabilities.max(axis=1) - rows["probability"].to_numpy()).max() < 1e-5
    return request


def test_figures_stand_where_they_are_defined(run: Store, phantom: Dataset) -> None:
    """Localisation where there is a mask, a second map where the answer is wrong, drops of the images chosen."""
    _, _, rows = _explained(run, faithfulness=10)
    has_mask = phantom.read_manifest(["has_mask"])["has_mask"]
    expected = has_mask.take(rows["id"]).to_pylist()
    assert 0 < sum(expected) < len(expected)
    for name in ("pointing_hit", "iou"):
        assert expected == rows[name].is_valid().to_pylist()
    wrong = pa.compute.not_equal(rows["label"], rows["predicted"]).to_pylist()
    assert wrong == rows["map_of_label"].is_valid().to_pylist()
    assert [10] * 3 == [sum(rows[f"drop_{removal}"].is_valid().to_pylist()) for removal in REMOVALS]
    assert 0 == rows["border_share"].null_count


def test_a_part_does_not_depend_on_its_worker(run: Store) -> None:
    """Bytes of the same part by two workers are equal, so a part that is done twice is no other part."""
    request, _, _ = _explained(run)
    before = request.store.read(cam_part_key(1))
    CamWorker(request.order).explain(1)
    assert before == request.store.read(cam_part_key(1))


def test_a_summary_of_the_set(run: Store, phantom: Dataset) -> None:
    """Localisation of all masks against both baselines, faithfulness, shares; one sentence for a terminal."""
    request, worker, rows = _explained(run)
    masked = rows.filter(rows["pointing_hit"].is_valid())
    of_label = maps_in(masked, "map_of_label")
    maps = np.where(np.isnan(of_label), maps_in(masked), of_label)
    mean_map = (mean_of_maps(np.zeros(maps.shape[1:]), maps) / len(maps)).astype(np.float32)
    placed = [worker.place_baselines(number, mean_map)[1] for number in range(request.num_parts)]
    baselines = {name: type(placed[0][name]).joined([part[name] for part in placed]) for name in (BLOB, MEAN_MAP)}
    assert [masked.num_rows] * 2 == [len(baseline.hits) for baseline in baselines.values()]
    patients = phantom.read_manifest(["patient"])["patient"].take(rows["id"]).to_pylist()
    figures = figures_of(rows.select(SUMMARY_COLUMNS), baselines, patients, phantom.info.classes, resamples=100)
    game = figures["localisation"]["pooled"]["pointing_game"]
    assert np.mean(masked["pointing_hit"].to_pylist()) == pytest.approx(game["value"])
    assert {"CNV", "DME", "DRUSEN"} == set(figures["localisation"]["per_class"])
    assert rows.num_rows == figures["faithfulness"]["n"]
    assert np.mean(rows["border_share"].to_pylist()) == pytest.approx(figures["shortcut"]["border"]["share"])
    assert f"on {masked.num_rows} images with a mask; centred blob 0." in pointing_line(figures)


def test_pictures_are_drawn_from_the_parts(run: Store) -> None:
    """Plain and overlay of the same size, by id."""
    request, worker, rows = _explained(run)
    ids = rows["id"].to_pylist()[20:22]
    assert 2 == worker.draw(1, ids)
    assert sorted(f"{number}.jpg" for number in ids) == request.store.list("overlays") == request.store.list("images")
