import logging

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from library.errors import CheckpointError, OptionError, OutputError
from library.log import LOGGER_NAME
from library.models.mmdit import MMDiT
from networks import lora, lora_sd3


def clip(kind=CLIPTextModelWithProjection):
    return kind(
        CLIPTextConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    ).requires_grad_(False)


def t5():
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
    return T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).requires_grad_(False)


def create(mmdit, encoders=(), dim=4, alpha=1.0, **args):
    return lora_sd3.create_network(1.0, dim, alpha, None, list(encoders), mmdit, **args)


def names(network):
    return [adapter.name for adapter in network.adapters()]


# Which modules


def test_default_is_every_linear_layer_of_every_block(mmdit):
    assert len(names(create(mmdit))) == 10 * 3 - 3 + 2


@pytest.mark.parametrize("kind", [CLIPTextModelWithProjection, CLIPTextModel])
def test_encoder_names_do_not_follow_the_installed_library(mmdit, kind):
    found = [name for name in names(create(mmdit, [clip(kind), clip(), t5()])) if name.startswith("lora_te")]
    assert len(found) == 24
    assert found[0] == "lora_te1_text_model_encoder_layers_0_self_attn_k_proj"
    assert found[12].startswith("lora_te2_text_model_encoder_layers_0_")


def test_t5_is_trained_on_request_only(mmdit):
    found = names(create(mmdit, [clip(), clip(), t5()], train_t5xxl="True"))
    assert [name for name in found if name.startswith("lora_te3_")] == [
        *(f"lora_te3_encoder_block_0_layer_0_SelfAttention_{x}" for x in "qkvo"),
        *(f"lora_te3_encoder_block_0_layer_1_DenseReluDense_{x}" for x in ("wi_0", "wi_1", "wo")),
    ]


def test_a_missing_encoder_keeps_the_place_of_the_others(mmdit):
    found = names(create(mmdit, [None, clip(), None]))
    assert {name[:9] for name in found} == {"lora_te2_", "lora_unet"}


def test_t5_has_to_be_there_and_in_its_place(mmdit):
    with pytest.raises(OptionError, match="needs T5"):
        create(mmdit, [clip(), clip(), None], train_t5xxl="True")
    assert not any(name.startswith("lora_te") for name in names(create(mmdit, train_t5xxl="True")))
    with pytest.raises(ValueError, match="in the place of CLIP-G is a T5EncoderModel"):
        create(mmdit, [clip(), t5()])


def test_parts_that_are_not_wanted_are_dropped(mmdit, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger(LOGGER_NAME), "propagate", True)
    caplog.set_level("INFO")
    encoder = clip()
    network = create(mmdit, [encoder])
    number = sum(name.startswith("lora_te") for name in names(network))
    network.apply_to([encoder], mmdit, False, True)
    assert f"{number} of these modules are left out" in caplog.text
    assert not any(name.startswith("lora_te") for name in network.saved_state())
    assert not any("forward" in module.__dict__ for module in encoder.modules())
    with pytest.raises(OptionError, match="0 modules"):
        create(mmdit).apply_to([], mmdit, True, False)


def test_nothing_at_all_is_an_error(mmdit):
    with pytest.raises(OptionError, match=r"0 modules.*0 to 2"):
        create(mmdit, train_block_indices="none")


def test_a_block_outside_the_model_is_an_error(mmdit):
    with pytest.raises(OptionError, match="0 to 2"):
        create(mmdit, train_block_indices="3")


def test_ranks_below_1_are_refused(mmdit):
    with pytest.raises(OptionError, match="--network_dim"):
        create(mmdit, dim=0)


def test_defaults_of_rank_and_alpha(mmdit):
    adapter = next(create(mmdit, dim=None, alpha=None).adapters())
    assert (adapter.rank, adapter.alpha) == (4, 4.0)


