"""Block swap changes no bit, for every number of blocks: in training of adapters and of the model, and in between."""

from functools import partial

import pytest
import torch

from library.memory.block_swap import BlockSwapper
from library.memory.fused_backward import BackwardParts, by_block, each_alone
from library.memory.quantized_layers import quantize_layers
from library.memory.swap_plan import swap_plan
from library.models.mmdit import MMDiT, MMDiTConfig
from networks.adapters import Dropouts
from networks.network import AdapterNetwork, PlannedModule, make_part
from tests.late_device import LateDevice

CPU = torch.device("cpu")
DEPTH = 4
CONFIG = MMDiTConfig(
    depth=DEPTH,
    num_heads=2,
    head_dim=16,
    context_dim=24,
    pooled_dim=20,
    frequencies=32,
    position_side=8,
    qk_norm=True,
    dual_attention=(0, 1),
)
ALL_LINEARS = ("attn.qkv", "attn.proj", "attn2.qkv", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")


def make_model(dtype=torch.float32):
    torch.manual_seed(0)
    return MMDiT(CONFIG).to(dtype).eval()


def make_adapters(model, endings=ALL_LINEARS):
    """Adapters whose changes are not zero, on some linear layers of all blocks."""
    model.requires_grad_(False)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if name.startswith("joint_blocks") and name.endswith(endings)
    }
    planned = [PlannedModule(name, 2, 2.0) for name in layers]
    part = make_part("mmdit", "lora_unet", layers, planned, is_denoiser=True, multiplier=1.0, dropouts=Dropouts())
    network = AdapterNetwork([part], family="SD3")
    network.apply_to([], model)
    draw = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.1, generator=draw)
    return network


def inputs(index=0):
    draw = torch.Generator().manual_seed(index)
    sizes = (2, 16, 8, 8), (2,), (2, 5, 24), (2, 20)
    latents, timesteps, context, pooled = (torch.randn(size, generator=draw) for size in sizes)
    return latents, timesteps.abs() * 500, context, pooled


def loss_of(model, index):
    return model(*inputs(index)).float().square().mean()


def swapped(model, number, prefetch=1):
    """The model with blocks swapped on a late device, which is to be entered."""
    device = LateDevice()
    return device, BlockSwapper(model.joint_blocks, swap_plan(DEPTH, number, prefetch), CPU, lane=device)


def course(model, trained):
    """Outputs and gradients of: a step of two batches, inference twice, another step; each seen once."""
    seen = []
    for index in range(2):
        loss_of(model, index).backward()
    seen += [parameter.grad.clone() for parameter in trained]
    with torch.no_grad():
        seen += [loss_of(model, index) for index in (2, 3)]
    loss_of(model, 4).backward()
    seen += [parameter.grad.clone() for parameter in trained]
    for parameter in trained:
        parameter.grad = None
    return seen


def assert_same_bits(found, expected):
    assert any(tensor.abs().max() > 0 for tensor in expected)
    assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("number", range(1, DEPTH + 1))
@pytest.mark.parametrize(
    ("endings", "recomputes", "prefetch"),
    [(ALL_LINEARS, False, 1), (ALL_LINEARS, True, 1), (("x_block.attn.qkv",), False, 0), (("mlp.fc2",), True, 2)],
    ids=["all linears", "all linears, recomputed", "some linears, nothing ahead", "some, recomputed, two ahead"],
)
def test_a_swapped_model_trains_and_infers_the_same_bits(endings, recomputes, prefetch, number):
    model = make_model()
    network = make_adapters(model, endings)
    model.gradient_checkpointing = recomputes
    trained = list(network.parameters())
    expected = course(model, trained)
    device, _ = swapped(model, number, prefetch)
    with device:
        assert_same_bits(course(model, trained), expected)


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_blocks_in_fewer_bits_swap_too(form):
    model = make_model()
    for block in model.joint_blocks:
        quantize_layers(block, form, torch.float32, CPU)
    trained = list(make_adapters(model, ("attn.qkv", "mlp.fc1")).parameters())
    expected = course(model, trained)
    device, swapper = swapped(model, DEPTH)
    assert swapper.host_bytes < sum(p.numel() for p in make_model().joint_blocks.parameters()) * 1.3
    with device:
        assert_same_bits(course(model, trained), expected)


