"""The frozen models around the denoiser: text encoders and VAE, their caches, and when each is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from library.data.cache import CachedTexts, TensorCache, cache_folder
from library.device import encoder_dtype, release_unused_memory
from library.families.base import ModelFamily
from library.training.encoding.caching import EncodingSetup, LatentCaching, TextCaching
from library.training.encoding.text_stage import TextStage
from library.training.encoding.unread_words import tell_unread_of_run
from library.training.planning import DataPlan
from library.training.sampling.new_prompts import encode_new_prompts
from library.training.sharding.unsharded import Unsharded

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from library.options.groups import CacheOptions
    from library.records import ImageRecord

TEXT_BATCH_SIZE = 16  # a large encoder is read from memory once for a batch, which is what takes time on a GPU


class Encoders:
    """What turns pictures and captions into the denoiser's inputs; after `load` as caches, as live models, or both.

    Args:
        options: What is cached, and how.
        files: The family's files.
        accelerator: Says where models run.
        dtype: Of the frozen weights.
        keeps_full_vae: The VAE runs in float32.
        trained: Names of the text encoders that train; they run in every step.
        trained_dtype: Of the weights of those; None for `dtype`.
        shards: How they lie in the processes.
        prompts: Texts of the sample prompts, negative ones included.
        prompt_folder: Where their cached states lie, if on disk.

    Attributes:
        latents: Filled cache, or None where pictures are encoded in every step.
        texts: Filled cache, or None.
        text: Gives the text states of batches and prompts.
    """

    def __init__(
        self,
        options: CacheOptions,
        *,
        family: ModelFamily,
        files: Any,
        plan: DataPlan,
        accelerator: Accelerator,
        dtype: torch.dtype,
        keeps_full_vae: bool,
        trained: Sequence[str],
        prompts: Sequence[str],
        prompt_folder: Path | None,
        trained_dtype: torch.dtype | None = None,
        shards: Unsharded | None = None,
    ) -> None:
        self.options, self.family, self.files, self.plan = options, family, files, plan
        self.accelerator, self.trained = accelerator, tuple(trained)
        self.prompts = prompts
        self._shards = shards or Unsharded()
        if prompt_folder is not None and options.cache_dir is not None:
            prompt_folder = cache_folder(prompt_folder, options.cache_dir)
        self.prompt_folder = prompt_folder if options.cache_text_encoder_outputs_to_disk else None
        self._text_dtype = encoder_dtype(dtype, accelerator.device)
        self._trained_dtype = trained_dtype or self._text_dtype
        self._vae_dtype = torch.float32 if keeps_full_vae else self._text_dtype
        self._vae: nn.Module | None = None
        self._latent_caching: LatentCaching | None = None
        self.latents: TensorCache | None = None
        self.texts: CachedTexts | None = None
        self.text: TextStage
        self._cached_names: tuple[str, ...] = ()

    def decoded_records(self) -> tuple[ImageRecord, ...]:
        """The pictures that will be decoded: all where latents are not cached, else those whose latents are missing.

        Raises:
            DatasetError: Pictures have vanished.
        """
        caching = self._prepare_latents()
        return self.plan.records if caching is None else caching.decoded_records()

    def load(self) -> None:
        """Fill the caches, with one model at a time, and load what runs in every step.

        What may be missing is looked for before weights are read.

        Raises:
            DatasetError: Pictures are damaged.
            CheckpointError: Tokenizers are nowhere, or weights are damaged.
            OutputError: Cache files cannot be written.
        """
        device = self.accelerator.device
        latents = self._prepare_latents()
        present = [name for name in self.family.encoder_names if self.family.has_encoder(self.files, name)]
        live = [name for name in present if name in self.trained or not self.options.caches_text]
        tokenizers = self.family.load_tokenizers(self.files, live) if live else None
        self._cached_names = tuple(name for name in present if name not in live)
        texts = self._prepare_texts()
        if latents is not None:
            latents.prepare()
        if texts is not None:
            texts.prepare(tokenizers or {})
        elif tokenizers is not None:
            tell_unread_of_run(self._text_setup(), tokenizers, self.prompts)
        prompts: Mapping[str, Mapping[str, Tensor]] = {}
        if latents is not None:
            self.latents = latents.fill()
            release_unused_memory(device)
        if texts is not None:
            self.texts, prompts = texts.fill()
            release_unused_memory(device)
        if latents is None:
            self.vae()
        encoders: dict[str, nn.Module] = {}
        for name in live:
            dtype = self._trained_dtype if name in self.trained else self._text_dtype
            shards = self._shards if name in self.trained else Unsharded()
            encoders[name] = shards.load(partial(self._load_encoder, name), dtype, device, is_exact=True)
        frozen_dtype = self._text_setup().stored_dtype
        self.text = TextStage(self.family, device, encoders, tokenizers, prompts, self.trained, frozen_dtype)

    def _load_encoder(self, name: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        return self.family.load_text_encoders(self.files, dtype, device, [name])[name]

    def unknown_prompts(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Those of these texts that `text` cannot condition on: an encoder is cached, and nothing of them is."""
        if not self._cached_names:
            return ()
        return tuple(text for text in dict.fromkeys(texts) if text not in self.text.prompts)

    def encode_prompts(self, texts: Iterable[str]) -> None:
        """Let `text` know these texts. Encoders that are needed are loaded one after the other, and freed.

        Acts on this process alone. Encoders that are live need nothing.

        Raises:
            CheckpointError: Weights or tokenizers are gone since the start.
        """
        new = self.unknown_prompts(texts)
        if new:
            states = encode_new_prompts(self._text_setup(), self._cached_names, new, self.prompt_folder)
            self.text.prompts = {**self.text.prompts, **states}

    def vae(self) -> nn.Module:
        """The VAE on the device, loaded when first needed."""
        if self._vae is None:
            self._vae = self.family.load_vae(self.files, self._vae_dtype, self.accelerator.device)
        return self._vae.to(self.accelerator.device)

    def park_vae(self) -> None:
        """Make room on the device where only samples need the VAE."""
        if self._vae is not None and self.latents is not None:
            self._vae = self._vae.to("cpu")

    def _prepare_latents(self) -> LatentCaching | None:
        if self.options.caches_latents and self._latent_caching is None:
            to_disk = self.options.cache_latents_to_disk
            self._latent_caching = LatentCaching(self._setup(self._vae_dtype, self.options.vae_batch_size, to_disk))
        return self._latent_caching

    def _prepare_texts(self) -> TextCaching | None:
        if not self._cached_names:
            return None
        return TextCaching(self._text_setup(), self._cached_names, self.prompts, self.prompt_folder)

    def _text_setup(self) -> EncodingSetup:
        batch_size = text_batch_size(self.options, self.plan)
        return self._setup(self._text_dtype, batch_size, self.options.cache_text_encoder_outputs_to_disk)

    def _setup(self, dtype: torch.dtype, batch_size: int, to_disk: bool) -> EncodingSetup:
        return EncodingSetup(
            self.family,
            self.files,
            self.plan,
            self.accelerator,
            dtype,
            batch_size,
            to_disk,
            cache_dir=self.options.cache_dir,
            skip_cache_check=self.options.skips_check,
        )


def text_batch_size(options: CacheOptions, plan: DataPlan) -> int:
    """Captions that are encoded at once."""
    return options.text_encoder_batch_size or max(TEXT_BATCH_SIZE, *(spec.batch_size for spec in plan.specs))
