"""Options of the scripts for U-Nets: what goes together, what does not, and what they come to."""

import re
import shlex
from dataclasses import fields

import pytest

from library.errors import OptionError
from library.options.groups import LossOptions
from library.options.spec import parse_options
from tools.make_options_doc import NAMES, SCRIPTS

SCRIPT = {script["prog"].removesuffix(".py"): (options, script) for options, script in SCRIPTS}
NETWORKS, MODELS = ("train_network", "sdxl_train_network"), ("sdxl_train", "fine_tune", "train_db")
UNETS = (*NETWORKS, *MODELS)
each_unet = pytest.mark.parametrize("name", UNETS)


def parse(name, command="", model="model.safetensors"):
    options, script = SCRIPT[name]
    needed = f"--pretrained_model_name_or_path={model} --dataset_config=d.toml --output_dir=out "
    if f"{name}.py" in NAMES["networks"]:
        needed += "--network_module=networks.lora "
    return parse_options(options, shlex.split(needed + command), **script)


@each_unet
def test_a_bare_command_has_no_warning(name):
    assert parse(name).warnings == ()


@each_unet
def test_no_option_of_the_loss_is_ignored(name):
    assert not {item.name for item in fields(LossOptions)} & set(SCRIPT[name][1]["ignored"])


@each_unet
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--adaptive_noise_scale=0.01", "--adaptive_noise_scale needs --noise_offset"),
        ("--noise_offset=0 --adaptive_noise_scale=0.01", "--adaptive_noise_scale needs --noise_offset"),
        ("--scale_v_pred_loss_like_noise_pred", "--scale_v_pred_loss_like_noise_pred needs --v_parameterization"),
        ("--v_pred_like_loss=1 --v_parameterization", "--v_pred_like_loss and --v_parameterization exclude each other"),
        ("--multires_noise_iterations=-1", "--multires_noise_iterations must be at least 1, got -1."),
        ("--clip_skip=0", "--clip_skip must be at least 1, got 0."),
        ("--max_token_length=100", "--max_token_length needs one of 75, 150, 225, got '100'."),
        ("--blocks_to_swap=3 --cpu_offload_checkpointing", "exclude each other: both need the way between host and"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(name, command, expected):
    with pytest.raises(OptionError, match=re.escape(expected)):
        parse(name, command)


@each_unet
@pytest.mark.parametrize(
    "command",
    [
        "--noise_offset=0.1 --adaptive_noise_scale=0.01 --noise_offset_random_strength",
        "--v_parameterization --scale_v_pred_loss_like_noise_pred --zero_terminal_snr",
        "--v_pred_like_loss=0.5 --min_snr_gamma=5 --debiased_estimation_loss",
        "--multires_noise_iterations=6 --multires_noise_discount=0.5 --ip_noise_gamma=0.1",
        "--weighted_captions --max_token_length=225",
    ],
)
def test_what_goes_together_has_no_warning(name, command):
    assert parse(name, command).warnings == ()


@each_unet
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--zero_terminal_snr", "--zero_terminal_snr without --v_parameterization: "),
        ("--noise_offset_random_strength", "--noise_offset_random_strength (no --noise_offset)"),
        ("--multires_noise_discount=0.5", "--multires_noise_discount (no --multires_noise_iterations)"),
        ("--ip_noise_gamma_random_strength", "--ip_noise_gamma_random_strength (no --ip_noise_gamma)"),
    ],
)
def test_what_changes_little_or_nothing_is_one_warning(name, command, expected):
    (line,) = parse(name, command).warnings
    assert expected in line


@each_unet
def test_numbers_of_0_turn_additions_to_the_noise_and_the_loss_off(name):
    names = ("noise_offset", "multires_noise_iterations", "ip_noise_gamma", "min_snr_gamma", "v_pred_like_loss")
    loss = parse(name, " ".join(f"--{option}=0" for option in names)).loss
    assert loss == LossOptions()


@pytest.mark.parametrize("name", ["sdxl_train_network", "sdxl_train"])
def test_sdxl_is_no_second_version_of_stable_diffusion_and_reads_its_own_layers(name):
    with pytest.raises(OptionError, match=re.escape("--v2 is for Stable Diffusion 2.x, and this is for SDXL.")):
        parse(name, "--v2")
    (line,) = parse(name, "--clip_skip=2").warnings
    assert line.startswith("Options without effect here: --clip_skip (SDXL always takes the last but one layer")


def test_a_skip_of_layers_beside_v2_is_explained():
    (line,) = parse("train_network", "--v2 --clip_skip=2").warnings
    assert line.startswith("--clip_skip 2 with --v2: ")


@pytest.mark.parametrize(("name", "number"), [("train_network", 1), ("sdxl_train_network", 2)])
def test_there_are_no_more_rates_than_text_encoders(name, number):
    assert len(parse(name, "--text_encoder_lr" + " 1e-5" * number).network.text_encoder_lr) == number
    with pytest.raises(OptionError, match=f"--text_encoder_lr takes .*, got {number + 1}."):
        parse(name, "--text_encoder_lr" + " 1e-5" * (number + 1))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("flag", ["--cache_text_encoder_outputs", "--cache_text_encoder_outputs_to_disk"])
