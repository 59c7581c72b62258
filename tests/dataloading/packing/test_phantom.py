"""The phantom: its tree, its masks, what it repeats and refuses, and that no shortcut solves it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from cluster.errors import InputError, StoreError
from dataloading.packing.phantom import (
    CLASSES,
    HEIGHTS_PX,
    LESION_CLASSES,
    WIDTHS_PX,
    PatientTask,
    PhantomConfig,
    PhantomSummary,
    draw_labelled_scan,
    plan_patients,
    run_phantom,
)

SMALL = PhantomConfig(num_images=60, size_scale=0.25)
Features = NDArray[np.float64]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PhantomSummary]:
    """A small set and what the call said of it."""
    out = tmp_path_factory.mktemp("phantom") / "set"
    return out, run_phantom(out, SMALL, workers=1)


@pytest.fixture(scope="module")
def drawn() -> list[tuple[PatientTask, NDArray[np.uint8]]]:
    """The scans of a set of 800 at a quarter of the size, never written; each with its patient."""
    config = PhantomConfig(num_images=800, size_scale=0.25, val_fraction=0, test_fraction=0.4, seed=5)
    return [
        (task, draw_labelled_scan(config, task, number)[0])
        for task in plan_patients(config)
        for number in range(1, task.num_images + 1)
    ]


def read_files(folder: Path) -> dict[str, bytes]:
    """Every file under a folder by its relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read_gray(path: Path) -> NDArray[np.uint8]:
    """The picture as stored, colour planes and depth untouched."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return np.asarray(image, np.uint8)


def images_of(out: Path) -> list[Path]:
    """All B-scans of a set, without its masks."""
    return sorted(out.glob("[!m]*/*/*.jpeg"))


def test_tree_and_names_are_those_of_oct2017(tree: tuple[Path, PhantomSummary]) -> None:
    """A file is SPLIT/CLASS/CLASS-PATIENT-N.jpeg; a patient has 5 to 7 digits and N counts from 1."""
    out, summary = tree
    counts: dict[str, dict[str, int]] = {}
    for path in images_of(out):
        split, label = path.parent.parent.name, path.parent.name
        by_class = counts.setdefault(split, dict.fromkeys(CLASSES, 0))
        by_class[label] += 1
        match = re.fullmatch(rf"{label}-([1-9]\d{{4,6}})-([1-9]\d*)\.jpeg", path.name)
        assert match, path
        number = int(match[2])
        assert number == 1 or path.with_name(f"{label}-{match[1]}-{number - 1}.jpeg").exists()
    assert counts == summary.images
    assert SMALL.num_images == sum(sum(by_class.values()) for by_class in counts.values())


def test_images_are_one_channel_jpegs(tree: tuple[Path, PhantomSummary]) -> None:
    """Every B-scan is an 8-bit JPEG with one channel and one of the set's sizes."""
    sizes = {(round(h * 0.25), round(w * 0.25)) for h in HEIGHTS_PX for w in WIDTHS_PX}
    for path in images_of(tree[0]):
        assert path.read_bytes()[:3] == b"\xff\xd8\xff"
        assert read_gray(path).shape in sizes


def test_masks_belong_to_lesions(tree: tuple[Path, PhantomSummary]) -> None:
    """Each image of a disease has a mask of its own size, 0 and 255 and not empty; NORMAL has none."""
    out = tree[0]
    masked = {path.relative_to(out / "masks").with_suffix("") for path in out.glob("masks/*/*/*.png")}
    images = {path.relative_to(out).with_suffix("") for path in images_of(out)}
    assert masked == {name for name in images if name.parent.name in LESION_CLASSES}
    for name in masked:
        mask = read_gray(out / "masks" / f"{name}.png")
        assert read_gray(out / f"{name}.jpeg").shape == mask.shape
        assert np.unique(mask).tolist() == [0, 255]


@pytest.mark.parametrize("label", CLASSES)
def test_mask_marks_what_the_class_is_about(label: str) -> None:
    """Cysts are darker than the retina around them, and a mask covers a small part of the scan."""
    config = PhantomConfig(size_scale=0.5, difficulty=0.25)
    scan, mask = draw_labelled_scan(config, PatientTask(12345, "train", label, 1), 1)
    assert mask.any() == (label in LESION_CLASSES)
    assert mask.mean() / 255 < 0.25
    if label == "DME":
        ring = cv2.dilate(mask, np.ones((9, 9), np.uint8)) > mask
        assert scan[mask > 0].mean() < scan[ring].mean()


@settings(max_examples=25, deadline=None)
@given(
    patient=st.integers(10_000, 9_999_999),
    label=st.sampled_from(LESION_CLASSES),
    difficulty=st.sampled_from([0.25, 1.0, 4.0]),
    size_scale=st.sampled_from([0.2, 0.5]),
)
def test_no_lesion_is_lost(patient: int, label: str, difficulty: float, size_scale: float) -> None:
    """At the ends of every option a diseased scan still shows a lesion."""
    config = PhantomConfig(difficulty=difficulty, size_scale=size_scale)
    _, mask = draw_labelled_scan(config, PatientTask(patient, "train", label, 1), 1)
    assert mask.any()


def test_same_seed_same_bytes_on_any_number_of_workers(tree: tuple[Path, PhantomSummary], tmp_path: Path) -> None:
    """The files do not depend on how many processes write them."""
    run_phantom(tmp_path / "again", SMALL, workers=2)
    assert read_files(tree[0]) == read_files(tmp_path / "again")


