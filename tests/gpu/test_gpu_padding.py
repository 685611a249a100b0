"""Merged padding and windows of positions on a GPU: the results of a CPU, and no table there."""

import pytest
import torch

from library.models.merged_padding import merging
from library.models.mmdit import MMDiT, MMDiTConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]
DEVICE = torch.device("cuda")
CONFIG = MMDiTConfig(
    depth=3, num_heads=4, context_dim=64, pooled_dim=64, frequencies=32, position_side=256, dual_attention=(0,)
)


def run(model, device, is_merged):
    """Output, and the gradient of the first block's qkv of the context, as on the CPU."""
    draw = torch.Generator().manual_seed(1)
    latents, context, pooled = (torch.randn(size, generator=draw) for size in ((2, 16, 32, 32), (2, 333, 64), (2, 64)))
    is_used = torch.arange(333) < torch.tensor([[20], [50]])
    context, named = context * is_used[:, :, None], {}
    context = context.to(device)
    if is_merged:
        merged = merging(is_used)
        context, named = merged.context(context), {"context_bias": merged.bias_for(context)}
    model.zero_grad(set_to_none=True)
    output = model(latents.to(device), torch.full((2,), 500.0, device=device), context, pooled.to(device), **named)
    output.float().square().mean().backward()
    return output.detach().cpu(), model.joint_blocks[0].context_block.attn.qkv.weight.grad.cpu()


def test_merged_rows_give_what_all_rows_give_and_the_table_stays_on_the_host():
    torch.manual_seed(0)
    model = MMDiT(CONFIG)
    expected = run(model, torch.device("cpu"), is_merged=False)
    table = model.pos_embed
    before = torch.cuda.memory_allocated()
    model.to(DEVICE)
    held = torch.cuda.memory_allocated() - before
    assert model.pos_embed is table and table.device.type == "cpu"
    assert held < sum(p.nbytes for p in model.parameters()) * 1.1 + table.nbytes / 2
    for is_merged in (False, True):
        for found, wanted in zip(run(model, DEVICE, is_merged), expected, strict=True):
            assert (found - wanted).norm() < 1e-3 * wanted.norm()