def test_other_models_are_refused_by_name(mmdit):
    with pytest.raises(OptionError, match="no LoRA for a Sequential"):
        lora.create_network(1.0, 4, 1.0, None, [], nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(OptionError, match=r"Use networks\.lora"):
        create(nn.Sequential(nn.Linear(2, 2)))


def test_networks_lora_is_the_lora_for_sd3(mmdit):
    made = lora.create_network(1.0, 4, 1.0, None, [], mmdit, neuron_dropout=0.25, emb_dims="1,1,1,1,1,1")
    assert names(made) == names(create(mmdit, emb_dims="1,1,1,1,1,1"))
    assert next(made.adapters()).dropouts.neuron == 0.25


# Effect on the model


def test_model_is_untouched_but_for_its_output(mmdit, predict, fill):
    before = {name: tensor.clone() for name, tensor in mmdit.state_dict().items()}
    modules = [name for name, _ in mmdit.named_modules()]
    base = predict(mmdit)
    network = create(mmdit, emb_dims="2,2,2,2,2,2", split_qkv="True")
    network.apply_to([], mmdit)
    torch.testing.assert_close(predict(mmdit), base)  # up is zero
    fill(network)
    assert not torch.allclose(predict(mmdit), base, atol=0.1)
    assert [name for name, _ in mmdit.named_modules()] == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in mmdit.state_dict().items())
    network.set_enabled(False)
    torch.testing.assert_close(predict(mmdit), base)
    network.set_enabled(True)
    network.set_multiplier(0)
    torch.testing.assert_close(predict(mmdit), base)
    network.detach_all()
    assert torch.equal(predict(mmdit), base)


def test_every_adapter_gets_gradients_and_the_model_none(mmdit, predict, fill):
    network = fill(create(mmdit, emb_dims="2,2,2,2,2,2", split_qkv="True"))
    network.apply_to([], mmdit)
    network.prepare_optimizer_params(None, 1e-4, None)
    predict(mmdit).square().sum().backward()
    idle = {name for name, p in network.named_parameters() if not p.grad.any()}
    last = "lora_unet_joint_blocks_2_context_block_attn_qkv"  # the last block's context asks for nothing
    assert idle == {f"{last}.lora_down.0.weight", f"{last}.lora_up.0.weight"}
    assert all(p.grad is None for p in mmdit.parameters())


def test_checkpointing_changes_no_gradient(mmdit, predict, fill):
    network = fill(create(mmdit, rank_dropout="0.2", dropout="0.1", module_dropout="0.1")).train()
    network.apply_to([], mmdit)
    grads = []
    for mmdit.gradient_checkpointing in (False, True):
        torch.manual_seed(1)
        network.zero_grad()
        predict(mmdit).square().sum().backward()
        grads.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*grads)


