"""The flags of tools/cache_*.py are those users know, and those of all scripts that train a network."""

import gzip
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from library.errors import OptionError
from library.families.sd.options import SdNetworkOptions
from library.families.sd3.options import Sd3NetworkOptions
from library.families.sdxl.options import SdxlNetworkOptions
from library.options.spec import options_of, parse_options
from tools.cache_options import LATENT_CACHING_SCRIPT, TEXT_CACHING_SCRIPT, LatentCachingOptions, TextCachingOptions
from tools.preview_options import PreviewToolOptions

ROOT = Path(__file__).resolve().parents[2]
KNOWN = json.loads(gzip.decompress((ROOT / "tests/golden/data/cli_options_cache_tools.json.gz").read_bytes()))
TOOLS = {
    "tools/cache_latents": (LatentCachingOptions, LATENT_CACHING_SCRIPT),
    "tools/cache_text_encoder_outputs": (TextCachingOptions, TEXT_CACHING_SCRIPT),
}
ADDED = {"sd", "sd3", "cache_status", "cache_prune"}
ADDED_CHOICES = {"save_model_as": {"diffusers", "diffusers_safetensors"}, "resize_interpolation": {"box"}}
ADDED_CHOICES |= {"t5xxl_dtype": {"fp32", "fp16", "bf16", "fp8", "fp8_e4m3fn", "int8"}}
ADDED_CHOICES |= {"max_token_length": {75}, "dynamo_backend": {"no"}}  # which programs with windows write
DEFAULTS = {"t5xxl_max_token_length": 256}  # of SD3; the tools of others leave it to the family
TYPES = {"flag": {None}, "int": {"int"}, "float": {"float"}, "str": {"str", None}, "path": {"str", "Path"}}
TYPES |= {"int_or_float": {"int_or_float"}, "int_or_auto": {"int"}}
NEEDED = "--pretrained_model_name_or_path=sd3.safetensors --dataset_config=d.toml"
TRAINING = {*options_of(SdNetworkOptions), *options_of(SdxlNetworkOptions), *options_of(Sd3NetworkOptions)}

each_tool = pytest.mark.parametrize("tool", TOOLS)


def parse(tool, command):
    options, script = TOOLS[tool]
    return parse_options(options, shlex.split(command), **script)


@each_tool
def test_the_names_are_those_of_the_known_tools_and_of_the_scripts_for_networks(tool):
    ours, known = set(options_of(TOOLS[tool][0])), {entry["dest"] for entry in KNOWN[tool]}
    assert len(known) > 150
    assert ours == known | TRAINING | ADDED


def test_the_preview_has_the_options_of_the_scripts_for_networks():
    own = {"sd", "sdxl", "sd3", "flux", "output", "max_pictures"}
    assert set(options_of(PreviewToolOptions)) == TRAINING | own


@each_tool
def test_type_default_choices_and_number_of_values_are_the_same(tool):
    ours = options_of(TOOLS[tool][0])
    differences = []
    for known in KNOWN[tool]:
        own = ours[known["dest"]]
        choices = {choice for choice in known["choices"] or () if choice is not None}
        pairs = [
            (list(own.flags), known["flags"]),
            (known["type"] in TYPES[own.kind], True),
            (own.default, DEFAULTS.get(own.name, known["default"])),
            (0 if own.kind == "flag" else "*" if own.is_list else None, known["nargs"]),
            (set(own.declared.choices), choices | ADDED_CHOICES.get(own.name, set())),
        ]
        differences += [f"{own.name}: {mine} is not {theirs}" for mine, theirs in pairs if mine != theirs]
    assert not differences


