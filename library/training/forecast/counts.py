"""What the models of a run take, counted once for all settings that are compared.

Settings that only say where something lies (swapped blocks, what is recomputed) change no count: they are put together
from the same ones.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from library.families.base import ModelFamily
from library.memory.blocks import blocks
from library.memory.live_memory import num_bytes
from library.memory.swap_plan import swap_plan
from library.training.forecast.batch_sizes import BatchSize, largest_batch, largest_picture
from library.training.forecast.block_calls import Call, block_calls
from library.training.forecast.fake_passes import Counted, FakeDenoiser, Passes, tensors_of
from library.training.forecast.frozen_passes import (
    Frozen,
    Trained,
    text_encoding,
    text_training,
    vae_decoding,
    vae_encoding,
    weight_bytes,
)
from library.training.forecast.outline import Formats, formats_of, model_bytes, num_block_bytes, outline_of

if TYPE_CHECKING:
    from library.records import Size
    from library.training.trainer import Trainer

_OF_TEXT = (2, 3)  # dimensions of pooled vectors and of contexts; latents have more, timesteps one


@dataclass(frozen=True)
class TrainedNumbers:
    """What trains.

    Attributes:
        shapes: Of all of it.
        dtype: It is kept in.
        beside: Bytes that are no part of the models themselves: adapters.
        in_blocks: Numbers of it in each block of the denoiser, without what is attached.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    beside: int
    in_blocks: tuple[int, ...]

    @property
    def count(self) -> int:
        """Numbers."""
        return sum(map(prod, self.shapes))

    @property
    def bytes(self) -> int:
        """Of all of it, and of its gradients."""
        return self.count * self.dtype.itemsize

    def in_swapped(self, number: int | str | None) -> int:
        """Numbers of it in blocks that wait on the host where so many blocks are swapped."""
        if not isinstance(number, int):
            return 0
        return sum(self.in_blocks[index] for index in swap_plan(len(self.in_blocks), number).swapped)


@dataclass(frozen=True)
class Passed:
    """What passes were found to take: shared by settings that differ in something that these do not depend on.

    Attributes:
        frozen: Of VAE and frozen text encoders.
        encoders: Of text encoders that train: the format of the denoiser's weights does not matter to them.
        denoiser: Of the denoiser, for each format of its weights: where text encoders run does not matter to it.
    """

    frozen: dict[tuple[Any, ...], Frozen] = field(default_factory=dict)
    encoders: dict[tuple[str, bool, bool], Mapping[str, Trained]] = field(default_factory=dict)
    denoiser: dict[tuple[str | None, BatchSize, Passes], Counted] = field(default_factory=dict)


