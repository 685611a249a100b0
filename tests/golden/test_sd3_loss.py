"""The whole SD3 training loss against stored reference values (data/SOURCES.d)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from library.diffusion.loss import LossSettings
from library.diffusion.objective import FlowObjective
from library.training.stepping.step import compute_loss

DATA = Path(__file__).parent / "data"
GOLDEN = json.loads((DATA / "sd3_loss.json").read_text())
FLOW = ("logit_mean", "logit_std", "mode_scale", "training_shift")


@pytest.fixture(scope="module")
def tensors():
    return load_file(DATA / "sd3_loss.safetensors")


def name_of(case):
    return f"{case['weighting_scheme']},{case['training_shift']},{case['loss_type']}{',mask' * case['masked_loss']}"


def run(case, tensors):
    objective = FlowObjective(
        weighting_scheme=case["weighting_scheme"], **{name: case[name] for name in FLOW if name in case}
    )
    latents = (tensors["raw_latents_from_vae"] - GOLDEN["vae_shift"]) * GOLDEN["vae_scale"]
    mask = torch.nn.functional.interpolate(tensors["alpha_masks"][:, None], latents.shape[-2:], mode="area")
    seen = []

    def predict(noisy_latents, timesteps):
        seen.extend([noisy_latents, timesteps])
        return tensors["model_output"]

    losses = compute_loss(
        latents,
        tensors["noise"],
        objective.draw(tensors["u"], tensors["z"]),
        predict,
        objective,
        loss=LossSettings(case["loss_type"], case["huber_schedule"], case["huber_c"], case["huber_scale"]),
        loss_weights=tensors["loss_weights"],
        mask=mask if case["masked_loss"] else None,
    )
    return losses, seen


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=name_of)
def test_loss_equals_the_stored_one(case, tensors):
    losses, (_, timesteps) = run(case, tensors)
    assert timesteps.tolist() == case["timesteps"]
    assert losses.shape == (3,)
    assert losses.mean().item() == pytest.approx(case["loss"], rel=1e-5)


def test_model_gets_the_stored_noisy_latents(tensors):
    _, (noisy_latents, _) = run(GOLDEN["cases"][0], tensors)
    torch.testing.assert_close(noisy_latents, tensors["case0.noisy_model_input"], rtol=1e-5, atol=1e-6)
