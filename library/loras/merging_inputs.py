"""The files that are merged: read, checked, and each with its strengths."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import CheckpointError
from library.families.lora_layout import LoraPair
from library.log import get_logger
from library.loras.block_weights import module_weights
from library.loras.lora_family import FAMILY_TITLES
from library.loras.lora_file import LoraFile, check_family, read_lora, refuse_non_finite
from library.loras.lora_metadata import prediction_of

if TYPE_CHECKING:
    from library.loras.options.merging import MergeInputOptions
    from networks.oft_adapter import Rotation

OPTION = "--models"
logger = get_logger(__name__)
_OFT, _OFT_UNET, _LORA_UNET = ".oft_blocks", "oft_unet_", "lora_unet_"


@dataclass(frozen=True)
class MergeInput:
    """A file that is merged.

    Attributes:
        path: The file.
        changes: {module, named as in a kohya file of the family: what it does to its weight}
        ratio: Strength of the file.
        weights: {module: weight of its block}; modules that are not in it have 1.
        lora: The file as LoRA; None for OFT.
    """

    path: Path
    changes: Mapping[str, LoraPair | Rotation]
    ratio: float
    weights: Mapping[str, float] = field(default_factory=dict)
    lora: LoraFile | None = None

    def strength(self, name: str) -> float:
        """Of a module."""
        return self.ratio * self.weights.get(name, 1.0)


def read_inputs(
    options: MergeInputOptions, families: Collection[str], *, advice: str, takes_oft: bool = False
) -> tuple[str, list[MergeInput]]:
    """Read what --models names. Files whose ratio is 0 are read and checked too.

    Args:
        options: With --models, --ratios and --lbws.
        families: Those that will do.
        advice: What to do with a LoRA of another family, as a sentence.
        takes_oft: Files of networks.oft will do.

    Returns:
        The family, and the files.

    Raises:
        CheckpointError: A file cannot be used, or they are of different families.
    """
    paths = options.models or ()
    rotations = {path: found for path in paths if (found := _oft_keys(path))}
    if rotations and not takes_oft:
        raise CheckpointError(
            f"{OPTION}: {next(iter(rotations))} is an OFT network, which turns weights and adds nothing to them. "
            "It can be merged into a model: give --sd_model of networks/merge_lora.py or networks/sdxl_merge_lora.py."
        )
    family, loras = _read_loras([path for path in paths if path not in rotations], families, advice)
    inputs = []
    for path, ratio, weights in zip(paths, options.ratios or (), options.block_weights, strict=True):
        lora = loras.get(path)
        changes = lora.modules if lora is not None else _read_oft(path, family, families)
        of_blocks = {} if weights is None else module_weights(changes, family, weights, _title(path, family))
        inputs.append(MergeInput(path, changes, ratio, of_blocks, lora))
    _tell_predictions([given.lora for given in inputs if given.lora is not None and given.ratio])
    return family, inputs


def _tell_predictions(loras: Sequence[LoraFile]) -> None:
    """Files that are for models of different kinds: nothing else tells these apart."""
    said = {path: kind for path, kind in ((lora.path, prediction_of(lora)) for lora in loras) if kind}
    if len(set(said.values())) > 1:
        logger.warning(
            "%s: these LoRAs are for models that predict different things (%s), and seldom go together. A merged LoRA "
            "says %s, as the first of them.",
            OPTION,
            ", ".join(f"{path}: {kind}" for path, kind in said.items()),
            next(iter(said.values())),
        )


def _title(path: Path, family: str) -> str:
    return f"{path} (for {FAMILY_TITLES[family]})"


def _read_loras(paths: Sequence[Path], families: Collection[str], advice: str) -> tuple[str, dict[Path, LoraFile]]:
    """Of one family: the one that all of them may be for."""
    wanted = next(iter(families)) if len(families) == 1 else None
    loras = {path: read_lora(path, OPTION, wanted) for path in paths}
    for lora in loras.values():
        check_family(lora, families, OPTION, advice)
        refuse_non_finite(lora, OPTION)
    common = [name for name in families if all(name in lora.families for lora in loras.values())]
    if not common:
        told = ", ".join(f"{path} is for {FAMILY_TITLES[lora.family]}" for path, lora in loras.items())
        raise CheckpointError(f"{OPTION}: {told}. Merge LoRAs of one family.")
    likely = [lora.family for lora in loras.values() if lora.family in common]
    family = likely[0] if likely else common[0]
    return family, {
        path: lora if lora.family == family else read_lora(path, OPTION, family) for path, lora in loras.items()
    }


def _oft_keys(path: Path) -> list[str]:
    from library.pickled import read_any_header

    tensors = read_any_header(path, OPTION).tensors
    return [key for key in tensors if key.startswith(_OFT_UNET) and key.endswith(_OFT)]


def _read_oft(path: Path, family: str, families: Collection[str]) -> dict[str, Rotation]:
    """{name of a module, as a LoRA has it: its rotations}"""
    import torch

    from library.families.unet.lora_format import own_names
    from library.pickled import read_any_header, read_any_tensors
    from networks.oft_file import rotations

    if family == "sd3":
        raise CheckpointError(f"{OPTION}: {path} is an OFT network, which are for SD1, SD2 and SDXL, not for SD3.")
    found = rotations(read_any_tensors(read_any_header(path, OPTION)))
    as_lora = {name: _LORA_UNET + name.removeprefix(_OFT_UNET) for name in found}
    own = own_names(as_lora.values(), family)
    for name, rotation in found.items():
        if rotation.blocks.dim() != 3 or not bool(torch.isfinite(rotation.blocks).all()):
            raise CheckpointError(f"{OPTION}: {path} is damaged: {name} holds no rotations. Use an intact file.")
    return {own[as_lora[name]]: rotation for name, rotation in found.items()}
