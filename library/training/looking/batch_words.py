"""The first batches of a run in words, drawn as a training draws them: what `--debug_dataset` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from library.data.loader import BatchDataset
from library.data.plan.crops import drawn_crop
from library.data.problems import counted
from library.records import BatchPlan, PlannedItem
from library.training.planning import DataPlan

NUM_EPOCHS = 2
NUM_BATCHES = 20  # of each epoch


class BatchWords(BatchDataset):
    """Says what the samples of a batch are; nothing is decoded.

    Args:
        plan: The data.
        seed: Of the run.
        has_cached_latents: Then crops and colours are not random.
        has_cached_texts: Then captions are drawn from what is cached.
        replacements: Texts to put in for others, see `BatchDataset`.
    """

    def __init__(
        self,
        plan: DataPlan,
        seed: int,
        *,
        has_cached_latents: bool,
        has_cached_texts: bool,
        replacements: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(
            plan.records,
            plan.crops,
            plan.specs,
            variants=plan.caption_variants() if has_cached_texts else None,
            seed=seed,
            max_steps=plan.steps.max_steps,
            replacements=replacements,
        )
        self.has_cached_latents = has_cached_latents

    def sample(self, item: PlannedItem, plan: BatchPlan) -> str:
        """One picture of a batch: its name, what happens to its pixels, its caption."""
        record, crop = self.records[item.record], self.crops[item.record]
        subset, spec = self._subset(record), self.specs[record.dataset]
        if not self.has_cached_latents:
            crop = drawn_crop(record, crop, spec, self._draw("pixels", item, plan))
        changes = [
            f"{record.size} to {crop.resized}, cut at {crop.left},{crop.top}",
            *(["mirrored"] if self._is_flipped(item, plan) else []),
            *(["colours may change"] if subset.color_aug and not self.has_cached_latents else []),
            *(["masked"] if subset.has_masks else []),
            *([f"regularisation, weight {record.loss_weight:g}"] if record.is_reg else []),
            *(["keeps the output"] if subset.preserves_output else []),
        ]
        caption = self._caption(item, plan)
        return f"  {record.path} ({'; '.join(changes)}): {caption or '(empty caption)'}"


def describe_batches(words: BatchWords, plan: DataPlan) -> Iterator[str]:
    """Lines about the first batches of the first epochs, of the first process.

    Args:
        words: Of the same data.
        plan: The data.
    """
    for epoch in range(1, min(NUM_EPOCHS, plan.steps.epochs) + 1):
        batches = plan.epoch(epoch, seed=words.seed, rank=0)
        for batch in batches[:NUM_BATCHES]:
            number = f"{batch.index + 1} of {plan.steps.batches_per_epoch}"
            yield f"epoch {epoch}, batch {number}, after {counted(batch.step, 'step')}, {batch.size}:"
            yield from (words.sample(item, batch) for item in batch.items)
        if len(batches) > NUM_BATCHES:
            yield f"and {len(batches) - NUM_BATCHES} more batches in epoch {epoch}"
        yield ""
