"""networks.lora beside the U-Nets of SD1, SD2 and SDXL."""

import logging

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from library.errors import CheckpointError, OptionError
from library.models.unet import UNet
from networks import lora
from networks.adapters import Factors
from tests.tiny_unets import unet_settings

KINDS = ("sd1", "sd2", "sdxl")
SOME_BLOCKS = {"sd1": "4,0,2" + ",3" * 22, "sdxl": "4,0,2" + ",3" * 20}


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    return {kind: UNet(**two_levels(kind)).requires_grad_(False) for kind in KINDS}


def two_levels(kind):
    """The tiny model with two levels, the second of SDXL and the first of the others with attention."""
    settings, types = unet_settings(kind), ["DownBlock2D", "CrossAttnDownBlock2D"]
    down = types if kind == "sdxl" else types[::-1]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    settings |= {"block_out_channels": [32, 64], "down_block_types": down, "up_block_types": up}
    if kind == "sdxl":
        settings |= {"transformer_layers_per_block": [1, 2]}
    return settings | ({} if kind == "sd1" else {"attention_head_dim": [2, 1]})


@pytest.fixture(params=KINDS)
def unet(request, made):
    yield made[request.param]
    assert not any("forward" in module.__dict__ for module in made[request.param].modules())


@pytest.fixture
def sdxl(made):
    return made["sdxl"]


@pytest.fixture
def sd1(made):
    return made["sd1"]


def clip(kind=CLIPTextModelWithProjection):
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return kind(CLIPTextConfig(**sizes, vocab_size=50)).requires_grad_(False)


def predict(unet, rows=1):
    draw = torch.Generator().manual_seed(1)
    width = unet.config.cross_attention_dim
    latents, context = torch.randn(rows, 4, 8, 8, generator=draw), torch.randn(rows, 5, width, generator=draw)
    added = None
    if unet.config.addition_embed_type:
        added = {"text_embeds": torch.randn(rows, 48, generator=draw), "time_ids": torch.full((rows, 6), 64.0)}
    return unet(latents, torch.full((rows,), 500.0), context, added_cond_kwargs=added, return_dict=False)[0]


def create(unet, encoders=(), dim=4, alpha=2.0, **args):
    return lora.create_network(1.0, dim, alpha, None, list(encoders), unet, **args)


def from_file(unet, state, encoders=(), multiplier=1.0, **args):
    return lora.create_network_from_weights(multiplier, "lora.safetensors", None, list(encoders), unet, state, **args)


def names(network):
    return [adapter.name for adapter in network.adapters()]


def output_with(network, unet):
    network.apply_to([], unet)
    try:
        return predict(unet)
    finally:
        network.detach_all()


# Which modules


def test_names_in_files_are_published_for_sdxl_and_those_of_diffusers_for_the_others(made):
    assert "lora_unet_input_blocks_4_1_proj_in" in names(create(made["sdxl"]))
    for kind in ("sd1", "sd2"):
        assert "lora_unet_down_blocks_0_attentions_0_proj_in" in names(create(made[kind]))
    assert not any("resnets" in name for name in names(create(made["sd1"])))
    assert "lora_unet_down_blocks_0_resnets_0_conv1" in names(create(made["sd1"], conv_dim="2"))


@pytest.mark.parametrize("kind", [CLIPTextModelWithProjection, CLIPTextModel])
def test_names_of_encoders_do_not_follow_the_installed_library(sd1, sdxl, kind):
    first = "text_model_encoder_layers_0_self_attn_k_proj"
    assert names(create(sd1, [clip(kind)]))[0] == f"lora_te_{first}"
    found = names(create(sdxl, [clip(kind), clip(kind)]))
    assert (found[0], found[6]) == (f"lora_te1_{first}", f"lora_te2_{first}")
    assert sum(name.startswith("lora_te") for name in found) == 12


def test_convolutions_have_a_rank_and_alpha_of_their_own(sdxl):
    made = {adapter.name: adapter for adapter in create(sdxl, conv_dim="3").adapters()}
    wide, narrow = made["lora_unet_input_blocks_3_0_op"], made["lora_unet_input_blocks_4_0_skip_connection"]
    assert (wide.rank, wide.alpha, tuple(wide.lora_down.weight.shape)) == (3, 1.0, (3, 32, 3, 3))
    assert (narrow.rank, narrow.alpha) == (4, 2.0)


