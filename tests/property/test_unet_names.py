"""Names inside U-Nets: both directions undo each other for every number of levels, and wherever attention is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.errors import CheckpointError
from library.unet_names import to_diffusers, to_published

RESNET = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
ATTENTION = ("norm", "proj_in", "transformer_blocks.0.attn1.to_q", "transformer_blocks.3.ff.net.0.proj", "proj_out")
ENDS = ("conv_in", "time_embedding.linear_1", "time_embedding.linear_2", "conv_norm_out", "conv_out")


def layers_of(attends):
    """Names of diffusers for a U-Net whose level i attends if attends[i]."""
    names = [*ENDS, *(f"mid_block.resnets.{index}.{name}" for index in range(2) for name in RESNET)]
    names += [f"mid_block.attentions.0.{name}" for name in ATTENTION]
    last = len(attends) - 1
    for side, count, size in (("down", 2, "downsamplers"), ("up", 3, "upsamplers")):
        for level, has_attention in enumerate(attends if side == "down" else reversed(attends)):
            block = f"{side}_blocks.{level}"
            names += [f"{block}.resnets.{index}.{name}" for index in range(count) for name in RESNET]
            if has_attention:
                names += [f"{block}.attentions.{index}.{name}" for index in range(count) for name in ATTENTION]
            if level < last:
                names.append(f"{block}.{size}.0.conv")
    return names


@given(st.lists(st.booleans(), min_size=1, max_size=5), st.sampled_from(["", ".weight", ".lora_A.weight"]))
def test_there_and_back_is_the_identity(attends, suffix):
    names = [f"{name}{suffix}" for name in layers_of(attends)]
    published = to_published(names)
    assert list(published) == names
    assert len(set(published.values())) == len(names)
    assert to_diffusers(published.values()) == {other: name for name, other in published.items()}


@given(st.lists(st.booleans(), min_size=2, max_size=5))
def test_an_upsampler_comes_behind_the_attention_of_its_level(attends):
    published = to_published(layers_of(attends))
    place = 2 if attends[-1] else 1
    assert published["up_blocks.0.upsamplers.0.conv"] == f"output_blocks.2.{place}.conv"


@pytest.mark.parametrize("convert", [to_published, to_diffusers])
def test_other_names_are_refused_with_the_first_of_them(convert):
    with pytest.raises(CheckpointError, match=r"2 unknown names, a\.weight, down_blocks\.0\.resnets\.0\.other\."):
        convert(["a.weight", "down_blocks.0.resnets.0.other"])
