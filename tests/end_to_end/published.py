"""Tiny trees in the layouts of published sets: names and folders are the set's, pictures are real where there are some.

Files are those of `$XDIST_REAL_DATA`, else the phantom's, as they are; but COVID-CT's are coloured, and PNG in part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2

from dataloading.packing.layouts import LAYOUTS
from dataloading.packing.phantom import PhantomConfig, run_phantom

__all__ = ["TREES", "Tree", "write_tree"]

_REAL = Path(os.environ.get("XDIST_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data")


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A set in small.

    Attributes:
        pictures: folder of real pictures by class.
        sizes: images by class of those pictures and split; one nameless split where the set has none.
        place: path of an image by class, split, its number in the class, and its own file name.
        coloured: whether files are written anew in colour.
    """

    pictures: str
    sizes: Mapping[str, Mapping[str, int]]
    place: Callable[[str, str, int, str], str]
    coloured: bool = False


def _chest_xray(name: str, split: str, number: int, _: str) -> str:
    child = f"IM-{115 + number:04}-0001" if name == "NORMAL" else f"person{number + 1}_bacteria_{number + 4}"
    return f"chest_xray/{split}/{name}/{child}.jpeg"


def _covid_ct(name: str, _: str, number: int, __: str) -> str:
    paper = f"2020.02.{10 + number}.20021584-p6-52%0.png"
    image = f"CT_COVID/{paper}" if name == "COVID19" else f"CT_NonCOVID/{number}.jpg"
    return f"COVID-CT/Images-processed/{image}"


TREES = {
    # No val, as in Mendeley's archive. Own names.
    "oct2017": Tree(
        pictures="oct_real",
        sizes={name: {"train": 7, "test": 2} for name in ("CNV", "DME", "DRUSEN", "NORMAL")},
        place=lambda name, split, _, file: f"OCT2017/{split}/{name}/{file}",
    ),
    "chest_xray": Tree(
        pictures="xray_real",
        sizes={"NORMAL": {"train": 8, "val": 1, "test": 4}, "PNEUMONIA": {"train": 12, "val": 1, "test": 4}},
        place=_chest_xray,
    ),
    "covid_xray": Tree(
        pictures="xray_real",
        sizes={name: {"train": n, "test": 3} for name, n in (("COVID19", 6), ("NORMAL", 8), ("PNEUMONIA", 14))},
        place=lambda name, split, number, _: f"Data/{split}/{name}/{name}({number}).jpg",
    ),
    "covid_ct": Tree(
        pictures="xray_real",
        sizes={name: {"train": 12, "val": 3, "test": 3} for name in ("COVID19", "NORMAL")},
        place=_covid_ct,
        coloured=True,
    ),
    # Class folders alone. Own names, which tell the patient.
    "auto": Tree(
        pictures="xray_real",
        sizes={name: {"": 10} for name in ("COVID19", "NORMAL", "PNEUMONIA")},
        place=lambda name, _, __, file: f"{name}/{file}",
    ),
}
"""By `pack.layout`."""


def write_tree(layout: str, root: Path, phantom: Path) -> None:
    """A set below `root`, from a phantom that is drawn at `phantom` where there are no real pictures."""
    tree = TREES[layout]
    for name, files in _find_pictures(tree, phantom).items():
        number = 0
        for split, size in tree.sizes[name].items():
            targets = []
            for _ in range(size):
                targets.append(root / tree.place(name, split, number, files[number].name))
                (_copy_coloured if tree.coloured else _copy)(files[number], targets[-1])
                number += 1
            if layout in LAYOUTS and LAYOUTS[layout].lists:
                _write_list(LAYOUTS[layout].lists, split, targets)


def _find_pictures(tree: Tree, phantom: Path) -> dict[str, list[Path]]:
    real = {name: sorted((_REAL / tree.pictures / name).glob("*.jpeg")) for name in tree.sizes}
    if all(real.values()):
        return real
    if not phantom.exists():
        config = PhantomConfig(num_images=72, images_per_patient=1, val_fraction=0, test_fraction=0, size_scale=0.25)
        run_phantom(phantom, config, workers=1)
    folders = sorted((phantom / "train").iterdir())
    return {name: sorted(folder.iterdir()) for name, folder in zip(tree.sizes, folders, strict=False)}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def _copy_coloured(source: Path, target: Path) -> None:
    """With a red mark in the corner, as journals print arrows: without any colour the set would be packed gray."""
    target.parent.mkdir(parents=True, exist_ok=True)
    picture = cv2.imread(str(source), cv2.IMREAD_COLOR_BGR)
    picture[:8, :8] = (0, 0, 255)
    assert cv2.imwrite(str(target), picture)


def _write_list(pattern: str, split: str, targets: list[Path]) -> None:
    class_folder = targets[0].parent
    path = class_folder.parents[1] / pattern.format(class_name=class_folder.name.removeprefix("CT_"), split=split)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{target.name}\n" for target in targets))
