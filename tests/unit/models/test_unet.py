"""The U-Net is diffusers' one, bit for bit, as a row of blocks that may be recomputed, and attends as it is told."""

from functools import partial

import pytest
import torch
import torch._dynamo
from diffusers import UNet2DConditionModel

from library.errors import CheckpointError
from library.models.attention import torch_attention, use_attention
from library.models.unet import UNet, unet_config
from library.training.compiling import CompiledBlock
from tests.tiny_unets import unet_settings

ASKED = ("sample_size", "upcast_attention")  # of no use, or told by no tensor


def make(kind):
    settings = {name: value for name, value in unet_settings(kind).items() if name not in ASKED}
    torch.manual_seed(0)
    return UNet(**settings), settings


def inputs(model, side=16):
    draw = torch.Generator().manual_seed(1)
    config = model.config
    latents = torch.randn(2, 4, side, 16, generator=draw)
    context = torch.randn(2, 7, config["cross_attention_dim"], generator=draw)
    added = None
    if config["addition_embed_type"]:
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        numbers = torch.rand(2, 6, generator=draw) * 1000
        added = {"text_embeds": torch.randn(2, pooled, generator=draw), "time_ids": numbers}
    return latents, torch.tensor([3.0, 900.0]), context, added


def predict(model, *given):
    latents, timesteps, context, added = given or inputs(model)
    return model(latents, timesteps, context, added_cond_kwargs=added).sample


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_sizes_come_from_shapes_and_what_is_built_of_them_is_diffusers_model(kind):
    model, settings = make(kind)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = unet_config(shapes)
    whole = UNet2DConditionModel(**settings)
    assert {name: found[name] for name in settings.keys() & found.keys()} == {
        name: settings[name] for name in settings.keys() & found.keys()
    }
    assert all(
        value == whole.config[name] for name, value in found.items() if name not in settings and value != [1] * 4
    )
    whole.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(predict(copied(UNet(**found), model)), predict(whole))


def copied(model, other):
    model.load_state_dict(other.state_dict(), strict=True)
    return model


def test_a_model_that_lacks_what_tells_a_size_or_adds_nothing_of_the_text_is_refused():
    shapes = {name: tuple(tensor.shape) for name, tensor in make("sdxl")[0].state_dict().items()}
    lacking = {name: shape for name, shape in shapes.items() if name != "mid_block.attentions.0.proj_in.weight"}
    with pytest.raises(CheckpointError, match=r"mid_block\.attentions\.0\.proj_in\.weight is missing"):
        unet_config(lacking)
    with pytest.raises(CheckpointError, match="adds an embedding of 40 numbers, which leaves none for the text"):
        unet_config({**shapes, "add_embedding.linear_1.weight": (128, 40)})


@pytest.mark.parametrize("every", [3])
def test_recomputed_blocks_give_the_same_bits_and_are_as_before_afterwards(every):
    model, _ = make("sdxl")
    seen = []
    model.run_checkpointed = lambda block, *given, **named: seen.append(1) or own(block, *given, **named)
    own = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    weights = list(model.parameters())
    plain = torch.autograd.grad(predict(model).square().mean(), weights)
    assert not seen
    model.gradient_checkpointing, model.checkpoint_every = True, every
    again = torch.autograd.grad(predict(model).square().mean(), weights)
    row = model.block_row()
    assert len(seen) == -(-len(row) // every)
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert not any("forward" in vars(block) for block in row)
    with torch.no_grad():
        predict(model)
    assert len(seen) == -(-len(row) // every)
    with pytest.raises(RuntimeError):
        predict(model, *inputs(model)[:2], torch.zeros(2, 7, 9), inputs(model)[3])
    assert not any("forward" in vars(block) for block in row)


def test_every_layer_attends_by_the_function_that_is_given():
    model, _ = make("sd1")
    shapes = []

    def attend(query, key, value, bias):
        assert bias is None
        shapes.append(tuple(query.shape))
        return torch_attention(query, key, value)

    with torch.no_grad():
        expected = predict(model)
        use_attention(model, attend)
        assert torch.equal(predict(model), expected)
    assert len(shapes) == 2 * sum(len(stack) for _, stack in model.block_stacks())
    assert {heads for _, heads, _, _ in shapes} == {8}


def test_norms_stay_in_the_precision_of_autocast():
    model, _ = make("sdxl")
    dtypes = set()
    for module in model.modules():
        if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
            module.register_forward_hook(lambda _, given, output: dtypes.update((given[0].dtype, output.dtype)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        narrow = predict(model)
    assert dtypes == {torch.bfloat16}
    with torch.no_grad():
        torch.testing.assert_close(narrow.float(), predict(model), atol=0.1, rtol=0.1)


def test_a_compiled_transformer_block_is_one_graph_and_computes_the_same():
    torch._dynamo.reset()
    model, _ = make("sd1")
    graphs = []
    with torch.no_grad():
        expected = predict(model)
        (block,) = model.mid_block.attentions[0].transformer_blocks
        block.forward = CompiledBlock(
            block.forward, lambda graph, _: graphs.append(graph) or graph.forward, is_varied=False
        )
        assert torch.equal(predict(model), expected)
    assert len(graphs) == 1
