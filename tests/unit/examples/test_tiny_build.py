"""Making the small model that draws: the same stages as for the real one, a few steps long."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples.tiny_sd3 import autoencoder
from examples.tiny_sd3.autoencoder import Course, build_autoencoder, standardise, train_autoencoder, training_pictures
from examples.tiny_sd3.build import Plan, build
from examples.tiny_sd3.draw import to_unit
from examples.tiny_sd3.painter import Painter
from library.models.vae import SD3_SCALE, SD3_SHIFT
from library.tensorfile import read_header, read_tensors

PLAN = Plan(
    num_pictures=8,
    num_vae_pictures=8,
    vae_steps=4,
    decoder_steps=1,
    steps=2,
    batch=4,
    num_judged=0,
    threads=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("build")
    build(place, PLAN)
    return place


def test_a_build_ends_with_a_model_that_draws_and_its_log(folder: Path):
    model = folder / "base" / "sd3_tiny.safetensors"
    pictures = Painter(model).paint(["a red circle", "a blue star"], [0, 1], steps=2)
    assert [picture.size for picture in pictures] == [(64, 64)] * 2
    log = (folder / "base" / "training_log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[:2] for line in log if not line.startswith("#")] == [
        ["part", "steps"],
        ["tiny_sd3_vae", "4"],
        ["tiny_sd3_decoder", "1"],
        ["sd3_tiny", "2"],
    ]


def test_every_part_was_trained_but_for_the_vae(folder: Path):
    before, after = (read_tensors(read_header(folder / part / "sd3_tiny.safetensors")) for part in ("start", "base"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name].half(), after[name])}
    assert not any(name.startswith("first_stage_model.") for name in changed)
    for part in ("model.diffusion_model.joint_blocks.0.", *(f"text_encoders.{name}." for name in ("clip_l", "t5xxl"))):
        assert any(name.startswith(part) for name in changed), part


def test_what_is_done_is_not_done_again(folder: Path):
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and "base" not in path.parts}
    build(folder, PLAN)
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_an_autoencoder_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path: Path):
    pictures = training_pictures(0, 8)

    def trained(*breaks: int) -> dict[str, torch.Tensor]:
        course = Course(build_autoencoder(0), 4)
        for end in (*breaks, 4):
            _until(course, end, pictures)
            course.save(tmp_path / "state.pt")
            course = Course(build_autoencoder(1), 4)
            course.load(tmp_path / "state.pt")
        return course.vae.state_dict()

    whole, broken = trained(), trained(2, 3)  # the second break is where the encoder has come to rest
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


class _Break(Exception):
    pass


def _until(course: Course, end: int, pictures: torch.Tensor) -> None:
    def after_step(loss: float) -> None:
        assert loss > 0
        if course.step == end:
            raise _Break

    with pytest.raises(_Break):
        train_autoencoder(course, pictures, 0, after_step)


@torch.no_grad()
def test_standard_latents_decode_to_the_same_picture_away_from_the_borders():
    vae, pictures = build_autoencoder(0), training_pictures(0, 32)
    images = to_unit(pictures)
    before = vae.decoder.conv_in(vae.encode(images).latent_dist.mean)
    standardise(vae, pictures)
    latents = vae.encode(images).latent_dist.mean
    scaled = (latents - SD3_SHIFT) * SD3_SCALE
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        vae.decoder.conv_in(latents)[..., 1:-1, 1:-1], before[..., 1:-1, 1:-1], atol=1e-3, rtol=0
    )


def test_the_decoder_alone_leaves_latents_as_they_are():
    pictures, vae = training_pictures(0, 8), build_autoencoder(0)
    encoder = {name: tensor.clone() for name, tensor in vae.encoder.state_dict().items()}
    decoder = {name: tensor.clone() for name, tensor in vae.decoder.state_dict().items()}
    course = Course(vae, 2, name="decoder", has_encoder=False)
    train_autoencoder(course, pictures, 0, lambda loss: None)
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in vae.encoder.state_dict().items())
    assert any(not torch.equal(tensor, decoder[name]) for name, tensor in vae.decoder.state_dict().items())


def test_the_learning_rate_rises_and_falls():
    rates = [autoencoder.rate(step / 100, 2e-3) for step in range(101)]
    assert max(rates) == rates[2] and rates[0] < 1e-4 and rates[-1] == pytest.approx(0, abs=1e-9)
