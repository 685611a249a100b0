"""From plans to batches: reads caches or decodes pictures, and applies captions, flips, crops and masks.

What a batch holds depends on its plan and the seed only, never on the worker that makes it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from library.data.cache import MASK, CachedTexts, DamagedEntry, TensorCache, used_rows
from library.data.pixels.opencv import opencv
from library.data.pixels.pictures import prepare_conditioning, prepare_picture
from library.data.plan.batches import sample_id
from library.data.plan.captions import apply_caption_rules, replace_texts
from library.data.plan.variants import choose_caption
from library.errors import UserError
from library.log import get_logger
from library.records import Batch, BatchPlan, CropPlan, ImageRecord, PlannedItem, Size, View
from library.rng import python_stream, stream_seed

if TYPE_CHECKING:
    import random

    from torch import Tensor

    from library.data.config.specs import DatasetSpec, SubsetSpec

logger = get_logger(__name__)


def posterior_seed(record: ImageRecord, bucket: Size, is_flipped: bool) -> int:
    """Seed of a picture's draw from the VAE's posterior.

    The same in every epoch and for every --seed, so that cached and live latents are the same draw. It takes the file
    name, not the record's key, because records that share a cache entry have keys of their own.
    """
    return stream_seed(0, "posterior", record.path.name, str(bucket), int(is_flipped))


class Made(NamedTuple):
    """A batch and what was wrong on the way.

    Attributes:
        batch: Complete all the same.
        damaged: Cached latents that could not be read; the pictures were decoded instead.
    """

    batch: Batch
    damaged: Sequence[DamagedEntry] = ()


class _Pixels(NamedTuple):
    """What a batch has of its pictures; see `Batch`."""

    images: Tensor | None
    latents: Tensor | None
    masks: Tensor | None
    crops: tuple[CropPlan, ...]


class BatchDataset(Dataset[Batch]):
    """Makes the batch of a plan: `dataset[plan]`.

    Where the latents of a picture are cached but their file has vanished or is damaged, the pictures of the whole
    batch are decoded, as they were for the cache.

    Args:
        records: All pictures.
        crops: One for each record.
        specs: The datasets that the records' `dataset` counts.
        latents: Filled; one entry for each record. None decodes the pictures.
        texts: Likewise, with the encoder outputs of every caption that a record may have.
        variants: For each record the captions that one is drawn from each time. None applies the caption rules of
            the subset to the record's caption instead.
        cells: Pixels of a latent's side, for masks.
        seed: Of the run; keys the draws of captions, flips, crops and colours.
        max_steps: Optimizer steps of the run, for caption warm-up.
        is_fixed: Nothing is random: no mirroring, no dropout of captions, no random crops or colours; `variants` has
            one caption for each record.
        replacements: Texts to put in for others at the end, see `apply_caption_rules`; not for regularisation.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        crops: Sequence[CropPlan],
        specs: Sequence[DatasetSpec],
        *,
        latents: TensorCache | None = None,
        texts: CachedTexts | None = None,
        variants: Sequence[Sequence[str]] | None = None,
        cells: int = 8,
        seed: int,
        max_steps: int,
        is_fixed: bool = False,
        replacements: Mapping[str, str | Sequence[str]] | None = None,
    ) -> None:
        self.records = records
        self.crops = crops
        self.specs = specs
        self.latents = latents
        self.texts = texts
        self.variants = variants
        self.cells = cells
        self.seed = seed
        self.max_steps = max_steps
        self.is_fixed = is_fixed
        self.replacements = replacements or {}
        self.has_masks = any(self._subset(record).has_masks for record in records)
        self.is_conditioned = any(record.conditioning is not None for record in records)
        self._warned: set[Path] = set()

    def __getitem__(self, plan: BatchPlan) -> Batch:
        """The batch of a plan.

        Raises:
            DatasetError: An image or a file with cached text states cannot be read.
        """
        made = self.make(plan)
        self.warn(made.damaged)
        return made.batch

    def make(self, plan: BatchPlan) -> Made:
        """The batch of a plan and what was wrong. Raises as `dataset[plan]`."""
        records = [self.records[item.record] for item in plan.items]
        flips = [self._is_flipped(item, plan) for item in plan.items]
        captions = tuple(self._caption(item, plan) for item in plan.items)
        pixels, damaged = self._pixels(plan, flips)
        texts = None if self.texts is None else self._text(self.texts, plan, captions)
        batch = Batch(
            plan=plan,
            sample_ids=tuple(sample_id(record, item.repeat) for record, item in zip(records, plan.items, strict=True)),
            captions=captions,
            loss_weights=torch.tensor([record.loss_weight for record in records], dtype=torch.float32),
            views=tuple(
                View(record.size, crop, is_flipped)
                for record, crop, is_flipped in zip(records, pixels.crops, flips, strict=True)
            ),
            images=pixels.images,
            latents=pixels.latents,
            text=None if texts is None else _stacked(texts),
            text_rows=None if texts is None else used_rows(texts),
            posterior_seeds=tuple(
                posterior_seed(record, plan.size, is_flipped) for record, is_flipped in zip(records, flips, strict=True)
            ),
            masks=pixels.masks,
            conditioning_images=self._conditioning(records, pixels.crops, flips) if self.is_conditioned else None,
            preserves_output=self._preserves_output(records),
        )
        return Made(batch, damaged)

    def warn(self, damaged: Iterable[DamagedEntry]) -> None:
        """Say which cache files cannot be used, each once."""
        for error in damaged:
            if error.path not in self._warned:
                self._warned.add(error.path)
                logger.warning("%s Until then the picture is decoded each time.", error)

    def _draw(self, stream: str, item: PlannedItem, plan: BatchPlan) -> random.Random:
        sample = sample_id(self.records[item.record], item.repeat)
        return python_stream(self.seed, stream, plan.epoch, sample)

    def _subset(self, record: ImageRecord) -> SubsetSpec:
        return self.specs[record.dataset].subsets[record.subset]

    def _is_flipped(self, item: PlannedItem, plan: BatchPlan) -> bool:
        subset = self._subset(self.records[item.record])
        return subset.flip_aug and not self.is_fixed and self._draw("flip", item, plan).random() < 0.5

    def _caption(self, item: PlannedItem, plan: BatchPlan) -> str:
        record = self.records[item.record]
        replacements = {} if record.is_reg else self.replacements  # such a picture shows something else
        if self.is_fixed and self.variants is not None:
            return replace_texts(self.variants[item.record][0], replacements, self._draw("caption", item, plan))
        rules, draw = self._subset(record).captions, self._draw("caption", item, plan)
        if self.variants is not None:
            return choose_caption(self.variants[item.record], rules, draw=draw, epoch=plan.epoch)
        return apply_caption_rules(
            record.caption,
            rules,
            draw=draw,
            epoch=plan.epoch,
            step=plan.step,
            max_steps=self.max_steps,
            replacements=replacements,
        )

    def _text(self, texts: CachedTexts, plan: BatchPlan, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        return [texts.read(item.record, caption) for item, caption in zip(plan.items, captions, strict=True)]

    def _preserves_output(self, records: Sequence[ImageRecord]) -> Tensor | None:
        """Shape [B], or None where no sample asks for it."""
        wanted = [self._subset(record).preserves_output for record in records]
        return torch.tensor(wanted) if any(wanted) else None

    def _pixels(self, plan: BatchPlan, flips: Sequence[bool]) -> tuple[_Pixels, Sequence[DamagedEntry]]:
        """From the cache, or decoded; and what of the cache could not be read."""
        if self.latents is None:
            return self._decoded(plan, flips, is_random=not self.is_fixed), ()
        rows, damaged = [], []
        for item in plan.items:
            try:
                rows.append(self.latents.read(self.latents.entries[item.record].id))
            except DamagedEntry as error:
                damaged.append(error)
        return self._decoded(plan, flips, is_random=False) if damaged else self._cached(plan, rows, flips), damaged

    def _decoded(self, plan: BatchPlan, flips: Sequence[bool], *, is_random: bool) -> _Pixels:
        """Args: is_random: With random crops and colours, which cached pictures do not have."""
        prepared = [
            prepare_picture(
                self.records[item.record],
                self.crops[item.record],
                self.specs[self.records[item.record].dataset],
                is_flipped=is_flipped,
                draw=self._draw("pixels", item, plan) if is_random else None,
                cells=self.cells,
            )
            for item, is_flipped in zip(plan.items, flips, strict=True)
        ]
        cells = (1, plan.size.height // self.cells, plan.size.width // self.cells)
        return _Pixels(
            images=torch.stack([picture.image for picture in prepared]),
            latents=None,
            masks=self._masks([picture.mask for picture in prepared], cells),
            crops=tuple(picture.crop for picture in prepared),
        )

    def _conditioning(self, records: Sequence[ImageRecord], crops: Sequence[CropPlan], flips: Sequence[bool]) -> Tensor:
        """What a network is told of the pictures, with their crops. Shape [B, 3, H, W]."""
        return torch.stack(
            [
                prepare_conditioning(record, crop, self.specs[record.dataset], is_flipped=is_flipped)
                for record, crop, is_flipped in zip(records, crops, flips, strict=True)
            ]
        )

    def _cached(self, plan: BatchPlan, rows: Sequence[Mapping[str, Tensor]], flips: Sequence[bool]) -> _Pixels:
        names = ["latents_flipped" if is_flipped else "latents" for is_flipped in flips]
        latents = torch.stack([row[name] for row, name in zip(rows, names, strict=True)])
        masks = [row.get(MASK) for row in rows]
        masks = [m if m is None or not flip else m.flip(-1) for m, flip in zip(masks, flips, strict=True)]
        return _Pixels(
            images=None,
            latents=latents,
            masks=self._masks(masks, (1, *latents.shape[-2:])),
            crops=tuple(self.crops[item.record] for item in plan.items),
        )

    def _masks(self, masks: Sequence[Tensor | None], shape: tuple[int, ...]) -> Tensor | None:
        """Shape [B, 1, h, w]; ones for samples without mask, None where the run has no masks at all."""
        if not self.has_masks:
            return None
        return torch.stack([torch.ones(shape) if mask is None else mask.float() for mask in masks])


def _stacked(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """{name: [B, ...]}"""
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


class BatchLoader(DataLoader[Batch]):
    """Batches in the order of their plans. An error of a worker arrives as it was raised, in one sentence."""

    def __iter__(self) -> Generator[Batch, None, None]:  # type: ignore[override]
        for item in super().__iter__():
            if isinstance(item, UserError):
                raise item
            self.dataset.batches.warn(item.damaged)  # type: ignore[attr-defined]
            yield item.batch


def make_loader(
    dataset: BatchDataset,
    plans: Iterable[BatchPlan],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    start_worker: Callable[[], None] | None = None,
) -> BatchLoader:
    """A loader that makes the batches of `plans`, in their order.

    Args:
        dataset: Makes one batch of one plan.
        plans: Of any number of epochs; a generator is consumed as batches are needed. Workers live as long as it.
        num_workers: Processes asked for; as many as there are processors at most, and none where latents are in
            memory already.
        pin_memory: Put batches into page-locked memory, from which a GPU copies without waiting.
        start_worker: Called in each worker when it starts.
    """
    num_workers = _useful_workers(dataset, num_workers)
    if num_workers:
        opencv()  # before workers are forked
    return BatchLoader(
        _Items(dataset),
        batch_size=None,
        sampler=plans,
        num_workers=num_workers,
        worker_init_fn=partial(_start_worker, start_worker),
        pin_memory=pin_memory,
    )


class _Items(Dataset[Any]):
    """What workers hand over. Errors too, because torch would turn a worker's error into the text of its traceback."""

    def __init__(self, batches: BatchDataset) -> None:
        self.batches = batches

    def __getitem__(self, plan: BatchPlan) -> Made | UserError:
        try:
            return self.batches.make(plan)
        except UserError as error:
            return error


def _useful_workers(dataset: BatchDataset, asked: int) -> int:
    if dataset.latents is not None and dataset.latents.in_memory and not dataset.is_conditioned:
        return 0
    if dataset.texts is not None and dataset.texts.in_memory and multiprocessing.get_start_method() != "fork":
        return 0  # every worker would get a copy of all texts
    return min(asked, _num_processors())


def _num_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start_worker(start: Callable[[], None] | None, _: int) -> None:
    """One thread in each worker: there are as many workers as the user wants threads."""
    if start is not None:
        start()
    torch.set_num_threads(1)
