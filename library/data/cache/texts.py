"""Cache entries of captions and of sample prompts: one for each distinct text and folder, named by a hash of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.cache.entry import FORMAT, CacheEntry
from library.data.cache.entry_file import num_used
from library.data.cache.places import settings_mark, text_folder
from library.data.cache.tensors import TensorCache
from library.records import ImageRecord

if TYPE_CHECKING:
    from torch import Tensor

_MAX_QUOTED = 60  # characters of a caption in a message


@dataclass(frozen=True)
class CachedTexts:
    """States of every caption that a record may have.

    Attributes:
        cache: Holds them.
        ids: For each record, {caption: entry id}.
        encoders: Those whose states are wanted, where files may hold more; empty for all.
    """

    cache: TensorCache
    ids: Sequence[Mapping[str, str]]
    encoders: tuple[str, ...] = ()

    @property
    def in_memory(self) -> bool:
        """Whether the states are in memory, so that every worker would get a copy."""
        return self.cache.in_memory

    def read(self, record: int, caption: str) -> dict[str, Tensor]:
        """The states of one of a record's captions, without batch axis.

        Raises:
            DatasetError: The file has vanished or is damaged.
        """
        return of_encoders(self.cache.read(self.ids[record][caption]), self.encoders)


def of_encoders(states: Mapping[str, Tensor], encoders: Sequence[str]) -> dict[str, Tensor]:
    """The states that belong to these encoders: called like one, or like one with an ending ("..._pooled").

    Args:
        states: By name.
        encoders: Names; empty for all.
    """
    if not encoders:
        return dict(states)
    wanted = {name: name.startswith(tuple(f"{encoder}_" for encoder in encoders)) for name in states}
    return {name: state for name, state in states.items() if wanted[name] or name in encoders}


def used_rows(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    """{name of token states: for each sample the number of rows up to the last one that is not zero}

    Args:
        samples: The states of each, on the CPU, without batch axis.
    """
    names = [name for name, state in samples[0].items() if state.ndim == 2]
    return {name: tuple(num_used(sample[name]) for sample in samples) for name in names}


def text_entries(
    records: Sequence[ImageRecord],
    captions: Sequence[Sequence[str]],
    *,
    family: str,
    identity: str,
    settings: str = "",
    to_disk: bool,
    cache_dir: Path | None = None,
) -> tuple[list[CacheEntry], tuple[dict[str, str], ...]]:
    """One entry for each distinct caption in each folder of pictures.

    Args:
        records: The pictures.
        captions: All texts that each of them may have.
        family: Name of the model family.
        identity: Hash of the encoders' weights, with precision and settings that change their output. Tokenizers are
            no part of it: where all is cached they need not be there.
        settings: Of `identity`, what is no hash of weights, alike for all encoders of the family. Files of other
            settings have other names.
        to_disk: False keeps the states in memory.
        cache_dir: Where the files lie instead of in a folder beside the images.

    Returns:
        The entries, and for each record {caption: entry id}.
    """
    origin = _Origin(family, identity, settings)
    entries: dict[str, CacheEntry] = {}
    ids = []
    for record, texts in zip(records, captions, strict=True):
        folder = text_folder(record.path.parent, cache_dir) if to_disk else None
        own = {text: _text_entry(text, folder, record.path, origin) for text in dict.fromkeys(texts)}
        ids.append({text: entry.id for text, entry in own.items()})
        for entry in own.values():
            entries.setdefault(entry.id, entry)
    return list(entries.values()), tuple(ids)


def prompt_entries(
    prompts: Sequence[str], *, folder: Path | None, family: str, identity: str, settings: str = ""
) -> list[CacheEntry]:
    """One entry for each prompt. Equal prompts share an entry.

    Args:
        prompts: Texts, negative prompts included.
        folder: Where the files lie; None keeps the states in memory.
        family: As for `text_entries`.
        identity: As for `text_entries`.
        settings: As for `text_entries`.
    """
    origin = _Origin(family, identity, settings)
    entries = []
    for prompt in prompts:
        header = origin.header(prompt)
        name = f"prompt_{header['caption'][:16]}{origin.ending}"
        path = None if folder is None else folder / name
        entries.append(CacheEntry(name, path, header, about=f'prompt "{prompt}"', content=header["caption"]))
    return entries


@dataclass(frozen=True)
class _Origin:
    """What the texts of a run are encoded with."""

    family: str
    identity: str
    settings: str

    @property
    def ending(self) -> str:
        """Of file names."""
        return f"{settings_mark(self.settings)}_{self.family}_te.safetensors"

    def header(self, text: str) -> dict[str, str]:
        """What a valid file says."""
        caption = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return {"format": FORMAT, "kind": "text", "family": self.family, "encoder": self.identity, "caption": caption}


def _text_entry(text: str, folder: Path | None, image: Path, origin: _Origin) -> CacheEntry:
    header = origin.header(text)
    path = None if folder is None else folder / f"{header['caption'][:24]}{origin.ending}"
    return CacheEntry(
        id=header["caption"] if path is None else os.path.normcase(os.path.abspath(path)),
        path=path,
        header=header,
        about=f'caption "{_quoted(text)}" of {image}',
        content=header["caption"],
    )


def _quoted(text: str) -> str:
    return text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED - 3]}..."
