import json

import pytest
import torch

from library.errors import CheckpointError
from library.families.lora_layout import fold_alpha
from library.families.sd3.lora_format import diffusers_to_kohya, is_kohya, kohya_to_diffusers

HIDDEN = 4


def kohya(name, out, inner=HIDDEN, rank=2, alpha=1.0):
    draw = torch.Generator().manual_seed(len(name))
    return {
        f"{name}.lora_down.weight": torch.randn(rank, inner, generator=draw),
        f"{name}.lora_up.weight": torch.randn(out, rank, generator=draw),
        f"{name}.alpha": torch.tensor(alpha),
    }


def peft(name, out, inner=HIDDEN, rank=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        f"{name}.lora_A.weight": torch.randn(rank, inner, generator=draw),
        f"{name}.lora_B.weight": torch.randn(out, rank, generator=draw),
    }


def delta(tensors, name):
    """The change of the weight, in either layout."""
    if f"{name}.lora_A.weight" in tensors:
        return tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    return up @ down * (tensors[f"{name}.alpha"] / len(down) if f"{name}.alpha" in tensors else 1)


def test_fused_projection_is_cut_into_three():
    source = kohya("lora_unet_joint_blocks_3_context_block_attn_qkv", 3 * HIDDEN)
    tensors = kohya_to_diffusers(source).tensors
    parts = [delta(tensors, f"transformer.transformer_blocks.3.attn.add_{x}_proj") for x in "qkv"]
    assert len(tensors) == 6
    torch.testing.assert_close(torch.cat(parts), delta(source, "lora_unet_joint_blocks_3_context_block_attn_qkv"))


@pytest.mark.parametrize(
    ("name", "rows", "target", "is_swapped"),
    [
        ("joint_blocks_1_context_block_adaLN_modulation_1", 2, "transformer_blocks.1.norm1_context.linear", True),
        ("joint_blocks_1_context_block_adaLN_modulation_1", 6, "transformer_blocks.1.norm1_context.linear", False),
        ("joint_blocks_1_x_block_adaLN_modulation_1", 9, "transformer_blocks.1.norm1.linear", False),
        ("final_layer_adaLN_modulation_1", 2, "norm_out.linear", True),
    ],
)
def test_halves_change_places_in_two_modules_only(name, rows, target, is_swapped):
    source = kohya(f"lora_unet_{name}", rows * HIDDEN)
    tensors = kohya_to_diffusers(source).tensors
    expected = delta(source, f"lora_unet_{name}")
    expected = expected.roll(rows * HIDDEN // 2, 0) if is_swapped else expected
    torch.testing.assert_close(delta(tensors, f"transformer.{target}"), expected)
    back = diffusers_to_kohya(tensors).tensors
    torch.testing.assert_close(delta(back, f"lora_unet_{name}"), delta(source, f"lora_unet_{name}"))


def test_text_encoders_are_renamed_and_t5_is_dropped():
    names = ["lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te2_text_model_encoder_layers_10_self_attn_out_proj"]
    t5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    conversion = kohya_to_diffusers(kohya(names[0], 8) | kohya(names[1], 4) | kohya(t5, 4))
    assert {key.rpartition(".lora_")[0] for key in conversion.tensors} == {
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        "text_encoder_2.text_model.encoder.layers.10.self_attn.out_proj",
    }
    assert conversion.dropped == (t5,)
    back = diffusers_to_kohya(conversion.tensors).tensors
    assert {key.partition(".")[0] for key in back} == set(names)


def test_projections_of_one_input_factor_become_one_module_of_that_rank():
    source = kohya("lora_unet_joint_blocks_0_x_block_attn2_qkv", 3 * HIDDEN, rank=2, alpha=3.0)
    back = diffusers_to_kohya(kohya_to_diffusers(source).tensors).tensors
    assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in source.items()}


@pytest.mark.parametrize("given", ["qkv", "q", "v", "qv"])
def test_projections_of_their_own_become_block_diagonal(given):
    path = "transformer.transformer_blocks.0.attn.to_{}"
    source = {}
    for seed, x in enumerate(given):
        source |= peft(path.format(x), HIDDEN, rank=seed + 1, seed=seed)
    whole = delta(diffusers_to_kohya(source).tensors, "lora_unet_joint_blocks_0_x_block_attn_qkv")
    for x, part in zip("qkv", whole.chunk(3), strict=True):
        torch.testing.assert_close(part, delta(source, path.format(x)) if x in given else torch.zeros(HIDDEN, HIDDEN))


