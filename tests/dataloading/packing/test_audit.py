"""Rules of the audit: each figure is right and each warning true; no warning where there is nothing to warn of."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from dataloading.packing.audit import Audit, Gathered, build_audit
from dataloading.packing.duplicates import Duplicates, first_of_each, join_duplicates
from dataloading.packing.entries import Entry
from dataloading.packing.examine import Facts
from dataloading.packing.likeness import NearDuplicates
from dataloading.packing.rejection import Rejected
from dataloading.packing.scan import ImageFile
from dataloading.packing.size_baseline import measure_size_baseline

CLASSES = ("A", "B")


def entry(source: str, patient: str, given: str | None = None, rule: str = "oct2017", **facts: object) -> Entry:
    """An image of the class that its folder names, with bytes of its own unless `sha256` says otherwise."""
    class_name = source.split("/")[-2]
    plain = {
        "width_px": 512, "height_px": 496, "num_bytes": 9, "sha256": source, "phash": 0, "mirrored_phash": 0,
        "coloured": False, "orientation": 1, "metadata": (), "format": "JPEG", "rewritten": False,
        "mask_sha256": None, "mask_problem": None,
    }  # fmt: skip
    image = ImageFile(source, class_name, given)
    return Entry(image, CLASSES.index(class_name), patient, rule, 0, 0, Facts(**{**plain, **facts}))


def calm() -> list[Entry]:
    """A set that nothing is to be said of: two classes alike, each patient with a name of its own."""
    return [entry(f"{name}/{name}-{number}.jpeg", f"{name}{number}") for name in CLASSES for number in range(6)]


def audit(
    entries: Sequence[Entry],
    near: Sequence[tuple[int, int, bool]] = (),
    rejected: Sequence[Rejected] = (),
    channels: int = 1,
    masks: int = 0,
) -> Audit:
    """The audit of some entries, split by turns into train, val and test."""
    pairs = np.array([pair[:2] for pair in near], np.int64).reshape(-1, 2)
    found = NearDuplicates(pairs, np.array([pair[2] for pair in near], bool), 10 + len(near), True)
    duplicates: Duplicates = join_duplicates(first_of_each([item.facts.sha256 for item in entries]), found)
    return build_audit(
        Gathered(
            layout="class",
            classes=CLASSES,
            entries=entries,
            splits=np.arange(len(entries), dtype=np.int8) % 3,
            duplicates=duplicates,
            rejected=rejected,
            channels=channels,
            num_masks_unused=masks,
        )
    )


def test_a_calm_set_has_no_warnings_and_plain_figures() -> None:
    """Nothing is warned of without reason; the audit can be written as JSON and read back equal."""
    result = audit(calm())
    assert [] == result["warnings"]
    assert {"A": 6, "B": 6} == result["class_counts"]
    assert {"A": 2, "B": 2} == result["patient_split_counts"]["val"]
    assert result == json.loads(json.dumps(result))


def test_a_patient_in_two_classes_is_named() -> None:
    """A patient with images in two classes is counted and named."""
    result = audit([*calm(), entry("B/x.jpeg", "A0")])
    assert {"count": 1, "names": ["A0"]} == result["patients"]["in_two_classes"]
    assert ["1 patient of 12 have images in two classes or more (such as A0); each is kept whole in one split."] == (
        result["warnings"]
    )


def test_given_splits_that_share_patients_are_reported() -> None:
    """Shared patients, and the share of test images that belong to patients of train."""
    given = [
        *(entry(f"train/{name}/{number}.jpeg", f"{name}{number}", "train") for name in CLASSES for number in range(4)),
        entry("test/A/9.jpeg", "A0", "test"),
        *(entry(f"test/B/{number}.jpeg", f"new{number}", "test") for number in range(3)),
    ]
    result = audit(given)
    shared = result["given_splits_share"]
    assert {"count": 1, "names": ["A0"]} == shared["patients"]
    assert (4, 1) == (shared["test_images"], shared["test_images_of_train_patients"])
    assert {"train": {"A": 4, "B": 4}, "test": {"A": 1, "B": 3}} == result["given_split_counts"]
    first, second, third, *_ = result["warnings"]
    assert "share 1 patient (such as A0); 25% of its test images are of patients in train" in first
    assert "has no val of its own, so data.split=given cannot be used. data.split=given_test keeps its test" in second
    assert "own test has 4 images: one of them is 25.0 points" in third


def test_duplicates_are_counted_once_by_bytes_and_once_by_look() -> None:
    """Copies, confirmed pairs, pairs between patients and pairs across the set's own splits each have their figure."""
    entries = [
        *calm(),
        entry("test/A/copy.jpeg", "A0", "test", sha256="same"),
        entry("train/B/copy.jpeg", "B0", "train", sha256="same"),
    ]
    result = audit(entries, near=[(0, 1, True), (2, 8, False)])
    assert (1, 1) == (result["duplicates"]["count"], result["duplicates"]["in_two_classes"])
    near = result["near_duplicates"]
    assert (2, 1, 1, 2, 12) == (
        near["count"], near["mirrored"], near["in_two_classes"], near["between_patients"]["count"], near["nominated"]
    )  # fmt: skip
    assert {"count": 1, "names": ["test/A/copy.jpeg = train/B/copy.jpeg"]} == result["given_splits_share"]["duplicates"]
    assert {"count": 1, "names": ["copy.jpeg"]} == result["same_name"]
    text = " ".join(result["warnings"])
    for words in ("1 file repeat another byte for byte", "2 pairs of files show the same picture (1 mirrored, 1 under"):
        assert words in text


