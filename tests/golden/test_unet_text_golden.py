"""States of SD 1.x's and SDXL's text encoders equal reference values. Source: SOURCES.d/unet_text_and_npz.md."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from library.families.unet.npz_cache import UnetNpzReader
from library.families.unet.text import SDXL_LAYERS, encode, sd_layers
from library.models.text_encoders import load_clip

CACHE = Path(__file__).parent / "data" / "cache"
GOLDEN = json.loads((CACHE / "cache_unet.json").read_text(encoding="utf-8"))["text"]
WIDTHS = {"clip_l": 32, "clip_g": 96}


def weights(file, prefix):
    tensors = load(gzip.decompress((CACHE / file).read_bytes()))
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def ids(rows):
    return torch.tensor([[token for row in rows for token in row]])


@pytest.fixture(scope="module")
def clip():
    return load_clip(weights("text_weights.safetensors.gz", "clip_l."), kind="clip_l", num_heads=4)


@pytest.fixture(scope="module")
def sdxl_clips():
    clip_l = weights("sdxl_clip_l_weights.safetensors.gz", "sdxl_clip_l.")
    return {
        "clip_l": load_clip(clip_l, kind="clip_l", num_heads=2),
        "clip_g": load_clip(weights("text_weights.safetensors.gz", "clip_g."), kind="clip_g", num_heads=6),
    }


@pytest.mark.parametrize("case", GOLDEN["sd"]["outputs"], ids=lambda case: f"{case['clip_skip']}-{case['tokens']}")
def test_states_of_sd_equal_the_reference_for_each_clip_skip_and_length(clip, case):
    tokens = {"clip": ids(GOLDEN["sd"][f"{case['tokens']}_chunk_tokens"])}
    with torch.no_grad():
        states = encode({"clip": clip}, tokens, layers=sd_layers(case["clip_skip"]))["clip"]
    assert list(states.shape) == case["shape"]
    assert states.abs().sum().item() == pytest.approx(case["abs_sum"], rel=1e-5)
    if case["tensor"] is not None:
        torch.testing.assert_close(states, weights("sd_text.safetensors.gz", "")[case["tensor"]], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", GOLDEN["sdxl"]["files"], ids=lambda case: f"{case['chunks']}-rows")
def test_states_of_sdxl_equal_the_reference_and_what_its_cache_file_gives(sdxl_clips, case):
    tokens = {"clip_l": ids(case["tokens1"]), "clip_g": ids(case["tokens2"])}
    with torch.no_grad():
        states = encode(sdxl_clips, tokens, layers=SDXL_LAYERS)
    arrays = np.load(CACHE / case["file"])
    reader = UnetNpzReader("sdxl", tuple(WIDTHS), WIDTHS, case["chunks"], is_weighted=False, dtype=torch.float32)
    read = reader.texts(CACHE / case["file"])
    assert states.keys() == read.keys()
    for ours, theirs in (("clip_l", "hidden_state1"), ("clip_g", "hidden_state2"), ("clip_g_pooled", "pool2")):
        torch.testing.assert_close(states[ours][0], torch.from_numpy(arrays[theirs]), atol=1e-4, rtol=0)
        assert np.array_equal(read[ours].numpy(), arrays[theirs])
