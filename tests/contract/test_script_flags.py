"""The flags of the scripts are those users know; the documentation is up to date; parsing imports no torch."""

import gzip
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from library.options.groups import NetworkOptions
from library.options.spec import group_classes, group_options, options_of, parse_options
from tools.make_options_doc import NAMES, PAGE, SCRIPTS, current_page

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {
    script: {entry["dest"]: entry for entry in entries}
    for name in ("scripts", "other_trainings")
    for script, entries in json.loads(
        gzip.decompress((ROOT / f"tests/golden/data/cli_options_{name}.json.gz").read_bytes())
    ).items()
}
OF_WORDS = (  # of a training that learns a word
    *("token_string", "init_word", "num_vectors_per_token", "weights", "use_object_template", "use_style_template"),
    "save_model_as",
)
KNOWN["sd3_train_textual_inversion"] = {  # which only this toolkit has
    **{name: entry for name, entry in KNOWN["sd3_train_network"].items() if name not in group_options(NetworkOptions)},
    **{name: KNOWN["train_textual_inversion"][name] for name in OF_WORDS},
}
OURS = {script["prog"].removesuffix(".py"): (options, script) for options, script in SCRIPTS}
NUMBERS = {
    "sd3_train_network": 218,
    "sd3_train": 201,
    "sdxl_train_network": 196,
    "sdxl_train": 176,
    "sdxl_train_control_net_lllite": 171,
    "sd3_train_textual_inversion": 210,
    "sdxl_train_textual_inversion": 170,
    "train_textual_inversion": 169,
    "train_network": 193,
    "fine_tune": 167,
    "train_db": 169,
}

