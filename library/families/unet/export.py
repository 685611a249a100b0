"""Whole U-Net models (SD 1.x, SD 2.x, SDXL) as they are published: which tensor is written under which name.

One file holds the U-Net (`model.diffusion_model.`) and the VAE (`first_stage_model.`) in their published names, and
the text encoders: `cond_stage_model.` with names of Hugging Face in SD 1.x and of open_clip in SD 2.x,
`conditioner.embedders.0.` and `.1.` in SDXL. Averages of weights and schedules, which some files have beside them, are
not written. Parts that were not trained are read from the model's files while they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from library.checkpoint.tensor_stream import PlannedTensor, plan_tensor, total_bytes
from library.families import whole_model
from library.families.unet.encoder_plans import plan_encoder, published_hugging_face, published_open_clip
from library.families.unet.marks import TENSORS
from library.families.whole_model import Plan, converted, plan_part, write_whole_model
from library.models.unet_key_map import unet_from_diffusers, unet_to_diffusers
from library.models.vae_key_map import vae_from_diffusers, vae_to_diffusers

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import CLIPTextConfig

    from library.checkpoint.weights import Part
    from library.families.unet.checkpoint import UnetFiles
    from library.models.tokenizers import TokenizerSet


@dataclass(frozen=True)
class UnetModel:
    """A whole model to write: what was trained, and the files that have the rest.

    Attributes:
        files: The model that the training began with.
        denoiser: What was trained of the U-Net, under diffusers' names.
        encoders: {name: state as transformers gives it} of the encoders that were trained.
        dtype: Of every tensor that is written; None keeps what each has.
        mmap: See `read_weights`.
        marks: What the model was trained for, see `UnetFiles`. Single files of SDXL and the schedulers of folders say
            so.
    """

    files: UnetFiles
    denoiser: Mapping[str, Tensor]
    encoders: Mapping[str, Mapping[str, Tensor]]
    dtype: torch.dtype | None = None
    mmap: bool = True
    marks: frozenset[str] = frozenset()

    def unet(self) -> Plan:
        """The U-Net under diffusers' names."""
        part = self.files.unet
        stored = plan_part(part, self.dtype, self.mmap)
        trained = {name: plan_tensor(tensor, self.dtype) for name, tensor in self.denoiser.items()}
        return {**(stored if part.is_diffusers else unet_to_diffusers(stored)), **trained}

    def vae(self) -> Plan:
        """The VAE under diffusers' names."""
        part = self.files.vae
        stored = plan_part(part, self.dtype, self.mmap)  # names of diffusers may be old ones
        return converted(converted(stored, vae_from_diffusers) if part.is_diffusers else stored, vae_to_diffusers)

    def encoder(self, name: str) -> Plan:
        """A text encoder under Hugging Face's names, with all that its file has."""
        return plan_encoder(self.files.encoders[name], self.encoders.get(name, {}), self.dtype, self.mmap)

    def encoder_config(self, name: str) -> CLIPTextConfig:
        """Sizes of a text encoder, with as many layers as are used."""
        import torch

        from library.families.unet.outlines import encoder_outline

        config: CLIPTextConfig = encoder_outline(self.files, name, torch.float32).config
        return config

    def published_encoder(self, name: str) -> Plan:
        """A text encoder as single files have it, without prefix."""
        facts = self.files.facts.encoders[name]
        if not facts.is_open_clip:
            return published_hugging_face(self.encoder(name))
        num_layers = int(self.encoder_config(name).num_hidden_layers) if facts.has_unused_layer else None
        return published_open_clip(self.encoder(name), num_layers)

    def single_file(self) -> Plan:
        """Everything in one file."""
        parts = {
            "model.diffusion_model.": unet_from_diffusers(self.unet()),
            "first_stage_model.": converted(self.vae(), vae_from_diffusers),
        }
        facts = self.files.facts
        parts |= {facts.encoders[name].prefix: self.published_encoder(name) for name in self.files.encoders}
        plan = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
        return {**plan, **(self._marks() if facts.writes_marks else {})}

    def _marks(self) -> Plan:
        """Empty tensors, whose names say what the model predicts. Files of SD 1.x and 2.x have none."""
        import torch

        return {
            name: PlannedTensor((0,), torch.float32, lambda: torch.empty(0)) for name in TENSORS if name in self.marks
        }


def write_model(
    path: Path,
    model: UnetModel,
    *,
    layout: str,
    bundled: Sequence[str] = (),
    metadata: Mapping[str, str] | None,
    tokenizers: Callable[[], TokenizerSet],
) -> list[Path]:
    """Write a whole model; see library/families/base.py.

    Args:
        path: A file; a folder for the layout "diffusers".
        layout: "safetensors", "ckpt" or "diffusers".
        bundled: Of no use: all encoders are inside.
        metadata: For the header of the file; a pickle has none.
        tokenizers: Finds those that a folder gets.

    Raises:
        OutputError: It cannot be written, or the files of the model cannot be read any more.
    """
    from library.families.unet.diffusers_folder import write_diffusers

    return write_whole_model(
        path,
        layout=layout,
        parts=_parts(model.files),
        single_file=model.single_file,
        side_files=dict,  # all encoders are inside
        write_folder=partial(write_diffusers, model=model, tokenizers=tokenizers),
        metadata=metadata,
    )


def model_bytes(model: UnetModel, *, layout: str, bundled: Sequence[str] = ()) -> int:
    """Bytes that `write_model` takes on the disk, but for headers and small files."""
    if layout == "diffusers":
        from library.families.unet.diffusers_folder import model_folder

        return model_folder(model).total_bytes()
    return total_bytes(model.single_file())


def check_places(files: UnetFiles, paths: Iterable[Path], *, layout: str) -> None:
    """Refuse paths where a model may not be written; see library/families/base.py."""
    whole_model.check_places(_parts(files), paths, layout=layout)


def _parts(files: UnetFiles) -> list[Part]:
    return [files.unet, files.vae, *files.encoders.values()]
