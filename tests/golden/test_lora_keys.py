"""Keys and shapes of saved SD3 LoRA files equal the reference lists; see data/SOURCES.d/networks.md."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from library.models.mmdit import MMDiT, MMDiTConfig
from networks import lora_sd3

DATA = Path(__file__).parent / "data"
MODELS = {
    "sd3_medium": MMDiTConfig(depth=24, num_heads=24),
    "sd35_medium": MMDiTConfig(depth=24, num_heads=24, qk_norm=True, dual_attention=tuple(range(13))),
    "sd35_large": MMDiTConfig(depth=38, num_heads=38, qk_norm=True),
}
KEYS = {name: json.loads(gzip.decompress((DATA / f"lora_keys_{name}.json.gz").read_bytes())) for name in MODELS}
CASES = [(model, variant) for model in MODELS for variant in KEYS[model]["variants"]]


@pytest.fixture(scope="module")
def encoders():
    """CLIP-L, CLIP-G and T5-XXL in full size, without weights."""
    with torch.device("meta"):
        clip_l, clip_g = (
            CLIPTextModelWithProjection(
                CLIPTextConfig(
                    hidden_size=64 * heads,
                    intermediate_size=256 * heads,
                    num_hidden_layers=depth,
                    num_attention_heads=heads,
                )
            )
            for heads, depth in ((12, 12), (20, 32))
        )
        t5 = T5EncoderModel(
            T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
        )
    return [clip_l, clip_g, t5]


@pytest.fixture(scope="module")
def mmdits():
    with torch.device("meta"):
        return {name: MMDiT(config) for name, config in MODELS.items()}


@pytest.mark.parametrize(("model", "variant"), CASES)
def test_saved_keys_and_shapes(model, variant, mmdits, encoders):
    case = KEYS[model]["variants"][variant]
    dim, alpha, args = case["network_dim"], case["network_alpha"], case["network_args"]
    network = lora_sd3.create_network(1.0, dim, alpha, None, encoders, mmdits[model], **args)
    saved = {key: list(factors) for key, factors in shapes(network).items()}

    assert len(saved) == case["count"]
    assert len(list(network.adapters())) == case["modules"]
    assert sorted([key, shape] for key, shape in saved.items() if key.startswith("lora_unet_")) == case["unet_keys"]
    if "text_encoder_keys" in case:
        texts = sorted([key, shape] for key, shape in saved.items() if not key.startswith("lora_unet_"))
        assert texts == case["text_encoder_keys"]
    lines = "\n".join(f"{key} {'x'.join(map(str, saved[key]))}" for key in sorted(saved))
    assert hashlib.sha256(lines.encode()).hexdigest() == case["sha256_of_key_space_shape_lines"]


def shapes(network):
    """Shapes of the saved tensors; they are on the meta device and cannot be saved."""
    result = {}
    for adapter in network.adapters():
        factors = adapter.factors()
        result[f"{adapter.name}.lora_down.weight"] = factors.down.shape
        result[f"{adapter.name}.lora_up.weight"] = factors.up.shape
        result[f"{adapter.name}.alpha"] = ()
    return result
