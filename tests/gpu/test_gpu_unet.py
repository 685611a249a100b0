"""U-Nets on a GPU: swapped, recomputed and in fewer bits they give the bits of those that are not, and take less."""

import pytest
import torch

from benchmarks.unet_sizes import MID_UNET, TINY_UNETS
from library.memory.block_swap import BlockSwapper
from library.memory.blocks import around_blocks, num_streams
from library.memory.quantized_layers import quantize_layers
from library.memory.swap_plan import swap_plan
from library.models.unet import UNet
from networks.lora import create_network
from tests.unit.memory.test_block_swap import assert_same_bits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]
CUDA = torch.device("cuda")
KINDS = ["SDXL", "SD1.5", "SD2.1"]
ALL = 999


@pytest.fixture(autouse=True)
def _repeatable():
    """Kernels that give the same bits each time, where there are such."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def make_model(size):
    torch.manual_seed(0)
    return UNet(**size.config()).bfloat16().eval().requires_grad_(False)


def make_network(model):
    """A LoRA whose changes are not zero."""
    network = create_network(1.0, 4, 4.0, None, None, model, generator=torch.Generator().manual_seed(1))
    network.apply_to([], model)
    draw = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.1, generator=draw)
    return network.to(CUDA)


def loss_of(model, size, index):
    draw = torch.Generator().manual_seed(index)
    latents, context = (torch.randn(shape, generator=draw) for shape in ((2, 4, 16, 16), (2, 77, size.context)))
    added = None
    if size.pooled:
        pooled = torch.randn(2, size.pooled, generator=draw)
        added = {"text_embeds": pooled.to(CUDA), "time_ids": torch.full((2, 6), 128.0, device=CUDA)}
    timesteps = torch.tensor([100, 900], device=CUDA)
    (prediction,) = model(latents.to(CUDA), timesteps, context.to(CUDA), added_cond_kwargs=added, return_dict=False)
    return prediction.float().square().mean()


def swap(model, number, prefetch=1):
    row = model.block_row()
    plan = swap_plan(len(row), min(number, len(row)), prefetch)
    swapper = BlockSwapper(row, plan, CUDA, num_streams=num_streams(model))
    for module in around_blocks(model):
        module.to(CUDA)
    return swapper


def course(model, network, size):
    """Outputs and gradients of two steps, with inference in between."""
    trained, seen = list(network.parameters()), []
    for index in range(2):
        loss_of(model, size, index).backward()
        with torch.no_grad():
            seen.append(loss_of(model, size, 9))
        seen += [parameter.grad.clone() for parameter in trained]
    return seen


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("form", [None, "int8", "fp8", "nf4"])
@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
def test_a_lora_gets_the_same_gradients_beside_swapped_and_recomputed_blocks(name, form, recomputes):
    size, seen = TINY_UNETS[name], []
    for is_changed in (False, True):
        model = make_model(size)
        if form is not None:
            for block in model.block_row():
                quantize_layers(block, form, torch.bfloat16, CUDA)
        model.gradient_checkpointing = recomputes and is_changed
        network = make_network(model)
        swap(model, ALL) if is_changed else model.to(CUDA)
        seen.append(course(model, network, size))
    assert_same_bits(seen[1], seen[0])


@pytest.mark.parametrize(("number", "prefetch"), [(1, 1), (5, 0), (5, 2)])
def test_so_they_do_beside_some_swapped_blocks(number, prefetch):
    size, seen = TINY_UNETS["SDXL"], []
    for is_swapped in (False, True):
        model = make_model(size)
        network = make_network(model)
        swap(model, number, prefetch) if is_swapped else model.to(CUDA)
        seen.append(course(model, network, size))
    assert_same_bits(seen[1], seen[0])


def test_swapped_blocks_take_no_memory_of_the_gpu():
    model = make_model(MID_UNET)
    size = sum(parameter.nbytes for block in model.block_row() for parameter in block.parameters())
    before = torch.cuda.memory_allocated()
    swapper = swap(model, ALL)
    assert swapper.unlocked_bytes == 0
    with torch.no_grad():
        loss_of(model, MID_UNET, 0)
    torch.cuda.synchronize()
    around = sum(parameter.nbytes for module in around_blocks(model) for parameter in module.parameters())
    assert torch.cuda.memory_allocated() - before < around + size * 0.6


def test_recomputing_keeps_less_for_the_backward_pass():
    kept = []
    for recomputes in (False, True):
        model = make_model(MID_UNET)
        model.gradient_checkpointing = recomputes
        network = make_network(model)
        model.to(CUDA)
        loss_of(model, MID_UNET, 0).backward()
        before = torch.cuda.memory_allocated()
        loss = loss_of(model, MID_UNET, 0)
        kept.append(torch.cuda.memory_allocated() - before)
        loss.backward()
        del model, network, loss
    assert kept[1] < kept[0] * 0.6
