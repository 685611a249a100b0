"""Names and shapes of the published SD 1.5, SD 2.1 and SDXL files (data/SOURCES.d/mmdit.md): they map both ways, are
inspected and fit the modules completely. At their full sizes, on the meta device."""

import gzip
import json
from functools import cache
from pathlib import Path

import pytest
import torch

from library.checkpoint.weights import WeightFiles
from library.errors import CheckpointError
from library.families.unet.building import build_encoder, outlined
from library.families.unet.checkpoint import inspect_weights, network_layers
from library.models.clip_key_map import clip_from_open_clip, clip_to_open_clip
from library.models.unet_key_map import unet_from_diffusers, unet_to_diffusers
from library.models.vae_key_map import vae_from_diffusers, vae_to_diffusers
from library.tensorfile import TensorHeader, TensorInfo
from library.unet_names import to_diffusers, to_published

DATA = Path(__file__).parent / "data" / "state_dicts"
FILES = {"sd1": "v1-5-pruned-emaonly", "sd2": "v2-1_768-ema-pruned", "sdxl": "sd_xl_base_1.0"}
UNETS = {"sd1": "diffusers_sd15_unet", "sd2": "diffusers_sd21_unet", "sdxl": "diffusers_sdxl_unet"}
ENCODERS = {
    "sd1": {"text_encoder": "diffusers_sd15_text_encoder"},
    "sd2": {"text_encoder": "diffusers_sd21_text_encoder"},
    "sdxl": {"text_encoder": "diffusers_sdxl_text_encoder", "text_encoder_2": "diffusers_sdxl_text_encoder_2"},
}
OPEN_CLIPS = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}
KINDS = tuple(FILES)
UNET, VAE = "model.diffusion_model.", "first_stage_model."
NUM_PARAMETERS = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}
NUM_LAYERS = {"sd1": {"clip": 12}, "sd2": {"clip": 23}, "sdxl": {"clip_l": 12, "clip_g": 32}}
UNUSED = {"sd1": 15, "sd2": 14, "sdxl": 1}  # schedules, numbers of averages and position ids


@cache
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


@cache
def single_file(kind):
    return inspect_weights(weights(FILES[kind]), {}, kinds=KINDS)


@cache
def folder(kind):
    separate = {"vae": weights("diffusers_sd1_sd2_sdxl_vae"), **{p: weights(n) for p, n in ENCODERS[kind].items()}}
    return inspect_weights(weights(UNETS[kind]), separate, kinds=KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_unet_names_are_those_of_diffusers_and_come_back(kind):
    published, diffusers = outlines(FILES[kind], UNET), outlines(UNETS[kind])
    assert shapes_of(unet_to_diffusers(published)) == shapes_of(diffusers)
    assert shapes_of(unet_from_diffusers(diffusers)) == shapes_of(published)


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_layers_map_as_those_of_tensors(kind):
    tensors = to_diffusers(outlines(FILES[kind], UNET))
    layers = {name.rpartition(".")[0]: other.rpartition(".")[0] for name, other in tensors.items()}
    assert to_diffusers(layers) == layers
    assert to_published(layers.values()) == {other: name for name, other in layers.items()}


@pytest.mark.parametrize("kind", OPEN_CLIPS)
def test_open_clip_names_are_those_of_hugging_face_and_come_back(kind):
    published = outlines(FILES[kind], OPEN_CLIPS[kind])
    ours = clip_from_open_clip(published)
    assert shapes_of(clip_to_open_clip(ours)) == shapes_of(published)
    theirs = outlines(list(ENCODERS[kind].values())[-1])
    extra = {"logit_scale", *(name for name in ours if ".layers.23." in name and kind == "sd2")}
    extra |= {"text_projection.weight"} if kind == "sd2" else set()
    ids = "text_model.embeddings.position_ids"
    assert shapes_of({name: t for name, t in ours.items() if name not in extra}) == shapes_of(
        {name: t for name, t in theirs.items() if name != ids}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_single_file_to_ours_to_single_file_is_the_identity(kind):
    files = single_file(kind)
    parts = [files.unet, files.vae, *files.encoders.values()]
    back = {}
    for part in parts:
        ours = outlined(part, torch.float32)
        if part is files.unet:
            published = unet_from_diffusers(ours)
        elif part is files.vae:
            published = vae_from_diffusers(ours)
        else:
            published = ours if part.is_diffusers else clip_to_open_clip(ours)
        keys = {own: key for key, own in part.names.items()}
        back |= {keys[own]: tuple(tensor.shape) for own, tensor in published.items()}
    expected = weights(FILES[kind]).shapes()
    assert back == {key: shape for key, shape in expected.items() if key in back}
    assert len(expected) - len(back) == UNUSED[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_folder_and_single_file_are_the_same_model(kind):
    one, other = single_file(kind), folder(kind)
    assert (one.kind, one.config) == (other.kind, other.config) == (kind, one.config)
    assert network_layers(one) == network_layers(other)
    assert shapes_of(outlined(one.unet, torch.float32)) == shapes_of(outlined(other.unet, torch.float32))
    assert sum(t.numel() for t in outlined(one.unet, torch.float32).values()) == NUM_PARAMETERS[kind]
    assert shapes_of(vae_to_diffusers(outlines(FILES[kind], VAE))) == shapes_of(outlined(other.vae, torch.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_have_the_layers_that_are_used(kind):
    for files in (single_file(kind), folder(kind)):
        built = {
            name: build_encoder(kind, part, outlined(part, torch.float32)) for name, part in files.encoders.items()
        }
        assert {name: model.config.num_hidden_layers for name, model in built.items()} == NUM_LAYERS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_a_network_have_the_names_of_lora_files(kind):
    layers = network_layers(single_file(kind))
    query = {"sdxl": "input_blocks.4.1.transformer_blocks.0.attn1.to_q"}
    assert layers[query.get(kind, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")] == (
        (640, 640) if kind == "sdxl" else (320, 320)
    )
    assert all(len(shape) in (2, 4) for shape in layers.values())


@pytest.mark.parametrize(
    ("name", "kinds", "message"),
    [
        (
            "sd_xl_base_1.0",
            ("sd1", "sd2"),
            r"an SDXL model, not a Stable Diffusion 1\.x or 2\.x model\. .*sdxl_train_network",
        ),
        ("v1-5-pruned-emaonly", ("sdxl",), r"a Stable Diffusion 1\.x model, not an SDXL model\. .* train_network\.py"),
        ("v2-1_768-ema-pruned", ("sdxl",), r"a Stable Diffusion 2\.x model, not an SDXL model\. .* train_network\.py"),
        ("sd3.5_medium", ("sdxl",), r"an SD3 / SD3\.5 model, not an SDXL model\. .*sd3_train_network\.py"),
        ("diffusers_sd3_medium_transformer", ("sd1", "sd2"), r"an SD3 / SD3\.5 transformer .*sd3_train_network\.py"),
        ("sdxl_vae", ("sdxl",), r"a VAE alone, not an SDXL model\. Give it as --vae"),
        ("clip_g", ("sdxl",), r"a CLIP text encoder alone, not an SDXL model\. Give the whole model"),
        ("t5xxl_fp16", ("sd1", "sd2"), r"a T5 text encoder alone, .*Give the whole model"),
    ],
)
def test_another_model_is_named_with_what_to_do(name, kinds, message):
    with pytest.raises(CheckpointError, match=f"^--pretrained_model_name_or_path: {name} is {message}"):
        inspect_weights(weights(name), {}, kinds=kinds)
