import gzip
import json
from pathlib import Path

import pytest

from library.errors import CheckpointError, OptionError
from library.loras.block_weights import PRESETS, UNET_LISTS, blocks_of, module_weights, parse_weights

KEYS = Path(__file__).parents[2] / "golden" / "data"


def modules(model, variant="default"):
    case = json.loads(gzip.decompress((KEYS / f"lora_keys_{model}.json.gz").read_bytes()))["variants"][variant]
    keys = case["keys"] if "keys" in case else case["unet_keys"] + case.get("text_encoder_keys", [])
    return sorted({key.split(".")[0] for key, _ in keys})


@pytest.mark.parametrize("text", ["[1, 0, 0.5]", "1,0,0.5", "'1,0,.5e0'".replace(".5e0", "0.5"), ' "[1,0,0.5]" '])
def test_a_list_is_written_with_or_without_brackets_and_quotes(text):
    assert parse_weights(text) == (1.0, 0.0, 0.5)


def test_names_stand_for_lists():
    assert parse_weights("all") is None
    assert {len(PRESETS[name]) for name in PRESETS if name != "ALL"} == {17}
    middle = dict(zip(UNET_LISTS["sd"][0], parse_weights("MIDD"), strict=True))
    assert {block for block, weight in middle.items() if weight} == {
        *("BASE", "IN05", "IN07", "IN08", "M00", "OUT03", "OUT04", "OUT05", "OUT06")
    }


@pytest.mark.parametrize("text", ["", "[1, 2", "1;2", "nan,1", "[true]", "[[1]]", "{}", "MID"])
def test_anything_else_is_refused(text):
    with pytest.raises(OptionError, match="is no list of numbers"):
        parse_weights(text)


@pytest.mark.parametrize(("model", "family"), [("sd15", "sd"), ("sd21", "sd"), ("sdxl", "sdxl")])
def test_the_short_list_names_exactly_the_blocks_of_a_plain_lora(model, family):
    assert set(blocks_of(modules(model), family).values()) == set(UNET_LISTS[family][0])


@pytest.mark.parametrize(
    ("family", "name", "block"),
    [
        ("sd", "lora_unet_down_blocks_1_attentions_1_proj_in", "IN05"),
        ("sd", "lora_unet_down_blocks_2_downsamplers_0_conv", "IN09"),
        ("sd", "lora_unet_mid_block_resnets_1_conv2", "M00"),
        ("sd", "lora_unet_up_blocks_1_upsamplers_0_conv", "OUT05"),
        ("sd", "lora_unet_conv_in", "IN00"),
        ("sd", "lora_unet_time_embedding_linear_1", "BASE"),
        ("sd", "lora_te_text_model_encoder_layers_0_mlp_fc1", "BASE"),
        ("sdxl", "lora_unet_input_blocks_8_1_transformer_blocks_3_attn1_to_q", "IN08"),
        ("sdxl", "lora_unet_output_blocks_2_2_conv", "OUT02"),
        ("sdxl", "lora_unet_middle_block_1_proj_in", "M00"),
        ("sdxl", "lora_unet_out_2", "BASE"),
        ("sdxl", "lora_unet_label_emb_0_0", "BASE"),
        ("sd3", "lora_unet_joint_blocks_12_x_block_attn_qkv", "12"),
        ("sd3", "lora_unet_context_embedder", "BASE"),
        ("sd3", "lora_unet_final_layer_linear", "OUT"),
        ("sd3", "lora_te3_encoder_block_0_layer_0_SelfAttention_q", "BASE"),
    ],
)
def test_a_module_lies_in_its_block(family, name, block):
    assert blocks_of([name], family) == {name: block}


@pytest.mark.parametrize(
    ("model", "family", "length", "lengths"),
    [
        ("sd15", "sd", 16, "17 or 26"),
        ("sdxl", "sdxl", 17, "12 or 20"),
        ("sd35_medium", "sd3", 25, "24, 26, 38 or 40"),
        ("sd35_large", "sd3", 24, "38 or 40"),
    ],
)
def test_a_list_of_a_wrong_length_is_told_which_there_are(model, family, length, lengths):
    with pytest.raises(CheckpointError, match=rf"has a list of {length} numbers.* For file it has {lengths}:"):
        module_weights(modules(model), family, [1.0] * length, "file")


def test_a_short_list_is_refused_where_a_file_has_more_blocks():
    names = ["lora_unet_down_blocks_0_downsamplers_0_conv", "lora_unet_mid_block_attentions_0_proj_in"]
    with pytest.raises(CheckpointError, match="modules in IN03, which a list of 17 numbers does not name.*list of 26"):
        module_weights(names, "sd", [1.0] * 17, "file")
    weights = module_weights(names, "sd", [float(index) for index in range(26)], "file")
    assert list(weights.values()) == [4.0, 13.0]


def test_blocks_of_sd3_are_numbered_and_ends_may_be_named():
    names = modules("sd3_medium", "emb_dims")
    plain = module_weights(names, "sd3", [0.1] * 23 + [2.0], "file")
    assert plain["lora_unet_joint_blocks_23_x_block_mlp_fc1"] == 2 and plain["lora_unet_context_embedder"] == 1
    named = module_weights(names, "sd3", [5.0, *[0.1] * 24, 7.0], "file")
    assert named["lora_unet_context_embedder"] == 5 and named["lora_unet_final_layer_linear"] == 7
    assert named["lora_unet_joint_blocks_23_x_block_mlp_fc1"] == 0.1
