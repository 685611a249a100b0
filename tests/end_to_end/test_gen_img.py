"""gen_img.py on tiny models: what draws the same picture, what draws another, and where pictures go."""

import io
import re
import shutil
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gen_img import main
from library.checkpoint.embeddings import write_embedding
from library.checkpoint.metadata_copy import copy_with_metadata
from library.families.sd.family import SdFamily
from library.generation.drawing import Drawing
from library.generation.options.scripts import GENERATION_SCRIPT, GenerationOptions
from library.loras.lora_file import lora_tensors, read_lora
from library.options.spec import parse_options
from library.tensorfile import read_header
from networks import lora
from sd3_gen_img import main as sd3_main
from sdxl_gen_img import main as sdxl_main
from tests import tiny_unets
from tools.drawing_family import drawing_family

SIDE = 64
TINY_SD = Path(__file__).parents[2] / "examples" / "tiny_sd" / "base" / "sd1_tiny.safetensors"
ONE_LEVEL = 1  # of 255: sums of floats may be rounded to either side
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return tiny_unets.write_sd1(tmp_path_factory.mktemp("sd1")).path


@pytest.fixture(scope="module")
def sd2(tmp_path_factory):
    return tiny_unets.write_sd2(tmp_path_factory.mktemp("sd2")).path


