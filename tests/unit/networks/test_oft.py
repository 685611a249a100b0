import pytest
import torch
from safetensors.torch import load_file, save_file

from library.errors import CheckpointError, OptionError
from library.unet_names import to_diffusers
from networks import lora, oft
from networks.building import layers_of
from networks.lora_unet import names_of
from networks.targets import ModelOutline


@pytest.fixture(params=["sd1", "sdxl"])
def kind(request):
    return request.param


@pytest.fixture
def create(small_unets):
    """Makes networks with values, which come off afterwards."""
    made = []

    def run(kind, dim=4, alpha=0.1, **args):
        made.append(oft.create_network(1.0, dim, alpha, None, [], small_unets[kind], **args))
        draw = torch.Generator().manual_seed(3)
        for parameter in made[-1].parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=draw)
        return made[-1]

    yield run
    for network in made:
        network.detach_all()


def names(network):
    return {adapter.name for adapter in network.adapters()}


def as_oft(network):
    return {adapter.name.replace("lora_unet", "oft_unet") for adapter in network.adapters() if "unet" in adapter.name}


def test_layers_are_those_of_attention_and_more_on_request(kind, create, small_unets):
    plain = as_oft(lora.create_network(1.0, 4, 1.0, None, [], small_unets[kind]))
    conv = as_oft(lora.create_network(1.0, 4, 1.0, None, [], small_unets[kind], conv_dim="4"))
    attention = {name for name in plain if "_attn1_" in name or "_attn2_" in name}
    assert names(create(kind)) == names(create(kind, enable_all_linear="False", enable_conv="False")) == attention
    assert names(create(kind, enable_all_linear="True")) == plain
    assert names(create(kind, enable_conv="True")) == attention | (conv - plain)
    assert names(create(kind, enable_all_linear="True", enable_conv="True")) == conv
    assert ("oft_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0" in attention) == (kind == "sdxl")


def test_file_has_blocks_and_limits(create):
    saved = create("sd1", dim=2).saved_state(torch.float16)
    name = "oft_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
    assert saved[f"{name}.oft_blocks"].shape == (2, 32, 32) and saved[f"{name}.oft_blocks"].dtype == torch.float16
    assert saved[f"{name}.alpha"].item() == pytest.approx(0.1) and saved[f"{name}.alpha"].dtype == torch.float32
    assert {key.split(".", 1)[1] for key in saved} == {"oft_blocks", "alpha"}


def test_new_network_changes_nothing(kind, create, small_unets, predict_unet):
    base = predict_unet(kind)
    network = create(kind)
    network.reset()
    network.apply_to([], small_unets[kind], False, True)
    assert torch.equal(predict_unet(kind), base)


def test_saved_file_acts_the_same_loaded_and_merged(kind, create, small_unets, tmp_path, predict_unet):
    unet, path = small_unets[kind], tmp_path / "file.safetensors"
    base = predict_unet(kind)
    network = create(kind, enable_all_linear="True", enable_conv="True")
    network.apply_to([], unet)
    changed = predict_unet(kind)
    assert (changed - base).abs().max() > 0.05
    network.set_multiplier(0.5)
    half = predict_unet(kind)
    network.set_enabled(False)
    assert torch.equal(predict_unet(kind), base) and not torch.allclose(half, changed, atol=1e-3)
    network.detach_all()

    network.save_weights(path)
    again, content = oft.create_network_from_weights(0.5, str(path), None, None, unet, for_inference=True)
    assert names(again) == names(network) and not any(p.requires_grad for p in again.parameters())
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    again.merge_to([], unet, content)
    torch.testing.assert_close(predict_unet(kind), half, atol=1e-4, rtol=1e-4)
    unet.load_state_dict(before)

    third = create(kind, enable_all_linear="True", enable_conv="True")
    assert third.load_weights(path) == f"{len(names(network))} modules loaded from {path}"
    third.apply_to([], unet)
    assert torch.equal(predict_unet(kind), changed)


def test_names_of_the_other_layout_are_read(create, small_unets, tmp_path):
    network = create("sdxl")
    published = names_of(layers_of(small_unets["sdxl"])).published
    others = {name.replace(".", "_"): other.replace(".", "_") for name, other in to_diffusers(published).items()}
    renamed = {}
    for key, tensor in network.saved_state().items():
        name, _, end = key.removeprefix("oft_unet_").partition(".")
        renamed[f"oft_unet_{others[name]}.{end}"] = tensor
    save_file(renamed, tmp_path / "file.safetensors")
    again = create("sdxl")
    again.load_weights(tmp_path / "file.safetensors")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in network.state_dict().items())


def test_groups_train_at_the_rate_of_the_unet(create, small_unets, predict_unet):
    network = create("sd1")
    network.apply_to([], small_unets["sd1"])
    (group,), described = network.prepare_optimizer_params([1e-3], 1e-2, None)
    assert described == ["unet"] and group["lr"] == 1e-2 and len(group["params"]) == len(names(network))
    predict_unet("sd1").square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in group["params"])


