"""At full size, on headers alone: a published file becomes the published folder, and that the published file again."""

import gzip
import json
from functools import cache
from pathlib import Path

import pytest
import torch

from library.checkpoint.weights import WeightFiles
from library.families.detect import SD1, SD2, SD3, SDXL
from library.families.sd.family import SdFamily
from library.families.sd3.checkpoint import inspect_weights as inspect_sd3
from library.families.sd3.family import Sd3Family
from library.families.sdxl.family import SdxlFamily
from library.families.unet.checkpoint import inspect_weights as inspect_unet
from library.model_files.sd3_parts import plan_joined
from library.model_files.whole import WholeModel
from library.tensorfile import TensorHeader, TensorInfo, torch_dtype

DATA = Path(__file__).parents[2] / "golden" / "data" / "state_dicts"
UNETS = {
    "v1-5-pruned-emaonly": (SD1, SdFamily(pretrained=Path())),
    "v2-1_768-ema-pruned": (SD2, SdFamily(pretrained=Path())),
    "sd_xl_base_1.0": (SDXL, SdxlFamily(pretrained=Path())),
}
SD3_FAMILY = Sd3Family(pretrained=Path(), dropout_rates={}, flow={})
SD3_FILES = ("sd3_medium", "sd3_medium_incl_clips_t5xxlfp16", "sd3.5_medium", "sd3.5_large")
IN_MODEL = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")
ENCODER_OF = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
NAMES = {
    dtype: name
    for name in ("F32", "F16", "BF16", "F8_E4M3", "I64", "I32", "F64", "U8")
    for dtype in [torch_dtype(name)]
}


@cache
def manifest(name):
    """{name: (shape, type)} of a published file."""
    table = json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))["tensors"]
    return {key: (tuple(shape), torch_dtype(dtype)) for key, (shape, dtype) in table.items()}


def header(content, name="model"):
    tensors = {key: TensorInfo(NAMES[dtype], shape, 0, 0) for key, (shape, dtype) in content.items()}
    return WeightFiles(Path(name), (TensorHeader(Path(name), tensors, {}),))


def described(plan):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in plan.items()}


def folder_of(model):
    return {name: described(component.plan) for name, component in model.folder(None).components.items()}


def unet_model(name, opened, separate):
    kind, family = UNETS[name]
    return WholeModel(Path(), kind, family, inspect_unet(opened, separate, kinds=(kind.name,)))


def sd3_model(opened, separate):
    return WholeModel(Path(), SD3, SD3_FAMILY, inspect_sd3(opened, separate))


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_model_goes_to_a_folder_and_back(name):
    model = unet_model(name, header(manifest(name)), {})
    expected = {key: entry for key, entry in manifest(name).items() if key.startswith(IN_MODEL)}
    assert described(model.single_file(None)) == expected
    opened = {folder: header(content, folder) for folder, content in folder_of(model).items()}
    assert described(unet_model(name, opened.pop("unet"), opened).single_file(None)) == expected


@pytest.mark.parametrize("name", SD3_FILES)
def test_an_sd3_model_goes_to_a_folder_and_back(name):
    model = sd3_model(header(manifest(name)), {})
    assert described(model.single_file(None)) == manifest(name)
    opened = {folder: header(content, folder) for folder, content in folder_of(model).items()}
    separate = {ENCODER_OF.get(folder, folder): found for folder, found in opened.items() if folder != "transformer"}
    assert described(sd3_model(opened["transformer"], separate).single_file(None)) == manifest(name)


@pytest.mark.parametrize(("t5", "whole"), [("t5xxl_fp16", "t5xxlfp16"), ("t5xxl_fp8_e4m3fn", "t5xxlfp8")])
def test_published_parts_of_sd3_make_the_published_whole_file_fp8_included(t5, whole):
    separate = {"clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": t5}
    opened = {kind: header(manifest(name), name) for kind, name in separate.items()}
    files = inspect_sd3(header(manifest("sd3_medium")), opened)
    parts = {"dit": files.denoiser, "vae": files.vae}
    parts |= {kind: getattr(files, kind) for kind in separate}
    with torch.device("meta"):
        assert described(plan_joined(parts)) == manifest(f"sd3_medium_incl_clips_{whole}")
