"""What the tiny model of examples/tiny_sd learns from, and what it begins with."""

from __future__ import annotations

import torch

from examples.tiny_sd.autoencoder import SCALE, build_autoencoder, standardise, training_pictures
from examples.tiny_sd.build import vae_of
from examples.tiny_sd.pictures import MORE, large_thing, write_pictures
from examples.tiny_sd.start import write_start
from examples.tiny_sd3.draw import draw, to_unit
from examples.tiny_sd3.judge import judge
from library.families.sd.family import SdFamily


def test_every_picture_shows_what_its_caption_says():
    for index in range(15):
        for what in (large_thing(3, index), large_thing(3, index, MORE)):
            assert judge(draw(what), what).is_right


def test_pictures_are_written_with_their_captions(tmp_path):
    captions = write_pictures(tmp_path, 2, seed=1)
    assert captions == {f"000{index}": large_thing(1, index).caption for index in range(2)}
    assert (tmp_path / "0001.txt").read_text(encoding="utf-8").strip() == captions["0001"]


@torch.no_grad()
def test_standardised_latents_are_decoded_to_the_same_pictures():
    vae, pictures = build_autoencoder(0).eval(), training_pictures(0, 4)

    def latents_and_pictures():
        latents = vae.encode(to_unit(pictures)).latent_dist.mean
        return latents, vae.decode(latents).sample

    _, before = latents_and_pictures()
    standardise(vae, pictures)
    latents, after = latents_and_pictures()
    assert (latents * SCALE).mean((0, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close((latents * SCALE).std((0, 2, 3)), torch.ones(4), rtol=1e-4, atol=0)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_the_start_is_an_sd1_model_with_the_given_autoencoder(tmp_path):
    vae = {name: tensor.clone() for name, tensor in build_autoencoder(1).state_dict().items()}
    path = tmp_path / "start.safetensors"
    write_start(path, vae, seed=0)
    family = SdFamily(pretrained=path)
    assert family.inspect().kind == "sd1"
    assert family.load_tokenizers(family.inspect(), ("clip",))
    again = vae_of(path)
    assert vae.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in vae.items())
