"""Have the tiny model of SDXL's layout draw captions, and count how many things have the colour that was asked for.

python -m examples.tiny_sdxl.painter MODEL [--count 100]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from examples.tiny_sd.painter import GUIDANCE, NOISE, SAMPLER, SEED, STEPS
from examples.tiny_sd.pictures import large_thing
from examples.tiny_sd3.painter import to_images
from examples.tiny_sd3.quality import shares
from examples.tiny_sd3.world import SIDE
from library.families.sdxl.family import SdxlFamily
from library.records import Size, View
from library.rng import normal_per_sample, stream_seed

if TYPE_CHECKING:
    from PIL.Image import Image


class Painter:
    """The tiny model in memory, on the CPU. It predicts the velocity, and its noise ends in pure noise.

    Args:
        model: A single file with its tokenizers beside it.
    """

    def __init__(self, model: Path) -> None:
        self.family = SdxlFamily(pretrained=model, noise=NOISE)
        files, place = self.family.inspect(), (torch.float32, torch.device("cpu"))
        self.unet = self.family.load_denoiser(files, *place)
        self.vae = self.family.load_vae(files, *place)
        self.encoders = self.family.load_text_encoders(files, *place, self.family.encoder_names)
        self.tokenizers = self.family.load_tokenizers(files, self.family.encoder_names)

    @torch.no_grad()
    def paint(
        self, captions: Sequence[str], seeds: Sequence[int], *, steps: int = STEPS, guidance: float = GUIDANCE
    ) -> list[Image]:
        """One picture for each caption and seed."""
        noise = normal_per_sample(seeds, (self.family.latent_channels, SIDE // 8, SIDE // 8))
        texts = [*captions, *([] if guidance == 1 else [""] * len(captions))]
        states = self.family.encode_text(self.encoders, self.family.tokenize(self.tokenizers, texts))
        view = View.whole(Size(SIDE, SIDE))
        told = self.family.place(self.family.join_text(states, self.unet), [view] * len(texts))
        latents = self.family.sample(
            lambda rows, timesteps: self.family.predict(self.unet, rows, timesteps, told),
            noise,
            num_steps=steps,
            sampler=SAMPLER,
            guidance_scale=guidance,
            seed=SEED,
        )
        return to_images(self.family.decode_latents(self.vae, latents))


def right_shares(painter: Painter, count: int) -> dict[str, float]:
    """{"colour", "background", "shape" and so on: share of drawn pictures that are right in it}, 0-1."""
    wanted = [large_thing(SEED, index) for index in range(count)]
    seeds = [stream_seed(SEED, "tiny_sdxl_noise", index) for index in range(count)]
    return shares(painter.paint([what.caption for what in wanted], seeds), wanted)


def main(argv: Sequence[str] | None = None) -> None:
    """Judge the model that the command line names."""
    parser = argparse.ArgumentParser(description="Count how often the tiny model draws what its captions say.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args(argv)
    for trait, share in right_shares(Painter(args.model), args.count).items():
        print(f"{trait}: {share:.1%}")


if __name__ == "__main__":
    main()
