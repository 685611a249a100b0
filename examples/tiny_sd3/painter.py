"""Have an SD3 model draw many captions at once, with or without a LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from examples.tiny_sd3.start import SHORT
from examples.tiny_sd3.world import SIDE
from library.families.base import Conditioning
from library.families.sd3.family import Sd3Family
from library.rng import normal_per_sample, stream_seed

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from networks.network import AdapterNetwork

STEPS = 20
GUIDANCE = 2.5
_TOGETHER = 50  # pictures


class Painter:
    """A model with its encoders in memory.

    Args:
        model: A single file with everything inside.
        tokenizer_dir: Where the tokenizers are; None looks beside the file.
        t5_length: Tokens of T5.
    """

    def __init__(self, model: Path, *, tokenizer_dir: Path | None = None, t5_length: int = SHORT) -> None:
        self.family = Sd3Family(
            pretrained=model, tokenizer_dir=tokenizer_dir, t5_length=t5_length, dropout_rates={}, flow={}
        )
        files, place = self.family.inspect(), (torch.float32, torch.device("cpu"))
        self.mmdit = self.family.load_denoiser(files, *place)
        self.vae = self.family.load_vae(files, *place)
        self.encoders = self.family.load_text_encoders(files, *place, self.family.encoder_names)
        self.tokenizers = self.family.load_tokenizers(files, self.family.encoder_names)

    def add_lora(self, file: Path, strength: float = 1.0) -> AdapterNetwork:
        """Put a trained network beside the model; more than one can be there. Returns it: its strength can be changed.

        Raises:
            CheckpointError: The file is no LoRA for this model.
        """
        from networks.lora_sd3 import create_network_from_weights

        encoders = list(self.encoders.values())
        network, _ = create_network_from_weights(strength, str(file), None, encoders, self.mmdit, for_inference=True)
        network.apply_to(encoders, self.mmdit)
        return network

    @torch.no_grad()
    def paint(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        side: int = SIDE,
    ) -> list[Image]:
        """Pictures of these captions, each from the noise of its seed.

        Args:
            captions: What to draw.
            seeds: One for each caption.
            steps: Of the sampler.
            guidance: How far to go from what no caption gives towards, and past, what the caption gives.
            side: Of the pictures, in pixels.
        """
        pictures: list[Image] = []
        for start in range(0, len(captions), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            noise = normal_per_sample(seeds[part], (self.family.latent_channels, side // 8, side // 8))
            empty = [] if guidance == 1 else [""] * len(captions[part])  # what guidance leads away from
            told = self._read([*captions[part], *empty])
            latents = self.family.sample(
                lambda rows, timesteps, told=told: self.family.predict(self.mmdit, rows, timesteps, told),  # type: ignore[misc]
                noise,
                num_steps=steps,
                guidance_scale=guidance,
            )
            pictures += to_images(self.family.decode_latents(self.vae, latents))
        return pictures

    def _read(self, captions: Sequence[str]) -> Conditioning:
        states = self.family.encode_text(self.encoders, self.family.tokenize(self.tokenizers, captions))
        return self.family.join_text(states, self.mmdit)


def seeds_for(seed: int, group: str, count: int) -> list[int]:
    """Seeds of noise for the pictures of a group."""
    return [stream_seed(seed, "tiny_sd3_noise", group, index) for index in range(count)]


def to_images(pictures: Tensor) -> list[Image]:
    """Pictures in -1..1 [B, 3, H, W] to RGB images."""
    from PIL import Image

    levels = ((pictures + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return [Image.fromarray(picture.numpy()) for picture in levels]
