"""The SD3 VAE equals the reference values. Source: tests/golden/data/SOURCES.d/text_and_vae.md."""

import gzip
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from library.models.vae import decode_latents, encode_images, load_vae

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def vae():
    return load_vae(load(gzip.decompress((DATA / "sd3_vae_weights.safetensors.gz").read_bytes())))


@pytest.fixture(scope="module")
def golden():
    return load(gzip.decompress((DATA / "sd3_vae_reference.safetensors.gz").read_bytes()))


@torch.no_grad()
def test_latents_equal_the_reference(vae, golden):
    latents = encode_images(vae, golden["pixels.exact"][None], torch.randn(1, 16, 16, 8))
    torch.testing.assert_close(latents, golden["sd3_vae.process_in"], atol=1e-3, rtol=0)


@torch.no_grad()
def test_latents_equal_the_ones_cached_by_another_trainer(vae, golden):
    latents = encode_images(vae, golden["pixels.exact"][None], torch.zeros(1, 16, 16, 8))
    torch.testing.assert_close(latents[0], (golden["cached_latents"] - 0.0609) * 1.5305, atol=1e-3, rtol=0)


@torch.no_grad()
def test_decoded_images_equal_the_reference_within_the_range_of_images(vae, golden):
    images = decode_latents(vae, golden["sd3_vae.process_in"])
    torch.testing.assert_close(images, golden["sd3_vae.decode"].clamp(-1, 1), atol=1e-3, rtol=0)


@torch.no_grad()
def test_decoder_equals_the_reference_outside_it_as_well(vae, golden):
    assert golden["sd3_vae.decode"].abs().max() > 2
    torch.testing.assert_close(
        vae.decode(golden["sd3_vae.encode_mean"]).sample, golden["sd3_vae.decode"], atol=1e-3, rtol=0
    )
