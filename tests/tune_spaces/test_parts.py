"""What a repetition is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from dataloading.dataset import Dataset
from dataloading.splits import SPLIT_COLUMNS
from tests.tune_spaces.made_up_parts import NUM_IMAGES, ids_of, write_small
from tune_spaces.parts import check_folds, describe_scheme, overlap_of, plan_parts, scheme_ids, usable_splits


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """36 images of 3 classes with splits of their own."""
    return write_small(tmp_path_factory.mktemp("parts") / "set")


def _manifest(dataset: Dataset) -> pa.Table:
    return dataset.read_manifest(list(SPLIT_COLUMNS))


def test_parts_are_folds_by_seeds_the_first_seed_first() -> None:
    """So that a seed is whole as early as can be."""
    parts = plan_parts(3, (), [4, 7])
    assert [
        ("fold0-seed4", "fold:0/3", 4),
        ("fold1-seed4", "fold:1/3", 4),
        ("fold2-seed4", "fold:2/3", 4),
        ("fold0-seed7", "fold:0/3", 7),
        ("fold1-seed7", "fold:1/3", 7),
        ("fold2-seed7", "fold:2/3", 7),
    ] == [(part.name, part.split, part.seed) for part in parts]
    assert [0, 1, 2, 0, 1, 2] == [part.fold for part in parts]
    assert {"folds"} == {part.scheme for part in parts}


def test_splits_stand_beside_folds_or_alone() -> None:
    """One part a split and seed."""
    assert ["patient-seed0", "given-test-seed0"] == [p.name for p in plan_parts(0, ["patient", "given_test"], [0])]
    (one,) = plan_parts(0, ["fold:1/3"], [0])
    assert ("fold-1-3-seed0", "fold:1/3", None) == (one.name, one.scheme, one.fold)
    beside = plan_parts(3, ["given"], [0])
    assert ["folds", "folds", "folds", "given"] == [part.scheme for part in beside]
    assert [0, 1, 2, None] == [part.fold for part in beside]


@given(folds=st.integers(0, 9), num_splits=st.integers(0, 3), seeds=st.sets(st.integers(0, 99), max_size=4))
def test_parts_are_a_product(folds: int, num_splits: int, seeds: set[int]) -> None:
    """As many as folds and splits, times seeds; no name twice."""
    splits = ("patient", "given", "given_test")[:num_splits]
    parts = plan_parts(folds, splits, sorted(seeds))
    assert (folds + num_splits) * len(seeds) == len(parts) == len({part.name for part in parts})
    assert len(parts) == len({(part.split, part.seed) for part in parts})


@pytest.mark.parametrize("folds", [3, 4, 5])
def test_folds_are_the_whole_set_once(small: Dataset, folds: int) -> None:
    """Their tests together; a split's is its own test."""
    tests = np.concatenate([ids_of(small, part.split) for part in plan_parts(folds, (), [0])])
    assert sorted(tests.tolist()) == scheme_ids(_manifest(small), small.info, "folds").tolist() == [*range(NUM_IMAGES)]
    given = scheme_ids(_manifest(small), small.info, "given")
    assert [number for number in range(NUM_IMAGES) if number % 4 == 3] == given.tolist()


@pytest.mark.parametrize(
    ("splits", "usable"),
    [
        (("train", "train", "val", "test"), ("patient", "given")),
        (("train", "test"), ("patient", "given_test")),
        (("train",), ("patient",)),
    ],
)
def test_a_sets_own_split_is_used_where_it_has_one(
    splits: tuple[str, ...], usable: tuple[str, ...], tmp_path: Path
) -> None:
    """Beside the split by patient."""
    dataset = write_small(tmp_path / "set", splits=splits)
    assert usable == usable_splits(_manifest(dataset), dataset.info)


def test_a_class_must_be_in_every_fold(small: Dataset) -> None:
    """12 images a class, each of its own patient, fill 12 folds and no more; the refusal names class and fold."""
    check_folds(_manifest(small), small.info, 12)
    with pytest.raises(InputError, match=r"folds=13: \w+ of fold \d+ has no image of class\d.*Use fewer folds"):
        check_folds(_manifest(small), small.info, 13)


def test_what_a_sets_own_splits_share_is_told_in_numbers() -> None:
    """No name of a patient or file; nothing where there is no audit, or no split to share."""
    shared = {
        "patients": {"count": 2, "names": ["p1", "p2"]},
        "test_images": 10,
        "test_images_of_train_patients": 4,
        "duplicates": {"count": 1, "names": ["a = b"]},
    }
    audit = {"given_splits_share": shared, "given_split_counts": {"train": {}, "test": {}}}
    expected = {"patients": 2, "test_images": 10, "test_images_of_train_patients": 4, "duplicates": 1}
    assert expected == overlap_of(audit)
    assert overlap_of({}) is None
    assert overlap_of({**audit, "given_split_counts": {}}) is None


def test_schemes_have_words() -> None:
    """All of them."""
    assert "5 folds by patient" == describe_scheme("folds", 5)
    assert "fold:1/3" == describe_scheme("fold:1/3", 0)
    assert 3 == len({describe_scheme(scheme, 0) for scheme in ("patient", "given", "given_test")})
