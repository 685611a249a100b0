"""Text encoders of U-Net models that are written: under Hugging Face's names, and as published files have them.

What the files have and nobody trains is kept: SD 2.x has a last layer that is not used and a projection that nobody
reads, open_clip's encoders a logit scale. Where a source lacks them, as diffusers folders do, published files get
stand-ins, since programs count on their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from library.checkpoint.tensor_stream import PlannedTensor, plan_tensor
from library.families.whole_model import Plan, plan_part
from library.models.clip_key_map import PROJECTION, SCALE, clip_from_open_clip, clip_to_open_clip, open_clip_names
from library.models.text_encoders import CLIP_LAYERS, CLIP_TOKENS, layer_of, with_text_model

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.checkpoint.weights import Part

HF_PROJECTION = f"{PROJECTION}.weight"
PUBLISHED_SCALE = 4.6052  # ln 100, where a source has none

_PROJECTED = "clip_g"  # the encoder whose projection is read, and trains
_POSITIONS = "text_model.embeddings.position_embedding.weight"
_POSITION_IDS = "text_model.embeddings.position_ids"


def plan_encoder(part: Part, trained: Mapping[str, Tensor], dtype: torch.dtype | None, mmap: bool) -> Plan:
    """Everything that the files have of an encoder, under Hugging Face's names, with what was trained in its place.

    Args:
        part: Of the files.
        trained: State as transformers gives it; nothing where it was not trained.
        dtype: Of what is written; None keeps what each has.
        mmap: See `read_weights`.
    """
    stored = plan_part(part, dtype, mmap)
    plan = stored if part.is_diffusers else from_open_clip(stored)
    unused = (_POSITION_IDS,) if part.kind == _PROJECTED else (_POSITION_IDS, HF_PROJECTION)
    learned = {name: tensor for name, tensor in with_text_model(trained).items() if name not in unused}
    return {**plan, **{name: plan_tensor(tensor, dtype) for name, tensor in learned.items()}}


def folder_encoder(plan: Plan, num_layers: int, *, has_projection: bool, has_position_ids: bool) -> Plan:
    """What a diffusers folder has of an encoder: the layers that are used."""
    used = {name: tensor for name, tensor in plan.items() if name.startswith("text_model.")}
    used = {name: tensor for name, tensor in used.items() if layer_of(name) < num_layers}
    if has_projection:
        used[HF_PROJECTION] = plan[HF_PROJECTION]
    return {**used, **(_position_ids(plan) if has_position_ids else {})}


def published_hugging_face(plan: Plan) -> Plan:
    """CLIP-L as single files of SD 1.x and SDXL have it."""
    return {**plan, **_position_ids(plan)}


def published_open_clip(plan: Plan, num_layers: int | None = None) -> Plan:
    """An encoder of open_clip as single files of SD 2.x and SDXL have it.

    Args:
        plan: Under Hugging Face's names.
        num_layers: How many are used, where one more belongs to the file.
    """
    tokens = plan[CLIP_TOKENS]
    more: Plan = {SCALE: PlannedTensor((), tokens.dtype, _scale)}
    if num_layers is not None:
        width = tokens.shape[1]
        last, unused = f"{CLIP_LAYERS}{num_layers - 1}.", f"{CLIP_LAYERS}{num_layers}."
        copies = {name.replace(last, unused): tensor for name, tensor in plan.items() if name.startswith(last)}
        more |= {**copies, HF_PROJECTION: PlannedTensor((width, width), tokens.dtype, partial(_identity, width))}
    return to_open_clip({**more, **plan})


def _position_ids(plan: Plan) -> Plan:
    """The numbers 0 to 76, which readers of older versions ask for. They are always the same, and never trained."""
    import torch

    length = plan[_POSITIONS].shape[0]
    return {_POSITION_IDS: PlannedTensor((1, length), torch.int64, lambda: torch.arange(length)[None])}


def _scale() -> Tensor:
    import torch

    return torch.tensor(PUBLISHED_SCALE)


def _identity(width: int) -> Tensor:
    import torch

    return torch.eye(width)


# Between the names of open_clip and of Hugging Face


def from_open_clip(plan: Plan) -> Plan:
    """open_clip's names to Hugging Face's, as `clip_from_open_clip`."""
    shapes = {name: tuple(outline.shape) for name, outline in clip_from_open_clip(_outlines(plan)).items()}
    renamed: Plan = {}
    for name, others in open_clip_names(plan).items():
        for index, other in enumerate(others):
            part = (
                partial(_chunk, plan[name], index, len(others)) if name != PROJECTION else partial(_turned, plan[name])
            )
            renamed[other] = replace(plan[name], shape=shapes[other], fetch=part)
    return renamed


def to_open_clip(plan: Plan) -> Plan:
    """Hugging Face's names to open_clip's, as `clip_to_open_clip`."""
    outlines = clip_to_open_clip(_outlines(plan))
    renamed: Plan = {}
    for name, others in open_clip_names(outlines).items():
        parts = [plan[other] for other in others]
        fetch = partial(_turned, parts[0]) if name == PROJECTION else partial(_joined, parts)
        renamed[name] = PlannedTensor(tuple(outlines[name].shape), parts[0].dtype, fetch)
    return renamed


def _outlines(plan: Plan) -> dict[str, Tensor]:
    import torch

    return {name: torch.empty(tensor.shape, device="meta") for name, tensor in plan.items()}


def _chunk(tensor: PlannedTensor, index: int, number: int) -> Tensor:
    found = tensor.fetch().detach()
    return found.chunk(number)[index] if number > 1 else found


def _turned(tensor: PlannedTensor) -> Tensor:
    return tensor.fetch().detach().t()


def _joined(tensors: Sequence[PlannedTensor]) -> Tensor:
    import torch

    found = [tensor.fetch().detach() for tensor in tensors]
    return torch.cat(found) if len(found) > 1 else found[0]
