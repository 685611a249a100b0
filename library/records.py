"""The small frozen values that travel between the rooms of the toolkit.

Data becomes `ImageRecord`s (scan), then `BatchPlan`s (a pure function of seed and epoch), then a
`Batch`: the only thing that goes from data to training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


ONLY_VECTORS = "emb_params"
"""Name of a learned word's vectors where a model has one text encoder."""


class Size(NamedTuple):
    """Width and height in pixels. Always in this order."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


INTERPOLATIONS = ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box")  # ways to resize


@dataclass(frozen=True)
class CropPlan:
    """How a stored picture becomes a training picture: resize to `resized`, then cut `bucket` out at (left, top)."""

    resized: Size
    left: int
    top: int
    bucket: Size


class View(NamedTuple):
    """What a sample shows of its picture.

    Attributes:
        original: Size of the stored picture, in pixels.
        crop: How it became the training picture.
        is_flipped: It was mirrored left and right, after cutting.
    """

    original: Size
    crop: CropPlan
    is_flipped: bool = False

    @classmethod
    def whole(cls, size: Size) -> View:
        """All of a picture of this size."""
        return cls(size, CropPlan(size, 0, 0, size))


@dataclass(frozen=True)
class ImageRecord:
    """One picture of one subset, as found on disk.

    Attributes:
        path: The image file.
        key: Name that stays the same between runs, unique within the run. It keys random draws.
        caption: Text as read from its file (may hold several lines), or the class tokens.
        size: Of the stored picture, in pixels.
        repeats: How often the picture occurs in an epoch; 1 or more.
        dataset: Index of the dataset in the configuration.
        subset: Index of the subset in that dataset.
        loss_weight: Factor on this picture's loss.
        mask: A picture that says where to learn, or None; a subset with alpha_mask has it in the picture itself.
        is_reg: A regularisation picture.
        conditioning: A picture that says what this one shows where, for a network that is told it; or None.
    """

    path: Path
    key: str
    caption: str
    size: Size
    repeats: int
    dataset: int
    subset: int
    loss_weight: float = 1.0
    mask: Path | None = None
    is_reg: bool = False
    conditioning: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The picture and those that belong to it."""
        return tuple(path for path in (self.path, self.mask, self.conditioning) if path is not None)


class PlannedItem(NamedTuple):
    """One occurrence of a picture in an epoch."""

    record: int  # index in the list of records
    repeat: int  # 0 .. repeats-1


@dataclass(frozen=True)
class BatchPlan:
    """Which pictures form a batch.

    Attributes:
        epoch: Counted from 1.
        index: Place of the batch in the epoch, over all processes, counted from 0.
        step: Optimizer steps done before this batch is used (for caption warm-up).
        size: Bucket of every picture of the batch.
        items: Pictures of the batch; never empty.
        weight: Factor on the whole batch's loss: 1, or 0 for a batch that only keeps a process in step. Where the
            batches of an epoch cannot be dealt evenly, a process that has none left gets a copy of the epoch's last
            one with weight 0, so that its model runs and every collective call finds all processes.
    """

    epoch: int
    index: int
    step: int
    size: Size
    items: tuple[PlannedItem, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Batch:
    """What a training step gets from the data.

    Attributes:
        plan: Where the batch belongs.
        sample_ids: One stable name per sample; with the epoch it keys the sample's random draws.
        captions: Final captions, after shuffling and dropout.
        loss_weights: Shape [B], float32.
        views: What each sample shows of its picture.
        images: Shape [B, 3, H, W], -1..1, or None where latents are cached.
        latents: Shape [B, C, h, w], scaled, or None where they have to be encoded.
        text: Named encoder outputs, each [B, ...], or None where nothing is cached.
        text_rows: Of those that are token states, for each sample the number of rows up to the last that is not zero.
        posterior_seeds: One seed per sample for the draw from the VAE's posterior.
        masks: Where to learn, 0..1, at the size of the latents. Shape [B, 1, h, w], or None where no sample has one;
            samples without one are all 1.
        conditioning_images: What a network is told of each picture, -1..1, cut out and mirrored as it. Shape
            [B, 3, H, W], or None where there are none.
        preserves_output: Of each sample, whether the model shall keep drawing it as it does without the network.
            Shape [B], bool, on the CPU; None where no sample asks for it.
        num_whole: Samples of the batch that this one is a part of; 0 where it is whole.
        offset: Samples of that batch before this part.
        leader: Name of that batch's first sample; empty where it is whole.
    """

    plan: BatchPlan
    sample_ids: tuple[str, ...]
    captions: tuple[str, ...]
    loss_weights: Tensor
    views: tuple[View, ...] = ()
    images: Tensor | None = None
    latents: Tensor | None = None
    text: dict[str, Tensor] | None = None
    text_rows: dict[str, tuple[int, ...]] | None = None
    posterior_seeds: tuple[int, ...] = ()
    masks: Tensor | None = None
    conditioning_images: Tensor | None = None
    preserves_output: Tensor | None = None
    num_whole: int = 0
    offset: int = 0
    leader: str = ""

    @property
    def weight(self) -> float:
        """Factor on the whole batch's loss: 1, or 0 where it only keeps a process in step with the others."""
        return self.plan.weight

    def take(self, part: range) -> Batch:
        """The batch of some of its samples, one after another."""
        rows = slice(part.start, part.stop)

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows]

        return replace(
            self,
            plan=replace(self.plan, items=self.plan.items[rows]),
            sample_ids=self.sample_ids[rows],
            captions=self.captions[rows],
            loss_weights=self.loss_weights[rows],
            views=self.views[rows],
            images=cut(self.images),
            latents=cut(self.latents),
            text=self.text and {name: tensor[rows] for name, tensor in self.text.items()},
            text_rows=self.text_rows and {name: numbers[rows] for name, numbers in self.text_rows.items()},
            posterior_seeds=self.posterior_seeds[rows],
            masks=cut(self.masks),
            conditioning_images=cut(self.conditioning_images),
            preserves_output=cut(self.preserves_output),
            num_whole=len(self.sample_ids),
            offset=part.start,
            leader=self.sample_ids[0],
        )

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            loss_weights=self.loss_weights.to(device, non_blocking=True),
            images=move(self.images),
            latents=move(self.latents),
            masks=move(self.masks),
            conditioning_images=move(self.conditioning_images),
            text=self.text and {name: t.to(device, non_blocking=True) for name, t in self.text.items()},
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory. Called by torch's loader."""

        def pin(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.pin_memory()

        return replace(
            self,
            loss_weights=self.loss_weights.pin_memory(),
            images=pin(self.images),
            latents=pin(self.latents),
            masks=pin(self.masks),
            conditioning_images=pin(self.conditioning_images),
            text=self.text and {name: t.pin_memory() for name, t in self.text.items()},
        )
