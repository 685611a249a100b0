"""The flags of the SD3 scripts are those users know; the documentation is up to date; parsing imports no torch."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from library.families.sd3.options import (
    FULL_SCRIPT,
    IGNORED,
    IGNORED_BY_ALL,
    NETWORK_SCRIPT,
    Sd3FullOptions,
    Sd3NetworkOptions,
)
from library.options.spec import options_of, parse_options
from tools.make_options_doc import PAGE, current_page

ROOT = Path(__file__).resolve().parents[2]


def _known(script):
    entries = json.loads((ROOT / f"tests/golden/data/cli_options_{script}.json").read_text())
    return {entry["dest"]: entry for entry in entries}


KNOWN = {script: _known(script) for script in ("sd3_train_network", "sd3_train")}
OURS = {"sd3_train_network": options_of(Sd3NetworkOptions), "sd3_train": options_of(Sd3FullOptions)}

ADDED = {
    *("tokenizer_dir", "debug", "dry_run", "on_bad_file", "cache_dir", "text_encoder_cache_variants"),
    *("recursive", "background", "min_image_size", "max_aspect_ratio", "max_crop_fraction", "max_image_pixels"),
    *("missing_caption", "empty_caption", "caption_encoding"),
    *("overwrite", "allow_changed", "max_bad_steps"),
    *("ema_decay", "ema_device", "bf16_rounding"),
    *("base_weights_dtype", "swap_prefetch", "sample_blocks_to_swap", "fit", "flash_attn"),
    "gradient_checkpointing_every_n_blocks",
}
ADDED_TO = {
    "sd3_train_network": ADDED | {"blockwise_fused_optimizers"},
    "sd3_train": ADDED
    | {
        *("prior_loss_weight", "cpu_offload_checkpointing", "no_metadata", "training_comment", "no_half_vae"),
        *("skip_until_initial_step", "initial_epoch", "initial_step", "fp8_base_unet"),
        *("validation_seed", "validation_split", "validate_every_n_steps", "validate_every_n_epochs"),
        *("max_validation_steps", "block_lr"),
    },
}
T5_FORMATS = {"fp32", "fp16", "bf16", "fp8", "fp8_e4m3fn", "int8"}  # elsewhere any text is taken
ADDED_CHOICES = {
    ("sd3_train_network", "save_model_as"): {"diffusers"},
    ("sd3_train_network", "resize_interpolation"): {"box"},
    ("sd3_train", "resize_interpolation"): {"box"},
    ("sd3_train_network", "t5xxl_dtype"): T5_FORMATS,
    ("sd3_train", "t5xxl_dtype"): T5_FORMATS,
}
TYPES = {"flag": {None}, "int": {"int"}, "float": {"float"}, "str": {"str"}, "path": {"str", "Path"}}
TYPES |= {"int_or_float": {"int_or_float"}, "int_or_auto": {"int"}}


@pytest.mark.parametrize(("script", "number"), [("sd3_train_network", 218), ("sd3_train", 201)])
def test_the_names_are_the_same_but_for_our_additions(script, number):
    assert len(KNOWN[script]) == number
    assert set(OURS[script]) == set(KNOWN[script]) | ADDED_TO[script]


@pytest.mark.parametrize(("script", "name"), [(script, name) for script in KNOWN for name in sorted(KNOWN[script])])
def test_type_default_choices_and_number_of_values_are_the_same(script, name):
    known, ours = KNOWN[script][name], OURS[script][name]
    assert list(ours.flags) == known["flags"]
    assert known["type"] in TYPES[ours.kind]
    assert ours.default == known["default"] and isinstance(ours.default, bool) == isinstance(known["default"], bool)
    assert known["nargs"] == (0 if ours.kind == "flag" else "*" if ours.is_list else None)
    known_choices = {choice for choice in known["choices"] or () if choice is not None}
    assert set(ours.declared.choices) == known_choices | ADDED_CHOICES.get((script, name), set())


@pytest.mark.parametrize(("script", "ignored"), [("sd3_train_network", IGNORED), ("sd3_train", IGNORED_BY_ALL)])
def test_what_is_ignored_for_sd3_exists_and_is_there_for_no_other_reason(script, ignored):
    ours = OURS[script]
    assert set(ignored) <= set(ours)
    assert not any(ours[name].declared.later or ours[name].declared.no_effect for name in ignored)


def test_docs_options_md_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == current_page(), "run: python -m tools.make_options_doc"


COMMANDS = [
    """--pretrained_model_name_or_path=sd3.safetensors --clip_l="" --clip_g=g.safetensors --t5xxl=t.safetensors --vae=""
    --dataset_config=my_sd3_dataset_config.toml --output_dir=out --output_name=my_sd3_lora --save_model_as=safetensors
    --network_module=networks.lora --network_dim=16 --network_alpha=1 --learning_rate=1e-4 --optimizer_type="AdamW8bit"
    --lr_scheduler="constant" --sdpa --max_train_epochs=10 --save_every_n_epochs=1 --mixed_precision="fp16"
    --gradient_checkpointing --apply_lg_attn_mask --apply_t5_attn_mask --weighting_scheme="sigma_sqrt"
    --blocks_to_swap=32""",
    """--pretrained_model_name_or_path=sd3.safetensors --dataset_config=d.toml --output_dir=out
    --network_module=networks.lora_sd3 --network_args "context_attn_dim=2" "context_mlp_dim=3" "context_mod_dim=4"
    "x_attn_dim=5" "x_mlp_dim=6" "x_mod_dim=7" "emb_dims=[2,3,4,5,6,7]" "train_block_indices=1,2,6-8" "verbose=True"
    """,
    NETWORK_SCRIPT["example"].partition("sd3_train_network.py ")[2],
]


FULL_COMMANDS = [
    """--pretrained_model_name_or_path=sd3_medium.safetensors --optimizer_type="AdamW8bit" --cache_text_encoder_outputs
    --cache_text_encoder_outputs_to_disk --vae_batch_size=1 --cache_latents --cache_latents_to_disk
    --caption_extension=".txt" --learning_rate=1e-4 --lr_scheduler="cosine_with_restarts" --output_name="last"
    --save_model_as=safetensors --save_precision="fp16" --train_batch_size=1 --resolution="1024,1024"
    --save_every_n_epochs=1 --lr_scheduler_num_cycles=1 --clip_g=g.safetensors --clip_l=l.safetensors
    --t5xxl=t.safetensors --max_train_epochs=16 --mixed_precision=bf16 --lr_warmup_steps=0 --keep_tokens=1
    --output_dir=out --train_data_dir=data --full_bf16""",
    FULL_SCRIPT["example"].partition("sd3_train.py ")[2],
]


@pytest.mark.parametrize("command", FULL_COMMANDS)
def test_commands_of_the_guide_of_the_full_training_parse_without_a_warning(command):
    assert parse_options(Sd3FullOptions, shlex.split(command), **FULL_SCRIPT).warnings == ()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_guides_parse_without_a_warning(command):
    assert parse_options(Sd3NetworkOptions, shlex.split(command), **NETWORK_SCRIPT).warnings == ()


@pytest.mark.parametrize("argv", [["--help"], ["--network_dim=0", "--nonsense"]])
def test_help_and_option_errors_import_nothing_heavy(argv):
    code = (
        "import sys\n"
        "from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions\n"
        "from library.options.entry import run_script\n"
        f"run_script(Sd3NetworkOptions, print, argv={argv!r}, **NETWORK_SCRIPT)\n"
        "heavy = {'torch', 'numpy', 'transformers', 'diffusers', 'accelerate', 'bitsandbytes', 'PIL'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
