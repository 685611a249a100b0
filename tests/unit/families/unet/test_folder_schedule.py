"""The schedule of noise that a diffusers folder names: followed in training, drawing and what is written."""

import json
import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from library.diffusion.ddpm_samplers import build_scheduler
from library.errors import CheckpointError
from library.families.sd.family import SdFamily
from library.families.unet.diffusers_folder import scheduler_config
from library.families.unet.folder_schedule import schedule_fault, schedule_of
from library.families.unet.objective import make_objective
from library.training.run import Run
from library.training.sweeping.shared_base import SharedBase
from tests.tiny_unets import write_sd1_folder

LINEAR = {"beta_schedule": "linear", "beta_start": 0.0015, "beta_end": 0.0195}
OTHERS = [
    LINEAR,
    {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.02},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": torch.linspace(0.001, 0.03, 1000).tolist()},
]
each_schedule = pytest.mark.parametrize("settings", OTHERS, ids=lambda settings: settings.get("beta_schedule", "betas"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_sd1_folder(tmp_path_factory.mktemp("model"), dtype="fp16").path


@pytest.fixture
def folder(model, tmp_path):
    """folder(settings): the tiny model whose scheduler has these."""

    def make(settings):
        own = shutil.copytree(model, tmp_path / "m")
        (own / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
        return own

    return make


@each_schedule
@pytest.mark.parametrize("is_zero_terminal", [False, True], ids=["", "zero terminal"])
def test_the_noise_levels_are_those_of_diffusers(settings, is_zero_terminal):
    theirs = DDIMScheduler(**settings, rescale_betas_zero_snr=is_zero_terminal).alphas_cumprod
    objective = make_objective({"schedule": schedule_of(settings), "zero_terminal_snr": is_zero_terminal})
    sigmas = objective.at(torch.arange(1000)).sigmas
    torch.testing.assert_close(sigmas, (1 - theirs).sqrt(), rtol=1e-4, atol=1e-6)
    ours = build_scheduler(
        "euler", is_velocity=False, is_zero_terminal=is_zero_terminal, schedule=schedule_of(settings)
    )
    spacing = "trailing" if is_zero_terminal else "linspace"
    theirs = EulerDiscreteScheduler(**settings, rescale_betas_zero_snr=is_zero_terminal, timestep_spacing=spacing)
    ours.set_timesteps(7), theirs.set_timesteps(7)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-3, atol=1e-4)


@each_schedule
def test_the_scheduler_that_is_written_names_the_schedule(settings):
    written = scheduler_config("sd1", (), schedule_of(settings))
    assert schedule_of(written) == schedule_of(settings) != schedule_of({})
    assert DDIMScheduler.from_config(written).betas.equal(schedule_of(settings).betas())


@pytest.mark.parametrize("is_shared", [False, True], ids=["alone", "in a sweep"])
def test_a_training_follows_the_schedule_of_its_folder_and_tells_so(folder, is_shared, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)
    family = SdFamily(pretrained=folder({"prediction_type": "epsilon", **LINEAR}), noise={"min_snr_gamma": 5.0})
    run = SimpleNamespace(family=SharedBase().family_like(family) if is_shared else family)
    Run.inspect_files(run)
    objective = run.family.objective()
    assert (objective.schedule, objective.min_snr_gamma) == (schedule_of(LINEAR), 5.0)
    assert "a schedule of noise of its own (linear, 0.0015 to 0.0195), which is followed" in caplog.text


def test_pictures_are_drawn_by_the_schedule_of_the_folder(folder):
    family = SdFamily(pretrained=folder(LINEAR), follows_marks=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = [
        one.sample(lambda x, t: x * 0.5, noise, num_steps=3) for one in (family, family.as_marked(family.inspect()))
    ]
    theirs = DDIMScheduler(**LINEAR, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    theirs.set_timesteps(3)
    latents = noise
    for timestep in theirs.timesteps:
        latents = theirs.step(latents * 0.5, timestep, latents).prev_sample
    torch.testing.assert_close(drawn[1], latents)
    assert not torch.allclose(drawn[0], latents, rtol=0.01)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta_schedule": "exp"}, "beta_schedule 'exp' is not known; known are linear, scaled_linear, squaredcos"),
        ({"beta_schedule": ["linear"]}, "beta_schedule ['linear'] is not known"),
        ({"beta_end": 1.0}, "beta_end is 1.0, and has to be a number between 0 and 1"),
        ({"beta_start": "0.1"}, "beta_start is '0.1'"),
        ({"trained_betas": [0.1] * 999}, "trained_betas has to be 1000 numbers"),
        ({"num_train_timesteps": 4000}, "num_train_timesteps is 4000, and has to be 1000"),
        ({"prediction_type": "sample"}, "prediction_type 'sample' is not known"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "is for models of another kind"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "is for models of another kind"),
        ({"_class_name": "LCMScheduler", "beta_schedule": "scaled_linear", "prediction_type": None}, None),
        ({}, None),
    ],
)
def test_what_cannot_be_followed_is_named(settings, words):
    fault = schedule_fault(settings)
    assert fault is None if words is None else fault is not None and words in fault


def test_a_model_with_an_unknown_schedule_is_refused(folder):
    family = SdFamily(pretrained=folder({"beta_schedule": "exp"}))
    with pytest.raises(
        CheckpointError, match=r"scheduler_config\.json: beta_schedule 'exp' .* Put the scheduler there"
    ):
        family.as_marked(family.inspect())
