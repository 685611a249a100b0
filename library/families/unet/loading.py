"""The parts of a U-Net model (SD 1.x, SD 2.x, SDXL) for a training: found in files, read, and as shapes only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError
from library.families.unet.marks import FLAGS, NOISE, VELOCITY, ZERO_TERMINAL
from library.families.unet.settings import UnetSettings
from library.families.unet.telltale import is_velocity_unsaid
from library.log import get_logger

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from library.checkpoint.weights import Part
    from library.families.unet.checkpoint import UnetFiles
    from library.models.unet import UNet
    from library.records import Size

logger = get_logger(__name__)

_SAYS = {VELOCITY: "predicts the velocity", ZERO_TERMINAL: "knows noise without any signal"}


@dataclass(frozen=True, kw_only=True)
class UnetLoading(UnetSettings):
    """What of `library/families/base.py` is about files, the U-Net's blocks, and loading."""

    def inspect(self) -> UnetFiles:
        """Look at the headers of every file that is given.

        Raises:
            CheckpointError: A file cannot be used, is of another family or predicts something else than options say,
                or parts are nowhere or incomplete.
        """
        from library.families.unet.checkpoint import inspect_files

        files = inspect_files(
            self.pretrained,
            kinds=self.kinds,
            vae=self.vae,
            allow_pickle=self.allow_pickle,
            input_channels=self.input_channels,
        )
        if not self.follows_marks:
            self.check_marks(files)
            self._doubt_noise(files)
        return files

    def _doubt_noise(self, files: UnetFiles) -> None:
        """Tell of a model whose file says nothing and that is trained to predict noise: one weight may tell more."""
        if not self.is_velocity and is_velocity_unsaid(files):
            logger.warning(
                "--pretrained_model_name_or_path: %s does not say what it predicts, and one weight is as in models "
                "that predict the velocity. If it predicts the velocity, add --v_parameterization.",
                self.pretrained,
            )

    def check_marks(self, files: UnetFiles) -> None:
        """Refuse to train a model that says of itself that it predicts the velocity as one that predicts noise.

        Raises:
            CheckpointError: It says so. Of a schedule that is not the one that it names, a warning tells.
        """
        title = f"--pretrained_model_name_or_path: {self.pretrained} says that it"
        asked = {VELOCITY: self.is_velocity, ZERO_TERMINAL: self.is_zero_terminal}
        missing = [mark for mark, is_given in asked.items() if mark in files.marks and not is_given]
        if VELOCITY in missing:
            said = " and ".join(words for mark, words in _SAYS.items() if mark in files.marks)
            raise CheckpointError(f"{title} {said}. Add {' and '.join(FLAGS[mark] for mark in missing)}.")
        if ZERO_TERMINAL in missing:
            logger.warning(
                "%s %s, and without %s it is trained with a schedule that never reaches such noise.",
                title,
                _SAYS[ZERO_TERMINAL],
                FLAGS[ZERO_TERMINAL],
            )
        if NOISE in files.marks and self.is_velocity:
            logger.warning("%s predicts noise, and --v_parameterization trains it to predict the velocity.", title)

    def depth(self, files: UnetFiles) -> int:
        """Number of blocks that can wait in host memory."""
        from library.families.unet.checkpoint import empty_unet

        return len(empty_unet(files).block_row())

    def longest_side(self, files: UnetFiles) -> int | None:
        """A U-Net has no table of positions."""
        return None

    def model_place(self, files: UnetFiles | None) -> Path:
        """Of a model that was named as the hub names it, its folder in the cache."""
        return self.pretrained if files is None else files.path

    def encoder_part(self, files: UnetFiles, name: str) -> Part | None:
        """`inspect` has made sure of all."""
        return files.encoders.get(name)

    def encoder_tokens(self, part: Part) -> int:
        """Number of tokens that a text encoder knows."""
        from library.families.unet.parts import encoder_tokens

        return encoder_tokens(part)

    def advice_for_missing(self, name: str) -> str:
        """No text encoder is given alone."""
        return "Use a complete model file, or a diffusers folder"

    # Reading

    def read_denoiser(
        self,
        files: UnetFiles,
        dtype: torch.dtype | None,
        device: torch.device | str,
        *,
        form: str | None = None,
        rounds_on: torch.device | None = None,
    ) -> UNet:
        """The U-Net, frozen, in evaluation mode."""
        from library.families.unet.checkpoint import load_unet

        return load_unet(files, dtype, device, self.mmap, form=form, rounds_on=rounds_on)

    def quantize_denoiser(
        self, model: UNet, form: str, dtype: torch.dtype, device: torch.device, *, rounds_on: torch.device | None
    ) -> nn.Module:
        """The U-Net in fewer bits."""
        from library.families.unet.quantized import quantize_unet

        return quantize_unet(model, form, dtype, device, rounds_on=rounds_on)

    def read_vae(self, files: UnetFiles, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The 4-channel autoencoder."""
        from library.families.unet.checkpoint import load_vae

        return load_vae(files, dtype, device, self.mmap)

    def read_encoder(self, files: UnetFiles, name: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """A text encoder."""
        from library.families.unet.checkpoint import load_encoder

        return load_encoder(files, name, dtype, device, self.mmap)

    def encoder_device(self, name: str, device: torch.device) -> torch.device:
        """With the denoiser."""
        return device

    def check_changed_encoders(self, names: Sequence[str], why: str) -> None:
        """No encoder is asked for elsewhere or in a format of its own."""

    # Shapes

    def denoiser_outline(self, files: UnetFiles) -> nn.Module:
        """The U-Net with shapes only."""
        from library.families.unet.checkpoint import empty_unet

        return empty_unet(files)

    def vae_outline(self, files: UnetFiles, dtype: torch.dtype) -> nn.Module:
        """The autoencoder with shapes only."""
        from library.families.unet.outlines import vae_outline

        return vae_outline(files, dtype)

    def encoder_outline(self, files: UnetFiles, name: str, dtype: torch.dtype) -> nn.Module:
        """A text encoder with shapes only."""
        from library.families.unet.outlines import encoder_outline

        return encoder_outline(files, name, dtype)

    def denoiser_inputs(self, files: UnetFiles, size: Size, number: int, text_dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of the U-Net for so many pictures with full texts."""
        from library.families.unet.outlines import denoiser_inputs

        return denoiser_inputs(
            files,
            size,
            number,
            num_tokens=75 * self.num_chunks + 2,
            text_dtype=text_dtype,
            cells=self.pixels_per_latent,
        )

    def tokens_of_full_length(self, names: Sequence[str], number: int) -> dict[str, Tensor]:
        """Ids and masks of so many captions."""
        from library.families.unet.outlines import tokens

        return tokens(tuple(names), number, self.num_chunks)

    def part_names(self, files: UnetFiles) -> tuple[str, ...]:
        """Embedders, every block of the published layout, what is behind them."""
        return tuple(self.denoiser_parts(self.denoiser_outline(files)))

    def denoiser_parts(self, denoiser: nn.Module) -> dict[str, list[nn.Module]]:
        """The same with their modules."""
        from library.families.unet.rate_parts import rate_parts

        return rate_parts(denoiser)

    def encoder_parameters(self, name: str, encoder: nn.Module) -> dict[str, nn.Parameter]:
        """Those that what is read depends on: layers behind it, and a projection that nothing reads, do not train."""
        from library.families.unet.text import reached_parameters

        return reached_parameters(encoder, self.text_layers()[name])
