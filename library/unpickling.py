"""What the pickle of a weights file says, without running anything that it names.

A pickle is a program: it names functions and classes and has them called. Here a stand-in answers to every name, which
at most notes where a tensor lies, so that nothing is imported and nothing is run. Names that weights files need are
known; the others are listed, for whoever decides whether such a file is read.

Source: the format of torch.save since torch 1.6; pickle.Unpickler.find_class in Python's manual.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

_STORAGES = {
    **{"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"},
    **{"LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8"},
    **{"ByteStorage": "U8", "BoolStorage": "BOOL", "UntypedStorage": "U8"},
}
_TYPES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
    **{"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"},
}
_HARMLESS = {  # what files have beside their weights: counters, settings, the callbacks of Lightning
    *("collections.Counter", "collections.defaultdict", "builtins.set", "builtins.bytearray", "_codecs.encode"),
    *("torch.Size", "torch.device", "torch.serialization._get_layout"),
    *("numpy.dtype", "numpy.dtypes.Float64DType", "numpy.dtypes.Float32DType", "numpy.dtypes.Int64DType"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *(f"{name}.callbacks.model_checkpoint.ModelCheckpoint" for name in ("pytorch_lightning", "lightning.pytorch")),
}
_OLD_NAMES = {"__builtin__": "builtins", "torch.tensor": "torch._tensor"}  # of Python 2; of earlier versions of torch
_MAX_DEPTH = 8  # of entries within entries


@dataclass(frozen=True)
class Storage:
    """The record that numbers lie in, their type as safetensors names it, and how many there are."""

    key: str
    dtype: str
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a storage. Offset and strides count elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_in_order(self) -> bool:
        """Whether its numbers lie one after the other."""
        step = 1
        for length, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if length > 1 and stride != step:
                return False
            step *= length
        return True

    @property
    def extent(self) -> int:
        """Elements from the first to the last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((length - 1) * stride for length, stride in zip(self.shape, self.stride, strict=True))


class WeightsUnpickler(pickle.Unpickler):
    """Unpickles with stand-ins for everything. `unknown` lists the names that weights do not need."""

    def __init__(self, data: bytes) -> None:
        super().__init__(BytesIO(data), encoding="utf-8", errors="replace")
        self.unknown: list[str] = []

    def content(self) -> Any:
        """What the pickle makes; an exception, not raised, where it makes nothing."""
        try:
            return self.load()
        except Exception as error:  # a pickle that is damaged, or that wants of a stand-in what only code can do
            return error

    def find_class(self, module: str, name: str) -> Any:
        full = f"{_OLD_NAMES.get(module, module)}.{name}"
        if full == "collections.OrderedDict":
            return OrderedDict
        if (rebuild := _REBUILDERS.get(full)) is not None:
            return lambda *given: rebuild(*given)  # one of its own, so that a pickle which changes it changes nothing
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return _STORAGES.get(name, name)
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        if full not in _HARMLESS and full not in self.unknown:
            self.unknown.append(full)
        return type(name, (_StandIn,), {})

    def persistent_load(self, pid: Any) -> Storage:
        _, dtype, key, _, length = pid  # "storage", its type, its record, the device that it was on, elements
        return Storage(str(key), _type_name(dtype), int(length))


def _type_name(dtype: Any) -> str:
    return dtype if isinstance(dtype, str) else type(dtype).__name__


class _StandIn:
    """Takes whatever an object of a pickle is given."""

    def __new__(cls, *args: Any, **named: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any, **named: Any) -> None:
        pass

    def _take(self, *args: Any) -> _StandIn:
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = update = _take


def _rebuild_tensor(storage: Storage, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Any:
    return StoredTensor(storage, storage.dtype, offset, tuple(size), tuple(stride))


def _rebuild_tensor_v3(storage: Storage, offset: int, *described: Any) -> Any:
    size, stride, _, _, dtype, *_ = described  # size, strides, needs a gradient, hooks, type
    return StoredTensor(storage, _type_name(dtype), offset, tuple(size), tuple(stride))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _rebuild_from_type(function: Any, kind: Any, args: Sequence[Any], *_: Any) -> Any:
    return function(*args)


_REBUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type": _rebuild_from_type,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
}


def weights_in(content: Any) -> dict[str, StoredTensor]:
    """The tensors of what a pickle made: of its "state_dict" or "string_to_param", of the only entry that it has, or of
    itself."""
    for _ in range(_MAX_DEPTH):
        inner = None
        if isinstance(content, dict):
            inner = content.get("state_dict", content.get("string_to_param"))  # the second of learned words
        if inner is None and isinstance(content, dict) and len(content) == 1:
            inner = next(iter(content.values()))
        if not isinstance(inner, dict):
            break
        content = inner
    if not isinstance(content, dict):
        return {}
    return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, StoredTensor)}
