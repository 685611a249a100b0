"""Writing whole SD3 / SD3.5 models. (First slice: one safetensors file.)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.families.sd3.checkpoint import Sd3Files, read_part
from library.tensorfile import write_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def write_model(
    path: Path,
    *,
    files: Sd3Files,
    denoiser: Mapping[str, Tensor],
    encoders: Mapping[str, Mapping[str, Tensor]],
    layout: str,
    bundled: Sequence[str],
    dtype: torch.dtype | None,
    metadata: Mapping[str, str] | None,
    tokenizers: Callable[[], Any],
) -> list[Path]:
    """See library/families/base.py."""
    assert files.vae is not None
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in denoiser.items()}
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in read_part(files.vae).items()}
    for name in bundled:
        part = {"clip_l": files.clip_l, "clip_g": files.clip_g, "t5xxl": files.t5xxl}[name]
        state = encoders[name] if name in encoders else read_part(part) if part is not None else {}
        for key, tensor in state.items():
            if name != "clip_l" or key != "text_projection.weight":
                key = key if name == "t5xxl" or key.startswith(("text_", "encoder.embed")) else f"text_model.{key}"
                tensors[f"text_encoders.{name}.transformer.{key}"] = tensor
    tensors = {name: tensor.detach().to("cpu", dtype or tensor.dtype).clone() for name, tensor in tensors.items()}
    write_tensors(path, tensors, dict(metadata or {}))
    return [path]
