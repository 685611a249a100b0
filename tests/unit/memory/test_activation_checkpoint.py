"""Inputs of checkpointed blocks in host memory: the same bits, and nothing of them stays in the graph."""

import gc
import weakref

import pytest
import torch

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
    plain, model.run_checkpointed = gradients(model, trained), HostCheckpoint()
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


def test_inputs_of_blocks_are_gone_from_the_device_before_the_backward_pass(model):
    model.gradient_checkpointing = True
    assert alive_inputs(model) == [0, 1, 2]
    model.run_checkpointed = HostCheckpoint()
    assert alive_inputs(model) == []


def test_copies_are_freed_with_the_graph_and_a_kept_graph_can_be_used_twice(model):
    model.gradient_checkpointing, model.run_checkpointed = True, HostCheckpoint()
    output = model(*inputs()).sum()
    last = model.run_checkpointed._before
    output.backward(retain_graph=True)
    first, weight = model.final_layer.linear.weight.grad.clone(), model.joint_blocks[0].x_block.attn.qkv.weight
    block = weight.grad.clone()
    output.backward()
    assert torch.equal(model.final_layer.linear.weight.grad, 2 * first) and torch.equal(weight.grad, 2 * block)
    del output
    gc.collect()
    assert last() is None