def test_cached_texts_need_text_encoders_that_do_not_train(name, flag):
    with pytest.raises(OptionError, match="--cache_text_encoder_outputs needs --network_train_unet_only"):
        parse(name, flag)
    assert parse(name, f"{flag} --network_train_unet_only").warnings == ()


@pytest.mark.parametrize("name", NETWORKS)
def test_cached_texts_beside_text_encoders_alone_are_not_mended_by_training_none(name):
    with pytest.raises(OptionError) as caught:
        parse(name, "--cache_text_encoder_outputs --network_train_text_encoder_only")
    assert str(caught.value).endswith("a text encoder that trains has no fixed output. Leave out the cache.")
    assert "--network_train_unet_only" not in str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_scripts_for_networks_say_how_text_encoders_are_chosen(name):
    with pytest.raises(OptionError) as caught:
        parse(name, "--train_text_encoder")
    said = "text encoders get adapters too, unless --network_train_unet_only is given. Leave it out."
    assert str(caught.value) == f"--train_text_encoder is not an option of {name}.py: {said}"


def test_sdxl_names_the_rates_of_both_text_encoders():
    with pytest.raises(OptionError, match=r"--learning_rate_te1 for CLIP-L and --learning_rate_te2 for CLIP-G\.$"):
        parse("sdxl_train", "--train_text_encoder --learning_rate_te=1e-5")


def test_train_db_says_how_its_text_encoder_is_chosen(tmp_path):
    said = "the text encoder trains unless --stop_text_encoder_training -1 is given. Leave it out."
    with pytest.raises(OptionError) as caught:
        parse("train_db", "--train_text_encoder")
    assert str(caught.value) == f"--train_text_encoder is not an option of train_db.py: {said}"
    path = tmp_path / "own.toml"
    path.write_text("train_text_encoder = true\n", encoding="utf-8")
    with pytest.raises(OptionError) as caught:
        parse("train_db", f"--config_file={path}")
    assert str(caught.value) == f"{path}, line 1: train_text_encoder is not an option here: {said}"


@pytest.mark.parametrize(
    ("name", "trains", "frozen"),
    [
        ("sdxl_train", "--train_text_encoder", ""),
        ("sdxl_train", "--train_text_encoder --learning_rate_te1=1e-5", "--train_text_encoder --learning_rate_te1=0"),
        ("fine_tune", "--train_text_encoder", ""),
        ("fine_tune", "--train_text_encoder", "--train_text_encoder --learning_rate_te=0"),
        ("train_db", "", "--stop_text_encoder_training=-1"),
        ("train_db", "--stop_text_encoder_training=5", "--learning_rate_te=0"),
    ],
)
def test_whole_models_cache_texts_if_a_text_encoder_does_not_train(name, trains, frozen):
    with pytest.raises(OptionError, match="--cache_text_encoder_outputs: a text encoder that trains has no fixed out"):
        parse(name, f"--cache_text_encoder_outputs {trains}")
    assert parse(name, f"--cache_text_encoder_outputs {frozen}").cache.caches_text


@pytest.mark.parametrize(
    ("name", "command", "expected"),
    [
        ("sdxl_train", "", [("clip_l", False, None, None), ("clip_g", False, None, None)]),
        (
            "sdxl_train",
            "--train_text_encoder --learning_rate_te1=1e-5 --learning_rate_te2=0",
            [("clip_l", True, 1e-5, None), ("clip_g", True, 0.0, None)],
        ),
        ("fine_tune", "", [("clip", False, None, None)]),
        ("fine_tune", "--train_text_encoder --learning_rate_te=1e-6", [("clip", True, 1e-6, None)]),
        ("train_db", "--learning_rate_te=1e-6", [("clip", True, 1e-6, None)]),
        ("train_db", "--stop_text_encoder_training=100", [("clip", True, None, 100)]),
        ("train_db", "--stop_text_encoder_training=-1", [("clip", False, None, None)]),
        ("train_db", "--stop_text_encoder_training=0", [("clip", False, None, None)]),
    ],
)
def test_which_text_encoders_train_how_fast_and_how_long(name, command, expected):
    encoders = parse(name, command).encoders
    assert [(e.name, e.is_asked, e.rate, e.num_steps) for e in encoders] == expected
    assert all(encoder.is_saved for encoder in encoders)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("model", "flags", "layout"),
    [
        ("model.safetensors", "", "safetensors"),
        ("model.ckpt", "", "ckpt"),
        ("model.ckpt", "--use_safetensors", "safetensors"),
        ("owner/a-model-v1.5", "", "diffusers"),
        ("model.safetensors", "--save_model_as=ckpt", "ckpt"),
        ("model.ckpt", "--save_model_as=diffusers_safetensors", "diffusers"),
    ],
)
def test_a_whole_model_is_saved_as_it_was_read_unless_told_otherwise(name, model, flags, layout):
    assert parse(name, flags, model).layout == layout


