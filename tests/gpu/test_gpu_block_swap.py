"""Block swap between real host memory and a GPU: the bits of a model that lies on the GPU, and its memory."""

from functools import partial

import pytest
import torch

from library.memory.block_swap import BlockSwapper
from library.memory.blocks import around_blocks
from library.memory.fused_backward import BackwardParts, by_block
from library.memory.quantized_layers import quantize_layers
from library.memory.swap_plan import swap_plan
from library.models.mmdit import MMDiT, MMDiTConfig
from tests.unit.memory.test_block_swap import assert_same_bits, make_adapters

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]
CUDA = torch.device("cuda")
DEPTH = 6
CONFIG = MMDiTConfig(
    depth=DEPTH,
    num_heads=8,
    context_dim=64,
    pooled_dim=64,
    frequencies=32,
    position_side=32,
    qk_norm=True,
    dual_attention=(0, 1),
)


def make_model():
    torch.manual_seed(0)
    return MMDiT(CONFIG).bfloat16().eval()


def loss_of(model, index):
    draw = torch.Generator().manual_seed(index)
    latents, context, pooled = (torch.randn(size, generator=draw) for size in ((2, 16, 32, 32), (2, 77, 64), (2, 64)))
    timesteps = torch.full((2,), 500.0)
    return model(*(value.to(CUDA) for value in (latents, timesteps, context, pooled))).float().square().mean()


def swap(model, number, prefetch):
    swapper = BlockSwapper(model.joint_blocks, swap_plan(DEPTH, number, prefetch), CUDA)
    for module in around_blocks(model):
        module.to(CUDA)
    return swapper


def adapters_course(model, network):
    """Outputs and gradients of two steps, with inference in between."""
    trained, seen = [*network.to(CUDA).parameters()], []
    for index in range(3):
        loss_of(model, index).backward()
        with torch.no_grad():
            seen.append(loss_of(model, 9))
        seen += [parameter.grad.clone() for parameter in trained]
    return seen


@pytest.mark.parametrize("form", [None, "int8", "fp8", "nf4"])
@pytest.mark.parametrize(("number", "prefetch"), [(1, 1), (4, 0), (DEPTH, 1), (DEPTH, 2)])
@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
def test_adapters_get_the_same_gradients(recomputes, number, prefetch, form):
    seen = []
    for is_swapped in (False, True):
        model = make_model()
        model.gradient_checkpointing = recomputes
        if form is not None:
            for block in model.joint_blocks:
                quantize_layers(block, form, torch.bfloat16, CUDA)
        network = make_adapters(model)
        swap(model, number, prefetch) if is_swapped else model.to(CUDA)
        seen.append(adapters_course(model, network))
    assert_same_bits(seen[1], seen[0])


@pytest.mark.parametrize("prefetch", [0, 1])
def test_weights_that_train_come_back(prefetch):
    seen = []
    for is_swapped in (False, True):
        model = make_model()
        swapper = swap(model, DEPTH, prefetch) if is_swapped else model.to(CUDA)
        parts = by_block([model], list(model.parameters()))
        steps = [torch.optim.AdamW(part, lr=1e-3) for part in parts]
        listener = BackwardParts(parts, partial(_step, steps))
        for index in range(3):
            loss = loss_of(model, index)
            with listener.listening():
                loss.backward()
        listener.close()
        if is_swapped:
            swapper.settle()
        seen.append([parameter.detach().cpu() for parameter in model.parameters()])
    assert_same_bits(seen[1], seen[0])


def _step(steps, number):
    steps[number].step()


def test_swapped_blocks_take_no_memory_of_the_gpu_and_lie_in_locked_pages():
    model = make_model()
    size = sum(parameter.nbytes for parameter in model.joint_blocks.parameters())
    before = torch.cuda.memory_allocated()
    swapper = swap(model, DEPTH, 1)
    assert swapper.unlocked_bytes == 0
    assert torch.cuda.memory_allocated() - before < size * 0.6
    with torch.no_grad():
        loss_of(model, 0)
    with torch.no_grad(), swapper.swapping(0):
        loss_of(model, 0)
        assert torch.cuda.memory_allocated() - before > size
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < size * 0.7
