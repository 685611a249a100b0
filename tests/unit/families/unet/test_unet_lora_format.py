import json

import pytest
import torch

from library.errors import CheckpointError
from library.families.unet.lora_format import diffusers_to_kohya, dotted, kohya_to_diffusers


def kohya(name, out=6, inner=4, rank=2, alpha=1.0, kernel=()):
    draw = torch.Generator().manual_seed(len(name))
    return {
        f"{name}.lora_down.weight": torch.randn(rank, inner, *kernel, generator=draw),
        f"{name}.lora_up.weight": torch.randn(out, rank, *[1 for _ in kernel], generator=draw),
        f"{name}.alpha": torch.tensor(alpha),
    }


def paths(tensors):
    return {key.rpartition(".lora_")[0] for key in tensors}


NAMES = {
    # of SD1 and SD2: name in a kohya file, and in diffusers
    "sd1": {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0": (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
        ),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj": (
            "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
        ),
        "lora_unet_up_blocks_3_attentions_2_proj_out": "unet.up_blocks.3.attentions.2.proj_out",
        "lora_unet_up_blocks_0_resnets_1_time_emb_proj": "unet.up_blocks.0.resnets.1.time_emb_proj",
        "lora_unet_up_blocks_0_upsamplers_0_conv": "unet.up_blocks.0.upsamplers.0.conv",
        "lora_unet_time_embedding_linear_1": "unet.time_embedding.linear_1",
        "lora_te_text_model_encoder_layers_11_mlp_fc2": "text_encoder.text_model.encoder.layers.11.mlp.fc2",
    },
    "sdxl": {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
        ),
        "lora_unet_middle_block_2_out_layers_3": "unet.mid_block.resnets.1.conv2",
        "lora_unet_output_blocks_2_2_conv": "unet.up_blocks.0.upsamplers.0.conv",
        "lora_unet_input_blocks_3_0_op": "unet.down_blocks.0.downsamplers.0.conv",
        "lora_unet_output_blocks_8_0_skip_connection": "unet.up_blocks.2.resnets.2.conv_shortcut",
        "lora_unet_label_emb_0_2": "unet.add_embedding.linear_2",
        "lora_unet_out_2": "unet.conv_out",
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj": (
            "text_encoder.text_model.encoder.layers.0.self_attn.out_proj"
        ),
        "lora_te2_text_model_encoder_layers_31_self_attn_q_proj": (
            "text_encoder_2.text_model.encoder.layers.31.self_attn.q_proj"
        ),
    },
}
CASES = [(kind, name) for kind in NAMES for name in NAMES[kind]]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_name_by_itself_goes_there_and_back(kind, name):
    source = kohya(name, alpha=2.0)
    converted = kohya_to_diffusers(source, kind)
    assert paths(converted) == {NAMES[kind][name]}
    back = diffusers_to_kohya(converted, kind)
    assert back.keys() == source.keys() and all(torch.equal(back[key], source[key]) for key in source)


def test_strength_goes_into_the_second_factor_and_stays():
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    source = kohya(name, alpha=0.5, kernel=(3, 3))
    converted = kohya_to_diffusers(source, "sd2")
    stem = "unet.down_blocks.0.resnets.0.conv1"
    assert torch.equal(converted[f"{stem}.lora_A.weight"], source[f"{name}.lora_down.weight"])
    assert torch.equal(converted[f"{stem}.lora_B.weight"], source[f"{name}.lora_up.weight"] / 4)
    back = diffusers_to_kohya(converted, "sd2")
    assert back[f"{name}.alpha"] == 2 and back[f"{name}.lora_up.weight"].shape == (6, 2, 1, 1)


def test_alpha_that_diffusers_has_noted_is_heeded():
    converted = kohya_to_diffusers(kohya("lora_unet_input_blocks_4_1_proj_in", alpha=2.0), "sdxl")
    noted = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 6, "unet.r": 2})}
    back = diffusers_to_kohya(converted, "sdxl", noted)
    assert back["lora_unet_input_blocks_4_1_proj_in.alpha"] == 6


def test_sdxl_files_with_the_names_of_diffusers_are_converted_too():
    converted = kohya_to_diffusers(kohya("lora_unet_down_blocks_1_attentions_0_proj_in"), "sdxl")
    assert paths(converted) == {"unet.down_blocks.1.attentions.0.proj_in"}
    assert "lora_unet_input_blocks_4_1_proj_in.alpha" in diffusers_to_kohya(converted, "sdxl")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora_unet_input_blocks_4_1_proj_in", "sd1"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", "sdxl"),
        ("lora_unet_down_blocks_0_attentions_0_proj", "sd1"),
        ("lora_unet_input_blocks_4_1_proj", "sdxl"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "sdxl"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "sd"),
        ("lora_te1_text_model_encoder_layers_0_layer_norm1", "sdxl"),
    ],
)
def test_modules_of_other_models_are_refused(name, kind):
    with pytest.raises(CheckpointError, match=f"{name} is no module of (SDXL|SD1 or SD2)"):
        kohya_to_diffusers(kohya(name), kind)


def test_foreign_paths_are_refused():
    for path in (
        "transformer.transformer_blocks.0.attn.to_q",
        "unet.down_blocks.0.norm",
        "text_encoder_2.text_model.x",
    ):
        with pytest.raises(CheckpointError, match="is no module of SD1 or SD2"):
            diffusers_to_kohya({f"{path}.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}, "sd")


def test_what_is_no_lora_is_refused():
    with pytest.raises(CheckpointError, match="Only LoRA will do here"):
        kohya_to_diffusers({"oft_unet_conv_in.oft_blocks": torch.ones(1, 2, 2)}, "sd")
    with pytest.raises(CheckpointError, match="one of its two factors"):
        diffusers_to_kohya({"unet.conv_in.lora_A.weight": torch.ones(2, 2)}, "sd")


def test_underscores_become_dots_where_names_have_them():
    assert dotted("down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q") == (
        "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
    )
    assert dotted("input_blocks_1_0_in_layers_2") == "input_blocks.1.0.in_layers.2"
    assert dotted("Strange-name") == "Strange-name"
