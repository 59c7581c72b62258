"""What each process of a CAM job does: explain a part of the split, and draw some of its images.

Both can be done again at any time with the same result; what a part leaves appears whole. Knows no Ray.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.runs import CAM_IMAGES, CAM_OVERLAYS, cam_part_key
from cluster.store import Store, open_store
from dataloading.config import LoaderConfig
from dataloading.dataset import open_dataset
from dataloading.loading.augment import plain_view
from dataloading.loading.batch import Batch, normalise
from dataloading.loading.cache import Split, cache_root, open_split
from dataloading.loading.loader import Loader, build_view
from dataloading.loading.plan import Request
from xdist_train.config import CamConfig
from xdist_train.evidence.cams.choice import Choice
from xdist_train.evidence.cams.faithfulness import REMOVALS, is_chosen, removed
from xdist_train.evidence.cams.geometry import map_on_picture, peak_px, upsample, warp_mask
from xdist_train.evidence.cams.localisation import (
    BLOB,
    MEAN_MAP,
    THRESHOLDS,
    Located,
    Placed,
    centred_blob,
    localise,
)
from xdist_train.evidence.cams.methods import Explainer, View
from xdist_train.evidence.cams.overlay import draw_overlay, encode_jpeg, shown_picture
from xdist_train.evidence.cams.parts import encode_part, maps_in, read_part
from xdist_train.evidence.cams.shortcut import border_of, energy_share, outside_tissue
from xdist_train.models.export import ModelDescription, load_model
from xdist_train.models.precision import Precision, resolve_precision

__all__ = ["CamOrder", "CamWorker", "picture_keys"]

_BATCH_SIZES = {"cpu": 16, "cuda": 128}

Columns = dict[str, Any]
Maps = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class CamOrder:
    """What the driver tells a worker: which model, which images, how, and where to leave it."""

    run_uri: str
    folder: str
    """Key of the job's folder in the run."""
    data_uri: str
    split: str
    choice: Choice
    config: CamConfig
    loader: LoaderConfig
    """The view that evaluation shows, and this node's cache."""
    precision: str
    facts: dict[str, Any]
    """What every part must have been made under."""


@dataclass(frozen=True)
class PartDone:
    """What a worker says of a part: images, and seconds that they took."""

    number: int
    images: int
    seconds: float


def picture_keys(image_id: int) -> tuple[str, str]:
    """Keys of an image's plain picture and overlay, in the job's folder."""
    return f"{CAM_IMAGES}/{image_id}.jpg", f"{CAM_OVERLAYS}/{image_id}.jpg"


