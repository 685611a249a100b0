"""Names of CLIP text encoders: what is fused, what is transposed, and the way back."""

import pytest
import torch

from library.errors import CheckpointError
from library.models.clip_key_map import clip_from_open_clip, clip_to_open_clip

WIDTH = 4
LAYER = "transformer.resblocks.1"
HF_LAYER = "text_model.encoder.layers.1"


def open_clip():
    shapes = {
        "token_embedding.weight": (9, WIDTH),
        "positional_embedding": (7, WIDTH),
        "text_projection": (WIDTH, WIDTH),
        "logit_scale": (),
        "ln_final.weight": (WIDTH,),
        "ln_final.bias": (WIDTH,),
    }
    for layer in ("transformer.resblocks.0", LAYER):
        shapes |= {f"{layer}.attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{layer}.attn.in_proj_bias": (3 * WIDTH,)}
        for name, size in {"attn.out_proj": (4, 4), "mlp.c_fc": (16, 4), "mlp.c_proj": (4, 16)}.items():
            shapes |= {f"{layer}.{name}.weight": size, f"{layer}.{name}.bias": size[:1]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{layer}.{name}.weight": (WIDTH,), f"{layer}.{name}.bias": (WIDTH,)}
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def test_queries_keys_and_values_are_the_rows_of_the_fused_projection_in_this_order():
    tensors = open_clip()
    ours = clip_from_open_clip(tensors)
    for kind in ("weight", "bias"):
        rows = tensors[f"{LAYER}.attn.in_proj_{kind}"].split(WIDTH)
        for letter, expected in zip("qkv", rows, strict=True):
            assert torch.equal(ours[f"{HF_LAYER}.self_attn.{letter}_proj.{kind}"], expected)


def test_the_projection_gives_the_same_vector_as_a_linear_layer():
    matrix = open_clip()["text_projection"]
    pooled = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    weight = clip_from_open_clip({"text_projection": matrix})["text_projection.weight"]
    torch.testing.assert_close(torch.nn.functional.linear(pooled, weight), pooled @ matrix)


def test_there_and_back_is_the_identity():
    tensors = open_clip()
    back = clip_to_open_clip(clip_from_open_clip(tensors))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_unknown_and_missing_tensors_are_named():
    with pytest.raises(CheckpointError, match="1 unknown tensors, visual.proj"):
        clip_from_open_clip({"visual.proj": torch.empty(1)})
    with pytest.raises(CheckpointError, match="1 unknown tensors, visual.proj"):
        clip_to_open_clip({"visual.proj": torch.empty(1)})
    ours = clip_from_open_clip(open_clip())
    del ours[f"{HF_LAYER}.self_attn.k_proj.bias"]
    with pytest.raises(CheckpointError, match=r"no tensor text_model\.encoder\.layers\.1\.self_attn\.k_proj\.bias"):
        clip_to_open_clip(ours)
