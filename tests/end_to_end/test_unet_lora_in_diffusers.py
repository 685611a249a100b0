"""A saved LoRA for SD1, SD2 or SDXL does in diffusers what it does here, as it is and converted."""

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from tiny_unets import CLIP_G_WIDTH, CLIP_L_WIDTH, clip_settings, unet_settings
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from library.loras.verifying import effects
from library.models.unet import UNet
from networks import dylora, lora, lora_fa
from networks.convert_lora import main
from tests.lora_in_diffusers import real_effects, ruled

KINDS = ("sd1", "sd2", "sdxl")
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
CONV = {"conv_dim": "3", "conv_alpha": "2"}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def settings(kind):
    """Two of the levels: one with attention and one without, in the order of the family."""
    levels = ["", "CrossAttn"] if kind == "sdxl" else ["CrossAttn", ""]
    sizes = {
        "block_out_channels": [32, 64],
        "down_block_types": [f"{level}DownBlock2D" for level in levels],
        "up_block_types": [f"{level}UpBlock2D" for level in reversed(levels)],
        "attention_head_dim": 8 if kind == "sd1" else [2, 1],
        "transformer_layers_per_block": [1, 2 if kind == "sdxl" else 1],
    }
    return unet_settings(kind) | sizes


def make_clip(seed, width):
    torch.manual_seed(seed)
    return CLIPTextModelWithProjection(CLIPTextConfig(**clip_settings(width, "gelu"))).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def ours(kind):
    """The U-Net and its text encoders."""
    torch.manual_seed(0)
    unet = UNet(**settings(kind)).requires_grad_(False).eval()
    return unet, [make_clip(1, CLIP_L_WIDTH), *([make_clip(2, CLIP_G_WIDTH)] if kind == "sdxl" else [])]


@pytest.fixture(scope="module")
def pipeline(kind, ours):
    """The same models in a pipeline of diffusers."""
    unet, encoders = ours
    theirs = UNet2DConditionModel(**settings(kind)).requires_grad_(False).eval()
    theirs.load_state_dict(unet.state_dict())
    first = CLIPTextModel(CLIPTextConfig(**clip_settings(CLIP_L_WIDTH, "gelu"))).requires_grad_(False).eval()
    first.load_state_dict(_as_in(first, encoders[0].state_dict()))
    parts = {
        "unet": theirs,
        "text_encoder": first,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
        "vae": None,
        "tokenizer": None,
    }
    if kind == "sdxl":
        second = make_clip(2, CLIP_G_WIDTH)
        return StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=None)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def _as_in(encoder, state):
    """The weights under the names of an encoder without projection, whatever this transformers calls them."""
    own = set(encoder.state_dict())
    names = {name: name if name in own else name.removeprefix("text_model.") for name in state}
    return {names[name]: tensor for name, tensor in state.items() if names[name] in own}


@torch.no_grad()
def outputs(unet, encoders):
    """A prediction and the states of the encoders, for fixed inputs."""
    draw = torch.Generator().manual_seed(3)
    width = unet.config.cross_attention_dim
    latents, context = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 5, width, generator=draw)
    told = None
    if unet.config.addition_embed_type:
        told = {"text_embeds": torch.randn(2, CLIP_G_WIDTH, generator=draw), "time_ids": torch.full((2, 6), 64.0)}
    prediction = unet(latents, torch.tensor([900.0, 150.0]), context, added_cond_kwargs=told, return_dict=False)[0]
    ids = torch.arange(6)[None]
    return [prediction, *(encoder(ids, output_hidden_states=True).hidden_states[-2] for encoder in encoders)]


def pipeline_outputs(pipeline):
    encoders = [pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)]
    return outputs(pipeline.unet, [encoder for encoder in encoders if encoder is not None])


def make_network(ours, path, module=lora, seed=5, multiplier=1.0, **args):
    """An attached network with values, saved to `path`."""
    unet, encoders = ours
    network = module.create_network(multiplier, 4, 2.0, None, encoders, unet, **args).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.1)
    network.apply_to(encoders, unet)
    network.save_weights(path)
    return network


