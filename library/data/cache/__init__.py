"""Cached encoder outputs: latents of pictures, states of captions. One door to the modules that do it.

`TensorCache` holds entries, `latent_entries` and `text_entries` say which there are, `orphans` which files are left.
"""

from library.data.cache.entry import FORMAT, MASK, CacheEntry
from library.data.cache.latents import latent_entries
from library.data.cache.places import cache_folder, cache_folders, files_of, orphans, other_folders, text_folder
from library.data.cache.tensors import DamagedEntry, TensorCache, stored_precision
from library.data.cache.texts import CachedTexts, of_encoders, prompt_entries, text_entries, used_rows

__all__ = [
    "FORMAT",
    "MASK",
    "CacheEntry",
    "CachedTexts",
    "DamagedEntry",
    "TensorCache",
    "cache_folder",
    "cache_folders",
    "files_of",
    "latent_entries",
    "of_encoders",
    "orphans",
    "other_folders",
    "prompt_entries",
    "stored_precision",
    "text_entries",
    "text_folder",
    "used_rows",
]