@pytest.mark.parametrize(
    "notes",
    [
        {"transformer.lora_alpha": 6},
        {"transformer.lora_alpha": 1, "transformer.alpha_pattern": {"attn.to_q": 6, "attn.to_k": 6, "attn.to_v": 6}},
    ],
)
def test_alpha_in_the_metadata_is_heeded(notes):
    source = {}
    for seed, x in enumerate("qkv"):
        source |= peft(f"transformer.transformer_blocks.0.attn.to_{x}", HIDDEN, seed=seed)
    plain = diffusers_to_kohya(source).tensors
    noted = diffusers_to_kohya(source, {"lora_adapter_metadata": json.dumps(notes)}).tensors
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    torch.testing.assert_close(delta(noted, name), 3 * delta(plain, name))


def test_other_suffixes_of_diffusers_are_read():
    source = peft("transformer.proj_out", 8)
    renamed = {
        key.replace("lora_A.weight", "lora.down.weight").replace("lora_B.weight", "lora.up.weight"): tensor
        for key, tensor in source.items()
    }
    converted = diffusers_to_kohya(renamed).tensors
    torch.testing.assert_close(delta(converted, "lora_unet_final_layer_linear"), delta(source, "transformer.proj_out"))


def test_folding_keeps_the_change_and_writes_no_alpha():
    source = kohya("lora_unet_final_layer_linear", 8, alpha=0.5)
    folded = fold_alpha(source)
    assert sorted(folded) == sorted(key for key in source if not key.endswith(".alpha"))
    torch.testing.assert_close(
        delta(folded, "lora_unet_final_layer_linear"), delta(source, "lora_unet_final_layer_linear")
    )


def test_query_key_and_value_share_a_factor_that_has_part_of_a_small_strength():
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    source = kohya(name, 3 * HIDDEN, rank=128)
    source = {key: tensor.half() if tensor.dim() else tensor for key, tensor in source.items()}
    source[f"{name}.lora_up.weight"] *= 1e-5
    tensors = {key: tensor.double() for key, tensor in kohya_to_diffusers(source).tensors.items()}
    downs = [tensors[f"transformer.transformer_blocks.0.attn.to_{x}.lora_A.weight"] for x in "qkv"]
    assert torch.equal(downs[0], downs[1]) and torch.equal(downs[0], downs[2])
    found = torch.cat([delta(tensors, f"transformer.transformer_blocks.0.attn.to_{x}") for x in "qkv"])
    wanted = delta({key: tensor.double() for key, tensor in source.items()}, name)
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


def test_sources_are_not_written_to():
    source = kohya("lora_unet_joint_blocks_0_x_block_attn_qkv", 3 * HIDDEN)
    before = {key: tensor.clone() for key, tensor in source.items()}
    converted = kohya_to_diffusers(source).tensors
    for tensor in converted.values():
        tensor.zero_()
    fold_alpha(source)
    assert all(torch.equal(source[key], before[key]) for key in source)


@pytest.mark.parametrize(
    ("convert", "tensors", "message"),
    [
        (kohya_to_diffusers, kohya("lora_unet_input_blocks_1_1_proj_in", 4), "no module of SD3"),
        (kohya_to_diffusers, kohya("lora_te1_text_model_embeddings", 4), "no module of SD3"),
        (kohya_to_diffusers, {"lora_unet_final_layer_linear.lokr_w1": torch.zeros(2, 2)}, "Only LoRA"),
        (kohya_to_diffusers, {"lora_unet_final_layer_linear.lora_up.weight": torch.zeros(2, 2)}, "one of its two"),
        (kohya_to_diffusers, {}, "the file is no LoRA"),
        (diffusers_to_kohya, peft("transformer.single_transformer_blocks.0.proj_out", 4), "no module of SD3"),
        (diffusers_to_kohya, peft("unet.down_blocks.0.attn.to_q", 4), "no module of SD3"),
        (diffusers_to_kohya, {"transformer.proj_out.lora_A.weight": torch.zeros(2, 2)}, "one of its two factors"),
        (diffusers_to_kohya, {"transformer.proj_out.weight": torch.zeros(2, 2)}, "Only LoRA"),
        (diffusers_to_kohya, peft("transformer.transformer_blocks.99999999999.attn.to_q", 4), "no module of SD3"),
    ],
)
def test_other_files_are_refused(convert, tensors, message):
    with pytest.raises(CheckpointError, match=message):
        convert(tensors)


def test_layouts_are_told_apart():
    assert is_kohya(kohya("lora_te2_text_model_encoder_layers_0_mlp_fc1", 4))
    assert not is_kohya(peft("transformer.proj_out", 4))