def test_a_folder_is_saved_as_one(tmp_path):
    assert parse("fine_tune", model=tmp_path).layout == "diffusers"
    assert parse("sd3_train", model=tmp_path).layout == "safetensors"


@pytest.mark.parametrize("word", ["diffusers", "diffusers_safetensors"])
def test_networks_know_both_words_for_names_of_diffusers(word):
    assert parse("train_network", f"--save_model_as={word}").layout == "diffusers"


def test_sdxl_trains_at_1024_pixels_unless_told_otherwise():
    for name in ("sdxl_train_network", "sdxl_train"):
        assert parse(name).dataset_defaults()["resolution"] == (1024, 1024)
        assert parse(name, "--resolution=768").dataset_defaults()["resolution"] == (768, 768)
    assert "resolution" not in parse("train_network").dataset_defaults()


def test_projects_of_trackers_are_named_after_what_is_done():
    assert {name: options.project for name, (options, _) in SCRIPT.items()} == {
        **dict.fromkeys(("sd3_train_network", "sdxl_train_network", "train_network"), "network_train"),
        **dict.fromkeys(("sd3_train", "sdxl_train", "fine_tune"), "finetuning"),
        "train_db": "dreambooth",
        **dict.fromkeys(
            ("train_textual_inversion", "sdxl_train_textual_inversion", "sd3_train_textual_inversion"),
            "textual_inversion",
        ),
        "sdxl_train_control_net_lllite": "lllite_control_net_train",
    }


def test_diffusers_xformers_is_another_name_of_xformers():
    for command in ("--diffusers_xformers", "--diffusers_xformers --xformers"):
        assert parse("fine_tune", command).compute.attention_package == "xformers"
    assert parse("fine_tune", "--diffusers_xformers").warnings == ("--diffusers_xformers means --xformers.",)
    with pytest.raises(OptionError, match="--flash_attn and --diffusers_xformers exclude each other"):
        parse("fine_tune", "--diffusers_xformers --flash_attn")


def test_groups_of_optimizers_step_in_the_backward_pass():
    options = parse("sdxl_train", "--fused_optimizer_groups=10")
    assert options.optimizer.steps_in_backward == "--fused_optimizer_groups"
    assert options.warnings == ("--fused_optimizer_groups 10 means --fused_backward_pass.",)
    assert parse("sdxl_train", "--fused_optimizer_groups=0").optimizer.steps_in_backward is None
    with pytest.raises(OptionError, match="--fused_optimizer_groups works with AdamW, AdamW8bit and Adafactor, not"):
        parse("sdxl_train", "--fused_optimizer_groups=10 --optimizer_type=Lion")
    with pytest.raises(OptionError, match="--fused_optimizer_groups and --blockwise_fused_optimizers exclude"):
        parse("sdxl_train", "--fused_optimizer_groups=10 --blockwise_fused_optimizers")


@pytest.mark.parametrize("name", ["sd3_train", *MODELS])
def test_a_denoiser_that_trains_has_no_format_of_frozen_weights(name):
    with pytest.raises(OptionError, match="--fp8_base is for a frozen denoiser beside a network"):
        parse(name, "--fp8_base")


@pytest.mark.parametrize(
    ("name", "command", "flags"),
    [
        ("sdxl_train", "--learning_rate_te1=1e-5 --learning_rate_te2=1e-5", "--learning_rate_te1, --learning_rate_te2"),
        ("fine_tune", "--learning_rate_te=1e-5", "--learning_rate_te"),
        ("train_db", "--learning_rate_te=1e-5 --stop_text_encoder_training=-1", "--learning_rate_te"),
        ("train_db", "--no_token_padding", "--no_token_padding"),
        ("sd3_train", "--use_safetensors", "--use_safetensors"),
        ("train_network", "--network_train_unet_only --text_encoder_lr=1e-5", "--text_encoder_lr"),
        ("train_network", "--network_train_text_encoder_only --unet_lr=1e-5", "--unet_lr"),
    ],
)
def test_options_without_effect_are_named(name, command, flags):
    (line,) = parse(name, command).warnings
    assert line.startswith(f"Options without effect here: {flags} (")


def test_a_recipe_for_adafactor_in_a_config_file_is_read_as_on_the_command_line(tmp_path):
    (tmp_path / "adafactor.toml").write_text(
        'optimizer_type = "adafactor"\n'
        'optimizer_args = ["scale_parameter=False", "relative_step=False", "warmup_init=False"]\n'
        'lr_scheduler = "constant_with_warmup"\nlr_warmup_steps = 100\nlearning_rate = 4e-7 # SDXL original\n',
        encoding="utf-8",
    )
    from_file = parse("sdxl_train", f"--config_file={tmp_path / 'adafactor'}")
    flags = "--optimizer_type=adafactor --optimizer_args scale_parameter=False relative_step=False warmup_init=False "
    flags += "--lr_scheduler=constant_with_warmup --lr_warmup_steps=100 --learning_rate=4e-7"
    assert from_file.optimizer == parse("sdxl_train", flags).optimizer
    assert from_file.warnings == ()