TRAINING_COMMANDS = [
    """--pretrained_model_name_or_path=sd3.safetensors --clip_l=l.safetensors --clip_g=g.safetensors
    --t5xxl=t.safetensors --dataset_config=d.toml --output_dir=out --output_name=my_sd3_lora --save_model_as=safetensors
    --network_module=networks.lora --network_dim=16 --network_alpha=1 --learning_rate=1e-4 --optimizer_type="AdamW8bit"
    --lr_scheduler="constant" --sdpa --max_train_epochs=10 --save_every_n_epochs=1 --mixed_precision="fp16"
    --gradient_checkpointing --apply_lg_attn_mask --apply_t5_attn_mask --weighting_scheme="sigma_sqrt"
    --blocks_to_swap=32 --network_train_unet_only --cache_text_encoder_outputs --cache_latents --full_fp16 --seed=1""",
    NEEDED
    + " --output_dir=out --network_module=networks.lora --xformers --torch_compile --deepspeed --loss_type=huber",
    NEEDED + " --highvram --persistent_data_loader_workers --max_data_loader_n_workers=0",
]


@each_tool
@pytest.mark.parametrize("command", TRAINING_COMMANDS)
def test_a_copied_training_command_parses_with_one_warning(tool, command):
    (line,) = parse(tool, command).warnings
    assert line.startswith("Options without effect here: ")
    assert "(for training)" in line


@each_tool
def test_what_is_given_for_training_is_not_looked_at(tool):
    options = parse(tool, NEEDED + " --network_dim=-5 --learning_rate=0 --full_bf16")
    assert options.network.network_dim is None
    assert "--learning_rate, --network_dim" in options.warnings[0] or "--network_dim" in options.warnings[0]


@each_tool
def test_the_bare_command_has_no_warning_and_writes_to_disk(tool):
    options = parse(tool, NEEDED)
    assert options.warnings == ()
    is_latents = tool == "tools/cache_latents"
    assert options.cache.cache_latents_to_disk == options.cache.caches_latents == is_latents
    assert options.cache.cache_text_encoder_outputs_to_disk == options.cache.caches_text == (not is_latents)


@each_tool
def test_flux_is_not_available_yet(tool):
    with pytest.raises(OptionError, match="--flux: not available yet"):
        parse(tool, f"{NEEDED} --flux")


@each_tool
def test_there_is_one_family(tool):
    with pytest.raises(OptionError, match="--sdxl and --sd3 exclude each other"):
        parse(tool, f"{NEEDED} --sd3 --sdxl")


@each_tool
def test_options_of_flux_are_known_and_have_no_effect(tool):
    (line,) = parse(tool, NEEDED + " --ae=ae.safetensors --timestep_sampling=shift --model_type=chroma").warnings
    assert line == "Options without effect here: --ae, --timestep_sampling, --model_type (for FLUX)."


def test_options_of_the_other_cache_are_known_and_have_no_effect():
    (line,) = parse("tools/cache_latents", NEEDED + " --cache_text_encoder_outputs").warnings
    assert line == "Options without effect here: --cache_text_encoder_outputs (for the other cache)."


@each_tool
def test_keys_of_programs_with_windows_are_not_told_as_those_of_a_training(tool, tmp_path):
    (tmp_path / "run.toml").write_text("epoch = 3\n", encoding="utf-8")
    (line,) = parse(tool, f"{NEEDED} --config_file={tmp_path / 'run.toml'}").warnings
    assert line.endswith("epoch is no option and changes nothing: what is cached does not depend on it.")


@each_tool
def test_a_name_that_is_in_no_script_is_an_error(tool):
    with pytest.raises(OptionError, match="--cache_status"):
        parse(tool, NEEDED + " --cache_statu")


@each_tool
def test_variants_and_cache_dir_need_no_other_option(tool):
    command = NEEDED + " --cache_dir=caches --text_encoder_cache_variants=3"
    assert not [line for line in parse(tool, command).warnings if "cache_dir" in line]


@each_tool
@pytest.mark.parametrize("argv", [["--help"], ["--nonsense"]])
def test_help_and_option_errors_import_nothing_heavy(tool, argv):
    code = (
        "import importlib, sys\n"
        f"importlib.import_module({tool.replace('/', '.')!r}).main({argv!r})\n"
        "heavy = {'torch', 'numpy', 'transformers', 'diffusers', 'accelerate', 'bitsandbytes', 'PIL'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
