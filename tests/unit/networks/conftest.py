import pytest
import torch
from tiny_unets import unet_settings

from library.models.mmdit import MMDiT, MMDiTConfig
from library.models.unet import UNet
from networks.building import layers_of
from networks.lora_unet import names_of
from networks.targets import ModelOutline

_LEVELS = {"sd1": ["CrossAttn", ""], "sdxl": ["", "CrossAttn"]}


@pytest.fixture
def mmdit():
    """A frozen MMDiT of three blocks, the first with a second attention."""
    torch.manual_seed(0)
    config = MMDiTConfig(
        depth=3, num_heads=2, head_dim=8, in_channels=4, out_channels=4, context_dim=12, pooled_dim=10,
        frequencies=16, position_side=8, qk_norm=True, dual_attention=(0,),
    )  # fmt: skip
    return MMDiT(config).requires_grad_(False)


@pytest.fixture
def predict():
    """The output of the model above for fixed inputs of two samples."""

    def run(model, dtype=torch.float32):
        draw = torch.Generator().manual_seed(1)
        latents = torch.randn(2, 4, 6, 4, generator=draw).to(dtype)
        context = torch.randn(2, 5, 12, generator=draw).to(dtype)
        pooled = torch.randn(2, 10, generator=draw).to(dtype)
        return model(latents, torch.tensor([900.0, 100.0]), context, pooled)

    return run


@pytest.fixture
def fill():
    """Gives every adapter of a network values that change the output."""

    def run(network, seed=2):
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
        return network

    return run


@pytest.fixture(scope="session")
def small_unets():
    """A frozen U-Net of SD1 and one of SDXL, of two levels each."""
    made = {}
    for kind, levels in _LEVELS.items():
        settings = unet_settings(kind) | {
            "block_out_channels": [32, 64],
            "down_block_types": [f"{level}DownBlock2D" for level in levels],
            "up_block_types": [f"{level}UpBlock2D" for level in reversed(levels)],
        }
        if kind == "sdxl":
            settings |= {"attention_head_dim": [2, 1], "transformer_layers_per_block": [1, 1]}
        torch.manual_seed(0)
        made[kind] = UNet(**settings).requires_grad_(False).eval()
    return made


@pytest.fixture
def predict_unet(small_unets):
    """The output of one of the models above for fixed inputs of two samples."""

    def run(kind):
        draw = torch.Generator().manual_seed(2)
        latents, context = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 3, 80, generator=draw)
        unet, timesteps = small_unets[kind], torch.tensor([900.0, 100.0])
        if kind == "sd1":
            return unet(latents, timesteps, context[..., :32]).sample
        told = {"text_embeds": torch.randn(2, 48, generator=draw), "time_ids": torch.full((2, 6), 64.0)}
        return unet(latents, timesteps, context, added_cond_kwargs=told).sample

    return run


@pytest.fixture
def outline(small_unets):
    """What is known of one of the models above before its weights are read."""

    def run(kind):
        layers = layers_of(small_unets[kind])
        names = names_of(layers).published
        shapes = [tuple(layer.weight.shape) for layer in layers.values()]
        return ModelOutline(kind, dict(zip(names, shapes, strict=True)), depth=1)

    return run
