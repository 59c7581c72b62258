"""The phantom: a synthetic OCT set in OCT2017's folder tree and file naming, with lesion masks.

Owns its options, the deal of images to patients, classes and splits, and the writing of the tree. What a
retina, a lesion and a scanner look like stands in the `phantom_*` files beside it. It knows nothing of
packing, shards, or models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.random import Generator, Philox, SeedSequence
from numpy.typing import NDArray

from dataloading.packing.pool import map_in_order, usable_cores
from dataloading.packing.publish import published_at_end, refuse_taken

__all__ = ["CLASSES", "LESION_CLASSES", "PhantomConfig", "PhantomSummary", "run_phantom"]

Pixels = NDArray[np.uint8]

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")
LESION_CLASSES = CLASSES[:3]
MASKS = "masks"
MAX_IMAGES = 1_000_000

# Share of each picture size, the same for every class: OCT2017 has heights of 496 and, 19 %, 512 px, widths
# of 384 to 1,536 px, median 512, upper quartile 768. There height alone betrays the class; here it must not.
HEIGHTS_PX = {496: 0.81, 512: 0.19}
WIDTHS_PX = {384: 0.03, 512: 0.60, 768: 0.31, 1024: 0.03, 1536: 0.03}

JPEG_QUALITY = 75  # OCT2017's own quantisation tables
PATIENT_IDS = (10_000, 9_999_999)  # five to seven digits, as in OCT2017


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """Options of the synthetic set."""

    num_images: int = 2000
    """Images in all, as many of each class; 12 to 1,000,000."""
    images_per_patient: int = 4
    """Images of a patient on average; each has between 1 and about twice as many."""
    val_fraction: float = 0.15
    """Share of the images in `val`, 0 to leave it out."""
    test_fraction: float = 0.15
    """Share of the images in `test`, 0 to leave it out."""
    seed: int = 0
    """Start of all random numbers; the same seed gives the same files, byte for byte."""
    difficulty: float = 1.0
    """1 is usual; lesions shrink with its square root and speckle grows in proportion; 0.25 to 4."""
    size_scale: float = 1.0
    """Factor on width and height of every image; the retina shrinks with them; 0.2 to 2."""

    def __post_init__(self) -> None:
        _require(12 <= self.num_images <= MAX_IMAGES, "num_images", f"12 to {MAX_IMAGES:,}", self.num_images)
        _require(1 <= self.images_per_patient <= 1000, "images_per_patient", "1 to 1000", self.images_per_patient)
        _require(0 <= self.val_fraction < 1, "val_fraction", "at least 0 and less than 1", self.val_fraction)
        _require(0 <= self.test_fraction < 1, "test_fraction", "at least 0 and less than 1", self.test_fraction)
        _require(0 <= self.seed < 2**63, "seed", "0 to 2**63 - 1", self.seed)
        _require(0.25 <= self.difficulty <= 4, "difficulty", "0.25 to 4", self.difficulty)
        _require(0.2 <= self.size_scale <= 2, "size_scale", "0.2 to 2", self.size_scale)
        train_images = self.images_by_split()["train"]
        if train_images < len(CLASSES):
            raise ValueError(
                f"phantom.test_fraction and phantom.val_fraction leave {train_images} images for train, "
                f"fewer than one of each class; lower them or raise phantom.num_images"
            )

    def images_by_split(self) -> dict[str, int]:
        """Images of each split; a split with a share above zero gets at least one of each class."""
        val, test = (
            max(round(self.num_images * share), len(CLASSES)) if share else 0
            for share in (self.val_fraction, self.test_fraction)
        )
        return {"train": self.num_images - val - test, "val": val, "test": test}


@dataclass(frozen=True)
class PhantomSummary:
    """What was written, and how long it took."""

    images: dict[str, dict[str, int]]
    """Images by split and class."""
    patients: int
    seconds: float


@dataclass(frozen=True)
class PatientTask:
    """All images of one patient: the unit of work, and all that a worker needs beside the options."""

    patient: int
    split: str
    label: str
    num_images: int


def run_phantom(
    out: Path,
    config: PhantomConfig,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomSummary:
    """Write the synthetic set to `out` and say what it holds.

    The tree is `out/{train,val,test}/CLASS/CLASS-PATIENT-N.jpeg`, and for each image that has a lesion a mask
    `out/masks/SPLIT/CLASS/CLASS-PATIENT-N.png`. It is written beside `out` under a hidden name and renamed at
    the end, so an interrupted call leaves no `out`.

    Args:
        out: folder to make; must not exist.
        config: the options.
        workers: processes; all cores by default. The files do not depend on it.
        progress: called with (images written, images in all) after each patient.

    Raises:
        InputError: `out` exists.
        StoreError: the disk is full or not writable.
        RunFailedError: a worker was killed.
    """
    started_s = time.monotonic()
    refuse_taken(out)
    tasks = plan_patients(config)
    with published_at_end(out.resolve()) as folder:
        _make_tree(folder, tasks)
        for written in _write_patients(folder, config, tasks, workers or usable_cores()):
            if progress:
                progress(written, config.num_images)
    return PhantomSummary(
        images=_count_images(tasks),
        patients=len(tasks),
        seconds=time.monotonic() - started_s,
    )


def plan_patients(config: PhantomConfig) -> list[PatientTask]:
    """Deal the images to patients, each in one split and one class; the same list for the same options."""
    rng = _random(config.seed, 0, 0)
    sizes = [
        (split, label, size)
        for split, num_images in config.images_by_split().items()
        for label, share in zip(CLASSES, _even_shares(num_images, len(CLASSES)), strict=True)
        for size in _patient_sizes(rng, share, config.images_per_patient)
    ]
    first, last = PATIENT_IDS
    patients = first + rng.choice(last - first + 1, size=len(sizes), replace=False)
    return [PatientTask(patient, *size) for patient, size in zip(patients.tolist(), sizes, strict=True)]


def draw_labelled_scan(config: PhantomConfig, task: PatientTask, number: int) -> tuple[Pixels, Pixels]:
    """Scan `number` (from 1) of a patient and its lesion mask, both (height, width) 8 bit.

    A pure function of the options, patient, class and number: who draws it, and after what, does not matter.
    """
    # Imported here so that reading the options does not load OpenCV.
    from dataloading.packing.phantom_anatomy import build_eye, build_retina
    from dataloading.packing.phantom_lesions import LESIONS
    from dataloading.packing.phantom_optics import draw_mask, draw_scan

    eye = build_eye(_random(config.seed, task.patient, 0))
    rng = _random(config.seed, task.patient, number)
    width_px, height_px = (_draw_size_px(rng, sizes, config.size_scale) for sizes in (WIDTHS_PX, HEIGHTS_PX))
    retina = build_retina(rng, eye, width_px, height_px, config.size_scale)
    LESIONS[task.label](retina, rng, eye.severity / config.difficulty**0.5)
    scan = draw_scan(retina, rng, height_px, config.size_scale, speckle=config.difficulty)
    return scan, draw_mask(retina, height_px, config.size_scale)


def write_patient(folder: Path, config: PhantomConfig, task: PatientTask) -> int:
    """Draw and write all scans and masks of one patient, in a worker; returns how many scans."""
    import cv2

    for number in range(1, task.num_images + 1):
        scan, mask = draw_labelled_scan(config, task, number)
        name = f"{task.label}-{task.patient}-{number}"
        _, jpeg = cv2.imencode(".jpeg", scan, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        # write_bytes and not cv2.imwrite, which returns False on a full disk and goes on.
        (folder / task.split / task.label / f"{name}.jpeg").write_bytes(jpeg.tobytes())
        if task.label in LESION_CLASSES:
            _, png = cv2.imencode(".png", mask)
            (folder / MASKS / task.split / task.label / f"{name}.png").write_bytes(png.tobytes())
    return task.num_images


def _write_patients(folder: Path, config: PhantomConfig, tasks: list[PatientTask], workers: int) -> Iterator[int]:
    """Write all patients; yields the images written so far after each."""
    write = partial(write_patient, folder, config)
    counts = map(write, tasks) if workers == 1 else map_in_order(write, tasks, min(workers, len(tasks)))
    return accumulate(counts)


def _make_tree(folder: Path, tasks: list[PatientTask]) -> None:
    for split, label in sorted({(task.split, task.label) for task in tasks}):
        (folder / split / label).mkdir(parents=True)
        if label in LESION_CLASSES:
            (folder / MASKS / split / label).mkdir(parents=True)


def _count_images(tasks: list[PatientTask]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for task in tasks:
        by_class = counts.setdefault(task.split, dict.fromkeys(CLASSES, 0))
        by_class[task.label] += task.num_images
    return counts


def _even_shares(total: int, parts: int) -> list[int]:
    """`total` cut in `parts` that differ by one at most, the larger first."""
    return [(total + parts - 1 - part) // parts for part in range(parts)]


def _patient_sizes(rng: Generator, num_images: int, mean: int) -> Iterator[int]:
    """Images of one patient after another until `num_images` are dealt, 1 to 2 * mean - 1 each."""
    while num_images > 0:
        size = min(num_images, int(rng.integers(1, 2 * mean)))
        yield size
        num_images -= size


def _draw_size_px(rng: Generator, shares: dict[int, float], size_scale: float) -> int:
    return round(float(rng.choice(list(shares), p=list(shares.values()))) * size_scale)


def _random(seed: int, patient: int, number: int) -> Generator:
    """The random numbers of one scan (number from 1), of a patient (number 0), or of the deal (patient 0)."""
    return Generator(Philox(SeedSequence([seed, patient, number])))


def _require(holds: bool, name: str, wanted: str, value: float) -> None:
    if not holds:
        raise ValueError(f"phantom.{name} must be {wanted}, but is {value}")