def test_same_seed_same_start(mmdit):
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(create(mmdit).saved_state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    given = create(mmdit, generator=torch.Generator().manual_seed(7)).saved_state()
    assert all(torch.equal(states[0][key], given[key]) for key in given)


# Optimizer groups


def test_groups_and_their_learning_rates(mmdit):
    network = create(mmdit, [clip(), clip(), t5()], train_t5xxl="True")
    groups, names = network.prepare_optimizer_params_with_multiple_te_lrs([1e-5, 2e-5], 1e-4, 1e-3)
    assert names == ["textencoder 1", "textencoder 2", "textencoder 3", "unet"]
    assert [group["lr"] for group in groups] == [1e-5, 2e-5, 2e-5, 1e-4]
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


@pytest.mark.parametrize("rates", [None, [], 1e-3, [1e-3]])
def test_one_rate_or_the_default_is_for_all_encoders(mmdit, rates):
    groups, _ = create(mmdit, [clip(), clip()]).prepare_optimizer_params(rates, None, 1e-3)
    assert [group["lr"] for group in groups] == [1e-3] * 3


def test_rate_0_has_no_group_and_no_gradient_but_acts_and_is_saved(mmdit, predict, fill):
    encoders = [clip(), clip()]
    network = fill(create(mmdit, encoders))
    ids = torch.arange(6)[None]
    before = [encoder(ids)[0] for encoder in encoders]
    network.apply_to(encoders, mmdit)
    groups, names = network.prepare_optimizer_params([0, 1e-5], 1e-4, 1e-3)
    assert names == ["textencoder 2", "unet"]
    assert not torch.allclose(encoders[0](ids)[0], before[0])
    assert "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha" in network.saved_state()
    trained = {id(p) for group in groups for p in group["params"]}
    assert {id(p) for p in network.get_trainable_params()} == trained
    assert len(trained) < len(list(network.parameters()))


def test_loraplus_groups(mmdit):
    args = {"loraplus_lr_ratio": "4", "loraplus_text_encoder_lr_ratio": "8"}
    network = create(mmdit, [clip()], split_qkv="True", **args)
    groups, names = network.prepare_optimizer_params(1e-5, 1e-4)
    assert names == ["textencoder 1", "textencoder 1 plus", "unet", "unet plus"]
    assert [group["lr"] for group in groups] == pytest.approx([1e-5, 8e-5, 1e-4, 4e-4])
    ups = {id(p) for name, p in network.named_parameters() if "lora_up" in name}
    assert {id(p) for group in (groups[1], groups[3]) for p in group["params"]} == ups


# Files


def test_saved_file_loads_and_acts_the_same(mmdit, predict, fill, tmp_path):
    network = fill(create(mmdit, alpha=2.0, emb_dims="2,3,1,0,2,2", x_attn_dim="6"))
    network.apply_to([], mmdit)
    trained = predict(mmdit)
    network.save_weights(tmp_path / "lora.safetensors", None, {"ss_network_dim": "4"})
    network.detach_all()
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        assert file.metadata()["ss_network_dim"] == "4"

    loaded, _ = lora_sd3.create_network_from_weights(1.0, str(tmp_path / "lora.safetensors"), None, [], mmdit)
    loaded.apply_to([], mmdit)
    assert torch.equal(predict(mmdit), trained)
    loaded.detach_all()

    again = create(mmdit, alpha=2.0, emb_dims="2,3,1,0,2,2", x_attn_dim="6")
    assert again.load_weights(tmp_path / "lora.safetensors").startswith(f"{len(names(again))} modules loaded")
    again.apply_to([], mmdit)
    assert torch.equal(predict(mmdit), trained)


def test_half_precision_file_keeps_the_strength(mmdit, fill):
    state = fill(create(mmdit, alpha=0.3)).saved_state(torch.bfloat16)
    assert {tensor.dtype for key, tensor in state.items() if not key.endswith(".alpha")} == {torch.bfloat16}
    alpha = next(tensor for key, tensor in state.items() if key.endswith(".alpha"))
    assert alpha == torch.tensor(0.3)


def test_split_network_acts_the_same_after_reload(mmdit, predict, fill, tmp_path):
    network = fill(create(mmdit, split_qkv="True", rank_dropout="0.1")).eval()
    network.apply_to([], mmdit)
    trained = predict(mmdit)
    network.save_weights(tmp_path / "lora.safetensors")
    network.detach_all()
    for reload in (
        lambda path: lora_sd3.create_network_from_weights(1.0, path, None, [], mmdit)[0],
        lambda path: (again := create(mmdit, split_qkv="True"), again.load_weights(path))[0],
    ):
        again = reload(str(tmp_path / "lora.safetensors"))
        again.apply_to([], mmdit)
        torch.testing.assert_close(predict(mmdit), trained, atol=1e-5, rtol=1e-5)
        again.detach_all()


def test_merged_equals_applied(mmdit, predict, fill):
    source = fill(create(mmdit, emb_dims="2,2,2,2,2,2", split_qkv="True")).saved_state()
    network, weights = lora_sd3.create_network_from_weights(
        0.5, None, None, [], mmdit, weights_sd=source, for_inference=True
    )
    assert network.is_mergeable()
    assert not network.get_trainable_params()
    network.apply_to([], mmdit)
    applied = predict(mmdit)
    network.detach_all()
    network.merge_to([], mmdit, weights, torch.float32, "cpu")
    torch.testing.assert_close(predict(mmdit), applied, atol=1e-4, rtol=1e-4)


def test_missing_alpha_is_the_rank(mmdit, fill):
    state = {key: t for key, t in fill(create(mmdit)).saved_state().items() if not key.endswith(".alpha")}
    network, _ = lora_sd3.create_network_from_weights(1.0, None, None, [], mmdit, weights_sd=state)
    assert {(adapter.rank, adapter.scale) for adapter in network.adapters()} == {(4, 1.0)}


def test_encoders_in_a_file(mmdit, fill):
    encoders = [clip(), clip(), t5()]
    state = fill(create(mmdit, encoders, train_t5xxl="True")).saved_state()
    network, _ = lora_sd3.create_network_from_weights(1.0, None, None, encoders, mmdit, weights_sd=state)
    assert network.saved_state().keys() == state.keys()
    with pytest.raises(CheckpointError, match=r"7 of its .* neither in the model nor in a loaded text encoder"):
        lora_sd3.create_network_from_weights(1.0, None, None, encoders[:2], mmdit, weights_sd=state)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dim": 8}, "rank 4 in the file and 8 here.*--dim_from_weights"),
        ({"alpha": 2.0}, "alpha 1 in the file and 2 here"),
        ({"train_block_indices": "0,1"}, "7 of its modules are not in the network"),
        ({"emb_dims": "1,1,1,1,1,1"}, "8 modules of the network are not in it"),
        ({"split_qkv": "True", "dim": 2, "alpha": 0.5}, "rank 4 in the file and 2 here"),
    ],
)
def test_a_file_of_other_arguments_is_refused(mmdit, changed, message):
    state = create(mmdit).saved_state()
    with pytest.raises(CheckpointError, match=message):
        create(mmdit, **changed).load_saved_state(state, "lora.safetensors")