@pytest.fixture(scope="module")
def lora_file(sd1, tmp_path_factory):
    """A LoRA of the U-Net and the text encoder with values that are seen."""
    family = SdFamily(pretrained=sd1)
    files = family.inspect()
    encoder = family.load_text_encoders(files, torch.float32, CPU, ("clip",))["clip"]
    network = lora.create_network(
        1.0, 4, 4.0, None, encoder, family.load_denoiser(files, torch.float32, CPU), generator=torch.manual_seed(1)
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_up" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    network.save_weights(path, torch.float32, {"ss_output_name": "style"})
    return path


@pytest.fixture
def draw(sd1, tmp_path):
    """Runs the script; gives {name of a file: levels}, in the order of names, of what it added."""
    folder = tmp_path / "out"

    def run(*more, prompt="a cat --d 5", model=sd1, script=main):
        before = set(folder.glob("*")) if folder.exists() else set()
        sizes = [f"--W={SIDE}", f"--H={SIDE}", "--steps=2"]
        asked = [] if prompt is None else [f"--prompt={prompt}"]
        assert script([f"--ckpt={model}", *asked, f"--outdir={folder}", *sizes, *map(str, more)]) == 0
        return {path.name: levels(path) for path in sorted(set(folder.glob("*")) - before)}

    return run


@pytest.fixture(scope="module")
def drawn_before():
    """{what was asked for: picture}"""
    return {}


@pytest.fixture
def pixels(draw, drawn_before):
    """The one picture that the script draws; what was drawn before is not drawn again."""

    def get(*more, prompt="a cat --d 5", **how):
        key = (*map(str, more), prompt, *how.values())
        if key not in drawn_before:
            drawn_before[key] = only(draw(*more, prompt=prompt, **how))
        return drawn_before[key]

    return get


@pytest.fixture
def refused(sd1, tmp_path, capsys):
    """Runs the script up to an error; gives its sentence. Nothing may be written."""

    def run(*more, prompt="a cat --d 5", model=sd1, script=main):
        asked = [] if prompt is None else [f"--prompt={prompt}"]
        arguments = [f"--ckpt={model}", *asked, f"--outdir={tmp_path}/none", f"--W={SIDE}", f"--H={SIDE}", "--steps=1"]
        assert script([*arguments, *map(str, more)]) == 2
        assert not (tmp_path / "none").exists()
        return capsys.readouterr().err

    return run


def levels(path):
    return numpy.array(Image.open(path)).astype(int)


def only(drawn):
    (picture,) = drawn.values()
    return picture


def is_same(one, other):
    return one.shape == other.shape and abs(one - other).max() <= ONE_LEVEL


def is_other(one, other):
    return abs(one - other).mean() > 1


# Networks


def test_a_network_of_strength_0_is_none_bit_for_bit(pixels, lora_file):
    plain = pixels()
    assert (pixels("--network_weights", lora_file, "--network_mul", 0) == plain).all()
    assert is_other(pixels("--network_weights", lora_file), plain)


def test_merged_networks_and_those_merged_anew_draw_what_live_ones_draw(pixels, lora_file):
    live = pixels("--network_weights", lora_file, lora_file, "--network_mul", 0.7, 0.2)
    shared = ("--network_weights", lora_file, lora_file, "--network_mul", 0.7, 0.2)
    assert is_same(pixels(*shared, "--network_merge"), live)
    assert is_same(pixels(*shared, "--network_merge_n_models", 1), live)
    assert is_same(pixels(*shared, "--network_pre_calc"), live)
    assert is_same(pixels("--network_weights", lora_file, "--network_mul", 0.9), live)


@pytest.mark.parametrize("way", [(), ("--network_pre_calc",)])
def test_a_line_sets_the_strength_for_its_picture_only(draw, pixels, lora_file, tmp_path, way):
    (tmp_path / "p.txt").write_text("a cat --d 5 --am 0\na cat --d 5 --am 0.4\na cat --d 5\n")
    off, weak, full = draw(
        "--network_weights", lora_file, "--from_file", tmp_path / "p.txt", *way, prompt=None
    ).values()
    assert (off == pixels()).all()
    assert is_same(weak, pixels("--network_weights", lora_file, "--network_mul", 0.4))
    assert is_same(full, pixels("--network_weights", lora_file))


def test_the_layout_of_diffusers_draws_the_same(draw, pixels, lora_file, tmp_path):
    own = read_lora(lora_file, "--x")
    save_file(lora_tensors(own.modules, "sd", layout="diffusers"), tmp_path / "peft.safetensors")
    drawn = draw("--network_weights", tmp_path / "peft.safetensors")
    assert is_same(only(drawn), pixels("--network_weights", lora_file))


def test_block_weights_of_0_are_a_strength_of_0(pixels, lora_file):
    weights = ",".join(["0"] * 17)
    drawn = pixels("--network_weights", lora_file, "--network_args", f"lbw={weights}")
    assert (drawn == pixels()).all()
    middle = ",".join(["0"] * 8 + ["1"] + ["0"] * 8)
    some = pixels("--network_weights", lora_file, "--network_args", f"lbw={middle}")
    assert not is_same(some, drawn) and not is_same(some, pixels("--network_weights", lora_file))


def test_what_a_file_says_of_itself_is_told(draw, lora_file, capsys):
    draw("--network_weights", lora_file, "--network_show_meta")
    assert "ss_output_name: style" in capsys.readouterr().err


# Seeds, batches and files


def test_a_picture_does_not_depend_on_the_batch_it_is_drawn_in(draw):
    prompt = "a cat --d 5,6,7"
    alone = draw("--sampler=euler_a", prompt=prompt).values()
    together = draw("--sampler=euler_a", "--batch_size=3", "--vae_batch_size=2", prompt=prompt).values()
    assert len(alone) == len(together) == 3
    assert all(is_same(one, other) for one, other in zip(alone, together, strict=True))
    first, second, _ = alone
    assert is_other(first, second)


def test_seeds_follow_each_other_unless_an_iteration_has_one(draw, tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n# not drawn\n\na dog\n")
    shared = ("--from_file", tmp_path / "p.txt", "--n_iter=2", "--seed=8")
    assert seeds(draw(*shared, prompt=None)) == [8, 9, 10, 11]
    assert seeds(draw(*shared, "--iter_same_seed", prompt=None)) == [8, 8, 9, 9]


def seeds(drawn):
    """Those in the names of files; a number follows where two runs began in the same second."""
    return [int(re.fullmatch(r"im_\d{14}_\d{3}_(\d+)(_\d+)?\.png", name)[1]) for name in drawn]


def test_without_a_seed_each_picture_has_another(draw):
    found = seeds(draw("--images_per_prompt=3", prompt="a cat"))
    assert len(set(found)) == 3


def test_files_are_numbered_behind_those_that_are_there_and_none_is_replaced(draw):
    assert list(draw("--sequential_file_name", prompt="x --d 1,2")) == ["im_000001.png", "im_000002.png"]
    assert list(draw(prompt="x --d 1 --f mine")) == ["mine.png"]
    assert list(draw(prompt="x --d 1 --f mine")) == ["mine_1.png"]


def test_a_picture_is_drawn_again_from_its_file(pixels, lora_file, tmp_path, sd1):
    asked = ("--network_weights", lora_file, "--network_mul", 0.6, "--sampler=euler_a", "--clip_skip=2")
    prompt = "a (cat:1.3) --d 5 --n [dog] --l 4 --nl 1.5 --w 72"
    before = set((tmp_path / "out").glob("*"))
    first = pixels(*asked, prompt=prompt)
    (path,) = set((tmp_path / "out").glob("*")) - before
    assert main([f"--from_png={path}", f"--outdir={tmp_path}/again"]) == 0
    (again,) = (tmp_path / "again").iterdir()
    assert first.shape == (SIDE, 72, 3)
    assert is_same(levels(again), first)
    assert Image.open(again).text == Image.open(path).text


def test_prompts_are_asked_for_until_an_empty_line(draw, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat --d 5\na cat --d five\nx --f a/b\na cat --d 6\n\nno\n"))
    monkeypatch.setattr("builtins.input", lambda _: sys.stdin.readline().rstrip("\n"))
    assert seeds(draw("--interactive", "--batch_size=4", prompt=None)) == [5, 6]
    said = capsys.readouterr().err
    assert "--d needs whole numbers" in said and "this is no name for a file" in said


def test_the_model_is_read_before_a_prompt_is_asked_for(draw, monkeypatch, capsys):
    def answer(question):
        assert "tokenizer of clip" in capsys.readouterr().err
        return ""

    monkeypatch.setattr("builtins.input", answer)
    assert draw("--interactive", prompt=None) == {}


def test_variants_are_drawn_one_by_one(draw, pixels, capsys):
    drawn = draw("--sequential_file_name", "--seed=3", prompt="a {e$$red|green|blue} cat --d 5")
    assert len(drawn) == 3
    assert is_same(drawn["im_000001.png"], pixels(prompt="a red cat --d 5"))


# Guidance and texts


def test_a_model_is_drawn_as_what_its_header_says(draw, sd1, tmp_path):
    said = {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}
    copy_with_metadata(read_header(sd1), tmp_path / "v.safetensors", said)
    shutil.copytree(sd1.parent / "tokenizer", tmp_path / "tokenizer")
    marked, asked, plain = (
        only(draw(*flags, model=model))
        for model, flags in (
            (tmp_path / "v.safetensors", ()),
            (sd1, ("--v_parameterization", "--zero_terminal_snr")),
            (sd1, ()),
        )
    )
    assert is_same(marked, asked) and is_other(marked, plain)


def test_the_shipped_model_draws_what_it_is_asked_for(draw):
    flags = ("--sampler=ddim", "--steps=6", "--scale=1.5")
    picture = only(draw(*flags, model=TINY_SD, prompt="a green square on a black background --d 1"))
    red, green, blue = picture[SIDE // 2, SIDE // 2]
    assert green > 120 and green > red + 50 and green > blue + 50 and picture[:4].mean() < 60


def test_a_network_for_models_that_predict_something_else_is_told(draw, lora_file, tmp_path, capsys):
    for said, is_told in (("v", True), ("epsilon", False)):
        copy_with_metadata(read_header(lora_file), tmp_path / "l.safetensors", {"modelspec.prediction_type": said})
        draw("--network_weights", tmp_path / "l.safetensors")
        told = capsys.readouterr().err
        assert (
            told.count("is for models that predict the velocity, and this one is drawn as predicting noise")
        ) == is_told


def test_without_guidance_the_negative_prompt_plays_no_part(pixels):
    one, other = (pixels("--scale=1", prompt=f"a cat --d 5 --n {word}") for word in ("dog", "bird"))
    assert (one == other).all()
    guided = (pixels(prompt=f"a cat --d 5 --n {word}") for word in ("dog", "bird"))
    assert is_other(*guided)


def test_an_empty_negative_prompt_apart_is_the_usual_guidance(pixels):
    """empty + s (wanted - empty) - t (empty - empty)"""
    assert is_same(pixels("--negative_scale=3", prompt="a cat --d 5"), pixels(prompt="a cat --d 5"))
    away = pixels("--negative_scale=3", prompt="a cat --d 5 --n dog")
    assert is_other(away, pixels(prompt="a cat --d 5 --n dog"))


def test_the_mean_is_what_it_was_before_words_were_weighted_unless_it_is_not_asked_for(pixels):
    kept, other, free = (
        pixels(f"--emb_normalize_mode={mode}", prompt="a (cat:1.6) --d 5") for mode in ("original", "abs", "none")
    )
    assert not is_same(kept, free) and not is_same(other, free)


@pytest.mark.parametrize("mode", ["original", "none"])
def test_weights_of_1_change_nothing_and_others_do(pixels, mode):
    plain = pixels(prompt="a cat --d 5")
    assert is_same(pixels(f"--emb_normalize_mode={mode}", prompt="a (cat:1.0) --d 5"), plain)
    assert is_other(pixels(f"--emb_normalize_mode={mode}", prompt="a (cat:1.6) --d 5"), plain)


def test_long_prompts_are_read_to_their_end_unless_they_are_cut(pixels):
    long = " ".join(["cat"] * 90)
    ends = [f"{long} {word} --d 5" for word in ("dog", "bird")]
    assert is_other(*(pixels(prompt=prompt) for prompt in ends))
    cut = [pixels("--max_embeddings_multiples=1", prompt=prompt) for prompt in ends]
    assert (cut[0] == cut[1]).all()


def test_a_learned_word_that_no_prompt_has_is_told(draw, tmp_path, capsys):
    write_embedding(tmp_path / "zorp.safetensors", {"emb_params": torch.ones(1, tiny_unets.CLIP_L_WIDTH)}, word="zorp")
    given = ("--textual_inversion_embeddings", tmp_path / "zorp.safetensors", "--steps=1")
    told = 'no prompt has the word "zorp"'
    draw(*given, prompt="a zrop --d 5")
    assert told in capsys.readouterr().err
    draw(*given, prompt="a {Zorp|dog} --d 5")
    draw(*given, prompt="a dog --n zorp --d 5")
    assert told not in capsys.readouterr().err


def test_a_learned_word_stands_for_its_vectors(pixels, tmp_path):
    vectors = torch.randn(2, tiny_unets.CLIP_L_WIDTH, generator=torch.Generator().manual_seed(3))
    write_embedding(tmp_path / "blarg.safetensors", {"emb_params": vectors}, word="blarg")
    given = ("--textual_inversion_embeddings", tmp_path / "blarg.safetensors")
    assert (pixels(*given) == pixels()).all()
    learned = pixels(*given, prompt="a blarg --d 5")
    assert is_other(learned, pixels(prompt="a blarg --d 5"))


# Pictures that are drawn over


@pytest.fixture
def source(tmp_path):
    ramp = numpy.linspace(0, 255, SIDE * SIDE * 3).reshape(SIDE, SIDE, 3).astype(numpy.uint8)
    Image.fromarray(ramp).save(tmp_path / "source.png")
    return tmp_path / "source.png"


def test_at_strength_0_a_picture_only_goes_through_the_vae(pixels, source):
    one, other = (
        pixels("--image_path", source, "--strength=0", prompt=prompt) for prompt in ("a cat --d 5", "a dog --d 6")
    )
    assert (one == other).all()
    assert is_other(pixels("--image_path", source, "--strength=0.7"), one)


@pytest.mark.parametrize("sampler", ["euler_a", "pndm"])
def test_a_black_mask_keeps_the_picture_and_a_white_one_none(pixels, source, tmp_path, sampler):
    kept = pixels("--image_path", source, "--strength=0")
    free = pixels("--image_path", source, f"--sampler={sampler}")
    for name, level in (("black", 0), ("white", 255)):
        Image.new("L", (SIDE, SIDE), level).save(tmp_path / f"{name}.png")
    shared = ("--image_path", source, f"--sampler={sampler}", "--mask_path")
    assert is_same(pixels(*shared, tmp_path / "black.png"), kept)
    assert is_same(pixels(*shared, tmp_path / "white.png"), free)
    assert is_other(free, kept)


def test_a_folder_of_pictures_goes_along_with_the_prompts(draw, tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    for name, level in (("a", 40), ("b", 200)):
        Image.new("RGB", (SIDE, SIDE), (level, level, level)).save(folder / f"{name}.png")
    (tmp_path / "p.txt").write_text("x --d 1\nx --d 1\nx --d 1\n")
    shared = ("--image_path", folder, "--from_file", tmp_path / "p.txt", "--use_original_file_name", "--batch_size=3")
    drawn = draw(*shared, prompt=None)
    assert list(drawn) == ["a.png", "a_1.png", "b.png"]
    assert is_same(drawn["a.png"], drawn["a_1.png"]) and is_other(drawn["a.png"], drawn["b.png"])


def test_a_picture_of_another_size_or_a_mask_is_resized_and_told(pixels, source, tmp_path, capsys):
    Image.new("L", (SIDE // 2, SIDE), 255).save(tmp_path / "mask.png")
    drawn = pixels("--image_path", source, "--mask_path", tmp_path / "mask.png")
    assert is_same(drawn, pixels("--image_path", source))
    assert "the mask is 32x64 and is resized to 64x64" in capsys.readouterr().err


# Other families, precision


def test_the_scripts_of_families_draw_what_gen_img_draws(pixels, tiny_sd3, tmp_path_factory):
    sdxl = tiny_unets.write_sdxl(tmp_path_factory.mktemp("sdxl")).path
    assert (pixels(model=sdxl, script=sdxl_main) == pixels(model=sdxl)).all()
    assert (pixels(model=tiny_sd3, script=sd3_main) == pixels(model=tiny_sd3)).all()


def test_bf16_draws_nearly_the_same_and_fp16_is_float32_on_a_cpu(pixels, capsys):
    plain = pixels()
    half = pixels("--bf16", "--no_half_vae")
    assert 0 < abs(half - plain).mean() < abs(pixels(prompt="a cat --d 6") - plain).mean() / 2
    if not torch.cuda.is_available():
        assert is_same(pixels("--fp16"), plain)
        assert "--fp16: a CPU hardly computes in fp16" in capsys.readouterr().err


def test_how_a_model_is_computed_is_as_the_options_say(sd1):
    asked = ["--bf16", "--no_half_vae", "--opt_channels_last", "--batch_size=8", "--vae_batch_size=0.25"]
    options = parse_options(GenerationOptions, [f"--ckpt={sd1}", "--prompt=x", *asked], **GENERATION_SCRIPT)
    family = drawing_family(options)
    drawing = Drawing.load(family, family.inspect(), options)
    weight = drawing.model.denoiser.conv_in.weight
    assert weight.dtype == torch.bfloat16 and weight.is_contiguous(memory_format=torch.channels_last)
    assert next(drawing.model.vae.parameters()).dtype == torch.float32
    assert drawing.num_decoded == 2


def test_blocks_that_wait_in_host_memory_draw_the_same(pixels, lora_file, tiny_sd3):
    assert is_same(pixels("--blocks_to_swap=3", model=tiny_sd3), pixels(model=tiny_sd3))
    network = ("--network_weights", lora_file)
    assert is_same(pixels("--blocks_to_swap=99", *network), pixels(*network))


def test_strips_of_a_picture_are_nearly_the_whole_picture(pixels):
    whole, strips = pixels("--H=128"), pixels("--H=128", "--vae_slices=4")
    assert strips.shape == whole.shape
    assert abs(strips - whole).mean() < 10


def test_sides_that_the_model_cannot_draw_are_told(pixels, capsys):
    assert pixels(prompt="x --d 1 --w 71").shape == (SIDE, SIDE, 3)
    assert "71x64 becomes 64x64: sides are multiples of 8 pixels" in capsys.readouterr().err


# What cannot be drawn


def test_a_network_of_another_family_is_refused_before_weights_are_read(refused, lora_file, tiny_sd3):
    said = refused("--network_weights", lora_file, model=tiny_sd3)
    assert "is a LoRA for SD1 or SD2, and the model is of SD3" in said


def test_a_network_with_numbers_that_are_not_finite_is_refused(refused, lora_file, tmp_path):
    tensors = load_file(lora_file)
    tensors[next(name for name in tensors if "lora_up" in name)][0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    assert "has numbers that are not finite" in refused("--network_weights", tmp_path / "nan.safetensors")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--network_weights", "no.safetensors"], "no.safetensors does not exist"),
        (["--network_weights", "{model}"], "is a whole checkpoint"),
        (["--network_weights", "a", "b", "--network_mul", "1", "1", "1"], "has 3 values for 2 files"),
        (["--network_weights", "{lora}", "--network_args", "foo=1"], "error: --network_args foo is not an argument"),
        (["--network_weights", "{lora}", "--network_args", "lbw=1,2"], "--network_args lbw="),
        (["--network_weights", "{lora}", "--network_args", "foo=1"], "(known are lbw, "),
        (["--network_weights", "{lora}", "--network_args", "lbv=1"], "--network_args lbv=: did you mean lbw="),
        (["--seed=-1"], "--seed must be at least 0, got -1"),
        (["--outdir={lora}"], "style.safetensors is a file. Give a folder."),
        (["--network_weights", "{lora}", "--network_module", "networks.no"], "networks.no: cannot be imported"),
        (["--network_weights", "{lora}", "--network_module", "networks.oft", "--network_args", "lbw=1"], "not for"),
        (["--network_mul", "1"], "--network_mul needs --network_weights"),
        (["--textual_inversion_embeddings", "no.pt"], "no.pt does not exist"),
        (["--image_path", "no.png"], "no.png does not exist"),
        (["--image_path", "{model}"], "is no picture that can be read"),
        (["--mask_path", "no.png"], "--mask_path needs --image_path"),
        (["--sdxl"], "is a model of Stable Diffusion 1.x and 2.x"),
        (["--v1", "--ckpt={sd2}"], "is a model of Stable Diffusion 2.x"),
        (["--fp16", "--bf16"], "exclude each other"),
        (["--W", "100000"], "is too large"),
    ],
)
def test_wrong_options_are_one_sentence(refused, sd1, sd2, lora_file, given, said):
    assert said in refused(*(text.format(model=sd1, sd2=sd2, lora=lora_file) for text in given))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no prompt"),
        ("a cat --d 5\na dog --q 3", "p.txt line 2: --q is no option"),
        ("x --ss no", "p.txt line 1"),
    ],
)
def test_wrong_prompt_files_name_their_line(refused, tmp_path, text, said):
    (tmp_path / "p.txt").write_text(text)
    assert said in refused("--from_file", tmp_path / "p.txt", prompt=None)


def test_a_script_of_another_family_names_no_option_that_was_not_given(refused, sd1):
    for script, own in ((sdxl_main, "SDXL"), (sd3_main, "SD3")):
        said = refused(script=script)
        assert "error: --ckpt: " in said and f"this script is for {own}. Use gen_img.py." in said


def test_samplers_have_no_effect_for_sd3_which_is_told_if_one_is_given(draw, tiny_sd3, capsys):
    for given, is_told in ((("--sampler=ddim",), True), (("--sampler=euler",), False), ((), False)):
        draw(*given, "--steps=1", model=tiny_sd3)
        assert ("--sampler ddim has no effect" in capsys.readouterr().err) == is_told


def test_a_model_that_is_not_there_is_called_by_its_option(refused, tmp_path):
    said = refused(model=tmp_path / "no.safetensors")
    assert "--ckpt" in said and "does not exist" in said and "--pretrained" not in said


def test_nothing_to_draw_is_said(refused):
    assert "Nothing to draw" in refused(prompt=None)
