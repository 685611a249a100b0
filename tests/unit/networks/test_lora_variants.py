"""networks.lora_fa and networks.dylora: networks.lora with other adapters."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from library.errors import OptionError
from networks import dylora, lora, lora_fa

VARIANTS = {"lora_fa": lora_fa, "dylora": dylora}
CONV = {"conv_dim": "4", "conv_alpha": "3"}


@pytest.fixture(params=["sd1", "sdxl"])
def kind(request):
    return request.param


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def encoders_of(kind):
    torch.manual_seed(1)
    sizes = {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    number = 2 if kind == "sdxl" else 1
    return [CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=8, **sizes)) for _ in range(number)]


def fill(network):
    """Values that change the output."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * (0.1 if "up" in name else 0.3))
    return network


@pytest.fixture
def create(small_unets):
    """Makes networks, which come off afterwards."""
    made = []

    def run(module, kind, encoders=(), dim=4, alpha=2.0, **args):
        made.append(fill(module.create_network(1.0, dim, alpha, None, list(encoders), small_unets[kind], **args)))
        return made[-1]

    yield run
    for network in made:
        network.detach_all()


def test_file_has_the_keys_and_shapes_of_a_lora(variant, kind, create):
    encoders = encoders_of(kind)
    own, plain = (create(module, kind, encoders, **CONV).saved_state() for module in (variant, lora))
    assert {key: t.shape for key, t in own.items()} == {key: t.shape for key, t in plain.items()}
    starts = {key.split("text_model")[0] for key in own if "text_model" in key}
    assert starts == ({"lora_te1_", "lora_te2_"} if kind == "sdxl" else {"lora_te_"})


def test_saved_file_acts_the_same_as_a_lora_loaded_and_merged(variant, create, small_unets, tmp_path, predict_unet):
    kind, unet = "sdxl", small_unets["sdxl"]
    base = predict_unet(kind)
    network = create(variant, kind, **CONV).eval()
    network.apply_to([], unet, False, True)
    changed = predict_unet(kind)
    assert (changed - base).abs().max() > 0.05
    network.set_enabled(False)
    assert torch.equal(predict_unet(kind), base)
    network.detach_all()

    network.save_weights(tmp_path / "file.safetensors")
    for module in (lora, variant):
        again, _ = module.create_network_from_weights(1.0, str(tmp_path / "file.safetensors"), None, [], unet)
        again.eval().apply_to([], unet, False, True)
        torch.testing.assert_close(predict_unet(kind), changed)
        again.detach_all()

    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    network.merge_to([], unet, load_file(tmp_path / "file.safetensors"))
    torch.testing.assert_close(predict_unet(kind), changed, atol=1e-4, rtol=1e-4)
    unet.load_state_dict(before)


def test_file_without_alpha_is_read(variant, create, tmp_path):
    network = create(variant, "sd1", alpha=4.0)
    kept = {key: tensor for key, tensor in network.saved_state().items() if not key.endswith(".alpha")}
    save_file(kept, tmp_path / "file.safetensors")
    again = create(variant, "sd1", alpha=4.0)
    assert again.load_weights(tmp_path / "file.safetensors").startswith("72 modules")


def test_lora_fa_trains_up_only(create, small_unets, predict_unet):
    network = create(lora_fa, "sd1", encoders_of("sd1"))
    network.apply_to([], small_unets["sd1"])
    groups, names = network.prepare_optimizer_params([1e-3], 1e-2, None)
    assert names == ["textencoder", "unet"]
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    assert trained == {id(adapter.lora_up.weight) for adapter in network.adapters()}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.AdamW(groups)
    predict_unet("sd1").square().mean().backward()
    optimizer.step()
    same = {name for name, tensor in network.state_dict().items() if torch.equal(tensor, before[name])}
    assert same == {name for name in before if "lora_down" in name or name.startswith("lora_te")}


def test_dylora_with_a_unit_of_the_whole_rank_trains_as_lora(create, small_unets, predict_unet):
    gradients = []
    for module, args in ((lora, {}), (dylora, {"unit": "4"})):
        network = create(module, "sd1", **CONV, **args).train()
        network.apply_to([], small_unets["sd1"], False, True)
        predict_unet("sd1").square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
        network.detach_all()
    torch.testing.assert_close(gradients[1], gradients[0])


