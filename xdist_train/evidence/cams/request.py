"""What was asked for, checked as far as it can be without a cluster: which run, images, method and layer.

Everything a user may have got wrong is refused here, before anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from cluster.config import load_config, parse_overrides
from cluster.errors import InputError
from cluster.runs import RunFolder, cam_folder, is_silent, open_run, read_config
from cluster.store import Store
from dataloading.dataset import SPLITS, Dataset, open_dataset
from dataloading.loading.cache import count_images
from xdist_train.config import CamConfig, Config, ModelConfig
from xdist_train.evidence.cams.choice import Choice, choose
from xdist_train.evidence.cams.worker import CamOrder
from xdist_train.evidence.evaluation import view_config
from xdist_train.models.backbones import build_model, require_channels
from xdist_train.models.export import ModelDescription, load_model, require_same_classes

__all__ = ["CamRequest", "check_method", "read_request"]

_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class CamRequest:
    """A job that can be done."""

    run: RunFolder
    dataset: Dataset
    description: ModelDescription
    order: CamOrder
    num_images: int
    resamples: int

    @property
    def store(self) -> Store:
        """Where the job leaves what it makes."""
        return self.run.store.child(self.order.folder)

    @property
    def num_parts(self) -> int:
        """Parts of the split."""
        return -(-self.num_images // self.order.config.part_size)


def read_request(
    run_uri: str,
    *,
    split: str = "",
    data_uri: str = "",
    overrides: Sequence[str] = (),
    cam: CamConfig | None = None,
) -> CamRequest:
    """A finished run and what is to be explained of it.

    Args:
        run_uri: of the run folder.
        split: train, val or test; empty is `cam.split`.
        data_uri: packed dataset; empty is the run's own.
        overrides: `cam.key=value`.
        cam: in place of the run's own section.

    Raises:
        InputError: no such run, split or layer, a run that has not finished, other classes, a method that does not
            fit, or another wrong setting.
    """
    run = open_run(run_uri)
    config = _config(run, overrides)
    _require_finished(run_uri, run.read_record())
    cam = _with_split(cam or config.cam, split)
    model, description = load_model(run_uri)
    dataset = open_dataset(data_uri or config.data.uri)
    require_same_classes(description, dataset.info.classes, dataset.store.uri)
    require_channels(description.model, dataset.info.channels, dataset.store.uri)
    loader = view_config(description, config.loader)
    choice = choose(model, description.model.backbone, cam, loader.image_size, description.model.in_channels)
    num_images = count_images(dataset, description.split, cam.split)
    order = CamOrder(
        run_uri=run.store.uri,
        folder=cam_folder(_split_name(cam.split, dataset, description), choice.name),
        data_uri=dataset.store.uri,
        split=cam.split,
        choice=choice,
        config=cam,
        loader=loader,
        precision=config.train.precision,
        facts=_facts(choice, cam, dataset, description, num_images),
    )
    return CamRequest(
        run=run,
        dataset=dataset,
        description=description,
        order=order,
        num_images=num_images,
        resamples=config.evaluate.bootstrap,
    )


def check_method(model: ModelConfig, num_classes: int, cam: CamConfig, image_size: int) -> Choice:
    """Whether a network that is yet to be trained can be explained as asked: as `read_request` will find it.

    Raises:
        InputError: it cannot.
    """
    network = build_model(replace(model, freeze="none"), num_classes)
    return choose(network, model.backbone, cam, image_size, model.in_channels)


def _config(run: RunFolder, overrides: Sequence[str]) -> Config:
    layers = parse_overrides(overrides)
    for argument in overrides:
        if not argument.startswith("cam."):
            raise InputError(
                f"command line: {argument!r} is no setting of this command, which takes cam.KEY=VALUE; "
                "all else is as the run was trained."
            )
    return load_config(Config, [read_config(run.store), *layers])


def _require_finished(run_uri: str, record: dict[str, Any]) -> None:
    status = record["status"]
    if status == "finished":
        return
    what = "went silent before its end" if is_silent(record) else f"is {status}, not finished"
    raise InputError(
        f"{run_uri!r} {what}, so it has no model to explain yet. Wait for it, or go on with it by the command that it "
        "was started with and run.resume=must (`xdist-train runs` lists runs and their status)."
    )


def _with_split(cam: CamConfig, split: str) -> CamConfig:
    if split and split not in SPLITS:
        raise InputError(f"--split {split!r}: splits are {', '.join(SPLITS)}.")
    return replace(cam, split=cast(Any, split)) if split else cam


def _split_name(split: str, dataset: Dataset, description: ModelDescription) -> str:
    """The split's name; that of another data set than the model's own tells which."""
    same = dataset.info.fingerprint == description.fingerprint
    return split if same else f"{split}@{dataset.info.fingerprint[:8]}"


def _facts(
    choice: Choice, cam: CamConfig, dataset: Dataset, description: ModelDescription, num_images: int
) -> dict[str, Any]:
    return {
        "schema": _SCHEMA,
        "method": choice.method,
        "layer": choice.layer,
        "split": cam.split,
        "scheme": description.split,
        "n_images": num_images,
        "fingerprint": dataset.info.fingerprint,
        "model_sha256": description.weights_sha256,
        "image_size": description.preprocessing.image_size,
        "part_size": cam.part_size,
        "faithfulness_images": cam.faithfulness,
    }
