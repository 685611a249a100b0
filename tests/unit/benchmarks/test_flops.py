"""The FLOPs that are computed are those that torch counts, operation by operation, on a real model."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import ATTENTION_ALONE, EVERY_LINEAR, lora_ranks, step_flops
from benchmarks.memory_table import MODELS
from library.models.mmdit import MMDiT, MMDiTConfig
from networks.lora_sd3 import create_network

SMALL = MMDiTConfig(
    depth=3, num_heads=2, context_dim=96, pooled_dim=80, position_side=8, qk_norm=True, dual_attention=(0, 1)
)
PIXELS, NUM_TEXT = 128, 20  # 64 tokens of the picture
RANK = 16


def added_product(_added, left, right, **_):
    """Of addmm_, which torch's counter does not know. Arguments are shapes."""
    return 2 * left[0] * left[1] * right[1]


def counted(model):
    """What torch counts in both passes; attention as plain products of matrices, nothing computed twice."""
    shapes = ((1, 16, PIXELS // 8, PIXELS // 8), (1, NUM_TEXT, SMALL.context_dim), (1, SMALL.pooled_dim))
    latents, context, pooled = (torch.randn(shape) for shape in shapes)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added_product})
    with counter, sdpa_kernel(SDPBackend.MATH):
        forward = model(latents, torch.tensor([500.0]), context, pooled)
        half = counter.get_total_flops()
        forward.square().mean().backward()
    return half, counter.get_total_flops()


@pytest.mark.parametrize("split", ["False", "True"], ids=["fused", "split"])
@pytest.mark.parametrize("args", [EVERY_LINEAR, ATTENTION_ALONE], ids=["every linear", "attention alone"])
def test_of_a_lora(args, split):
    model = MMDiT(SMALL).requires_grad_(False)
    chosen = {name: "0" for name in vars(EVERY_LINEAR) if getattr(args, name) == 0 != getattr(EVERY_LINEAR, name)}
    network = create_network(1.0, RANK, None, None, None, model, split_qkv=split, **chosen)
    network.apply_to(None, model)
    ranks = lora_ranks(SMALL, RANK, type(args)(**{**vars(args), "split_qkv": split == "True"}))
    assert {f"lora_unet_{name.replace('.', '_')}" for name in ranks} == {a.name for a in network.adapters()}
    computed = step_flops(SMALL, pixels=PIXELS, ranks=ranks, num_text=NUM_TEXT)
    assert (computed.forward, computed.total) == pytest.approx(counted(model), rel=0.01)


def test_of_a_whole_model():
    computed = step_flops(SMALL, pixels=PIXELS, ranks=None, num_text=NUM_TEXT)
    assert (computed.forward, computed.total) == pytest.approx(counted(MMDiT(SMALL)), rel=0.01)


def test_of_the_published_run_are_what_others_count():
    config = MODELS["SD3.5-medium"]
    for args in (EVERY_LINEAR, ATTENTION_ALONE):
        assert 27e12 < step_flops(config, pixels=1024, ranks=lora_ranks(config, 128, args)).total < 29.5e12
