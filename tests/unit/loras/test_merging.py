"""What merging computes, and what a merged LoRA says of itself."""

import gzip
import lzma
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from library.errors import CheckpointError
from library.families.lora_layout import LoraPair
from library.families.sd3.key_map import mmdit_from_diffusers, mmdit_to_diffusers
from library.loras.lora_file import LoraFile, lora_tensors
from library.loras.lora_metadata import lora_metadata
from library.loras.merging import at_strength, check_sizes, exact, joined, reduced, share_kept, share_lost, size_of
from library.loras.merging_model import Step, changed
from library.loras.merging_places import Place
from library.models.mmdit import MMDiT, config_from_shapes
from networks import sd3_merge_lora

GOLDEN = Path(__file__).parents[2] / "golden" / "data"
PREFIX = "model.diffusion_model."
TE1 = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
SD = "lora_unet_down_blocks_1_attentions_0_proj_in"
SDXL = "lora_unet_input_blocks_4_1_proj_in"


def drawn(seed, rank=2, out=6, inputs=(5,), scale=0.5):
    draw = torch.Generator().manual_seed(seed)
    tail = (1,) * (len(inputs) - 1)
    down, up = torch.randn(rank, *inputs, generator=draw), torch.randn(out, rank, *tail, generator=draw)
    return LoraPair(down, up, scale)


def delta(pair):
    return pair.scale * pair.up.flatten(1).double() @ pair.down.flatten(1).double()


def golden(name):
    path = next(GOLDEN.glob(f"{name}.safetensors.*"))
    return load((gzip if path.suffix == ".gz" else lzma).decompress(path.read_bytes()))


# Sums


@pytest.mark.parametrize("inputs", [(5,), (3, 3, 3)], ids=["linear", "conv"])
def test_joined_modules_are_the_sum(inputs):
    first, second = drawn(0, inputs=inputs), drawn(1, rank=3, inputs=inputs, scale=2.0)
    found = joined([(first, 0.7), (second, -1.5)], torch.float32)
    assert found.down.shape[0] == 5
    torch.testing.assert_close(delta(found), 0.7 * delta(first) - 1.5 * delta(second), atol=1e-5, rtol=1e-5)


def test_a_linear_layer_and_its_form_as_convolution_are_one_size():
    linear, conv = drawn(0), drawn(1, inputs=(5, 1, 1))
    assert size_of(linear) == size_of(conv) == (6, 5)
    found = joined([(linear, 1.0), (conv, 1.0)], torch.float32)
    assert found.down.shape == (4, 5) and found.up.shape == (6, 4)
    torch.testing.assert_close(delta(found), delta(linear) + delta(conv), atol=1e-5, rtol=1e-5)


def test_one_module_keeps_its_numbers():
    pair = drawn(0)
    found = at_strength(pair, -0.25)
    assert found.down is pair.down and torch.equal(found.up, -pair.up) and found.scale == 0.125


def test_reduced_keeps_the_greatest_values_and_counts_what_is_lost():
    pair = drawn(0, rank=4)
    values = torch.linalg.svdvals(delta(pair))
    found = reduced(pair, 2)
    torch.testing.assert_close(torch.linalg.svdvals(delta(found.pair))[:2], values[:2], atol=1e-5, rtol=1e-5)
    assert found.whole == pytest.approx(float(values.square().sum()))
    assert found.lost == pytest.approx(float(values[2:].square().sum()))
    assert exact(pair).whole == pytest.approx(found.whole)
    share = float(values[2:].square().sum() / values.square().sum()) / 2
    assert share_lost([found, exact(pair)]) == pytest.approx(share**0.5)
    assert share_kept([found, exact(pair)]) == pytest.approx((1 - share) ** 0.5)


def test_a_clamp_cuts_and_its_absence_does_not():
    pair = drawn(0, rank=4, out=40, inputs=(30,))
    plain, cut = reduced(pair, 4), reduced(pair, 4, clamp=0.9)
    torch.testing.assert_close(delta(plain.pair), delta(pair), atol=1e-5, rtol=1e-4)
    assert (delta(cut.pair) - delta(pair)).norm() > 0.05 * delta(pair).norm()
    numbers = torch.cat([cut.pair.down.flatten(), cut.pair.up.flatten()]).abs()
    assert (numbers == numbers.max()).float().mean() == pytest.approx(0.1, abs=0.01)  # a tenth lies at the limit


def test_modules_of_different_sizes_are_named():
    with pytest.raises(CheckpointError, match="x is 6 x 5 in a and 6 x 7 in b, so these LoRAs are for models"):
        check_sizes("x", [("a", (6, 5)), ("b", (6, 7))])


