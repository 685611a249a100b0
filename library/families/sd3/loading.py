"""The parts of an SD3 model for a training: found in files, read, and as shapes without numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, cast

from library.errors import CheckpointError
from library.families.sd3.options import EIGHT_BITS
from library.families.sd3.settings import Sd3Settings
from library.log import get_logger

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from library.checkpoint.weights import Part
    from library.families.sd3.checkpoint import Sd3Files
    from library.models.mmdit import MMDiT
    from library.records import Size

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sd3Loading(Sd3Settings):
    """What of `library/families/base.py` is about files, the denoiser's blocks, and loading."""

    def inspect(self) -> Sd3Files:
        """Look at the headers of every file that is given. T5 may be missing, the other parts may not.

        Raises:
            CheckpointError: A file cannot be used, or parts are nowhere or incomplete; all are named.
        """
        from library.families.sd3.checkpoint import inspect_files
        from library.families.sd3.parts import TITLES

        files = inspect_files(
            self.pretrained,
            clip_l=self.clip_l,
            clip_g=self.clip_g,
            t5xxl=self.t5xxl,
            vae=self.vae,
            allow_pickle=self.allow_pickle,
        )
        parts = {"vae": files.vae, "clip_l": files.clip_l, "clip_g": files.clip_g}
        if missing := [name for name, part in parts.items() if part is None]:
            titles = " and no ".join(TITLES[name] for name in missing)
            flags = " and ".join(f"--{name}" for name in missing)
            raise CheckpointError(f"{self.pretrained} has no {titles} inside. Give the files with {flags}.")
        files.check_complete()
        if files.t5xxl is None:
            given = {"--t5xxl_device": self.t5_device, "--t5xxl_dtype": self.t5_dtype}
            idle = " and ".join(flag for flag, value in given.items() if value is not None)
            effect = f", so {idle} changes nothing" if idle else ""
            logger.warning("there is no T5 in %s and no --t5xxl: zeros stand for it%s.", self.pretrained, effect)
        return files

    def depth(self, files: Sd3Files) -> int:
        """Number of joint blocks."""
        return files.config.depth

    def longest_side(self, files: Sd3Files) -> int | None:
        """What the stored table of positions covers; tables are computed as needed with --enable_scaled_pos_embed."""
        patch_pixels = files.config.patch_size * self.pixels_per_latent
        return None if self.enable_scaled_pos_embed else files.config.position_side * patch_pixels

    def encoder_part(self, files: Sd3Files, name: str) -> Part | None:
        """T5 may be missing; `inspect` has made sure of the others."""
        return {"clip_l": files.clip_l, "clip_g": files.clip_g, "t5xxl": files.t5xxl}[name]

    def encoder_tokens(self, part: Part) -> int:
        """Number of tokens that a text encoder knows."""
        from library.models.text_encoders import token_rows

        return token_rows(part.shapes(), part.kind)

    def zero_padded(self, files: Sd3Files | None) -> tuple[str, ...]:
        """CLIP-G."""
        return ("clip_g",)

    def encoder_bytes(self, files: Sd3Files, name: str) -> int:
        """Bytes of an encoder's weights as they are stored, or as it keeps them in 8 bits."""
        part, stored = self.encoder_part(files, name), super().encoder_bytes(files, name)
        if part is None or name != "t5xxl" or self.t5_dtype not in EIGHT_BITS:
            return stored
        return min(stored, sum(prod(shape) for shape in part.shapes().values()))

    def advice_for_missing(self, name: str) -> str:
        """Every encoder may be a file of its own."""
        return f"Give one with --{name}"

    # Reading

    def read_denoiser(
        self,
        files: Sd3Files,
        dtype: torch.dtype | None,
        device: torch.device | str,
        *,
        form: str | None = None,
        rounds_on: torch.device | None = None,
    ) -> MMDiT:
        """The MMDiT, frozen, in evaluation mode."""
        from library.families.sd3.checkpoint import load_mmdit

        return load_mmdit(files, dtype, str(device), self.mmap, form=form, rounds_on=rounds_on)

    def quantize_denoiser(
        self, model: MMDiT, form: str, dtype: torch.dtype, device: torch.device, *, rounds_on: torch.device | None
    ) -> nn.Module:
        """The MMDiT in fewer bits."""
        from library.families.sd3.quantized_mmdit import quantize_mmdit

        return quantize_mmdit(model, form, dtype, device, rounds_on=rounds_on)

    def read_vae(self, files: Sd3Files, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The 16-channel autoencoder."""
        from library.families.sd3.checkpoint import read_part
        from library.models.vae import load_vae

        return load_vae(read_part(_given(files.vae), dtype=dtype, device=device, mmap=self.mmap))

    def read_encoder(self, files: Sd3Files, name: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """A CLIP, or T5 as it is asked for."""
        from library.families.sd3.checkpoint import read_part
        from library.models.text_encoders import load_clip

        part = _given(self.encoder_part(files, name))
        if name == "t5xxl":
            return self._read_t5(part, dtype, device)
        return load_clip(read_part(part, dtype=dtype, device=device, mmap=self.mmap), kind=name)

    def _read_t5(self, part: Part, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """T5 as `--t5xxl_device` and `--t5xxl_dtype` ask for it."""
        from library.families.sd3.t5_format import T5Format, load_t5, t5_device

        form, place = T5Format.of(self.t5_dtype, dtype), t5_device(self.t5_device, device)
        is_as_given = form.dtype == dtype and place == device
        return load_t5(part, form if is_as_given else form.on(place), place, mmap=self.mmap)

    def encoder_device(self, name: str, device: torch.device) -> torch.device:
        """With the denoiser, unless T5 is asked for elsewhere."""
        from library.families.sd3.t5_format import t5_device

        return t5_device(self.t5_device, device) if name == "t5xxl" else device

    def check_devices(self, device: torch.device) -> None:
        """Also: T5 can run where it is asked to.

        Raises:
            EnvironmentFault: It cannot; or a device does not know a format of weights.
        """
        from library.families.sd3.t5_format import check_place

        check_place(self.t5_device, self.t5_dtype, device)
        super().check_devices(device)

    def check_changed_encoders(self, names: Sequence[str], why: str) -> None:
        """A T5 whose weights change is where the denoiser is, in the format that training asks for.

        Raises:
            OptionError: It is asked for elsewhere, or in a format of its own.
        """
        from library.families.sd3.t5_format import refuse_changes

        if "t5xxl" in names:
            refuse_changes(self.t5_device, self.t5_dtype, why)

    # Shapes

    def denoiser_outline(self, files: Sd3Files) -> nn.Module:
        """The MMDiT with shapes only."""
        from library.families.sd3.checkpoint import empty_mmdit

        return empty_mmdit(files)

    def vae_outline(self, files: Sd3Files, dtype: torch.dtype) -> nn.Module:
        """The autoencoder with shapes only."""
        from library.families.sd3.outlines import vae_outline

        return vae_outline(_given(files.vae), dtype)

    def encoder_outline(self, files: Sd3Files, name: str, dtype: torch.dtype) -> nn.Module:
        """A text encoder with shapes only; T5 in the format that is asked for."""
        from library.families.sd3.outlines import clip_outline, t5_outline
        from library.families.sd3.t5_format import T5Format

        part = _given(self.encoder_part(files, name))
        if name == "t5xxl":
            return t5_outline(part, T5Format.of(self.t5_dtype, dtype))
        return clip_outline(part, name, dtype)

    def denoiser_inputs(self, files: Sd3Files, size: Size, number: int, text_dtype: torch.dtype) -> dict[str, Tensor]:
        """Arguments of the MMDiT for so many pictures with full texts."""
        from library.families.sd3.outlines import denoiser_inputs
        from library.families.sd3.text_sizes import text_limit

        t5_tokens = text_limit("clip_l" if files.t5xxl is None else "t5xxl", self.t5_length)
        return denoiser_inputs(
            files.config,
            size,
            number,
            num_tokens=text_limit("clip_l", self.t5_length) + t5_tokens,
            text_dtype=text_dtype,
            cells=self.pixels_per_latent,
        )

    def tokens_of_full_length(self, names: Sequence[str], number: int) -> dict[str, Tensor]:
        """Ids and masks of so many captions."""
        from library.families.sd3.outlines import tokens

        return tokens(tuple(names), number, self.t5_length)

    def part_names(self, files: Sd3Files) -> tuple[str, ...]:
        """Embedders, joint blocks, final layer."""
        return ("embedders", *(f"block_{index:02}" for index in range(files.config.depth)), "final")

    def denoiser_parts(self, denoiser: nn.Module) -> dict[str, list[nn.Module]]:
        """The same with their modules."""
        model = cast("MMDiT", denoiser)
        embedders = [model.x_embedder, model.t_embedder, model.y_embedder, model.context_embedder]
        blocks = {f"block_{index:02}": [block] for index, block in enumerate(model.joint_blocks)}
        return {"embedders": embedders, **blocks, "final": [model.final_layer]}

    def encoder_parameters(self, name: str, encoder: nn.Module) -> dict[str, nn.Parameter]:
        """All, but for the projection of CLIP-L: published files have none, consumers take the identity."""
        is_left_out = "text_projection.weight" if name == "clip_l" else None
        return {key: parameter for key, parameter in encoder.named_parameters() if key != is_left_out}


def _given(part: Part | None) -> Part:
    """A part that `inspect` has made sure of."""
    assert part is not None
    return part
