"""Filling the caches of a run: latents, text states, and the text states of sample prompts.

Caches are checked before any weights are read; an encoder is loaded only if something is missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from library.data.cache import TensorCache, latent_entries, prompt_entries, stored_precision, text_entries
from library.data.images import load_image, prepare_image
from library.data.loader import posterior_seed
from library.data.precompute import fill_cache
from library.data.problems import dataset_error
from library.data.soundness import broken_pictures
from library.families.base import ModelFamily
from library.log import get_logger
from library.records import ImageRecord
from library.rng import normal_per_sample
from library.training.planning import DataPlan
from library.training.text_stage import TextStage

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

logger = get_logger(__name__)


@dataclass(frozen=True)
class EncodingSetup:
    """What filling a cache needs to know of the run.

    Attributes:
        files: The family's files.
        dtype: Precision of the encoders.
        batch_size: Entries encoded at once.
        to_disk: Keep the entries in files.
    """

    family: ModelFamily
    files: Any
    plan: DataPlan
    accelerator: Accelerator
    dtype: torch.dtype
    batch_size: int
    to_disk: bool

    @property
    def device(self) -> torch.device:
        """Where encoders run."""
        return self.accelerator.device

    def fill(
        self,
        cache: TensorCache,
        missing: Mapping[str, str],
        batches: Sequence[Sequence[str]],
        load: Any,
        encode: Any,
        what: str,
    ) -> None:
        """Share the batches of the missing entries {id: reason} among the processes."""
        self.accelerator.wait_for_everyone()
        fill_cache(
            cache,
            batches,
            load,
            encode,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            what=what,
            reasons=missing,
        )
        self.accelerator.wait_for_everyone()


@torch.no_grad()
def encode_pictures(family: ModelFamily, vae: nn.Module, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Scaled latents of images [B, 3, H, W], as a cache keeps them; each picture's draw has its own seed."""
    cells = family.pixels_per_latent
    shape = (family.latent_channels, images.shape[-2] // cells, images.shape[-1] // cells)
    noise = normal_per_sample(seeds, shape).to(images.device)
    return stored_precision(family.encode_images(vae, images, noise))


def refuse_broken_pictures(plan: DataPlan, records: Iterable[ImageRecord], accelerator: Accelerator) -> None:
    """Decode pictures, shared among the processes, and list those that are damaged behind an intact header.

    Raises:
        DatasetError: On every process, with what all have found.
    """
    from accelerate.utils import gather_object

    rank, number = accelerator.process_index, accelerator.num_processes
    distinct = list({record.path: record for record in records}.values())
    problems = gather_object(broken_pictures(distinct[rank::number], is_shown=rank == 0))
    if problems:
        raise dataset_error(plan.source, problems)


class LatentCaching:
    """The latent cache of the plan. What is missing is found out here; `fill` reads the VAE if there is anything.

    Raises:
        DatasetError: Pictures that have to be encoded are damaged; all are listed.
        OutputError: Cache files cannot be written.
    """

    def __init__(self, setup: EncodingSetup) -> None:
        plan, family = setup.plan, setup.family
        identity = f"{family.vae_identity(setup.files)} {setup.dtype}"
        entries = latent_entries(
            plan.records, plan.crops, plan.specs, family=family.name, identity=identity, to_disk=setup.to_disk
        )
        self.setup = setup
        self.cache = TensorCache(entries)
        self.record_of = {entry.id: index for index, entry in reversed(list(enumerate(entries)))}
        self.missing = self.cache.check()
        self.cache.probe(self.missing)
        used = (plan.records[self.record_of[entry_id]] for entry_id in self.missing)
        refuse_broken_pictures(plan, used, setup.accelerator)

    def fill(self) -> TensorCache:
        """The cache, complete."""
        setup, cache, record_of = self.setup, self.cache, self.record_of
        plan, family = setup.plan, setup.family
        if not self.missing:
            logger.info("latents: all %d are cached.", len(cache))
            return cache
        vae = family.load_vae(setup.files, setup.dtype, setup.device)

        def load(ids: Sequence[str]) -> Tensor:
            return torch.stack([_picture(plan, record_of[entry_id]) for entry_id in ids])

        def encode(ids: Sequence[str], images: Tensor) -> list[dict[str, Tensor]]:
            images = images.to(setup.device)
            records = [record_of[entry_id] for entry_id in ids]
            flips = {name: name == "latents_flipped" for name in cache[ids[0]].names}
            made = {name: _latents(family, vae, plan, records, images, flip) for name, flip in flips.items()}
            return [{name: rows[i] for name, rows in made.items()} for i in range(len(ids))]

        by_size = defaultdict(list)
        for entry_id in self.missing:
            by_size[plan.crops[record_of[entry_id]].bucket].append(entry_id)
        batches = [part for ids in by_size.values() for part in _same_names(cache, ids, setup.batch_size)]
        setup.fill(cache, self.missing, batches, load, encode, "latents")
        return cache


def _same_names(cache: TensorCache, ids: Sequence[str], batch_size: int) -> list[Sequence[str]]:
    """Batches of entries that hold the same tensors (with or without the mirrored picture)."""
    groups = defaultdict(list)
    for entry_id in ids:
        groups[cache[entry_id].names].append(entry_id)
    return [part for group in groups.values() for part in _chunks(group, batch_size)]


def _chunks(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _picture(plan: DataPlan, index: int) -> Tensor:
    record = plan.records[index]
    spec = plan.specs[record.dataset]
    interpolation = spec.subsets[record.subset].resize_interpolation or spec.resize_interpolation
    return prepare_image(load_image(record.path, record.size), plan.crops[index], interpolation, False)


def _latents(
    family: ModelFamily, vae: nn.Module, plan: DataPlan, records: Sequence[int], images: Tensor, is_flipped: bool
) -> Tensor:
    seeds = [posterior_seed(plan.records[index], plan.crops[index].bucket, is_flipped) for index in records]
    latents = encode_pictures(family, vae, images.flip(-1) if is_flipped else images, seeds)
    return latents.cpu()


class TextCaching:
    """The text caches of the plan and of the sample prompts.

    What is missing is found out here, with the tokenizers if anything is; `fill` reads the encoders then.

    Args:
        setup: Of the run.
        names: The encoders whose outputs are cached.
        prompts: Texts of the sample prompts, negative ones included.
        prompt_folder: Where the prompts' entries lie; None keeps them in memory.

    Raises:
        CheckpointError: Tokenizers are needed and nowhere.
        OutputError: Cache files cannot be written.
    """

    def __init__(
        self, setup: EncodingSetup, names: Sequence[str], prompts: Sequence[str], prompt_folder: Path | None
    ) -> None:
        family, plan = setup.family, setup.plan
        fields = {**family.text_identity(setup.files, names), "dtype": str(setup.dtype)}
        identity = " ".join(f"{key}={value}" for key, value in fields.items())
        captions = plan.fixed_captions()
        entries = text_entries(plan.records, captions, family=family.name, identity=identity, to_disk=setup.to_disk)
        asked = prompt_entries(prompts, folder=prompt_folder, family=family.name, identity=identity)
        self.setup, self.names = setup, names
        self.cache, self.prompt_cache = TensorCache(entries), TensorCache(asked)
        self.text_of = {entry.id: text for entry, text in zip((*entries, *asked), (*captions, *prompts), strict=True)}
        self.missing = [(target, target.check()) for target in (self.cache, self.prompt_cache)]
        for target, reasons in self.missing:
            target.probe(reasons)
        self.is_complete = not any(reasons for _, reasons in self.missing)
        self.tokenizers = None if self.is_complete else family.load_tokenizers(setup.files, names)

    def fill(self) -> tuple[TensorCache, Mapping[str, Mapping[str, Tensor]]]:
        """The cache, complete, and the states of each prompt by its text."""
        if self.is_complete:
            logger.info("text encoder outputs: all %d are cached.", len(self.cache) + len(self.prompt_cache))
        else:
            self._encode_missing()
        prompts = {self.text_of[entry.id]: entry.id for entry in self.prompt_cache.entries}
        return self.cache, {text: self.prompt_cache.read(entry_id) for text, entry_id in prompts.items()}

    def _encode_missing(self) -> None:
        setup, text_of = self.setup, self.text_of
        encoders = setup.family.load_text_encoders(setup.files, setup.dtype, setup.device, self.names)
        stage = TextStage(setup.family, setup.device, encoders, self.tokenizers)

        def load(ids: Sequence[str]) -> list[str]:
            return [text_of[entry_id] for entry_id in ids]

        def encode(ids: Sequence[str], captions: Sequence[str]) -> list[dict[str, Tensor]]:
            states = stage.encode(captions)
            rows = {name: state.cpu() for name, state in states.items()}
            return [{name: state[i] for name, state in rows.items()} for i in range(len(ids))]

        for what, (target, reasons) in zip(("text", "prompts"), self.missing, strict=True):
            if reasons:
                setup.fill(target, reasons, _chunks(list(reasons), setup.batch_size), load, encode, what)