def test_ranks_by_block(sd1):
    ranks = {adapter.name: adapter.rank for adapter in create(sd1, block_dims=SOME_BLOCKS["sd1"]).adapters()}
    assert "lora_unet_down_blocks_0_attentions_0_proj_in" not in ranks  # block 1
    assert ranks["lora_unet_down_blocks_0_attentions_1_proj_in"] == 2
    assert ranks["lora_unet_mid_block_attentions_0_proj_in"] == 3


def test_ranks_by_pattern_win_and_the_first_counts(sdxl, caplog):
    with caplog.at_level(logging.WARNING):
        network = create(sdxl, [clip()], alpha=None, network_reg_dims="attn2_to_k=6,attn2=0,te1_=1,lora_unetx=5")
    ranks = {adapter.name: (adapter.rank, adapter.alpha) for adapter in network.adapters()}
    assert {ranks.pop(name) for name in list(ranks) if "attn2_to_k" in name} == {(6, 6.0)}
    assert {ranks.pop(name) for name in list(ranks) if name.startswith("lora_te1_")} == {(1, 1.0)}
    assert set(ranks.values()) == {(4, 4.0)}
    assert not any("attn2" in name for name in ranks)
    assert [record.getMessage() for record in caplog.records] == [
        '--network_args network_reg_dims: no layer has "lora_unetx" in its name, so it has no effect.'
    ]


def test_what_is_no_model_of_ours_is_refused(sdxl, sd1):
    with pytest.raises(OptionError, match="0 modules"):
        create(sd1, down_lr_weight="0", mid_lr_weight="0", up_lr_weight="zeros")
    with pytest.raises(ValueError, match="in the place of CLIP-G has no layers of CLIP"):
        create(sdxl, [clip(), torch.nn.Linear(2, 2)])


# Effect on the model


def test_model_is_untouched_but_for_its_output(unet, fill):
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    modules, base = [name for name, _ in unet.named_modules()], predict(unet)
    network = create(unet, conv_dim="2")
    assert torch.equal(output_with(network, unet), base)  # up is zero
    assert not torch.allclose(output_with(fill(network), unet), base, atol=0.1)
    assert [name for name, _ in unet.named_modules()] == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in unet.state_dict().items())
    network.set_multiplier(0)
    assert torch.equal(output_with(network, unet), base)


