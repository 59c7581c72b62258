"""The numbers of an augmentation: what they depend on, and what they mean."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.world import World
from dataloading.config import AugmentConfig
from dataloading.loading.augment import Augmentation, View, _Slot, draw_augmentation, draw_uniforms, plain_view
from dataloading.loading.plan import Plan, StepPlan, training_requests

EVERYTHING = AugmentConfig(flip_vertical=0.3, zoom=0.2)
OFF = {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "zoom": 0.0,
    "rotation_degrees": 0.0,
    "flip": 0.0,
    "flip_vertical": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
}
VIEW = View(image_size=224, mean_gray=0.25)


def sizes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights that differ from draw to draw."""
    return 300 + 61 * (np.arange(count) % 9), 280 + 37 * (np.arange(count) % 11)


def draw(config: AugmentConfig, start: int, stop: int, *, seed: int = 1, epoch: int = 2) -> Augmentation:
    """The augmentation of positions start..stop; a position's picture size depends on the position."""
    widths, heights = (values[start:stop] for values in sizes(stop))
    return draw_augmentation(config, VIEW, widths, heights, draw_uniforms(seed, epoch, start, len(widths)))


def centres(augmentation: Augmentation, view: View = VIEW) -> np.ndarray:
    """Source point that the middle of the output shows: [n, 2]."""
    middle = np.array([view.image_size / 2, view.image_size / 2, 1])
    return augmentation.matrices @ middle


def box_sides(augmentation: Augmentation, view: View = VIEW) -> np.ndarray:
    """Width and height of each crop in source pixels: [n, 2]; the turn comes before the scale."""
    return view.image_size * np.linalg.norm(augmentation.matrices[:, :, :2], axis=2)


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 96), max_size=5), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 99))
def test_numbers_do_not_depend_on_the_batch(cuts, seed, epoch):
    """However an epoch is cut into batches, each position has the same numbers, bit for bit."""
    bounds = [0, *sorted(cuts), 96]
    pairs = [(start, stop) for start, stop in itertools.pairwise(bounds) if stop > start]
    parts = [draw(EVERYTHING, start, stop, seed=seed, epoch=epoch) for start, stop in pairs]
    whole = draw(EVERYTHING, 0, 96, seed=seed, epoch=epoch)
    for name in Augmentation._fields:
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert joined.tobytes() == getattr(whole, name).tobytes()


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 5, 8])
def test_numbers_do_not_depend_on_the_workers(num_workers, micro_batch_size):
    """A draw is augmented alike whichever worker runs it, in whatever micro batch."""
    plan = Plan([40, 30], 1.0, seed=1)
    steps = StepPlan(plan.num_draws, 20, micro_batch_size)
    found = np.zeros((plan.num_draws, 2, 3))
    for rank in range(num_workers):
        for request in training_requests(plan, steps, World(rank=rank, size=num_workers), epoch=2):
            stop = request.start + len(request.rows)
            found[request.start : stop] = draw(EVERYTHING, request.start, stop).matrices
    assert found.tobytes() == draw(EVERYTHING, 0, plan.num_draws).matrices.tobytes()


@pytest.mark.parametrize("switched_off", OFF)
def test_switching_one_step_off_leaves_the_others_as_they_are(switched_off):
    """Each step owns its uniforms: what it does not touch keeps its numbers."""
    full = draw(EVERYTHING, 0, 64)
    less = draw(dataclasses.replace(EVERYTHING, **{switched_off: OFF[switched_off]}), 0, 64)
    if not switched_off.startswith("crop"):
        np.testing.assert_allclose(centres(less), centres(full), atol=1e-9)
    if not switched_off.startswith(("crop", "zoom")):
        np.testing.assert_allclose(box_sides(less), box_sides(full), atol=1e-9)
        assert less.reductions.tolist() == full.reductions.tolist()
    if switched_off not in ("brightness", "contrast"):
        assert (less.gains.tobytes(), less.shifts.tobytes()) == (full.gains.tobytes(), full.shifts.tobytes())
    if switched_off in ("brightness", "contrast"):
        assert less.matrices.tobytes() == full.matrices.tobytes()
    if switched_off.startswith(("crop", "zoom")):
        np.testing.assert_allclose(rotations(less), rotations(full), atol=1e-9)


def rotations(augmentation: Augmentation) -> np.ndarray:
    """Turn and flips of each draw with the crop taken out: [n, 2, 2]."""
    return augmentation.matrices[:, :, :2] * VIEW.image_size / box_sides(augmentation)[:, :, None]


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_everything_off_is_the_plain_view(fit):
    """With each step at its neutral value a training picture is what evaluation shows."""
    view = dataclasses.replace(VIEW, fit=fit)
    widths, heights = sizes(30)
    drawn = draw_augmentation(AugmentConfig(**OFF), view, widths, heights, draw_uniforms(3, 1, 0, len(widths)))
    plain = plain_view(view, widths, heights)
    for name in Augmentation._fields:
        np.testing.assert_allclose(getattr(drawn, name), getattr(plain, name), atol=1e-9)


