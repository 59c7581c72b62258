"""Rules of near-duplicates: what shows the same is found, what is only alike is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dataloading.packing.duplicates import first_of_each, join_duplicates
from dataloading.packing.likeness import NearDuplicates, build_thumbnail, find_near_duplicates, perceptual_hash
from tests.dataloading.packing.pictures import Picture, decode, draw, encode


def search(pictures: list[Picture]) -> NearDuplicates:
    """Near-duplicates among pictures."""
    thumbnails = np.stack([build_thumbnail(picture) for picture in pictures])
    hashes, mirrored = (
        np.array([perceptual_hash(thumbnail) for thumbnail in side], np.uint64)
        for side in (thumbnails, np.ascontiguousarray(thumbnails[:, :, ::-1]))
    )
    return find_near_duplicates(hashes, mirrored, lambda places: thumbnails[places])


def changed(picture: Picture, how: str) -> Picture:
    """The picture as a careless export would leave it."""
    match how:
        case "recompressed":
            return decode(encode(".jpg", picture))
        case "resized":
            return cv2.resize(picture, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
        case "brighter":
            return np.clip(picture * 0.7 + 40, 0, 255).astype(np.uint8)
        case _:
            return np.ascontiguousarray(picture[:, ::-1])


@pytest.mark.parametrize("how", ["recompressed", "resized", "brighter", "mirrored"])
def test_changed_copies_are_found(how: str) -> None:
    """A copy that was saved again, resized, brightened or mirrored is paired with its original and nothing else."""
    pictures = [draw(seed, 160, 120) for seed in range(60)]
    near = search([*pictures, changed(pictures[7], how)])
    assert [[7, 60]] == near.pairs.tolist()
    assert [how == "mirrored"] == near.mirrored.tolist()
    assert near.complete


def test_a_close_hash_is_not_enough() -> None:
    """Pictures that share their lowest frequencies but little else are nominated and not confirmed."""
    base = draw(1, 64, 64).astype(float) / 4
    noise = np.random.default_rng(0).integers(0, 160, (2, 64, 64))
    near = search([(base + noise[0]).astype(np.uint8), (base + noise[1]).astype(np.uint8)])
    same_hash = find_near_duplicates(
        np.zeros(2, np.uint64), np.full(2, 2**64 - 1, np.uint64), lambda places: noise[places].astype(np.uint8)
    )
    assert 0 == len(near.pairs) == len(same_hash.pairs)
    assert 1 == same_hash.num_nominated


def test_pictures_without_contrast_are_no_pair() -> None:
    """Black pictures correlate with nothing; as copies they are found by their bytes."""
    assert 0 == len(search([np.zeros((40, 40), np.uint8)] * 3).pairs)


def test_the_search_names_what_all_pairs_would() -> None:
    """The banded search nominates exactly the pairs within 6 bits, each once."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 300, np.uint64)
    flips = [sum(1 << int(bit) for bit in random.choice(64, bits, replace=False)) for bits in [3, 6, 7] * 100]
    words = np.concatenate([hashes, hashes ^ np.array(flips, np.uint64)])
    near = find_near_duplicates(words, ~words, lambda places: np.zeros((len(places), 64, 64), np.uint8))
    distances = np.bitwise_count(words[:, None] ^ words[None])
    assert int(np.triu(distances <= 6, 1).sum()) == near.num_nominated == 200


def test_duplicates_join_through_others() -> None:
    """Copies and near-duplicates tie images into sets, also along a chain; the others stay alone."""
    firsts = first_of_each(["a", "b", "a", "c", "d", "e"])
    near = NearDuplicates(np.array([[1, 4], [2, 4]]), np.array([False, True]), 2, True)
    duplicates = join_duplicates(firsts, near)
    assert [[0, 2]] == duplicates.exact.tolist()
    assert [0, 0, 0, -1, 0, -1] == duplicates.linked.tolist()
    assert [0, -1, 0, -1, -1, -1] == join_duplicates(firsts, None).linked.tolist()
