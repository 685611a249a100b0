"""Checks of values and of what does not go together; warnings about what changes nothing."""

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from library.data.config.keys import KEYS
from library.data.config.spec_building import base_values
from library.errors import OptionError
from library.families.sd3.options import IGNORED, NETWORK_SCRIPT, Sd3NetworkOptions
from library.options.groups import (
    CacheOptions,
    DatasetOptions,
    NetworkOptions,
    OptimizerOptions,
    SavingOptions,
    dataset_names,
)
from library.options.spec import options_of, parse_options

NEEDED = ["--pretrained_model_name_or_path=sd3.safetensors", "--dataset_config=d.toml", "--output_dir=out"]
NEEDED += ["--network_module=networks.lora"]


def test_regularisation_pictures_need_others():
    argv = [word for word in NEEDED if "dataset_config" not in word] + ["--reg_data_dir=reg"]
    with pytest.raises(OptionError, match="--reg_data_dir needs --train_data_dir beside it"):
        parse_options(Sd3NetworkOptions, argv, **NETWORK_SCRIPT)
    parse_options(Sd3NetworkOptions, [*argv, "--train_data_dir=train"], **NETWORK_SCRIPT)


def test_the_options_have_the_interpolations_of_the_dataset_file():
    assert (
        options_of(Sd3NetworkOptions)["resize_interpolation"].declared.choices == KEYS["resize_interpolation"].choices
    )


def parse(*argv: str) -> Sd3NetworkOptions:
    return parse_options(Sd3NetworkOptions, [*NEEDED, *argv], **NETWORK_SCRIPT)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--learning_rate=-1", "--learning_rate must be at least 0, got -1."),
        ("--learning_rate=0", "--learning_rate 0 leaves nothing to train."),
        ("--gradient_accumulation_steps=0", "--gradient_accumulation_steps must be at least 1, got 0."),
        ("--train_batch_size=-1", "--train_batch_size must be at least 1, got -1."),
        ("--dataset_repeats=0", "--dataset_repeats must be at least 1"),
        ("--network_dim=0", "--network_dim must be at least 1"),
        ("--caption_dropout_rate=1.5", "--caption_dropout_rate must be between 0 and 1, got 1.5."),
        ("--t5_dropout_rate=-0.1", "--t5_dropout_rate must be between 0 and 1"),
        ("--save_every_n_epochs=-1", "--save_every_n_epochs must be at least 1"),
        ("--blocks_to_swap=-1", "--blocks_to_swap must be at least 0"),
        ("--max_timestep=1001", "--max_timestep must be between 1 and 1000"),
        ("--min_timestep=501 --max_timestep=500", "--min_timestep 501 may not be above --max_timestep 500: timesteps"),
        ("--noise_offset=-0.1", "--noise_offset must be at least 0, got -0.1."),
        ("--v_pred_like_loss=-1", "--v_pred_like_loss must be at least 0, got -1."),
        ("--mode_scale=3 --weighting_scheme=mode", "--mode_scale must be between -1 and 1.75"),
        ("--text_encoder_lr 1e-4 -1", "--text_encoder_lr must be at least 0, got -1."),
        ("--text_encoder_lr 1 1 1 1", "--text_encoder_lr takes at most 3 rates, got 4."),
        ("--network_train_unet_only --network_train_text_encoder_only", "leave nothing to train"),
        ("--network_dropout=1", "--network_dropout must be below 1"),
        ("--dim_from_weights", "--dim_from_weights needs --network_weights."),
        ("--base_weights a --base_weights_multiplier 1 2", "has 2 numbers for 1 file of --base_weights."),
        ("--network_args rank_dropout", "--network_args takes items of the form key=value, got 'rank_dropout'."),
        ("--network_args a=1 a=2", "--network_args has a twice."),
        ("--optimizer_args =1", "--optimizer_args takes items of the form key=value"),
        ("--full_fp16", "--full_fp16 needs --mixed_precision fp16, got no."),
        ("--full_bf16 --mixed_precision=fp16", "--full_bf16 needs --mixed_precision bf16, got fp16."),
        ("--persistent_data_loader_workers --max_data_loader_n_workers=0", "--persistent_data_loader_workers needs"),
        ("--use_8bit_adam --optimizer_type=Lion", "--use_8bit_adam and --optimizer_type Lion"),
        ("--lr_warmup_steps=10", "--lr_scheduler constant has no warm-up"),
        ("--sample_every_n_epochs=1", "need --sample_prompts"),
        ("--min_bucket_reso=2048", "--min_bucket_reso 2048 is above --max_bucket_reso 1024."),
        ("--output_name=sub/name", "The folder goes to --output_dir."),
        ("--ema_decay=1.5", "--ema_decay must be between 0 and 1, got 1.5."),
        ("--ema_device=tpu", "--ema_device"),
        ("--prior_loss_weight=-1", "--prior_loss_weight must be at least 0, got -1."),
        ("--validation_split=1.5", "--validation_split must be between 0 and 1, got 1.5."),
        ("--max_crop_fraction=2", "--max_crop_fraction must be between 0 and 1, got 2."),
        ("--max_aspect_ratio=0.5", "--max_aspect_ratio must be at least 1, got 0.5."),
        ("--min_image_size=-1", "--min_image_size must be at least 0, got -1."),
        ("--max_image_pixels=0", "--max_image_pixels must be at least 1, got 0."),
        ("--on_bad_file=ignore", "--on_bad_file needs one of error, skip, quarantine, got 'ignore'."),
        ("--missing_caption=skip", "--missing_caption needs one of error, allow, got 'skip'."),
        ("--empty_caption=skip", "--empty_caption needs one of error, allow, class_tokens, got 'skip'."),
        ("--conditioning_data_dir=masks", "write conditioning_data_dir into the subset of a --dataset_config file."),
        ("--text_encoder_cache_variants=4", "--text_encoder_cache_variants needs --cache_text_encoder_outputs or"),
        (
            "--text_encoder_cache_variants=0 --cache_text_encoder_outputs",
            "--text_encoder_cache_variants must be at least 1, got 0.",
        ),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(argv, expected):
    with pytest.raises(OptionError, match=re.escape(expected)):
        parse(*argv.split())