# What is refused


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ({"enable_conv": "yes"}, {}, "enable_conv=yes: must be True or False"),
        ({"enable_con": "True"}, {}, "did you mean enable_conv"),
        ({"dropout": "0.1"}, {}, "--network_dropout has no place"),
        ({}, {"network_dim": 5}, r"--network_dim 5: .* has 32 \(\d+ layers do not divide\)"),
        ({}, {"network_dim": 0}, "at least 1"),
        ({}, {"trains_denoiser": False}, "trains the U-Net only"),
    ],
)
def test_wrong_arguments_are_told_before_weights_are_read(args, options, message, outline):
    with pytest.raises(OptionError, match=message):
        oft.check_network_args(args, model=outline("sd1"), **options)


def test_other_families_are_refused(mmdit):
    with pytest.raises(OptionError, match="Use networks.lora for others"):
        oft.create_network(1.0, 4, 0.1, None, [], mmdit)
    with pytest.raises(OptionError, match="Use networks.lora for others"):
        oft.check_network_args({}, model=ModelOutline("sd3", {}, 3))
    with pytest.raises(CheckpointError, match=r"^--base_weights a is an OFT network, .* the model is SD3\. Leave"):
        shapes = {"oft_unet_a.oft_blocks": (2, 2, 2)}
        oft.check_network_file(shapes, "--base_weights a", model=ModelOutline("sd3", {}, 3))


def test_dropout_wrong_groups_and_norms_are_refused(create, small_unets):
    with pytest.raises(OptionError, match="--network_dropout"):
        oft.create_network(1.0, 4, 0.1, None, [], small_unets["sd1"], 0.2)
    with pytest.raises(OptionError, match="Give a divisor"):
        oft.create_network(1.0, 3, 0.1, None, [], small_unets["sd1"])
    with pytest.raises(OptionError, match="--scale_weight_norms"):
        create("sd1").apply_max_norm_regularization(1.0)


def test_text_encoders_and_a_weak_limit_are_warned_of(small_unets, caplog, outline):
    oft.check_network_args({}, model=outline("sd1"))
    oft.create_network(1.0, 4, 1.0, None, [], small_unets["sd1"])
    assert "give --network_train_unet_only" in caplog.text and "--network_alpha 1:" in caplog.text
    caplog.clear()
    oft.check_network_args({}, model=outline("sd1"), trains_text_encoders=False)
    oft.create_network(1.0, 4, None, None, [], small_unets["sd1"])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def shapes_of(state):
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def test_files_that_do_not_fit_are_told_before_weights_are_read(create, small_unets, outline):
    model = outline("sd1")
    good = shapes_of(create("sd1").saved_state())
    args = oft.check_network_args({}, model=model)
    oft.check_network_file(good, "--network_weights x", model=model, args=args)
    first = next(iter(good))
    cases = {
        "a LoRA for SD1": shapes_of(lora.create_network(1.0, 4, 1.0, None, [], small_unets["sd1"]).saved_state()),
        "the model is SD1: .* have no place there": shapes_of(create("sdxl").saved_state()),
        "turns 40 outputs and the layer has 32": {**good, first: (4, 10, 10)},
        "modules of the network are not in it": {
            key: shape for key, shape in good.items() if not key.startswith(first[:-11])
        },
        "is not in the network|are not in the network": shapes_of(create("sd1", enable_conv="True").saved_state()),
        "has 2 rotations in the file and 4 here": shapes_of(create("sd1", dim=2).saved_state()),
        "oft_diag cannot be used": {**good, "oft_unet_x.oft_diag": (2, 2)},
        "lora_unet_x.* cannot be used": {"lora_unet_x.oft_blocks": (4, 8, 8)},
    }
    for message, shapes in cases.items():
        with pytest.raises(CheckpointError, match=message):
            oft.check_network_file(shapes, "--network_weights x", model=model, args=args)
    oft.check_network_file(shapes_of(create("sd1", dim=2).saved_state()), "--network_weights x", model=model)
    for name, advice in (("oft_unet_x", "networks.oft"), ("lora_unet_x", "lycoris.kohya")):
        with pytest.raises(CheckpointError, match=f"is an OFT network: .*Use --network_module={advice} for it"):
            lora.check_network_file({f"{name}.oft_blocks": (4, 8, 8)}, "--network_weights x", model=model)


def test_file_of_another_limit_is_refused_and_one_without_has_none(create, tmp_path):
    path = tmp_path / "file.safetensors"
    create("sd1", alpha=0.2).save_weights(path)
    with pytest.raises(CheckpointError, match=r"--network_alpha 0\.2, the network has 0\.1"):
        create("sd1").load_weights(path)
    save_file({key: tensor for key, tensor in load_file(path).items() if not key.endswith("alpha")}, path)
    assert create("sd1", alpha=0.0).load_weights(path).startswith("48 modules")
