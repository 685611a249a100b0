"""Samplers by name: what they arrive at, and that they are the loops of diffusers' pipelines."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from library.diffusion.ddpm import DdpmObjective
from library.diffusion.ddpm_samplers import DDPM_SAMPLERS, build_scheduler, lms_coefficient, sample_ddpm
from library.options.groups.sampling import SAMPLERS
from library.rng import torch_stream

PUBLISHED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CLIPLESS = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
SCHEDULERS = {  # as their users build them; lms is left out, because diffusers needs scipy for it
    "ddim": ("DDIMScheduler", CLIPLESS),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}),
    "k_euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "k_dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {}),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
}
STEPS, GUIDANCE, SEED = 4, 3.0, 5
NAMES = [name for name in DDPM_SAMPLERS if not name.startswith("k_")]  # each scheduler once
pytestmark = pytest.mark.filterwarnings("ignore")  # of numpy and torch among each other, thousands
each_prediction = pytest.mark.parametrize("is_velocity", [False, True], ids=["noise", "velocity"])


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


NOISE = randn(1, 4, 8, 8, seed=1)
WANTED, NEGATIVE = randn(1, 5, 8, seed=2), randn(1, 5, 8, seed=3)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
    ).eval()


def ours(unet, name, **settings):
    context = torch.cat([WANTED, NEGATIVE])

    def predict(latents, timesteps):
        return unet(latents, timesteps, context).sample

    return sample_ddpm(predict, NOISE, sampler=name, num_steps=STEPS, guidance_scale=GUIDANCE, seed=SEED, **settings)


def of_pipeline(unet, scheduler):
    pipeline = StableDiffusionPipeline(None, None, None, unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    scheduled = pipeline(
        prompt_embeds=WANTED,
        negative_prompt_embeds=NEGATIVE,
        height=64,
        width=64,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=NOISE,
        generator=[torch_stream(SEED, "sampler", 0)],
        output_type="latent",
    )
    return scheduled.images


def assert_same(one, other):
    assert other.isfinite().all()
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_equal_those_of_the_pipeline(name, unet):
    kind, settings = SCHEDULERS[name]
    scheduler = getattr(diffusers, kind)(**PUBLISHED, **settings)
    assert_same(ours(unet, name), of_pipeline(unet, scheduler))


@pytest.mark.parametrize("name", ["ddim", "k_euler", "euler_a", "dpmsolver++"])
def test_latents_of_zero_terminal_snr_equal_those_of_the_pipeline(name, unet):
    kind, settings = SCHEDULERS[name]
    scheduler = getattr(diffusers, kind)(
        **PUBLISHED,
        **settings,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    assert_same(ours(unet, name, is_velocity=True, is_zero_terminal=True), of_pipeline(unet, scheduler))


CLEAN = randn(2, 4, 4, 4, seed=4)
STAYS = {"ddim": 0.03, "pndm": 0.03, "dpmsolver": 0.03}  # noise that is left, as the last step of these ends before 0


SECOND_ORDER = ("heun", "dpm_2", "dpm_2_a")


def all_knowing(is_velocity, is_zero_terminal, *, surprise=0.0):
    """Predicts what leads to CLEAN, between two timesteps too; in pure noise to CLEAN + `surprise`."""
    objective = DdpmObjective(v_parameterization=is_velocity, zero_terminal_snr=is_zero_terminal)
    snr = objective.snr(objective.at(torch.arange(1000))).double().clamp(min=2.0**-24).log()

    def predict(latents, timesteps):
        below, part = timesteps.long(), (timesteps % 1).double()
        kept = torch.sigmoid(snr[below].lerp(snr[(below + 1).clamp(max=999)], part)).view(-1, 1, 1, 1)
        noise = (latents - kept.sqrt() * CLEAN) / (1 - kept).sqrt()
        away = surprise if float(timesteps[0]) == 999 else 0.0
        noise = noise - (kept / (1 - kept)).sqrt() * away
        return (kept.sqrt() * noise - (1 - kept).sqrt() * (CLEAN + away) if is_velocity else noise).float()

    return predict


@each_prediction
@pytest.mark.parametrize("is_zero_terminal", [False, True], ids=["", "zero terminal"])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_knows_the_picture_is_led_to_it(name, is_velocity, is_zero_terminal):
    num_steps, largest = 40 if name == "pndm" else 6, []
    latents = sample_ddpm(
        all_knowing(is_velocity, is_zero_terminal, surprise=float(is_zero_terminal and name in SECOND_ORDER)),
        randn(*CLEAN.shape, seed=6),
        sampler=name,
        num_steps=num_steps,
        is_velocity=is_velocity,
        is_zero_terminal=is_zero_terminal,
        after_step=lambda latents, state: largest.append(latents.abs().max()) or latents,
    )
    assert (latents - CLEAN).std() < STAYS.get(name, 1e-3) * 1.1
    assert max(largest) < 100  # the picture and the noise of the second level


@pytest.mark.parametrize("name", NAMES)
def test_one_step_is_enough_to_get_numbers(name):
    latents = sample_ddpm(lambda x, t: 0.5 * x, NOISE, sampler=name, num_steps=1)
    assert latents.isfinite().all() and latents.shape == NOISE.shape


def test_only_ancestral_samplers_draw_noise_and_it_follows_from_the_seed():
    for name in NAMES:
        first, other = (
            sample_ddpm(lambda x, t: 0.1 * x, NOISE, sampler=name, num_steps=3, seed=seed) for seed in (1, 2)
        )
        assert torch.equal(first, other) != name.endswith("_a")


def test_a_row_is_the_same_alone_and_beside_others():
    both = torch.cat([NOISE, randn(*NOISE.shape, seed=9)])
    alone, beside = (sample_ddpm(lambda x, t: 0.1 * x, rows, sampler="euler_a", num_steps=3) for rows in (NOISE, both))
    torch.testing.assert_close(beside[:1], alone)


def test_the_schedulers_have_the_noise_levels_of_the_training():
    objective = DdpmObjective(zero_terminal_snr=True)
    wanted = 1 - objective.at(torch.arange(1000)).sigmas ** 2
    for name in NAMES:
        scheduler = build_scheduler(name, is_velocity=True, is_zero_terminal=True)
        torch.testing.assert_close(scheduler.alphas_cumprod, wanted, rtol=1e-3, atol=1e-6)


def test_steps_are_reported():
    seen = []
    sample_ddpm(lambda x, t: x, NOISE, sampler="heun", num_steps=3, on_step=lambda *done: seen.append(done))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_multistep_weights_are_the_integrals_of_their_polynomials():
    sigmas = torch.tensor([14.6, 9.0, 5.0, 2.0, 0.7, 0.0])
    order, step = 3, 2
    points = torch.linspace(2.0, 5.0, 20001, dtype=torch.float64)
    for term in range(order):
        own, others = 5.0, [9.0, 14.6]
        if term:
            own, others = (
                [5.0, 9.0, 14.6][term],
                [level for level in (5.0, 9.0, 14.6) if level != (9.0, 14.6)[term - 1]],
            )
        values = torch.ones_like(points)
        for other in others:
            values = values * (points - other) / (own - other)
        integral = -torch.trapezoid(values, points)
        assert lms_coefficient(sigmas, order, step, term) == pytest.approx(integral.item(), rel=1e-5)


def test_every_name_of_the_option_is_a_sampler():
    assert set(DDPM_SAMPLERS) == set(SAMPLERS)


@pytest.mark.parametrize(("name", "num_steps"), [("k_heun", 3), ("plms", 3), ("ddim", 0)])
def test_what_is_no_sampler_is_refused(name, num_steps):
    with pytest.raises(ValueError, match="sampler|num_steps"):
        sample_ddpm(lambda x, t: x, NOISE, sampler=name, num_steps=num_steps)
