"""Sample pictures while training: when, and how one is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from library.diffusion.samplers import euler_flow
from library.families.base import ModelFamily
from library.log import get_logger
from library.rng import normal_per_sample
from library.tensorfile import write_atomically
from library.training.prompts import SamplePrompt
from library.training.text_stage import TextStage

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

logger = get_logger(__name__)


def is_sample_due(step: int, epoch_end: int | None, every_n_steps: int | None, every_n_epochs: int | None) -> bool:
    """Whether samples are drawn now. `epoch_end` is the epoch that just ended, else None; epochs override steps."""
    if every_n_epochs:
        return epoch_end is not None and epoch_end % every_n_epochs == 0
    return epoch_end is None and bool(every_n_steps) and step % (every_n_steps or 1) == 0


@torch.no_grad()
def draw_latents(
    prompt: SamplePrompt, family: ModelFamily, denoiser: nn.Module, text: TextStage, device: torch.device
) -> Tensor:
    """Scaled latents of one sample. Shape [1, C, h, w], float32."""
    seed = prompt.seed if prompt.seed is not None else int(time.time_ns() % (1 << 31))
    shape = (
        family.latent_channels,
        prompt.height // family.pixels_per_latent,
        prompt.width // family.pixels_per_latent,
    )
    noise = normal_per_sample([seed], shape).to(device)
    is_guided = prompt.scale != 1.0
    texts = [prompt.prompt, prompt.negative_prompt] if is_guided else [prompt.prompt]
    conditioning = text.for_prompts(texts, denoiser)

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        return family.predict(denoiser, latents, timesteps, conditioning)

    return euler_flow(predict, noise, family.inference_sigmas(prompt.sample_steps), guidance_scale=prompt.scale)


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


def save_samples(
    prompts: Sequence[SamplePrompt],
    *,
    family: ModelFamily,
    denoiser: nn.Module,
    vae: nn.Module,
    text: TextStage,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]],
    folder: Path,
    output_name: str | None,
    step: int,
    epoch_end: int | None,
) -> list[Path]:
    """Draw every prompt into `folder`; returns the files."""
    paths = []
    vae_dtype = next(vae.parameters()).dtype
    for index, prompt in enumerate(prompts):
        with autocast():
            latents = draw_latents(prompt, family, denoiser, text, device)
        with torch.no_grad():
            picture = to_picture(family.decode_latents(vae, latents.to(vae_dtype)))
        path = folder / sample_name(output_name, index, prompt.seed, step=step, epoch_end=epoch_end)
        write_atomically(path, lambda place, p=picture: p.save(place, format="PNG"))  # type: ignore[misc]
        paths.append(path)
    logger.info("sample pictures: %s", ", ".join(str(path) for path in paths))
    return paths
