"""Loaders of other projects, one a process: `loading.py PEER FOLDER`, a question a line, an answer a line.

`{"make": OUT}` writes the images of FOLDER (an ImageFolder tree) to OUT in the peer's own format; `{"source": PLACE,
"cache": FOLDER or null}` runs one epoch of it and ends what Ray started. All take the same steps, two workers and
batches of 48, to contiguous float32 N x 3 x 224 x 224. CPU time is of this process, all below it that lives and what
ended and was waited for.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader

OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
if not list(Path(torch.__file__).parent.glob("lib/libtorch_cuda*")):
    # PyPI's torchvision is built for CUDA; beside a torch without it, it asks in vain for operators that none of this
    # uses.
    for operator in ("nms", "qnms"):
        OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision import transforms  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402

BATCH_SIZE, WORKERS, SIZE = 48, 2, 224
MEAN, STD = (0.19,) * 3, (0.2,) * 3
SHARD_IMAGES = 300

TRANSFORM = transforms.Compose(
    [
        transforms.RandomResizedCrop(SIZE, scale=(0.8, 1.0)),
        transforms.RandomRotation(15),
        transforms.ColorJitter(brightness=0.2, contrast=0.2),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)
Batches = Iterator[torch.Tensor]


def load_bytes(data: bytes) -> torch.Tensor:
    """One JPEG, through all steps."""
    return TRANSFORM(Image.open(io.BytesIO(data)).convert("RGB"))


def load_item(item: dict[str, Any]) -> torch.Tensor:
    """The same of what litData kept."""
    return load_bytes(item["image"])


def list_tree(folder: str) -> list[tuple[str, int]]:
    """Paths and labels, in an order of their own."""
    paths = sorted(Path(folder).glob("*/*.jpeg"))
    return [(str(path), int(path.parent.name)) for path in paths]


def read_item(item: tuple[str, int]) -> dict[str, Any]:
    """What litData keeps of one image."""
    return {"image": Path(item[0]).read_bytes(), "label": item[1]}


def make_webdataset(folder: str, out: str) -> None:
    """Tar shards of 300 images."""
    import webdataset as wds

    Path(out).mkdir()
    items = list_tree(folder)
    for number, first in enumerate(range(0, len(items), SHARD_IMAGES)):
        with wds.TarWriter(f"{out}/{number:05d}.tar") as writer:
            for at, (path, label) in enumerate(items[first : first + SHARD_IMAGES], first):
                writer.write({"__key__": f"{at:08d}", "jpg": Path(path).read_bytes(), "cls": label})


def make_litdata(folder: str, out: str) -> None:
    """Chunks of 64 MB."""
    import litdata

    litdata.optimize(fn=read_item, inputs=list_tree(folder), output_dir=out, chunk_bytes="64MB", num_workers=1)
    multiprocessing.set_start_method("fork", force=True)  # as it was: it leaves `spawn` behind


def make_streaming(folder: str, out: str) -> None:
    """MDS shards of 64 MiB."""
    from streaming import MDSWriter

    with MDSWriter(out=out, columns={"image": "bytes", "label": "int"}, size_limit=1 << 26) as writer:
        for item in list_tree(folder):
            writer.write(read_item(item))


def load_torchvision(source: str, cache: str | None) -> Batches:
    """ImageFolder and DataLoader."""
    loader = DataLoader(ImageFolder(source, TRANSFORM), BATCH_SIZE, shuffle=True, num_workers=WORKERS)
    return (images for images, _ in loader)


def load_timm(source: str, cache: str | None) -> Batches:
    """`create_loader` with its own transforms; the rotation, which it has not, is torchvision's."""
    from timm.data import ImageDataset, create_loader

    dataset = ImageDataset(source)
    loader = create_loader(
        dataset,
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH_SIZE,
        is_training=True,
        use_prefetcher=False,
        scale=(0.8, 1.0),
        hflip=0.5,
        color_jitter=(0.2, 0.2, 0.0),
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=WORKERS,
        persistent_workers=False,
        pin_memory=False,
        device=torch.device("cpu"),
    )
    dataset.transform.transforms.insert(1, transforms.RandomRotation(15))
    return (images for images, _ in loader)


def load_webdataset(source: str, cache: str | None) -> Batches:
    """Tar shards, shuffled."""
    import webdataset as wds

    shards = sorted(map(str, Path(source).glob("*.tar")))
    dataset = wds.WebDataset(shards, shardshuffle=100).shuffle(500).to_tuple("jpg", "cls")
    dataset = dataset.map_tuple(load_bytes, int).batched(BATCH_SIZE)
    return (images for images, _ in wds.WebLoader(dataset, batch_size=None, num_workers=WORKERS))