def test_what_is_needed_is_listed_at_once():
    with pytest.raises(OptionError) as caught:
        parse_options(Sd3NetworkOptions, ["--output_dir="], **NETWORK_SCRIPT)
    assert str(caught.value) == (
        "--pretrained_model_name_or_path, --output_dir, --network_module are needed. "
        "One of --dataset_config, --train_data_dir, --in_json is needed."
    )


@pytest.mark.parametrize("flag", ["--dataset_config=d.toml", "--train_data_dir=t", "--in_json=m.json"])
def test_each_way_to_name_pictures_is_enough(flag):
    others = [item for item in NEEDED if "dataset_config" not in item]
    assert parse_options(Sd3NetworkOptions, [*others, flag], **NETWORK_SCRIPT).warnings == ()
    with pytest.raises(OptionError, match=r"^One of --dataset_config, --train_data_dir, --in_json is needed\.$"):
        parse_options(Sd3NetworkOptions, others, **NETWORK_SCRIPT)


def test_other_ways_beside_a_dataset_file_are_one_warning():
    (line,) = parse("--train_data_dir=t", "--reg_data_dir=r", "--in_json=m.json").warnings
    flags = "--train_data_dir, --reg_data_dir, --in_json"
    assert line == f"Options without effect here: {flags} (the --dataset_config file names the pictures)."


def test_weighted_captions_and_cache_info_are_warned_about():
    (line,) = parse("--weighted_captions", "--cache_info").warnings
    assert "--cache_info (sizes are always remembered, and checked)" in line
    assert "--weighted_captions (SD3's encoders read captions without weights)" in line


def test_cache_dir_without_a_cache_on_disk_is_warned_about():
    (line,) = parse("--cache_dir=c", "--cache_latents").warnings
    assert line.startswith("--cache_dir keeps only the sizes of the pictures: without --cache_latents_to_disk or")
    for flag in ("--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk"):
        assert parse("--cache_dir=c", flag).warnings == ()


def test_the_index_of_pictures_lies_in_the_cache_folder():
    assert CacheOptions(cache_dir=Path("c")).index_dir == Path("c/index")
    assert CacheOptions().index_dir is None


def test_variants_of_captions_work_with_either_cache():
    for flag in ("--cache_text_encoder_outputs", "--cache_text_encoder_outputs_to_disk"):
        assert parse("--text_encoder_cache_variants=4", flag).cache.text_encoder_cache_variants == 4


def test_problems_of_several_groups_are_listed_at_once():
    with pytest.raises(OptionError) as caught:
        parse("--learning_rate=-1", "--network_dim=0", "--dataset_class=own.Data")
    message = str(caught.value)
    assert "--learning_rate must" in message and "--network_dim must" in message
    assert "--dataset_class: not available yet (datasets of your own class)." in message


def test_groups_check_themselves_without_a_parser():
    with pytest.raises(OptionError, match="--network_dim"):
        NetworkOptions(network_dim=0)
    with pytest.raises(OptionError, match="--save_model_as needs one of"):
        SavingOptions(save_model_as="zip")
    with pytest.raises(OptionError, match="--dataset_class: not available yet"):
        DatasetOptions(dataset_class="x")


def example_value(name: str) -> list[str]:
    """Arguments that set an option to something else than its default."""
    option = options_of(Sd3NetworkOptions)[name]
    if option.kind == "flag":
        return [f"--{name}"]
    choices = [choice for choice in option.declared.choices if choice != option.default]
    value = choices[0] if choices else {"int": 3, "float": 0.5, "int_or_float": 3}.get(option.kind, "some")
    return [f"--{name}", str(value)]


LATER = [name for name, option in options_of(Sd3NetworkOptions).items() if option.declared.later]


@pytest.mark.parametrize("name", LATER)
def test_what_is_not_there_yet_is_refused_by_name(name):
    with pytest.raises(OptionError, match=rf"--{name}: not available yet \("):
        parse(*example_value(name))


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_what_has_no_meaning_for_sd3_is_one_warning(name):
    (line,) = parse(*example_value(name)).warnings
    assert line.startswith(f"Options without effect here: --{name} (")