def test_another_seed_another_set() -> None:
    """The seed changes the patients, and with the same patient the picture."""
    task = PatientTask(12345, "train", "DME", 1)
    first, second = (draw_labelled_scan(PhantomConfig(seed=seed, size_scale=0.25), task, 1)[0] for seed in (1, 2))
    assert not np.array_equal(first, second)
    assert plan_patients(PhantomConfig(seed=1)) != plan_patients(PhantomConfig(seed=2))


@settings(deadline=None)
@given(num_images=st.integers(12, 3000), mean=st.integers(1, 9), val=st.sampled_from([0, 0.01, 0.3]))
def test_a_patient_is_in_one_split_and_class_and_classes_are_balanced(num_images: int, mean: int, val: float) -> None:
    """Each patient is dealt once; the images add up; classes of a split differ by one image at most."""
    config = PhantomConfig(num_images=num_images, images_per_patient=mean, val_fraction=val)
    tasks = plan_patients(config)
    assert len(tasks) == len({task.patient for task in tasks})
    assert num_images == sum(task.num_images for task in tasks)
    for split in {task.split for task in tasks}:
        counts = [sum(t.num_images for t in tasks if (t.split, t.label) == (split, c)) for c in CLASSES]
        assert min(counts) >= 1
        assert max(counts) - min(counts) <= 1


def test_patient_numbers_are_never_drawn_twice() -> None:
    """Among 40,000 patients, where blind draws would collide about 80 times, all numbers differ."""
    tasks = plan_patients(PhantomConfig(num_images=40_000, images_per_patient=1))
    assert len({task.patient for task in tasks}) == 40_000


def test_sizes_are_distributed_as_in_oct2017() -> None:
    """Widths have median 512 and upper quartile 768, between 384 and 1,536; heights are 496 to 512."""
    widths = np.repeat(list(WIDTHS_PX), np.round(1000 * np.array(list(WIDTHS_PX.values()))).astype(int))
    assert np.percentile(widths, [0, 50, 75, 100]).tolist() == [384, 512, 768, 1536]
    assert (min(HEIGHTS_PX), max(HEIGHTS_PX)) == (496, 512)


def test_progress_ends_at_all_images(tmp_path: Path) -> None:
    """The progress call counts written images up to all of them."""
    seen: list[tuple[int, int]] = []
    run_phantom(tmp_path / "set", SMALL, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (60, 60)


def test_taken_folder_is_refused(tmp_path: Path) -> None:
    """A folder that holds anything, or a file of that name, is refused and left alone."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    for name in ("full", "full/notes"):
        with pytest.raises(InputError, match="exists"):
            run_phantom(tmp_path / name, SMALL)
    assert read_files(tmp_path) == {"full/notes": b"mine"}


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_it_leaves_nothing(tmp_path: Path, workers: int) -> None:
    """Ctrl-C after the first patient removes all that was written."""

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_phantom(tmp_path / "set", SMALL, workers=workers, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_is_one_clear_error(tmp_path: Path) -> None:
    """A full or failing disk ends as StoreError and leaves nothing."""

    def fill_disk(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left"):
        run_phantom(tmp_path / "set", SMALL, workers=1, progress=fill_disk)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_images", 11),
        ("images_per_patient", 0),
        ("val_fraction", -0.1),
        ("test_fraction", 1.0),
        ("test_fraction", 0.85),
        ("seed", -1),
        ("difficulty", float("nan")),
        ("size_scale", 0.1),
    ],
)
def test_impossible_option_is_named(field: str, value: float) -> None:
    """The error starts with the dotted key of the option."""
    with pytest.raises(ValueError, match=rf"^phantom\.{field} "):
        PhantomConfig(**{field: value})  # type: ignore[arg-type]


def size_features(scan: NDArray[np.uint8]) -> Features:
    """Width and height."""
    return np.array(scan.shape[::-1], float)


def brightness_features(scan: NDArray[np.uint8]) -> Features:
    """Mean, spread and percentiles of gray."""
    return np.array([scan.mean(), scan.std(), *np.percentile(scan, [1, 5, 10, 25, 50, 75, 90, 95, 99])])


def picture_features(scan: NDArray[np.uint8]) -> Features:
    """The picture on 16 x 16 pixels."""
    return np.asarray(cv2.resize(scan, (16, 16), interpolation=cv2.INTER_AREA), float).ravel()


@pytest.mark.parametrize("features", [size_features, brightness_features, picture_features])
@pytest.mark.parametrize(
    "baseline",
    [
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1)),
        make_pipeline(StandardScaler(), KNeighborsClassifier(15)),
        make_pipeline(StandardScaler(), NearestCentroid()),
        DecisionTreeClassifier(max_depth=5, random_state=0),
    ],
    ids=["logistic", "neighbours", "mean", "tree"],
)
def test_no_shortcut_solves_it(
    drawn: list[tuple[PatientTask, NDArray[np.uint8]]],
    features: Callable[[NDArray[np.uint8]], Features],
    baseline: Any,
) -> None:
    """Size, brightness and mean picture stay under 0.40 of 4 classes: 480 train, 320 test, other patients."""
    table = {
        split: (
            np.stack([features(scan) for task, scan in drawn if task.split == split]),
            [task.label for task, _ in drawn if task.split == split],
        )
        for split in ("train", "test")
    }
    assert (len(table["train"][1]), len(table["test"][1])) == (480, 320)
    assert baseline.fit(*table["train"]).score(*table["test"]) < 0.40
