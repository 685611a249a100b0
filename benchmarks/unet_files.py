"""Published single files of SD1.5, SD2.1 and SDXL at their true size: with random numbers, or only with their headers.

    python -m benchmarks.unet_files FOLDER --model SDXL

writes a file of random numbers in fp16 (SDXL: 6.9 GB) and small tokenizers, and prints the flags that name them. One
tensor at a time is in memory. The numbers of a large tensor repeat themselves: drawing them all would take minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.true_size_files import clip, sd_vae, write_header
from benchmarks.unet_sizes import SIZES, UNETS, UnetSize
from examples.tiny_sd3.tokenizers import write_tokenizers

if TYPE_CHECKING:
    from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_FIRST, _SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
_NUM_TOKENS = 49408
_NUM_DRAWN = 2**20 + 7  # no multiple of a row's length
_UNUSED_PROJECTION = "text_projection.weight"


def published_shapes(size: UnetSize, *, is_tiny: bool = False) -> dict[str, tuple[int, ...]]:
    """{name in the published single file: shape}"""
    import torch

    from library.models.unet import UNet
    from library.models.unet_key_map import unet_from_diffusers
    from library.models.vae_key_map import vae_from_diffusers

    with torch.device("meta"):
        unet = UNet(**size.config())
        tensors = _under(_UNET, unet_from_diffusers(unet.state_dict()))
        tensors |= _under(_VAE, vae_from_diffusers(sd_vae(is_tiny=is_tiny).state_dict())) | _encoders(
            size, is_tiny=is_tiny
        )
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _encoders(size: UnetSize, *, is_tiny: bool) -> dict[str, Tensor]:
    import torch

    from library.models.clip_key_map import SCALE, clip_to_open_clip

    def open_clip(width: int, layers: int) -> dict[str, Tensor]:
        return clip_to_open_clip(_state(clip(width, layers)) | {SCALE: torch.empty(())})

    if size.kind == "sd2":
        return _under("cond_stage_model.model.", open_clip(size.context, 2 if is_tiny else 24))
    first = _state(clip(size.context - size.pooled, 2 if is_tiny else 12))
    first.pop(_UNUSED_PROJECTION)
    if size.kind == "sd1":
        return _under("cond_stage_model.transformer.", first)
    return _under(_FIRST, first) | _under(_SECOND, open_clip(size.pooled, 2 if is_tiny else 32))


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("position_ids")}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def write_unet_file(folder: Path, name: str, *, has_numbers: bool = False, sizes: str = "true") -> list[str]:
    """Write a model and its tokenizers.

    Args:
        folder: Made if it is missing.
        name: Of `benchmarks.unet_sizes.UNETS`.
        has_numbers: Else the file is a header and a hole.
        sizes: Of `benchmarks.unet_sizes.SIZES`.

    Returns:
        The flags that name it.
    """
    import torch

    from library.checkpoint.tensor_stream import PlannedTensor, write_planned

    write_tokenizers(folder)
    shapes, path = published_shapes(SIZES[sizes][name], is_tiny=sizes == "tiny"), folder / f"{name}.safetensors"
    if has_numbers:
        for tokenizer in ("tokenizer", "tokenizer_2"):
            _widen(folder / tokenizer / "vocab.json")
        planned = {
            key: PlannedTensor(shape, torch.float16, partial(_drawn, key, shape)) for key, shape in shapes.items()
        }
        write_planned(path, planned, {"format": "pt"})
    else:
        write_header(path, shapes)
    return [f"--pretrained_model_name_or_path={path}"]


def _widen(vocabulary: Path) -> None:
    """As many tokens as the published encoders have rows; what begins and what ends a text stay the last two."""
    tokens = sorted(json.loads(vocabulary.read_text(encoding="utf-8")).items(), key=itemgetter(1))
    names = [name for name, _ in tokens]
    unused = [f"unused{number}" for number in range(_NUM_TOKENS - len(names))]
    wide = {name: number for number, name in enumerate([*names[:-2], *unused, *names[-2:]])}
    vocabulary.write_text(json.dumps(wide), encoding="utf-8")


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Matrices that keep the size of signals, norms of one, biases of nothing."""
    import torch

    if len(shape) < 2:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.float16)
    numbers = _row() * prod(shape[1:]) ** -0.5
    return numbers.half().repeat(-(-prod(shape) // len(numbers)))[: prod(shape)].view(shape)


@lru_cache
def _row() -> Tensor:
    """Numbers to repeat."""
    import torch

    return torch.randn(_NUM_DRAWN, generator=torch.Generator().manual_seed(0))


def main(argv: Iterable[str] | None = None) -> int:
    """Write a file of random numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=list(UNETS), default="SDXL")
    parser.add_argument("--sizes", choices=list(SIZES), default="true", help="tiny: narrow, with the same blocks")
    given = parser.parse_args(None if argv is None else list(argv))
    print(*write_unet_file(given.folder, given.model, has_numbers=True, sizes=given.sizes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