def test_everything_without_effect_shares_one_line():
    options = parse(
        "--v2", "--clip_skip=2", "--lowram", "--debiased_estimation_loss", "--min_snr_gamma=5", "--logit_std=2"
    )
    (line,) = options.warnings
    assert all(flag in line for flag in ("--v2", "--clip_skip", "--lowram", "--logit_std"))
    assert "--min_snr_gamma, --debiased_estimation_loss (" in line


def test_defaults_and_used_options_warn_of_nothing():
    options = parse("--sample_sampler=ddim", "--weighting_scheme=logit_normal", "--logit_std=2", "--sdpa")
    assert options.warnings == ()


def test_mem_eff_attn_is_one_line_of_its_own():
    assert parse("--mem_eff_attn").warnings == ("--mem_eff_attn means --sdpa.",)


def test_xformers_goes_before_mem_eff_attn_as_guides_give_both():
    (warning,) = parse("--mem_eff_attn", "--xformers").warnings
    assert warning.endswith("--mem_eff_attn (--xformers goes before it).")


def test_repeats_of_pictures_have_no_effect_beside_folders_that_name_their_own():
    argv = [word for word in NEEDED if "dataset_config" not in word]
    argv += ["--train_data_dir=pictures", "--resolution=64", "--dataset_repeats=3"]
    (warning,) = parse_options(Sd3NetworkOptions, argv, **NETWORK_SCRIPT).warnings
    assert "--dataset_repeats (the folders in --train_data_dir" in warning


def test_options_do_not_change():
    options = parse()
    with pytest.raises(FrozenInstanceError):
        options.network.network_dim = 3  # type: ignore[misc]


def test_secrets_are_not_shown():
    names = [name for name, option in options_of(Sd3NetworkOptions).items() if option.declared.is_secret]
    assert sorted(names) == ["huggingface_token", "wandb_api_key"]
    assert not any(name in repr(parse()) for name in names)


def test_disk_caches_imply_caches():
    assert CacheOptions(cache_latents_to_disk=True).caches_latents
    assert CacheOptions(cache_text_encoder_outputs_to_disk=True).caches_text
    assert not CacheOptions().caches_latents and not CacheOptions().caches_text


def test_use_8bit_adam_is_another_name_of_adamw8bit():
    assert OptimizerOptions(use_8bit_adam=True).optimizer_name == "AdamW8bit"
    assert OptimizerOptions().optimizer_name == "AdamW"
    assert OptimizerOptions(optimizer_type="adafactor").optimizer_name == "adafactor"


def test_dataset_defaults_use_the_keys_of_the_dataset_file():
    defaults = parse("--resolution=512,768", "--train_batch_size=3", "--dataset_repeats=4").dataset_defaults()
    assert defaults["resolution"] == (512, 768)
    assert defaults["batch_size"] == 3 and defaults["num_repeats"] == 4
    assert defaults["caption_extension"] == ".caption" and defaults["caption_separator"] == ","
    assert "caption_prefix" not in defaults and "train_batch_size" not in defaults
    assert parse("--caption_extention=.txt").dataset_defaults()["caption_extension"] == ".txt"
    splits = parse("--validation_split=0.25", "--validation_seed=3").dataset_defaults()
    assert (splits["validation_split"], splits["validation_seed"]) == (0.25, 3)


def test_defaults_that_the_user_gave_are_known_by_their_flags(tmp_path):
    (tmp_path / "run.toml").write_text("flip_aug = false\nrecursive = true\nvalidation_seed = 3\n", encoding="utf-8")
    given = parse(
        f"--config_file={tmp_path / 'run.toml'}", "--train_batch_size=1", "--caption_extention=.txt", "--vae="
    )
    flags = {"batch_size": "--train_batch_size", "caption_extension": "--caption_extention"}
    flags |= {"flip_aug": "--flip_aug", "recursive": "--recursive", "validation_seed": "--validation_seed"}
    assert given.given_defaults() == flags
    assert set(dataset_names(DatasetOptions())) >= set(parse().dataset_defaults())


def test_every_default_of_the_command_line_is_that_of_the_dataset_file():
    values, problems = base_values(parse("--resolution=64").dataset_defaults())
    builtin, _ = base_values({"resolution": 64})
    assert values == builtin and not problems


def test_every_key_of_a_dataset_file_has_an_option_unless_it_is_about_one_folder():
    flags = "--resolution=64 --caption_prefix=a --caption_suffix=b --secondary_separator=; --resize_interpolation=area "
    flags += "--validation_seed=1 --face_crop_aug_range=1,2 --caption_encoding=cp1252 --max_aspect_ratio=2 "
    flags += "--max_crop_fraction=0.5"
    one_folder = {"image_dir", "metadata_file", "conditioning_data_dir", "is_reg", "class_tokens", "custom_attributes"}
    without_option = one_folder | {"network_multiplier", "cache_info"}
    assert set(parse(*flags.split()).dataset_defaults()) == set(KEYS) - without_option
