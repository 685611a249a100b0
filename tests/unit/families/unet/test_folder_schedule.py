"""The schedule of noise that a diffusers folder names: followed in training, drawing and what is written."""

import inspect
import json
import logging
import shutil

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from PIL import Image

from library.diffusion.betas import PUBLISHED, BetaSchedule
from library.diffusion.ddpm_samplers import build_scheduler
from library.errors import CheckpointError
from library.families.sd.family import SdFamily
from library.families.unet.diffusers_folder import scheduler_config
from library.families.unet.folder_schedule import schedule_fault, schedule_of, schedule_settings
from library.families.unet.objective import make_objective
from library.options.spec import parse_options
from library.training.sweeping.shared_base import SharedBase
from tests.tiny_unets import write_sd1_folder
from tools.cache_latents import LATENT_CACHING_SCRIPT, LatentCacheTool, LatentCachingOptions
from train_network import SD_NETWORK_SCRIPT, SdNetworkOptions, SdNetworkTrainer

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


@pytest.fixture
def arguments(folder, tmp_path):
    """arguments(settings): of a script that works with one picture and the tiny model with this scheduler."""

    def make(settings):
        (tmp_path / "pictures" / "1_cat").mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "1_cat" / "a.png")
        data = (f"--train_data_dir={tmp_path / 'pictures'}", "--resolution=64")
        return [f"--pretrained_model_name_or_path={folder(settings)}", *data]

    return make


@pytest.fixture
def told(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)
    return caplog


def look(run):
    run.check_options()
    run.plan_run()
    run.inspect_files()


@pytest.mark.parametrize("is_shared", [False, True], ids=["fitted", "in a sweep"])
def test_a_training_follows_the_schedule_of_its_folder_and_tells_so_once(arguments, tmp_path, is_shared, told):
    flags = ["--network_module=networks.lora", "--network_train_unet_only", "--cache_latents", "--min_snr_gamma=5"]
    flags += [f"--output_dir={tmp_path}", "--max_train_steps=1", "--learning_rate=1e-4"]
    flags += [] if is_shared else ["--fit=8GB", "--blocks_to_swap=auto"]
    own = {"prediction_type": "epsilon", **LINEAR}
    trainer = SdNetworkTrainer(parse_options(SdNetworkOptions, [*arguments(own), *flags], **SD_NETWORK_SCRIPT))
    if is_shared:
        alone = trainer.make_family()
        trainer.make_family = lambda: SharedBase().family_like(alone)
    with trainer.continuation:
        look(trainer)
    objective = trainer.family.objective()
    assert (objective.schedule, objective.min_snr_gamma) == (schedule_of(LINEAR), 5.0)
    assert told.text.count("a schedule of noise of its own (linear, 0.0015 to 0.0195), which is followed") == 1


@pytest.mark.parametrize("settings", [LINEAR, {"beta_schedule": "exp"}], ids=["another", "unknown"])
def test_caching_reads_no_schedule_for_nothing_is_noised(arguments, settings, told):
    tool = LatentCacheTool(parse_options(LatentCachingOptions, arguments(settings), **LATENT_CACHING_SCRIPT))
    look(tool)
    assert tool.files.scheduler == settings and "schedule of noise" not in told.text


USUAL = ("DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep")
OF_THEIR_OWN = ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "LCM", "TCD")


@pytest.mark.parametrize("name", [*USUAL, *OF_THEIR_OWN])
def test_betas_that_are_left_out_are_those_that_diffusers_takes(name):
    taken = inspect.signature(getattr(diffusers, f"{name}Scheduler")).parameters
    theirs = {key: taken[key].default for key in ("beta_schedule", "beta_start", "beta_end")}
    for given in ({}, {"beta_schedule": "scaled_linear"}, {"beta_end": 0.015}):
        named = schedule_settings(schedule_of({"_class_name": f"{name}Scheduler", **given}))
        assert {key: named[key] for key in theirs} == {**theirs, **given}


def test_a_scheduler_without_class_and_betas_has_the_published_schedule_and_betas_alone_those_of_most():
    assert schedule_of({"prediction_type": "epsilon"}) == PUBLISHED
    assert schedule_of({"beta_schedule": "linear"}) == BetaSchedule(kind="linear", first=0.0001, last=0.02)


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
        ({"beta_schedule": "linear", "beta_end": 0.5}, "(linear, 0.0001 to 0.5) are so large that nothing"),
        ({"beta_end": 0.99999999999}, "are so large that nothing of a picture is left"),
        ({"beta_start": 0.0001, "beta_end": 0.12}, "are so large that nothing of a picture is left"),
        ({"beta_start": 1e-9, "beta_end": 1e-9}, "(linear, 1e-09 to 1e-09) are so small that steps add no noise"),
        ({"trained_betas": [1e-9] * 1000}, "its betas (trained_betas) are so small that steps add no noise"),
        ({"beta_schedule": "squaredcos_cap_v2"}, None),
        ({"_class_name": "LCMScheduler", "beta_schedule": "scaled_linear", "prediction_type": None}, None),
        ({}, None),
    ],
)
def test_what_cannot_be_followed_is_named(settings, words):
    fault = schedule_fault(settings)
    assert fault is None if words is None else fault is not None and words in fault


@pytest.mark.parametrize("end", [0.03, 0.05])
def test_levels_of_what_can_be_followed_are_numbers_down_to_pure_noise(end):
    settings = {"beta_schedule": "linear", "beta_end": end}
    assert schedule_fault(settings) is None
    objective = make_objective(
        {"schedule": schedule_of(settings), "zero_terminal_snr": True, "v_parameterization": True, "min_snr_gamma": 5.0}
    )
    draw = objective.at(torch.arange(1000))
    assert draw.sigmas.isfinite().all() and objective.weights(objective.snr(draw)).isfinite().all()


def test_a_model_with_an_unknown_schedule_is_refused(folder):
    family = SdFamily(pretrained=folder({"beta_schedule": "exp"}))
    with pytest.raises(
        CheckpointError, match=r"scheduler_config\.json: beta_schedule 'exp' .* Put the scheduler there"
    ):
        family.as_marked(family.inspect())
