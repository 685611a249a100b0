"""Parts of weights files: which tensors belong to one network, and reading them in the precision asked for.

A part is a selection of tensors under their published names, wherever they lie: in a single file under a prefix, in
a file of their own, or in the shards of a diffusers folder. Files in fp8 are read whether they hold plain numbers or
numbers with scales, in both layouts in use (`scale_weight` beside `scaled_fp8`; `weight_scale` beside `comfy_quant`).
Files of torch.save are read as safetensors files are, see library/pickled.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from library.checkpoint.folder_files import weight_files
from library.errors import CheckpointError
from library.pickled import hash_any_tensors, read_any_header, tensor_reader
from library.tensorfile import TensorHeader, TensorInfo, TensorReader, remembered_hash, torch_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_FP8_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_SCALE_SUFFIXES = (".scale_weight", ".weight_scale")
_UNUSED_SUFFIXES = (".scale_input", ".input_scale", ".comfy_quant")
_MARKER = "scaled_fp8"
FP8_MARKS = (*_SCALE_SUFFIXES, *_UNUSED_SUFFIXES, _MARKER)
"""Ends of names beside weights in fp8, which mean nothing without them."""


@dataclass(frozen=True)
class WeightFiles:
    """The headers of one weights file, or of the shards that make one.

    Attributes:
        path: What the user named: a file or a folder.
        headers: At least one. No tensor is in two of them.
    """

    path: Path
    headers: tuple[TensorHeader, ...]

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of every file."""
        return {name: info for header in self.headers for name, info in header.tensors.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: info.shape for name, info in self.tensors.items()}


def open_weights(
    path: Path,
    what: str = "weights file",
    *,
    allow_pickle: bool = False,
    is_told: bool = False,
    variant: str | None = None,
) -> WeightFiles:
    """Read the header of a file, or of all shards in a folder as diffusers and transformers write it.

    Args:
        path: A .safetensors file, a file of torch.save (.ckpt, .pt), or such a folder.
        what: How it is called in an error, for instance "--vae".
        allow_pickle: See `read_pickled_header`.
        is_told: See `read_pickled_header`.
        variant: In a folder, "fp16" reads NAME.fp16.safetensors; None what has no variant, or else the only one.

    Raises:
        CheckpointError: The file cannot be used (see `read_header` and `read_pickled_header`), or the folder has no
            weights.
    """
    files = weight_files(path, what, variant) if path.is_dir() else [path]
    headers = (read_any_header(file, what, allow_pickle=allow_pickle, is_told=is_told) for file in files)
    return WeightFiles(path, tuple(headers))


