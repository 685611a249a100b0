"""The flags of sd3_train_network.py are those users know; the documentation is up to date; parsing imports no torch."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from library.families.sd3.options import IGNORED, NETWORK_SCRIPT, Sd3NetworkOptions
from library.options.spec import options_of, parse_options
from tools.make_options_doc import PAGE, current_page

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {
    entry["dest"]: entry
    for entry in json.loads((ROOT / "tests/golden/data/cli_options_sd3_train_network.json").read_text())
}
OURS = options_of(Sd3NetworkOptions)

ADDED = {
    *("tokenizer_dir", "debug", "dry_run", "on_bad_file", "cache_dir", "text_encoder_cache_variants"),
    *("recursive", "background", "min_image_size", "max_aspect_ratio", "max_crop_fraction", "max_image_pixels"),
    *("missing_caption", "empty_caption", "caption_encoding"),
    *("overwrite", "allow_changed", "max_bad_steps"),
    *("ema_decay", "ema_device"),
}
ADDED_CHOICES = {"save_model_as": {"diffusers"}, "resize_interpolation": {"box"}}
TYPES = {"flag": {None}, "int": {"int"}, "float": {"float"}, "str": {"str"}, "path": {"str", "Path"}}
TYPES["int_or_float"] = {"int_or_float"}


def test_the_names_are_the_same_but_for_our_additions():
    assert len(KNOWN) == 218
    assert set(OURS) == set(KNOWN) | ADDED


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_type_default_choices_and_number_of_values_are_the_same(name):
    known, ours = KNOWN[name], OURS[name]
    assert list(ours.flags) == known["flags"]
    assert known["type"] in TYPES[ours.kind]
    assert ours.default == known["default"] and isinstance(ours.default, bool) == isinstance(known["default"], bool)
    assert known["nargs"] == (0 if ours.kind == "flag" else "*" if ours.is_list else None)
    known_choices = {choice for choice in known["choices"] or () if choice is not None}
    assert set(ours.declared.choices) == known_choices | ADDED_CHOICES.get(name, set())


def test_what_is_ignored_for_sd3_exists_and_is_there_for_no_other_reason():
    assert set(IGNORED) <= set(OURS)
    assert not any(OURS[name].declared.later or OURS[name].declared.no_effect for name in IGNORED)


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
