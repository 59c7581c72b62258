"""The folder layouts in which well-known sets are published: a table, and whether a tree is one of them.

Owns names of folders, classes and lists. Reads nothing: a tree comes as the names of its folders. What a set needs
beyond a row of the table belongs in no other file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from dataloading.dataset import SPLITS

__all__ = ["LAYOUTS", "Layout", "Tree"]

Tree = Mapping[str, Set[str]]
"""Folders below each folder of a source that `Layout.places` names; splits by their plain names."""

_OPTIONAL = "val"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one published set lies on a disk.

    Attributes:
        classes: class by the name of its folder; the place of a class here is its label.
        images: folder that holds the class folders; without one they lie in train, val (may be missing) and test.
        lists: text file of the file names of a class and a split, where folders do not tell splits.
        patient: rule that `pack.patient=auto` tries first.
        repeats: folder beside the splits that holds the whole set once more.
    """

    classes: Mapping[str, str]
    images: str = ""
    lists: str = ""
    patient: str = ""
    repeats: str = ""

    @property
    def places(self) -> tuple[str, ...]:
        """Folders that hold class folders."""
        return (self.images,) if self.images else SPLITS

    def expected(self) -> str:
        """The layout in one line."""
        tree = f"{'|'.join(self.places)}/{'|'.join(self.classes)}"
        return f"{tree} and {self.list_path('CLASS', 'SPLIT')}" if self.lists else tree

    def list_path(self, class_name: str, split: str) -> str:
        """The list of a class and a split, relative to the folder that holds `images`."""
        return self.lists.format(class_name=class_name, split=split)

    def list_paths(self) -> list[str]:
        """All lists."""
        return [self.list_path(name, split) for name in self.classes.values() for split in SPLITS] * bool(self.lists)

    def differences(self, home: Path, tree: Tree) -> Iterator[str]:
        """How the folders of `tree`, at `home`, are not this layout; none where they are."""
        for place in self.places:
            found = tree.get(place, frozenset())
            if place == _OPTIONAL and place not in tree:
                continue
            if lacking := [f"{place}/{folder}" for folder in self.classes if folder not in found]:
                yield f"{', '.join(lacking)} missing"
            if others := sorted(found - self.classes.keys()):
                yield f"{', '.join(f'{place}/{folder}' for folder in others)} not in it"
        if lacking := [path for path in self.list_paths() if not (home / path).is_file()]:
            yield f"{', '.join(lacking)} missing"


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


LAYOUTS = {
    # Kermany 2018, retinal OCT. Mendeley's and Kaggle's archives; Mendeley's have no val.
    "oct2017": Layout(classes=_same("CNV", "DME", "DRUSEN", "NORMAL"), patient="oct2017"),
    # Kermany 2018, chest X-rays of children. Kaggle's archive holds everything twice, and 16 images in val.
    "chest_xray": Layout(classes=_same("NORMAL", "PNEUMONIA"), patient="chest_xray", repeats="chest_xray"),
    # UCSD COVID-CT, github.com/UCSD-AI4H/COVID-CT.
    "covid_ct": Layout(
        classes={"CT_NonCOVID": "NonCOVID", "CT_COVID": "COVID"},
        images="Images-processed",
        lists="Data-split/{class_name}/{split}CT_{class_name}.txt",
        patient="covid_ct",
    ),
    # Kaggle's "Chest X-ray (Covid-19 & Pneumonia)": names such as COVID19(12).jpg tell no patient, and there is no val.
    "covid_xray": Layout(classes=_same("COVID19", "NORMAL", "PNEUMONIA")),
}
