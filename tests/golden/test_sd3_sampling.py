"""Whole sampling runs of a small MMDiT against stored latents (data/SOURCES.d)."""

import gzip
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file

from library.diffusion.flow import shift_sigmas
from library.diffusion.samplers import euler_flow, flow_sigmas
from library.models.mmdit import MMDiT, config_from_shapes

DATA = Path(__file__).parent / "data"
PREFIX = "model.diffusion_model."
RUNS = [  # seed, height, width, steps, guidance scale
    (7, 128, 128, 5, 4.0),
    (11, 96, 160, 3, 1.0),
]


@pytest.fixture(scope="module")
def mmdit():
    packed = (DATA / "mmdit_weights_sd3_medium_like.safetensors.gz").read_bytes()
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in load(gzip.decompress(packed)).items()}
    model = MMDiT(config_from_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}))
    model.load_state_dict(weights)
    return model.eval()


def float32_sigmas(steps):
    """The list in float32 arithmetic. It is within a last bit of ours, which is computed in float64; but the random
    model turns one last bit of a noise level into 5e-3 of the latents."""
    ends = shift_sigmas(torch.tensor([1.0, 0.001]), 3.0) * 1000
    levels = shift_sigmas(torch.linspace(*ends.tolist(), steps) / 1000, 3.0)
    return torch.cat([levels, torch.zeros(1)])


@pytest.mark.parametrize("index", range(len(RUNS)))
def test_latents_equal_the_stored_ones(index, mmdit):
    stored = load_file(DATA / "sd3_sampling.safetensors")
    seed, height, width, steps, scale = RUNS[index]
    noise = torch.randn(1, 16, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    context = torch.cat([stored["sample.cond_context"], stored["sample.neg_context"]])
    pooled = torch.cat([stored["sample.cond_y"], stored["sample.neg_y"]])
    num_rows = 2 if scale != 1 else 1

    def predict(latents, timesteps):
        assert len(latents) == num_rows
        return mmdit(latents, timesteps, context[:num_rows], pooled[:num_rows])

    sigmas = float32_sigmas(steps)
    torch.testing.assert_close(sigmas, flow_sigmas(steps, shift=3.0), rtol=0, atol=1.2e-7)
    latents = euler_flow(predict, noise, sigmas, guidance_scale=scale)
    torch.testing.assert_close(latents, stored[f"sample{index}.latent"], rtol=0, atol=1e-3)
