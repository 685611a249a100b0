"""One cache entry: what it depends on, and whether a file can be its."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from library.records import Size

FORMAT = "3"  # raise it when the same inputs give other tensors or other names

MASK = "mask"  # name of the tensor that says where to learn
FLIPPED = "latents_flipped"  # name of the latents of the mirrored picture

_REASONS = {  # by the first header key that differs
    "format": "another format version",
    "kind": "not this kind of cache",
    "family": "another model family",
    "source": "the image changed",
    "caption": "the caption changed",
    "bucket": "another size or crop",
    "resized": "another size or crop",
    "crop": "another size or crop",
    "interpolation": "another resize_interpolation",
    "background": "another background",
    "flip": "flip_aug changed",
    "mask": "the mask changed",
}
_ENCODER_REASONS = {"latents": "another VAE or precision", "text": "another text encoder, precision or setting"}


@dataclass(frozen=True)
class CacheEntry:
    """One set of tensors that is made once.

    Attributes:
        id: Names the entry in its cache.
        path: Its file, or None where it is kept in memory.
        header: What a valid file says of its origin.
        about: What it is made from, for messages: the image or the caption.
        content: Entries with the same content hold the same tensors; encoding it once is enough.
        names: Tensors it must hold; empty allows any.
        size: Of the picture that every tensor is the latent of, or None for text.
    """

    id: str
    path: Path | None
    header: Mapping[str, str]
    about: str
    content: str
    names: tuple[str, ...] = ()
    size: Size | None = None


def holds(found: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a file with one header can stand for an entry with another.

    They must be equal, but that more will do. Of text: the states of more encoders, made by the same with the same
    settings, so that what was cached for all encoders serves a run that trains some of them. Of pictures: the latents
    of the mirrored one, so that a run without flip_aug leaves the files of one with it as they are.
    """
    if found == wanted:
        return True
    if wanted.get("kind") == "latents":
        return found == {**wanted, "flip": str(True)}
    if wanted.get("kind") != "text" or {**found, "encoder": ""} != {**wanted, "encoder": ""}:
        return False
    return set(wanted["encoder"].split()) <= set(found["encoder"].split())


def fits(entry: CacheEntry, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether tensors of these shapes can be the entry's: its names, and latents of its picture's proportions.

    Latents of the mirrored picture may be there without being asked for, see `holds`.
    """
    if entry.names and set(shapes) - {FLIPPED} != set(entry.names) - {FLIPPED}:
        return False
    if FLIPPED in entry.names and FLIPPED not in shapes:
        return False
    if entry.size is None:
        return bool(shapes)
    planes = {shape[1:] for shape in shapes.values()}
    channels = {shape[:1] for name, shape in shapes.items() if name != MASK}
    is_alike = len(planes) == 1 and len(channels) == 1 and shapes.get(MASK, (1,))[:1] == (1,)
    return is_alike and all(_is_latent_of(entry.size, shape) for shape in shapes.values())


def difference(entry: CacheEntry, found: Mapping[str, str]) -> str:
    """Why a file with this header does not stand for the entry, in a few words."""
    if "format" not in found:
        return "not a cache file"
    for key in (*_REASONS, "encoder"):
        differs = found.get(key) != entry.header.get(key)
        if differs and not holds({**entry.header, key: found.get(key, "")}, entry.header):
            return _REASONS.get(key) or _ENCODER_REASONS[entry.header["kind"]]
    return "other settings"


def _is_latent_of(size: Size, shape: tuple[int, ...]) -> bool:
    if len(shape) != 3 or min(shape) < 1:
        return False
    _, height, width = shape
    return size.width % width == 0 and size.height % height == 0 and size.width // width == size.height // height