def load_litdata(source: str, cache: str | None) -> Batches:
    """StreamingDataset and StreamingDataLoader, local or from S3."""
    import litdata

    options = {}
    if source.startswith("s3://"):
        from litdata.streaming import downloader

        options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"  # which it has no option for
    dataset = litdata.StreamingDataset(
        source, cache_dir=cache, shuffle=True, storage_options=options, transform=load_item
    )
    return iter(litdata.StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=WORKERS))


def load_streaming(source: str, cache: str | None) -> Batches:
    """StreamingDataset and DataLoader, local or from S3."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Images(StreamingDataset):
        def __getitem__(self, index: Any) -> torch.Tensor:
            return load_bytes(super().__getitem__(index)["image"])

    clean_stale_shared_memory()
    remote, local = (source, cache) if source.startswith("s3://") else (None, source)
    dataset = Images(remote=remote, local=local, shuffle=True, batch_size=BATCH_SIZE)
    return iter(DataLoader(dataset, BATCH_SIZE, num_workers=WORKERS))


def load_ray(source: str, cache: str | None) -> Batches:
    """Ray Data on a local cluster of two CPUs."""
    import ray

    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)

    def apply(row: dict[str, Any]) -> dict[str, Any]:
        import loading  # in Ray's processes too it comes before torchvision

        return {"image": loading.TRANSFORM(loading.Image.fromarray(row["image"])).numpy()}

    def come_up() -> None:
        import loading

        loading.time.sleep(1)  # so that no process takes two

    come_up_remotely = ray.remote(come_up)
    ray.get([come_up_remotely.remote() for _ in range(WORKERS)])  # as other peers are warm before their first batch
    dataset = ray.data.read_images(source, mode="RGB").map(apply)
    return (batch["image"] for batch in dataset.iter_torch_batches(batch_size=BATCH_SIZE))


def load_dali(source: str, cache: str | None) -> Batches:
    """`readers.file` and a fused decode-and-crop, on two CPU threads."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH_SIZE, num_threads=WORKERS, device_id=None)
    def build() -> Any:
        data, _ = fn.readers.file(file_root=source, random_shuffle=True, name="files")
        images = fn.decoders.image_random_crop(data, output_type=types.RGB, random_area=[0.8, 1.0])
        images = fn.resize(images, size=[SIZE, SIZE])
        images = fn.rotate(images, angle=fn.random.uniform(range=[-15.0, 15.0]), keep_size=True, fill_value=0)
        tone = [fn.random.uniform(range=[0.8, 1.2]) for _ in range(2)]
        images = fn.brightness_contrast(images, brightness=tone[0], contrast=tone[1])
        return fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip(),
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            dtype=types.FLOAT,
            output_layout="CHW",
        )

    pipeline = build()
    pipeline.build()
    steps = pipeline.reader_meta("files")["epoch_size"] // BATCH_SIZE
    return (torch.from_numpy(pipeline.run()[0].as_array()) for _ in range(steps))


MAKERS: dict[str, Callable[[str, str], None]] = {
    "webdataset": make_webdataset,
    "litdata": make_litdata,
    "streaming": make_streaming,
}
LOADERS: dict[str, Callable[[str, str | None], Batches]] = {
    "torchvision": load_torchvision,
    "timm": load_timm,
    "webdataset": load_webdataset,
    "litdata": load_litdata,
    "streaming": load_streaming,
    "ray": load_ray,
    "dali": load_dali,
}


def cpu_s() -> float:
    """Seconds of this process, of all that live below it and of what these have waited for."""
    used: dict[int, tuple[int, float]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        used[int(path.parent.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    mine = {os.getpid()}
    while grown := {pid for pid, (parent, _) in used.items() if parent in mine} - mine:
        mine |= grown
    return sum(used[pid][1] for pid in mine) / os.sysconf("SC_CLK_TCK")


def run_epoch(peer: str, source: str, cache: str | None) -> dict[str, float]:
    """One epoch; seconds are from building the loader, and `first_*` of them until its first batch was there."""
    start_cpu_s, start_s, images, first = cpu_s(), time.perf_counter(), 0, (0.0, 0.0)
    for batch in LOADERS[peer](source, cache):
        assert (batch.dtype, batch.shape[1:], batch.is_contiguous()) == (torch.float32, (3, SIZE, SIZE), True)
        images += len(batch)
        if images == len(batch):
            first = time.perf_counter() - start_s, cpu_s() - start_cpu_s
    wall_s, used_s = time.perf_counter() - start_s, cpu_s() - start_cpu_s
    return {"images": images, "wall_s": wall_s, "cpu_s": used_s, "first_s": first[0], "first_cpu_s": first[1]}


def answer(peer: str, folder: str, question: dict[str, Any]) -> dict[str, Any]:
    """To one question."""
    if "make" in question:
        MAKERS[peer](folder, question["make"])
        return {"made": question["make"]}
    try:
        return run_epoch(peer, question["source"], question.get("cache"))
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()  # its daemons would take a share of the others' turns


def main() -> None:
    """Answer until the questions end; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(answer(sys.argv[1], sys.argv[2], json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
