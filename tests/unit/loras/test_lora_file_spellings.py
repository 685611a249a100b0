"""Files that other programs write are read as what they are."""

import pytest
import torch
from safetensors.torch import save_file

from library.errors import CheckpointError
from library.loras.lora_family import families_of, other_adapter, title_of
from library.loras.lora_file import check_target, read_lora
from library.loras.lora_spellings import plain_key

DOWN, UP = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), torch.ones(8, 2)
SDXL = "lora_unet_output_blocks_3_1_transformer_blocks_0_attn1_to_q"
DOTTED = "output_blocks.3.1.transformer_blocks.0.attn1.to_q"
SD = "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
SD3 = "lora_unet_joint_blocks_1_x_block_attn_proj"
SD3_DIFFUSERS = "transformer_blocks.1.attn.to_out.0"
SDXL_DIFFUSERS = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def written(path, tensors):
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path / "lora.safetensors")
    return path / "lora.safetensors"


def pair(name, down="lora_down.weight", up="lora_up.weight", *, wide=False, **more):
    """Factors; wide ones take texts as those of SD1."""
    return {
        f"{name}.{down}": torch.ones(2, 768) if wide else DOWN,
        f"{name}.{up}": UP,
        **{f"{name}.{key}": tensor for key, tensor in more.items()},
    }


SDXL_MARK = pair("lora_te2_text_model_encoder_layers_0_mlp_fc1")
TE2_DIFFUSERS = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
PEFT = ("lora_A.weight", "lora_B.weight")
FILES = {  # what a file holds, its family, the module's name
    "sdxl kohya": (pair(SDXL), "sdxl", SDXL),
    "sdxl with names of diffusers": (pair(SD) | SDXL_MARK, "sdxl", SDXL),
    "sd with published names": (pair(SDXL) | pair(SDXL.replace("attn1_to_q", "attn2_to_k"), wide=True), "sd", SD),
    "sd of ComfyUI": (
        pair(f"diffusion_model.{DOTTED}", *PEFT) | pair(SDXL.replace("attn1_to_q", "attn2_to_k"), wide=True),
        "sd",
        SD,
    ),
    "sd3 kohya": (pair(SD3), "sd3", SD3),
    "sd3 of ComfyUI": (pair("diffusion_model.joint_blocks.1.x_block.attn.proj", *PEFT), "sd3", SD3),
    "sd3 of PEFT": (pair(f"base_model.model.{SD3_DIFFUSERS}", *PEFT), "sd3", SD3),
    "sd3 of diffusers": (
        pair(f"transformer.{SD3_DIFFUSERS}", "lora_A.default.weight", "lora_B.default.weight"),
        "sd3",
        SD3,
    ),
    "sd3 of older diffusers": (pair(f"transformer.{SD3_DIFFUSERS}", "lora.down.weight", "lora.up.weight"), "sd3", SD3),
    "sd3 of OneTrainer": (pair(f"lora_transformer_{SD3_DIFFUSERS.replace('.', '_')}"), "sd3", SD3),
    "sdxl of diffusers": (pair(f"unet.{SDXL_DIFFUSERS}", *PEFT) | pair(TE2_DIFFUSERS, *PEFT), "sdxl", SDXL),
    "sd of older diffusers": (
        pair(f"unet.{SDXL_DIFFUSERS}".replace("to_q", "processor.to_q_lora"), "down.weight", "up.weight"),
        "sd",
        SD,
    ),
    "clip without a level": (
        pair("lora_te_encoder_layers_0_mlp_fc1") | pair(SD),
        "sd",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    ),
}


@pytest.mark.parametrize("title", FILES)
def test_a_file_is_read_under_the_names_of_its_family(title, tmp_path):
    tensors, family, name = FILES[title]
    lora = read_lora(written(tmp_path, tensors), "--models")
    assert lora.family == family and name in lora.modules
    torch.testing.assert_close(lora.modules[name].down, DOWN)
    assert lora.modules[name].scale == 1


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "onetrainer"])
def test_an_alpha_is_heeded_in_every_layout(layout, tmp_path):
    names = {"kohya": (SD3,), "diffusers": (f"transformer.{SD3_DIFFUSERS}", *PEFT)}
    names["onetrainer"] = (f"lora_transformer_{SD3_DIFFUSERS.replace('.', '_')}",)
    lora = read_lora(written(tmp_path, pair(*names[layout], alpha=torch.tensor(1.0))), "--models").modules[SD3]
    torch.testing.assert_close(lora.up * lora.scale, UP / 2)


