"""Cached encoder outputs: latents of pictures, states of captions.

An entry is one safetensors file whose header states everything the tensors depend on. It is valid only if that
header equals the one that would be written now; whatever else lies at its place is made again. Entries without a
path live in memory behind the same interface.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.problems import dataset_error
from library.errors import CheckpointError, DatasetError, OutputError
from library.records import CropPlan, ImageRecord, Size
from library.tensorfile import read_header, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from library.data.specs import DatasetSpec

FORMAT = "1"  # raise it when the same inputs give other tensors or other names

_MAX_NAME = 200  # bytes; file systems allow 255, a temporary name needs some
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
    "flip": "flip_aug changed",
}
_ENCODER_REASONS = {"latents": "another VAE or precision", "text": "another text encoder, precision or setting"}


@dataclass(frozen=True)
class CacheEntry:
    """One set of tensors that is made once.

    Attributes:
        id: Names the entry in its cache.
        path: Its file, or None where it is kept in memory.
        header: What the metadata of a valid file must equal.
        about: What it is made from, for messages: the image or the prompt.
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


class TensorCache:
    """Entries by id.

    Args:
        entries: In the order of the records, where there are records; the same entry may occur several times.
    """

    def __init__(self, entries: Sequence[CacheEntry]) -> None:
        self.entries = tuple(entries)
        self._by_id = {entry.id: entry for entry in self.entries}
        self._memory: dict[str, dict[str, Tensor]] = {}  # by content

    def __getitem__(self, entry_id: str) -> CacheEntry:
        return self._by_id[entry_id]

    def __len__(self) -> int:
        """Number of different entries."""
        return len(self._by_id)

    @property
    def in_memory(self) -> bool:
        """Whether any entry lives in memory only, so that every process needs all of them."""
        return any(entry.path is None for entry in self._by_id.values())

    def check(self) -> dict[str, str]:
        """{id: reason} of the entries that have to be made, in their order. Reads headers only, without torch."""
        checked = ((entry.id, self._fault(entry)) for entry in self._by_id.values())
        return {entry_id: reason for entry_id, reason in checked if reason is not None}

    def probe(self, ids: Iterable[str]) -> None:
        """Make sure that the entries can be written, before anything is computed.

        Raises:
            OutputError: Names the folder.
        """
        paths = (self._by_id[entry_id].path for entry_id in ids)
        for folder in sorted({path.parent for path in paths if path is not None}):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
            except OSError as error:
                raise OutputError(
                    f"{folder}: cache files cannot be written there ({error.strerror or error}). Make the folder "
                    "writable, or cache in memory: leave out the _to_disk options."
                ) from None

    def write(self, entry_id: str, tensors: Mapping[str, Tensor]) -> None:
        """Store the tensors of an entry, in the precision they have, without batch axis.

        Raises:
            CheckpointError: A tensor has NaN or infinite values; the picture or prompt is named.
            OutputError: The file cannot be written.
        """
        entry = self._by_id[entry_id]
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        assert _fits(entry, shapes), f"{entry.about}: {shapes} does not fit {entry.names} of {entry.size}"
        for name, tensor in tensors.items():
            _check_finite(entry, name, tensor)
        if entry.path is None:
            self._memory[entry.content] = {name: _copy(tensor) for name, tensor in tensors.items()}
        else:
            write_tensors(entry.path, tensors, entry.header)

    def read(self, entry_id: str) -> dict[str, Tensor]:
        """The tensors of a valid entry.

        Raises:
            DatasetError: The file has vanished, is damaged, or another run has replaced it.
        """
        entry = self._by_id[entry_id]
        if entry.path is None:
            if entry.content not in self._memory:
                raise DatasetError(f"{entry.about}: nothing is cached for it. Start again.")
            return self._memory[entry.content]
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(entry.path, framework="pt") as file:
                if file.metadata() == entry.header:
                    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                reason = "another run has replaced it"
        except FileNotFoundError:
            reason = "it is gone"
        except (OSError, SafetensorError) as error:
            reason = str(error)
        raise DatasetError(f"{entry.path} cannot be read ({reason}). Start again, and it is made anew.")

    def _fault(self, entry: CacheEntry) -> str | None:
        """Why an entry has to be made, or None."""
        if entry.path is None:
            return None if entry.content in self._memory else "new"
        try:
            header = read_header(entry.path)
        except CheckpointError:
            return "unreadable" if entry.path.exists() else "new"
        if header.metadata != entry.header:
            return _difference(entry, header.metadata)
        return None if _fits(entry, header.shapes()) else "damaged"


def latent_entries(
    records: Sequence[ImageRecord],
    crops: Sequence[CropPlan],
    specs: Sequence[DatasetSpec],
    *,
    family: str,
    identity: str,
    to_disk: bool,
) -> list[CacheEntry]:
    """One entry for each record, with "latents" and, where the subset flips pictures, "latents_flipped".

    Files lie beside the images. Records that differ in nothing share an entry.

    Args:
        records: The pictures.
        crops: One for each record.
        specs: The datasets that the records' `dataset` counts.
        family: Name of the model family.
        identity: Hash of the VAE's weights, with its precision and the settings that change its output.
        to_disk: False keeps the latents in memory.

    Raises:
        DatasetError: Lists images that have vanished since they were scanned.
    """
    places = _Places()
    sources = _file_states({record.path for record in records})
    entries = []
    for record, crop in zip(records, crops, strict=True):
        spec = specs[record.dataset]
        subset = spec.subsets[record.subset]
        header = {
            "format": FORMAT,
            "kind": "latents",
            "family": family,
            "encoder": identity,
            "source": sources[record.path],
            "resized": str(crop.resized),
            "crop": f"{crop.left},{crop.top}",
            "bucket": str(crop.bucket),
            "interpolation": subset.resize_interpolation or spec.resize_interpolation or "default",
            "flip": str(subset.flip_aug),
        }
        ending = f"_{crop.bucket.width:04d}x{crop.bucket.height:04d}_{family}"
        path = places.claim(_beside(record.path, ending), header)
        entries.append(
            CacheEntry(
                id=str(path),
                path=path if to_disk else None,
                header=header,
                about=str(record.path),
                content=str(path),
                names=("latents", "latents_flipped") if subset.flip_aug else ("latents",),
                size=crop.bucket,
            )
        )
    return entries


