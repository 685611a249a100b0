"""A loaded model with its networks and texts, that draws batches of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.diffusion.samplers import Start
from library.generation.conditioning import TextEncoding, views_of
from library.generation.decoding import decode, encode, to_images, to_pictures
from library.generation.embeddings import add_embeddings
from library.generation.model import DrawingModel, load_model
from library.generation.networks import NetworkFile, Networks
from library.generation.options.scripts import GenerationOptions
from library.generation.painting import Canvas, Guidance, Painter, paint
from library.generation.record import GenerationRecord
from library.generation.sources import load_cells_mask, load_source
from library.records import Size
from library.rng import normal_per_sample

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from library.families.base import Conditioning, ModelFamily


@dataclass(frozen=True)
class Drawing:
    """What draws, loaded.

    Attributes:
        model: All parts.
        networks: Of the model.
        text: Encodes prompts.
        painter: Draws latents.
        num_decoded: Pictures that are decoded at once.
        num_strips: Of a picture while it is decoded; None for whole.
    """

    model: DrawingModel
    networks: Networks
    text: TextEncoding
    painter: Painter
    num_decoded: int = 1
    num_strips: int | None = None

    @classmethod
    def load(
        cls,
        family: ModelFamily,
        files: Any,
        options: GenerationOptions,
        *,
        networks: Sequence[NetworkFile] = (),
        embeddings: Mapping[Path, Mapping[str, Tensor]] | None = None,
    ) -> Drawing:
        """Read the model, and put networks and embeddings beside it.

        Raises:
            UserError: Weights are damaged, or something does not fit.
        """
        model = load_model(family, files, options.computing)
        add_embeddings(model, embeddings or {})
        attached = Networks(model, networks, recomputes=options.network.network_pre_calc)
        return cls(
            model,
            attached,
            TextEncoding(model, options.model.emb_normalize_mode),
            Painter(family, model.denoiser, model.computing),
            options.computing.num_decoded,
            options.computing.vae_slices,
        )

    def draw(self, batch: Sequence[GenerationRecord]) -> list[Image]:
        """The pictures of a batch, see `batch_key`.

        Raises:
            UserError: The model gives numbers that are no picture, or a source picture cannot be read.
        """
        first = batch[0]
        self.networks.set_strengths(first.networks)
        latents = paint(self.painter, self.canvas(batch), num_steps=first.steps, sampler=first.sampler)
        return to_pictures(decode(self.model, latents, at_once=self.num_decoded, num_strips=self.num_strips))

    def canvas(self, batch: Sequence[GenerationRecord]) -> Canvas:
        """A batch before it is drawn. The noise of a picture is that of its seed, whatever it is drawn with."""
        first, family, device = batch[0], self.model.family, self.model.device
        cell = family.pixels_per_latent
        shape = (family.latent_channels, first.height // cell, first.width // cell)
        noise = normal_per_sample([record.seed for record in batch], shape).to(device)
        seeds = tuple(record.seed for record in batch)
        return Canvas(noise, self.guidance(batch), seeds, self._start(batch), self._mask(batch))

    def guidance(self, batch: Sequence[GenerationRecord]) -> Guidance:
        """What the pictures of a batch are led by."""
        import torch

        first = batch[0]
        is_apart = first.negative_scale is not None
        scales = torch.tensor([record.scale for record in batch], device=self.model.device)[:, None, None, None]
        if first.scale == 1 and not is_apart:
            return Guidance(self._told(batch, [r.prompt for r in batch]), None, None, scales, None)
        apart = torch.tensor([record.negative_scale or 0.0 for record in batch], device=self.model.device)
        return Guidance(
            self._told(batch, [record.prompt for record in batch]),
            self._told(batch, [record.negative_prompt for record in batch], is_negative=True),
            self._told(batch, [""] * len(batch), is_negative=True) if is_apart else None,
            scales,
            apart[:, None, None, None] if is_apart else None,
        )

    def _told(
        self, batch: Sequence[GenerationRecord], texts: Sequence[str], *, is_negative: bool = False
    ) -> Conditioning:
        first = batch[0]
        strengths = tuple(use.multiplier for use in first.networks)
        conditioning = self.text.of(texts, first.max_embeddings_multiples, strengths)
        return self.model.family.place(conditioning, [views_of(record, is_negative=is_negative) for record in batch])

    def _start(self, batch: Sequence[GenerationRecord]) -> Start | None:
        first = batch[0]
        if first.image is None or first.strength is None:
            return None
        size = Size(first.width, first.height)
        pictures = [load_source(Path(str(record.image)), size) for record in batch]
        return Start(encode(self.model, to_images(pictures)), first.strength)

    def _mask(self, batch: Sequence[GenerationRecord]) -> Tensor | None:
        import torch

        first, cell = batch[0], self.model.family.pixels_per_latent
        if first.image is None or first.mask is None:
            return None
        size = Size(first.width, first.height)
        masks = [load_cells_mask(Path(str(record.mask)), size, cell) for record in batch]
        return torch.cat(masks).to(self.model.device)
