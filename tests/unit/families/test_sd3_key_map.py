"""Names of the MMDiT and of the VAE: published files and diffusers."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from library.errors import CheckpointError
from library.families.sd3.key_map import mmdit_from_diffusers, mmdit_modules, mmdit_to_diffusers
from library.models.mmdit import MMDiT, MMDiTConfig
from library.models.vae_key_map import vae_from_diffusers, vae_to_diffusers

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@st.composite
def configs(draw):
    depth = draw(st.integers(1, 4))
    qk_norm = draw(st.booleans())
    dual = draw(st.sets(st.integers(0, depth - 1))) if qk_norm else ()
    sizes = {"num_heads": 2, "head_dim": 4, "context_dim": 6, "pooled_dim": 5, "position_side": 3}
    return MMDiTConfig(depth=depth, qk_norm=qk_norm, dual_attention=tuple(sorted(dual)), **sizes)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@settings(max_examples=15)
@given(configs())
def test_there_and_back_changes_nothing(config):
    tensors = MMDiT(config).state_dict()
    there = mmdit_to_diffusers(tensors)
    assert equal(mmdit_from_diffusers(there), tensors)
    assert equal(mmdit_to_diffusers(mmdit_from_diffusers(there)), there)
    assert sum(tensor.numel() for tensor in there.values()) == sum(tensor.numel() for tensor in tensors.values())


def test_queries_keys_and_values_are_row_chunks_in_this_order():
    rows = torch.arange(6.0)[:, None]
    there = mmdit_to_diffusers({"joint_blocks.0.context_block.attn.qkv.weight": rows})
    parts = [there[f"transformer_blocks.0.attn.add_{name}_proj.weight"].flatten().tolist() for name in "qkv"]
    assert parts == [[0, 1], [2, 3], [4, 5]]


def test_halves_are_exchanged_in_the_last_context_and_the_final_layer_alone():
    swapped = {pair.published for pair in mmdit_modules(4) if pair.is_swapped}
    assert swapped == {"final_layer.adaLN_modulation.1", "joint_blocks.3.context_block.adaLN_modulation.1"}
    there = mmdit_to_diffusers({"final_layer.adaLN_modulation.1.bias": torch.arange(4)})
    assert there == {"norm_out.linear.bias": pytest.approx([2, 3, 0, 1])}


def test_no_name_is_given_twice():
    pairs = mmdit_modules(3)
    assert len({pair.published for pair in pairs}) == len(pairs)
    names = [name for pair in pairs for name in pair.diffusers]
    assert len(set(names)) == len(names)


def test_names_of_another_model_are_refused():
    with pytest.raises(CheckpointError, match=r"double_blocks\.0"):
        mmdit_to_diffusers({"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="single_transformer_blocks"):
        mmdit_from_diffusers({"single_transformer_blocks.0.proj_out.weight": torch.zeros(1)})


def test_missing_part_of_a_fused_projection_is_named():
    tensors = {f"transformer_blocks.0.attn.to_{name}.weight": torch.zeros(2, 2) for name in "qv"}
    with pytest.raises(CheckpointError, match=r"transformer_blocks\.0\.attn\.to_k\.weight"):
        mmdit_from_diffusers(tensors)


@pytest.fixture(scope="module")
def vae():
    """A VAE with the names of diffusers, every side of a tensor cut to 3."""
    manifest = Path(__file__).parents[2] / "golden" / "data" / "state_dicts" / "diffusers_sd1_sd2_sdxl_vae.json.gz"
    shapes = json.loads(gzip.decompress(manifest.read_bytes()))["tensors"]
    return {name: torch.randn([min(side, 3) for side in shape]) for name, (shape, _) in shapes.items()}


def test_vae_there_and_back_changes_nothing(vae):
    published = vae_from_diffusers(vae)
    assert equal(vae_to_diffusers(published), vae)
    assert equal(vae_from_diffusers(vae_to_diffusers(published)), published)


def test_vae_decoder_levels_are_counted_from_the_other_end_and_attention_is_a_convolution(vae):
    published = vae_from_diffusers(vae)
    assert torch.equal(
        published["decoder.up.0.block.0.conv1.weight"], vae["decoder.up_blocks.3.resnets.0.conv1.weight"]
    )
    assert torch.equal(
        published["encoder.down.0.downsample.conv.bias"], vae["encoder.down_blocks.0.downsamplers.0.conv.bias"]
    )
    assert published["encoder.mid.attn_1.q.weight"].shape == (3, 3, 1, 1)
    assert published["encoder.mid.attn_1.q.bias"].shape == (3,)


def test_vae_of_an_old_diffusers_folder_is_read(vae):
    old = {}
    for name, tensor in vae.items():
        for new, former in OLD_NAMES.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        old[name] = tensor
    assert old.keys() != vae.keys()
    assert equal(vae_from_diffusers(old), vae_from_diffusers(vae))


def test_vae_of_another_kind_is_refused():
    with pytest.raises(CheckpointError, match=r"decoder\.conv1\.weight"):
        vae_to_diffusers({"decoder.conv1.weight": torch.zeros(1)})
