"""Options from TOML, and options written as TOML."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.errors import OptionError, OutputError
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.loras.options.resizing import RESIZE_LORA_SCRIPT, ResizeLoraOptions
from library.options.spec import Finished, parse_options

NEEDED = """
pretrained_model_name_or_path = 'C:\\models\\sd3.safetensors'
dataset_config = "d.toml"
[saving]
output_dir = "out"
[network]
network_module = "networks.lora"
"""


def parse(*argv: str) -> Sd3NetworkOptions:
    return parse_options(Sd3NetworkOptions, list(argv), **NETWORK_SCRIPT)


def read(tmp_path: Path, text: str, *argv: str) -> Sd3NetworkOptions:
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    return parse(f"--config_file={tmp_path / 'run'}", *argv)


def error_of(tmp_path: Path, text: str) -> str:
    with pytest.raises(OptionError) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tables_are_flattened_and_the_ending_is_added(tmp_path):
    options = read(tmp_path, NEEDED + "network_dim = 8\n[other]\nnetwork_alpha = 4\nnetwork_args = ['verbose=True']\n")
    assert options.network.network_dim == 8
    assert options.network.network_alpha == 4.0 and isinstance(options.network.network_alpha, float)
    assert options.network.network_args == ("verbose=True",)
    assert options.model.pretrained_model_name_or_path == "C:\\models\\sd3.safetensors"
    assert "network_dim" in options.given


def test_the_command_line_goes_before_the_file(tmp_path):
    options = read(
        tmp_path, NEEDED + "network_dim = 8\nsdpa = true\n", "--network_dim=2", "--pretrained_model_name_or_path=b"
    )
    assert options.network.network_dim == 2
    assert options.model.pretrained_model_name_or_path == "b"
    assert options.compute.sdpa


def test_an_empty_text_on_the_command_line_takes_a_value_of_the_file_back(tmp_path):
    assert read(tmp_path, 'vae = "v.safetensors"\n' + NEEDED, "--vae=").model.vae is None


def test_what_programs_with_windows_write_is_read(tmp_path):
    text = 'epoch = 3\nnoise_offset_type = "Original"\ndynamo_backend = "no"\nmax_token_length = 75\n'
    options = read(tmp_path, text + "text_encoder_lr = 0.0001\noptimizer_args = []\n" + NEEDED)
    assert options.network.text_encoder_lr == (0.0001,) and options.optimizer.optimizer_args is None
    told = [warning for warning in options.warnings if "is no option" in warning]
    assert len(told) == 2 and f"{tmp_path / 'run.toml'}, line 1: epoch" in told[0]
    assert "line 2: noise_offset_type" in told[1] and not any("dynamo" in warning for warning in options.warnings)
    assert "compiles nothing" in error_of(tmp_path, 'torch_compile = true\ndynamo_backend = "no"\n' + NEEDED)


@pytest.mark.parametrize("flag", [["--noise_offset_type=Original"], ["--noise_offset_type", "Multires"]])
def test_what_they_give_on_the_command_line_is_one_warning(tmp_path, flag):
    (told,) = read(tmp_path, NEEDED, *flag, *flag).warnings
    assert told.startswith("--noise_offset_type is no option and changes nothing: the noise is what --noise_offset")
    with pytest.raises(OptionError, match="--epoch is not an option"):
        read(tmp_path, NEEDED, "--epoch=3")


def test_scripts_that_do_not_train_do_not_know_what_such_programs_write(tmp_path):
    (tmp_path / "run.toml").write_text("epoch = 3\n", encoding="utf-8")
    with pytest.raises(OptionError, match="line 1: unknown key epoch"):
        parse_options(ResizeLoraOptions, [f"--config_file={tmp_path / 'run'}"], **RESIZE_LORA_SCRIPT)


def test_a_byte_order_mark_is_accepted(tmp_path):
    assert read(tmp_path, "\ufeffseed = 3\n" + NEEDED).training.seed == 3


def test_shares_can_be_written_as_percent_or_number(tmp_path):
    for text, value in (('"10%"', 0.1), ("0.1", 0.1), ("5", 5)):
        options = read(tmp_path, f'lr_scheduler = "cosine"\nlr_warmup_steps = {text}\n' + NEEDED)
        assert options.optimizer.lr_warmup_steps == value


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("learning_rat = 1e-3", "line 1: unknown key learning_rat. Did you mean learning_rate?"),
        ('learning_rate = "1e-3"', "line 1: learning_rate needs a number, got the text '1e-3'."),
        ('learning_rate = "abc"', "line 1: learning_rate needs a number, got the text 'abc'."),
        ('max_train_steps = "10"', "line 1: max_train_steps needs a whole number, got the text '10'."),
        ("train_batch_size = 2.5", "line 1: train_batch_size needs a whole number, got 2.5."),
        ("train_batch_size = true", "line 1: train_batch_size needs a whole number, got true."),
        ('mixed_precision = "bf61"', "line 1: mixed_precision needs one of no, fp16, bf16, got 'bf61'."),
        ("max_token_length = 100", "line 1: max_token_length needs one of 75, 150, 225, got '100'."),
        ("sdpa = 1", "line 1: sdpa needs true or false, got 1."),
        ("vae = 3", "line 1: vae needs a path, got 3."),
        ('lr_warmup_steps = "5"', "line 1: lr_warmup_steps needs a whole number of steps"),
        ('text_encoder_lr = "1e-4"', "line 1: text_encoder_lr needs a number, got the text '1e-4'."),
        ('network_args = "a=1"', "line 1: network_args needs a list in square brackets, got the text 'a=1'."),
        ('config_file = "x"', "line 1: config_file belongs on the command line, not in the file."),
        ('vae = "models\\new.safetensors"', "line 1: vae has a control character"),
    ],
)
def test_wrong_entries_are_named_with_file_and_line(tmp_path, line, expected):
    message = error_of(tmp_path, line + "\n" + NEEDED)
    assert f"{tmp_path / 'run.toml'}, {expected}" in message


def test_the_same_key_in_two_tables_is_refused(tmp_path):
    message = error_of(tmp_path, "[a]\nseed = 1\n[b]\nseed = 2\n")
    assert "line 4: seed stands both in [a] and in [b]. Keep one of them." in message


def test_a_table_in_a_table_is_refused(tmp_path):
    assert "[a.b] is a table in a table" in error_of(tmp_path, "[a.b]\nseed = 1\n")


def test_all_wrong_entries_are_listed(tmp_path):
    message = error_of(tmp_path, "seeed = 1\nsdpa = 1\n")
    assert "seeed" in message and "sdpa" in message


def test_windows_paths_in_double_quotes_get_advice(tmp_path):
    message = error_of(tmp_path, 'seed = 1\nvae = "C:\\Users\\new"\n')
    assert f"{tmp_path / 'run.toml'}: line 2: " in message
    assert "use '...' or / in paths" in message


def test_broken_toml_names_file_and_line(tmp_path):
    message = error_of(tmp_path, "seed = 1\nvae = \n")
    assert f"{tmp_path / 'run.toml'}: line 2: " in message


def test_other_encodings_and_missing_files_are_named(tmp_path):
    (tmp_path / "latin.toml").write_bytes('output_name = "é"'.encode("latin-1"))
    with pytest.raises(OptionError, match=r"latin\.toml is not UTF-8"):
        parse(f"--config_file={tmp_path / 'latin.toml'}")
    with pytest.raises(OptionError, match=r"absent\.toml does not exist"):
        parse(f"--config_file={tmp_path / 'absent'}")


def test_output_config_writes_what_differs_without_secrets(tmp_path):
    path = tmp_path / "written.toml"
    chosen = ["--network_dim=8", "--sdpa", "--wandb_api_key=k", "--seed=0", "--vae=a\\b"]
    with pytest.raises(Finished, match=r"written\.toml"):
        parse(f"--config_file={path}", "--output_config", *chosen)
    assert sorted(path.read_text().splitlines()) == ["network_dim = 8", "sdpa = true", "seed = 0", 'vae = "a\\\\b"']


def test_output_config_never_overwrites(tmp_path):
    path = tmp_path / "written.toml"
    path.write_text("kept")
    with pytest.raises(OptionError, match="exists"):
        parse(f"--config_file={path}", "--output_config")
    assert path.read_text() == "kept"


def test_output_config_needs_a_place_to_write_to(tmp_path):
    with pytest.raises(OptionError, match="--config_file"):
        parse("--output_config")
    with pytest.raises(OutputError, match="cannot be written"):
        parse(f"--config_file={tmp_path / 'absent' / 'x.toml'}", "--output_config")


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="-"), min_size=1).filter(str.strip)


@settings(max_examples=40)
@given(
    title=TEXT,
    args=st.lists(TEXT, max_size=3, unique=True),
    rate=st.floats(1e-9, 1.0),
    warmup=st.one_of(st.integers(1, 999), st.floats(0.01, 0.99)),
)
def test_what_is_written_is_read_back(tmp_path_factory, title, args, rate, warmup):
    path = tmp_path_factory.mktemp("config") / "run.toml"
    argv = [
        f"--metadata_title={title}",
        f"--learning_rate={rate}",
        f"--lr_warmup_steps={warmup}",
        "--lr_scheduler=linear",
    ]
    argv += ["--network_args", *(f"k{index}={text}" for index, text in enumerate(args))]
    argv += ["--pretrained_model_name_or_path=m", "--dataset_config=d", "--output_dir=o", "--network_module=n"]
    with pytest.raises(Finished):
        parse(*argv, f"--config_file={path}", "--output_config")
    direct, read_back = parse(*argv), parse(f"--config_file={path}")
    for group in ("model", "data", "network", "optimizer", "saving", "metadata"):
        assert getattr(direct, group) == getattr(read_back, group)
