"""A training as a plain script has it, for `python -m torch.distributed.run`: no Ray, no records, no checkpoints.

Its data set reads picture files, its DataLoader's collation decodes and changes them by the project's own functions,
so that what it lacks beside a run of ours is what a run does beside its data work.

    plain_training.py FOLDER NAME STEPS FILE...      FOLDER is where turns are taken

NAME is `PLAIN`, with torch's AdamW as it comes, or `FUSED`, with its fused form, which is the one that we take.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from dataloading.config import AugmentConfig
from dataloading.loading.augment import View, draw_augmentation, draw_uniforms
from dataloading.loading.batch import normalise
from dataloading.loading.opencv import _execute
from tests.bench.turns import TurnTaker
from xdist_train.models.torchvision_shim import import_torchvision_models

PLAIN, FUSED = "plain", "fused"
SIZE_PX, BATCH, CLASSES, LR = 96, 8, 4, 1e-3
MEAN, STD = (0.25,), (0.2,)

Sample = tuple[np.ndarray, int, int, int]


class _Files(Dataset[Sample]):
    """Encoded pictures with their labels and sizes; files repeated to the length that is wanted."""

    def __init__(self, paths: list[Path], length: int) -> None:
        self.paths, self.length = paths, length
        pictures = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
        self.sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures if picture is not None]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        number = index % len(self.paths)
        data = np.frombuffer(self.paths[number].read_bytes(), np.uint8)
        return data, index * CLASSES // self.length, *self.sizes[number]


def _collate(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [n, 1, S, S] and labels."""
    data, labels, widths, heights = zip(*samples, strict=True)
    start = int(torch.randint(2**31, ()))
    numbers = draw_augmentation(
        AugmentConfig(),
        View(image_size=SIZE_PX, mean_gray=MEAN[0]),
        np.array(widths, np.int64),
        np.array(heights, np.int64),
        draw_uniforms(0, 0, start, len(samples)),
    )
    images = np.empty((len(samples), SIZE_PX, SIZE_PX, 1), np.uint8)
    _execute(data, numbers, images, 0)
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels)


def main(folder: Path, name: str, paths: list[Path], steps: int) -> None:
    """Steps of one epoch, in turns."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: nn.Module = import_torchvision_models().resnet18(num_classes=CLASSES)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if size > 1:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=name == FUSED)
    data = _Files(paths, steps * BATCH * size)
    loader = DataLoader(data, BATCH, sampler=DistributedSampler(data, size, rank), collate_fn=_collate)
    turns = TurnTaker(folder, name, rank)
    model.train()
    batches = iter(loader)
    for step in range(steps):
        turns.before_step()
        images, labels = next(batches)
        pixels = normalise(images, MEAN, STD).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(pixels), labels)
        loss.backward()
        optimizer.step()
        if step % 10 == 0 and rank == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [Path(name) for name in sys.argv[4:]], int(sys.argv[3]))
