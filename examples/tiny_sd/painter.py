"""Have a tiny model draw captions, and count how many things have the colour that was asked for.

python -m examples.tiny_sd.painter MODEL [--count 200] [--sampler ddim] [--steps 10] [--guidance 1.5]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from examples.tiny_sd.pictures import large_thing
from examples.tiny_sd3.painter import to_images
from examples.tiny_sd3.quality import shares
from examples.tiny_sd3.world import SIDE
from library.families.sd.family import SdFamily
from library.rng import normal_per_sample, stream_seed

if TYPE_CHECKING:
    from PIL.Image import Image

NOISE = {"v_parameterization": True, "zero_terminal_snr": True}  # as the model is trained
SAMPLER = "ddim"
STEPS = 10
GUIDANCE = 1.5
SEED = 7  # of captions and noise; the training's is another
_TOGETHER = 50  # pictures


class Painter:
    """A tiny model in memory, on the CPU. It predicts the velocity, and its noise ends in pure noise.

    Args:
        model: A single file with its tokenizer beside it.
    """

    def __init__(self, model: Path) -> None:
        self.family = SdFamily(pretrained=model, noise=NOISE)
        files, place = self.family.inspect(), (torch.float32, torch.device("cpu"))
        self.unet = self.family.load_denoiser(files, *place)
        self.vae = self.family.load_vae(files, *place)
        self.encoders = self.family.load_text_encoders(files, *place, self.family.encoder_names)
        self.tokenizers = self.family.load_tokenizers(files, self.family.encoder_names)

    @torch.no_grad()
    def paint(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        *,
        sampler: str = SAMPLER,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
    ) -> list[Image]:
        """Pictures of these captions, each from the noise of its seed.

        Args:
            captions: What to draw.
            seeds: One for each caption.
            sampler: One of `--sample_sampler`.
            steps: Of the sampler.
            guidance: How far to go from what an empty caption gives towards, and past, what the caption gives.
        """
        pictures: list[Image] = []
        for start in range(0, len(captions), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            latents = self._latents(captions[part], seeds[part], sampler, steps, guidance)
            pictures += to_images(self.family.decode_latents(self.vae, latents))
        return pictures

    def _latents(
        self, captions: Sequence[str], seeds: Sequence[int], sampler: str, steps: int, guidance: float
    ) -> torch.Tensor:
        noise = normal_per_sample(seeds, (self.family.latent_channels, SIDE // 8, SIDE // 8))
        empty = [] if guidance == 1 else [""] * len(captions)
        states = self.family.encode_text(self.encoders, self.family.tokenize(self.tokenizers, [*captions, *empty]))
        told = self.family.join_text(states, self.unet)
        return self.family.sample(
            lambda rows, timesteps: self.family.predict(self.unet, rows, timesteps, told),
            noise,
            num_steps=steps,
            sampler=sampler,
            guidance_scale=guidance,
            seed=SEED,
        )


def right_shares(
    painter: Painter,
    count: int,
    *,
    sampler: str = SAMPLER,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> dict[str, float]:
    """{"colour", "background", "shape" and so on: share of drawn pictures that are right in it}, 0-1."""
    wanted = [large_thing(SEED, index) for index in range(count)]
    seeds = [stream_seed(SEED, "tiny_sd_noise", index) for index in range(count)]
    captions = [what.caption for what in wanted]
    return shares(painter.paint(captions, seeds, sampler=sampler, steps=steps, guidance=guidance), wanted)


def main(argv: Sequence[str] | None = None) -> None:
    """Judge the model that the command line names."""
    parser = argparse.ArgumentParser(description="Count how often a tiny model draws what its captions say.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--sampler", default=SAMPLER)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    args = parser.parse_args(argv)
    settings = {"sampler": args.sampler, "steps": args.steps, "guidance": args.guidance}
    for trait, share in right_shares(Painter(args.model), args.count, **settings).items():
        print(f"{trait}: {share:.1%}")


if __name__ == "__main__":
    main()
