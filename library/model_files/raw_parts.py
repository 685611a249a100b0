"""A part of an SD3 model under its published names, as it is stored: fp8 stays fp8, with whatever belongs to it.

What is kept beside fp8 weights is told in library/checkpoint/weights.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from library.checkpoint.tensor_stream import PlannedTensor
from library.checkpoint.weights import Part, StoredWeight, stored_weights
from library.errors import OutputError
from library.models.text_encoders import T5_TOKENS, T5_TOKENS_TWIN
from library.tensorfile import torch_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.families.whole_model import Plan

QUANTISATION = "_quantization_metadata"  # of a header: which layers are quantised, in one of the layouts in use
_BESIDE = ("scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant")  # a weight in fp8
_MARKER = "scaled_fp8"


def plan_raw_part(part: Part, dtype: torch.dtype | None, device: str = "cpu") -> Plan:
    """The tensors of a part under their published names, without prefix.

    Args:
        part: Of an SD3 model.
        dtype: Of all weights; None keeps what each has. Where it is given, nothing is left of scales.
        device: Where numbers are converted.
    """
    if part.is_diffusers:
        from library.families.sd3.export import plan_part

        plan = plan_part(part, dtype)
    else:
        plan = _stored(part) if dtype is None else _converted(part, dtype, device)
    return _with_both_tables(plan) if part.kind == "t5xxl" else plan


def _stored(part: Part) -> Plan:
    plan: Plan = {}
    for weight in stored_weights(part, mmap=False):
        plan[weight.name] = PlannedTensor(_shape(weight), weight.dtype, partial(_read_stored, weight))
    return {**plan, **_beside_fp8(part)}


def _read_stored(weight: StoredWeight) -> Tensor:
    return weight.file.read(weight.key) if weight.is_fp8 else weight.wide()


def _shape(weight: StoredWeight) -> tuple[int, ...]:
    return weight.file.header.tensors[weight.key].shape


def _beside_fp8(part: Part) -> Plan:
    """Scales, and marks that there are some."""
    from library.pickled import tensor_reader

    plan: Plan = {}
    for header in part.source.headers:
        reader = tensor_reader(header, mmap=False)
        own = {key: name for key, name in _names_beside(part).items() if key in header.tensors}
        for key, name in own.items():
            info = header.tensors[key]
            plan[name] = PlannedTensor(info.shape, torch_dtype(info.dtype), partial(reader.read, key))
    return plan


def _names_beside(part: Part) -> dict[str, str]:
    """{name in the file: published name} of what belongs to the fp8 weights of a part."""
    known = part.source.tensors
    found: dict[str, str] = {}
    for key, name in part.names.items():
        if key.endswith(".weight"):
            stems = key.removesuffix("weight"), name.removesuffix("weight")
            found |= {stems[0] + end: stems[1] + end for end in _BESIDE if stems[0] + end in known}
    prefix = next((key.removesuffix(name) for key, name in part.names.items() if key.endswith(name)), "")
    return found | ({prefix + _MARKER: _MARKER} if prefix + _MARKER in known else {})


def _converted(part: Part, dtype: torch.dtype, device: str) -> Plan:
    plan: Plan = {}
    for weight in stored_weights(part, mmap=False):
        plan[weight.name] = PlannedTensor(_shape(weight), dtype, partial(_read_converted, weight, dtype, device))
    return plan


def _read_converted(weight: StoredWeight, dtype: torch.dtype, device: str) -> Tensor:
    import torch

    if dtype.itemsize > 1:
        return weight.wide(dtype, device)
    wide, limit = weight.wide(torch.float32, device), torch.finfo(dtype).max
    if wide.numel() and float(wide.abs().max()) > limit:
        raise OutputError(
            f"{weight.part.path}: {weight.key} has numbers above {limit:g}, which fp8 cannot hold. "
            "Use --save_precision bf16."
        )
    return wide.to(dtype).cpu()


def _with_both_tables(plan: Plan) -> Plan:
    """T5's table of tokens under both of its names, as published files have it: readers ask for one or the other."""
    tokens = plan[T5_TOKENS] if T5_TOKENS in plan else plan[T5_TOKENS_TWIN]
    return {**plan, T5_TOKENS: tokens, T5_TOKENS_TWIN: plan.get(T5_TOKENS_TWIN, tokens)}


def with_prefix(plan: Plan, prefix: str) -> Plan:
    """The same plan with something before all names."""
    return {prefix + name: tensor for name, tensor in plan.items()}


def quantised_layers(part: Part) -> dict[str, Any]:
    """{published name of a layer: how the header says that it is quantised}; empty where no header says so."""
    found: dict[str, Any] = {}
    for header in part.source.headers:
        layers: Mapping[str, Any] = json.loads(header.metadata.get(QUANTISATION, "{}")).get("layers", {})
        for layer, entry in layers.items():
            if f"{layer}.weight" in part.names:
                found[part.names[f"{layer}.weight"].removesuffix(".weight")] = entry
    return found
