"""Inputs of checkpointed blocks in host memory: the same bits, and nothing of them stays in the graph."""

import gc
import math
import weakref
from contextlib import suppress
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from library.memory.activation_checkpoint import HostCheckpoint
from library.models.mmdit import MMDiT, MMDiTConfig
from networks.adapters import Dropouts
from networks.network import AdapterNetwork, PlannedModule, make_part

CONFIG = MMDiTConfig(
    depth=3, num_heads=2, head_dim=16, context_dim=24, pooled_dim=20, frequencies=32, position_side=8, qk_norm=True
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MMDiT(CONFIG)


def inputs():
    draw = torch.Generator().manual_seed(1)
    sizes = (2, 16, 8, 8), (2,), (2, 5, 24), (2, 20)
    latents, timesteps, context, pooled = (torch.randn(size, generator=draw) for size in sizes)
    return latents, timesteps.abs() * 500, context, pooled


def gradients(model, trained):
    for parameter in trained:
        parameter.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        model(*inputs()).float().square().mean().backward()
    return [parameter.grad for parameter in trained]


def assert_equal(found, expected):
    assert any(gradient.abs().max() > 0 for gradient in expected)
    assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))


def in_all_ways(model, trained):
    """Gradients with all activations, with plain checkpoints, and with inputs on the host."""
    model.gradient_checkpointing = False
    kept = gradients(model, trained)
    model.gradient_checkpointing = True
    plain, model.run_checkpointed = gradients(model, trained), HostCheckpoint(least_bytes=0)
    return kept, plain, gradients(model, trained), gradients(model, trained)


def test_gradients_of_the_whole_model_are_the_same_bits(model):
    kept, *others = in_all_ways(model, [p for p in model.parameters() if p.requires_grad])
    for other in others:
        assert_equal(other, kept)


def test_gradients_of_adapters_are_the_same_bits_with_dropout(model):
    model.requires_grad_(False)
    layers = {name: layer for name, layer in model.named_modules() if name.endswith(("qkv", "fc1"))}
    planned = [PlannedModule(name, 2, 2.0) for name in layers]
    part = make_part("mmdit", "lora_unet", layers, planned, is_denoiser=True, multiplier=1.0, dropouts=Dropouts())
    network = AdapterNetwork([part], family="SD3")
    network.apply_to([], model)
    trained = list(network.parameters())
    for parameter in trained:
        parameter.data.normal_(generator=torch.Generator().manual_seed(2))
    kept, *others = in_all_ways(model, trained)
    for other in others:
        assert_equal(other, kept)


def alive_inputs(model):
    """What of the blocks' inputs is alive between forward and backward pass, by the block's number."""
    seen = []

    def remember(block, arguments):
        seen.append([weakref.ref(tensor) for tensor in arguments[:2]])

    hooks = [block.register_forward_pre_hook(remember) for block in model.joint_blocks]
    output = model(*inputs())
    for hook in hooks:
        hook.remove()
    gc.collect()
    alive = [number for number, refs in enumerate(seen) if any(ref() is not None for ref in refs)]
    output.sum().backward()
    return alive


def test_only_the_last_inputs_of_blocks_are_on_the_device_before_the_backward_pass(model):
    model.gradient_checkpointing = True
    assert alive_inputs(model) == [0, 1, 2]
    model.run_checkpointed = HostCheckpoint(least_bytes=0)
    assert alive_inputs(model) == [2]  # which comes first in the backward pass


def test_copies_are_freed_with_the_graph_and_a_kept_graph_can_be_used_twice(model):
    model.gradient_checkpointing, model.run_checkpointed = True, HostCheckpoint(least_bytes=0)
    output = model(*inputs()).sum()
    last = model.run_checkpointed._last
    output.backward(retain_graph=True)
    first, weight = model.final_layer.linear.weight.grad.clone(), model.joint_blocks[0].x_block.attn.qkv.weight
    block = weight.grad.clone()
    output.backward()
    assert torch.equal(model.final_layer.linear.weight.grad, 2 * first) and torch.equal(weight.grad, 2 * block)
    del output
    gc.collect()
    assert last() is None


class LateLane:
    """Copies as late as it may, as a busy device does: what nobody has waited for is not there."""

    def __init__(self):
        self.waiting = []

    def computed(self):
        return None

    def copy(self, target, source, *, after=None):
        target.fill_(math.nan)
        self.waiting.append((target, source))
        return len(self.waiting) - 1

    def hold(self, mark):
        target, source = self.waiting[mark] or (None, None)
        if target is not None:
            target.copy_(source)
        self.waiting[mark] = None

    def num_under_way(self):
        return sum(pair is not None for pair in self.waiting)


def is_recomputing():
    return torch._C._current_graph_task_id() != -1


@pytest.fixture
def lane(model):
    lane = LateLane()
    model.gradient_checkpointing, model.run_checkpointed = True, HostCheckpoint(lambda device: lane, least_bytes=0)
    return lane


def test_no_block_reads_what_has_not_arrived(model, lane):
    trained = list(model.parameters())
    model.run_checkpointed, own = partial(checkpoint, use_reentrant=False), model.run_checkpointed
    expected = [gradient.clone() for gradient in gradients(model, trained)]
    model.run_checkpointed = own
    for _ in range(2):
        assert_equal(gradients(model, trained), expected)
    with torch.no_grad():
        model(*inputs())
    model(*inputs())  # and no backward pass
    assert_equal(gradients(model, trained), expected)


def test_blocks_do_not_wait_for_the_inputs_of_the_block_before(model, lane):
    under_way = []

    def remember(block, arguments):
        if is_recomputing():
            under_way.append(lane.num_under_way())

    for block in model.joint_blocks:
        block.register_forward_pre_hook(remember)
    output = model(*inputs()).sum()
    assert lane.num_under_way() > 0  # the last inputs are being copied while the last block computes
    output.backward()
    assert under_way[0] > 0 and under_way[1] > 0 and under_way[2:] == [0]


def test_copies_under_way_are_waited_for_where_a_pass_is_broken_off(model, lane):
    def fail(block, arguments):
        if is_recomputing():
            raise RuntimeError("out of memory")

    handle = model.joint_blocks[1].register_forward_pre_hook(fail)
    with suppress(RuntimeError):
        model(*inputs()).sum().backward()
    assert lane.num_under_way() > 0
    handle.remove()
    model(*inputs()).sum().backward()  # until then torch keeps what has failed
    gc.collect()
    assert lane.num_under_way() == 0


def test_small_inputs_that_blocks_share_stay(model):
    copies = []

    class Counting(LateLane):
        def copy(self, target, source, *, after=None):
            copies.append(tuple(source.shape))
            return super().copy(target, source)

    lane, at_least = Counting(), 2 * 16 * 32 * 4  # the image's tokens
    model.gradient_checkpointing = True
    model.run_checkpointed = HostCheckpoint(lambda device: lane, at_least)
    model(*inputs()).sum().backward()
    assert set(copies) == {(2, 16, 32)} and len(copies) == 3 + 2  # to the host, and back but for the last
