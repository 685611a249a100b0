"""Names of LoRA modules of full-size SD1, SD2 and SDXL are those that readers derive from the published names.

ComfyUI, Forge and A1111 accept for each weight X.weight of the U-Net `lora_unet_` and X with underscores: X is the
published name, or for SD1 and SD2 the one of diffusers. For the names, see data/SOURCES.d/networks.md and mmdit.md.
"""

import gzip
import json
import re
from pathlib import Path

import pytest
import torch

from library.families.unet.lora_format import diffusers_to_kohya, kohya_to_diffusers

DATA = Path(__file__).parent / "data"
MODELS = {
    "sd15": ("sd1", "state_dicts/diffusers_sd15_unet", ""),
    "sd21": ("sd2", "state_dicts/diffusers_sd21_unet", ""),
    "sdxl": ("sdxl", "state_dicts/sd_xl_base_1.0", "model.diffusion_model."),
}
CLIP = r"_text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])"


def read(name):
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def layers(name, prefix=""):
    """Dotted names of what has a weight."""
    keys = [key.removeprefix(prefix) for key in read(name)["tensors"] if key.startswith(prefix)]
    return {key.removesuffix(".weight") for key in keys if key.endswith(".weight")}


@pytest.mark.parametrize("model", MODELS)
def test_readers_derive_every_name_and_so_does_diffusers(model):
    kind, manifest, prefix = MODELS[model]
    known = {f"lora_unet_{name.replace('.', '_')}" for name in layers(manifest, prefix)}
    clip = re.compile(("lora_te[12]" if kind == "sdxl" else "lora_te") + CLIP)
    in_diffusers = layers(f"state_dicts/diffusers_{model}_unet")
    for variant in ("default", "conv_dim", "block_dims_conv"):
        shapes = dict(read(f"lora_keys_{model}")["variants"][variant]["keys"])
        names = {key.partition(".")[0] for key in shapes}
        assert all(name in known or clip.fullmatch(name) for name in names)

        empty = {
            key: torch.zeros(()) if not shape else torch.empty(shape, device="meta") for key, shape in shapes.items()
        }
        converted = kohya_to_diffusers(empty, kind)
        paths = {key.rpartition(".lora_")[0] for key in converted}
        assert {path.removeprefix("unet.") for path in paths if path.startswith("unet.")} <= in_diffusers
        assert len(paths) == len(names)
        back = diffusers_to_kohya(converted, kind)
        assert {key: tuple(tensor.shape) for key, tensor in back.items()} == {k: tuple(s) for k, s in shapes.items()}
