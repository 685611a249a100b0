"""Reading the command line, and the messages about the usual slips."""

from pathlib import Path

import pytest

from library.errors import OptionError
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.options.spec import parse_options
from library.records import Size

NEEDED = ["--pretrained_model_name_or_path=sd3.safetensors", "--dataset_config=d.toml", "--output_dir=out"]
NEEDED += ["--network_module=networks.lora"]


def parse(*argv: str) -> Sd3NetworkOptions:
    return parse_options(Sd3NetworkOptions, [*NEEDED, *argv], **NETWORK_SCRIPT)


def error_of(*argv: str) -> str:
    with pytest.raises(OptionError) as caught:
        parse(*argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_and_what_was_given():
    options = parse()
    assert options.network.network_alpha == 1.0
    assert options.model.vae is None
    assert options.training.seed is None
    assert options.warnings == ()
    assert options.given == {"pretrained_model_name_or_path", "dataset_config", "output_dir", "network_module"}


def test_values_with_equals_sign_or_blank_are_typed():
    options = parse("--network_dim=16", "--learning_rate", "1e-4", "--vae", "dir with blank/v.safetensors", "--sdpa")
    assert options.network.network_dim == 16
    assert options.optimizer.learning_rate == 1e-4
    assert options.model.vae == Path("dir with blank/v.safetensors")
    assert options.compute.sdpa is True
    assert {"network_dim", "sdpa"} <= options.given


def test_a_value_may_be_negative_or_hold_equals_signs():
    options = parse("--logit_mean", "-0.5", "--weighting_scheme=logit_normal", "--metadata_title=a=b")
    assert options.sd3.logit_mean == -0.5
    assert options.metadata.metadata_title == "a=b"


def test_list_options_take_all_that_follows():
    options = parse(
        "--network_args", "x_attn_dim=5", "emb_dims=[2,3,4,5,6,7]", "", "verbose=True", "--text_encoder_lr", "1e-4", "0"
    )
    assert options.network.network_args == ("x_attn_dim=5", "emb_dims=[2,3,4,5,6,7]", "verbose=True")
    assert options.network.text_encoder_lr == (1e-4, 0.0)
    assert parse("--network_args").network.network_args is None


@pytest.mark.parametrize("flag", ["vae", "clip_l", "save_precision", "output_name"])
def test_an_empty_text_means_not_given(flag):
    options = parse(f"--{flag}=")
    assert options == parse() and flag not in options.given


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.1", 0.1), ("5", 5), ("0", 0), ("100%", 1.0), ("1.0", 1)])
def test_warmup_is_whole_steps_or_a_share(text, value):
    steps = parse("--lr_scheduler=cosine", f"--lr_warmup_steps={text}").optimizer.lr_warmup_steps
    assert steps == value and type(steps) is type(value)


@pytest.mark.parametrize("text", ["1.5", "-1", "120%", "ten", "nan"])
def test_other_warmups_are_refused(text):
    assert "--lr_warmup_steps needs" in error_of("--lr_scheduler=cosine", f"--lr_warmup_steps={text}")


def test_zero_turns_a_rhythm_off():
    assert parse("--save_every_n_epochs=0").saving.save_every_n_epochs is None


def test_resolution_is_one_side_or_two():
    assert parse("--resolution=512").data.size == Size(512, 512)
    assert parse("--resolution=512,768").data.size == Size(512, 768)
    assert "--resolution" in error_of("--resolution=512x768")
    assert "--resolution" in error_of("--resolution=0")


def test_the_last_of_repeated_options_counts_and_it_is_said():
    options = parse("--network_dim=4", "--network_dim=8")
    assert options.network.network_dim == 8
    assert any("--network_dim was given more than once" in line for line in options.warnings)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--learning_rat=1"], "--learning_rat is not an option of sd3_train_network.py. Did you mean --learning_rate"),
        (["--network-dim", "4"], "Did you mean --network_dim?"),
        (["--zzzzzz"], "--zzzzzz is not an option of sd3_train_network.py. See --help."),
        (["--network_di=4"], "Did you mean --network_dim?"),
        (["--network_dim"], "--network_dim needs a value: a whole number."),
        (["--network_dim", "--sdpa"], "--network_dim needs a value: a whole number."),
        (["--network_dim=four"], "--network_dim needs a whole number, got 'four'."),
        (["--learning_rate=inf"], "--learning_rate needs a number, got 'inf'."),
        (["--mixed_precision=bf61"], "--mixed_precision needs one of no, fp16, bf16, got 'bf61'."),
        (["--sdpa=true"], "--sdpa is a switch and takes no value"),
        (["--sdpa", "True"], "'True' belongs to no option: --sdpa is a switch and takes no value."),
        (["--output_dir=C:\\my", "files\\out"], "'files\\out' belongs to no option. If it is part of the value of"),
        (["--vae=a", "b", "c", "d"], "'b' (and 2 more after it) belongs to no option. If it is part"),
        (["--network_args=a=1", "b=2"], "'b=2' belongs to no option. Write several values without ="),
        (["--sdpa", "\\"], "A lone \\ stands among the options."),
        (["--sdpa", " "], "A lone blank stands among the options."),
        (["--network_args", "a=1", "^"], "A lone ^ stands among the options."),
        (["--network_dim", "\\", "16"], "A lone \\ stands among the options."),
        (["\u2013network_dim=4"], "(it has U+2013, en dash): write --network_dim."),
        (["\u2013\u2013network_dim", "4"], "write --network_dim."),
        (["-network_dim=4"], "does not begin with two plain hyphens: write --network_dim."),
        (["--vae\u00a0v.safetensors"], "should be --vae and its value (it has U+00A0, no-break space)"),
        (["--vae", "\u2013network_dim=4"], "--vae needs a value, but '\u2013network_dim=4' follows"),
    ],
)  # fmt: skip
def test_slips_are_named(argv, expected):
    assert expected in error_of(*argv)


