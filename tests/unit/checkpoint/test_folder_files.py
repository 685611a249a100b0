"""Which files of a folder are the weights: names as diffusers and transformers save them."""

import json

import pytest

from library.checkpoint.folder_files import weight_files
from library.errors import CheckpointError

UNET, TEXT = "diffusion_pytorch_model", "model"
SHARDS = {
    f"{UNET}.safetensors.index.json": [f"{UNET}-0000{number}-of-00002.safetensors" for number in (1, 2)],
    f"{UNET}.safetensors.index.fp16.json": [f"{UNET}.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)],
    f"{UNET}.bin.index.json": [f"{UNET}-0000{number}-of-00002.bin" for number in (1, 2)],
}
PLAIN, VARIANT, PICKLED = SHARDS


def chosen(folder, *names, variant=None):
    """Names of what is read where these files are."""
    for name in names:
        shards = SHARDS.get(name, [])
        (folder / name).write_text(json.dumps({"weight_map": {str(i): shard for i, shard in enumerate(shards)}}))
        for shard in shards:
            (folder / shard).touch()
    return [file.name for file in weight_files(folder, "--vae", variant)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"{TEXT}.safetensors", "pytorch_model.bin"], f"{TEXT}.safetensors"),
        ([f"{UNET}.fp16.safetensors", f"{UNET}.safetensors"], f"{UNET}.safetensors"),
        ([f"{UNET}.non_ema.safetensors", f"{UNET}.fp16.safetensors"], f"{UNET}.fp16.safetensors"),
        ([f"{UNET}.bin", f"{UNET}.fp16.safetensors"], f"{UNET}.fp16.safetensors"),
        ([f"{UNET}.fp16.bin", f"{UNET}.bin"], f"{UNET}.bin"),
        (["pytorch_model.fp16.bin"], "pytorch_model.fp16.bin"),
    ],
)
def test_safetensors_go_first_and_then_what_has_no_variant(tmp_path, names, expected):
    assert chosen(tmp_path, *names) == [expected]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([PLAIN, VARIANT, PICKLED], PLAIN),
        ([VARIANT, PICKLED], VARIANT),
        ([PICKLED], PICKLED),
    ],
)
def test_shards_of_every_form_are_found_by_their_index(tmp_path, names, expected):
    assert chosen(tmp_path, *names) == SHARDS[expected]


def test_a_variant_that_is_asked_for_is_the_only_one(tmp_path):
    assert chosen(tmp_path, PLAIN, f"{UNET}.fp16.safetensors", variant="fp16") == [f"{UNET}.fp16.safetensors"]
    assert chosen(tmp_path, VARIANT, variant="fp16") == SHARDS[VARIANT]
    with pytest.raises(CheckpointError, match=r"^--vae: .* without diffusion_pytorch_model\.bf16\.safetensors or "):
        chosen(tmp_path, variant="bf16")


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": []}}'])
def test_a_damaged_index_is_told(tmp_path, content):
    (tmp_path / PLAIN).write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json is damaged\. Download or copy it again\.$"):
        weight_files(tmp_path, "--vae", None)
