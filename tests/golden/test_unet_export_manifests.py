"""Names, shapes and types of whole SD 1.5, SD 2.1 and SDXL models that are written equal those of the published files.

At their full sizes, on the meta device: nothing is read or held. The manifests are those of test_sd3_manifests.py.
"""

import gzip
import json
from functools import cache
from pathlib import Path

import pytest
import torch

from library.checkpoint.tensor_stream import total_bytes
from library.checkpoint.weights import WeightFiles
from library.families.unet.checkpoint import inspect_weights
from library.families.unet.diffusers_folder import model_folder, scheduler_config
from library.families.unet.export import UnetModel, model_bytes
from library.families.unet.outlines import encoder_outline
from library.tensorfile import TensorHeader, TensorInfo, torch_dtype

DATA = Path(__file__).parent / "data" / "state_dicts"
FILES = {"sd1": "v1-5-pruned-emaonly", "sd2": "v2-1_768-ema-pruned", "sdxl": "sd_xl_base_1.0"}
FOLDERS = {
    "sd1": {"unet": "diffusers_sd15_unet", "text_encoder": "diffusers_sd15_text_encoder"},
    "sd2": {"unet": "diffusers_sd21_unet", "text_encoder": "diffusers_sd21_text_encoder"},
    "sdxl": {
        "unet": "diffusers_sdxl_unet",
        "text_encoder": "diffusers_sdxl_text_encoder",
        "text_encoder_2": "diffusers_sdxl_text_encoder_2",
    },
}
TYPES = {"sd1": torch.float32, "sd2": torch.float32, "sdxl": torch.float16}
PARTS = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")


@cache
def table_of(name):
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))["tensors"]


def manifest(name, dtype=None):
    """{name: (shape, type)}, all floats in one type where one is given."""
    types = {key: torch_dtype(stored) for key, (_, stored) in table_of(name).items()}
    types = {key: dtype if dtype is not None and own.is_floating_point else own for key, own in types.items()}
    return {key: (tuple(shape), types[key]) for key, (shape, _) in table_of(name).items()}


def header_of(name):
    """The header of a published file, without the file."""
    tensors = {key: TensorInfo(dtype, tuple(shape), 0, 0) for key, (shape, dtype) in table_of(name).items()}
    return WeightFiles(Path(name), (TensorHeader(Path(name), tensors, {}),))


@cache
def single_file(kind):
    return inspect_weights(header_of(FILES[kind]), {}, kinds=(kind,))


@cache
def folder(kind):
    separate = {name: header_of(own) for name, own in FOLDERS[kind].items()}
    separate["vae"] = header_of("diffusers_sd1_sd2_sdxl_vae")
    return inspect_weights(separate.pop("unet"), separate, kinds=(kind,))


def trained(files):
    """States of the U-Net and of all encoders as training has them."""
    from library.families.unet.checkpoint import empty_unet

    dtype = TYPES[files.kind]
    states = {name: encoder_outline(files, name, dtype).state_dict() for name in files.encoders}
    return empty_unet(files).to(dtype).state_dict(), states


def described(plan):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in plan.items()}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(("source", "is_trained"), [(single_file, False), (folder, True)])
def test_a_single_file_has_the_names_shapes_and_types_of_the_published_one(kind, source, is_trained):
    files, dtype = source(kind), TYPES[kind]
    model = UnetModel(files, *(trained(files) if is_trained else ({}, {})), dtype)
    plan = model.single_file()
    assert described(plan) == {name: entry for name, entry in manifest(FILES[kind]).items() if name.startswith(PARTS)}
    assert model_bytes(model, layout="safetensors") == total_bytes(plan)


@pytest.mark.parametrize(("kind", "name"), [("sd1", "v1"), ("sd2", "v2"), ("sdxl", "xl_base")])
def test_diffusers_tells_from_the_tensors_of_a_single_file_what_it_is(kind, name):
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    marks = frozenset(("v_pred", "ztsnr") if kind == "sdxl" else ())
    plan = UnetModel(single_file(kind), {}, {}, TYPES[kind], marks=marks).single_file()
    assert marks <= plan.keys()
    assert infer_diffusers_model_type(dict(plan)) == name


@pytest.mark.parametrize("kind", FILES)
def test_a_folder_has_the_names_shapes_and_types_of_the_published_one(kind):
    model = UnetModel(single_file(kind), *trained(single_file(kind)), torch.float32)
    parts = {**FOLDERS[kind], "vae": "diffusers_sd1_sd2_sdxl_vae"}
    found = {name: described(component.plan) for name, component in model_folder(model).components.items()}
    assert found == {name: manifest(own, torch.float32) for name, own in parts.items()}


UNETS = {
    "sd1": {
        **{"sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768},
        **{"attention_head_dim": 8, "use_linear_projection": False},
    },
    "sd2": {
        **{"sample_size": 96, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1024},
        **{"attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True, "upcast_attention": True},
    },
    "sdxl": {
        **{"sample_size": 128, "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048},
        **{"attention_head_dim": [5, 10, 20], "use_linear_projection": True, "addition_time_embed_dim": 256},
        **{"projection_class_embeddings_input_dim": 2816, "addition_embed_type": "text_time"},
        **{"transformer_layers_per_block": [1, 2, 10]},
    },
}
CLIPS = {
    ("sd1", "text_encoder"): ("CLIPTextModel", 768, 12, 12, "quick_gelu"),
    ("sd2", "text_encoder"): ("CLIPTextModel", 1024, 23, 16, "gelu"),
    ("sdxl", "text_encoder"): ("CLIPTextModel", 768, 12, 12, "quick_gelu"),
    ("sdxl", "text_encoder_2"): ("CLIPTextModelWithProjection", 1280, 32, 20, "gelu"),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_configurations_have_the_published_numbers(kind):
    marks = frozenset(("v_pred",) if kind == "sd2" else ())
    written = model_folder(UnetModel(single_file(kind), {}, {}, marks=marks))
    assert written.index["scheduler"] == ["diffusers", written.scheduler["_class_name"]]
    configs = {name: component.config for name, component in written.components.items()}
    assert {name: configs["unet"][name] for name in UNETS[kind]} == UNETS[kind]
    vae = configs["vae"]
    assert (vae["block_out_channels"], vae["layers_per_block"], vae["latent_channels"]) == ([128, 256, 512, 512], 2, 4)
    assert (vae["scaling_factor"], vae["shift_factor"]) == (0.13025 if kind == "sdxl" else 0.18215, None)
    for (owner, name), expected in CLIPS.items():
        if owner == kind:
            clip = configs[name]
            keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
            assert (*clip["architectures"], *(clip[key] for key in keys)) == expected


def test_the_scheduler_says_what_the_model_predicts():
    keys = ("_class_name", "prediction_type", "rescale_betas_zero_snr", "timestep_spacing")
    cases = [("sd1", ()), ("sd2", ()), ("sd2", ("v_pred",)), ("sdxl", ()), ("sdxl", ("v_pred", "ztsnr"))]
    said = {(kind, marks): [scheduler_config(kind, marks).get(key) for key in keys] for kind, marks in cases}
    assert said == {
        ("sd1", ()): ["PNDMScheduler", "epsilon", None, "leading"],
        ("sd2", ()): ["PNDMScheduler", "epsilon", None, "leading"],
        ("sd2", ("v_pred",)): ["DDIMScheduler", "v_prediction", None, "leading"],
        ("sdxl", ()): ["EulerDiscreteScheduler", "epsilon", None, "leading"],
        ("sdxl", ("v_pred", "ztsnr")): ["EulerDiscreteScheduler", "v_prediction", True, "trailing"],
    }
