"""Options about keeping what the frozen encoders compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class CacheOptions(OptionGroup):
    """Caches of latents and text encoder outputs."""

    title: ClassVar[str] = "Caches"

    cache_latents: bool = opt(False, "Encode each picture once, and keep the latents in memory.")
    cache_latents_to_disk: bool = opt(False, "Keep the latents in files beside the pictures. Implies --cache_latents.")
    vae_batch_size: int = opt(1, "Pictures encoded at once.", minimum=1)
    cache_text_encoder_outputs: bool = opt(
        False, "Encode each caption once; text encoders that do not train leave memory then."
    )
    cache_text_encoder_outputs_to_disk: bool = opt(
        False, "Keep the outputs in files beside the pictures. Implies --cache_text_encoder_outputs."
    )
    text_encoder_batch_size: int | None = opt(
        None, "Captions encoded at once. Not set means 16, or the batch size if that is larger.", minimum=1
    )
    text_encoder_cache_variants: int | None = opt(
        None,
        "Keep this many versions of each caption, shuffled, with wildcards and tag dropout drawn, and use one of them "
        "in each epoch. Needs --cache_text_encoder_outputs.",
        unit="captions",
        minimum=1,
    )
    cache_dir: Path | None = opt(
        None, "Folder for all cache files, where those of the pictures cannot be written or shall stay as they are."
    )
    skip_cache_check: bool = opt(
        False, "Use the .npz cache files of sd-scripts, which do not say what they were made from, as they are."
    )

    @property
    def caches_latents(self) -> bool:
        """Whether latents are cached, in memory or on disk."""
        return self.cache_latents or self.cache_latents_to_disk

    @property
    def caches_text(self) -> bool:
        """Whether text encoder outputs are cached, in memory or on disk."""
        return self.cache_text_encoder_outputs or self.cache_text_encoder_outputs_to_disk

    @property
    def skips_check(self) -> bool:
        """Whether cache files of sd-scripts are used as they are."""
        return self.skip_cache_check

    @property
    def index_dir(self) -> Path | None:
        """Where the sizes of pictures are remembered; None for the user's cache folder."""
        return None if self.cache_dir is None else self.cache_dir / "index"

    def check(self) -> Iterator[str]:
        if self.text_encoder_cache_variants is not None and not self.caches_text:
            yield (
                "--text_encoder_cache_variants needs --cache_text_encoder_outputs or "
                "--cache_text_encoder_outputs_to_disk."
            )

    def remarks(self) -> Iterator[str]:
        is_on_disk = self.cache_latents_to_disk or self.cache_text_encoder_outputs_to_disk
        if self.cache_dir is not None and not is_on_disk:
            yield (
                "--cache_dir keeps only the sizes of the pictures: without --cache_latents_to_disk or "
                "--cache_text_encoder_outputs_to_disk no other cache is written."
            )