# What goes into a weight


def test_rows_chunks_halves_and_a_transposed_weight_get_their_part():
    pair, weight = drawn(0, out=6, inputs=(6,)), torch.zeros(6, 6)
    whole = delta(pair).float()

    def merged(place, weight=weight):
        return changed(weight, [Step(place, pair, 2.0)])

    torch.testing.assert_close(merged(Place("m", is_transposed=True)), 2 * whole.T)
    torch.testing.assert_close(merged(Place("m", change=(1, 3)), torch.zeros(2, 6)), 2 * whole[2:4])
    swapped = merged(Place("m", is_swapped=True))
    torch.testing.assert_close(swapped, 2 * torch.cat([whole[3:], whole[:3]]))
    fused = merged(Place("m", rows=(2, 3)), torch.zeros(18, 6))
    assert not fused[:12].any()
    torch.testing.assert_close(fused[12:], 2 * whole)


@pytest.mark.parametrize("layout", ["published", "diffusers"])
def test_the_reference_lora_gives_the_reference_output(layout, tmp_path):
    weights = {name.removeprefix(PREFIX): t for name, t in golden("mmdit_weights_sd35_medium_like").items()}
    numbers, prefix = golden("lora_sd3_forward"), PREFIX if layout == "published" else ""
    source = weights if layout == "published" else mmdit_to_diffusers(weights)
    save_file({prefix + name: tensor.contiguous() for name, tensor in source.items()}, tmp_path / "m.safetensors")
    save_file(golden("lora_sd3_file"), tmp_path / "lora.safetensors")
    rest = ["--ratios", "0.5", "--save_to", str(tmp_path / "merged.safetensors")]
    models = ["--sd_model", str(tmp_path / "m.safetensors"), "--models", str(tmp_path / "lora.safetensors")]
    assert sd3_merge_lora.main([*models, *rest]) == 0
    merged = {name.removeprefix(prefix): t for name, t in load_file(tmp_path / "merged.safetensors").items()}
    merged = merged if layout == "published" else mmdit_from_diffusers(merged)
    with torch.device("meta"):
        mmdit = MMDiT(config_from_shapes({name: tuple(tensor.shape) for name, tensor in merged.items()}))
    mmdit.load_state_dict(merged, assign=True)
    with torch.no_grad():
        found = mmdit(*(numbers[f"input.{name}"] for name in ("x", "timestep", "context", "y")))
    torch.testing.assert_close(found, numbers["attn2_head_dim_64.merged_0.5"], atol=2e-4, rtol=0)


# Metadata


def test_metadata_says_what_the_sources_agree_on():
    pairs = {SDXL: drawn(0), TE1: drawn(1, rank=3)}
    sources = [
        LoraFile(
            Path(f"{name}.safetensors"), "sdxl", "kohya", pairs, {"ss_base_model_version": "sdxl_base_v1-0", "x": name}
        )
        for name in ("a", "b")
    ]
    tensors = lora_tensors(pairs, "sdxl")
    said = lora_metadata(pairs, sources=sources, title="both", family="sdxl", tensors=tensors, comment="c")
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert said["modelspec.merged_from"] == "a, b" and said["modelspec.title"] == "both"
    assert said["ss_network_dim"] == said["ss_network_alpha"] == "Dynamic"
    assert said["ss_base_model_version"] == "sdxl_base_v1-0" and said["ss_training_comment"] == "c"
    assert "x" not in said and len(said["sshs_model_hash"]) == 64


@pytest.mark.parametrize(
    ("family", "name", "width", "architecture"),
    [
        ("sd", "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 768, "stable-diffusion-v1"),
        ("sd", "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 1024, "stable-diffusion-v2-512"),
        ("sdxl", SDXL, 640, "stable-diffusion-xl-v1-base"),
        ("sd3", "lora_unet_joint_blocks_0_x_block_attn_qkv", 1536, "stable-diffusion-3-medium"),
        ("sd3", "lora_unet_joint_blocks_0_x_block_attn2_qkv", 1536, "stable-diffusion-3-5-medium"),
        ("sd3", "lora_unet_joint_blocks_0_x_block_attn_qkv", 2432, "stable-diffusion-3-5-large"),
    ],
)
def test_a_lora_without_metadata_is_known_by_its_shapes(family, name, width, architecture):
    pairs = {name: drawn(0, inputs=(width,))}
    said = lora_metadata(pairs, sources=[], title="t", family=family, tensors=lora_tensors(pairs, family))
    assert said["modelspec.architecture"] == f"{architecture}/lora" and said["ss_network_dim"] == "2"