def text_entries(
    records: Sequence[ImageRecord], captions: Sequence[str], *, family: str, identity: str, to_disk: bool
) -> list[CacheEntry]:
    """One entry for each record, with the states of its caption. Files lie beside the images.

    Args:
        records: The pictures.
        captions: What is encoded for each of them.
        family: Name of the model family.
        identity: Hash of the encoders' weights, with precision and settings that change their output. Tokenizers are
            no part of it: where all is cached they need not be there.
        to_disk: False keeps the states in memory.
    """
    places = _Places()
    entries = []
    for record, caption in zip(records, captions, strict=True):
        header = _text_header(caption, family, identity)
        path = places.claim(_beside(record.path, f"_{family}_te"), header)
        entries.append(_text_entry(str(path), path if to_disk else None, header, str(record.path)))
    return entries


def prompt_entries(prompts: Sequence[str], *, folder: Path | None, family: str, identity: str) -> list[CacheEntry]:
    """One entry for each prompt, named by a hash of its text. Equal prompts share an entry.

    Args:
        prompts: Texts, negative prompts included.
        folder: Where the files lie; None keeps the states in memory.
        family: As for `text_entries`.
        identity: As for `text_entries`.
    """
    entries = []
    for prompt in prompts:
        header = _text_header(prompt, family, identity)
        name = f"prompt_{header['caption'][:16]}_{family}_te.safetensors"
        path = None if folder is None else folder / name
        entries.append(_text_entry(name, path, header, f'prompt "{prompt}"'))
    return entries


def stored_precision(tensor: Tensor) -> Tensor:
    """What a cache keeps of an encoder's output: bfloat16 where it ran in fp16, which has too little range.

    Live outputs of frozen encoders go through the same, so that a cache changes nothing.
    """
    import torch

    return tensor.to(torch.bfloat16) if tensor.dtype == torch.float16 else tensor


class _Places:
    """Gives every different entry a file of its own: those after the first of a name get -2, -3, ..."""

    def __init__(self) -> None:
        self._headers: dict[str, list[Mapping[str, str]]] = {}

    def claim(self, path: Path, header: Mapping[str, str]) -> Path:
        headers = self._headers.setdefault(os.path.normcase(os.path.abspath(path)), [])
        if header not in headers:
            headers.append(header)
        number = headers.index(header) + 1
        return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def _beside(image: Path, ending: str) -> Path:
    """The cache file of an image: its whole name, extension included, and the ending."""
    name = image.name
    if len(os.fsencode(name)) > _MAX_NAME:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = f"{os.fsencode(name)[: _MAX_NAME - 20].decode('utf-8', 'ignore')}~{digest}"
    return image.with_name(f"{name}{ending}.safetensors")


def _file_states(paths: Iterable[Path]) -> dict[Path, str]:
    """Size and modification time of every file."""
    states, problems = {}, []
    for path in sorted(paths):
        try:
            stat = path.stat()
            states[path] = f"{stat.st_size}:{stat.st_mtime_ns}"
        except OSError as error:
            problems.append(f"{path} cannot be read any more ({error.strerror or error})")
    if problems:
        raise dataset_error("latent cache", problems, "images have vanished")
    return states


def _text_header(text: str, family: str, identity: str) -> dict[str, str]:
    caption = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {"format": FORMAT, "kind": "text", "family": family, "encoder": identity, "caption": caption}


def _text_entry(entry_id: str, path: Path | None, header: Mapping[str, str], about: str) -> CacheEntry:
    return CacheEntry(id=entry_id, path=path, header=header, about=about, content=header["caption"])


def _fits(entry: CacheEntry, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether tensors of these shapes can be the entry's: its names, and latents of its picture's proportions."""
    if entry.names and set(shapes) != set(entry.names):
        return False
    if entry.size is None:
        return bool(shapes)
    return len(set(shapes.values())) == 1 and all(_is_latent_of(entry.size, shape) for shape in shapes.values())


def _is_latent_of(size: Size, shape: tuple[int, ...]) -> bool:
    if len(shape) != 3 or min(shape) < 1:
        return False
    _, height, width = shape
    return size.width % width == 0 and size.height % height == 0 and size.width // width == size.height // height


def _difference(entry: CacheEntry, found: Mapping[str, str]) -> str:
    if "format" not in found:
        return "not a cache file"
    for key in (*_REASONS, "encoder"):
        if found.get(key) != entry.header.get(key):
            return _REASONS.get(key) or _ENCODER_REASONS[entry.header["kind"]]
    return "other settings"


def _copy(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own, and fit for training even if it was made in inference mode."""
    import torch

    with torch.inference_mode(False):
        return tensor.detach().to("cpu", copy=True)


def _check_finite(entry: CacheEntry, name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    import torch

    low, high = torch.aminmax(tensor.detach())  # one pass; NaN goes through
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise CheckpointError(
            f"{entry.about}: the encoder gave NaN or infinite values for {name}. Run it in a wider precision "
            "(bf16 or float32; --no_half_vae for the VAE), or check its file."
        )
