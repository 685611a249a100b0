"""Pictures of gen_img.py are those of diffusers' pipelines: the same text, noise and sampler give the same pixels."""

import shutil
from functools import cache

import diffusers
import numpy
import pytest
import torch
from diffusers import (
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from safetensors.torch import load_file, save_file

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


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_a_picture_that_is_drawn_over(sampler, folder_of, drawn, tmp_path):
    model = folder_of("sd1")
    pipeline = quiet(StableDiffusionImg2ImgPipeline.from_pretrained(model), sampler)
    levels = numpy.arange(HEIGHT * WIDTH * 3, dtype=numpy.uint32) * 7 % 251
    Image.fromarray(levels.astype(numpy.uint8).reshape(HEIGHT, WIDTH, 3)).save(tmp_path / "source.png")
    pixels = torch.from_numpy(numpy.array(Image.open(tmp_path / "source.png"))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    theirs = their_picture(pipeline, image=latents, strength=0.6, generator=torch.Generator().manual_seed(SEED))
    check_same(drawn(model, f"--sampler={sampler}", f"--image_path={tmp_path}/source.png", "--strength=0.6"), theirs)


def test_sd3(tiny_sd3_factory, drawn, tmp_path):
    model = tiny_sd3_factory(variant="5-medium", dtype="fp32").model
    family = Sd3Family(pretrained=model, dropout_rates={}, flow={})
    what = {"files": family.inspect(), "denoiser": {}, "encoders": {}, "bundled": (), "dtype": None, "metadata": None}
    folder = family.write_model(tmp_path / "folder", layout="diffusers", **what)[0]
    pipeline = quiet(StableDiffusion3Pipeline.from_pretrained(folder))
    check_same(drawn(model), their_picture(pipeline, noise(16)))


def test_a_model_that_fills_in_parts_of_pictures(folder_of, drawn, tmp_path):
    """The U-Net of such a model takes 9 channels: latents, the mask, and latents of what stays."""
    model = tmp_path / "inpainting"
    shutil.copytree(folder_of("sd1"), model)
    weights, config = model / "unet" / "diffusion_pytorch_model.safetensors", model / "unet" / "config.json"
    tensors = load_file(weights)
    more = torch.randn(tensors["conv_in.weight"].shape[0], 5, 3, 3, generator=torch.Generator().manual_seed(2)) * 0.2
    save_file({**tensors, "conv_in.weight": torch.cat([tensors["conv_in.weight"], more], dim=1)}, weights)
    config.write_text(config.read_text().replace('"in_channels": 4', '"in_channels": 9'))
    parts = StableDiffusionPipeline.from_pretrained(model).components
    pipeline = quiet(StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False), "ddim")
    levels = (numpy.arange(HEIGHT * WIDTH * 3) * 7 % 251).astype(numpy.uint8).reshape(HEIGHT, WIDTH, 3)
    mask = numpy.zeros((HEIGHT, WIDTH), numpy.uint8)
    mask[16:48, 24:80] = 255
    for name, array in (("source", levels), ("mask", mask)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    pixels = torch.from_numpy(levels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        seen = pipeline.vae.encode(pixels * torch.from_numpy(mask < 128)).latent_dist.mean
    theirs = their_picture(
        pipeline,
        noise(4),
        image=Image.fromarray(levels),
        mask_image=Image.fromarray(mask),
        masked_image_latents=seen * pipeline.vae.config.scaling_factor,
        strength=1.0,
    )
    given = (f"--image_path={tmp_path}/source.png", f"--mask_path={tmp_path}/mask.png", "--strength=1")
    check_same(drawn(model, "--sampler=ddim", *given), theirs)
