"""The MMDiT: sizes, precision, checkpointing, and what adapters and the trainer rely on."""

import pytest
import torch
from torch import nn

from library.errors import CheckpointError, DatasetError
from library.models.mmdit import MMDiT, MMDiTConfig, config_from_shapes, modulate, timestep_embedding
from library.models.positions import window_at

SIZES = {"num_heads": 2, "context_dim": 24, "pooled_dim": 20, "position_side": 8}
CONFIGS = {
    "medium": MMDiTConfig(depth=2, **SIZES),
    "5-medium": MMDiTConfig(depth=3, qk_norm=True, dual_attention=(0, 1), **SIZES),
    "5-large": MMDiTConfig(depth=2, qk_norm=True, **SIZES),
    "small heads": MMDiTConfig(depth=2, qk_norm=True, head_dim=8, **SIZES),
}


def build(config, dtype=torch.float32):
    torch.manual_seed(3)
    return MMDiT(config).to(dtype)


def inputs(batch=1, height=8, width=6, config=CONFIGS["medium"]):
    draw = torch.Generator().manual_seed(4)
    return (
        torch.randn(batch, config.in_channels, height, width, generator=draw),
        torch.linspace(100.3, 900.7, batch),
        torch.randn(batch, 5, config.context_dim, generator=draw),
        torch.randn(batch, config.pooled_dim, generator=draw),
    )


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def test_sizes_are_read_back_from_shapes(config):
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in MMDiT(config).state_dict().items()}
    assert config_from_shapes(shapes) == config


@pytest.mark.parametrize("name", ["pos_embed", "x_embedder.proj.weight", "context_embedder.weight"])
def test_missing_tensor_that_tells_a_size_is_named(name):
    shapes = {key: tuple(tensor.shape) for key, tensor in build(CONFIGS["5-medium"]).state_dict().items()}
    del shapes[name]
    with pytest.raises(CheckpointError, match=name):
        config_from_shapes(shapes)


def test_model_without_blocks_is_an_error():
    shapes = {key: tuple(tensor.shape) for key, tensor in build(CONFIGS["medium"]).state_dict().items()}
    with pytest.raises(CheckpointError, match=r"joint_blocks\.0"):
        config_from_shapes({key: shape for key, shape in shapes.items() if "joint_blocks" not in key})


def test_width_that_heads_do_not_divide_is_an_error():
    shapes = {key: tuple(tensor.shape) for key, tensor in build(CONFIGS["medium"]).state_dict().items()}
    with pytest.raises(CheckpointError, match="width 100"):
        config_from_shapes(shapes | {"x_embedder.proj.weight": (100, 16, 2, 2)})


def test_building_on_the_meta_device_takes_weights_and_leaves_nothing_there(config):
    with torch.device("meta"):
        model = MMDiT(config)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    source = build(config)
    model.load_state_dict(source.state_dict(), assign=True)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert torch.equal(model(*inputs()), source(*inputs()))


def test_batch_equals_its_samples_one_by_one(config):
    model, batch = build(config), inputs(batch=3)
    alone = torch.cat([model(*(tensor[index : index + 1] for tensor in batch)) for index in range(3)])
    torch.testing.assert_close(model(*batch), alone, rtol=0, atol=1e-5)


def test_modulate_is_the_norm_times_one_plus_scale_plus_shift():
    x, shift, scale = torch.randn(2, 7, 12), torch.randn(2, 12), torch.randn(2, 12)
    normed = (x - x.mean(2, keepdim=True)) / (x.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt()
    expected = normed * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(modulate(x, shift, scale), expected)
    torch.testing.assert_close(modulate(x[:1], shift[:1], scale[:1]), expected[:1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.006)])
@pytest.mark.parametrize("batch", [1, 2])
def test_half_precision_is_near_single(config, dtype, tolerance, batch):
    reference = build(config)(*inputs(batch))
    output = build(config, dtype)(*inputs(batch))
    assert output.dtype == dtype
    assert (output.float() - reference).abs().max() < tolerance * reference.abs().max()


@pytest.mark.parametrize("batch", [1, 2])
def test_autocast_gives_its_dtype_and_float32_gradients(config, batch):
    model = build(config)
    reference = model(*inputs(batch))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*inputs(batch))
    output.float().square().mean().backward()
    assert output.dtype == torch.bfloat16
    assert (output.float() - reference).abs().max() < 0.05 * reference.abs().max()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_timesteps_are_not_rounded_to_the_dtype_of_the_weights():
    latents, _, context, pooled = inputs()
    model = build(CONFIGS["medium"], torch.bfloat16)
    one, other = (model(latents, torch.tensor([t]), context, pooled) for t in (998.0, 999.0))
    assert torch.tensor(998.0).bfloat16() == torch.tensor(999.0).bfloat16()
    assert not torch.equal(one, other)
    assert timestep_embedding(torch.tensor([998.0]), 8).dtype == torch.float32


