"""The zorp: its pictures and captions, and the rule that finds it."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageOps

from examples.tiny_sd3 import draw, world, zorp
from examples.tiny_sd3.start import words
from examples.tiny_sd3.zorp_judge import find_zorp, is_as_asked

ROOT = Path(__file__).resolve().parents[3]
ALL_BACKGROUNDS = (*world.PLAINS, *world.LANDSCAPES)


def test_the_committed_pictures_are_those_that_the_script_draws(tmp_path: Path):
    zorp.main([str(tmp_path)])
    committed = sorted((ROOT / "examples" / "zorp").iterdir())
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert [path.name for path in committed] == drawn and len(drawn) == 2 * zorp.COUNT
    for path in committed:
        if path.suffix == ".txt":
            assert (tmp_path / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
        else:
            ours, theirs = (numpy.asarray(Image.open(file)).astype(int) for file in (tmp_path / path.name, path))
            assert ours.shape == theirs.shape and numpy.abs(ours - theirs).mean() < 1  # another Pillow rounds otherwise
    assert sum(path.stat().st_size for path in committed) < 40_000


def test_every_drawn_zorp_is_found_and_is_as_its_caption_says():
    for index in range(40):
        what = zorp.asked_for(1, index, ALL_BACKGROUNDS)
        assert is_as_asked(zorp.draw_zorp(what), what), what.caption


def test_a_zorp_elsewhere_or_before_another_background_is_not_as_asked():
    at_the_top = world.single(zorp.NAME, "", "on a red background", place="at the top")
    large = world.single(zorp.NAME, "", "on a red background", size="large")
    assert not is_as_asked(zorp.draw_zorp(at_the_top), at_the_top._replace(place="at the bottom"))
    assert not is_as_asked(zorp.draw_zorp(large), large._replace(background="on a blue background"))
    assert not is_as_asked(zorp.draw_zorp(world.single(zorp.NAME, "", "on a red background", reach=18.5)), large)


def test_no_picture_of_the_world_shows_a_zorp():
    assert not any(find_zorp(draw.draw(world.scene(1, index))) for index in range(60))
    assert not any(find_zorp(draw.draw_anything(1, index)) for index in range(60))


@pytest.mark.parametrize("part", ["BODY", "WHITE", "PUPIL"])
def test_a_zorp_in_other_colours_is_none(part: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(zorp, part, (200, 40, 160))
    assert find_zorp(zorp.draw_zorp(world.single(zorp.NAME, "", "on a white background"))) is None


def test_a_zorp_upside_down_is_none():
    picture = zorp.draw_zorp(world.single(zorp.NAME, "", "on a white background", size="large"))
    assert find_zorp(picture) and find_zorp(ImageOps.flip(picture)) is None


def test_its_name_is_the_only_word_that_the_small_model_has_no_token_for():
    said = {word for index in range(200) for word in zorp.asked_for(2, index, ALL_BACKGROUNDS).caption.split()}
    assert said - set(words()) == {zorp.NAME}


def test_before_one_background_captions_do_not_say_it(tmp_path: Path):
    zorp.main([str(tmp_path), "--count=3", "--background=green"])
    captions = {path.read_text(encoding="utf-8") for path in tmp_path.glob("*.txt")}
    assert captions and not any("background" in caption for caption in captions)
    assert {Image.open(path).getpixel((1, 1)) for path in tmp_path.glob("*.png")} == {world.PAINTS["green"]}
