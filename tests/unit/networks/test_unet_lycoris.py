"""lycoris.kohya from the lycoris-lora package: it finds the layers of our U-Net and writes names that readers know."""

import importlib

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from library.models.unet import UNet
from networks.targets import adapter_name
from networks.unet_layers import DENOISER
from tests.tiny_unets import unet_settings

lycoris = pytest.importorskip("lycoris")


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
