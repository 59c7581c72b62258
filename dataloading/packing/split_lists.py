"""Splits that text files tell: one list of file names for each class and split, as `Layout.lists` says.

Owns how such lists are read and what is refused in them. Opens no image.
"""

from __future__ import annotations

from pathlib import Path

from cluster.errors import InputError
from cluster.terminal import printable
from dataloading.dataset import SPLITS
from dataloading.packing.layouts import Layout

__all__ = ["read_split_lists"]


def read_split_lists(home: Path, layout: Layout, class_name: str) -> dict[str, str]:
    """The split of each file of a class, by the file's name.

    Raises:
        InputError: a list that cannot be read, or a file in the lists of two splits.
    """
    found: dict[str, str] = {}
    for split in SPLITS:
        path = home / layout.list_path(class_name, split)
        for name in _read_names(path):
            if found.setdefault(name, split) != split:
                raise InputError(
                    f"{printable(str(path))}: {printable(repr(name))} is in the list of {found[name]} too. "
                    "A picture can be in one split only: take it out of one of the lists."
                )
    return found


def _read_names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{printable(str(path))} is not a readable list of file names ({error}).") from None
    return [line.strip() for line in lines if line.strip()]
