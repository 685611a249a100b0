"""A model file that is merged with others: which of its tensors are weights, and whether files fit each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from library.checkpoint.weights import FLOATS
from library.errors import CheckpointError
from library.families.detect import CONTROLNET, LORA, SD1, SDXL, UNKNOWN, FileKind, file_kind
from library.families.unet.marks import NOISE, VELOCITY, file_marks
from library.families.unet.parts import is_expected

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.checkpoint.weights import Part, StoredWeight, WeightFiles

DENOISER_PREFIX = "model.diffusion_model."
DENOISER = (DENOISER_PREFIX, "model_ema.")  # and the average of its weights, which old files have
_DENOISER_MARKS = ("joint_blocks.0.context_block.attn.qkv.weight", "input_blocks.0.0.weight")
_NEIGHBOURS = ("first_stage_model.", "vae.", "text_encoders.", "cond_stage_model.", "conditioner.", "model_ema.")
_NO_MODELS = (LORA, CONTROLNET, UNKNOWN)
_OPTION = "--models"


@dataclass(frozen=True, eq=False)
class Mergeable:
    """One of the files.

    Attributes:
        path: The file.
        kind: What it holds.
        files: Its header.
        part: Its weights; those in fp8 know their scales.
        floats: {name in all files that have such a tensor: name in this file} of the weights.
        others: Names of its tensors that are no weights: whole numbers, schedules of noise.
        metadata: Of its header.
    """

    path: Path
    kind: FileKind
    files: WeightFiles
    part: Part
    floats: Mapping[str, str]
    others: Collection[str]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def prediction(self) -> str | None:
        """What it says that it predicts, in words; None where it says nothing."""
        marks = file_marks(self.files.tensors, self.metadata)
        is_velocity = VELOCITY in marks
        if marks & {VELOCITY, NOISE} or self.kind in (SDXL, SD1):
            return "the velocity" if is_velocity else "the noise"
        return None

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a weight."""
        return self.files.tensors[self.floats[name]].shape

    def read(self, name: str, dtype: torch.dtype, device: str) -> Tensor:
        """A weight.

        Raises:
            CheckpointError: NaN or infinite values, or values that do not fit `dtype`.
        """
        return self._weights[self.floats[name]].wide(dtype, device)

    def read_other(self, key: str) -> Tensor:
        """A tensor that is no weight."""
        from library.pickled import tensor_reader

        return tensor_reader(self.files.headers[0], mmap=False).read(key)

    @cached_property
    def _weights(self) -> dict[str, StoredWeight]:
        from library.checkpoint.weights import stored_weights

        return {weight.key: weight for weight in stored_weights(self.part, mmap=False)}


def open_mergeable(path: Path, *, allow_pickle: bool = False) -> Mergeable:
    """Read the header of a file.

    Raises:
        CheckpointError: It is missing, damaged, a folder, or no model.
    """
    from library.checkpoint.weights import open_weights, select_part

    if path.is_dir():
        raise CheckpointError(
            f"{_OPTION}: {path} is a folder. Convert it to one file first, with "
            "tools/convert_diffusers20_original_sd.py."
        )
    files = open_weights(path, _OPTION, allow_pickle=allow_pickle)
    kind = file_kind(files.shapes())
    if kind in _NO_MODELS:
        advice = " Merge it with networks/merge_lora.py." if kind == LORA else " Give whole models."
        raise CheckpointError(f"{_OPTION}: {path} is {kind.title}.{advice}")
    names = {key: key for key, info in files.tensors.items() if _is_weight(key, info.dtype)}
    part = select_part("model", files, names)
    others = [key for key in files.tensors if key not in names]
    return Mergeable(path, kind, files, part, _common_names(part.names), others, files.headers[0].metadata)


def _is_weight(key: str, dtype: str) -> bool:
    """Or belongs to weights in fp8; not a schedule of noise, which old files keep as tensors."""
    return (dtype in FLOATS or key.endswith((".comfy_quant", "scaled_fp8"))) and not is_expected(key)


def _common_names(keys: Collection[str]) -> dict[str, str]:
    """{name as in published files: name in this file}: a denoiser alone often has no prefix."""
    if not any(mark in keys for mark in _DENOISER_MARKS):
        return {key: key for key in keys}
    return {key if key.startswith(_NEIGHBOURS) else DENOISER_PREFIX + key: key for key in keys}


def check_alike(models: Sequence[Mergeable]) -> None:
    """Refuse models that cannot be merged.

    Raises:
        CheckpointError: They are of different families or sizes, or their tensors have different names.
    """
    first = models[0]
    for model in models[1:]:
        if model.kind != first.kind:
            raise CheckpointError(
                f"{_OPTION}: {first.path} is {first.kind.title}, {model.path} is {model.kind.title}. "
                "Only models of one family can be merged."
            )
        shared = [name for name in first.floats if name in model.floats]
        if not shared:
            raise CheckpointError(
                f"{_OPTION}: {first.path} and {model.path} have no tensor of the same name. Bring both into one layout "
                "with tools/convert_diffusers20_original_sd.py."
            )
        for name in shared:
            if first.shape(name) != model.shape(name):
                raise CheckpointError(
                    f"{_OPTION}: {name} has shape {list(first.shape(name))} in {first.path} and "
                    f"{list(model.shape(name))} in {model.path}. Only models of the same sizes can be merged."
                )
