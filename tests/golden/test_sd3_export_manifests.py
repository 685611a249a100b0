"""Names, shapes and types of whole models that are written equal those of the published files, at their full sizes.

On the meta device: nothing is read or held. The manifests are those of test_sd3_manifests.py.
"""

import gzip
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from library.checkpoint.tensor_stream import total_bytes
from library.checkpoint.weights import WeightFiles
from library.families.model_folder import MAX_ENCODER_SHARD_BYTES, MAX_SHARD_BYTES, cut_into_shards
from library.families.sd3.checkpoint import inspect_weights
from library.families.sd3.diffusers_folder import component_config, component_plans
from library.families.sd3.export import Sd3Model, model_bytes
from library.models.mmdit import MMDiT
from library.models.text_encoders import clip_config, t5_config
from library.tensorfile import TensorHeader, TensorInfo, torch_dtype

DATA = Path(__file__).parent / "data" / "state_dicts"
ENCODERS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": "t5xxl_fp16"}
CLIPS = ("clip_l", "clip_g")


@cache
def manifest(name):
    """{name: (shape, type)}."""
    table = json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))["tensors"]
    return {key: (tuple(shape), torch_dtype(dtype)) for key, (shape, dtype) in table.items()}


@cache
def header_of(name):
    """The header of a published file, without the file."""
    table = json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))["tensors"]
    tensors = {key: TensorInfo(dtype, tuple(shape), 0, 0) for key, (shape, dtype) in table.items()}
    return WeightFiles(Path(name), (TensorHeader(Path(name), tensors, {}),))


@cache
def inspected(name):
    return inspect_weights(header_of(name), {})


@cache
def separate_part(kind, name):
    """A part from a file of its own; it fits all models."""
    return getattr(inspect_weights(header_of("sd3_medium"), {kind: header_of(name)}), kind)


@cache
def denoiser_of(name):
    """State of an MMDiT that was trained in the type of the published file."""
    dtype = next(iter(manifest(name).values()))[1]
    with torch.device("meta"):
        model = MMDiT(inspected(name).config).to(dtype)
    return {**model.state_dict(), "pos_embed": model.pos_embed.to(dtype)}  # which keeps the type of its file


def model_of(name, separate=None, encoders=None, dtype=None):
    parts = {kind: separate_part(kind, own) for kind, own in (separate or {}).items()}
    return Sd3Model(replace(inspected(name), **parts), denoiser_of(name), encoders or {}, dtype)


def described(plan):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in plan.items()}


@cache
def trained(name, kind=CLIPTextModelWithProjection):
    """State of an encoder as transformers makes it, in the type of the published file."""
    shapes = {key: shape for key, (shape, _) in manifest(ENCODERS[name]).items()}
    with torch.device("meta"):
        made = T5EncoderModel(t5_config(shapes)) if name == "t5xxl" else kind(clip_config(shapes, kind=name))
    return made.half().state_dict()


@pytest.mark.parametrize(
    ("name", "bundled", "expected"),
    [
        ("sd3_medium", (), "sd3_medium"),
        ("sd3_medium_incl_clips", CLIPS, "sd3_medium_incl_clips"),
        ("sd3_medium_incl_clips_t5xxlfp16", tuple(ENCODERS), "sd3_medium_incl_clips_t5xxlfp16"),
        ("sd3_medium_incl_clips_t5xxlfp16", CLIPS, "sd3_medium_incl_clips"),
        ("sd3_medium_incl_clips_t5xxlfp16", (), "sd3_medium"),
        # fp8 is for reading; what is written is what it was made from
        ("sd3_medium_incl_clips_t5xxlfp8", tuple(ENCODERS), "sd3_medium_incl_clips_t5xxlfp16"),
        ("sd3.5_medium", (), "sd3.5_medium"),
        ("sd3.5_large", (), "sd3.5_large"),
    ],
)
def test_a_single_file_has_the_names_shapes_and_types_of_the_published_one(name, bundled, expected):
    assert described(model_of(name).single_file(bundled)) == manifest(expected)


@pytest.mark.parametrize("name", ["sd3_medium", "sd3.5_medium", "sd3.5_large"])
@pytest.mark.parametrize("are_trained", [False, True])
def test_separate_encoders_are_bundled_under_the_published_prefixes(name, are_trained):
    separate = {**ENCODERS, "vae": "diffusers_sd3_vae"}
    encoders = {kind: trained(kind) for kind in ENCODERS} if are_trained else {}
    plan = model_of(name, separate, encoders, torch.float16).single_file(tuple(ENCODERS))
    expected = {key: (shape, torch.float16) for key, (shape, _) in manifest(name).items()}
    expected |= {
        f"text_encoders.{kind}.transformer.{key}": entry
        for kind, own in ENCODERS.items()
        for key, entry in manifest(own).items()
    }
    assert described(plan) == expected


