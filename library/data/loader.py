"""From plans to batches: reads caches or decodes pictures, and applies captions, flips and crops.

What a batch holds depends on its plan and the seed only, never on the worker that makes it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from library.data.batches import sample_id
from library.data.cache import TensorCache
from library.data.captions import apply_caption_rules
from library.data.crops import random_crop
from library.data.images import load_image, prepare_image
from library.errors import UserError
from library.records import Batch, BatchPlan, CropPlan, ImageRecord, PlannedItem, Size
from library.rng import python_stream, stream_seed

if TYPE_CHECKING:
    from torch import Tensor

    from library.data.specs import DatasetSpec, SubsetSpec


def posterior_seed(record: ImageRecord, bucket: Size, is_flipped: bool) -> int:
    """Seed of a picture's draw from the VAE's posterior.

    The same in every epoch and for every --seed, so that cached and live latents are the same draw. It takes the file
    name, not the record's key, because records that share a cache entry have keys of their own.
    """
    return stream_seed(0, "posterior", record.path.name, str(bucket), int(is_flipped))


class BatchDataset(Dataset[Batch]):
    """Makes the batch of a plan: `dataset[plan]`.

    Args:
        records: All pictures.
        crops: One for each record.
        specs: The datasets that the records' `dataset` counts.
        latents: Filled; one entry for each record. None decodes the pictures.
        text: Likewise, with the encoder outputs of the captions.
        seed: Of the run; keys the draws of captions, flips and crops.
        max_steps: Optimizer steps of the run, for caption warm-up.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        crops: Sequence[CropPlan],
        specs: Sequence[DatasetSpec],
        *,
        latents: TensorCache | None = None,
        text: TensorCache | None = None,
        seed: int,
        max_steps: int,
    ) -> None:
        self.records = records
        self.crops = crops
        self.specs = specs
        self.latents = latents
        self.text = text
        self.seed = seed
        self.max_steps = max_steps

    def __getitem__(self, plan: BatchPlan) -> Batch:
        """The batch of a plan.

        Raises:
            DatasetError: An image or a cache file cannot be read.
        """
        records = [self.records[item.record] for item in plan.items]
        flips = [self._is_flipped(item, plan) for item in plan.items]
        is_cached = self.latents is not None
        return Batch(
            plan=plan,
            sample_ids=tuple(sample_id(record, item.repeat) for record, item in zip(records, plan.items, strict=True)),
            captions=tuple(self._caption(item, plan) for item in plan.items),
            loss_weights=torch.tensor([record.loss_weight for record in records], dtype=torch.float32),
            images=None if is_cached else self._images(plan, flips),
            latents=self._latents(plan, flips) if is_cached else None,
            text=self._text(plan) if self.text is not None else None,
            posterior_seeds=tuple(
                posterior_seed(record, plan.size, is_flipped) for record, is_flipped in zip(records, flips, strict=True)
            ),
        )

    def _draw(self, stream: str, item: PlannedItem, plan: BatchPlan) -> Any:
        sample = sample_id(self.records[item.record], item.repeat)
        return python_stream(self.seed, stream, plan.epoch, sample)

    def _subset(self, record: ImageRecord) -> SubsetSpec:
        return self.specs[record.dataset].subsets[record.subset]

    def _is_flipped(self, item: PlannedItem, plan: BatchPlan) -> bool:
        subset = self._subset(self.records[item.record])
        return subset.flip_aug and self._draw("flip", item, plan).random() < 0.5

    def _caption(self, item: PlannedItem, plan: BatchPlan) -> str:
        record = self.records[item.record]
        return apply_caption_rules(
            record.caption,
            self._subset(record).captions,
            draw=self._draw("caption", item, plan),
            epoch=plan.epoch,
            step=plan.step,
            max_steps=self.max_steps,
        )

    def _images(self, plan: BatchPlan, flips: Sequence[bool]) -> Tensor:
        """Shape [B, 3, H, W]."""
        return torch.stack(
            [self._image(item, plan, is_flipped) for item, is_flipped in zip(plan.items, flips, strict=True)]
        )

    def _image(self, item: PlannedItem, plan: BatchPlan, is_flipped: bool) -> Tensor:
        record, crop = self.records[item.record], self.crops[item.record]
        subset = self._subset(record)
        if subset.random_crop:
            crop = random_crop(crop, self._draw("crop", item, plan))
        interpolation = subset.resize_interpolation or self.specs[record.dataset].resize_interpolation
        return prepare_image(load_image(record.path, record.size), crop, interpolation, is_flipped)

    def _latents(self, plan: BatchPlan, flips: Sequence[bool]) -> Tensor:
        """Shape [B, C, h, w]."""
        assert self.latents is not None
        rows = []
        for item, is_flipped in zip(plan.items, flips, strict=True):
            tensors = self.latents.read(self.latents.entries[item.record].id)
            rows.append(tensors["latents_flipped" if is_flipped else "latents"])
        return torch.stack(rows)

    def _text(self, plan: BatchPlan) -> dict[str, Tensor]:
        """{name: [B, ...]}"""
        assert self.text is not None
        rows = [self.text.read(self.text.entries[item.record].id) for item in plan.items]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class BatchLoader(DataLoader[Batch]):
    """Batches in the order of their plans. An error of a worker arrives as it was raised, in one sentence."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for made in super().__iter__():
            if isinstance(made, UserError):
                raise made
            yield made


def make_loader(
    dataset: BatchDataset, plans: Iterable[BatchPlan], *, num_workers: int = 0, pin_memory: bool = False
) -> BatchLoader:
    """A loader that makes the batches of `plans`, in their order.

    Args:
        dataset: Makes one batch of one plan.
        plans: Of any number of epochs; a generator is consumed as batches are needed. Workers live as long as it.
        num_workers: Processes asked for; as many as there are processors at most, and none where latents are in
            memory already.
        pin_memory: Put batches into page-locked memory, from which a GPU copies without waiting.
    """
    num_workers = _useful_workers(dataset, num_workers)
    return BatchLoader(
        _ErrorsAsItems(dataset) if num_workers else dataset,
        batch_size=None,
        sampler=plans,
        num_workers=num_workers,
        worker_init_fn=partial(_start_worker, decodes=dataset.latents is None),
        pin_memory=pin_memory,
    )


class _ErrorsAsItems(Dataset[Any]):
    """Hands errors over as items, because torch would turn a worker's error into the text of its traceback."""

    def __init__(self, dataset: BatchDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, plan: BatchPlan) -> Batch | UserError:
        try:
            return self.dataset[plan]
        except UserError as error:
            return error


def _useful_workers(dataset: BatchDataset, asked: int) -> int:
    if dataset.latents is not None and dataset.latents.in_memory:
        return 0
    if dataset.text is not None and dataset.text.in_memory and multiprocessing.get_start_method() != "fork":
        return 0  # every worker would get a copy of all texts
    return min(asked, _num_processors())


def _num_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start_worker(_: int, decodes: bool) -> None:
    """One thread in each worker: there are as many workers as the user wants threads."""
    torch.set_num_threads(1)
    if decodes:
        import cv2

        cv2.setNumThreads(1)