class CamWorker:
    """One process: the model is loaded at the first call, the split opened on its own node."""

    def __init__(self, order: CamOrder) -> None:
        self._order = order
        self._size = order.loader.image_size

    def prepare(self) -> None:
        """Load everything, so that what is wrong is said before there is work."""
        torch.set_num_threads(self._order.config.cpus_per_worker)
        _ = self._explainer, self._loader

    def explain(self, number: int) -> PartDone:
        """Maps and figures of one part, written to the run's folder."""
        started, rows = time.perf_counter(), self._rows(number)
        done = [self._explain_batch(batch) for batch in self._loader.load(self._requests(rows))]
        columns = {name: np.concatenate([part[name] for part, _ in done]) for name in done[0][0]}
        maps = {name: np.concatenate([part[name] for _, part in done]) for name in done[0][1]}
        self._store.write(cam_part_key(number), encode_part(columns, maps, self._order.facts))
        return PartDone(number, len(rows), time.perf_counter() - started)

    def place_baselines(self, number: int, mean_map: Maps) -> tuple[int, dict[str, Placed]]:
        """A part's number, and the baselines against its masks: an image with a mask a row, in the order of rows."""
        rows = self._rows(number)
        masks = [mask for mask in self._masks(rows) if mask is not None and mask.any()]
        blob = centred_blob(*mean_map.shape)
        middle = (self._size / 2, self._size / 2)
        peak = peak_px(mean_map, self._size)
        return number, {
            BLOB: _placed([self._locate(blob, middle, mask) for mask in masks]),
            MEAN_MAP: _placed([self._locate(mean_map, peak, mask) for mask in masks]),
        }

    def draw(self, number: int, ids: Sequence[int]) -> int:
        """Picture and overlay of some images of one part; how many."""
        table = read_part(self._store, cam_part_key(number), ["id", "map", "map_scale", "height", "width"])
        places = {image_id: place for place, image_id in enumerate(table["id"].to_pylist())}
        maps, first = maps_in(table), number * self._order.config.part_size
        for image_id in ids:
            self._draw_one(first + places[image_id], image_id, maps[places[image_id]])
        return len(ids)

    def _draw_one(self, row: int, image_id: int, values: Maps) -> None:
        picture, source = shown_picture(self._split.image(row), self._order.config.picture_px)
        matrix = self._matrices(np.array([row]))[0]
        shown = (picture.shape[1], picture.shape[0])
        over = map_on_picture(values.clip(0), matrix, self._size, source, shown)
        for key, pixels in zip(picture_keys(image_id), (picture, draw_overlay(picture, over)), strict=True):
            self._store.write(key, encode_jpeg(pixels))

    def _rows(self, number: int) -> npt.NDArray[np.int64]:
        size = self._order.config.part_size
        return np.arange(number * size, min((number + 1) * size, self._split.num_images), dtype=np.int64)

    def _requests(self, rows: npt.NDArray[np.int64]) -> list[Request]:
        step = self._order.config.batch_size or _BATCH_SIZES[self._device.type]
        starts = range(0, len(rows), step)
        return [Request(-1, -1, index, start, rows[start : start + step]) for index, start in enumerate(starts)]

    def _explain_batch(self, batch: Batch) -> tuple[Columns, dict[str, Maps]]:
        """Columns and maps of a batch, as `encode_part` takes them."""
        labels = batch.labels.to(self._device)
        with self._arithmetic.context(self._device):
            view = self._explainer.look(self._images(batch.images))
            predicted = view.logits.argmax(dim=1)
            maps = self._explainer.maps(view, predicted)
            wrong = (predicted != labels).nonzero().flatten()
            of_label = maps.clone()
            if len(wrong):
                of_label[wrong] = self._explainer.maps(view, labels[wrong], wrong)
        chances = view.logits.detach().double().softmax(dim=1).gather(1, predicted[:, None])[:, 0].cpu().numpy()
        pixels = batch.images.permute(0, 2, 3, 1).cpu().numpy()
        rows, right = batch.rows.numpy(), (predicted == labels).cpu().numpy()
        columns: Columns = {
            "id": self._split.ids(rows),
            "label": self._names[batch.labels.cpu().numpy()],
            "predicted": self._names[predicted.cpu().numpy()],
            "method": np.full(len(rows), self._order.choice.method),
            "layer": np.full(len(rows), self._order.choice.layer),
            "probability": chances,
            **self._shortcut(maps.cpu(), pixels),
            **self._localise(rows, of_label.cpu()),
            **self._remove(rows, view, maps.cpu(), pixels, predicted, chances),
        }
        missing = np.where(right[:, None, None], np.float32(np.nan), of_label.cpu().numpy())
        return columns, {"map": maps.cpu().numpy(), "map_of_label": missing}

    def _images(self, pixels: Tensor) -> Tensor:
        facts, dtype = self._description.preprocessing, next(self._model.parameters()).dtype
        channels = self._description.model.in_channels
        return normalise(pixels.to(self._device), facts.mean, facts.std, channels, dtype, torch.channels_last)

    def _shortcut(self, maps: Tensor, pixels: npt.NDArray[np.uint8]) -> Columns:
        outside = [outside_tissue(_gray(picture)) for picture in pixels]
        undefined = np.array([place is None for place in outside])
        shape = next((place.shape for place in outside if place is not None), (1, 1))
        places = np.stack([np.zeros(shape, np.float32) if place is None else place for place in outside])
        share = energy_share(maps, torch.from_numpy(places)).double().numpy()
        return {
            "border_share": energy_share(maps, self._border.expand(len(maps), -1, -1)).double().numpy(),
            "outside_share": np.where(undefined, np.nan, share),
            "outside_area": np.where(undefined, np.nan, places.mean(axis=(1, 2))),
        }

    def _localise(self, rows: npt.NDArray[np.int64], maps: Tensor) -> Columns:
        """Of the true class's maps, where there are masks."""
        found: list[Located | None] = [
            None if mask is None else self._locate(values.numpy(), peak_px(values.numpy(), self._size), mask)
            for mask, values in zip(self._masks(rows), maps, strict=True)
        ]
        nothing = np.full(len(THRESHOLDS), np.nan, np.float32)
        return {
            "pointing_hit": np.array([np.nan if item is None else item.hit for item in found], np.float64),
            "energy_inside": np.array([np.nan if item is None else item.energy for item in found]),
            "iou": np.stack([nothing if item is None else item.iou for item in found]),
        }

    def _locate(self, values: npt.NDArray[Any], peak: tuple[float, float], mask: npt.NDArray[Any]) -> Located | None:
        large = upsample(torch.from_numpy(np.asarray(values, np.float32))[None], self._size)[0].numpy()
        return localise(large, peak, mask, self._size / max(values.shape))

    def _masks(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.bool_] | None]:
        """As the model's input would show them."""
        encoded = self._split.masks(self._split.records(rows))
        pairs = zip(encoded, self._matrices(rows), strict=True)
        return [None if mask is None else warp_mask(mask, matrix, self._size) for mask, matrix in pairs]

    def _matrices(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        view = build_view(self._order.loader, self._split.dataset.info)
        return plain_view(view, self._split.widths(rows), self._split.heights(rows)).matrices

    def _remove(
        self,
        rows: npt.NDArray[np.int64],
        view: View,
        maps: Tensor,
        pixels: npt.NDArray[np.uint8],
        predicted: Tensor,
        chances: npt.NDArray[np.float64],
    ) -> Columns:
        """By how much the probability of the predicted class falls without some pixels, for the images chosen."""
        wanted, total = self._order.config.faithfulness, self._split.num_images
        drops = np.full((len(REMOVALS), len(rows)), np.nan)
        chosen = [place for place, row in enumerate(rows.tolist()) if is_chosen(row, total, wanted)]
        if chosen:
            ids = self._split.ids(rows)
            altered = [removed(pixels[place], maps[place], int(ids[place])) for place in chosen]
            for number, removal in enumerate(REMOVALS):
                batch = torch.from_numpy(np.stack([pictures[removal] for pictures in altered])).permute(0, 3, 1, 2)
                left = self._probabilities(batch).gather(1, predicted[chosen][:, None])[:, 0].cpu().numpy()
                drops[number, chosen] = chances[chosen] - left
        return {f"drop_{removal}": drops[number] for number, removal in enumerate(REMOVALS)}

    @torch.no_grad()
    def _probabilities(self, pixels: Tensor) -> Tensor:
        with self._arithmetic.context(self._device):
            logits: Tensor = self._model(self._images(pixels))
        return logits.double().softmax(dim=1)

    @cached_property
    def _store(self) -> Store:
        return open_store(self._order.run_uri).child(self._order.folder)

    @cached_property
    def _device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() and self._order.config.use_gpu != "no" else "cpu")

    @cached_property
    def _arithmetic(self) -> Precision:
        return resolve_precision(self._order.precision, self._device)

    @cached_property
    def _loaded(self) -> tuple[torch.nn.Module, ModelDescription]:
        return load_model(self._order.run_uri)

    @property
    def _description(self) -> ModelDescription:
        return self._loaded[1]

    @cached_property
    def _model(self) -> torch.nn.Module:
        # One memory layout for images and convolutions: on a CPU a fifth faster.
        model = self._loaded[0].to(self._device)
        return cast(torch.nn.Module, model.to(memory_format=torch.channels_last))  # type: ignore[call-overload]

    @cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self._model, self._order.choice.layer, self._order.choice.method)

    @cached_property
    def _split(self) -> Split:
        order, loader = self._order, self._order.loader
        where = cache_root(loader.cache_dir)
        dataset = open_dataset(order.data_uri)
        return open_split(dataset, self._description.split, order.split, where, limit_gib=loader.cache_limit_gib)

    @cached_property
    def _loader(self) -> Loader:
        order = self._order
        return Loader(
            self._split,
            self._split.dataset.info,
            order.loader,
            augment=None,
            seed=0,
            device=self._device,
            threads=order.config.cpus_per_worker,
        )

    @cached_property
    def _names(self) -> npt.NDArray[Any]:
        return np.array(self._description.classes, dtype=object)

    @cached_property
    def _border(self) -> Tensor:
        return border_of(self._size)


def _gray(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A picture [s, s, C] as gray [s, s]."""
    return picture[:, :, 0] if picture.shape[2] == 1 else np.rint(picture.mean(axis=2)).astype(np.uint8)


def _placed(found: Sequence[Located | None]) -> Placed:
    """Columns of what was located; none is missing, since its mask is in view."""
    located = [item for item in found if item is not None]
    return Placed(
        np.array([item.hit for item in located], np.float64),
        np.array([item.energy for item in located], np.float64),
        np.array([item.iou for item in located], np.float64).reshape(-1, len(THRESHOLDS)),
    )