@pytest.mark.parametrize(
    ("token", "first", "second"),
    [
        ("--vae=/x/y.safetensors--save_precision=fp16", "--vae=/x/y.safetensors", "--save_precision=fp16"),
        ("--vae=m.safetensors --save_precision=fp16", "--vae=m.safetensors", "--save_precision=fp16"),
        ("--mixed_precision=fp16--gradient_checkpointing", "--mixed_precision=fp16", "--gradient_checkpointing"),
        ("--network_dim=16--network_alpha=1", "--network_dim=16", "--network_alpha=1"),
        ("--training_comment=a -- b--network_alpha=1", "--training_comment=a -- b", "--network_alpha=1"),
        ("--network_alpha=1\u2013network_dim=16", "--network_alpha=1", "--network_dim=16"),
    ],
)
def test_two_options_in_one_argument_are_taken_apart(token, first, second):
    message = error_of(token)
    assert "a space is missing" in message
    assert f"These are two options: {first} and {second}." in message


def test_two_options_in_one_item_of_a_list():
    message = error_of("--network_args", "x_mod_dim=7--save_precision=fp16")
    assert "--network_args=x_mod_dim=7 and --save_precision=fp16" in message


@pytest.mark.parametrize(
    "token",
    [
        "--vae=hub/models--org--name/v.safetensors",
        "--output_name=my--v2",
        "--training_comment=trained with --network_dim=16 and --sdpa",
        "--caption_prefix=art -- ",
    ],
)
def test_hyphens_in_names_and_prose_are_no_slips(token):
    name, _, value = token[2:].partition("=")
    assert name in parse(token).given
    assert value in str(parse(token))


def test_a_file_whose_name_looks_like_two_options_can_be_given(tmp_path):
    file = tmp_path / "a--network_dim=4"
    file.touch()
    assert parse(f"--vae={file}").model.vae == file


def test_all_slips_are_listed():
    message = error_of("--learning_rat=1", "--network_dim=x", "--mixed_precision=f")
    assert all(word in message for word in ("--learning_rat ", "--network_dim needs", "--mixed_precision needs"))


def test_values_after_an_unknown_flag_are_not_reported_again():
    assert error_of("--learning_rat", "1e-4").count("1e-4") == 0


def test_two_switches_without_a_space_between_them_are_named():
    message = error_of("--network_train_unet_only--cache_latents")
    assert message.endswith("two options without a space between them: --network_train_unet_only and --cache_latents.")
