"""Lesion masks beside the images: which belongs to which, and whether it fits.

A mask lies in `<masks>/<split>/<class>/<name>.png` or `<masks>/<class>/<name>.png`, with its image's name. A mask
that does not fit is reported and left out; the image stays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import InputError
from cluster.terminal import printable
from dataloading.packing.images import is_coloured, read_image
from dataloading.packing.png import PNG_MAGIC
from dataloading.packing.rejection import RejectedError
from dataloading.packing.scan import MASKS, ImageFile, Scan

__all__ = ["MaskFolder", "find_masks", "read_mask"]


@dataclass(frozen=True)
class MaskFolder:
    """Masks by `split/class/name` or `class/name`, names without extension and outer spaces."""

    paths: Mapping[str, Path] = field(default_factory=dict)

    def of(self, image: ImageFile) -> Path | None:
        """The mask of an image, or None."""
        stem = image.name.rpartition(".")[0]
        keys = (f"{image.given_split}/{image.class_name}/{stem}", f"{image.class_name}/{stem}")
        return next((self.paths[key] for key in keys if key in self.paths), None)

    def count_unused(self, images: Sequence[ImageFile]) -> int:
        """Masks that belong to none of the images."""
        return len(self.paths) - len({path for image in images if (path := self.of(image)) is not None})


def find_masks(scan: Scan, folder: Path | None) -> MaskFolder:
    """The masks of a scanned source: in `folder`, else in `masks` where the classes or splits lie.

    Raises:
        InputError: `folder` was given and is none.
    """
    if folder is not None and not folder.is_dir():
        raise InputError(
            f"--masks {printable(repr(str(folder)))} is not a folder. Give the folder that holds the masks."
        )
    for place in [folder] if folder else [scan.root / MASKS, scan.root / scan.home / MASKS]:
        if place.is_dir():
            return MaskFolder({_key(path.relative_to(place)): path for path in _png_files(place)})
    return MaskFolder()


def read_mask(data: bytes, width_px: int, height_px: int) -> bytes:
    """The mask's bytes to pack: an 8-bit PNG of one channel, as large as its image turned upright.

    Raises:
        RejectedError: another format, size or number of channels.
    """
    if not data.startswith(PNG_MAGIC):
        raise RejectedError("not a PNG")
    mask = read_image(data, max_pixels=width_px * height_px)
    if is_coloured(mask.pixels) or mask.pixels.ndim == 3:
        raise RejectedError("has colours")
    height, width = mask.pixels.shape
    if (width, height) != (width_px, height_px):
        raise RejectedError(f"is {width} x {height}, its image {width_px} x {height_px}")
    return mask.data


def _png_files(folder: Path) -> list[Path]:
    """Regular files below a folder; links are not followed."""
    return [
        Path(parent) / name
        for parent, _, names in sorted(os.walk(folder))
        for name in sorted(names)
        if name.lower().endswith(".png") and not (Path(parent) / name).is_symlink()
    ]


def _key(path: Path) -> str:
    return "/".join([*(part.strip() for part in path.parts[:-1]), path.stem])