def test_dylora_draws_in_each_layer_and_follows_the_seed(create, small_unets, predict_unet):
    network = create(dylora, "sd1", unit="2").train()
    network.apply_to([], small_unets["sd1"], False, True)
    ranks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        network.zero_grad()
        predict_unet("sd1").square().mean().backward()
        rows = [adapter.lora_down.weight.grad.flatten(1).abs().amax(1) > 0 for adapter in network.adapters()]
        ranks.append([torch.nonzero(row).flatten().tolist() for row in rows])
    assert ranks[0] == ranks[1] != ranks[2]
    assert {tuple(rank) for rank in ranks[0]} == {(0, 1), (2, 3)}


def test_dylora_gives_convolutions_the_same_alpha(create):
    def alphas(**args):
        return {adapter.alpha for adapter in create(dylora, "sd1", conv_dim="2", **args).adapters()}

    assert alphas() == {2.0}
    assert alphas(conv_alpha="1") == {2.0, 1.0}


def test_norms_can_be_limited(variant, create):
    network = create(variant, "sd1")
    scaled, _, largest = network.apply_max_norm_regularization(0.2)
    assert scaled > 0 and largest <= 0.2 * 1.001
    assert max(adapter.norm() for adapter in network.adapters()) <= 0.2 * 1.001


REFUSED = {
    "loraplus_lr_ratio": (lora_fa, "4", "set the learning rate itself"),
    "loraplus_unet_lr_ratio": (lora_fa, "4", "set the learning rate itself"),
    "dropout": (dylora, "0.1", r"dropout \(--network_dropout\).*leave ranks out"),
    "rank_dropout": (dylora, "0.1", "leave ranks out"),
    "module_dropout": (dylora, "0.1", "leave ranks out"),
    "split_qkv": (dylora, "True", "not made of parts"),
    "unit": (dylora, "3", r"unit=3: must divide every rank, and --network_dim is 4\."),
    "conv_dim": (dylora, "5", r"unit=2: must divide every rank, and conv_dim is 5\."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_there_is_refused_by_name(name, small_unets, outline):
    module, value, message = REFUSED[name]
    args = {name: value, **({"unit": "2"} if name == "conv_dim" else {})}
    with pytest.raises(OptionError, match=message):
        module.check_network_args(args, model=outline("sdxl"), network_dim=4)
    if name not in ("conv_dim", "unit"):
        with pytest.raises(OptionError, match=message):
            module.create_network(1.0, 4, 1.0, None, [], small_unets["sdxl"], **args)


def test_wrong_units_and_network_dropout_are_refused(small_unets):
    for value in ("0", "x", "-1"):
        with pytest.raises(OptionError, match=f"unit={value}: must be a number of ranks, 1 or more"):
            dylora.check_network_args({"unit": value})
    with pytest.raises(OptionError, match="--network_dropout"):
        dylora.create_network(1.0, 4, 1.0, None, [], small_unets["sd1"], 0.1)
    with pytest.raises(OptionError, match="the rank of lora_unet_.* is 4"):
        dylora.create_network(1.0, 4, 1.0, None, [], small_unets["sd1"], unit="3")


def test_check_knows_ranks_in_lists(outline):
    model = outline("sdxl")
    good = ",".join(["4"] * 23)
    assert dylora.check_network_args({"unit": "2", "block_dims": good}, model=model, network_dim=4).block_dims
    for args in ({"block_dims": good[:-1] + "3"}, {"network_reg_dims": "attn1=3"}):
        with pytest.raises(OptionError, match=r"must divide every rank, and \w+ is 3"):
            dylora.check_network_args({"unit": "2", **args}, model=model, network_dim=4)


def test_sd3_has_both(variant, mmdit, predict, tmp_path):
    base = predict(mmdit)
    network = fill(variant.create_network(1.0, 4, 1.0, None, [], mmdit)).eval()
    network.apply_to([], mmdit, False, True)
    changed = predict(mmdit)
    network.detach_all()
    network.save_weights(tmp_path / "file.safetensors")
    again, _ = lora.create_network_from_weights(1.0, str(tmp_path / "file.safetensors"), None, [], mmdit)
    again.apply_to([], mmdit, False, True)
    torch.testing.assert_close(predict(mmdit), changed)
    assert (changed - base).abs().max() > 0.01
