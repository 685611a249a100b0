import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from library.errors import CheckpointError, OptionError
from networks import control_net_lllite as lllite
from networks import lora
from networks.control_net_lllite_adapter import LLLiteAdapter
from networks.control_net_lllite_targets import Widths, level_of, module_shapes, target_levels

FIRST = "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def unet(small_unets):
    return small_unets["sdxl"]


@pytest.fixture
def create(unet, fill):
    """Makes attached networks that add something; they come off afterwards."""
    made = []

    def run(*, is_filled=True, dim=6, **args):
        network = lllite.create_network(1.0, dim, 1.0, None, None, unet, cond_emb_dim="4", **args)
        made.append(fill(network) if is_filled else network)
        network.apply_to()
        return network.eval()

    yield run
    for network in made:
        network.detach_all()


def pictures(number, seed=5, side=64):
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def predict(unet):
    """The U-Net's output for so many samples of 8 x 8 latents."""

    def run(number=2, seed=1):
        draw = torch.Generator().manual_seed(seed)
        width = unet.config.cross_attention_dim
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        added = {
            "text_embeds": torch.randn(number, pooled, generator=draw),
            "time_ids": torch.full((number, 6), 64.0),
        }
        latents, context = torch.randn(number, 4, 8, 8, generator=draw), torch.randn(number, 5, width, generator=draw)
        return unet(latents, torch.full((number,), 500.0), context, added_cond_kwargs=added).sample

    return run


def test_levels_and_layers_are_those_of_the_published_form():
    blocks = {"input_blocks.4.1": 2, "input_blocks.5.1": 2, "input_blocks.7.1": 3, "middle_block.1": 3}
    for block, level in blocks.items():
        assert level_of(f"{block}.transformer_blocks.0.attn1.to_q") == level
    depths = {"input_blocks.4": 2, "input_blocks.7": 10, "middle_block": 10, "output_blocks.0": 10}
    names = [
        f"{block}.1.transformer_blocks.{index}.{layer}"
        for block, depth in depths.items()
        for index in range(depth)
        for layer in ("attn1.to_out.0", "ff.net.2", *(f"attn{number}.to_{kind}" for number in (1, 2) for kind in "qkv"))
    ]
    chosen = target_levels(names)
    assert len(chosen) == 4 * 22 and not any("output" in name or "to_out" in name for name in chosen)
    assert {name[-10:] for name in chosen} == {"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q"}


@pytest.mark.parametrize(
    ("level", "kernels"), [(1, [(16, 3, 4), (32, 16, 2)]), (2, [(16, 3, 4), (32, 16, 4)]),
                           (3, [(16, 3, 4), (16, 16, 4), (32, 16, 2)])]
)  # fmt: skip
def test_shapes_of_a_module(level, kernels):
    shapes = module_shapes(level, 640, Widths(32, 64))
    for index, (after, before, side) in enumerate(kernels):
        assert shapes[f".conditioning1.{2 * index}.weight"] == (after, before, side, side)
        assert shapes[f".conditioning1.{2 * index}.bias"] == (after,)
    assert len(shapes) == 2 * len(kernels) + 6
    assert shapes[".down.0.weight"] == (64, 640) and shapes[".mid.0.weight"] == (64, 96)
    assert shapes[".up.0.weight"] == (640, 64) and shapes[".up.0.bias"] == (640,)


def test_the_file_has_exactly_these_tensors(create):
    network = create()
    saved = network.saved_state(torch.float16)
    assert saved[f"{FIRST}.conditioning1.0.weight"].dtype == torch.float16
    names = {key.partition(".")[0] for key in saved}
    assert names == {adapter.name for adapter in network.adapters()} and FIRST in names
    assert all(name.startswith(("lllite_unet_input_blocks_", "lllite_unet_middle_block_")) for name in names)
    assert len(names) == 4 * 3  # two attentions on the way down and one in the middle


def test_a_new_network_adds_nothing_and_one_without_picture_or_strength_neither(create, predict, unet):
    before, names = predict(), list(unet.state_dict())
    new = create(is_filled=False)
    new.set_condition(pictures(2))
    assert torch.equal(predict(), before)
    new.detach_all()
    network = create()
    assert torch.equal(predict(), before)
    network.set_condition(pictures(2))
    assert not torch.allclose(predict(), before, atol=1e-3)
    network.set_multiplier(0.0)
    assert torch.equal(predict(), before)
    network.set_multiplier(1.0)
    assert list(unet.state_dict()) == names
    network.detach_all()
    assert torch.equal(predict(), before)


def test_a_module_changes_the_input_of_its_layer(create):
    network = create()
    network.set_condition(images := pictures(2))
    adapter = next(adapter for adapter in network.adapters() if adapter.name == FIRST)
    weights = {name: tensor.detach() for name, tensor in adapter.named_parameters()}
    x = torch.randn(2, 16, adapter.target.in_features, generator=torch.Generator().manual_seed(8))
    seen = F.conv2d(images, weights["conditioning1.0.weight"], weights["conditioning1.0.bias"], stride=4).relu()
    seen = F.conv2d(seen, weights["conditioning1.2.weight"], weights["conditioning1.2.bias"], stride=4)
    tokens = seen.flatten(2).transpose(1, 2)
    inner = (x @ weights["down.0.weight"].T + weights["down.0.bias"]).relu()
    inner = torch.cat([tokens, inner], -1) @ weights["mid.0.weight"].T + weights["mid.0.bias"]
    changed = x + (inner.relu() @ weights["up.0.weight"].T + weights["up.0.bias"])
    expected = F.linear(changed, adapter.target.weight, adapter.target.bias)
    torch.testing.assert_close(adapter.target(x), expected)


