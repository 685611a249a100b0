"""An SD3 model of any size with random weights in files, for measurements of reading: its numbers mean nothing.

Each tensor is drawn when it is written, so a model may be larger than the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from examples.tiny_sd3.make import build_tiny_sd3
from examples.tiny_sd3.tokenizers import write_tokenizers
from library.rng import torch_stream

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from library.checkpoint.tensor_stream import PlannedTensor

Shapes = Mapping[str, tuple[int, ...]]
_DENOISER = "model.diffusion_model."


@dataclass(frozen=True)
class ModelSize:
    """Widths and depths. The VAE is that of the tiny model.

    Attributes:
        denoiser: Width and blocks of the MMDiT; heads are 64 wide.
        clip_l: Width and layers. So do `clip_g` and `t5xxl`.
    """

    denoiser: tuple[int, int]
    clip_l: tuple[int, int]
    clip_g: tuple[int, int]
    t5xxl: tuple[int, int]


@dataclass(frozen=True)
class SizedModel:
    """The files, as flags name them, and how many numbers each has."""

    files: Mapping[str, Path]
    numbers: Mapping[str, int]

    def flags(self) -> list[str]:
        """For a training script."""
        names = {"denoiser": "pretrained_model_name_or_path"}
        return [f"--{names.get(part, part)}={path}" for part, path in self.files.items()]


def build_model(folder: Path, size: ModelSize, dtype: torch.dtype) -> SizedModel:
    """Write the parts, each into a file of its own, and the tokenizers beside them."""
    from library.checkpoint.tensor_stream import write_planned

    clip_rows, t5_rows = write_tokenizers(folder)
    outlines: dict[str, Callable[[], Shapes]] = {
        "denoiser": partial(_denoiser, size),
        "clip_l": partial(_clip, size.clip_l, clip_rows),
        "clip_g": partial(_clip, size.clip_g, clip_rows),
        "t5xxl": partial(_t5, size.t5xxl, t5_rows),
    }
    vae = build_tiny_sd3(folder / "vae", bundle=False).vae
    assert vae is not None
    files, numbers = {"vae": vae}, {}
    for part, outline in outlines.items():
        shapes = outline()
        prefix = _DENOISER if part == "denoiser" else ""
        planned = {prefix + name: _planned(part, name, shape, dtype) for name, shape in shapes.items()}
        files[part] = folder / f"{part}.safetensors"
        write_planned(files[part], planned, {"format": "pt"})
        numbers[part] = sum(each.num_bytes for each in planned.values()) // dtype.itemsize
    return SizedModel(files, numbers)


def _planned(part: str, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> PlannedTensor:
    from library.checkpoint.tensor_stream import PlannedTensor

    return PlannedTensor(shape, dtype, partial(_drawn, part, name, shape))


def _drawn(part: str, name: str, shape: tuple[int, ...]) -> Tensor:
    """Matrices that keep the size of signals, norms of one, biases of nothing."""
    import torch

    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    numbers = torch.randn(shape, generator=torch_stream(0, "sized_model", part, name))
    return numbers.mul_(max(1, numbers[0].numel()) ** -0.5)


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _denoiser(size: ModelSize) -> Shapes:
    import torch

    from library.models.mmdit import MMDiT, MMDiTConfig

    (width, depth), pooled = size.denoiser, size.clip_l[0] + size.clip_g[0]
    with torch.device("meta"):
        config = MMDiTConfig(
            depth=depth, num_heads=width // 64, context_dim=size.t5xxl[0], pooled_dim=pooled, position_side=24
        )
        return _shapes(MMDiT(config))


def _clip(size: tuple[int, int], rows: int) -> Shapes:
    import torch
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    width, layers = size
    config = CLIPTextConfig(
        vocab_size=rows,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    with torch.device("meta"):
        return _shapes(CLIPTextModelWithProjection(config))


def _t5(size: tuple[int, int], rows: int) -> Shapes:
    import torch
    from transformers import T5Config, T5EncoderModel

    width, layers = size
    config = T5Config(
        vocab_size=rows,
        d_model=width,
        d_kv=64,
        d_ff=5 * width // 2,
        num_layers=layers,
        num_heads=width // 64,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        return _shapes(T5EncoderModel(config))
