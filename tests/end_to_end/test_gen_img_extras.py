"""Extras of gen_img.py on tiny models: two passes, deep shrink, gradual latents, guiding pictures, regions, noise."""

import json
import sys
from functools import cache

import numpy
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from gen_img import main
from library.families.sd.family import SdFamily
from library.families.sdxl.family import SdxlFamily
from library.generation.extras import REGIONS
from library.models.unet import UNet
from library.rng import normal_per_sample
from networks import control_net_lllite, lora
from tests import tiny_unets

SIDE, SEED, STEPS = 64, 5, 2
PROMPT, NEGATIVE = "a red circle on a blue ground", "a dog"
ONE_LEVEL = 1  # of 255: sums of floats may be rounded to either side
CPU = torch.device("cpu")
LARGE = (f"--W={2 * SIDE}", "--sampler=euler_a", "--steps=3")
GROWING = (
    *LARGE,
    "--gradual_latent_timesteps=900",
    "--gradual_latent_ratio_step=0.5",
    "--gradual_latent_every_n_steps=1",
)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models as diffusers folders."""
    writers = {"sd1": tiny_unets.write_sd1_folder, "sdxl": tiny_unets.write_sdxl_folder}
    return {kind: write(tmp_path_factory.mktemp(kind)).path for kind, write in writers.items()}


@pytest.fixture(scope="module")
def guides(tmp_path_factory):
    """Guiding pictures: two photos, and maps of regions."""
    folder = tmp_path_factory.mktemp("guides")
    draws = numpy.random.default_rng(1)
    for name in ("one", "two"):
        small = draws.integers(0, 255, (6, 6, 3), dtype=numpy.uint8)
        Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(folder / f"{name}.png")
    halves = Image.new("RGB", (SIDE, SIDE), (255, 0, 0))
    halves.paste((0, 255, 0), (SIDE // 2, 0, SIDE, SIDE))
    halves.save(folder / "halves.png")
    return folder


@pytest.fixture(scope="module")
def control_nets(folders, tmp_path_factory):
    """ControlNets with outputs that are seen, as folders."""
    found = {}
    for kind in folders:
        torch.manual_seed(3)
        unet = UNet(**tiny_unets.unet_settings(kind))
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 48, 64))
        for parameter in net.parameters():
            parameter.data += torch.randn_like(parameter) * 0.05
        for layer in net.controlnet_cond_embedding.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.data = torch.randn_like(layer.weight) * (2 / layer.weight[0].numel()) ** 0.5
        found[kind] = tmp_path_factory.mktemp("net") / kind
        net.save_pretrained(found[kind])
    return found


@pytest.fixture(scope="module")
def files_of(folders, tmp_path_factory):
    """Runs the script; gives the files that it wrote, in the order of names. What was drawn once is not drawn again."""

    @cache
    def run(*more, kind="sd1", prompt=f"{PROMPT} --n {NEGATIVE} --d {SEED}"):
        folder = tmp_path_factory.mktemp("out")
        asked = [f"--outdir={folder}", f"--W={SIDE}", f"--H={SIDE}", f"--steps={STEPS}"]
        asked += [] if prompt is None else [f"--prompt={prompt}"]
        asked += [] if kind is None else [f"--ckpt={folders[kind]}"]
        assert main([*asked, *map(str, more)]) == 0
        return sorted(folder.iterdir())

    return run


@pytest.fixture(scope="module")
def draw(files_of):
    """The levels of the one picture that the script draws."""

    def run(*more, **changes):
        (path,) = files_of(*more, **changes)
        return levels(path)

    return run


@pytest.fixture
def refused(folders, tmp_path, capsys):
    """Runs the script up to an error; gives its sentence."""

    def run(*more, kind="sd1", prompt="a cat --d 5"):
        asked = [f"--prompt={prompt}", f"--outdir={tmp_path}/none", f"--W={SIDE}", f"--H={SIDE}", "--steps=2"]
        assert main([f"--ckpt={folders[kind]}", *asked, *map(str, more)]) == 2
        return capsys.readouterr().err

    return run


def levels(path):
    return numpy.array(Image.open(path)).astype(int)


def is_same(one, other):
    return one.shape == other.shape and abs(one - other).max() <= ONE_LEVEL


def is_other(one, other):
    return abs(one - other).mean() > 0.3


# Two passes


def test_the_second_pass_draws_over_the_first(draw, files_of):
    passes = ("--highres_fix_scale=0.5", "--highres_fix_steps=2", "--strength=0.6")
    last_path, first_path = files_of(*passes, "--highres_fix_save_1st")
    assert first_path.stem == f"{last_path.stem}_1st"
    half = SIDE // 2
    assert is_same(levels(first_path), draw(f"--W={half}", f"--H={half}"))
    assert is_same(levels(last_path), draw("--image_path", first_path, "--strength=0.6"))


def test_latents_can_be_enlarged_instead_of_pixels(draw):
    passes = ("--highres_fix_scale=0.5", "--highres_fix_steps=2", "--strength=0.6")
    assert is_other(draw(*passes, "--highres_fix_latents_upscaling"), draw(*passes))


SIMPLE = """
def create_upscaler(grey="0"):
    class Upscaler:
        def upscale(self, pictures, width, height):
            return [picture.point(lambda _: int(grey)) for picture in pictures]
    return Upscaler()
