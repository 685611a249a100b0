"""Filling the caches of a run: latents, text states, and the text states of sample prompts.

Caches are checked before any weights are read; an encoder is loaded only if something is missing. Nothing here needs
a trainer: the caching tools use it alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from library.data.cache import (
    MASK,
    CachedTexts,
    TensorCache,
    latent_entries,
    of_encoders,
    stored_precision,
    text_entries,
)
from library.data.cache.npz import find_latents, find_texts
from library.data.cache.precompute import num_processors
from library.data.loader import posterior_seed
from library.data.pixels.pictures import Prepared, prepare_picture
from library.device import send
from library.families.base import ModelFamily
from library.log import get_logger
from library.records import ImageRecord
from library.rng import normal_per_sample
from library.training.encoding.encoder_turns import EncoderTurns
from library.training.encoding.encoding_setup import EncodingSetup
from library.training.encoding.unread_words import tell_unread_of_run
from library.training.sampling.new_prompts import entries_of_prompts, text_origin

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = get_logger(__name__)

MAX_ENCODERS = 4  # each needs memory for a batch of pictures

T = TypeVar("T")


@torch.no_grad()
def encode_pictures(family: ModelFamily, vae: nn.Module, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Scaled latents of images [B, 3, H, W], as a cache keeps them; each picture's draw has its own seed.

    Some VAEs put channels last in memory. The denoiser would go on so, and round otherwise than on cached latents.
    """
    cells = family.pixels_per_latent
    shape = (family.latent_channels, images.shape[-2] // cells, images.shape[-1] // cells)
    noise = send(normal_per_sample(seeds, shape), images.device)
    return stored_precision(family.encode_images(vae, images, noise)).contiguous()


class LatentCaching:
    """The latent cache of the plan. What is missing is found out here; `fill` reads the VAE if there is anything.

    Attributes:
        entries: One for each record of the plan.
        cache: Of the entries.
        missing: {entry id: why it has to be made}.

    Raises:
        DatasetError: Pictures have vanished.
    """

    def __init__(self, setup: EncodingSetup) -> None:
        plan, family = setup.plan, setup.family
        self.setup = setup
        self.entries = latent_entries(
            plan.records,
            plan.crops,
            plan.specs,
            family=family.name,
            identity=f"{family.vae_identity(setup.files)} {setup.dtype}",
            settings=str(setup.dtype),
            to_disk=setup.to_disk,
            cache_dir=setup.cache_dir,
        )
        self.cache = setup.cache_of(self.entries)
        self._record_of = {entry.id: index for index, entry in reversed(list(enumerate(self.entries)))}
        missing = setup.missing(self.cache)
        new = {entry_id for entry_id, reason in missing.items() if reason == "new"} if setup.to_disk else set()
        found = find_latents(self.entries, plan.records, new, reader=setup.npz_reader()) if new else {}
        self.missing = setup.adopt(self.cache, missing, found, "latents")

    def decoded_records(self) -> tuple[ImageRecord, ...]:
        """The pictures that `fill` decodes."""
        return tuple(self.setup.plan.records[self._record_of[entry_id]] for entry_id in self.missing)

    def prepare(self) -> None:
        """Make sure of what can be made sure of before weights are read.

        Raises:
            OutputError: Cache files cannot be written.
        """
        self.cache.probe(self.missing)

    def fill(self) -> TensorCache:
        """The cache, complete.

        Raises:
            DatasetError: A picture cannot be decoded.
            OutputError: Cache files cannot be written.
        """
        setup, cache = self.setup, self.cache
        if not self.missing:
            logger.info("latents: all %d are cached.", len(cache))
            return cache
        vae = setup.family.load_vae(setup.files, setup.dtype, setup.device)

        def load(ids: Sequence[str]) -> tuple[Tensor, list[Tensor | None]]:
            prepared = [_prepared(setup, self._record_of[entry_id]) for entry_id in ids]
            masks = [None if made.mask is None else made.mask.half() for made in prepared]  # nothing is lost
            return torch.stack([made.image for made in prepared]), masks

        def encode(ids: Sequence[str], inputs: tuple[Tensor, list[Tensor | None]]) -> list[dict[str, Tensor]]:
            images, masks = inputs[0].to(setup.device), inputs[1]
            records = [self._record_of[entry_id] for entry_id in ids]
            flips = {name: name == "latents_flipped" for name in cache[ids[0]].names if name != MASK}
            made = {name: _latents(setup, vae, records, images, flip) for name, flip in flips.items()}
            rows = [{name: latents[i] for name, latents in made.items()} for i in range(len(ids))]
            return [row if mask is None else {**row, MASK: mask} for row, mask in zip(rows, masks, strict=True)]

        number = _num_encoders(setup.device)
        setup.fill(cache, self.missing, self._batches(), load, encode, "latents", num_encoders=number)
        return cache

    def _batches(self) -> list[Sequence[str]]:
        """Batches of pictures of one size whose entries hold the same tensors."""
        groups = defaultdict(list)
        for entry_id in self.missing:
            entry = self.cache[entry_id]
            groups[entry.size, entry.names].append(entry_id)
        return [part for group in groups.values() for part in _chunks(group, self.setup.batch_size)]


def _num_encoders(device: torch.device) -> int:
    """Batches of pictures to encode at once: on a CPU as many as torch's threads leave processors for.

    The number of threads is what users set (OMP_NUM_THREADS), and the last bits of a result depend on it, so it stays.
    """
    return min(MAX_ENCODERS, max(1, num_processors() // torch.get_num_threads())) if device.type == "cpu" else 1


def _prepared(setup: EncodingSetup, index: int) -> Prepared:
    """Pixels and mask of a record, without anything random."""
    plan = setup.plan
    record = plan.records[index]
    cells = setup.family.pixels_per_latent
    return prepare_picture(record, plan.crops[index], plan.specs[record.dataset], cells=cells)


def _latents(setup: EncodingSetup, vae: nn.Module, records: Sequence[int], images: Tensor, is_flipped: bool) -> Tensor:
    plan = setup.plan
    seeds = [posterior_seed(plan.records[index], plan.crops[index].bucket, is_flipped) for index in records]
    latents = encode_pictures(setup.family, vae, images.flip(-1) if is_flipped else images, seeds)
    return latents.cpu()


class TextCaching:
    """The text caches of the plan and of the sample prompts. What is missing is found out here.

    Args:
        setup: Of the run.
        names: The encoders whose outputs are cached.
        prompts: Texts of the sample prompts, negative ones included.
        prompt_folder: Where the prompts' entries lie; None keeps them in memory.

    Attributes:
        entries: One for each caption and folder, see `text_entries`.
        cache: Of the entries.
        texts: Gives the states of a record's caption, after `fill`.
        missing: {entry id: why it has to be made}.
        missing_prompts: Likewise.
    """

    def __init__(
        self, setup: EncodingSetup, names: Sequence[str], prompts: Sequence[str] = (), prompt_folder: Path | None = None
    ) -> None:
        family, plan = setup.family, setup.plan
        identity, settings = text_origin(setup, names)
        self.setup, self.names = setup, tuple(names)
        self.entries, ids = text_entries(
            plan.records,
            plan.possible_captions(),
            family=family.name,
            identity=identity,
            settings=settings,
            to_disk=setup.to_disk,
            cache_dir=setup.cache_dir,
        )
        asked = entries_of_prompts(setup, names, prompts, prompt_folder)
        self.cache, self.prompt_cache = setup.cache_of(self.entries), setup.cache_of(asked)
        self.texts = CachedTexts(self.cache, ids, self.names)
        self._prompts = {text: entry.id for text, entry in zip(prompts, asked, strict=True)}
        self._text_of = {entry_id: text for own in (*ids, self._prompts) for text, entry_id in own.items()}
        missing = setup.missing(self.cache)
        new = {entry_id for entry_id, reason in missing.items() if reason == "new"} if setup.to_disk else set()
        found = find_texts(ids, plan.records, new, reader=setup.npz_reader(self.names)) if new else {}
        self.missing = setup.adopt(self.cache, missing, found, "text")
        self.missing_prompts = setup.missing(self.prompt_cache)
        self._tokenizers: Any = None

    @property
    def is_complete(self) -> bool:
        """Whether no encoder is needed."""
        return not self.missing and not self.missing_prompts

    def prepare(self, live: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Make sure of what can be made sure of before weights are read; the tokenizers are, if they are needed.

        Args:
            live: Tokenizers of encoders that run in every step.

        Raises:
            CheckpointError: Tokenizers are nowhere.
            OutputError: Cache files cannot be written.
        """
        self.cache.probe(self.missing)
        self.prompt_cache.probe(self.missing_prompts)
        if not self.is_complete and self._tokenizers is None:
            self._tokenizers = self.setup.family.load_tokenizers(self.setup.files, self.names)
            tell_unread_of_run(self.setup, {**live, **self._tokenizers}, list(self._prompts))

    def fill(self) -> tuple[CachedTexts, Mapping[str, Mapping[str, Tensor]]]:
        """The cache, complete, and the states of each prompt by its text."""
        if self.is_complete:
            logger.info("text encoder outputs: all %d are cached.", len(self.cache) + len(self.prompt_cache))
        else:
            self.prepare()
            self._encode_missing()
        states = {text: self.prompt_cache.read(entry_id) for text, entry_id in self._prompts.items()}
        return self.texts, {text: of_encoders(own, self.names) for text, own in states.items()}

    def _encode_missing(self) -> None:
        """The encoders take turns, each for the captions and the prompts."""
        setup, text_of = self.setup, self._text_of
        jobs = [
            _Job(what, cache, missing, _batches_of_texts(cache, missing, setup.batch_size))
            for what, cache, missing in (
                ("text", self.cache, self.missing),
                ("prompts", self.prompt_cache, self.missing_prompts),
            )
            if missing
        ]
        own = [ids for job in jobs for ids in setup.own_batches(job.cache, job.batches)]
        turns = EncoderTurns(setup, self.names, self._tokenizers, [[text_of[i] for i in ids] for ids in own])

        def load(ids: Sequence[str]) -> list[str]:
            return [text_of[entry_id] for entry_id in ids]

        def encode(ids: Sequence[str], captions: Sequence[str]) -> list[dict[str, Tensor]]:
            return turns.encode(captions)

        for job in jobs:
            setup.fill(job.cache, job.missing, job.batches, load, encode, job.what)


class _Job(NamedTuple):
    """A cache to fill."""

    what: str
    cache: TensorCache
    missing: Mapping[str, str]
    batches: list[Sequence[str]]


def _chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _batches_of_texts(cache: TensorCache, ids: Mapping[str, str], batch_size: int) -> list[Sequence[str]]:
    """Batches with `batch_size` different texts; the entries of one text in several folders stay together."""
    folders = defaultdict(list)
    for entry_id in ids:
        folders[cache[entry_id].content].append(entry_id)
    return [[entry_id for same in part for entry_id in same] for part in _chunks(list(folders.values()), batch_size)]
