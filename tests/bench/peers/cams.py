"""The package grad-cam: `cams.py FILE...`, a question a line, an answer a line.

`{"threads": N}` gives Grad-CAM maps of all files by ResNet-18 at 224 px (new weights), as its README has it: tensors of
PIL and torchvision, batches of 16, the class with the highest logit.
"""

from __future__ import annotations

import json
import os
import sys

import loading  # noqa: F401  # before torchvision
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from torchvision import models, transforms

SIZE, BATCH = 224, 16
TRANSFORM = transforms.Compose(
    [transforms.Resize((SIZE, SIZE)), transforms.ToTensor(), transforms.Normalize((0.25,) * 3, (0.2,) * 3)]
)


def load(path: str) -> torch.Tensor:
    """One picture."""
    with Image.open(path) as picture:
        return TRANSFORM(picture.convert("RGB"))


def main(paths: list[str]) -> None:
    """Answer until the questions end; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    model = models.resnet18(num_classes=4).eval()
    with GradCAM(model=model, target_layers=[model.layer4[-1]]) as cam:
        for line in sys.stdin:
            torch.set_num_threads(json.loads(line)["threads"])
            for start in range(0, len(paths), BATCH):
                images = torch.stack([load(path) for path in paths[start : start + BATCH]])
                maps = cam(input_tensor=images, targets=None)
                assert maps.shape == (len(images), SIZE, SIZE), maps.shape
            print(json.dumps({"images": len(paths)}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
