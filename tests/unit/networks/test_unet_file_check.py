"""Checks of a LoRA file by its header: what a network of a U-Net has saved fits the same network, and no other."""

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from library.errors import CheckpointError
from library.models.unet import UNet
from networks import lora
from networks.targets import ModelOutline
from networks.unet_layers import UnetNames
from tests.tiny_unets import unet_settings

KINDS = ("sd1", "sd2", "sdxl")
ARGUMENTS = {
    "plain": {},
    "convolutions": {"conv_dim": "2"},
    "factors": {"up_lr_weight": "0.5", "mid_lr_weight": "0"},
    "patterns": {"network_reg_dims": "attn1=2,te._text.*mlp=3,te_text.*mlp=3"},
}


@pytest.fixture(scope="module")
def models():
    """{kind: a U-Net without weights}"""
    with torch.device("meta"):
        return {kind: UNet(**unet_settings(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def encoder():
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.device("meta"):
        return CLIPTextModelWithProjection(CLIPTextConfig(**sizes, vocab_size=50))


def outline(kind, unet):
    layers = {n: tuple(m.weight.shape) for n, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    names = UnetNames.of_model(kind, layers)
    return ModelOutline(kind, dict(zip(names.published, layers.values(), strict=True)), len(unet.block_row()))


@pytest.fixture
def saved(models, encoder):
    """Shapes in the file of a network with these arguments."""

    def build(kind, arguments=None, rank=4, number=None):
        encoders = [encoder] * (number if number is not None else 2 if kind == "sdxl" else 1)
        network = lora.create_network(1.0, rank, 1.0, None, encoders, models[kind], **(arguments or {}))
        made = (
            (adapter.name + end, tensor) for adapter in network.adapters() for end, tensor in adapter.saved().items()
        )
        return {key: tuple(tensor.shape) for key, tensor in made}

    return build


@pytest.fixture
def check(models):
    def run(kind, shapes, arguments=None, **options):
        model = outline(kind, models[kind])
        args = None if arguments is None else lora.check_network_args(arguments, model=model)
        lora.check_network_file(shapes, "--network_weights a.safetensors", model=model, args=args, depth=1, **options)

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_file_fits_the_network_that_saved_it(kind, name, saved, check):
    shapes = saved(kind, ARGUMENTS[name])
    check(kind, shapes, ARGUMENTS[name], network_dim=4)
    check(kind, shapes)


def test_a_file_of_one_half_fits_the_network_that_saved_it(saved, check):
    check("sdxl", saved("sdxl", number=0), {}, network_dim=4, trains_text_encoders=False)
    shapes = {key: shape for key, shape in saved("sdxl").items() if key.startswith("lora_te")}
    check("sdxl", shapes, {}, network_dim=4, trains_denoiser=False)


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"plain"}))
def test_a_file_of_other_arguments_is_refused(name, saved, check):
    with pytest.raises(CheckpointError, match=r"a\.safetensors does not fit.*: .*or use --dim_from_weights"):
        check("sdxl", saved("sdxl", ARGUMENTS[name]), {}, network_dim=4)


def test_a_file_of_another_rank_is_refused(saved, check):
    with pytest.raises(CheckpointError, match=r"each of the \d+ modules has rank 4 in the file and 8 here\. Set"):
        check("sd1", saved("sd1"), {}, network_dim=8)


def test_other_text_encoders_are_named(saved, check):
    with pytest.raises(CheckpointError, match="which --network_train_unet_only leaves out"):
        check("sd1", saved("sd1"), {}, network_dim=4, trains_text_encoders=False)
    with pytest.raises(CheckpointError, match="no modules for text encoders"):
        check("sd1", saved("sd1", number=0), {}, network_dim=4)
    with pytest.raises(CheckpointError, match="has no lora_te2_ modules.* Use --dim_from_weights"):
        check("sdxl", saved("sdxl", number=1), {}, network_dim=4)


@pytest.mark.parametrize(("kind", "other"), [("sd1", "sdxl"), ("sdxl", "sd1"), ("sd2", "sdxl")])
def test_a_file_of_another_family_has_modules_without_a_place(kind, other, saved, check):
    with pytest.raises(CheckpointError, match=r"a LoRA for SD.*, the model is SD.* have no place there"):
        check(kind, saved(other))


def test_a_file_of_another_version_has_other_sizes(models, saved, check):
    shapes = saved("sd1", number=0)
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    for width, family in {1024: "SD2", 768: "SD1", 40: "another size of model"}.items():
        with pytest.raises(CheckpointError, match=f"a LoRA for {family}, the model is SD1: .*attn2_to_k is 32 x 32 in"):
            check("sd1", {**shapes, **{k: (4, width) for k in shapes if "attn2_to_k.lora_down" in k}, key: (4, width)})


def test_names_of_another_layout_and_convolutions_of_one_pixel_fit_too(models, saved, check):
    aliases = UnetNames.of_outline(outline("sdxl", models["sdxl"])).aliases
    theirs = {own: other for other, own in aliases.items()}
    shapes = {
        theirs[name] + dot + rest: (*shape, 1, 1) if len(shape) == 2 else shape
        for (name, dot, rest), shape in ((key.partition("."), shape) for key, shape in saved("sdxl", number=0).items())
    }
    check("sdxl", shapes, {}, network_dim=4, trains_text_encoders=False)


def test_a_file_that_is_no_lora_is_refused(check):
    for key, kind in {
        "model.diffusion_model.input_blocks.0.0.weight": "a whole checkpoint",
        "unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": "layout of diffusers.*--save_model_as=safetensors",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": "in the layout of diffusers.*convert_lora.py",
        "lora_unet_mid_block_resnets_0_conv1.lora_mid.weight": "a LoCon with a core.*lycoris.kohya",
    }.items():
        with pytest.raises(CheckpointError, match=rf"a\.safetensors is .*{kind}"):
            check("sd1", {key: (24, 8)})
