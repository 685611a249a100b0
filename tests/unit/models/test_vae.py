"""The autoencoder built from tensors alone, and the scaling of its latents."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from library.errors import CheckpointError
from library.models.vae import decode_latents, encode_images, load_vae, norm_groups
from library.models.vae_key_map import vae_from_diffusers

MANIFEST = Path(__file__).parents[2] / "golden" / "data" / "state_dicts" / "sd3_medium_incl_clips_t5xxlfp16.json.gz"


def _diffusers_vae(widths=(16, 32, 32, 64), layers=1, groups=8, latent_channels=16):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=widths, layers_per_block=layers, norm_num_groups=groups, latent_channels=latent_channels,
        down_block_types=["DownEncoderBlock2D"] * len(widths), up_block_types=["UpDecoderBlock2D"] * len(widths),
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def original():
    return _diffusers_vae()


@pytest.fixture(scope="module")
def vae(original):
    return load_vae(vae_from_diffusers(original.state_dict()))


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("layout", [vae_from_diffusers, dict])
@torch.no_grad()
def test_both_layouts_give_the_model_the_tensors_came_from(original, images, layout):
    loaded = load_vae(layout(original.state_dict()))
    assert torch.equal(loaded.encode(images).latent_dist.mean, original.encode(images).latent_dist.mean)
    latents = torch.randn(1, 16, 4, 6)
    assert torch.equal(loaded.decode(latents).sample, original.decode(latents).sample)
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])


@torch.no_grad()
def test_latents_are_a_draw_from_the_posterior_shifted_and_scaled(vae, images):
    noise = torch.randn(2, 16, 4, 6)
    posterior = vae.encode(images).latent_dist
    expected = (posterior.mean + posterior.logvar.mul(0.5).exp() * noise - 0.0609) * 1.5305
    torch.testing.assert_close(encode_images(vae, images, noise), expected)
    assert not torch.equal(encode_images(vae, images, noise), encode_images(vae, images, -noise))


@torch.no_grad()
def test_decoding_undoes_shift_and_scale(vae):
    raw = torch.randn(1, 16, 4, 6)
    images = decode_latents(vae, (raw - 0.0609) * 1.5305)
    torch.testing.assert_close(images, vae.decode(raw).sample.clamp(-1, 1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_latents_keep_the_precision_of_the_vae_and_images_are_float(original, images):
    half = load_vae({name: tensor.bfloat16() for name, tensor in original.state_dict().items()})
    latents = encode_images(half, images, torch.zeros(2, 16, 4, 6))
    assert latents.dtype == torch.bfloat16
    assert decode_latents(half, latents).dtype == torch.float32


@torch.no_grad()
def test_latents_that_are_not_finite_are_an_error(original, images):
    tensors = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    tensors["encoder.conv_out.bias"][3] = float("nan")
    with pytest.raises(CheckpointError, match="not finite, computing in float32"):
        encode_images(load_vae(tensors), images, torch.zeros(2, 16, 4, 6))


def test_a_vae_of_another_family_is_refused():
    with pytest.raises(CheckpointError, match="4 latent channels, the model needs 16"):
        load_vae(_diffusers_vae(latent_channels=4).state_dict())


def test_a_missing_tensor_is_named(original):
    tensors = {name: tensor for name, tensor in original.state_dict().items() if name != "decoder.conv_norm_out.bias"}
    with pytest.raises(CheckpointError, match=r"vae: 1 tensors are missing \(decoder.conv_norm_out.bias\)"):
        load_vae(tensors)


@pytest.mark.parametrize(
    ("widths", "groups"),
    [
        ((128, 256, 512, 512), 32),
        ((32, 32, 64, 64), 32),
        ((16, 32, 64, 64), 8),
        ((8, 16), 4),
        ((12, 18), 6),
        ((1, 2), 1),
    ],
)
def test_norm_groups_follow_from_the_widths(widths, groups):
    assert norm_groups(widths) == groups


def test_the_published_vae_loads_on_the_meta_device():
    published = json.loads(gzip.decompress(MANIFEST.read_bytes()))["tensors"]
    tensors = {
        key.removeprefix("first_stage_model."): torch.empty(shape, device="meta")
        for key, (shape, _) in published.items()
        if key.startswith("first_stage_model.")
    }
    assert len(tensors) == 244
    vae = load_vae(tensors)
    assert tuple(vae.config.block_out_channels) == (128, 256, 512, 512)
    assert vae.config.layers_per_block == 2