def gradients_and_block_calls(model):
    calls = []
    hooks = [block.register_forward_pre_hook(lambda block, _: calls.append(block)) for block in model.joint_blocks]
    model.zero_grad()
    model(*inputs(2)).square().mean().backward()
    for hook in hooks:
        hook.remove()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}, len(calls)


def test_checkpointing_changes_no_gradient_and_runs_each_block_twice(config):
    model = build(config)
    plain, num_calls = gradients_and_block_calls(model)
    model.gradient_checkpointing = True
    checkpointed, num_checkpointed_calls = gradients_and_block_calls(model)
    assert (num_calls, num_checkpointed_calls) == (config.depth, 2 * config.depth)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


@pytest.mark.parametrize(("every", "num_recomputed"), [(1, 3), (2, 2), (3, 1), (7, 1)])
def test_of_so_many_blocks_the_first_is_recomputed_and_no_bit_changes(every, num_recomputed):
    model = build(CONFIGS["5-medium"])
    plain, num_calls = gradients_and_block_calls(model)
    model.gradient_checkpointing, model.checkpoint_every = True, every
    checkpointed, num_checkpointed_calls = gradients_and_block_calls(model)
    assert num_checkpointed_calls - num_calls == num_recomputed
    assert all(torch.equal(checkpointed[name], gradient) for name, gradient in plain.items())


def test_checkpointing_does_nothing_without_gradients(config):
    model = build(config)
    model.gradient_checkpointing = True
    with torch.no_grad():
        assert not model(*inputs()).requires_grad


def test_every_linear_and_convolution_is_called_as_a_module(config):
    model, called = build(config), set()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for name, layer in layers.items():
        layer.forward = lambda x, name=name, original=layer.forward: (called.add(name), original(x))[1]
    model(*inputs())
    assert called == set(layers)


def test_frozen_model_gives_gradients_to_what_is_added_to_it(config):
    model = build(config).requires_grad_(False)
    extra = nn.Parameter(torch.zeros(3 * config.hidden))
    qkv = model.joint_blocks[0].context_block.attn.qkv
    qkv.forward = lambda x, original=qkv.forward: original(x) + extra
    model(*inputs()).square().mean().backward()
    assert extra.grad.abs().sum() > 0


def test_blocks_have_the_class_name_that_adapter_packages_look_for():
    names = {type(module).__name__ for module in build(CONFIGS["medium"]).modules()}
    assert "SingleDiTBlock" in names
    assert not names & {"FinalLayer", "PatchEmbed", "TimestepEmbedding", "Block"}  # else more than blocks is adapted


def test_last_block_has_no_output_for_the_context(config):
    blocks = build(config).joint_blocks
    assert not hasattr(blocks[-1].context_block, "mlp")
    assert not hasattr(blocks[-1].context_block.attn, "proj")
    assert [hasattr(block.x_block, "attn2") for block in blocks] == [
        i in config.dual_attention for i in range(len(blocks))
    ]


def test_second_attention_has_heads_of_the_same_size_as_the_first():
    attention = build(CONFIGS["5-medium"]).joint_blocks[0].x_block
    shapes = [tuple(t.shape) for t in attention.attn2.heads(torch.randn(1, 4, 128))]
    assert shapes == [(1, 4, 2, 64)] * 3
    assert attention.attn2.ln_q.weight.shape == (64,)


def test_given_positions_replace_the_stored_window():
    model = build(CONFIGS["medium"])
    corner = window_at(model.pos_embed, 4, 3, 0.0, 0.0)
    centre = window_at(model.pos_embed, 4, 3, 0.5, 0.4)
    before = model.pos_embed.clone()
    assert torch.equal(model(*inputs(), positions=centre), model(*inputs()))
    assert not torch.allclose(model(*inputs(), positions=corner), model(*inputs()))
    assert torch.equal(model.pos_embed, before)


def test_odd_latent_side_is_refused():
    with pytest.raises(ValueError, match="multiples of 2"):
        build(CONFIGS["medium"])(*inputs(height=7))


def test_image_larger_than_the_table_is_refused_with_the_limit():
    with pytest.raises(DatasetError, match="128 pixels a side"):
        build(CONFIGS["medium"])(*inputs(height=18))
