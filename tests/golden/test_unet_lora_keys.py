"""Keys and shapes of saved LoRA files of SD1, SD2 and SDXL equal the reference lists; see data/SOURCES.d/networks.md.

But for one spelling: SD2's projections around the attention are linear layers, in published files and in diffusers,
which refuses other shapes. The reference trainer has them as convolutions of one pixel and so saves [4, 320, 1, 1] for
[4, 320].
"""

import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from library.models.unet import UNet, unet_config
from networks import lora
from networks.targets import ModelOutline, adapter_name
from networks.unet_layers import DENOISER, UnetNames
from networks.unet_targets import plan_denoiser

DATA = Path(__file__).parent / "data"
FAMILIES = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}
ENCODERS = {"sd15": [(12, 12)], "sd21": [(16, 23)], "sdxl": [(12, 12), (20, 32)]}  # heads and layers
KEYS = {name: json.loads(gzip.decompress((DATA / f"lora_keys_{name}.json.gz").read_bytes())) for name in FAMILIES}
CASES = [(model, variant) for model in FAMILIES for variant in KEYS[model]["variants"]]


@pytest.fixture(scope="module")
def models():
    """U-Nets and text encoders in full size, without weights."""
    made = {}
    for name, encoders in ENCODERS.items():
        table = json.loads(gzip.decompress((DATA / "state_dicts" / f"diffusers_{name}_unet.json.gz").read_bytes()))
        shapes = {key: tuple(shape) for key, (shape, _) in table["tensors"].items()}
        with torch.device("meta"):
            made[name] = UNet(**unet_config(shapes)), [clip(*sizes) for sizes in encoders]
    return made


def clip(heads, depth):
    sizes = {"hidden_size": 64 * heads, "intermediate_size": 256 * heads, "num_attention_heads": heads}
    return CLIPTextModelWithProjection(CLIPTextConfig(**sizes, num_hidden_layers=depth))


@pytest.mark.parametrize(("model", "variant"), CASES)
def test_saved_keys_and_shapes(model, variant, models):
    case = KEYS[model]["variants"][variant]
    unet, encoders = models[model]
    dim, alpha, args = case["network_dim"], case["network_alpha"], case["network_args"]
    network = lora.create_network(1.0, dim, alpha, None, encoders, unet, **args)
    saved = as_reference_spells(model, shapes(network))

    assert len(list(network.adapters())) == case["modules"]
    assert sorted([key, list(shape)] for key, shape in saved.items()) == case["keys"]
    lines = "\n".join(f"{key} {'x'.join(map(str, saved[key]))}" for key in sorted(saved))
    assert hashlib.sha256(lines.encode()).hexdigest() == case["sha256_of_key_space_shape_lines"]
    assert sum(parameter.numel() for parameter in network.parameters()) == case["parameters"]


@pytest.mark.parametrize(("model", "variant"), CASES)
def test_what_is_known_before_weights_are_read_agrees(model, variant, models):
    case = KEYS[model]["variants"][variant]
    outline = outline_of(FAMILIES[model], models[model][0])
    shared = {"model": outline, "network_dim": case["network_dim"]}
    args = lora.check_network_args(case["network_args"], **shared)
    planned = plan_denoiser(UnetNames.of_outline(outline), args, case["network_dim"] or 4, case["network_alpha"])
    keys = {key: tuple(shape) for key, shape in case["keys"]}
    downs = {key.removesuffix(".lora_down.weight"): shape[0] for key, shape in keys.items() if "lora_down" in key}
    assert {adapter_name(DENOISER.prefix, plan.name): plan.rank for plan in planned} == {
        name: rank for name, rank in downs.items() if name.startswith("lora_unet_")
    }
    lora.check_network_file(keys, "--network_weights a.safetensors", args=args, **shared)


def outline_of(family, unet):
    names = UnetNames.of_model(family, layers := unet_layers(unet))
    shapes = dict(zip(names.published, layers.values(), strict=True))
    return ModelOutline(family, shapes, depth=len(unet.block_row()))


def unet_layers(unet):
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {name: tuple(layer.weight.shape) for name, layer in unet.named_modules() if isinstance(layer, kinds)}


def as_reference_spells(model, saved):
    if model != "sd21":
        return saved
    around = re.compile(r"lora_unet_.*_attentions_\d_proj_(in|out)\.lora")
    return {key: (*shape, 1, 1) if around.match(key) else shape for key, shape in saved.items()}


def shapes(network):
    """Shapes of the saved tensors; they are on the meta device and cannot be saved."""
    ends = (
        (adapter.name + end, tensor.shape) for adapter in network.adapters() for end, tensor in adapter.saved().items()
    )
    return {key: tuple(shape) for key, shape in ends}
