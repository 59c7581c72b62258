"""Which files of a source folder are images of which class: by folders, by a published set's layout, or by a CSV.

Owns what is refused before any image is opened; the layouts of published sets are rows of `layouts.py`. Reads names
and lists, never images. A folder called `masks` holds no images; hidden files and what operating systems leave
behind do not exist here.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.errors import InputError
from cluster.terminal import printable
from dataloading.packing.images import IMAGE_SUFFIXES
from dataloading.packing.layouts import LAYOUTS, Tree
from dataloading.packing.rejection import NOT_AN_IMAGE, Rejected
from dataloading.packing.split_lists import read_split_lists

__all__ = ["MASKS", "ImageFile", "Scan", "check_classes", "scan_source"]

MASKS = "masks"

_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LEFT_BEHIND = {"__MACOSX", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file that should be an image; `source` is relative to the source folder, with `/`."""

    source: str
    class_name: str
    given_split: str | None = None
    patient: str | None = None  # where a CSV says so

    @property
    def name(self) -> str:
        """The file's own name."""
        return PurePosixPath(self.source).name


@dataclass(frozen=True)
class Scan:
    """What was found, images ordered by (class, source).

    Attributes:
        root: the source folder, links resolved.
        layout: a name of `LAYOUTS`, or `split/class`, `class` or `csv`.
        home: folder below root in which classes or splits lie; `.` without a wrapping folder.
    """

    root: Path
    layout: str
    home: str
    images: tuple[ImageFile, ...]
    rejected: tuple[Rejected, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the place of a name is its label: the layout's order, else the alphabet's."""
        found = {image.class_name for image in self.images}
        own = LAYOUTS[self.layout].classes.values() if self.layout in LAYOUTS else sorted(found)
        return tuple(name for name in own if name in found)


def scan_source(source: Path, csv_path: Path | None = None, skip: Path | None = None, *, layout: str = "auto") -> Scan:
    """Find the images of a source folder.

    Args:
        source: the folder.
        csv_path: list with `path,label[,patient][,split]`, paths relative to `source`; replaces the folders' say.
        skip: folder that holds no images (masks that lie elsewhere than in `masks`).
        layout: a name of `LAYOUTS`; `auto` takes the one that the folders are exactly, else folders as they are.

    Raises:
        InputError: nothing there, not the layout, fewer than two classes, a class in val or test that train lacks,
            a path or link that leaves the folder, or a list that cannot be read.
    """
    if csv_path and layout != "auto":
        raise InputError(f"--csv and pack.layout={layout} both say where images lie. Give one of them.")
    if not source.is_dir():
        raise InputError(f"SRC {_shown(source)} is not a folder. Give the folder that holds the images.")
    root = source.resolve()
    try:
        scan = _scan_csv(root, csv_path) if csv_path else _scan_folders(root, skip.resolve() if skip else None, layout)
    except OSError as error:
        raise InputError(f"SRC {_shown(source)} cannot be read: {printable(str(error))}.") from None
    check_classes(((image.class_name, image.given_split) for image in scan.images), f"SRC {_shown(source)}")
    return scan


def check_classes(found: Iterable[tuple[str, str | None]], where: str) -> None:
    """Refuse what no classifier can be trained on, from (class, given split) of each image.

    Raises:
        InputError: no images, one class, or a class in val or test that train lacks.
    """
    by_split: dict[str | None, set[str]] = {}
    for class_name, split in found:
        by_split.setdefault(split, set()).add(class_name)
    classes = set().union(*by_split.values())
    if not classes:
        raise InputError(
            f"{where} has no images in class folders. Expected train|val|test/CLASS/FILE, CLASS/FILE, or --csv LIST."
        )
    if len(classes) == 1:
        raise InputError(
            f"{where} has one class only, {_shown(*classes)}. A classifier needs two or more: one folder a class."
        )
    for split in {"val", "test"} & by_split.keys():
        if lacking := by_split[split] - by_split.get("train", set()):
            raise InputError(
                f"{where}: {split} has the class {_shown(*sorted(lacking))}, which train lacks. "
                "Name the class folders alike, or give all images as class folders without train, val and test."
            )


def _scan_folders(root: Path, skip: Path | None, layout: str) -> Scan:
    walk = _Walk(root, skip)
    home = walk.home()
    name = _layout_of(walk, home, layout)
    if name in LAYOUTS and LAYOUTS[name].lists:
        return _scan_lists(walk, home, name)
    return _scan_tree(walk, home, name)


def _layout_of(walk: _Walk, home: Path, wanted: str) -> str:
    """The name in `LAYOUTS` of what lies at home; `auto` where it is none of them.

    Raises:
        InputError: not the layout that is wanted by name.
    """
    tree = walk.tree(home)
    if wanted == "auto":
        return next((name for name, layout in LAYOUTS.items() if not any(layout.differences(home, tree))), wanted)
    if differences := list(LAYOUTS[wanted].differences(home, tree)):
        raise InputError(
            f"SRC {_shown(home)} is not in the layout pack.layout={wanted}, which looks for "
            f"{LAYOUTS[wanted].expected()}: {printable('; '.join(differences))}. "
            "Give the folder that holds these, or leave pack.layout at auto, which takes other folders too."
        )
    return wanted


def _scan_tree(walk: _Walk, home: Path, layout: str) -> Scan:
    """Images by class folders, which may lie in folders of splits."""
    folders, loose = walk.entries(home)
    repeats = LAYOUTS[layout].repeats if layout in LAYOUTS else ""
    splits = {folder: _split_name(folder) for folder in folders if not repeats or folder.name.strip() != repeats}
    given = [folder for folder, split in splits.items() if split]
    if given and len(given) < len(splits):
        others = _shown(*(folder.name for folder, split in splits.items() if not split))
        raise InputError(
            f"SRC {_shown(walk.root)} mixes train, val and test with other folders: {others}. Move those away."
        )
    images, rejected = [], walk.outside(loose)
    parents = list(splits.items()) if given else [(home, None)]
    for parent, split in parents:
        class_folders, outside = walk.entries(parent)
        if split:
            rejected += walk.outside(outside)
        for folder in class_folders:
            found, refused = walk.images(folder, split)
            images += found
            rejected += refused
    found_as = layout if layout in LAYOUTS else "split/class" if given else "class"
    return _ordered(Scan(walk.root, found_as, walk.relative(home), tuple(images), tuple(rejected)))


def _scan_lists(walk: _Walk, home: Path, name: str) -> Scan:
    """Images by class folders, their splits by lists; what no list names is no part of the set."""
    layout = LAYOUTS[name]
    for path in layout.list_paths():
        walk.check_link(home / path)
    (place,) = (folder for folder in walk.entries(home)[0] if folder.name.strip() == layout.images)
    class_folders, loose = walk.entries(place)
    images, rejected = [], walk.outside(loose)
    for folder in class_folders:
        class_name = layout.classes[folder.name.strip()]
        split_of = read_split_lists(home, layout, class_name)
        found, refused = walk.images(folder, None)
        rejected += refused
        for image in found:
            if split := split_of.get(image.name):
                images.append(ImageFile(image.source, class_name, split))
            else:
                rejected.append(Rejected(image.source, "in no list of a split"))
        missing = sorted(split_of.keys() - {image.name for image in found})
        rejected += [Rejected(_storable(f"{walk.relative(folder)}/{file}"), "no such file") for file in missing]
    return _ordered(Scan(walk.root, name, walk.relative(home), tuple(images), tuple(rejected)))


def _split_name(folder: Path) -> str | None:
    return _SPLIT_NAMES.get(folder.name.strip().lower())


class _Walk:
    """Entries below a root that may be looked at, and a refusal of links that lead elsewhere."""

    def __init__(self, root: Path, skip: Path | None) -> None:
        self.root = root
        self.skip = skip

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def tree(self, home: Path) -> Tree:
        """Folders below those at home that some layout names; class folders, which may be large, are not listed."""
        places = {place for layout in LAYOUTS.values() for place in layout.places}
        tree: dict[str, set[str]] = {}
        for folder in self.entries(home)[0]:
            place = _split_name(folder) or folder.name.strip()
            if place in places:
                tree.setdefault(place, set()).update(below.name.strip() for below in self.entries(folder)[0])
        return tree

    def home(self) -> Path:
        """The folder of splits or classes: below any folders that only wrap it, such as `OCT2017 `."""
        home = self.root
        while True:
            folders, files = self.entries(home)
            if len(folders) != 1 or any(_images(files)) or _split_name(folders[0]):
                return home
            if not self.entries(folders[0])[0]:
                return home
            home = folders[0]

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """(folders, everything else) directly in a folder, sorted by name."""
        folders, files = [], []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name in _LEFT_BEHIND:
                    continue
                path = Path(entry.path)
                if entry.is_symlink():
                    self.check_link(path)
                if not entry.is_dir():
                    files.append(path)
                elif entry.name.strip() != MASKS and path != self.skip:
                    folders.append(path)
        return folders, files

    def outside(self, files: list[Path]) -> list[Rejected]:
        """Images beside the class folders; other files there, such as a README, are no images and not meant as such."""
        return [Rejected(_storable(self.relative(file)), "outside any class folder") for file in _images(files)]

    def images(self, folder: Path, split: str | None) -> tuple[list[ImageFile], list[Rejected]]:
        """All files of a class folder and below it: images by their extension, and the others."""
        images, rejected = [], []
        for path in self._files_below(folder):
            source = self.relative(path)
            if (reason := _refusal(path, source)) is None:
                images.append(ImageFile(source, folder.name.strip(), split))
            else:
                rejected.append(Rejected(_storable(source), reason))
        if not images:
            raise InputError(
                f"The class folder {_shown(folder)} holds no images ({len(rejected)} other files). "
                "Remove it, or put the class's images there."
            )
        return images, rejected

    def _files_below(self, folder: Path) -> Iterator[Path]:
        folders, files = self.entries(folder)
        yield from files
        for below in folders:
            yield from self._files_below(below)

    def check_link(self, path: Path) -> None:
        if not path.resolve().is_relative_to(self.root):
            raise InputError(
                f"{_shown(path)} is a link that leaves SRC {_shown(self.root)}. "
                "Put the files themselves there, or give the folder that holds them."
            )
        if path.is_dir():
            raise InputError(
                f"{_shown(path)} is a link to a folder, which is not followed. Put the folder itself there."
            )


def _scan_csv(root: Path, csv_path: Path) -> Scan:
    images: dict[str, ImageFile] = {}
    rejected = []
    for number, row in _read_csv(csv_path):
        image = _image_of_row(root, row, f"{_shown(csv_path)}, line {number}")
        if image.source in images:
            raise InputError(f"{_shown(csv_path)}, line {number}: {_shown(image.source)} is listed twice.")
        images[image.source] = image
    for source in list(images):
        path = root / source
        reason = _refusal(path, source) if path.exists() else "no such file"
        if reason is not None:
            rejected.append(Rejected(_storable(source), reason))
            del images[source]
    return _ordered(Scan(root, "csv", ".", tuple(images.values()), tuple(rejected)))


def _read_csv(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(line number, values by column) of each row; column names in lower case, values stripped."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restval="")
            names = [name.strip().lower() for name in reader.fieldnames or []]
            if not {"path", "label"} <= set(names):
                raise InputError(
                    f"{_shown(path)}: the first line must name the columns path and label (patient and split "
                    f"may follow), but it is {_shown(','.join(names))}."
                )
            reader.fieldnames = names
            for row in reader:
                yield reader.line_num, {name: row[name].strip() for name in names}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{_shown(path)} is not a readable CSV file ({error}).") from None


def _image_of_row(root: Path, row: Mapping[str, str], where: str) -> ImageFile:
    source, split = PurePosixPath(row["path"]), row.get("split", "")
    if not row["path"] or not row["label"]:
        raise InputError(f"{where}: path or label is empty.")
    if (
        source.is_absolute()
        or ".." in source.parts
        or "\0" in row["path"]
        or not (root / source).resolve().is_relative_to(root)
    ):
        raise InputError(
            f"{where}: {_shown(row['path'])} leaves SRC {_shown(root)}. Give paths inside SRC, relative to it."
        )
    if split and split.lower() not in _SPLIT_NAMES:
        raise InputError(f"{where}: split {_shown(split)} is none of train, val and test.")
    return ImageFile(source.as_posix(), row["label"], _SPLIT_NAMES.get(split.lower()), row.get("patient") or None)


def _refusal(path: Path, source: str) -> str | None:
    """Why a file is not even opened; None if it may be an image."""
    if path.suffix.lower() not in IMAGE_SUFFIXES or (path.exists() and not path.is_file()):
        return NOT_AN_IMAGE
    return None if _storable(source) == source else "the file's name is not UTF-8"


def _storable(source: str) -> str:
    """The name as text that can be written as UTF-8; bytes that are not become escapes."""
    return source.encode("utf-8", "backslashreplace").decode("utf-8")


def _images(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]


def _ordered(scan: Scan) -> Scan:
    label_of = {name: label for label, name in enumerate(scan.classes)}
    images = tuple(sorted(scan.images, key=lambda image: (label_of[image.class_name], image.source)))
    return Scan(scan.root, scan.layout, scan.home, images, tuple(sorted(scan.rejected, key=lambda item: item.source)))


def _shown(*names: object) -> str:
    return ", ".join(repr(printable(str(name))) for name in names)
