"""The rule on pixels: right about every drawn picture, and not to be talked round."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image

from examples.tiny_sd3.draw import draw
from examples.tiny_sd3.judge import judge
from examples.tiny_sd3.quality import asked, shares, table
from examples.tiny_sd3.world import SIDE, Scene, Thing, double, scene, single, unseen

RED_STAR = single("star", "red", "on a blue background", size="large")


@pytest.mark.parametrize("kind", ["simple", "pattern", "landscape", "two"])
def test_every_drawn_picture_is_right(kind: str):
    scenes = [scene(11, index, kind) for index in range(20)]
    assert shares([draw(what) for what in scenes], scenes)["all"] == 1


def test_unseen_combinations_are_judged_as_well():
    scenes = [unseen(11, index) for index in range(20)]
    assert shares([draw(what) for what in scenes], scenes)["all"] == 1


@pytest.mark.parametrize(
    ("drawn", "wrong"),
    [
        (single("circle", "red", "on a blue background", size="large"), "shape"),
        (single("cross", "red", "on a blue background", size="large"), "shape"),
        (single("star", "orange", "on a blue background", size="large"), "colour"),
        (single("star", "red", "on a purple background", size="large"), "background"),
        (single("star", "red", "on the sea at night", size="large"), "background"),
        (single("star", "red", "on a blue background", size="small"), "size"),
        (single("star", "red", "on a blue background", size="large", pattern="dotted"), "pattern"),
    ],
)
def test_another_picture_is_wrong_in_what_differs_and_in_nothing_else(drawn: Scene, wrong: str):
    verdict = judge(draw(drawn), RED_STAR)
    assert [trait for trait, is_right in verdict._asdict().items() if not is_right] == [wrong]


def test_a_place_and_an_order_count():
    left = single("heart", "pink", "on a black background", place="on the left")
    right = single("heart", "pink", "on a black background", place="on the right")
    assert not judge(draw(right), left).place
    one, other = Thing("circle", "red"), Thing("square", "green")
    wanted = double(one, other, "above", "on a white background")
    swapped = judge(draw(double(other, one, "above", "on a white background")), wanted)
    assert not swapped.colour and not swapped.shape
    beside = judge(draw(double(one, other, "to the left of", "on a white background")), wanted)
    assert not beside.is_right


def test_nothing_noise_and_other_pictures_are_wrong():
    noise = numpy.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=numpy.uint8)
    for picture in (Image.new("RGB", (SIDE, SIDE), (40, 90, 220)), Image.fromarray(noise)):
        assert not judge(picture, RED_STAR).is_right
    scenes = asked("simple", 20)
    others = [draw(what) for what in scenes[1:] + scenes[:1]]
    assert shares(others, scenes)["all"] == 0


def test_a_background_that_is_not_named_may_be_any():
    silent = RED_STAR._replace(says_background=False)
    assert judge(draw(single("star", "red", "on a white background", size="large")), silent).is_right


def test_the_table_has_a_line_for_each_group():
    scenes = asked("simple", 2)
    lines = table({"simple": shares([draw(what) for what in scenes], scenes)}).splitlines()
    assert lines[2] == "| one thing on a plain background |" + " 100.0 |" * 7