@pytest.mark.parametrize(
    ("extra", "options", "sentence"),
    [
        ({"rule": "stem"}, {}, "1 file name of 13 name no patient"),
        ({"metadata": ("comment", "exif")}, {}, "can name a person (comment in 1 file, exif in 1 file)"),
        ({"coloured": True}, {"channels": 3}, "1 picture of 13 have colours; all are shown in three channels"),
        ({"coloured": True}, {"channels": 1}, "all are shown in gray"),
        ({"mask_problem": "truncated"}, {}, "1 mask do not fit and were left out (such as A/x.jpeg: truncated)"),
        ({}, {"masks": 2}, "2 masks belong to no packed image"),
        ({}, {"rejected": [Rejected("A/y", "damaged (x)"), Rejected("A/z", "damaged (y)")]}, "(2 damaged)"),
    ],
)
def test_each_subject_has_its_sentence(extra: dict, options: dict, sentence: str) -> None:
    """One thing wrong gives one warning, and it says what."""
    (warning,) = audit([*calm(), entry("A/x.jpeg", "X", **extra)], **options)["warnings"]
    assert sentence in warning


def test_colour_profiles_are_no_personal_data() -> None:
    """An ICC profile is counted, but nobody is warned of it."""
    result = audit([*calm(), entry("A/x.jpeg", "X", metadata=("icc",))])
    assert ({"icc": 1}, []) == (result["metadata"], result["warnings"])


def test_imbalance_and_empty_parts_are_reported() -> None:
    """A class much larger than another, and a class without patients enough for each part."""
    entries = [*(entry(f"A/{number}.jpeg", f"A{number}") for number in range(6)), entry("B/b.jpeg", "B0")]
    result = audit(entries)
    assert {"largest": "A", "smallest": "B", "ratio": 6.0} == result["imbalance"]
    assert ["no image of B in val", "no image of B in test", "A has 6.0 times"] == [
        next(
            words for words in ("no image of B in val", "no image of B in test", "A has 6.0 times") if words in warning
        )
        for warning in result["warnings"]
    ]


def test_names_in_warnings_are_escaped() -> None:
    """A file name cannot steer the terminal of who reads the audit."""
    names = audit([*calm(), entry("A/x.jpeg", "A0\x1b[31m"), entry("B/x.jpeg", "A0\x1b[31m")])
    assert ["A0\\x1b[31m"] == names["patients"]["in_two_classes"]["names"]


def test_height_that_rules_out_a_class_is_found() -> None:
    """As in OCT2017: a height that three of four images of a class have, and few others, is above chance."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 2000)
    tall = random.random(2000) < np.array([0, 0.76, 0, 0.26])[labels]
    sizes = [
        (int(width), 512 if is_tall else 496)
        for width, is_tall in zip(random.choice([512, 768], 2000), tall, strict=True)
    ]
    is_train = np.arange(2000) < 1400
    found = measure_size_baseline(sizes, labels, is_train)
    without = measure_size_baseline([(width, 496) for width, _ in sizes], labels, is_train)
    assert found is not None
    assert without is not None
    assert (True, False) == (found.above_chance, without.above_chance)
    assert found.balanced_accuracy > 0.4
    assert pytest.approx(0.25) == found.chance


def test_odd_sizes_can_be_a_sign() -> None:
    """A class whose images all have sizes of their own is found, though no size occurs twice."""
    labels = np.arange(300) % 2
    sizes = [(512, 512) if label else (300 + number, 200) for number, label in enumerate(labels)]
    found = measure_size_baseline(sizes, labels, np.arange(300) < 200)
    assert found is not None
    assert (1.0, True) == (found.accuracy, found.above_chance)


def test_images_of_one_patient_count_as_one() -> None:
    """Patients with a size each can look like classes with a size each; with few patients that is no finding."""
    labels = np.repeat(np.arange(12) % 2, 8)
    sizes = [(512, 496) if label else (768, 496) for label in labels]
    calls = [measure_size_baseline(sizes, labels, np.arange(96) % 96 < 64, images) for images in (1, 8)]
    assert [True, False] == [baseline is not None and baseline.above_chance for baseline in calls]


def test_a_few_lucky_images_are_no_warning() -> None:
    """With eleven images tried, a gain that chance makes is not called one."""
    random = np.random.default_rng(1)
    calls = []
    for _ in range(200):
        sizes = [(int(width), 496) for width in random.choice([512, 768], 47)]
        baseline = measure_size_baseline(sizes, random.integers(0, 4, 47), np.arange(47) < 36)
        calls.append(baseline is not None and baseline.above_chance)
    assert np.mean(calls) < 0.02
