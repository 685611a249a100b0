"""Changes of colour: seldom, small, and from the given draw only."""

import colorsys
import random

import numpy as np
import pytest

from library.data.pixels.augment import bend_gamma, change_colours, turn_hue

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def test_a_third_is_changed_half_by_hue_half_by_brightness():
    untouched, greys_change, total = 0, 0, 1000
    picture = np.stack([np.full((2, 3), 100), np.full((2, 3), 100), np.full((2, 3), 160)], -1).astype(np.uint8)
    picture[0] = 128  # a grey row, which only a change of brightness moves
    for seed in range(total):
        changed = change_colours(picture, random.Random(seed))
        if np.array_equal(changed, picture):
            untouched += 1
        elif (changed[0] != 128).any():
            greys_change += 1
    assert 0.62 < untouched / total < 0.75
    assert 0.35 < greys_change / (total - untouched) < 0.62


def test_the_same_draw_gives_the_same_picture_and_the_input_stays():
    before = NOISE.copy()
    results = [change_colours(NOISE, random.Random(seed)) for seed in (4, 4, 5)]
    assert np.array_equal(NOISE, before)
    assert np.array_equal(results[0], results[1])
    assert all(result.shape == NOISE.shape and result.dtype == np.uint8 for result in results)


@pytest.mark.parametrize("degrees", [-16.0, 5.0, 16.0])
def test_hue_turns_by_degrees(degrees):
    turned = turn_hue(NOISE, degrees)
    for old, new in zip(NOISE.reshape(-1, 3)[:50] / 255, turned.reshape(-1, 3)[:50], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*old)
        expected = np.array(colorsys.hsv_to_rgb((hue + degrees / 360) % 1, saturation, value)) * 255
        assert np.abs(expected - new).max() <= 1


def test_hue_turned_by_nothing_or_of_grey_is_the_same():
    assert np.array_equal(turn_hue(NOISE, 0.0), NOISE)
    grey = np.repeat(NOISE[..., :1], 3, axis=-1)
    assert np.array_equal(turn_hue(grey, 16.0), grey)


@pytest.mark.parametrize("gamma", [0.95, 1.05])
def test_gamma_keeps_black_and_white_and_bends_the_rest(gamma):
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
    bent = bend_gamma(ramp, gamma)
    assert bent[0, 0].tolist() == [0] * 3 and bent[0, 255].tolist() == [255] * 3
    assert np.abs(bent - 255 * (ramp / 255) ** gamma).max() <= 0.5
    assert (np.sign(bent[0, 100:150].astype(int) - ramp[0, 100:150]) == (1 if gamma < 1 else -1)).all()
