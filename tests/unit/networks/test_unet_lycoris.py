"""lycoris.kohya from the lycoris-lora package: it finds the layers of our U-Net and writes names that readers know."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from library.errors import CheckpointError
from library.models.unet import UNet
from library.training.network_tensors import load_network_tensors, network_tensors
from networks.base_networks import merge_base_network, module_of_file
from networks.targets import adapter_name
from networks.unet_layers import DENOISER
from tests.tiny_unets import unet_settings

lycoris = pytest.importorskip("lycoris")

OUT, IN, RANK, ALPHA = 8, 12, 2, 1.0


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    settings = unet_settings("sdxl") | {"transformer_layers_per_block": 1}
    return UNet(**settings).requires_grad_(False)


def make_clip():
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPTextModelWithProjection(CLIPTextConfig(**sizes, vocab_size=50)).requires_grad_(False)


def predict(unet):
    added = {"text_embeds": torch.ones(1, 48), "time_ids": torch.full((1, 6), 64.0)}
    latents, context = torch.ones(1, 4, 8, 8), torch.ones(1, 5, unet.config.cross_attention_dim)
    return unet(latents, torch.tensor([500.0]), context, added_cond_kwargs=added, return_dict=False)[0]


def test_a_locon_trains_writes_diffusers_names_and_goes_on_from_its_file(unet, tmp_path):
    module = importlib.import_module("lycoris.kohya")
    encoders, base = [make_clip(), make_clip()], predict(unet)
    args = {"algo": "locon", "conv_dim": "2", "conv_alpha": "1"}
    path = tmp_path / "locon.safetensors"

    def attached():
        network = module.create_network(1.0, 2, 1.0, None, encoders, unet, neuron_dropout=None, **args)
        network.apply_to(encoders, unet, True, True)
        return network

    network = attached()
    predict(unet).square().mean().backward()
    grads = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    torch.optim.SGD(network.parameters(), lr=1.0).step()
    trained = predict(unet)
    network.save_weights(str(path), None, {})
    network.restore()
    assert (trained - base).abs().max() > 1e-3

    again = attached()
    assert torch.equal(predict(unet), base)
    assert not again.load_weights(str(path))  # nothing is missing or left over
    assert torch.equal(predict(unet), trained)
    again.restore()

    names = {key.partition(".")[0] for key in network.state_dict()}
    layers = {name for name, m in unet.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
    of_unet = {name for name in names if name.startswith("lora_unet_")}
    assert of_unet <= {adapter_name(DENOISER.prefix, name) for name in layers}
    assert {"lora_unet_down_blocks_1_attentions_0_proj_in", "lora_unet_down_blocks_0_resnets_0_conv1"} <= of_unet
    assert of_unet == grads
    of_text = {name for name in names if name.startswith("lora_te")}
    assert {name.split("_encoder")[0] for name in of_text} == {"lora_te1_text_model", "lora_te2_text_model"}
    assert torch.equal(predict(unet), base)


def test_full_differences_take_the_weights_of_layers_and_the_model_goes_on(unet):
    base = predict(unet)
    network = importlib.import_module("lycoris.kohya").create_network(1.0, 2, 1.0, None, [], unet, algo="full")
    network.apply_to([], unet, False, True)
    assert not hasattr(unet.conv_in, "weight")
    adapted = predict(unet)
    network.restore()
    assert torch.equal(adapted, base)


# States of runs


@pytest.mark.parametrize("algo", ["dylora", "full", "loha"])
def test_a_state_puts_back_every_bit(algo):
    torch.manual_seed(0)
    made, again = network_of(algo), network_of(algo)
    for tensor in (*made.parameters(), *made.buffers()):
        tensor.detach().add_(torch.rand(tensor.shape) * 0.3 if tensor.is_floating_point() else 0)
    load_network_tensors(again, {name: tensor.clone() for name, tensor in network_tensors(made).items()})
    assert all(map(torch.equal, (*made.parameters(), *made.buffers()), (*again.parameters(), *again.buffers())))


def network_of(algo):
    model = Transformer2DModel()
    network = importlib.import_module("lycoris.kohya").create_network(
        1.0, 2, 1.0, None, [], nn.ModuleDict({"a": model}), algo=algo, block_size="1"
    )
    network.apply_to([], model, False, True)
    assert len(list(network.parameters())) > 1
    return network


class Transformer2DModel(nn.Module):
    """One that is known by its name."""

    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(IN, OUT)


# Merged by --base_weights, at the strength that the spec of LoRA files says (section 7)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"block": nn.ModuleDict({"to_q": nn.Linear(IN, OUT)})}).requires_grad_(False)


def draw(*shape):
    return torch.randn(shape)


def loha():
    """(tensors of a file, change of the weight)"""
    first, second = (draw(OUT, RANK), draw(RANK, IN)), (draw(OUT, RANK), draw(RANK, IN))
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    return dict(zip(names, (*first, *second), strict=True)), (first[0] @ first[1]) * (second[0] @ second[1]) * 0.5


def lokr():
    outer, low = draw(2, 2), (draw(OUT // 2, RANK), draw(RANK, IN // 2))
    tensors = {"lokr_w1": outer, "lokr_w2_a": low[0], "lokr_w2_b": low[1]}
    return tensors, torch.kron(outer, low[0] @ low[1]) * 0.5


def lokr_of_two_products():
    outer, inner = (draw(2, 1), draw(1, 3)), (draw(4, 1), draw(1, 4))
    names, values = ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"), (*outer, *inner)
    tensors = dict(zip(names, values, strict=True)) | {"alpha": torch.tensor(0.25)}
    return tensors, torch.kron(outer[0] @ outer[1], inner[0] @ inner[1]) * 0.25


def loha_without_alpha():
    tensors, change = loha()
    return tensors | {"alpha": torch.tensor(0.0)}, change * 2


def full():
    diff = draw(OUT, IN)
    return {"diff": diff}, diff


def merge(model, tensors, multiplier):
    module = module_of_file(tensors, importlib.import_module("lycoris.kohya"))
    merge_base_network(module, Path("a"), tensors, multiplier, [], model, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("multiplier", [1.0, -0.5])
@pytest.mark.parametrize("make", [loha, loha_without_alpha, lokr, lokr_of_two_products, full])
def test_files_of_lycoris_are_merged_at_their_strength(make, multiplier, model):
    tensors, change = make()
    before = model["block"]["to_q"].weight.clone()
    named = {
        f"lora_unet_block_to_q.{end}": tensor for end, tensor in ({"alpha": torch.tensor(ALPHA)} | tensors).items()
    }
    merge(model, named, multiplier)
    torch.testing.assert_close(model["block"]["to_q"].weight, before + multiplier * change)


def test_what_has_no_layer_is_refused(model):
    tensors = {f"lora_unet_{name}.{end}": t for name in ("block_to_q", "block_to_k") for end, t in loha()[0].items()}
    tensors |= {f"lora_unet_{name}.alpha": torch.tensor(ALPHA) for name in ("block_to_q", "block_to_k")}
    with pytest.raises(CheckpointError, match=r"finds no layer for 1 of its 2 modules \(lora_unet_block_to_k\)"):
        merge(model, tensors, 1.0)


def test_files_of_ours_are_for_our_modules():
    training = importlib.import_module("networks.oft")
    keys = [f"lora_unet_a.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")]
    assert module_of_file(keys, training).__name__ == "networks.lora"
    assert (
        module_of_file(["oft_unet_a.oft_blocks", "oft_unet_a.alpha"], importlib.import_module("networks.lora"))
        is training
    )
    assert module_of_file([*keys, "lora_unet_a.dora_scale"], training) is training
    assert module_of_file([], training) is training
