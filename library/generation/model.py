"""The model that draws: every part of it, loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError, OptionError
from library.log import get_logger

if TYPE_CHECKING:
    import torch
    from torch import nn

    from library.families.base import ModelFamily
    from library.generation.options.computing import DrawingComputeOptions

logger = get_logger(__name__)


@dataclass(frozen=True)
class DrawingModel:
    """A model with all of its parts.

    Attributes:
        family: Of the model.
        files: As its `inspect` gave them.
        tokenizers: Of the encoders that are there.
        encoders: {name: text encoder}
        denoiser: In evaluation mode, as are the others.
        vae: Of the latents.
        device: Of the denoiser.
        dtype: Of weights and computations.
    """

    family: ModelFamily
    files: Any
    tokenizers: Any
    encoders: dict[str, nn.Module]
    denoiser: nn.Module
    vae: nn.Module
    device: torch.device
    dtype: torch.dtype

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The context that the denoiser and networks run in."""
        import torch

        is_wide = self.dtype == torch.float32
        with (
            torch.no_grad(),
            torch.autocast(self.device.type, dtype=None if is_wide else self.dtype, enabled=not is_wide),
        ):
            yield


def load_model(family: ModelFamily, files: Any, computing: DrawingComputeOptions) -> DrawingModel:
    """Read every part.

    Args:
        family: Of the model.
        files: From its `inspect`.
        computing: Precision, attention, and the layout of weights.

    Raises:
        CheckpointError: Weights are damaged.
        OptionError: The attention that is asked for cannot be used.
    """
    import torch

    from library.device import choose_device
    from library.models.attention import PACKAGES, use_attention

    device = choose_device()
    dtype = chosen_dtype(computing, device)
    check_package(computing.attention_package, device)
    family.check_devices(device)
    tokenizers = family.load_tokenizers(files, family.encoder_names)
    encoders = family.load_text_encoders(files, dtype, device, family.encoder_names)
    vae = family.load_vae(files, torch.float32 if computing.no_half_vae else dtype, device)
    place = torch.device("cpu") if computing.blocks_to_swap else device
    denoiser = family.load_denoiser(files, dtype, place).requires_grad_(False).eval()
    if computing.attention_package:
        use_attention(denoiser, PACKAGES[computing.attention_package])
    if computing.opt_channels_last:
        for module in (denoiser, vae):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if computing.blocks_to_swap:
        swap_blocks(denoiser, computing.blocks_to_swap, device)
    return DrawingModel(family, files, tokenizers, encoders, denoiser, vae, device, dtype)


def swap_blocks(denoiser: nn.Module, number: int, device: torch.device) -> None:
    """Let blocks of a denoiser wait in host memory, where it lies; all else moves to the device."""
    from library.memory.block_swap import BlockSwapper
    from library.memory.blocks import around_blocks, blocks, num_streams
    from library.memory.swap_plan import swap_plan

    rows = list(blocks(denoiser))
    BlockSwapper(rows, swap_plan(len(rows), number), device, num_streams=num_streams(denoiser))
    for module in around_blocks(denoiser):
        module.to(device)
    logger.info("block swap: %d of %d blocks wait in host memory.", min(number, len(rows)), len(rows))


def chosen_dtype(computing: DrawingComputeOptions, device: torch.device) -> torch.dtype:
    """The precision that is asked for; on a CPU float32 stands for fp16, and the log says so."""
    from library.device import encoder_dtype, precision_dtype

    asked = precision_dtype(computing.precision)
    dtype = encoder_dtype(asked, device)
    if dtype != asked:
        logger.warning("--fp16: a CPU hardly computes in fp16, so float32 is used. --bf16 takes as little memory.")
    return dtype


def check_package(package: str | None, device: torch.device) -> None:
    """See whether an attention package is installed and has a GPU.

    Raises:
        OptionError: It is not, or has none.
    """
    if package is None:
        return
    if find_spec(package) is None:
        raise OptionError(f"--{package}: the package {package} is not installed. Install it, or use --sdpa.")
    if device.type != "cuda":
        raise OptionError(f"--{package} needs an NVIDIA or AMD GPU, and here is none that torch can use. Use --sdpa.")


@contextmanager
def naming_ckpt() -> Iterator[None]:
    """Call the model by its option here, in what families say of it."""
    try:
        yield
    except (CheckpointError, OptionError) as error:
        message = str(error).replace("--pretrained_model_name_or_path", "--ckpt")
        raise type(error)(message) from error
