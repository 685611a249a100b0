"""How one sample picture is drawn and named."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from library.errors import UserError
from library.families.base import ModelFamily
from library.records import Size, View
from library.rng import normal_per_sample
from library.training.encoding.text_stage import TextStage
from library.training.sampling.prompts import SamplePrompt

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn


@torch.no_grad()
def draw_latents(
    prompt: SamplePrompt,
    family: ModelFamily,
    denoiser: nn.Module,
    text: TextStage,
    device: torch.device,
    *,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Scaled latents of one sample. Shape [1, C, h, w], float32. A prompt without a seed gets another every time.

    Args:
        prompt: What to draw.
        family: Of the denoiser.
        denoiser: In evaluation mode.
        text: Knows the texts of the prompt.
        device: Of the denoiser.
        on_step: Called after each step with the number of steps done and of all steps.

    Raises:
        UserError: The model gives numbers that are no picture.
    """
    seed = prompt.seed if prompt.seed is not None else secrets.randbits(31)
    shape = (
        family.latent_channels,
        prompt.height // family.pixels_per_latent,
        prompt.width // family.pixels_per_latent,
    )
    noise = normal_per_sample([seed], shape).to(device)
    view = View.whole(Size(prompt.width, prompt.height))
    conditioning = family.place(text.for_prompts(prompt.texts, denoiser), [view] * len(prompt.texts))

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        return family.predict(denoiser, latents, timesteps, conditioning)

    latents = family.sample(
        predict,
        noise,
        num_steps=prompt.sample_steps,
        sampler=prompt.sampler,
        guidance_scale=prompt.scale,
        seed=seed,
        on_step=on_step,
    )
    if not latents.isfinite().all():
        raise UserError("the model gives NaN or infinite values; the training has probably diverged")
    return latents


def to_picture(images: Tensor) -> Image:
    """The first of images in -1..1, shape [1, 3, H, W], as a Pillow picture."""
    from PIL import Image as pillow

    pixels = ((images[0].float() + 1) / 2).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pillow.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def sample_name(output_name: str | None, index: int, seed: int | None, *, step: int, epoch_end: int | None) -> str:
    """File name of a sample: name, `e` and epoch or the step, index, time, seed."""
    prefix = f"{output_name}_" if output_name else ""
    counter = f"e{epoch_end:06d}" if epoch_end is not None else f"{step:06d}"
    suffix = f"_{seed}" if seed is not None else ""
    return f"{prefix}{counter}_{index:02d}_{time.strftime('%Y%m%d%H%M%S')}{suffix}.png"
