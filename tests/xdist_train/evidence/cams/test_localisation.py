"""Maps against masks: an image's figures by hand, a set's by arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from xdist_train.evidence.cams.localisation import THRESHOLDS, Placed, centred_blob, localise, report

_SIZE, _CELL = 32, 8.0


def _mask(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((_SIZE, _SIZE), np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def test_a_perfect_map_is_perfect() -> None:
    """Hit, all energy inside, and an overlap of 1 at every threshold."""
    mask = _mask(8, 8, 8)
    found = localise(mask.astype(np.float32), (12.0, 12.0), mask, _CELL)
    assert found is not None
    assert (True, 1.0) == (found.hit, found.energy)
    assert found.iou.tolist() == [1.0] * len(THRESHOLDS)


@pytest.mark.parametrize(("x", "hit"), [(20.0, True), (20.4, True), (20.6, False), (31.0, False)])
def test_a_hit_may_miss_by_half_a_cell(x: float, hit: bool) -> None:
    """The mask's last pixel has its centre at 16.5; four pixels further is half a cell of eight."""
    found = localise(np.ones((_SIZE, _SIZE)), (12.0, x), _mask(8, 9, 8), _CELL)
    assert found is not None
    assert hit == found.hit


def test_growing_has_no_corners() -> None:
    """Half a cell is a distance: three pixels aside and three down are more than four."""
    found = localise(np.ones((_SIZE, _SIZE)), (15.5 + 3, 15.5 + 3), _mask(8, 8, 8), _CELL)
    assert found is not None
    assert not found.hit


def test_energy_and_overlap_count_pixels() -> None:
    """Half of the map's energy inside; at a low threshold both halves are the region, at a high one the inner."""
    mask, values = _mask(0, 0, 16), np.zeros((_SIZE, _SIZE))
    values[:16, :16], values[:16, 16:] = 1.0, 0.5
    values[16:] = -1.0
    found = localise(values, (8.0, 8.0), mask, _CELL)
    assert found is not None
    assert found.energy == pytest.approx(2 / 3)
    expected = [0.5 if threshold <= 0.5 else 1.0 for threshold in THRESHOLDS]
    assert found.iou.tolist() == expected


def test_what_is_not_defined_is_said_so() -> None:
    """No mask in view is None; a map that is nowhere positive has no energy and no overlap."""
    assert localise(np.ones((_SIZE, _SIZE)), (0.5, 0.5), np.zeros((_SIZE, _SIZE), np.bool_), _CELL) is None
    found = localise(-np.ones((_SIZE, _SIZE)), (0.5, 0.5), _mask(0, 0, 4), _CELL)
    assert found is not None
    assert np.isnan(found.energy)
    assert 0 == found.iou.max()


def test_the_blob_is_highest_in_the_middle() -> None:
    """Symmetrical, and less with each cell from the middle."""
    blob = centred_blob(7, 7)
    assert (3, 3) == divmod(int(blob.argmax()), 7)
    assert np.allclose(blob, blob[::-1, ::-1])


def _placed(hits: list[float], iou: float) -> Placed:
    return Placed(np.array(hits), np.full(len(hits), 0.5), np.full((len(hits), len(THRESHOLDS)), iou))


def test_a_report_pools_and_splits_by_class() -> None:
    """Means over images, of each class and of all, with the paired difference to each baseline."""
    ours, theirs = _placed([1, 1, 1, 0], 0.4), _placed([0, 0, 1, 0], 0.1)
    labels = np.array(["CNV", "CNV", "DME", "DME"], dtype=object)
    found = report(ours, {"mean_map": theirs}, labels, ["a", "a", "b", "c"], ["CNV", "DME", "NORMAL"], resamples=200)
    game = found["pooled"]["pointing_game"]
    assert (0.75, 0.25, 0.5) == (game["value"], game["mean_map"]["value"], game["mean_map"]["difference"]["value"])
    assert (4, 3) == (found["pooled"]["n"], found["pooled"]["n_patients"])
    assert {"CNV": 1.0, "DME": 0.5} == {
        name: figures["pointing_game"]["value"] for name, figures in found["per_class"].items()
    }
    assert found["pooled"]["iou"]["value"] == pytest.approx(0.4)
    difference = found["pooled"]["iou"]["mean_map"]["difference"]
    assert [pytest.approx(0.3)] * 3 == [difference[key] for key in ("value", "low", "high")]


def test_differences_are_paired() -> None:
    """Where ours is better by the same on every image, the interval of the difference is a point."""
    generator = np.random.default_rng(0)
    base = generator.random(40)
    better = Placed(base * 0 + 1, base + 0.25, np.tile(base[:, None], (1, len(THRESHOLDS))) + 0.25)
    worse = Placed(base * 0, base, np.tile(base[:, None], (1, len(THRESHOLDS))))
    labels, patients = np.array(["CNV"] * 40, dtype=object), [str(number // 2) for number in range(40)]
    pooled = report(better, {"centred_blob": worse}, labels, patients, ["CNV"], resamples=200)["pooled"]
    for name in ("energy_inside", "iou"):
        spread = pooled[name]["high"] - pooled[name]["low"]
        difference = pooled[name]["centred_blob"]["difference"]
        assert spread > 0.05
        assert difference["high"] - difference["low"] < 1e-9