def steps_inside_backward(model, deal_out):
    """Weights after two steps of AdamW inside the backward pass, with inference before, between and after."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = deal_out(trained)
    steps = [torch.optim.AdamW(part, lr=1e-2) for part in parts]
    listener = BackwardParts(parts, lambda number: steps[number].step())
    seen = []
    for index in range(2):
        with torch.no_grad():
            seen.append(loss_of(model, 9))
        loss = loss_of(model, index)
        with listener.listening():
            loss.backward()
        seen.append(loss.detach())
    with torch.no_grad():
        seen.append(loss_of(model, 9))
    listener.close()
    return seen


@pytest.mark.parametrize("is_frozen", [False, True], ids=["all train", "half train"])
@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("number", [1, 3, 4])
def test_weights_that_train_come_back_to_the_host_after_their_step(number, recomputes, is_frozen):
    models = make_model(), make_model()
    for model in models:
        model.gradient_checkpointing = recomputes
        if is_frozen:  # embedders among them, so that the inputs of the first block are not differentiated
            model.requires_grad_(False)
            model.joint_blocks[0].requires_grad_(True)
            model.joint_blocks[2].x_block.requires_grad_(True)
    deals = each_alone, partial(by_block, [models[1]])
    plain = steps_inside_backward(models[0], deals[0])
    device, swapper = swapped(models[1], number)
    with device:
        seen = steps_inside_backward(models[1], deals[1])
    assert_same_bits(seen, plain)
    swapper.settle()
    for name, value in models[1].state_dict().items():
        assert torch.equal(value, models[0].state_dict()[name]), name


def test_weights_that_do_not_train_are_never_copied_back():
    model = make_model()
    trained = list(make_adapters(model).parameters())
    device, swapper = swapped(model, DEPTH)
    masters = {home.master.data_ptr() for home in swapper._homes}
    targets = []
    copy_to = device.copy
    device.copy = lambda target, source, after=None: (
        targets.append(target.data_ptr()) or copy_to(target, source, after=after)
    )
    with device:
        course(model, trained)
    assert targets and not masters.intersection(targets)


def test_a_step_copies_only_what_is_not_in_the_ring_where_it_turns_round():
    model = make_model()
    make_adapters(model)
    device, _ = swapped(model, DEPTH, prefetch=1)
    with device:
        loss_of(model, 0).backward()
        first = device.num_copies
        loss_of(model, 0).backward()
    assert first == DEPTH + (DEPTH - 2)
    assert device.num_copies - first == 2 * (DEPTH - 2)


def test_weights_read_between_steps_are_true_after_settling():
    model = make_model()
    make_adapters(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    device, swapper = swapped(model, 3)
    with device:
        loss_of(model, 0).backward()
    swapper.settle()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_samples_may_keep_more_blocks_on_the_device():
    model = make_model()
    trained = list(make_adapters(model).parameters())
    expected = course(model, trained)
    device, swapper = swapped(model, DEPTH)
    with device:
        for number in (0, 1, 3, DEPTH, 99):
            with torch.no_grad(), swapper.swapping(number):
                losses = [loss_of(model, index) for index in (2, 3)]
            assert torch.equal(torch.stack(losses), torch.stack(expected[len(trained) : len(trained) + 2]))
        with torch.no_grad(), swapper.swapping(0):
            loss_of(model, 0)
            before = device.num_copies
            loss_of(model, 0)
            assert device.num_copies == before, "blocks that stay were copied"
        assert_same_bits(course(model, trained), expected)


def test_an_error_in_a_pass_leaves_a_model_that_goes_on():
    model = make_model()
    trained = list(make_adapters(model).parameters())
    expected = course(model, trained)
    device, _ = swapped(model, DEPTH)
    with device:
        latents, timesteps, context, pooled = inputs()
        with pytest.raises(RuntimeError):
            model(latents, timesteps, context[:1].expand(3, -1, -1), pooled)
        handle = model.joint_blocks[1].x_block.mlp.fc1.register_full_backward_hook(_fail)
        with pytest.raises(ZeroDivisionError):
            loss_of(model, 0).backward()
        handle.remove()
        for parameter in trained:
            parameter.grad = None
        assert_same_bits(course(model, trained), expected)


def _fail(*_):
    raise ZeroDivisionError


def test_parameters_can_be_seen_where_they_compute_without_their_numbers():
    model = make_model()
    numbers = [parameter.clone() for parameter in model.parameters()]
    swapper = BlockSwapper(model.joint_blocks, swap_plan(DEPTH, 2), CPU, lane=LateDevice())
    with swapper.as_on_device():
        assert {parameter.untyped_storage().nbytes() for parameter in swapper.trained} == {4}
        assert [parameter.shape for parameter in model.parameters()] == [number.shape for number in numbers]
    assert_same_bits(list(model.parameters()), numbers)


def test_a_block_lies_in_one_piece_on_the_host_and_the_ring_has_few_buffers():
    model = make_model()
    size = sum(parameter.numel() * 4 for parameter in model.joint_blocks[1].parameters())
    swapper = BlockSwapper(model.joint_blocks, swap_plan(DEPTH, DEPTH), CPU, lane=LateDevice())
    swapper.settle()
    places = {parameter.untyped_storage().data_ptr() for parameter in model.joint_blocks[1].parameters()}
    assert len(places) == 1
    assert size <= swapper.device_bytes / 2 < size * 1.1
    assert swapper.host_bytes >= sum(p.numel() * 4 for block in model.joint_blocks for p in block.parameters())
