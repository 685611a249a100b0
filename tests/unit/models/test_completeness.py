"""Missing tensors are told from names and shapes alone."""

from __future__ import annotations

import pytest

from examples.tiny_sd3.make import clip_plan, t5_plan, vae_plan
from library.models.completeness import missing_of_clip, missing_of_t5, missing_of_vae

PARTS = {
    "clip": (missing_of_clip, clip_plan(32, 10, has_projection=False)),
    "t5": (missing_of_t5, t5_plan(10)),
    "vae": (missing_of_vae, vae_plan()),
}
SHAPES = {name: {key: init.shape for key, init in plan.items()} for name, (_, plan) in PARTS.items()}
TENSORS = [(name, key) for name, shapes in SHAPES.items() for key in shapes]


@pytest.mark.parametrize("name", PARTS)
def test_a_whole_part_lacks_nothing(name):
    assert PARTS[name][0](SHAPES[name]) == []


@pytest.mark.parametrize(("name", "removed"), TENSORS)
def test_any_single_tensor_is_missed(name, removed):
    left = {key: shape for key, shape in SHAPES[name].items() if key != removed}
    assert PARTS[name][0](left) == [removed]


def test_a_whole_layer_in_between_is_missed():
    left = {key: shape for key, shape in SHAPES["t5"].items() if not key.startswith("encoder.block.0.")}
    assert len(missing_of_t5(left)) == len(SHAPES["t5"]) - len(left)


def test_the_embedding_of_t5_may_have_either_name():
    twin = {key.replace("shared.", "encoder.embed_tokens."): shape for key, shape in SHAPES["t5"].items()}
    assert missing_of_t5(twin) == []


def test_attention_and_convolutions_of_the_posterior_may_be_left_out_as_a_whole():
    optional = ("encoder.mid.attn_1.", "decoder.mid.attn_1.")
    assert missing_of_vae({key: shape for key, shape in SHAPES["vae"].items() if not key.startswith(optional)}) == []
    assert missing_of_vae({**SHAPES["vae"], "quant_conv.weight": (32, 32, 1, 1)}) == ["quant_conv.bias"]