ADDED = {
    *("tokenizer_dir", "debug", "dry_run", "on_bad_file", "cache_dir", "text_encoder_cache_variants"),
    *("recursive", "background", "min_image_size", "max_aspect_ratio", "max_crop_fraction", "max_image_pixels"),
    *("missing_caption", "empty_caption", "caption_encoding"),
    *("overwrite", "allow_changed", "max_bad_steps", "allow_pickle"),
    *("ema_decay", "ema_device", "bf16_rounding"),
    *("base_weights_dtype", "swap_prefetch", "sample_blocks_to_swap", "fit", "flash_attn"),
    "gradient_checkpointing_every_n_blocks",
}
ADDED_TO_NETWORKS = ADDED | {"blockwise_fused_optimizers"}
ADDED_TO_LORA = ADDED_TO_NETWORKS | {"verify_export"}
ADDED_TO_MODELS = ADDED | {
    *("prior_loss_weight", "cpu_offload_checkpointing", "no_metadata", "training_comment", "no_half_vae"),
    *("skip_until_initial_step", "initial_epoch", "initial_step", "fp8_base_unet"),
    *("validation_seed", "validation_split", "validate_every_n_steps", "validate_every_n_epochs"),
    *("max_validation_steps", "block_lr", "blockwise_fused_optimizers", "fused_optimizer_groups"),
}
ADDED_TO_LLLITE = ADDED_TO_NETWORKS | {
    *(
        "prior_loss_weight",
        "reg_data_dir",
        "masked_loss",
        "cpu_offload_checkpointing",
        "no_metadata",
        "training_comment",
    ),
    *("skip_until_initial_step", "initial_epoch", "initial_step", "fp8_base_unet"),
    *("validation_seed", "validation_split", "validate_every_n_steps", "validate_every_n_epochs"),
    "max_validation_steps",
}
ADDED_TO_WORDS = ADDED_TO_NETWORKS | {
    *("caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "weighted_captions"),
    *("cpu_offload_checkpointing", "no_metadata", "training_comment", "fp8_base_unet"),
    *("skip_until_initial_step", "initial_epoch", "initial_step", "max_validation_steps"),
    *("validation_seed", "validation_split", "validate_every_n_steps", "validate_every_n_epochs"),
}
# what only scripts for other families have there
ELSEWHERE = {"text_encoder_batch_size", "blocks_to_swap"}
ELSEWHERE_SD = ELSEWHERE | {
    *("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "disable_mmap_load_safetensors"),
}
ADDED_TO = {
    "sd3_train_network": ADDED_TO_LORA,
    "sd3_train": ADDED_TO_MODELS,
    "sdxl_train_network": ADDED_TO_LORA | ELSEWHERE | {"sdxl_crop_compat"},
    "sdxl_train": ADDED_TO_MODELS | ELSEWHERE | {"sdxl_crop_compat"},
    "sdxl_train_control_net_lllite": ADDED_TO_LLLITE | ELSEWHERE | {"sdxl_crop_compat"},
    "sd3_train_textual_inversion": ADDED_TO_NETWORKS | {"train_t5xxl"},
    "sdxl_train_textual_inversion": ADDED_TO_WORDS
    | ELSEWHERE
    | {"sdxl_crop_compat", "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk"},
    "train_textual_inversion": ADDED_TO_WORDS | ELSEWHERE_SD,
    "train_network": ADDED_TO_LORA | ELSEWHERE_SD,
    "fine_tune": ADDED_TO_MODELS | ELSEWHERE_SD | {"reg_data_dir", "conditioning_data_dir", "masked_loss"},
    "train_db": ADDED_TO_MODELS | ELSEWHERE_SD | {"in_json", "dataset_repeats"},
}
T5_FORMATS = {"fp32", "fp16", "bf16", "fp8", "fp8_e4m3fn", "int8"}  # elsewhere any text is taken
ADDED_CHOICES = {"resize_interpolation": {"box"}, "t5xxl_dtype": T5_FORMATS}
ADDED_CHOICES |= {"max_token_length": {75}, "dynamo_backend": {"no"}}  # which programs with windows write
ADDED_CHOICES_OF_NETWORKS = {"save_model_as": {"diffusers", "diffusers_safetensors"}}
TYPES = {"flag": {None}, "int": {"int"}, "float": {"float"}, "str": {"str"}, "path": {"str", "Path"}}
TYPES |= {"int_or_float": {"int_or_float"}, "int_or_auto": {"int"}}

each_script = pytest.mark.parametrize("name", OURS)


def parse(name, command):
    options, script = OURS[name]
    return parse_options(options, shlex.split(command), **script)


@each_script
def test_the_names_are_the_same_but_for_our_additions(name):
    assert len(KNOWN[name]) == NUMBERS[name]
    assert set(options_of(OURS[name][0])) == set(KNOWN[name]) | ADDED_TO[name]


@each_script
def test_type_default_choices_and_number_of_values_are_the_same(name):
    ours, differences = options_of(OURS[name][0]), []
    has_both = f"{name}.py" in NAMES["networks"] or name == "sdxl_train_control_net_lllite"
    more = ADDED_CHOICES | (ADDED_CHOICES_OF_NETWORKS if has_both else {})
    for known in KNOWN[name].values():
        own = ours[known["dest"]]
        choices = {choice for choice in known["choices"] or () if choice is not None}
        pairs = [
            (list(own.flags), known["flags"]),
            (known["type"] in TYPES[own.kind], True),
            (own.default, known["default"]),
            (isinstance(own.default, bool), isinstance(known["default"], bool)),
            (0 if own.kind == "flag" else "*" if own.is_list else None, known["nargs"]),
            (set(own.declared.choices), choices | more.get(own.name, set())),
        ]
        differences += [f"{own.name}: {mine} is not {theirs}" for mine, theirs in pairs if mine != theirs]
    assert not differences


@each_script
def test_what_is_ignored_exists_and_is_there_for_no_other_reason(name):
    options, script = OURS[name]
    ours = options_of(options)
    assert set(script["ignored"]) <= set(ours)
    assert not any(ours[ignored].declared.later or ours[ignored].declared.no_effect for ignored in script["ignored"])


def test_every_script_in_the_root_that_trains_is_documented():
    scripts = {path.name for path in ROOT.glob("*.py") if "run_script" in path.read_text(encoding="utf-8")}
    trains = {name for name in scripts if not name.endswith("gen_img.py")}
    assert trains == {script["prog"] for _, script in SCRIPTS}
    assert set().union(*NAMES.values()) == trains


@each_script
def test_the_page_has_every_option_of_a_script(name):
    page = PAGE.read_text(encoding="utf-8")
    for group in group_classes(OURS[name][0]).values():
        assert f"\n## {group.title}\n" in page
        assert all(f"| `--{option}` |" in page for option in group_options(group))


def test_docs_options_md_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == current_page(), "run: python -m tools.make_options_doc"


FILES = "--pretrained_model_name_or_path=model.safetensors --dataset_config=d.toml --output_dir=out --output_name=mine "
COMMANDS = [
    (
        "sd3_train_network",
        """--pretrained_model_name_or_path=sd3.safetensors --clip_l="" --clip_g=g.safetensors --t5xxl=t.safetensors
        --vae="" --dataset_config=my_sd3_dataset_config.toml --output_dir=out --output_name=my_sd3_lora
        --save_model_as=safetensors --network_module=networks.lora --network_dim=16 --network_alpha=1
        --learning_rate=1e-4 --optimizer_type="AdamW8bit" --lr_scheduler="constant" --sdpa --max_train_epochs=10
        --save_every_n_epochs=1 --mixed_precision="fp16" --gradient_checkpointing --apply_lg_attn_mask
        --apply_t5_attn_mask --weighting_scheme="sigma_sqrt" --blocks_to_swap=32""",
    ),
    (
        "sd3_train_network",
        """--pretrained_model_name_or_path=sd3.safetensors --dataset_config=d.toml --output_dir=out
        --network_module=networks.lora_sd3 --network_args "context_attn_dim=2" "context_mlp_dim=3" "context_mod_dim=4"
        "x_attn_dim=5" "x_mlp_dim=6" "x_mod_dim=7" "emb_dims=[2,3,4,5,6,7]" "train_block_indices=1,2,6-8" "verbose=True"
        """,
    ),
    (
        "sd3_train",
        """--pretrained_model_name_or_path=sd3_medium.safetensors --optimizer_type="AdamW8bit"
        --cache_text_encoder_outputs --cache_text_encoder_outputs_to_disk --vae_batch_size=1 --cache_latents
        --cache_latents_to_disk --caption_extension=".txt" --learning_rate=1e-4 --lr_scheduler="cosine_with_restarts"
        --output_name="last" --save_model_as=safetensors --save_precision="fp16" --train_batch_size=1
        --resolution="1024,1024" --save_every_n_epochs=1 --lr_scheduler_num_cycles=1 --clip_g=g.safetensors
        --clip_l=l.safetensors --t5xxl=t.safetensors --max_train_epochs=16 --mixed_precision=bf16 --lr_warmup_steps=0
        --keep_tokens=1 --output_dir=out --train_data_dir=data --full_bf16""",
    ),
    (
        "train_network",
        FILES
        + """--save_model_as=safetensors --prior_loss_weight=1.0 --max_train_steps=400 --learning_rate=1e-4
        --optimizer_type="AdamW8bit" --xformers --mixed_precision="fp16" --cache_latents --gradient_checkpointing
        --save_every_n_epochs=1 --network_module=networks.lora --clip_skip=2 --min_snr_gamma=5 --noise_offset=0.1
        --adaptive_noise_scale=0.01 --max_token_length=225 --weighted_captions --sample_sampler=euler_a""",
    ),
    ("train_network", FILES + "--network_module=networks.lora --v2 --v_parameterization --zero_terminal_snr"),
    (
        "sdxl_train_network",
        FILES
        + """--network_module=networks.lora --network_dim=32 --network_alpha=16 --network_train_unet_only
        --learning_rate=1e-4 --unet_lr=1e-4 --optimizer_type="AdamW8bit"
        --lr_scheduler="constant" --max_train_epochs=10 --save_every_n_epochs=1 --mixed_precision="bf16"
        --gradient_checkpointing --cache_latents --cache_text_encoder_outputs --no_half_vae
        --max_data_loader_n_workers=2 --network_args "conv_dim=8" "conv_alpha=4" --multires_noise_iterations=6
        --multires_noise_discount=0.3""",
    ),
    (
        "sdxl_train",
        FILES
        + """--optimizer_type="adafactor" --optimizer_args "scale_parameter=False" "relative_step=False"
        "warmup_init=False" --lr_scheduler="constant_with_warmup" --lr_warmup_steps=100 --learning_rate=4e-7
        --mixed_precision=bf16 --full_bf16 --gradient_checkpointing --cache_text_encoder_outputs --cache_latents
        --no_half_vae --save_model_as=diffusers --fused_backward_pass --block_lr="""
        + ",".join(["1e-5"] * 23),
    ),
    (
        "sdxl_train",
        FILES + """--train_text_encoder --learning_rate_te1=1e-5 --learning_rate_te2=0 --cache_text_encoder_outputs""",
    ),
    (
        "fine_tune",
        """--pretrained_model_name_or_path=model.ckpt --in_json=meta_lat.json --train_data_dir=train_data
        --output_dir=fine_tuned --shuffle_caption --train_batch_size=1 --learning_rate=5e-6 --max_train_steps=10000
        --use_8bit_adam --xformers --gradient_checkpointing --mixed_precision=bf16 --save_every_n_epochs=4
        --use_safetensors --train_text_encoder --learning_rate_te=1e-6""",
    ),
    (
        "train_db",
        """--pretrained_model_name_or_path=model.safetensors --train_data_dir=train --reg_data_dir=reg
        --output_dir=out --output_name=last --save_model_as=safetensors --prior_loss_weight=1.0 --resolution=512
        --max_train_steps=1600 --learning_rate=1e-6 --optimizer_type="AdamW8bit" --xformers --mixed_precision="fp16"
        --cache_latents --gradient_checkpointing --stop_text_encoder_training=400""",
    ),
    *((script["prog"].removesuffix(".py"), script["example"].partition(".py ")[2]) for _, script in SCRIPTS),
]


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_commands_that_users_know_parse_without_a_warning(name, command):
    assert parse(name, command).warnings == ()


@pytest.mark.parametrize("argv", [["--help"], ["--train_batch_size=0", "--nonsense"]])
def test_help_and_option_errors_import_nothing_heavy(argv):
    code = (
        "import importlib, sys\n"
        f"codes = {{importlib.import_module(name).main({argv!r}) for name in {list(OURS)!r}}}\n"
        "heavy = {'torch', 'numpy', 'transformers', 'diffusers', 'accelerate', 'bitsandbytes', 'PIL'}\n"
        f"assert codes == {{{0 if argv == ['--help'] else 2}}}, codes\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