def test_epochs_seeds_and_positions_differ():
    """No two of many draws share their numbers, so an image drawn twice is augmented anew."""
    drawn = [draw(EVERYTHING, 0, 99, seed=seed, epoch=epoch).gains for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(np.concatenate(drawn).tolist())) == 4 * 99


def test_the_stream_is_the_documented_one():
    """Slot k of position p is word 12 p + k of NumPy's Philox keyed by SeedSequence([seed, epoch, 2])."""
    key = np.random.SeedSequence([7, 4, 2]).generate_state(2, np.uint64)
    uniforms = np.random.Generator(np.random.Philox(key=key)).random((5, 12))
    config = AugmentConfig(**{**OFF, "brightness": 0.5})
    expected = (1 + 0.5 * (2 * uniforms[:, 7] - 1)).astype(np.float32)
    assert draw_augmentation(config, VIEW, *sizes(5), draw_uniforms(7, 4, 0, 5)).gains.tolist() == expected.tolist()


def test_no_step_ever_changes_its_uniform():
    """Runs that go on, and those that are repeated years later, draw what they drew."""
    names = ["AREA", "RATIO", "CENTRE_X", "CENTRE_Y", "ROTATION", "FLIP", "FLIP_VERTICAL", "BRIGHTNESS", "CONTRAST"]
    assert {name: number for number, name in enumerate([*names, "ZOOM"])} == {slot.name: slot.value for slot in _Slot}


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_crops_keep_their_share_inside_the_view(fit):
    """A crop keeps a uniform share of the fitted view's area, in range, and never leaves that view."""
    view = dataclasses.replace(VIEW, fit=fit)
    widths, heights = sizes(4000)
    config = AugmentConfig(**{**OFF, "crop_scale": (0.5, 0.9), "crop_ratio": (0.6, 1.5)})
    drawn = draw_augmentation(config, view, widths, heights, draw_uniforms(0, 0, 0, len(widths)))
    whole = np.stack([widths, heights], axis=1) * 1.0
    base = whole if fit == "stretch" else np.repeat(whole.min(axis=1, keepdims=True), 2, axis=1)
    relative = box_sides(drawn, view) / base
    shares, ratios = relative.prod(axis=1), relative[:, 0] / relative[:, 1]
    assert (np.abs(centres(drawn, view) - whole / 2) + box_sides(drawn, view) / 2 <= base / 2 + 1e-9).all()
    assert 0.5 <= shares.min() < 0.51
    assert 0.89 < shares.max() <= 0.9
    assert shares.mean() == pytest.approx(0.7, abs=0.01)
    assert 0.6 - 1e-9 <= ratios.min() < 0.61
    assert 1.49 < ratios.max() <= 1.5 + 1e-9


def test_rotation_and_flips_act_on_the_output():
    """A flip mirrors the output about its middle, and angles are uniform in their range."""
    turned = draw(AugmentConfig(**{**OFF, "rotation_degrees": 30.0}), 0, 4000)
    angles = np.degrees(np.arctan2(rotations(turned)[:, 1, 0], rotations(turned)[:, 0, 0]))
    assert np.abs(angles).max() <= 30 + 1e-9
    assert angles.std() == pytest.approx(30 / np.sqrt(3), rel=0.03)
    plain = draw(AugmentConfig(**OFF), 0, 8)
    mirror = np.array([[-1.0, 0, VIEW.image_size], [0, 1, 0], [0, 0, 1]])
    flipped = draw(AugmentConfig(**{**OFF, "flip": 1.0}), 0, 8)
    np.testing.assert_allclose(flipped.matrices, plain.matrices @ mirror, atol=1e-9)
    flips = draw(AugmentConfig(**{**OFF, "flip": 0.3}), 0, 4000).matrices[:, 0, 0] < 0
    assert flips.mean() == pytest.approx(0.3, abs=0.03)