@dataclass(frozen=True)
class Part:
    """The tensors of one network.

    Attributes:
        kind: Which network, for instance "vae".
        source: Where they lie.
        names: {name in the file: published name without prefix}.
        scales: {name of an fp8 weight in the file: name of its scale in the file}.
        is_diffusers: The names are those of diffusers.
    """

    kind: str
    source: WeightFiles
    names: Mapping[str, str]
    scales: Mapping[str, str] = field(default_factory=dict)
    is_diffusers: bool = False

    @property
    def path(self) -> Path:
        """What the user named: a file or a folder."""
        return self.source.path

    @property
    def header(self) -> TensorHeader:
        """The header of the file, or of the first shard."""
        return self.source.headers[0]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{published name: shape}."""
        return {published: self.source.tensors[name].shape for name, published in self.names.items()}


def select_part(kind: str, source: WeightFiles, names: Mapping[str, str], *, is_diffusers: bool = False) -> Part:
    """Make a part of some tensors of a file; the scales of fp8 weights among them find their weights.

    Args:
        kind: Which network.
        source: The file.
        names: {name in the file: published name without prefix}, the scales and markers of fp8 included.
        is_diffusers: The names are those of diffusers.

    Raises:
        CheckpointError: A quantisation that is not supported.
    """
    _refuse_formats(source, names)
    scales: dict[str, str] = {}
    weights: dict[str, str] = {}
    for name, published in names.items():
        base = next((name.removesuffix(suffix) for suffix in _SCALE_SUFFIXES if name.endswith(suffix)), None)
        if base is not None:
            scales[f"{base}.weight"] = name
        elif not name.endswith((*_UNUSED_SUFFIXES, _MARKER)):
            weights[name] = published
    for name in weights:
        dtype = source.tensors[name].dtype
        if dtype not in FLOATS:
            raise CheckpointError(_unsupported(source.path, f"{name} is stored as {dtype}"))
    return Part(kind, source, weights, {name: scale for name, scale in scales.items() if name in weights}, is_diffusers)


def _refuse_formats(source: WeightFiles, names: Mapping[str, str]) -> None:
    for header in source.headers:
        for layer, quantisation in _formats(header, names):
            if quantisation not in _FP8_FORMATS:
                raise CheckpointError(_unsupported(source.path, f"{layer} is quantised as {quantisation}"))


def _formats(header: TensorHeader, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(layer, format) of everything that the file says it has quantised."""
    try:
        layers = json.loads(header.metadata.get("_quantization_metadata", "{}")).get("layers", {})
        yield from ((layer, entry["format"]) for layer, entry in layers.items())
        marked = [name for name in header.tensors if name in names and name.endswith(".comfy_quant")]
        for name in marked:
            content = tensor_reader(header).read(name)
            yield name.removesuffix(".comfy_quant"), json.loads(bytes(content.tolist()))["format"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(_unsupported(header.path, "it is quantised in a way that cannot be read")) from None


def _unsupported(path: Path, reason: str) -> str:
    return f"{path}: {reason}, which is not supported. Use an fp16, bf16, fp32 or fp8 file."


def read_weights(
    part: Part,
    *,
    dtype: torch.dtype | None = None,
    as_stored: Collection[str] = (),
    device: torch.device | str = "cpu",
    mmap: bool = True,
) -> dict[str, Tensor]:
    """Read a part. Every tensor is checked for NaN and infinity.

    Args:
        part: From `select_part`.
        dtype: Of the result; None keeps the stored precision, and gives fp8 in the smallest type that holds it
            exactly: bfloat16, or float32 where it has scales.
        as_stored: Published names for which neither `dtype` nor `device` holds: they stay in host memory as they are.
        device: Where the tensors go.
        mmap: False also reads with ordinary file access what could stay in the mapped file.

    Returns:
        {published name: tensor}. Without a change of dtype or device, tensors are views of the mapped file.

    Raises:
        CheckpointError: NaN or infinite values, or values that do not fit `dtype`.
    """
    return {
        weight.name: weight.wide() if weight.name in as_stored else weight.wide(dtype, device)
        for weight in stored_weights(part, mmap=mmap)
    }


@dataclass(frozen=True)
class StoredWeight:
    """A tensor that lies in a file.

    Attributes:
        part: That it belongs to.
        key: Name in the file.
        file: That it lies in.
        scale: What to multiply it by, for fp8 with scales: one number, or one for each row.
    """

    part: Part
    key: str
    file: TensorReader
    scale: Tensor | None

    @property
    def name(self) -> str:
        """Published name."""
        return self.part.names[self.key]

    @property
    def dtype(self) -> torch.dtype:
        """That it is stored in."""
        return torch_dtype(self.file.header.tensors[self.key].dtype)

    @property
    def is_fp8(self) -> bool:
        """Whether it is stored in fp8."""
        return self.dtype.itemsize == 1

    @cached_property
    def stored(self) -> Tensor:
        """The tensor as it is stored, in memory of its own, which goes with this object."""
        return self.file.read(self.key)

    def wide(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """The numbers that are meant, see `read_weights`.

        Raises:
            CheckpointError: NaN or infinite values, or values that do not fit `dtype`.
        """
        import torch

        wanted = self._held_dtype(dtype)
        if self.scale is None and wanted == self.dtype and torch.device(device).type == "cpu":
            tensor = self.file.view(self.key)  # what is only borrowed must not get out, so this comes first
        else:
            tensor = self._converted(wanted, device)
        _refuse_non_finite(self.part, self.key, tensor)
        return tensor

    def _held_dtype(self, dtype: torch.dtype | None) -> torch.dtype:
        import torch

        if dtype is not None:
            return dtype
        if self.scale is not None:
            return torch.float32
        return torch.bfloat16 if self.is_fp8 else self.dtype

    def _converted(self, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Converted on the side on which it is smaller, so that the fewest bytes travel and none lies wide for long."""
        stored = self.file.borrow(self.key)
        if self.scale is None and dtype.itemsize < stored.itemsize:
            return stored.to(dtype).to(device)
        stored = stored.to(device)
        if self.scale is not None:
            shape = [-1] + [1] * (stored.ndim - 1) if self.scale.numel() > 1 else []
            stored = stored.float() * self.scale.to(device).float().reshape(shape)
        return stored.to(dtype)


def stored_weights(part: Part, *, mmap: bool = True) -> Iterator[StoredWeight]:
    """The tensors of a part one after the other, for readers who do not want all of them wide at once.

    Args:
        part: From `select_part`.
        mmap: See `read_weights`.
    """
    readers = [tensor_reader(header, mmap=mmap) for header in part.source.headers]
    scales = {
        name: reader.read(name) for reader in readers for name in part.scales.values() if name in reader.header.tensors
    }
    for reader in readers:
        for key in reader.header.tensors:
            if key in part.names:
                yield StoredWeight(part, key, reader, scales.get(part.scales.get(key, "")))


def _refuse_non_finite(part: Part, name: str, tensor: Tensor) -> None:
    import torch

    if not tensor.numel() or tensor.itemsize == 1:
        return
    if not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):  # NaN wins both
        raise CheckpointError(
            f"{part.path}: {name} has NaN or infinite values as {str(tensor.dtype).removeprefix('torch.')}. "
            "Use an intact file, or bf16 if the values are too large for fp16."
        )


def part_identity(part: Part) -> str:
    """Hash of a part's weights, the same wherever they lie; computed once per file and remembered."""
    digests = []
    for header in part.source.headers:
        names = {name: published for name, published in part.names.items() if name in header.tensors}
        names |= {
            scale: f"{part.names[weight]}.scale" for weight, scale in part.scales.items() if scale in header.tensors
        }
        if names:
            label = f"{part.kind} {len(names)}"
            digests.append(remembered_hash(header.path, label, lambda h=header, n=names: hash_any_tensors(h, n)))  # type: ignore[misc]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