def test_a_picture_is_embedded_once_for_all_steps(create, predict):
    network = create()
    network.set_condition(pictures(2))
    with torch.no_grad():
        before = predict()
        for adapter in network.adapters():
            adapter.conditioning1[0].weight.mul_(-1)
        assert torch.equal(predict(), before)
        network.set_condition(pictures(2))
        assert not torch.allclose(predict(), before, atol=1e-3)


def test_with_guidance_the_rows_are_those_of_the_pictures_in_turn(create, predict):
    network, both = create(), pictures(2)
    network.set_condition(torch.cat([both, both]))
    expected = predict(4)
    network.set_condition(both)
    torch.testing.assert_close(predict(4), expected)
    network.set_condition(pictures(3))
    with pytest.raises(ValueError, match="3 conditioning pictures cannot be for 4 rows"):
        predict(4)


def test_gradients_are_the_same_where_blocks_are_recomputed(create, predict, unet):
    network, found = create().requires_grad_(True), []
    for recomputes in (False, True):
        unet.gradient_checkpointing = recomputes
        network.set_condition(pictures(2))
        network.zero_grad()
        predict().square().mean().backward()
        found.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
    unet.gradient_checkpointing = False
    assert all(gradient.abs().sum() > 0 for name, gradient in found[0].items() if ".up." in name)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


@pytest.mark.parametrize("argument", [{"neuron_dropout": 0.5}, {"dropout": "0.5", "neuron_dropout": 0.5}])
def test_dropout_acts_while_training_only(create, predict, argument):
    network = create(**argument)
    network.set_condition(pictures(2))
    before = predict()
    assert torch.equal(predict(), before)
    network.train()
    assert not torch.allclose(predict(), before, atol=1e-3)


def test_a_picture_of_another_size_is_stretched(create, predict):
    network, plain = create(), torch.full((2, 3, 64, 64), 0.3)
    network.set_condition(plain)
    expected = predict()
    network.set_condition(plain[:, :, :32, :32])
    torch.testing.assert_close(predict(), expected)


@pytest.mark.parametrize(("level", "tokens"), [(1, (9, 8)), (2, (5, 4)), (3, (3, 2))])
def test_an_edge_stays_an_edge_where_sides_are_no_whole_tokens(level, tokens):
    target = torch.nn.Linear(8, 8, bias=False)
    torch.nn.init.eye_(target.weight)
    adapter = LLLiteAdapter("x", target, level, Widths(8, 16))
    adapter.reset(torch.Generator().manual_seed(3))
    torch.nn.init.ones_(adapter.up[0].weight)
    adapter.attach()
    images = torch.zeros(1, 3, 72, 64)
    images[..., 32:] = 1
    adapter.set_condition(images)
    added = target(torch.zeros(1, tokens[0] * tokens[1], 8))[0, :, 0].detach().reshape(tokens)
    left, right = added[:, 0], added[:, -1]
    torch.testing.assert_close(added, torch.cat([left.repeat(tokens[1] // 2, 1), right.repeat(tokens[1] // 2, 1)]).T)
    torch.testing.assert_close(left, left[:1].expand_as(left))
    assert (left - right).abs().min() > 1e-2


def test_a_file_gives_the_same_network(create, predict, unet, tmp_path):
    network = create()
    network.set_condition(pictures(2))
    expected = predict()
    network.save_weights(tmp_path / "mine.safetensors")
    network.detach_all()
    loaded = lllite.create_network_from_weights(1.0, tmp_path / "mine.safetensors", unet)
    loaded.apply_to()
    loaded.set_condition(pictures(2))
    assert torch.equal(predict(), expected)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    loaded.detach_all()


def test_a_file_may_have_modules_for_some_layers_only(create, unet):
    state = {key: tensor for key, tensor in create().saved_state().items() if "attn2" not in key}
    assert len(list(lllite.create_network_from_weights(1.0, None, unet, state).adapters())) == 9


def test_wrong_files_are_refused_with_a_sentence(create, small_unets, unet, tmp_path):
    good = create().saved_state()
    nan = good | {f"{FIRST}.up.0.bias": torch.full_like(good[f"{FIRST}.up.0.bias"], float("nan"))}
    missing = {key: tensor for key, tensor in good.items() if key != f"{FIRST}.down.0.bias"}
    foreign = {key.replace("blocks_4_1", "blocks_77_1"): tensor for key, tensor in good.items()}
    other = lora.create_network(1.0, 2, 1.0, None, [], unet).saved_state()
    cases = {
        "numbers that are not finite": nan,
        "is nothing in the file": missing,
        "for another model: 4 of its 12 modules": foreign,
        "is a LoRA for SDXL: .* Give a ControlNet-LLLite": other,
        "has no tensors": {},
    }
    for words, tensors in cases.items():
        with pytest.raises(CheckpointError, match=words):
            lllite.create_network_from_weights(1.0, "mine.safetensors", unet, tensors)
    with pytest.raises(OptionError, match="is for SDXL"):
        lllite.create_network_from_weights(1.0, "mine.safetensors", small_unets["sd1"], good)
    save_file(good, path := tmp_path / "mine.safetensors")
    with pytest.raises(CheckpointError, match="--cond_emb_dim 4 --network_dim 6, here they are 4 and 8"):
        create(dim=8).load_weights(path)
    wrong = (
        ({"cond_emb_dim": "3"}, "even number"),
        ({"rank": "3"}, "rank is not an argument"),
        ({"dropout": "1"}, "below 1"),
    )
    for arguments, words in wrong:
        with pytest.raises(OptionError, match=words):
            lllite.create_network(1.0, 4, 1.0, None, None, unet, **arguments)
