"""What a LoRA that was made from others says of itself in the header of its file.

The keys and their meanings are those of a training's file (library/checkpoint/metadata.py), as far as they are known.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from library.checkpoint.metadata import file_metadata, modelspec
from library.records import Size

if TYPE_CHECKING:
    from torch import Tensor

    from library.families.lora_layout import LoraPair
    from library.loras.lora_file import LoraFile

DYNAMIC = "Dynamic"
"""Stands for a rank or an alpha that is not the same in all modules."""
SD1, SDXL = "stable-diffusion-v1", "stable-diffusion-xl-v1-base"
SD2, SD2_V = "stable-diffusion-v2-512", "stable-diffusion-v2-768-v"
_SD3 = "stable-diffusion-3-"
_VERSIONS = {SD1: "sd_v1", SD2: "sd_v2", SD2_V: "sd_v2_v", SDXL: "sdxl_base_v1-0"}
_SIDES = {SD1: 512, SD2: 512, SD2_V: 768}
_SD2_CONTEXT, _SD2_WIDTH = 1024, 1024
_LARGE_WIDTH = 2432  # of the states of SD3.5-large
_LORA = "/lora"
PREDICTIONS = {"v": "the velocity", "epsilon": "noise"}
"""{modelspec.prediction_type of models with a U-Net: in words}"""


def lora_metadata(
    modules: Mapping[str, LoraPair],
    *,
    sources: Sequence[LoraFile],
    title: str,
    family: str,
    tensors: Mapping[str, Tensor],
    comment: str | None = None,
    architecture: str | None = None,
) -> dict[str, str]:
    """Metadata of a file that was made from others.

    Args:
        modules: What the file holds.
        sources: Files that it was made from; none where it was made from models.
        title: Of the file, usually its name without ending.
        family: "sd", "sdxl" or "sd3".
        tensors: As they are saved, for the hashes.
        comment: Becomes ss_training_comment.
        architecture: Of the model that it is for, as in modelspec.architecture; None is guessed.
    """
    architecture = architecture or architecture_of(modules, sources, family)
    training = {
        **_versions(architecture, sources),
        "ss_network_module": "networks.lora_sd3" if family == "sd3" else "networks.lora",
        **_sizes(modules),
        "ss_output_name": title,
        **({"ss_training_comment": comment} if comment else {}),
    }
    merged_from = ", ".join(source.path.stem for source in sources)
    spec = modelspec(
        architecture + _LORA,
        options={"output_name": title, "metadata_merged_from": merged_from or None},
        resolution=_resolution(architecture, sources),
        prediction_type=next(filter(None, map(prediction_of, sources)), None) or _prediction(architecture),
        saved_at=time.time(),
        implementation=_agreed("modelspec.implementation", sources) or "diffusers",
    )
    return file_metadata(tensors, training, spec)


def architecture_of(modules: Mapping[str, LoraPair], sources: Sequence[LoraFile], family: str) -> str:
    """modelspec.architecture of the model that modules are for: what the sources say, else what the shapes do."""
    told = _agreed("modelspec.architecture", sources)
    if told and told.removesuffix(_LORA).startswith("stable-diffusion-"):
        return told.removesuffix(_LORA)
    if family == "sdxl":
        return SDXL
    return _sd3_variant(modules) if family == "sd3" else _sd_variant(modules)


def _sd_variant(modules: Mapping[str, LoraPair]) -> str:
    """SD2 has wider texts; whether it predicts the velocity cannot be told."""
    contexts = {pair.down.shape[1] for name, pair in modules.items() if name.endswith(("attn2_to_k", "attn2_to_v"))}
    widths = {pair.down.shape[1] for name, pair in modules.items() if name.endswith("self_attn_q_proj")}
    return SD2 if _SD2_CONTEXT in contexts or _SD2_WIDTH in widths else SD1


def _sd3_variant(modules: Mapping[str, LoraPair]) -> str:
    if any("_attn2_" in name for name in modules):
        return f"{_SD3}5-medium"
    widths = {pair.down.shape[1] for name, pair in modules.items() if name.endswith("_attn_qkv")}
    return f"{_SD3}5-large" if _LARGE_WIDTH in widths else f"{_SD3}medium"


def _versions(architecture: str, sources: Sequence[LoraFile]) -> dict[str, str]:
    version = _VERSIONS.get(architecture, architecture.removeprefix(_SD3))
    told = _agreed("ss_base_model_version", sources) or version
    return {"ss_base_model_version": told, "ss_v2": str(architecture in (SD2, SD2_V) or told.startswith("sd_v2"))}


def _sizes(modules: Mapping[str, LoraPair]) -> dict[str, str]:
    ranks = {pair.down.shape[0] for pair in modules.values()}
    alphas = {round(pair.scale * pair.down.shape[0], 6) for pair in modules.values()}
    return {
        "ss_network_dim": str(*ranks) if len(ranks) == 1 else DYNAMIC,
        "ss_network_alpha": str(*alphas) if len(alphas) == 1 else DYNAMIC,
    }


def _resolution(architecture: str, sources: Sequence[LoraFile]) -> Size:
    width, _, height = (_agreed("modelspec.resolution", sources) or "").partition("x")
    if width.isdigit() and height.isdigit():
        return Size(int(width), int(height))
    side = _SIDES.get(architecture, 1024)
    return Size(side, side)


def prediction_of(source: LoraFile) -> str | None:
    """What the model predicts that a file is for: "v", "epsilon" or "flow"; None where the file does not say it."""
    if said := source.metadata.get("modelspec.prediction_type"):
        return said
    return prediction_said(source.metadata) if source.family != "sd3" else None


def prediction_said(metadata: Mapping[str, str]) -> str | None:
    """The same from the metadata of a file."""
    told = {"True": "v", "False": "epsilon"}.get(metadata.get("ss_v_parameterization", ""))
    return metadata.get("modelspec.prediction_type") or told


def _prediction(architecture: str) -> str:
    if architecture.startswith(_SD3):
        return "flow"
    return "v" if architecture == SD2_V else "epsilon"


def _agreed(key: str, sources: Sequence[LoraFile]) -> str | None:
    """What the sources say that say something, where it is the same."""
    said = {source.metadata[key] for source in sources if source.metadata.get(key)}
    return said.pop() if len(said) == 1 else None
