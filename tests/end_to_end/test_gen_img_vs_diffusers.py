"""Pictures of gen_img.py are those of diffusers' pipelines: the same text, noise and sampler give the same pixels."""

from functools import cache

import diffusers
import numpy
import pytest
import torch
from diffusers import (
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from gen_img import main
from library.families.sd3.family import Sd3Family
from library.rng import normal_per_sample, torch_stream
from tests import tiny_unets

PROMPT, NEGATIVE = "a red circle on a blue ground", "a dog"
SEED, STEPS, SCALE = 7, 4, 5.0
WIDTH, HEIGHT = 96, 64
ONE_LEVEL = 1  # of 255: sums of floats may be rounded to either side
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {}),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Folders of tiny models, each written once."""

    @cache
    def write(kind, **options):
        return getattr(tiny_unets, f"write_{kind}_folder")(tmp_path_factory.mktemp(kind), **options).path

    return write


@pytest.fixture
def drawn(tmp_path):
    """What the script draws, as an array of levels."""

    def draw(model, *more, prompt=f"{PROMPT} --n {NEGATIVE}"):
        sizes = [f"--W={WIDTH}", f"--H={HEIGHT}", f"--steps={STEPS}", f"--seed={SEED}", f"--scale={SCALE}"]
        assert main([f"--ckpt={model}", f"--prompt={prompt}", f"--outdir={tmp_path}/out", *sizes, *more]) == 0
        (path,) = (tmp_path / "out").iterdir()
        return numpy.array(Image.open(path)).astype(int)

    return draw


def noise(channels):
    return normal_per_sample([SEED], (channels, HEIGHT // 8, WIDTH // 8))


def quiet(pipeline, scheduler=None, **settings):
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        name, own = SCHEDULERS[scheduler]
        pipeline.scheduler = getattr(diffusers, name)(**BETAS, **own, **settings)
    return pipeline


def their_picture(pipeline, latents=None, **more):
    asked = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": SCALE}
    size = {} if latents is None else {"latents": latents, "width": WIDTH, "height": HEIGHT}
    return numpy.array(pipeline(**asked, **size, **more).images[0]).astype(int)


def check_same(ours, theirs):
    assert ours.shape == theirs.shape
    assert theirs.std() > 5  # levels: there is something to compare
    assert abs(ours - theirs).max() <= ONE_LEVEL


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_sd1_by_every_kind_of_sampler(sampler, folder_of, drawn):
    model = folder_of("sd1")
    pipeline = quiet(StableDiffusionPipeline.from_pretrained(model), sampler)
    theirs = their_picture(pipeline, noise(4), generator=[torch_stream(SEED, "sampler", 0)])
    check_same(drawn(model, f"--sampler={sampler}"), theirs)


def test_sd2_that_says_of_itself_that_it_predicts_the_velocity(folder_of, drawn):
    model = folder_of("sd2", is_v=True)
    pipeline = quiet(StableDiffusionPipeline.from_pretrained(model))
    check_same(drawn(model, "--sampler=ddim"), their_picture(pipeline, noise(4)))


def test_sdxl_with_sizes_and_crops(folder_of, drawn):
    model = folder_of("sdxl")
    pipeline = quiet(StableDiffusionXLPipeline.from_pretrained(model), "euler")
    told = {"original_size": (500, 700), "crops_coords_top_left": (10, 20), "negative_original_size": (300, 200)}
    theirs = their_picture(
        pipeline,
        noise(4),
        **told,
        negative_crops_coords_top_left=(10, 20),
        negative_target_size=(HEIGHT, WIDTH),
    )
    sizes = "--oh 500 --ow 700 --ct 10 --cl 20 --nh 300 --nw 200"
    check_same(drawn(model, "--sampler=euler", prompt=f"{PROMPT} --n {NEGATIVE} {sizes}"), theirs)


@pytest.fixture
def source(tmp_path):
    """A picture to draw over."""
    levels = (numpy.arange(HEIGHT * WIDTH * 3) * 7 % 251).astype(numpy.uint8)
    Image.fromarray(levels.reshape(HEIGHT, WIDTH, 3)).save(tmp_path / "source.png")
    return tmp_path / "source.png"


def pixels_of(path):
    """In -1..1. Shape [1, 3, H, W]."""
    return torch.from_numpy(numpy.array(Image.open(path))).permute(2, 0, 1)[None] / 127.5 - 1


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_a_picture_that_is_drawn_over(sampler, folder_of, drawn, source):
    model = folder_of("sd1")
    pipeline = quiet(StableDiffusionImg2ImgPipeline.from_pretrained(model), sampler)
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels_of(source)).latent_dist.mean * pipeline.vae.config.scaling_factor
    theirs = their_picture(pipeline, image=latents, strength=0.6, generator=torch.Generator().manual_seed(SEED))
    check_same(drawn(model, f"--sampler={sampler}", f"--image_path={source}", "--strength=0.6"), theirs)


@pytest.fixture(scope="module")
def sd3(tiny_sd3_factory, tmp_path_factory):
    """A file, and the same as a folder."""
    model = tiny_sd3_factory(variant="5-medium", dtype="fp32").model
    family = Sd3Family(pretrained=model, dropout_rates={}, flow={})
    what = {"files": family.inspect(), "denoiser": {}, "encoders": {}, "bundled": (), "dtype": None, "metadata": None}
    return model, family.write_model(tmp_path_factory.mktemp("sd3") / "folder", layout="diffusers", **what)[0]


def test_sd3(sd3, drawn):
    model, folder = sd3
    pipeline = quiet(StableDiffusion3Pipeline.from_pretrained(folder))
    check_same(drawn(model), their_picture(pipeline, noise(16)))


def test_sd3_over_a_picture_at_a_strength_between_two_steps(sd3, drawn, source):
    """Of 4 steps 0.6 are 2.4: diffusers takes 3 of a flow model, and 2 of a U-Net."""
    model, folder = sd3
    pipeline = quiet(StableDiffusion3Img2ImgPipeline.from_pretrained(folder))
    with torch.no_grad():
        seen = pipeline.vae.encode(pixels_of(source)).latent_dist.mean
    latents = (seen - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    theirs = their_picture(pipeline, image=latents, strength=0.6, generator=torch.Generator().manual_seed(SEED))
    check_same(drawn(model, f"--image_path={source}", "--strength=0.6"), theirs)


def test_a_model_that_fills_in_parts_of_pictures(folder_of, drawn, source, tmp_path):
    """The U-Net of such a model takes 9 channels: latents, the mask, and latents of what stays."""
    model = tmp_path / "inpainting"
    tiny_unets.write_inpainting_folder(folder_of("sd1"), model, strength=0.2)
    parts = StableDiffusionPipeline.from_pretrained(model).components
    pipeline = quiet(StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False), "ddim")
    mask = numpy.zeros((HEIGHT, WIDTH), numpy.uint8)
    mask[16:48, 24:80] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with torch.no_grad():
        seen = pipeline.vae.encode(pixels_of(source) * torch.from_numpy(mask < 128)).latent_dist.mean
    theirs = their_picture(
        pipeline,
        noise(4),
        image=Image.open(source),
        mask_image=Image.fromarray(mask),
        masked_image_latents=seen * pipeline.vae.config.scaling_factor,
        strength=1.0,
    )
    given = (f"--image_path={source}", f"--mask_path={tmp_path}/mask.png", "--strength=1")
    check_same(drawn(model, "--sampler=ddim", *given), theirs)