def test_trained_encoders_beside_the_file_have_the_names_of_published_ones():
    model = model_of("sd3_medium", ENCODERS, {kind: trained(kind) for kind in ENCODERS})
    sides = model.side_files(())
    assert {kind: described(plan) for kind, plan in sides.items()} == {
        kind: manifest(own) for kind, own in ENCODERS.items()
    }
    assert list(model.side_files(CLIPS)) == ["t5xxl"]
    total = total_bytes(model.single_file(CLIPS)) + total_bytes(sides["t5xxl"])
    assert model_bytes(model, layout="safetensors", bundled=CLIPS) == total


def test_an_encoder_of_a_class_that_newer_transformers_have_flattened_is_written_as_published():
    model = model_of("sd3_medium", ENCODERS, {"clip_l": trained("clip_l", CLIPTextModel)})
    assert described(model.side_files(())["clip_l"]) == manifest("clip_l")


@pytest.mark.parametrize("name", ["sd3_medium", "sd3.5_medium", "sd3.5_large"])
@pytest.mark.parametrize("are_trained", [False, True])
def test_a_folder_has_the_names_shapes_and_types_of_the_published_one(name, are_trained):
    encoders = {kind: trained(kind) for kind in ENCODERS} if are_trained else {}
    plans = component_plans(model_of(name, ENCODERS, encoders))
    stored = next(iter(manifest(name).values()))[1]
    expected = {
        "transformer": {key: (shape, stored) for key, (shape, _) in manifest(f"diffusers_{name}_transformer").items()},
        "vae": {key: (shape, stored) for key, (shape, _) in manifest("diffusers_sd3_vae").items()},
        **{
            folder: manifest(f"diffusers_sd3_{folder}")
            for folder in ("text_encoder", "text_encoder_2", "text_encoder_3")
        },
    }
    found = {folder: described(plan) for folder, plan in plans.items()}
    found["text_encoder"].pop("text_model.embeddings.position_ids", None)
    assert found == expected


def test_shards_are_as_large_as_those_of_the_published_folders():
    plans = component_plans(model_of("sd3.5_large", ENCODERS))
    for folder, limit, number in (
        ("transformer", MAX_SHARD_BYTES, 2),
        ("text_encoder_3", MAX_ENCODER_SHARD_BYTES, 2),
        ("vae", MAX_SHARD_BYTES, 1),
    ):
        shards = cut_into_shards(plans[folder], limit)
        assert len(shards) == number and all(total_bytes(shard) <= limit for shard in shards)
        assert {name: tensor for shard in shards for name, tensor in shard.items()} == plans[folder]


CONFIGS = {
    "sd3_medium": {"num_layers": 24, "pos_embed_max_size": 192},
    "sd3.5_medium": {
        "num_layers": 24,
        "pos_embed_max_size": 384,
        "qk_norm": "rms_norm",
        "dual_attention_layers": list(range(13)),
    },
    "sd3.5_large": {"num_layers": 38, "pos_embed_max_size": 192, "qk_norm": "rms_norm"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_transformers_configuration_is_that_of_the_published_folder(name):
    config = component_config("transformer", component_plans(model_of(name))["transformer"])
    depth = CONFIGS[name]["num_layers"]
    assert config == {
        "_class_name": "SD3Transformer2DModel",
        "_diffusers_version": "0.32.0",
        "sample_size": 128,
        **{"patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64},
        **{"joint_attention_dim": 4096, "pooled_projection_dim": 2048},
        **{"num_attention_heads": depth, "caption_projection_dim": 64 * depth},
        **CONFIGS[name],
    }


def test_the_other_configurations_have_the_published_numbers():
    plans = component_plans(model_of("sd3_medium", ENCODERS))
    vae = component_config("vae", plans["vae"])
    assert (vae["block_out_channels"], vae["layers_per_block"], vae["latent_channels"]) == ([128, 256, 512, 512], 2, 16)
    assert (vae["scaling_factor"], vae["shift_factor"], vae["use_quant_conv"]) == (1.5305, 0.0609, False)
    clips = [component_config(folder, plans[folder]) for folder in ("text_encoder", "text_encoder_2")]
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    assert [tuple(clip[key] for key in (*keys, "projection_dim")) for clip in clips] == [
        (768, 3072, 12, 12, "quick_gelu", 768),
        (1280, 5120, 32, 20, "gelu", 1280),
    ]
    t5 = component_config("text_encoder_3", plans["text_encoder_3"])
    sizes = ("d_model", "d_ff", "d_kv", "num_heads", "num_layers", "vocab_size", "feed_forward_proj")
    assert tuple(t5[key] for key in sizes) == (4096, 10240, 64, 64, 24, 32128, "gated-gelu")
