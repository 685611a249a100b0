"""Block swap of a U-Net, whose blocks differ, take named inputs and are skipped over, changes no bit either."""

from functools import partial

import pytest
import torch

from library.memory.block_swap import BlockSwapper
from library.memory.blocks import around_blocks, blocks
from library.memory.fused_backward import BackwardParts, by_block, each_alone
from library.memory.swap_plan import swap_plan
from library.models.unet import UNet
from networks.adapters import Dropouts
from networks.network import AdapterNetwork, PlannedModule, make_part
from tests.late_device import LateDevice

CPU = torch.device("cpu")
CONFIG = {
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "cross_attention_dim": 16,
    "transformer_layers_per_block": [1, 2],
    "attention_head_dim": [2, 2],
    "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
}
DEPTH = 18


def make_model():
    torch.manual_seed(0)
    return UNet(**CONFIG).eval()


def make_adapters(model, endings=("to_q", "to_k", "ff.net.2", "time_emb_proj")):
    model.requires_grad_(False)
    layers = {name: layer for name, layer in model.named_modules() if name.endswith(endings)}
    planned = [PlannedModule(name, 2, 2.0) for name in layers]
    part = make_part("unet", "lora_unet", layers, planned, is_denoiser=True, multiplier=1.0, dropouts=Dropouts())
    network = AdapterNetwork([part], family="SDXL")
    network.apply_to([], model)
    draw = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.1, generator=draw)
    return list(network.parameters())


def prediction(model, index=0, context=None):
    draw = torch.Generator().manual_seed(index)
    sizes = (2, 4, 4, 6), (2,), (2, 5, 16), (2, 20), (2, 6)
    latents, timesteps, states, pooled, numbers = (torch.randn(size, generator=draw) for size in sizes)
    added = {"text_embeds": pooled, "time_ids": numbers.abs() * 500}
    return model(latents, timesteps.abs() * 300, states if context is None else context, added_cond_kwargs=added).sample


def loss_of(model, index):
    return prediction(model, index).square().mean()


def swapped(model, number, prefetch=1):
    device = LateDevice()
    row = list(blocks(model))
    assert len(row) == DEPTH
    plan = swap_plan(DEPTH, number, prefetch)
    return device, BlockSwapper(row, plan, CPU, num_streams=model.num_streams, lane=device)


def course(model, trained):
    """Outputs and gradients of: a step, inference, another step on top."""
    loss_of(model, 0).backward()
    seen = [parameter.grad.clone() for parameter in trained]
    with torch.no_grad():
        seen.append(loss_of(model, 2))
    loss_of(model, 4).backward()
    seen += [parameter.grad.clone() for parameter in trained]
    for parameter in trained:
        parameter.grad = None
    return seen


def assert_same_bits(found, expected):
    assert any(tensor.abs().max() > 0 for tensor in expected)
    assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))


def test_blocks_are_everything_but_embedders_and_what_is_around_attentions():
    model = make_model()
    row, around = list(blocks(model)), list(around_blocks(model))
    names = {module: name for name, module in model.named_modules()}
    of_attentions = [f"{level}.{layer}" for level in ATTENTIONS for layer in ("norm", "proj_in", "proj_out")]
    ends = ["conv_in", "time_embedding", "add_embedding", "conv_norm_out", "conv_out"]
    assert {names[module] for module in around if list(module.parameters())} == {*ends, *of_attentions}
    assert sum(p.numel() for m in (*row, *around) for p in m.parameters()) == sum(p.numel() for p in model.parameters())
    called = []
    for block in row:
        block.register_forward_pre_hook(lambda block, _: called.append(block))
    prediction(model)
    assert called == row


ATTENTIONS = ("down_blocks.1.attentions.0", "mid_block.attentions.0", *(f"up_blocks.0.attentions.{i}" for i in (0, 1)))


@pytest.mark.parametrize(
    ("endings", "every", "prefetch", "number"),
    [
        (("to_q", "to_k", "ff.net.2", "time_emb_proj"), 0, 1, DEPTH),
        (("up_blocks.0.attentions.0.transformer_blocks.1.attn2.to_k",), 0, 0, 7),
        (("attn1.to_v",), 2, 3, DEPTH),
    ],
    ids=["kept", "one layer, nothing ahead", "every other one recomputed, three ahead"],
)
def test_a_swapped_unet_trains_adapters_and_infers_the_same_bits(endings, every, prefetch, number):
    model = make_model()
    trained = make_adapters(model, endings)
    model.gradient_checkpointing, model.checkpoint_every = bool(every), every or 1
    expected = course(model, trained)
    device, _ = swapped(model, number, prefetch)
    with device:
        assert_same_bits(course(model, trained), expected)


def steps_inside_backward(model, deal_out):
    """Losses of two steps of SGD inside the backward pass, with inference between and after."""
    parts = deal_out([parameter for parameter in model.parameters() if parameter.requires_grad])
    steps = [torch.optim.SGD(part, lr=1e-2, momentum=0.9) for part in parts]
    listener = BackwardParts(parts, lambda number: steps[number].step())
    seen = []
    for index in range(2):
        loss = loss_of(model, index)
        with listener.listening():
            loss.backward()
        with torch.no_grad():
            seen += [loss.detach(), loss_of(model, 9)]
    listener.close()
    return seen


def test_weights_of_a_unet_that_train_come_back_after_their_step():
    models = make_model(), make_model()
    for model in models:
        model.gradient_checkpointing = True
    plain = steps_inside_backward(models[0], each_alone)
    device, swapper = swapped(models[1], DEPTH)
    with device:
        seen = steps_inside_backward(models[1], partial(by_block, [models[1]]))
    assert_same_bits(seen, plain)
    swapper.settle()
    for name, value in models[1].state_dict().items():
        assert torch.equal(value, models[0].state_dict()[name]), name


def test_an_error_in_a_pass_leaves_a_unet_that_goes_on():
    model = make_model()
    trained = make_adapters(model)
    model.gradient_checkpointing = True
    expected = course(model, trained)
    device, _ = swapped(model, DEPTH)
    with device:
        with pytest.raises(RuntimeError):
            prediction(model, context=torch.zeros(2, 5, 17))
        handle = model.mid_block.resnets[0].conv1.register_full_backward_hook(_fail)
        with pytest.raises(ZeroDivisionError):
            loss_of(model, 0).backward()
        handle.remove()
        for parameter in trained:
            parameter.grad = None
        assert_same_bits(course(model, trained), expected)


def _fail(*_):
    raise ZeroDivisionError


def test_each_buffer_of_the_ring_is_as_large_as_the_largest_block_that_it_takes():
    assert swap_plan(6, 6).buffer_sizes([3, 9, 4, 1, 2, 2]) == [4, 9]
    assert swap_plan(6, 1).buffer_sizes([5]) == [5]


@pytest.mark.parametrize("every", [0, 1, 2])
@pytest.mark.parametrize("number", [5, DEPTH])
def test_gradients_of_the_text_pass_through_frozen_blocks(number: int, every: int):
    """What trains is before the model: a word's vectors."""

    def gradients(model):
        model.requires_grad_(False).train()
        model.gradient_checkpointing, model.checkpoint_every = bool(every), max(every, 1)
        found = []
        for index in (0, 4):
            context = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(index)).requires_grad_()
            prediction(model, index, context).square().mean().backward()
            found.append(context.grad)
        return found

    expected, model = gradients(make_model()), make_model()
    device, _swapper = swapped(model.requires_grad_(False), number)
    with device:
        found = gradients(model)
    assert_same_bits(found, expected)
