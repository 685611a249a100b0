"""A saved LoRA, converted, does in diffusers what it does here; and the other way round."""

import inspect
import re

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from library.families.sd3.key_map import mmdit_to_diffusers
from library.loras.verifying import effects
from library.models.mmdit import MMDiT, MMDiTConfig
from networks import lora_sd3
from networks.convert_lora import main
from tests.lora_in_diffusers import real_effects, ruled

CONFIG = MMDiTConfig(
    depth=3,
    num_heads=2,
    head_dim=8,
    in_channels=4,
    out_channels=4,
    context_dim=12,
    pooled_dim=10,
    position_side=8,
    qk_norm=True,
    dual_attention=(0, 1),
)
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return {name: tensor for name, tensor in MMDiT(CONFIG).state_dict().items()}


def make_clip(seed, heads):
    torch.manual_seed(seed)
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=8 * heads,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=heads,
            vocab_size=50,
            projection_dim=8,
        )
    ).requires_grad_(False)


@pytest.fixture
def ours(weights):
    """The MMDiT and two text encoders."""
    mmdit = MMDiT(CONFIG)
    mmdit.load_state_dict(weights)
    return mmdit.requires_grad_(False), [make_clip(1, 2), make_clip(2, 3)]


@pytest.fixture
def pipeline(weights):
    """The same models in a pipeline of diffusers."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=8,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )
    converted = mmdit_to_diffusers(weights)
    converted["pos_embed.pos_embed"] = weights["pos_embed"]
    transformer.load_state_dict(converted)
    return StableDiffusion3Pipeline(
        transformer=transformer.requires_grad_(False),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=make_clip(1, 2),
        text_encoder_2=make_clip(2, 3),
        text_encoder_3=None,
        tokenizer=None,
        tokenizer_2=None,
        tokenizer_3=None,
    )


@torch.no_grad()
def outputs(mmdit, encoders):
    """Predictions of the model and states of the encoders, for fixed inputs."""
    draw = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 6, generator=draw)
    context, pooled = torch.randn(2, 5, 12, generator=draw), torch.randn(2, 10, generator=draw)
    timesteps = torch.tensor([900.0, 150.0])
    if isinstance(mmdit, MMDiT):
        prediction = mmdit(latents, timesteps, context, pooled)
    else:
        prediction = mmdit(latents, context, pooled, timesteps, return_dict=False)[0]
    ids = torch.arange(6)[None]
    return [prediction, *(encoder(ids, output_hidden_states=True).hidden_states[-2] for encoder in encoders)]


def pipeline_outputs(pipeline):
    return outputs(pipeline.transformer, [pipeline.text_encoder, pipeline.text_encoder_2])


def make_lora(ours, path, dtype=None, **args):
    """An attached network with values, saved to `path`."""
    mmdit, encoders = ours
    network = lora_sd3.create_network(1.0, 4, 2.0, None, encoders, mmdit, **args)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
    network.apply_to(encoders, mmdit)
    network.save_weights(path, dtype, {"ss_network_dim": "4", "sshs_model_hash": "old"})
    return network


def convert(source, target, *, to, fold=False):
    """Run the converter; what it has written."""
    assert main([str(source), str(target), "--to", to, *(["--fold_alpha"] if fold else [])]) == 0
    return load_file(target)


def assert_same_effect(base, adapted, loaded):
    for before, mine, theirs in zip(base, adapted, loaded, strict=True):
        assert (mine - before).abs().max() > 0.01
        torch.testing.assert_close(theirs, mine, **TOLERANCE)


ALL_TARGETS = {"emb_dims": "1,2,3,4,5,6", "x_mlp_dim": "3", "context_mod_dim": "2"}


@pytest.mark.parametrize("args", [ALL_TARGETS, {**ALL_TARGETS, "split_qkv": "True"}, {"train_block_indices": "1"}])
def test_converted_lora_has_the_same_effect(args, ours, pipeline, tmp_path):
    base = outputs(*ours)
    torch.testing.assert_close(pipeline_outputs(pipeline), base, **TOLERANCE)
    network = make_lora(ours, tmp_path / "lora.safetensors", **args)
    adapted = outputs(*ours)

    written = convert(tmp_path / "lora.safetensors", tmp_path / "converted.safetensors", to="diffusers")
    back = convert(tmp_path / "converted.safetensors", tmp_path / "back.safetensors", to="kohya")
    torch.testing.assert_close(back, load_file(tmp_path / "lora.safetensors"))
    pipeline.load_lora_weights(tmp_path, weight_name="converted.safetensors")
    assert_same_effect(base, adapted, pipeline_outputs(pipeline))

    loaded = {
        f"{part}.{name}"
        for part in ("transformer", "text_encoder", "text_encoder_2")
        for name, module in getattr(pipeline, part).named_modules()
        if isinstance(module, LoraLayer)
    }
    num_qkv = sum(adapter.name.endswith("_qkv") for adapter in network.adapters())
    assert len(loaded) == len(list(network.adapters())) + 2 * num_qkv
    assert 2 * len(loaded) == len(written)
    reading = ruled(tmp_path / "converted.safetensors", "sd3")
    found = real_effects(pipeline, tmp_path / "converted.safetensors", "sd3")
    torch.testing.assert_close(found, effects(reading.pairs), **TOLERANCE)
    assert not reading.passed_over and reading.refusal is None

    pipeline.unload_lora_weights()
    torch.testing.assert_close(pipeline_outputs(pipeline), base, **TOLERANCE)


def test_files_that_diffusers_ignores_or_refuses_are_known(ours, pipeline, tmp_path):
    base = outputs(*ours)
    make_lora(ours, tmp_path / "lora.safetensors").detach_all()
    convert(tmp_path / "lora.safetensors", tmp_path / "folded.safetensors", to="kohya", fold=True)
    convert(tmp_path / "lora.safetensors", tmp_path / "native.safetensors", to="native")
    for name in ("lora.safetensors", "folded.safetensors", "native.safetensors"):
        reading = ruled(tmp_path / name, "sd3")
        assert reading.passed_over and not reading.pairs and reading.refusal is None
        pipeline.load_lora_weights(tmp_path, weight_name=name)
        torch.testing.assert_close(pipeline_outputs(pipeline), base, **TOLERANCE)
    own = convert(tmp_path / "lora.safetensors", tmp_path / "own.safetensors", to="diffusers")
    save_file(own | {"transformer.proj_out.alpha": torch.tensor(1.0)}, tmp_path / "own.safetensors")
    assert ruled(tmp_path / "own.safetensors", "sd3").refusal
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipeline.load_lora_weights(tmp_path, weight_name="own.safetensors")


def test_metadata_is_kept_without_the_old_hash(ours, tmp_path):
    make_lora(ours, tmp_path / "lora.safetensors")
    convert(tmp_path / "lora.safetensors", tmp_path / "converted.safetensors", to="diffusers")
    with safe_open(tmp_path / "converted.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "4"
    assert len(metadata["sshs_model_hash"]) == 64


def test_there_and_back_has_the_same_effect(ours, tmp_path):
    mmdit, encoders = ours
    network = make_lora(ours, tmp_path / "lora.safetensors", **ALL_TARGETS)
    adapted = outputs(*ours)
    network.detach_all()
    convert(tmp_path / "lora.safetensors", tmp_path / "there.safetensors", to="diffusers")
    convert(tmp_path / "there.safetensors", tmp_path / "back.safetensors", to="kohya")
    again, _ = lora_sd3.create_network_from_weights(1.0, str(tmp_path / "back.safetensors"), None, encoders, mmdit)
    assert {a.name: a.rank for a in again.adapters()} == {a.name: a.rank for a in network.adapters()}
    again.apply_to(encoders, mmdit)
    torch.testing.assert_close(outputs(*ours), adapted, **TOLERANCE)


WHOLE = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "norm1_context.linear"]


SAVED_PARTS = inspect.signature(StableDiffusion3Pipeline.save_lora_weights).parameters


@pytest.mark.skipif(
    "transformer_lora_adapter_metadata" not in SAVED_PARTS,
    reason="this diffusers does not save the alpha of a LoRA",
)
@pytest.mark.parametrize("targets", [WHOLE, ["to_v"]])
def test_lora_trained_with_diffusers_has_the_same_effect_here(targets, ours, pipeline, tmp_path):
    from peft.utils import get_peft_model_state_dict

    mmdit, encoders = ours
    base = outputs(mmdit, [])
    pipeline.transformer.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    theirs = outputs(pipeline.transformer, [])
    pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(pipeline.transformer),
        transformer_lora_adapter_metadata=pipeline.transformer.peft_config["default"].to_dict(),
    )
    (saved,) = tmp_path.iterdir()
    convert(saved, tmp_path / "kohya.safetensors", to="kohya")
    network, _ = lora_sd3.create_network_from_weights(1.0, str(tmp_path / "kohya.safetensors"), None, encoders, mmdit)
    network.apply_to(encoders, mmdit)
    assert_same_effect(base, outputs(mmdit, []), theirs)


def test_folded_alpha_keeps_the_strength(ours, tmp_path):
    mmdit, encoders = ours
    network = make_lora(ours, tmp_path / "lora.safetensors", **ALL_TARGETS)
    adapted = outputs(*ours)
    network.detach_all()
    convert(tmp_path / "lora.safetensors", tmp_path / "folded.safetensors", to="kohya", fold=True)
    assert not any(key.endswith(".alpha") for key in load_file(tmp_path / "folded.safetensors"))
    again, _ = lora_sd3.create_network_from_weights(1.0, str(tmp_path / "folded.safetensors"), None, encoders, mmdit)
    again.apply_to(encoders, mmdit)
    torch.testing.assert_close(outputs(*ours), adapted, **TOLERANCE)


def test_comfyui_derives_every_key(ours, weights, tmp_path):
    make_lora(ours, tmp_path / "lora.safetensors", **ALL_TARGETS)
    # for a weight diffusion_model.X.weight it accepts lora_unet_ + X with underscores; text encoders by their HF names
    known = {f"lora_unet_{name[: -len('.weight')].replace('.', '_')}" for name in weights if name.endswith(".weight")}
    clip = re.compile(r"lora_te[12]_text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])")
    modules = {key.split(".", 1)[0] for key in load_file(tmp_path / "lora.safetensors")}
    assert len(modules) == 10 * 3 - 3 + 2 * 2 + 8 + 2 * 2 * 6
    assert all(name in known or clip.fullmatch(name) for name in modules)
    suffixes = {key.split(".", 1)[1] for key in load_file(tmp_path / "lora.safetensors")}
    assert suffixes == {"lora_down.weight", "lora_up.weight", "alpha"}
