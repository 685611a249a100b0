"""Filling the caches of a run: latents, text states, and the text states of sample prompts.

Caches are checked before any weights are read; an encoder is loaded only if something is missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from library.data.cache import TensorCache, latent_entries, prompt_entries, text_entries
from library.data.images import load_image, prepare_image
from library.data.loader import posterior_seed
from library.data.precompute import fill_cache
from library.families.base import ModelFamily
from library.log import get_logger
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


def stored_precision(tensor: Tensor) -> Tensor:
    """What goes into a cache: bfloat16 where the encoder ran in fp16, which has too little range, else as it is."""
    return tensor.to(torch.bfloat16) if tensor.dtype == torch.float16 else tensor


@torch.no_grad()
def encode_pictures(family: ModelFamily, vae: nn.Module, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Scaled latents of images [B, 3, H, W]; each picture's draw from the posterior has its own seed."""
    cells = family.pixels_per_latent
    shape = (family.latent_channels, images.shape[-2] // cells, images.shape[-1] // cells)
    return family.encode_images(vae, images, normal_per_sample(seeds, shape).to(images.device))


def fill_latents(setup: EncodingSetup) -> TensorCache:
    """The latent cache of the plan, complete."""
    plan, family = setup.plan, setup.family
    identity = f"{family.vae_identity(setup.files)} {setup.dtype}"
    entries = latent_entries(
        plan.records, plan.crops, plan.specs, family=family.name, identity=identity, to_disk=setup.to_disk
    )
    cache = TensorCache(entries)
    record_of = {entry.id: index for index, entry in reversed(list(enumerate(entries)))}
    by_size = defaultdict(list)
    missing = cache.check()
    cache.probe(missing)
    for entry_id in missing:
        by_size[plan.crops[record_of[entry_id]].bucket].append(entry_id)
    if not by_size:
        logger.info("latents: all %d are cached.", len(cache))
        return cache
    vae = family.load_vae(setup.files, setup.dtype, setup.device)

    def load(ids: Sequence[str]) -> Tensor:
        return torch.stack([_picture(plan, record_of[entry_id]) for entry_id in ids])

    def encode(ids: Sequence[str], images: Tensor) -> list[dict[str, Tensor]]:
        images = images.to(setup.device)
        records = [record_of[entry_id] for entry_id in ids]
        names = {"latents": False, **({"latents_flipped": True} if "latents_flipped" in cache[ids[0]].names else {})}
        made = {name: _latents(family, vae, plan, records, images, flip) for name, flip in names.items()}
        return [{name: rows[i] for name, rows in made.items()} for i in range(len(ids))]

    batches = [part for ids in by_size.values() for part in _same_names(cache, ids, setup.batch_size)]
    setup.fill(cache, missing, batches, load, encode, "latents")
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
    return stored_precision(latents).cpu()


def fill_text(
    setup: EncodingSetup, names: Sequence[str], prompts: Sequence[str], prompt_folder: Path | None
) -> tuple[TensorCache, Mapping[str, Mapping[str, Tensor]]]:
    """The text caches of the plan and of the sample prompts, complete.

    Args:
        names: The encoders whose outputs are cached.
        prompts: Texts of the sample prompts, negative ones included.
        prompt_folder: Where the prompts' entries lie; None keeps them in memory.

    Returns:
        The cache, and the states of each prompt by its text.
    """
    family, plan = setup.family, setup.plan
    fields = {**family.text_identity(setup.files, names), "dtype": str(setup.dtype)}
    identity = " ".join(f"{key}={value}" for key, value in fields.items())
    captions = plan.fixed_captions()
    entries = text_entries(plan.records, captions, family=family.name, identity=identity, to_disk=setup.to_disk)
    asked = prompt_entries(prompts, folder=prompt_folder, family=family.name, identity=identity)
    cache, prompt_cache = TensorCache(entries), TensorCache(asked)
    text_of = {entry.id: text for entry, text in zip((*entries, *asked), (*captions, *prompts), strict=True)}
    missing = [(target, target.check()) for target in (cache, prompt_cache)]
    if any(reasons for _, reasons in missing):
        for target, reasons in missing:
            target.probe(reasons)
        encoders = family.load_text_encoders(setup.files, setup.dtype, setup.device, names)
        stage = TextStage(family, setup.device, encoders, family.load_tokenizers(setup.files))

        def encode(ids: Sequence[str], captions: Sequence[str]) -> list[dict[str, Tensor]]:
            with torch.no_grad():
                states = stage.encode(captions)
            rows = {name: stored_precision(state).cpu() for name, state in states.items()}
            return [{name: state[i] for name, state in rows.items()} for i in range(len(ids))]

        def load(ids: Sequence[str]) -> list[str]:
            return [text_of[entry_id] for entry_id in ids]

        for target, reasons in missing:
            if reasons:
                setup.fill(target, reasons, _chunks(list(reasons), setup.batch_size), load, encode, "text")
    else:
        logger.info("text encoder outputs: all %d are cached.", len(cache) + len(prompt_cache))
    return cache, {text_of[entry.id]: prompt_cache.read(entry.id) for entry in asked}