def lora_layers(pipeline):
    return [
        f"{part}.{name}"
        for part in ("unet", "text_encoder", "text_encoder_2")
        if hasattr(pipeline, part)
        for name, module in getattr(pipeline, part).named_modules()
        if isinstance(module, LoraLayer)
    ]


def test_saved_and_converted_files_have_the_same_effect_and_come_off(kind, ours, pipeline, tmp_path):
    base = outputs(*ours)
    torch.testing.assert_close(pipeline_outputs(pipeline), base, **TOLERANCE)
    network = make_network(ours, tmp_path / "saved.safetensors", **CONV)
    adapted = outputs(*ours)
    network.detach_all()
    assert main([str(tmp_path / "saved.safetensors"), str(tmp_path / "converted.safetensors"), "--to=diffusers"]) == 0
    assert not any("alpha" in key for key in load_file(tmp_path / "converted.safetensors"))
    assert main([str(tmp_path / "converted.safetensors"), str(tmp_path / "back.safetensors"), "--to=kohya"]) == 0
    torch.testing.assert_close(load_file(tmp_path / "back.safetensors"), load_file(tmp_path / "saved.safetensors"))
    family = kind if kind == "sdxl" else "sd"

    for name in ("saved.safetensors", "converted.safetensors"):
        pipeline.load_lora_weights(tmp_path, weight_name=name)
        loaded = pipeline_outputs(pipeline)
        known = effects(ruled(tmp_path / name, family).pairs)
        torch.testing.assert_close(real_effects(pipeline, tmp_path / name, family), known, **TOLERANCE)
        assert len(lora_layers(pipeline)) == len(list(network.adapters()))
        pipeline.unload_lora_weights()
        for before, mine, theirs in zip(base, adapted, loaded, strict=True):
            assert (mine - before).abs().max() > 0.01
            torch.testing.assert_close(theirs, mine, **TOLERANCE)
        torch.testing.assert_close(pipeline_outputs(pipeline), base, **TOLERANCE)


def test_other_forms_do_what_the_rules_say(kind, ours, pipeline, tmp_path):
    make_network(ours, tmp_path / "saved.safetensors", **CONV).detach_all()
    family, naming = (kind, "diffusers") if kind == "sdxl" else ("sd", "published")
    target = ["--to=kohya", f"--naming={naming}"]
    assert main([str(tmp_path / "saved.safetensors"), str(tmp_path / "other.safetensors"), *target]) == 0
    reading = ruled(tmp_path / "other.safetensors", family)
    if family == "sd":
        assert reading.refusal
        with pytest.raises(Exception):  # noqa: B017 it differs between versions
            pipeline.load_lora_weights(tmp_path, weight_name="other.safetensors")
        pipeline.unload_lora_weights()
        return
    pipeline.load_lora_weights(tmp_path, weight_name="other.safetensors")
    found = real_effects(pipeline, tmp_path / "other.safetensors", family)
    pipeline.unload_lora_weights()
    assert not reading.passed_over
    torch.testing.assert_close(found, effects(reading.pairs), **TOLERANCE)


@pytest.mark.parametrize("kind", ["sdxl"], indirect=True)
def test_two_networks_act_as_their_sum(kind, ours, pipeline, tmp_path):
    base = outputs(*ours)
    first = make_network(ours, tmp_path / "first.safetensors", lora_fa)
    second = make_network(ours, tmp_path / "second.safetensors", dylora, seed=6, multiplier=-0.5, **CONV)
    adapted = outputs(*ours)
    second.detach_all()
    first.detach_all()
    for name in ("first", "second"):
        pipeline.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors", adapter_name=name)
    pipeline.set_adapters(["first", "second"], [1.0, -0.5])
    loaded = pipeline_outputs(pipeline)
    pipeline.set_adapters(["first"])
    alone = pipeline_outputs(pipeline)
    pipeline.unload_lora_weights()
    for before, mine, one, theirs in zip(base, adapted, alone, loaded, strict=True):
        assert (mine - before).abs().max() > 0.01 and (mine - one).abs().max() > 0.01
        torch.testing.assert_close(theirs, mine, **TOLERANCE)
