"""Names and shapes of the published files (data/SOURCES.d/mmdit.md): they map, are inspected and load completely."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from library.checkpoint.weights import WeightFiles
from library.errors import CheckpointError
from library.families.sd3.checkpoint import inspect_weights
from library.families.sd3.key_map import mmdit_from_diffusers, mmdit_to_diffusers
from library.models.mmdit import MMDiT
from library.models.vae_key_map import vae_from_diffusers, vae_to_diffusers
from library.tensorfile import TensorHeader, TensorInfo

DATA = Path(__file__).parent / "data" / "state_dicts"
PREFIX = "model.diffusion_model."
MODELS = ("sd3_medium", "sd3.5_medium", "sd3.5_large")
NUM_PARAMETERS = {"sd3_medium": 2_084_951_104, "sd3.5_medium": 2_469_663_936, "sd3.5_large": 8_146_280_768}
VARIANTS = {"sd3_medium": "medium", "sd3.5_medium": "5-medium", "sd3.5_large": "5-large"}
BUNDLES = {
    "sd3_medium": (491, 244, None, None, None),
    "sd3_medium_incl_clips": (491, 244, 196, 517, None),
    "sd3_medium_incl_clips_t5xxlfp16": (491, 244, 196, 517, 220),
    "sd3_medium_incl_clips_t5xxlfp8": (491, 244, 196, 517, 220),
    "sd3.5_medium": (665, 244, None, None, None),
    "sd3.5_large": (923, 244, None, None, None),
}
KINDS = ("denoiser", "vae", "clip_l", "clip_g", "t5xxl")


def weights(name):
    """The header of a published file, without the file."""
    table = json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))["tensors"]
    tensors = {key: TensorInfo(dtype, tuple(shape), 0, 0) for key, (shape, dtype) in table.items()}
    return WeightFiles(Path(name), (TensorHeader(Path(name), tensors, {}),))


def outlines(name, prefix=""):
    """Tensors without content."""
    shapes = {key: shape for key, shape in weights(name).shapes().items() if key.startswith(prefix)}
    return {key.removeprefix(prefix): torch.empty(shape, device="meta") for key, shape in shapes.items()}


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", MODELS)
def test_mmdit_names_map_to_those_of_diffusers_and_back(name):
    published, diffusers = outlines(name, PREFIX), outlines(f"diffusers_{name}_transformer")
    assert shapes_of(mmdit_to_diffusers(published)) == shapes_of(diffusers)
    assert shapes_of(mmdit_from_diffusers(diffusers)) == shapes_of(published)


@pytest.mark.parametrize(
    ("name", "theirs"), [("sd3_vae", "diffusers_sd3_vae"), ("sdxl_vae", "diffusers_sd1_sd2_sdxl_vae")]
)
def test_vae_names_map_to_those_of_diffusers_and_back(name, theirs):
    published, diffusers = outlines(name), outlines(theirs)
    assert shapes_of(vae_to_diffusers(published)) == shapes_of(diffusers)
    assert shapes_of(vae_from_diffusers(diffusers)) == shapes_of(published)


@pytest.mark.parametrize("name", MODELS)
def test_mmdit_loads_with_no_key_missing_or_left_over(name):
    files = inspect_weights(weights(name), {})
    with torch.device("meta"):
        model = MMDiT(files.config)
        tensors = {key: torch.empty(shape) for key, shape in files.denoiser.shapes().items()}
    model.load_state_dict(tensors, assign=True)  # strict
    assert files.variant == VARIANTS[name]
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", BUNDLES)
def test_every_part_of_a_single_file_is_found(name):
    files = inspect_weights(weights(name), {})
    parts = [getattr(files, kind) for kind in KINDS]
    assert tuple(part and len(part.names) for part in parts) == BUNDLES[name]
    assert sum(len(part.names) for part in parts if part) == len(weights(name).tensors)


@pytest.mark.parametrize("name", MODELS)
def test_diffusers_transformer_has_the_sizes_of_the_single_file(name):
    assert (
        inspect_weights(weights(f"diffusers_{name}_transformer"), {}).config
        == inspect_weights(weights(name), {}).config
    )


@pytest.mark.parametrize(
    "separate",
    [
        {"vae": "sd3_vae", "clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": "t5xxl_fp16"},
        {"t5xxl": "t5xxl_fp8_e4m3fn"},
        {
            "vae": "diffusers_sd3_vae",
            "clip_l": "diffusers_sd3_text_encoder",
            "clip_g": "diffusers_sd3_text_encoder_2",
            "t5xxl": "diffusers_sd3_text_encoder_3",
        },
    ],
)
def test_separate_parts_have_the_names_of_bundled_ones(separate):
    bundled = inspect_weights(weights("sd3_medium_incl_clips_t5xxlfp16"), {})
    files = inspect_weights(weights("sd3.5_large"), {kind: weights(name) for kind, name in separate.items()})
    for kind in separate:
        part = getattr(files, kind)
        assert part.path == Path(separate[kind])
        names, expected = part.shapes(), getattr(bundled, kind).shapes()
        if part.is_diffusers:
            names = shapes_of(vae_from_diffusers(outlines(separate[kind])))
        if separate[kind] == "diffusers_sd3_text_encoder_3":  # stores the token table once
            del expected["encoder.embed_tokens.weight"]
        assert names == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sd_xl_base_1.0", r"an SDXL model.*sdxl_train_network\.py"),
        ("diffusers_sdxl_unet", r"an SDXL model.*sdxl_train_network\.py"),
        ("v1-5-pruned-emaonly", r"a Stable Diffusion 1\.x.* train_network\.py"),
        ("diffusers_sd15_unet", r"a Stable Diffusion 1\.x.* train_network\.py"),
        ("v2-1_768-ema-pruned", r"a Stable Diffusion 2\.x.* train_network\.py"),
        ("diffusers_sd21_unet", r"a Stable Diffusion 2\.x.* train_network\.py"),
        ("clip_g", "a CLIP text encoder alone.*--clip_g"),
        ("t5xxl_fp16", "a T5 text encoder alone.*--t5xxl"),
        ("sd3_vae", "a VAE alone.*--vae"),
    ],
)
def test_another_model_is_named_with_what_to_do(name, message):
    with pytest.raises(CheckpointError, match=f"^--pretrained_model_name_or_path: {name} is {message}"):
        inspect_weights(weights(name), {})


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("vae", "sdxl_vae", "the VAE of SDXL or SD 1.x / 2.x, with 4 latent channels; this model needs 16"),
        ("vae", "sd_xl_base_1.0", "the VAE of SDXL, with 4 latent channels"),
        ("vae", "clip_l", "has no VAE: it is a CLIP text encoder alone"),
        ("clip_l", "clip_g", r"width 1280 \(CLIP-G\).*below 1024"),
        ("clip_g", "clip_l", r"width 768 \(CLIP-L\).*above 1024"),
        ("clip_l", "diffusers_sd21_text_encoder", r"width 1024 \(the OpenCLIP-H of SD2\)"),
        ("clip_l", "t5xxl_fp16", "has no CLIP-L text encoder: it is a T5 text encoder alone"),
        ("clip_g", "v2-1_768-ema-pruned", "has no CLIP-G text encoder: it is a Stable Diffusion 2.x model"),
        ("t5xxl", "clip_l", "has no T5 text encoder: it is a CLIP text encoder alone"),
    ],
)
def test_separate_file_of_another_kind_is_named(kind, name, message):
    with pytest.raises(CheckpointError, match=f"^--{kind}: {name} .*{message}"):
        inspect_weights(weights("sd3_medium"), {kind: weights(name)})


def test_all_wrong_files_are_named_at_once():
    wrong = {"vae": weights("clip_l"), "clip_l": weights("clip_g"), "clip_g": weights("clip_l")}
    with pytest.raises(CheckpointError) as error:
        inspect_weights(weights("sd3_medium"), wrong)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["--vae", "--clip_l", "--clip_g"]
