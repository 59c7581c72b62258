"""Class activation maps of ResNet-18 at 224 px: images a second of the CAM workers, and what classic maps cost.

Real OCT files. The usual loop takes one image at a time: PIL, one forward with hooks, one backward through the whole
network, the map resized to the picture; on one thread and on all, the faster one counts. The package grad-cam takes
batches of 16, on all threads (`peers/cams.py`). CAM workers are Ray actors that have started, one a core, from packed
bytes to parquet parts, with the shortcut figures, without drawing. The faithfulness figure is a row of its own: it asks
the model three times more, on at most `cam.faithfulness` images of a split. Contenders take turns.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from cluster.config import dump_yaml
from cluster.runs import CONFIG, RUN
from cluster.session import connect
from cluster.store import open_store
from cluster.world import World
from dataloading.config import DataConfig
from dataloading.dataset import Dataset, open_dataset
from dataloading.loading.batch import normalise
from dataloading.loading.cache import cache_root, open_split
from dataloading.loading.loader import Loader
from dataloading.loading.plan import evaluation_requests
from tests.bench.peer_env import peer, peer_versions
from tests.bench.results import BenchSkippedError, Row, compare, measured, versions
from tests.dataloading.loading.packed import find_real_oct_files, write_dataset
from tests.records import RECORD
from xdist_train.config import CamConfig, Config, ModelConfig
from xdist_train.evidence.cams.request import read_request
from xdist_train.evidence.cams.worker import CamOrder, CamWorker
from xdist_train.models.backbones import build_model
from xdist_train.models.export import ModelDescription, Preprocessing, Selection, load_model, save_model
from xdist_train.models.torchvision_shim import declare_missing_operators

__all__ = ["rows"]

COMMAND = "python -m tests.bench cam"
ROUNDS = 5
REPEATS = 2  # of the list of files in the data set
LOOP_IMAGES = 12  # of the usual loop in a round
SIZE, MEAN, STD = 224, (0.25,), (0.2,)

Contender = Callable[[], int]


def rows() -> Iterable[Row]:
    """The bench's rows; needs the real OCT files."""
    files = find_real_oct_files()
    if not files:
        raise BenchSkippedError("no real OCT images; set XDIST_REAL_DATA")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as folder:
        run_uri = _write_run(files, Path(folder))
        yield from _throughput_rows(files, run_uri)
        yield from _cost_rows(files, run_uri)


def _throughput_rows(files: list[Path], run_uri: str) -> Iterator[Row]:
    cores = os.cpu_count() or 1
    model, _ = load_model(run_uri)
    with connect() as ray, peer("cams", *map(str, files)) as package:
        rates = _alternate(
            {
                "one thread": lambda: _usual_loop(model, files, 1),
                "all threads": lambda: _usual_loop(model, files, cores),
                "package": lambda: package.ask(threads=cores)["images"],
                "gradcam": _actors(ray, _order(run_uri, method="gradcam", faithfulness=0), cores),
                "classic": _actors(ray, _order(run_uri, method="classic", faithfulness=0), cores),
                "faithful": _actors(ray, _order(run_uri, method="classic", faithfulness=10**6), cores),
            },
            _images_per_s,
        )
    used = versions("torch", "ray", "opencv-python-headless") + "; peers: " + peer_versions("torch", "grad-cam")
    details = {"unit": "images/s", "versions": used, "command": COMMAND}
    about = f"{cores} CAM workers, {len(files) * REPEATS} real OCT images"
    best = max(("one thread", "all threads"), key=lambda name: statistics.median(rates[name]))
    loop, against = rates[best], f"the usual loop, {best}"
    yield compare(f"Grad-CAM, {about}", rates["gradcam"], against, loop, goal="ratio >= 5", **details)
    yield compare(f"classic CAM, {about}", rates["classic"], against, loop, goal="ratio >= 5", **details)
    yield compare(f"Grad-CAM, {about}", rates["gradcam"], "the package grad-cam", rates["package"], **details)
    yield compare(f"classic CAM, faithfulness of every image, {about}", rates["faithful"], against, loop, **details)
    for name in ("one thread", "all threads"):
        yield measured(f"Grad-CAM, the usual loop, {name}", rates[name], **details)
    yield measured("Grad-CAM, the package grad-cam, all threads", rates["package"], **details)


def _cost_rows(files: list[Path], run_uri: str) -> Iterator[Row]:
    """In this process, on one thread, by CPU time: what a worker costs beside loading and answering alone."""
    torch.set_num_threads(1)
    model, _ = load_model(run_uri)
    orders = {name: _order(run_uri, method=name, faithfulness=0) for name in ("classic", "gradcam")}
    plain = _PlainInference(orders["classic"])
    costs = _alternate(
        {
            **{name: _part(order) for name, order in orders.items()},
            "plain": plain.run,
            "loop": lambda: _usual_loop(model, files, 1),
        },
        _cpu_ms,
    )
    plain.close()
    details = {"unit": "CPU ms an image", "versions": versions("torch", "opencv-python-headless"), "command": COMMAND}
    what = "load, forward, maps, figures, parquet; one thread"
    against = {"plain inference": costs["plain"], "the usual loop": costs["loop"]}
    plainly, usual = against.items()
    yield compare(f"classic CAM: {what}", costs["classic"], *plainly, goal="ratio <= 1.3", **details)
    yield compare(f"Grad-CAM: {what}", costs["gradcam"], *plainly, **details)
    yield compare(f"Grad-CAM: {what}", costs["gradcam"], *usual, **details)
    yield measured("plain inference: load, forward, softmax; one thread", costs["plain"], **details)
    yield measured("Grad-CAM, the usual loop, one thread", costs["loop"], **details)


