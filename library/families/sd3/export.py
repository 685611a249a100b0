"""Whole SD3 models as they are published: which tensor is written under which name, and writing them.

One file holds the MMDiT (`model.diffusion_model.`), the VAE in its original names (`first_stage_model.`) and, where
they are asked for, text encoders (`text_encoders.<name>.transformer.`). An encoder that was trained and is not inside
gets a file of its own beside it, `<stem>_<name>.safetensors`, as encoders are published: without a prefix. Parts that
were not trained are read from the model's files, tensor by tensor, while they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from library.checkpoint.tensor_stream import PlannedTensor, plan_tensor, total_bytes
from library.families import whole_model
from library.families.sd3.key_map import ModulePair, mmdit_from_diffusers, mmdit_tensors, published_tensor
from library.families.whole_model import Plan, converted, write_whole_model
from library.models.text_encoders import T5_TOKENS, T5_TOKENS_TWIN, with_text_model
from library.models.vae_key_map import vae_from_diffusers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.families.sd3.checkpoint import Part, Sd3Files
    from library.models.tokenizers import TokenizerSet

CLIP_PROJECTION = "text_projection.weight"
_CLIP_PARTS = ("text_model.", CLIP_PROJECTION)
_T5_PARTS = (T5_TOKENS, "encoder.")


@dataclass(frozen=True)
class Sd3Model:
    """A whole model to write: what was trained, and the files that have the rest.

    Attributes:
        files: The model that the training began with.
        denoiser: What was trained of the MMDiT, and what goes with it.
        encoders: {name: state as transformers gives it} of the encoders that were trained.
        dtype: Of every tensor that is written; None keeps what each has.
        mmap: See `read_weights`.
    """

    files: Sd3Files
    denoiser: Mapping[str, Tensor]
    encoders: Mapping[str, Mapping[str, Tensor]]
    dtype: torch.dtype | None = None
    mmap: bool = True

    def mmdit(self) -> Plan:
        """The MMDiT under its published names, without prefix."""
        trained = {name: plan_tensor(tensor, self.dtype) for name, tensor in self.denoiser.items()}
        return {**plan_part(self.files.denoiser, self.dtype, self.mmap), **trained}

    def vae(self) -> Plan:
        """The VAE under its original names, without prefix."""
        assert self.files.vae is not None  # `inspect` has made sure of it
        return plan_part(self.files.vae, self.dtype, self.mmap)

    def encoder(self, name: str) -> Plan | None:
        """A text encoder under the names of its published file; None where there is none."""
        part = {"clip_l": self.files.clip_l, "clip_g": self.files.clip_g, "t5xxl": self.files.t5xxl}[name]
        if name in self.encoders:
            plan = {key: plan_tensor(tensor, self.dtype) for key, tensor in self.encoders[name].items()}
        elif part is not None:
            plan = plan_part(part, self.dtype, self.mmap)
        else:
            return None
        return _published_t5(plan) if name == "t5xxl" else _published_clip(plan, has_projection=name == "clip_g")

    def single_file(self, bundled: Sequence[str]) -> Plan:
        """Everything in one file, with those of the encoders `bundled` that there are."""
        parts = {"model.diffusion_model.": self.mmdit(), "first_stage_model.": self.vae()}
        parts |= {f"text_encoders.{name}.transformer.": self.encoder(name) or {} for name in bundled}
        return {prefix + name: tensor for prefix, plan in parts.items() for name, tensor in plan.items()}

    def side_files(self, bundled: Sequence[str]) -> dict[str, Plan]:
        """{encoder: what goes into its own file} of those that were trained and are not bundled."""
        return {name: cast(Plan, self.encoder(name)) for name in self.encoders if name not in bundled}


def plan_part(part: Part, dtype: torch.dtype | None, mmap: bool = True) -> Plan:
    """The tensors of a part under their published names."""
    if not part.is_diffusers:
        return whole_model.plan_part(part, dtype, mmap)
    if part.kind == "vae":
        return converted(whole_model.plan_part(part, dtype, mmap), vae_from_diffusers)
    return _plan_diffusers_mmdit(part, dtype, mmap)


def _plan_diffusers_mmdit(part: Part, dtype: torch.dtype | None, mmap: bool) -> Plan:
    """Queries, keys and values are joined, those of one layer at a time."""
    import torch

    stored = whole_model.plan_part(part, dtype, mmap)
    outlines = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in stored.items()}
    joined = mmdit_from_diffusers(outlines)
    return {
        name: PlannedTensor(tuple(joined[name].shape), joined[name].dtype, partial(_joined, pair, stored))
        for name, pair in mmdit_tensors(joined).items()
    }


def _joined(pair: ModulePair, stored: Plan) -> Tensor:
    return published_tensor(pair, [stored[name].fetch() for name in pair.diffusers])


def _published_clip(plan: Plan, *, has_projection: bool) -> Plan:
    """Files of CLIP-L have no projection: SD3 uses its pooled vector as it is."""
    named = {name: tensor for name, tensor in with_text_model(plan).items() if name.startswith(_CLIP_PARTS)}
    return {
        name: tensor
        for name, tensor in named.items()
        if not name.endswith("position_ids") and (has_projection or name != CLIP_PROJECTION)
    }


def _published_t5(plan: Plan) -> Plan:
    """The table of tokens under both names: readers ask for one or the other."""
    tokens = plan[T5_TOKENS] if T5_TOKENS in plan else plan[T5_TOKENS_TWIN]
    rest = {name: tensor for name, tensor in plan.items() if name.startswith(_T5_PARTS)}
    return {**rest, T5_TOKENS: tokens, T5_TOKENS_TWIN: tokens}


def write_model(
    path: Path,
    model: Sd3Model,
    *,
    layout: str,
    bundled: Sequence[str],
    metadata: Mapping[str, str] | None,
    tokenizers: Callable[[], TokenizerSet],
) -> list[Path]:
    """Write a whole model; see library/families/base.py. What belongs to it comes first, the model itself last.

    Args:
        path: A file; a folder for the layout "diffusers".
        layout: "safetensors", "ckpt" or "diffusers".
        bundled: Encoders that go into the file.
        metadata: For its header; a pickle has none.
        tokenizers: Finds those that a folder gets.

    Raises:
        OutputError: Something cannot be written, or the files of the model cannot be read any more.
    """
    from library.families.sd3.diffusers_folder import write_diffusers

    return write_whole_model(
        path,
        layout=layout,
        parts=_parts(model.files),
        single_file=partial(model.single_file, bundled),
        side_files=partial(model.side_files, bundled),
        write_folder=partial(write_diffusers, model=model, tokenizers=tokenizers),
        metadata=metadata,
    )


def model_bytes(model: Sd3Model, *, layout: str, bundled: Sequence[str]) -> int:
    """Bytes that `write_model` takes on the disk, but for headers and small files."""
    if layout == "diffusers":
        from library.families.sd3.diffusers_folder import component_plans

        return sum(total_bytes(plan) for plan in component_plans(model).values())
    plans = [model.single_file(bundled), *model.side_files(bundled).values()]
    return sum(total_bytes(plan) for plan in plans)


def check_places(files: Sd3Files, paths: Iterable[Path], *, layout: str) -> None:
    """Refuse paths where a model may not be written; see library/families/base.py."""
    whole_model.check_places(_parts(files), paths, layout=layout)


def _parts(files: Sd3Files) -> list[Part]:
    parts = (files.denoiser, files.vae, files.clip_l, files.clip_g, files.t5xxl)
    return [part for part in parts if part is not None]
