"""Options about keeping what the frozen encoders compute."""

from __future__ import annotations

from dataclasses import dataclass
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
        None, "Captions encoded at once. Not set means the batch size.", minimum=1
    )
    skip_cache_check: bool = opt(
        False, "Trust cache files without comparing their headers.", later="trusting caches of other programs"
    )

    @property
    def caches_latents(self) -> bool:
        """Whether latents are cached, in memory or on disk."""
        return self.cache_latents or self.cache_latents_to_disk

    @property
    def caches_text(self) -> bool:
        """Whether text encoder outputs are cached, in memory or on disk."""
        return self.cache_text_encoder_outputs or self.cache_text_encoder_outputs_to_disk