def test_zoom_is_one_uniform_factor_on_both_sides():
    """The view grows or shrinks about its centre, in its own aspect, by slot 9's factor; outward is outside it."""
    key = np.random.SeedSequence([1, 2, 2]).generate_state(2, np.uint64)
    uniforms = np.random.Generator(np.random.Philox(key=key)).random((4000, 12))
    plain, zoomed = (draw(AugmentConfig(**{**OFF, "zoom": zoom}), 0, 4000) for zoom in (0.0, 0.4))
    factors = 1 + 0.4 * (2 * uniforms[:, 9] - 1)
    np.testing.assert_allclose(box_sides(zoomed), box_sides(plain) * factors[:, None], rtol=1e-12)
    np.testing.assert_allclose(centres(zoomed), centres(plain), atol=1e-9)
    assert (factors.min(), factors.max(), factors.mean()) == pytest.approx((0.6, 1.4, 1.0), abs=0.01)
    corner = zoomed.matrices[factors > 1] @ np.array([0.0, 0.0, 1.0])
    assert corner.max() < 0


@settings(deadline=None)
@given(zoom=st.floats(0, 0.99), start=st.integers(0, 2**40), seed=st.integers(0, 2**32 - 1))
def test_zoom_goes_with_every_other_step(zoom, start, seed):
    """Whatever else is drawn, zoom scales the matrix's four coefficients by one factor and leaves the rest in bits."""
    uniforms = draw_uniforms(seed, 0, start, 24)
    plain, zoomed = (
        draw_augmentation(dataclasses.replace(EVERYTHING, zoom=value), VIEW, *sizes(24), uniforms)
        for value in (0.0, zoom)
    )
    factors = box_sides(zoomed) / box_sides(plain)
    np.testing.assert_allclose(factors[:, 0], factors[:, 1], rtol=1e-9)
    assert (np.abs(factors - 1) <= zoom + 1e-9).all()
    np.testing.assert_allclose(
        zoomed.matrices[:, :, :2], plain.matrices[:, :, :2] * factors[:, :, None], rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(centres(zoomed), centres(plain), atol=1e-9)
    assert (zoomed.gains.tobytes(), zoomed.shifts.tobytes()) == (plain.gains.tobytes(), plain.shifts.tobytes())


def test_zoomed_in_pictures_are_decoded_larger():
    """The reduction follows what zoom leaves of the view: a JPEG is never decoded to fewer pixels than asked for."""
    widths = heights = np.full(4000, 500)
    config = AugmentConfig(**{**OFF, "zoom": 0.9})
    drawn = draw_augmentation(config, VIEW, widths, heights, draw_uniforms(0, 0, 0, len(widths)))
    room = box_sides(drawn).min(axis=1) / (VIEW.image_size * VIEW.reduce_tolerance)
    assert np.where(room >= 4, 4, np.where(room >= 2, 2, 1)).tolist() == drawn.reductions.tolist()
    assert {1, 2, 4} == set(drawn.reductions.tolist())


def test_contrast_turns_about_the_mean_and_brightness_scales():
    """The mean gray level stays where contrast alone acts; brightness multiplies all levels."""
    contrast = draw(AugmentConfig(**{**OFF, "contrast": 0.4}), 0, 500)
    np.testing.assert_allclose(contrast.gains * 0.25 + contrast.shifts, 0.25, atol=1e-6)
    assert (contrast.gains.min(), contrast.gains.max()) == pytest.approx((0.6, 1.4), abs=0.01)
    brightness = draw(AugmentConfig(**{**OFF, "brightness": 0.4}), 0, 500)
    assert np.abs(brightness.shifts).max() == 0
    both = draw(AugmentConfig(**{**OFF, "brightness": 0.4, "contrast": 0.4}), 0, 500)
    np.testing.assert_allclose(both.gains, contrast.gains * brightness.gains, rtol=1e-6)
    np.testing.assert_allclose(both.shifts, contrast.shifts * brightness.gains, atol=1e-7)


@pytest.mark.parametrize(
    ("size_px", "tolerance", "expected"),
    [
        (224, 0.9, 1),
        (402, 0.9, 1),
        (404, 0.9, 2),
        (806, 0.9, 2),
        (807, 0.9, 4),
        (5000, 0.9, 4),
        (2000, 9.0, 1),
    ],
)
def test_reduction_keeps_enough_decoded_pixels(size_px, tolerance, expected):
    """The reduction is the largest of 1, 2, 4 that leaves `tolerance` decoded pixels an output pixel."""
    view = View(image_size=224, reduce_tolerance=tolerance)
    for width, height in ((size_px, 5000), (5000, size_px)):
        assert plain_view(view, np.array([width]), np.array([height])).reductions.tolist() == [expected]


def test_fit_crop_keeps_the_aspect():
    """`crop` shows the largest centred square, undistorted."""
    plain = plain_view(View(image_size=100, fit="crop"), np.array([300, 200]), np.array([200, 300]))
    assert plain.matrices.tolist() == [[[2, 0, 50], [0, 2, 0]], [[2, 0, 0], [0, 2, 50]]]