def test_the_core_of_a_convolution_is_multiplied_in(tmp_path):
    draw = torch.Generator().manual_seed(1)
    down, core = torch.randn(2, 4, 1, 1, generator=draw), torch.randn(2, 2, 3, 3, generator=draw)
    up = torch.randn(6, 2, 1, 1, generator=draw)
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = {f"{name}.lora_{part}.weight": t for part, t in (("down", down), ("mid", core), ("up", up))}
    found = read_lora(written(tmp_path, tensors), "--models").modules[name]
    x = torch.randn(1, 4, 5, 5, generator=draw)
    conv = torch.nn.functional.conv2d
    torch.testing.assert_close(conv(conv(x, found.down), found.up), conv(conv(conv(x, down), core), up))


@pytest.mark.parametrize(
    ("names", "families"),
    [
        (["lora_te_text_model_encoder_layers_0_mlp_fc1"], ("sd",)),
        (["lora_te1_text_model_encoder_layers_0_mlp_fc1"], ("sdxl", "sd3")),
        (
            ["lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te3_encoder_block_0_layer_0_SelfAttention_q"],
            ("sd3",),
        ),
        (["text_encoder.text_model.encoder.layers.0.mlp.fc1"], ("sd", "sdxl", "sd3")),
        (["lora_unet_double_blocks_0_img_attn_qkv"], ()),
    ],
)
def test_a_file_for_text_encoders_may_be_for_several_families(names, families):
    shapes = {f"{name}.lora_{half}.weight": (8, 8) for name in names for half in ("down", "up")}
    assert families_of(shapes) == families


@pytest.mark.parametrize(
    ("key", "title"),
    [
        ("lora_unet_a.dora_scale", "a DoRA"),
        ("transformer.a.lora_magnitude_vector", "a DoRA"),
        ("lora_unet_a.hada_w1_a", "a LoHa (LyCORIS)"),
        ("lora_unet_a.lokr_w1", "a LoKr (LyCORIS)"),
        ("oft_unet_a.oft_blocks", "an OFT network"),
        ("lora_unet_a.diff", "a file of whole changes of weights (LyCORIS)"),
    ],
)
def test_other_adapters_are_called_by_their_names(key, title, tmp_path):
    assert other_adapter({key: (1,)}) == title_of({key: (1,)}) == title
    with pytest.raises(CheckpointError, match=title.replace("(", r"\(").replace(")", r"\)")):
        read_lora(written(tmp_path, pair(SD3) | {key: torch.ones(1)}), "--models")


def test_a_module_under_two_names_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="twice"):
        read_lora(written(tmp_path, pair(SD) | pair(SDXL)), "--models")
    both = pair(f"transformer.{SD3_DIFFUSERS}", *PEFT) | pair(f"base_model.model.{SD3_DIFFUSERS}", *PEFT)
    with pytest.raises(CheckpointError, match="are the same tensor"):
        read_lora(written(tmp_path, both), "--models")


def test_factors_that_do_not_fit_are_refused(tmp_path):
    tensors = pair(SD3) | {f"{SD3}.lora_up.weight": torch.ones(8, 3)}
    with pytest.raises(CheckpointError, match=r"\[2, 8\] and \[8, 3\], which do not fit"):
        read_lora(written(tmp_path, tensors), "--models")


def test_names_of_models_stay_as_they_are():
    assert plain_key("first_stage_model.decoder.conv_in.bias") == "first_stage_model.decoder.conv_in.bias"


def test_a_target_is_no_source_and_has_an_ending(tmp_path):
    from library.errors import OptionError

    path = written(tmp_path, pair(SD3))
    with pytest.raises(OptionError, match="is also read"):
        check_target(path, {"--models": path})
    with pytest.raises(OptionError, match="must end in"):
        check_target(tmp_path / "lora", {})