def test_a_mixed_file_does_not_go_into_parts(mmdit, fill):
    state = fill(create(mmdit, dim=6, alpha=3.0)).saved_state()
    network = create(mmdit, dim=2, alpha=1.0, split_qkv="True", x_mlp_dim="6", context_mlp_dim="6")
    with pytest.raises(CheckpointError, match="split_qkv cannot hold"):
        network.load_saved_state(state, "lora.safetensors")


def test_a_lora_for_another_size_is_refused(mmdit):
    from dataclasses import replace

    wider = MMDiT(replace(mmdit.config, num_heads=4))
    state = create(wider).saved_state()
    with pytest.raises(CheckpointError, match="another size of model"):
        create(mmdit).load_saved_state(state, "lora.safetensors")
    with pytest.raises(CheckpointError, match="another size of model"):
        lora_sd3.create_network_from_weights(1.0, "lora.safetensors", None, [], mmdit, weights_sd=state)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_input_blocks_1_1_proj_in", "a LoRA for SDXL, the network is a LoRA for SD3"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "a LoRA for SD1 or SD2"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "a LoRA for FLUX"),
    ],
)
def test_a_lora_of_another_family_is_named(mmdit, key, message):
    state = {f"{key}.lora_down.weight": torch.zeros(4, 8), f"{key}.lora_up.weight": torch.zeros(8, 4)}
    with pytest.raises(CheckpointError, match=message):
        create(mmdit).load_saved_state(state, "lora.safetensors")
    with pytest.raises(CheckpointError, match=message.partition(",")[0]):
        lora_sd3.create_network_from_weights(1.0, "lora.safetensors", None, [], mmdit, weights_sd=state)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lokr_w1", "a LoKr.*lycoris.kohya"),
        (
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
            "layout of diffusers.*convert_lora.py .* --to kohya",
        ),
        ("model.diffusion_model.x_embedder.proj.weight", "a whole checkpoint"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", "a LoRA for SD3"),  # its other half is missing
        ("weight", "no LoRA that is known here"),
    ],
)
def test_files_that_hold_no_complete_lora(mmdit, key, message):
    with pytest.raises(CheckpointError, match=message):
        create(mmdit).load_saved_state({key: torch.zeros(4, 8)}, "lora.safetensors")


def test_missing_and_unwritable_files(mmdit, tmp_path):
    network = create(mmdit)
    with pytest.raises(CheckpointError, match="does not exist"):
        network.load_weights(tmp_path / "no.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        network.save_weights(tmp_path / "file" / "lora.safetensors")


# Norms


def test_max_norm_leaves_small_changes_alone(mmdit, fill):
    network = fill(create(mmdit, split_qkv="True", emb_dims="2,2,2,2,2,2"))
    before = {adapter.name: adapter.norm().item() for adapter in network.adapters()}
    limit = sorted(before.values())[len(before) // 2]
    told = network.apply_max_norm_regularization(limit, "cpu")
    assert all(isinstance(number, torch.Tensor) and number.ndim == 0 for number in told)  # reading them may wait
    scaled, mean, greatest = (number.item() for number in told)
    after = {adapter.name: adapter.norm().item() for adapter in network.adapters()}
    assert scaled == sum(norm > limit for norm in before.values())
    assert greatest == pytest.approx(limit)
    assert all(after[name] == pytest.approx(min(norm, limit), rel=1e-4) for name, norm in before.items())
    assert mean == pytest.approx(sum(max(norm, limit / 2) for norm in after.values()) / len(after), rel=1e-4)
