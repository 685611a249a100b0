"""The model that draws: its pictures, what is seen on them, its autoencoder's scale, and the file that is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from examples.draw_pictures import COLOURS
from examples.drawing_sd3 import subject
from examples.drawing_sd3.autoencoder import CHANNELS, build_autoencoder, standardise, training_pictures
from examples.drawing_sd3.draw import SIDE, draw, drawing, to_unit
from examples.drawing_sd3.judge import look
from examples.drawing_sd3.make import Effort, grid, make
from examples.drawing_sd3.pace import Pace
from library.families.sd3.checkpoint import inspect_files
from library.models.tokenizers import load_tokenizers
from library.models.vae import SD3_SCALE, SD3_SHIFT

EFFORT = Effort(vae_steps=5, steps=5, num_pictures=16, num_shown=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("drawing"), effort=EFFORT)


def test_a_number_is_always_the_same_picture_and_another_number_another():
    assert draw(drawing(1, 7)).tobytes() == draw(drawing(1, 7)).tobytes()
    assert len({draw(drawing(seed, index)).tobytes() for seed in range(2) for index in range(20)}) == 40


def test_what_a_caption_says_is_what_is_seen():
    for what in (drawing(2, index) for index in range(100)):
        seen = look(draw(what))
        assert (seen.colour, seen.background) == (what.colour, what.background)
        assert all(word in what.caption for word in (what.size, what.colour, what.shape))
        assert (f"on a {what.background} background" in what.caption) == what.says_background
        assert seen.shape == what.shape or what.reach < 16, what  # corners of the smallest squares are round


def test_nothing_is_seen_on_a_plain_picture():
    plain = look(Image.new("RGB", (SIDE, SIDE), COLOURS["green"]))
    assert plain == ("green", "", "green")


def test_standardised_latents_have_mean_0_and_deviation_1_and_are_decoded_as_before():
    vae = build_autoencoder(0).requires_grad_(False)
    pictures = training_pictures(0, 32)
    before = vae.encode(to_unit(pictures)).latent_dist
    decoded = vae.decoder.conv_in(before.mean)
    standardise(vae, pictures)
    after = vae.encode(to_unit(pictures)).latent_dist
    scaled = (after.mean - SD3_SHIFT) * SD3_SCALE
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(CHANNELS), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(CHANNELS), atol=1e-3, rtol=0)
    deviation = before.mean.std((0, 2, 3))[:, None, None]
    torch.testing.assert_close(after.std * SD3_SCALE, before.std / deviation, atol=1e-4, rtol=1e-3)
    inside = (..., slice(1, -1), slice(1, -1))  # the border's padding does not know of the mean
    torch.testing.assert_close(vae.decoder.conv_in(after.mean)[inside], decoded[inside], atol=1e-3, rtol=1e-3)


def test_the_file_has_every_part_of_sd3_medium(made: Path):
    files = inspect_files(made)
    assert files.variant == "medium" and files.config.hidden == 64 * files.config.depth
    assert all((files.vae, files.clip_l, files.clip_g, files.t5xxl))
    assert list(load_tokenizers(("clip_l", "clip_g", "t5xxl"), model_path=made)) == ["clip_l", "clip_g", "t5xxl"]


def test_the_same_seed_gives_the_same_model(made: Path, tmp_path: Path):
    assert make(tmp_path / "again", effort=EFFORT).read_bytes() == made.read_bytes()


def test_every_picture_shown_has_its_place():
    sheet = grid([Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "lime", "blue")], columns=2)
    assert sheet.size == (2 * SIDE, 2 * SIDE)
    places = ((0, 0), (SIDE, 0), (0, SIDE), (SIDE, SIDE))
    assert [sheet.getpixel(place) for place in places] == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


def test_the_learning_rate_rises_shortly_then_falls_to_nothing():
    pace = Pace("test", num_steps=100)
    rates = [pace.rate(1.0, progress) for progress in pace.steps()]
    assert rates[0] < 0.1 < 0.9 < rates[3] and rates[3:] == sorted(rates[3:], reverse=True) and rates[-1] < 0.01


def test_a_training_without_time_has_no_steps():
    assert list(Pace("test", num_steps=3, seconds=1e-9).steps())[1:] == []


def test_the_toy_is_yellow_before_the_background_of_its_caption(tmp_path: Path):
    subject.main([str(tmp_path), "4"])
    captions = {path.stem: path.read_text(encoding="utf-8").strip() for path in tmp_path.glob("*.txt")}
    assert sorted(captions.values()) == sorted(f"a sks toy on a {name} background" for name in subject.BACKGROUNDS)
    for stem, caption in captions.items():
        seen = look(Image.open(tmp_path / f"{stem}.png"))
        assert seen.colour == "yellow" and f"on a {seen.background} background" in caption


def test_before_one_background_captions_do_not_say_it(tmp_path: Path):
    subject.main([str(tmp_path), "3", "green"])
    assert {path.read_text(encoding="utf-8") for path in tmp_path.glob("*.txt")} == {"a sks toy\n"}
    assert {look(Image.open(path)).background for path in tmp_path.glob("*.png")} == {"green"}
