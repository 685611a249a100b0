"""A loaded model with its networks and texts, that draws batches of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.diffusion.samplers import Start
from library.generation.acting import ExtraFiles, LoadedExtras, with_regions
from library.generation.conditioning import TextEncoding, stacked, views_of
from library.generation.control_nets import Clock
from library.generation.decoding import decode, encode, to_images, to_pictures
from library.generation.embeddings import add_embeddings
from library.generation.extras import REGIONS, part_of
from library.generation.highres import enlarger, first_pass, is_in_two_passes, second_pass
from library.generation.model import DrawingModel, load_model
from library.generation.networks import NetworkFile, Networks
from library.generation.options.scripts import GenerationOptions
from library.generation.painting import Canvas, Guidance, Painter, begun_at, paint
from library.generation.record import GenerationRecord
from library.generation.regions import Region, networks_of_region
from library.generation.sources import load_cells_mask, load_source
from library.records import Size
from library.rng import normal_per_sample

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from library.families.base import Conditioning, ModelFamily

_OF_PARTS = 9  # input channels: latents, a mask, latents of what stays


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
        extras: What extras of pictures need.
    """

    model: DrawingModel
    networks: Networks
    text: TextEncoding
    painter: Painter
    num_decoded: int = 1
    num_strips: int | None = None
    extras: LoadedExtras = field(default_factory=LoadedExtras)

    @classmethod
    def load(
        cls,
        family: ModelFamily,
        files: Any,
        options: GenerationOptions,
        *,
        networks: Sequence[NetworkFile] = (),
        embeddings: Mapping[Path, Mapping[str, Tensor]] | None = None,
        extras: ExtraFiles | None = None,
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
            LoadedExtras.load(extras or ExtraFiles(), model),
        )

    def draw(
        self,
        batch: Sequence[GenerationRecord],
        on_first: Callable[[Sequence[GenerationRecord], list[Image]], None] | None = None,
    ) -> list[Image]:
        """The pictures of a batch, see `batch_key`.

        Args:
            batch: What is drawn.
            on_first: Called with the small pictures of a first pass and what they were made from, if there is one.

        Raises:
            UserError: The model gives numbers that are no picture, or a source picture cannot be read.
        """
        if not is_in_two_passes(batch[0]):
            return self._decoded(self._painted(batch))
        small = [first_pass(record, self.model.family.sample_multiple) for record in batch]
        latents = self._painted(small)
        if on_first is not None:
            on_first(small, self._decoded(latents))
        start = self._enlarged(latents, batch[0])
        return self._decoded(self._painted([second_pass(record) for record in batch], start))

    def _painted(self, batch: Sequence[GenerationRecord], start: Tensor | None = None) -> Tensor:
        """Latents of one pass. With `start`, clean latents, it begins at these."""
        first = batch[0]
        self.networks.set_strengths(first.networks)
        canvas = self.canvas(batch)
        if start is not None:
            canvas = begun_at(canvas, start, 0.0 if first.strength is None else first.strength)
        is_flow = not self.model.family.samplers
        left_out = 0 if canvas.start is None else canvas.start.first_step(first.steps, rounds_up=is_flow)
        clock = Clock(first.steps - left_out)
        with self.extras.acting(batch, self.painter, canvas, clock) as (painter, canvas):
            if REGIONS in (first.extras or {}):
                painter = with_regions(painter, batch, self._regions(batch), self.networks.set_strengths)
            return paint(painter, canvas, num_steps=first.steps, sampler=first.sampler, on_step=clock)

    def _enlarged(self, latents: Tensor, record: GenerationRecord) -> Tensor:
        """Clean latents of a first pass, at the size of the second. Shape [B, C, h, w]."""
        from torch.nn.functional import interpolate

        extras, cell = record.extras or {}, self.model.family.pixels_per_latent
        if extras["highres_fix_latents_upscaling"]:
            return interpolate(latents, (record.height // cell, record.width // cell), mode="bilinear")
        larger = enlarger(extras, self.model)(self._decoded(latents), Size(record.width, record.height))
        return encode(self.model, to_images(larger))

    def _decoded(self, latents: Tensor) -> list[Image]:
        return to_pictures(decode(self.model, latents, at_once=self.num_decoded, num_strips=self.num_strips))

    def canvas(self, batch: Sequence[GenerationRecord]) -> Canvas:
        """A batch before it is drawn. The noise of a picture is that of its seed, whatever it is drawn with."""
        first, family, device = batch[0], self.model.family, self.model.device
        cell = family.pixels_per_latent
        shape = (family.latent_channels, first.height // cell, first.width // cell)
        noise = normal_per_sample([record.seed for record in batch], shape).to(device)
        seeds = tuple(record.seed for record in batch)
        start, mask, guidance = self._start(batch), self._mask(batch), self.guidance(batch)
        if not self._draws_parts:
            return Canvas(noise, guidance, seeds, start, mask)
        beside = self._beside(batch, mask, noise)
        is_all_noise = start is not None and start.strength >= 1
        return Canvas(noise, guidance, seeds, None if is_all_noise else start, None, beside)

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

    def _regions(self, batch: Sequence[GenerationRecord]) -> list[Region]:
        """Of each region its networks, and what they and its part of each prompt say."""
        number = (batch[0].extras or {})[REGIONS]
        found = []
        for region in range(number):
            networks = networks_of_region(batch[0].networks, region, number)
            self.networks.set_strengths(networks)
            own = [replace(record, networks=networks, prompt=part_of(record.prompt, region)) for record in batch]
            found.append(Region(networks, stacked(self.guidance(own).parts)))
        return found

    def _start(self, batch: Sequence[GenerationRecord]) -> Start | None:
        first = batch[0]
        if first.image is None or first.strength is None:
            return None
        size = Size(first.width, first.height)
        pictures = [load_source(Path(str(record.image)), size) for record in batch]
        return Start(encode(self.model, to_images(pictures)), first.strength)

    @property
    def _draws_parts(self) -> bool:
        """Whether the denoiser was trained to fill in parts of pictures."""
        config: Any = self.model.denoiser.config
        return getattr(config, "in_channels", None) == _OF_PARTS

    def _beside(self, batch: Sequence[GenerationRecord], mask: Tensor | None, noise: Tensor) -> Tensor:
        """The mask, and latents of the picture without what is drawn; without a picture all is drawn. [B, 5, h, w]"""
        import torch

        first = batch[0]
        cells = torch.ones_like(noise[:, :1]) if mask is None else (mask >= 0.5).float()
        if first.image is None or mask is None:
            images = torch.zeros(len(batch), 3, first.height, first.width)
        else:
            size, cell = Size(first.width, first.height), self.model.family.pixels_per_latent
            kept = 1 - cells.repeat_interleave(cell, -1).repeat_interleave(cell, -2).cpu()
            images = to_images([load_source(Path(str(record.image)), size) for record in batch]) * kept
        return torch.cat([cells, encode(self.model, images)], dim=1)

    def _mask(self, batch: Sequence[GenerationRecord]) -> Tensor | None:
        import torch

        first, cell = batch[0], self.model.family.pixels_per_latent
        if first.image is None or first.mask is None:
            return None
        size = Size(first.width, first.height)
        masks = [load_cells_mask(Path(str(record.mask)), size, cell) for record in batch]
        return torch.cat(masks).to(self.model.device)