def test_every_adapter_gets_gradients_and_the_model_none(unet, fill):
    network = fill(create(unet, conv_dim="2"))
    network.apply_to([], unet)
    network.prepare_optimizer_params(None, 1e-4)
    predict(unet).square().sum().backward()
    network.detach_all()
    assert all(parameter.grad.any() for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_merged_equals_applied(unet, fill):
    source = fill(create(unet, conv_dim="2")).saved_state()
    network, weights = from_file(unet, source, multiplier=0.5, for_inference=True)
    applied = output_with(network, unet)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    network.merge_to([], unet, weights, torch.float32, "cpu")
    merged = predict(unet)
    unet.load_state_dict(before)
    torch.testing.assert_close(merged, applied, atol=1e-4, rtol=1e-4)


def test_recomputing_blocks_changes_no_gradient(sdxl, fill):
    network = fill(create(sdxl, conv_dim="2", rank_dropout="0.2", dropout="0.1", module_dropout="0.1")).train()
    network.apply_to([], sdxl)
    grads = []
    for sdxl.gradient_checkpointing in (True, False):
        torch.manual_seed(1)
        network.zero_grad()
        predict(sdxl).square().sum().backward()
        grads.append([p.grad for p in network.parameters()])
    network.detach_all()
    torch.testing.assert_close(*grads)


def test_dropout_acts_while_training_only(sd1, fill):
    network = fill(create(sd1, conv_dim="2", dropout="0.1", rank_dropout="0.2", module_dropout="0.3"))
    (dropouts,) = {adapter.dropouts for adapter in network.adapters()}
    assert (dropouts.neuron, dropouts.rank, dropouts.module) == (0.1, 0.2, 0.3)
    torch.manual_seed(2)
    trained = [output_with(network.train(), sd1) for _ in range(2)]
    assert not torch.allclose(*trained)
    network.eval()
    assert torch.equal(output_with(network, sd1), output_with(network, sd1))


def test_max_norm_acts_on_convolutions_too(sd1, fill):
    network = fill(create(sd1, conv_dim="2"))
    (wide,) = (adapter for adapter in network.adapters() if adapter.name.endswith("down_blocks_0_downsamplers_0_conv"))
    assert wide.norm() == pytest.approx(wide.factors().delta().norm().item(), rel=1e-4)
    scaled, _, greatest = network.apply_max_norm_regularization(1.0)
    assert (scaled.item(), greatest.item()) == (len(names(network)), pytest.approx(1))
    assert wide.factors().delta().norm() == pytest.approx(1, rel=1e-4)


def test_same_seed_same_start(sdxl):
    states = [create(sdxl, conv_dim="2", generator=torch.Generator().manual_seed(7)).saved_state() for _ in range(2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(tensor.any() for key, tensor in states[0].items() if "lora_down" in key)


# Optimizer groups


def test_groups_without_factors(sd1, sdxl):
    groups, described = create(sdxl, [clip(), clip()], conv_dim="2").prepare_optimizer_params([1e-5, 2e-5], 1e-4)
    assert described == ["textencoder 1", "textencoder 2", "unet"]
    assert [group["lr"] for group in groups] == [1e-5, 2e-5, 1e-4]
    groups, described = create(sd1, [clip()]).prepare_optimizer_params([1e-5], None, 1e-3)
    assert (described, [group["lr"] for group in groups]) == (["textencoder", "unet"], [1e-5, 1e-3])


def test_each_block_has_its_factor_of_the_learning_rate(sdxl):
    network = create(
        sdxl, [clip()], down_lr_weight="0,0,0,.5,.25,.75,1,1,1", mid_lr_weight="0", loraplus_unet_lr_ratio="4"
    )
    groups, described = network.prepare_optimizer_params(1e-5, 1e-2)
    rates = dict(zip(described, (group["lr"] for group in groups), strict=True))
    blocks = [name for name in described if not name.endswith(" plus")]
    assert blocks == ["textencoder 1", *(f"unet_block{i}" for i in (5, 6, 13, 14, 15))]
    assert (rates["textencoder 1"], rates["unet_block5"], rates["unet_block13"]) == pytest.approx((1e-5, 2.5e-3, 1e-2))
    assert rates["unet_block6 plus"] == pytest.approx(3e-2)
    assert not any("middle_block" in name for name in names(network))
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


def test_learning_rates_by_pattern(sd1):
    network = create(sd1, [clip()], network_reg_lrs="mlp=3e-3,unet.*attn1=0,attn2=1e-3", up_lr_weight=".5")
    groups, described = network.prepare_optimizer_params(1e-5, 1e-2)
    rates = dict(zip(described, (group["lr"] for group in groups), strict=True))
    assert rates.pop("textencoder") == 1e-5
    assert rates.pop("textencoder pattern 1") == 3e-3
    assert rates.pop("unet pattern 3") == 1e-3
    assert set(rates.values()) == {1e-2, 5e-3}
    idle = {name.split(".")[0] for name, p in network.named_parameters() if not p.requires_grad}
    assert idle == {name for name in names(network) if "attn1" in name}


# Files


def test_saved_file_loads_and_acts_the_same(unet, fill, tmp_path):
    arguments = {"conv_dim": "3", "conv_alpha": "2", "down_lr_weight": "sine"}
    network = fill(create(unet, **arguments))
    trained = output_with(network, unet)
    network.save_weights(tmp_path / "lora.safetensors", None, {})
    path = str(tmp_path / "lora.safetensors")
    loaded, _ = lora.create_network_from_weights(1.0, path, None, [], unet, down_lr_weight="sine")
    assert torch.equal(output_with(loaded, unet), trained)
    described = loaded.prepare_optimizer_params(None, 1.0)[1]
    assert described == network.prepare_optimizer_params(None, 1.0)[1]
    again = create(unet, **arguments)
    assert again.load_weights(path).startswith(f"{len(names(again))} modules loaded")
    assert torch.equal(output_with(again, unet), trained)


def test_a_file_of_sdxl_with_names_of_diffusers_is_read(sdxl, fill, caplog):
    check_other_layout(sdxl, fill(create(sdxl, conv_dim="2")), caplog, "lora_unet_down_blocks_0_downsamplers_0_conv")


def test_a_file_of_sd1_with_published_names_is_read(sd1, fill, caplog):
    check_other_layout(sd1, fill(create(sd1, conv_dim="2")), caplog, "lora_unet_input_blocks_4_0_emb_layers_1")


def check_other_layout(unet, network, caplog, example):
    trained, state = output_with(network, unet), network.saved_state()
    theirs = {own: other for other, own in network.aliases.items()}
    other = {theirs[key.partition(".")[0]] + "." + key.partition(".")[2]: tensor for key, tensor in state.items()}
    assert f"{example}.alpha" in other
    assert not other.keys() & state.keys()
    with caplog.at_level(logging.INFO):
        loaded, own = from_file(unet, other)
    assert any("lora.safetensors: " in line and "named in another layout" in line for line in caplog.messages)
    assert own.keys() == state.keys()
    assert torch.equal(output_with(loaded, unet), trained)
    again = create(unet, conv_dim="2")
    again.load_saved_state(other)
    assert torch.equal(output_with(again, unet), trained)
    assert names(again) == names(network)
    with pytest.raises(CheckpointError, match="twice, under the names of two layouts"):
        from_file(unet, other | state)


def test_a_linear_layer_may_be_written_as_a_convolution_of_one_pixel(made, fill):
    unet = made["sd2"]
    network = fill(create(unet))
    trained, state = output_with(network, unet), network.saved_state()
    wide = {key: tensor[..., None, None] if tensor.dim() else tensor for key, tensor in state.items()}
    for made_network in (from_file(unet, wide)[0], (again := create(unet), again.load_saved_state(wide))[0]):
        assert torch.equal(output_with(made_network, unet), trained)
    adapter = next(network.adapters())
    before = adapter.target.weight.clone()
    adapter.merge(Factors(adapter.factors().down[..., None, None], adapter.factors().up[..., None, None], 2.0))
    assert not torch.equal(adapter.target.weight, before)
    adapter.target.weight.copy_(before)


def test_a_file_may_have_modules_that_no_argument_gives(sdxl):
    shapes = {
        "time_embed_0": (128, 32),
        "label_emb_0_2": (128, 128),
        "out_2": (4, 32, 3, 3),
        "input_blocks_0_0": (32, 4, 3, 3),
    }
    state = {}
    for name, (outer, *inner) in shapes.items():
        state[f"lora_unet_{name}.lora_down.weight"] = torch.randn(2, *inner)
        state[f"lora_unet_{name}.lora_up.weight"] = torch.randn(outer, 2, *[1] * (len(inner) - 1))
    network, _ = from_file(sdxl, state)
    assert not torch.allclose(output_with(network, sdxl), predict(sdxl), atol=0.1)
    assert network.prepare_optimizer_params(None, 1.0)[1] == ["unet"]


def test_arguments_that_choose_modules_have_no_effect_on_those_of_a_file(sd1, caplog):
    with caplog.at_level(logging.WARNING):
        from_file(sd1, create(sd1).saved_state(), conv_dim="4", dropout="0.1")
    (warning,) = caplog.messages
    assert warning == "--network_args conv_dim: no effect, modules and ranks are those of the file."


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", "is a LoRA for SD3, the model is SD1: 1 of its 1 modules"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_ff_net_2", "is a LoRA for SDXL, the model is SD1"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "a LoRA for the text encoders of SDXL or SD3"),
    ],
)
def test_a_lora_of_another_family_is_named(sd1, key, message):
    state = {f"{key}.lora_down.weight": torch.zeros(4, 8), f"{key}.lora_up.weight": torch.zeros(8, 4)}
    with pytest.raises(CheckpointError, match=message):
        from_file(sd1, state, [clip()])


def test_encoders_in_a_file(sdxl):
    state = create(sdxl, [clip(), clip()]).saved_state()
    assert from_file(sdxl, state, [clip(), clip()])[0].saved_state().keys() == state.keys()
    with pytest.raises(CheckpointError, match=r"6 of its .* neither in the model nor in a loaded text encoder"):
        from_file(sdxl, state, [clip()])