"""
KNOWN = """
def create_upscaler(grey):
    class Upscaler:
        def upscale(self, vae, lowreso_imgs, lowreso_latents, dtype, width, height, batch_size, vae_batch_size):
            assert len(lowreso_imgs) == batch_size and lowreso_latents is None and vae.dtype == dtype
            return [picture.resize((width, height)).point(lambda _: int(grey)) for picture in lowreso_imgs]
    return Upscaler()
"""


@pytest.mark.parametrize("text", [SIMPLE, KNOWN], ids=["simple", "of sd-scripts"])
def test_a_module_enlarges_pictures(draw, tmp_path, monkeypatch, text):
    (tmp_path / "grey_upscaler.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("grey_upscaler", None)
    passes = ("--highres_fix_scale=0.5", "--highres_fix_steps=1", "--strength=0.5")
    name = "grey_upscaler" if text == KNOWN else tmp_path / "grey_upscaler.py"
    ours = draw(*passes, f"--highres_fix_upscaler={name}", "--highres_fix_upscaler_args=grey=90")
    Image.new("RGB", (SIDE, SIDE), (90, 90, 90)).save(tmp_path / "grey.png")
    assert is_same(ours, draw("--image_path", tmp_path / "grey.png", "--strength=0.5"))


def test_first_and_second_pass_have_their_own_strength_over_a_picture(draw, guides):
    shared = ("--image_path", guides / "one.png", "--highres_fix_scale=0.5", "--highres_fix_steps=4", "--strength=0")
    kept = draw(*shared, "--highres_fix_strength=0")
    assert is_other(draw(*shared, "--highres_fix_strength=1"), kept)


# Deep shrink and gradual latents


def test_deep_shrink_acts_down_to_its_timestep(draw):
    plain = draw()
    shrunk = draw("--ds_depth_1=3", "--ds_timesteps_1=400")
    assert is_other(shrunk, plain)
    assert is_same(draw("--ds_depth_1=3", "--ds_timesteps_1=1000"), plain)
    line = f"{PROMPT} --n {NEGATIVE} --d {SEED} --dsd1 3 --dst1 400"
    assert is_same(draw(prompt=line), shrunk)


def test_latents_that_grow_give_a_picture_of_the_full_size(draw):
    plain, grown = draw(*LARGE), draw(*GROWING)
    assert grown.shape == plain.shape
    assert is_other(grown, plain)
    assert is_same(draw(*GROWING, "--gradual_latent_ratio=1"), plain)


# ControlNets


def their_picture(pipeline, **more):
    pipeline.set_progress_bar_config(disable=True)
    latents = normal_per_sample([SEED], (4, SIDE // 8, SIDE // 8))
    asked = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 7.5}
    return numpy.array(pipeline(**asked, latents=latents, width=SIDE, height=SIDE, **more).images[0]).astype(int)


def ddim(**more):
    settings = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **more}
    return DDIMScheduler(**BETAS, **settings)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize(("multiplier", "ratio"), [(1.0, 1.0), (0.6, 0.5)])
def test_a_control_net_is_that_of_diffusers(draw, folders, control_nets, guides, kind, multiplier, ratio):
    settings = ("--control_net_multipliers", multiplier, "--control_net_ratios", ratio)
    guided = ("--control_net_models", control_nets[kind], "--guide_image_path", guides / "one.png")
    ours = draw(*guided, *settings, kind=kind)
    pipelines = {"sd1": StableDiffusionControlNetPipeline, "sdxl": StableDiffusionXLControlNetPipeline}
    net = ControlNetModel.from_pretrained(control_nets[kind])
    pipeline = pipelines[kind].from_pretrained(folders[kind], controlnet=net, scheduler=ddim(), local_files_only=True)
    theirs = their_picture(
        pipeline,
        image=Image.open(guides / "one.png"),
        controlnet_conditioning_scale=multiplier,
        control_guidance_end=ratio,
    )
    assert abs(ours - theirs).max() <= ONE_LEVEL
    assert is_other(ours, draw(kind=kind))


def test_models_that_fill_in_parts_of_pictures_have_extras_too(draw, folders, control_nets, guides, tmp_path):
    """With weights of 0 for what it is shown beside the latents, such a model is the one that it was made of."""
    model = tmp_path / "parts"
    tiny_unets.write_inpainting_folder(folders["sd1"], model, strength=0.0)
    guided = ("--control_net_models", control_nets["sd1"], "--guide_image_path", guides / "one.png")
    assert is_same(draw(*guided, "--ckpt", model, kind=None), draw(*guided))
    assert is_same(draw(*GROWING, "--ckpt", model, kind=None), draw(*GROWING))


def test_a_control_net_of_no_strength_or_share_is_none(draw, control_nets, guides):
    plain = draw()
    guided = ("--control_net_models", control_nets["sd1"], "--guide_image_path", guides / "one.png")
    assert (draw(*guided, "--control_net_multipliers=0") == plain).all()
    assert (draw(*guided, "--control_net_ratios=0") == plain).all()


def test_several_control_nets_have_pictures_and_preparations_of_their_own(draw, control_nets, guides, tmp_path):
    nets = ("--control_net_models", control_nets["sd1"], control_nets["sd1"])
    both = ("--guide_image_path", guides / "one.png", guides / "two.png")
    ours = draw(*nets, *both, "--control_net_preps", "none", "invert")
    ImageOps.invert(Image.open(guides / "two.png")).save(tmp_path / "inverted.png")
    inverted = ("--guide_image_path", guides / "one.png", tmp_path / "inverted.png")
    assert is_same(ours, draw(*nets, *inverted))
    assert is_other(ours, draw(*nets, *both))


def test_prompts_have_the_pictures_of_a_folder_in_turn(draw, files_of, control_nets, guides, tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("one", "two"):
        Image.open(guides / f"{name}.png").save(tmp_path / "pictures" / f"{name}.png")
    nets = ("--control_net_models", control_nets["sd1"])
    (tmp_path / "p.txt").write_text(f"a cat --d {SEED}\na dog --d {SEED}\n")
    both = ("--from_file", tmp_path / "p.txt", "--guide_image_path", tmp_path / "pictures", "--batch_size=2")
    files = files_of(*nets, *both, prompt=None)
    for path, text, name in zip(files, ("a cat", "a dog"), ("one", "two"), strict=True):
        alone = draw(*nets, "--guide_image_path", guides / f"{name}.png", prompt=f"{text} --d {SEED}")
        assert is_same(levels(path), alone)


def test_the_second_pass_may_do_without_control_nets(draw, control_nets, guides):
    guided = ("--control_net_models", control_nets["sd1"], "--guide_image_path", guides / "one.png")
    passes = ("--highres_fix_scale=0.5", "--highres_fix_steps=2", "--strength=0.8")
    without = draw(*guided, *passes, "--highres_fix_disable_control_net")
    assert is_other(without, draw(*guided, *passes))
    assert is_other(without, draw(*passes))


# ControlNet-LLLite


@pytest.fixture(scope="module")
def lllite(folders, tmp_path_factory):
    """An LLLite that is seen."""
    family = SdxlFamily(pretrained=folders["sdxl"])
    unet = family.load_denoiser(family.inspect(), torch.float32, CPU)
    network = control_net_lllite.create_network(
        1.0, 8, None, None, None, unet, generator=torch.manual_seed(1), cond_emb_dim="8"
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    path = tmp_path_factory.mktemp("lllite") / "lines.safetensors"
    network.save_weights(path, torch.float32, {})
    return path


def test_an_lllite_acts_by_its_picture_strength_and_share(draw, lllite, guides):
    plain = draw(kind="sdxl")
    guided = ("--control_net_lllite_models", lllite, "--guide_image_path", guides / "one.png")
    ours = draw(*guided, kind="sdxl")
    assert is_other(ours, plain)
    other = ("--control_net_lllite_models", lllite, "--guide_image_path", guides / "two.png")
    assert (draw(*other, kind="sdxl") != ours).any()
    assert (draw(*guided, "--control_net_multipliers=0", kind="sdxl") == plain).all()
    assert (draw(*guided, "--control_net_ratios=0", kind="sdxl") == plain).all()
    half = draw(*guided, "--control_net_ratios=0.5", kind="sdxl")
    assert (half != plain).any() and (half != ours).any()


# Regions


@pytest.fixture(scope="module")
def lora_file(folders, tmp_path_factory):
    family = SdFamily(pretrained=folders["sd1"])
    files = family.inspect()
    encoder = family.load_text_encoders(files, torch.float32, CPU, ("clip",))["clip"]
    unet = family.load_denoiser(files, torch.float32, CPU)
    network = lora.create_network(1.0, 4, 4.0, None, encoder, unet, generator=torch.manual_seed(1))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_up" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    network.save_weights(path, torch.float32, {})
    return path


def test_equal_regions_are_one_picture_and_others_are_not(draw, guides):
    regions = ("--network_regional_mask_max_color_codes=2", "--guide_image_path", guides / "halves.png")
    cat, dog = f"a cat --n {NEGATIVE} --d {SEED}", f"a dog --n {NEGATIVE} --d {SEED}"
    both = draw(*regions, prompt=f"a cat AND a dog --n {NEGATIVE} --d {SEED}")
    plain_cat, plain_dog = draw(prompt=cat), draw(prompt=dog)
    assert is_same(draw(*regions, prompt=f"a cat AND a cat --n {NEGATIVE} --d {SEED}"), plain_cat)
    half = SIDE // 2
    assert abs(both - plain_cat)[:, :half].mean() < abs(both - plain_dog)[:, :half].mean()
    assert abs(both - plain_dog)[:, half:].mean() < abs(both - plain_cat)[:, half:].mean()


def test_regions_and_control_nets_have_pictures_of_their_own(draw, files_of, guides, control_nets):
    regions = ("--network_regional_mask_max_color_codes=2", "--guide_image_path", guides / "halves.png")
    nets = ("--control_net_models", control_nets["sd1"])
    both = draw(*regions, guides / "one.png", *nets, prompt=f"a cat AND a cat --n {NEGATIVE} --d {SEED}")
    alone = draw(*nets, "--guide_image_path", guides / "one.png", prompt=f"a cat --n {NEGATIVE} --d {SEED}")
    assert is_same(both, alone)


def test_networks_are_for_the_regions_of_their_number(draw, guides, lora_file):
    regions = ("--network_regional_mask_max_color_codes=2", "--guide_image_path", guides / "halves.png")
    everywhere = draw("--network_weights", lora_file)
    assert is_same(draw(*regions, "--network_weights", lora_file, lora_file), everywhere)
    assert is_same(draw(*regions, "--network_weights", lora_file), everywhere)
    left = draw(*regions, "--network_weights", lora_file, lora_file, "--network_mul", 1, 0)
    assert is_other(left, everywhere)
    assert is_other(left, draw())


# CLIP vision, noise, timesteps


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=tiny_unets.CLIP_G_WIDTH,
    )
    folder = tmp_path_factory.mktemp("vision")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def test_what_clip_sees_stands_for_the_pooled_text(draw, vision, guides):
    plain = draw(kind="sdxl")
    seeing = ("--clip_vision_model", vision, "--guide_image_path")
    ours = draw(*seeing, guides / "one.png", "--clip_vision_strength=1", kind="sdxl")
    assert (ours != plain).any()
    assert (draw(*seeing, guides / "two.png", "--clip_vision_strength=1", kind="sdxl") != ours).any()
    assert (draw(*seeing, guides / "one.png", "--clip_vision_strength=0", kind="sdxl") == plain).all()


@pytest.mark.parametrize(
    ("chance", "span"),
    [("--pyramid_noise_prob", "--pyramid_noise_discount_range"), ("--noise_offset_prob", "--noise_offset_range")],
)
def test_chance_decides_which_pictures_begin_at_other_noise(draw, chance, span):
    plain = draw()
    assert is_other(draw(chance, 1, span, 0.3, 0.6), plain)
    assert (draw(chance, 0, span, 0.3, 0.6) == plain).all()


def test_timesteps_can_be_counted_from_0(draw, folders):
    ours = draw("--force_scheduler_zero_steps_offset")
    pipeline = StableDiffusionPipeline.from_pretrained(folders["sd1"], safety_checker=None, local_files_only=True)
    pipeline.scheduler = ddim(steps_offset=0)
    assert abs(ours - their_picture(pipeline)).max() <= ONE_LEVEL
    assert (draw() != ours).any()


# Drawn again, and wrong input


def test_a_picture_with_extras_is_drawn_again_from_its_file(files_of, control_nets, guides, tmp_path):
    offset = ("--noise_offset_prob=1", "--noise_offset_range", 0.1, 0.3)
    asked = (
        ("--highres_fix_scale=0.5", "--highres_fix_steps=2", "--strength=0.6", "--ds_depth_1=3"),
        (*GROWING, *offset),
        ("--control_net_models", control_nets["sd1"], "--guide_image_path", guides / "one.png", "--negative_scale=2"),
        ("--network_regional_mask_max_color_codes=2", "--guide_image_path", guides / "halves.png"),
    )
    paths = [files_of(*extras, prompt=f"a cat AND a dog --d {SEED}")[0] for extras in asked]
    assert main(["--from_png", *map(str, paths), f"--outdir={tmp_path}/again", "--sequential_file_name"]) == 0
    for path, again in zip(paths, sorted((tmp_path / "again").iterdir()), strict=True):
        assert is_same(levels(path), levels(again))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gradual_latent_timesteps=700"], "latents grow with --sampler euler and euler_a, not ddim"),
        (["--gradual_latent_timesteps=700", "--sampler=euler", "--W=128"], "in 2 steps latents grow to"),
        (["--gradual_latent_timesteps=7", "--sampler=euler", "--gradual_latent_unsharp_params=2,1,1,0"], "3,0.5,0.5,0"),
        (["--ds_depth_1=12"], "there are blocks 1 to 11, got 12"),
        (["--ds_depth_1=3", "--ds_depth_2=5"], "give a smaller --ds_timesteps_2"),
        (["--highres_fix_scale=0"], "--highres_fix_scale"),
        (["--highres_fix_scale=0.5", "--highres_fix_upscaler=no_such_module"], "cannot be imported"),
        (["--highres_fix_scale=0.5", "--highres_fix_upscaler=json"], "has no function create_upscaler"),
        (["--noise_offset_prob=1"], "needs --noise_offset_range"),
        (["--noise_offset_prob=1", "--noise_offset_range", "2", "1"], "two numbers, the smaller first"),
        (["--control_net_models=nets"], "needs --guide_image_path"),
        (["--guide_image_path=none.png", "--control_net_models=nets"], "--guide_image_path: none.png does not exist"),
        (["--clip_vision_strength=1", "--guide_image_path=a.png"], "needs --clip_vision_model"),
        (["--control_net_models=n", f"--{REGIONS}=2", "--guide_image_path", "a"], "Give first the map of regions"),
        ([f"--{REGIONS}=2", "--guide_image_path", "a", "b"], "--guide_image_path has 2 values"),
    ],
)
def test_what_cannot_be_is_named(refused, arguments, sentence):
    assert sentence in refused(*arguments)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a cat --dsr 0.5", "no effect without --ds_depth_1 (--dsd1 in a line)"),
        ("a cat --glr 0.5", "(--glt in a line)"),
    ],
)
def test_parts_of_extras_that_are_off_are_named(refused, line, sentence):
    assert sentence in refused(prompt=line)


def test_guides_that_do_not_fit_are_named(refused, control_nets, guides, lllite, folders):
    guided = ("--guide_image_path", guides / "one.png")
    assert "is for a model with texts of 80 numbers" in refused("--control_net_models", control_nets["sdxl"], *guided)
    assert "is no ControlNet" in refused("--control_net_models", lllite, *guided)
    assert "has no diffusion_pytorch_model" in refused("--control_net_models", guides, *guided)
    assert "SDXL" in refused("--control_net_lllite_models", lllite, *guided)
    nets = ("--control_net_models", control_nets["sd1"], *guided)
    assert "canny_LOW_HIGH" in refused(*nets, "--control_net_preps=depth")
    assert "has 2 values for 1 ControlNets" in refused(*nets, "--control_net_multipliers", 1, 2)
    assert "exclude each other" in refused(*nets, "--ds_depth_1=3")
    regions = "--network_regional_mask_max_color_codes"
    halves = ("--guide_image_path", guides / "halves.png")
    assert "has no pixel of the colour of region 3" in refused(regions, 3, *halves)
    assert "the prompt has 3 parts between AND" in refused(regions, 2, *halves, prompt="a AND b AND c")


# Sheets


def cells_of(files):
    """{values: levels} of the pictures of a sheet, by its JSON file."""
    (index,) = (path for path in files if path.suffix == ".json")
    pictures = json.loads(index.read_text())["pictures"]
    return {tuple(cell["values"].values()): levels(index.parent / cell["file"]) for cell in pictures}


def test_a_sheet_has_the_pictures_of_all_crossings(files_of, draw, lora_file):
    lines = "{e$$a cat|a dog}" + f" --n {NEGATIVE} --d {SEED}"
    files = files_of("--network_weights", lora_file, "--xyz", "lora=0,1", "prompt", "--n_iter=2", prompt=lines)
    cells = cells_of(files)
    assert cells.keys() == {(strength, text) for strength in (0.0, 1.0) for text in ("a cat", "a dog")}
    cat = f"a cat --n {NEGATIVE} --d {SEED}"
    assert is_same(cells[0.0, "a cat"], draw(prompt=cat))
    assert is_same(cells[1.0, "a cat"], draw("--network_weights", lora_file, prompt=cat))
    (sheet,) = (path for path in files if path.name.startswith("sheet_") and path.suffix == ".png")
    assert min(Image.open(sheet).size) > 2 * SIDE
    assert len(files) == 6


def test_models_and_networks_are_compared(files_of, draw, folders, lora_file, tmp_path):
    other_lora = tmp_path / "half.safetensors"
    tensors = {name: tensor * (0.5 if "lora_up" in name else 1) for name, tensor in load_file(lora_file).items()}
    save_file(tensors, other_lora)
    other = tiny_unets.write_sd1_folder(tmp_path / "other", seed=1).path
    models, networks = f"ckpt={folders['sd1']},{other}", f"weights={lora_file},{other_lora}"
    cells = cells_of(files_of("--xyz", models, networks, "--network_mul", 0.5, kind=None))
    assert len(cells) == 4
    for model in (folders["sd1"], other):
        alone = draw("--network_weights", other_lora, "--network_mul", 0.5, "--ckpt", model, kind=None)
        assert is_same(cells[str(model), str(other_lora)], alone)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--xyz", "lora=0,1"], 'the axis "lora" needs --network_weights'),
        (["--xyz", "stepz=1"], 'Did you mean "steps"?'),
        (["--xyz", "ckpt=none.safetensors"], "none.safetensors does not exist"),
        (["--xyz", "weights=none.safetensors", "--network_merge"], 'Leave --network_merge or the axis "weights" out'),
    ],
)
def test_what_cannot_be_compared_is_named(refused, arguments, sentence):
    assert sentence in refused(*arguments)


def test_a_module_of_prompts_knows_all_options(folders, tmp_path):
    line = "f'a {args.prompter_module_args} --s {args.steps} --f of_{args.sampler}'"
    (tmp_path / "prompter.py").write_text(f"def get_prompter(args):\n    yield {line}\n")
    asked = [f"--from_module={tmp_path}/prompter.py", "--prompter_module_args=cat", "--sampler=heun", "--seed=1"]
    size = ["--steps=1", f"--W={SIDE}", f"--H={SIDE}"]
    assert main([f"--ckpt={folders['sd1']}", f"--outdir={tmp_path}/out", *asked, *size]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["of_heun.png"]
