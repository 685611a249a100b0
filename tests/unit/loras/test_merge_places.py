"""Each module of published LoRA lists has its weight in the published model files; from headers alone."""

import gzip
import json
from math import prod
from pathlib import Path

import pytest

from library.checkpoint.weights import WeightFiles
from library.errors import CheckpointError
from library.families.detect import file_kind
from library.loras.merging_places import check_modules, places_in
from library.tensorfile import TensorHeader, TensorInfo

DATA = Path(__file__).parents[2] / "golden" / "data"
MODELS = {
    "sd15": "v1-5-pruned-emaonly",
    "sd21": "v2-1_768-ema-pruned",
    "sdxl": "sd_xl_base_1.0",
    "sd3_medium": "sd3_medium_incl_clips_t5xxlfp16",
}
DENOISERS = {"sd35_medium": "sd3.5_medium", "sd35_large": "sd3.5_large"}
FOLDERS = {
    "sd15": "diffusers_sd15_unet",
    "sdxl": "diffusers_sdxl_unet",
    "sd35_medium": "diffusers_sd3.5_medium_transformer",
}


def load(name):
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def source_of(manifest):
    table = load(f"state_dicts/{manifest}")["tensors"]
    infos = {name: TensorInfo("F16", tuple(shape), 0, 2 * prod(shape)) for name, (shape, _) in table.items()}
    return WeightFiles(Path(manifest), (TensorHeader(Path(manifest), infos, {}),))


def variants(model):
    """{variant: {module: (outputs, inputs)}} of those that list their keys."""
    found = {}
    for name, case in load(f"lora_keys_{model}")["variants"].items():
        shapes = dict(case.get("keys") or [*case.get("unet_keys", []), *case.get("text_encoder_keys", [])])
        modules = {key.split(".")[0] for key in shapes}
        if modules and all(f"{module}.lora_up.weight" in shapes for module in modules):
            found[name] = {
                module: (shapes[f"{module}.lora_up.weight"][0], prod(shapes[f"{module}.lora_down.weight"][1:]))
                for module in modules
            }
    return found


@pytest.mark.parametrize(
    ("model", "manifest"), [*MODELS.items(), *DENOISERS.items(), *FOLDERS.items()], ids=lambda value: value
)
def test_every_known_module_has_a_weight_of_its_size(model, manifest):
    source = source_of(manifest)
    places = places_in(source, file_kind(source.shapes()))
    found: dict[str, list[tuple[int, int]]] = {}
    for key, of_tensor in places.by_tensor.items():
        shape = source.tensors[key].shape
        for place in of_tensor:
            found.setdefault(place.module, []).append(
                (shape[0] // place.rows[1] * place.change[1], prod(shape[1:]), place.change[1])
            )
    checked = 0
    for modules in variants(model).values():
        wanted = {name: size for name, size in modules.items() if manifest in MODELS.values() or "_te" not in name}
        assert not wanted.keys() - found.keys()
        for name, size in wanted.items():
            assert {(rows, columns) for rows, columns, _ in found[name]} == {size}
            assert len(found[name]) == found[name][0][2]
            checked += 1
    assert checked > 100


def test_a_model_names_the_text_encoders_that_it_lacks():
    source = source_of("sd3.5_large")
    places = places_in(source, file_kind(source.shapes()))
    assert places.missing == {"lora_te1_": "CLIP-L", "lora_te2_": "CLIP-G", "lora_te3_": "T5"}
    with pytest.raises(CheckpointError, match="the text encoder T5, which m does not have.*--skip_text_encoders"):
        check_modules(["lora_te3_encoder_block_0_layer_0_SelfAttention_q"], places, "l", "m")
    with pytest.raises(CheckpointError, match=r"l does not fit m: 1 of its modules have no weight there \(lora_unet_x"):
        check_modules(["lora_unet_x"], places, "l", "m")