class Counts:
    """Counts for a trainer whose options and files are known, with its denoiser in one format.

    Args:
        trainer: It is only asked.
        device: Where the denoiser will be; it need not be there.
        passed: Takes what is counted; may be shared with other counts for the same run.
    """

    def __init__(self, trainer: Trainer, device: torch.device, passed: Passed) -> None:
        self.trainer, self.device = trainer, device
        self.family: ModelFamily = trainer.family
        self.files = trainer.files
        self.batch: BatchSize = largest_batch(trainer.plan)
        self.formats: Formats = formats_of(trainer, device)
        outline = outline_of(trainer, self.formats)
        own = {id(p) for model in (outline.denoiser, *outline.encoders.values()) for p in model.parameters()}
        sizes = num_block_bytes(outline.denoiser)
        trained = {id(p) for p in outline.trained}
        self.note = outline.note
        self.block_bytes: Sequence[int] = sizes
        self.rest_bytes = model_bytes(outline.denoiser) - sum(sizes)
        self.trained = TrainedNumbers(
            shapes=tuple(tuple(p.shape) for p in outline.trained),
            dtype=outline.trained[0].dtype,
            beside=num_bytes(p for p in outline.trained if id(p) not in own),
            in_blocks=tuple(
                sum(p.numel() for p in block.parameters() if id(p) in trained) for block in blocks(outline.denoiser)
            ),
        )
        self._outline = outline
        self._calls: dict[BatchSize, Mapping[int, Call]] = {}
        self._passed = passed

    @cached_property
    def _denoiser(self) -> FakeDenoiser:
        return FakeDenoiser(self._outline.denoiser)

    def denoiser(self, passes: Passes, batch: BatchSize | None = None) -> Counted:
        """The denoiser's passes; by default with the largest batch."""
        batch, own = batch or self.batch, replace(passes, autocast=self.formats.autocast)
        key, found = (self.trainer.options.memory.weights_format, batch, own), self._passed.denoiser
        if key not in found:
            found[key] = self._denoiser.count(lambda: self.inputs(batch), own)
        return found[key]

    def kinds(self) -> list[int]:
        """For each block of the denoiser the first one that is like it, and is called with the same shapes."""
        calls, seen = self.block_calls(self.batch), dict[tuple[Any, ...], int]()
        kinds = self._denoiser.kinds
        return [seen.setdefault((calls[model].shapes, *kinds[model]), model) for model in self._denoiser.models]

    def block_calls(self, batch: BatchSize) -> Mapping[int, Call]:
        """How blocks are called in training, {index: call}: at least the first one of each kind."""
        if batch not in self._calls:
            passes = Passes(autocast=self.formats.autocast)
            self._calls[batch] = block_calls(self._denoiser, lambda: self.inputs(batch), passes)
        return self._calls[batch]

    def inputs(self, batch: BatchSize) -> dict[str, Any]:
        """Arguments of the denoiser; those about the text need gradients where only something before it trains."""
        given = self.family.denoiser_inputs(self.files, batch.size, batch.number, self.formats.encoders)
        if hasattr(self.trainer.options, "inversion"):
            for tensor in tensors_of(given):
                if tensor.is_floating_point() and tensor.ndim in _OF_TEXT:
                    tensor.requires_grad_()
        return given

    def input_bytes(self) -> int:
        """Of the largest batch."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            return num_bytes(tensors_of(self.inputs(self.batch)))

    def trained_encoders(self, *, recomputes: bool, is_freed: bool) -> Mapping[str, Trained]:
        """Text encoders that train, with the largest batch."""
        key, found = (self.note, recomputes, is_freed), self._passed.encoders  # the note tells of another network
        if key not in found:
            found[key] = {
                name: text_training(
                    copy.deepcopy(encoder),
                    self.family,
                    name,
                    self.batch.number,
                    autocast=self.formats.autocast,
                    recomputes=recomputes,
                    is_freed=is_freed,
                )
                for name, encoder in self._outline.encoders.items()
            }
        return found[key]

    def encoder(self, name: str, number: int) -> Frozen:
        """A frozen text encoder that reads so many captions."""
        key = ("text", name, number)
        if key not in self._passed.frozen:
            outline = self.family.encoder_outline(self.files, name, self.formats.encoders)
            self._passed.frozen[key] = text_encoding(outline, self.family, name, number)
        return self._passed.frozen[key]

    def vae(self, size: Size, number: int) -> Frozen:
        """The VAE that encodes so many pictures."""
        key = ("encode", size, number)
        if key not in self._passed.frozen:
            outline = self.family.vae_outline(self.files, self.formats.vae)
            self._passed.frozen[key] = vae_encoding(outline, self.family, size, number)
        return self._passed.frozen[key]

    def drawing_vae(self, size: Size) -> Frozen:
        """The VAE that draws a picture."""
        key = ("decode", size)
        if key not in self._passed.frozen:
            outline = self.family.vae_outline(self.files, self.formats.vae)
            self._passed.frozen[key] = vae_decoding(outline, self.family, size)
        return self._passed.frozen[key]

    @cached_property
    def vae_weights(self) -> int:
        """Bytes of the VAE."""
        return weight_bytes(self.family.vae_outline(self.files, self.formats.vae))

    @property
    def largest_picture(self) -> Size:
        """Of the data."""
        return largest_picture(self.trainer.plan)