def _part(order: CamOrder) -> Contender:
    worker = CamWorker(order)
    worker.prepare()
    return lambda: worker.explain(0).images


def _write_run(files: list[Path], folder: Path) -> str:
    """A run folder as a training leaves it, of a network with new weights."""
    images = [path.read_bytes() for _ in range(REPEATS) for path in files]
    labels = sorted(number % 4 for number in range(len(images)))
    dataset: Dataset = write_dataset(
        folder / "data", images, labels, splits=["test"] * len(images), rows_per_shard=1000, rows_per_batch=1000
    )
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet18")
    store = open_store(str(folder / "run"))
    description = ModelDescription(
        classes=dataset.info.classes,
        preprocessing=Preprocessing(
            image_size=SIZE, fit="stretch", channels=1, mean=MEAN, std=STD, reduce_tolerance=0.9
        ),
        model=config,
        split="patient",
        fingerprint=dataset.info.fingerprint,
        selection=Selection(epoch=0, step=1, metric="mcc", value=0.0),
    )
    save_model(store, build_model(config, 4).state_dict(), description)
    store.write(CONFIG, dump_yaml(Config(data=DataConfig(uri=dataset.store.uri), model=config)).encode())
    store.write_json(RUN, RECORD)
    return store.uri


def _order(run_uri: str, **settings: Any) -> CamOrder:
    """Parts of an equal number of images for each core."""
    order = read_request(run_uri, cam=CamConfig(part_size=47, use_gpu="no", **settings)).order
    return replace(order, loader=replace(order.loader, cache_dir=f"{run_uri}-cache"))


def _actors(ray: Any, order: CamOrder, count: int) -> Contender:
    """All parts by actors that have started."""
    from ray.util import ActorPool

    actors = [ray.remote(CamWorker).options(num_cpus=0).remote(order) for _ in range(count)]
    ray.get([actor.prepare.remote() for actor in actors])
    parts = -(-order.facts["n_images"] // order.config.part_size)

    def run() -> int:
        pool = ActorPool(actors)
        return sum(done.images for done in pool.map_unordered(lambda actor, n: actor.explain.remote(n), range(parts)))

    return run


def _alternate(contenders: dict[str, Contender], measure: Callable[[Contender], float]) -> dict[str, list[float]]:
    """What each contender measures in each round, after one round to warm up."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS + 1):
        for name, contender in contenders.items():
            found[name].append(measure(contender))
    return {name: values[1:] for name, values in found.items()}


def _images_per_s(contender: Contender) -> float:
    started = time.perf_counter()
    images = contender()
    return images / (time.perf_counter() - started)


def _cpu_ms(contender: Contender) -> float:
    """CPU milliseconds of this process an image: they do not depend on what else runs."""
    started = time.process_time()
    images = contender()
    return 1000 * (time.process_time() - started) / images


def _usual_loop(model: nn.Module, files: list[Path], threads: int) -> int:
    """As tutorials have it: hooks keep the layer's output and gradient, `backward` goes through everything."""
    declare_missing_operators()
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose(
        [transforms.Resize((SIZE, SIZE)), transforms.ToTensor(), transforms.Normalize(MEAN * 3, STD * 3)]
    )
    torch.set_num_threads(threads)
    model.requires_grad_(True)
    kept: dict[str, Tensor] = {}
    layer = model.get_submodule("layer4")
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: kept.update(features=output.detach())),
        layer.register_full_backward_hook(lambda module, inputs, outputs: kept.update(gradients=outputs[0])),
    ]
    for path in files[:LOOP_IMAGES]:
        with Image.open(path) as picture:
            images = transform(picture.convert("RGB"))[None]
        logits = model(images)
        model.zero_grad()
        logits[0, int(logits.argmax())].backward()
        weights = kept["gradients"].mean(dim=(2, 3), keepdim=True)
        values = (weights * kept["features"]).sum(dim=1)[0].clamp(min=0).numpy()
        cv2.resize(values / (values.max() + 1e-7), (SIZE, SIZE))
    for handle in handles:
        handle.remove()
    return LOOP_IMAGES


class _PlainInference:
    """The first part's images through the loader and the model, and nothing else."""

    def __init__(self, order: CamOrder) -> None:
        model, description = load_model(order.run_uri)
        self._model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        dataset = open_dataset(order.data_uri)
        self._split = open_split(dataset, description.split, "test", cache_root(order.loader.cache_dir))
        device = torch.device("cpu")
        self._loader = Loader(self._split, dataset.info, order.loader, augment=None, seed=0, device=device, threads=1)
        self._order = order

    @torch.inference_mode()
    def run(self) -> int:
        """How many images were answered."""
        config, probabilities = self._order.config, []
        for batch in self._loader.load(evaluation_requests(config.part_size, 16, World())):
            images = normalise(batch.images, MEAN, STD).contiguous(memory_format=torch.channels_last)
            probabilities.append(self._model(images).double().softmax(dim=1))
        assert np.isfinite(torch.cat(probabilities).numpy()).all()
        return config.part_size

    def close(self) -> None:
        """Stop the loader's threads."""
        self._loader.close()
