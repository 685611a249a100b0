"""The values in an optimizer's state as plain lists, dictionaries and tensors, and back.

Tensors are collected in a list, once each, so that what is shared stays shared. Other values are tagged dictionaries:
{"tuple": [...]}, {"parameter": 3}, {"object": [module, class], "attributes": ...}.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from library.errors import CheckpointError, OptionError

_PLAIN = (bool, int, float, str, type(None))
_ROWS: dict[type, str] = {list: "list", tuple: "tuple", torch.Size: "size"}
_BESIDE, _ON_CPU, _PAGED = "beside the parameter", "cpu", "paged"


def is_kept_by_constructor(value: object) -> bool:
    """Functions, classes and sets (of identities of parameters), which a new optimizer has made for itself."""
    return callable(value) or isinstance(value, set | frozenset)


class Packer:
    """Packs the values of one optimizer.

    Attributes:
        tensors: Copies, on the CPU, of the tensors that packed values refer to by number.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.tensors: list[Tensor] = []
        self._name = type(optimizer).__name__
        self._package = _root(type(optimizer))
        self._parameters = _parameters(optimizer)
        self._numbers = {id(parameter): number for number, parameter in enumerate(self._parameters)}
        self._seen: dict[int, int] = {}

    def pack_pair(self, key: Any, value: Any) -> list[Any]:
        """An entry of `Optimizer.state`, whose key is a parameter or a name."""
        return [self.pack(key), self.pack(value, near=key if isinstance(key, Tensor) else None)]

    def pack(self, value: Any, near: Tensor | None = None) -> Any:
        """A value as what `torch.load(weights_only=True)` reads.

        Args:
            value: Whatever the optimizer holds.
            near: The parameter that it belongs to; None for the first one.

        Raises:
            OptionError: There is no exact form of it.
        """
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor):
            return self._pack_tensor(value, self._parameters[0] if near is None else near)
        if isinstance(value, Mapping):
            return {"dict": [[self.pack(key), self.pack(item, near)] for key, item in value.items()]}
        if type(value) in _ROWS:
            return {_ROWS[type(value)]: [self.pack(item, near) for item in value]}
        if isinstance(value, deque):
            return {"deque": [self.pack(item, near) for item in value], "maxlen": value.maxlen}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if _root(type(value)) == self._package:
            place = [type(value).__module__, type(value).__qualname__]
            if isinstance(value, Enum):
                return {"member": place, "name": value.name}
            if hasattr(value, "__dict__") and not isinstance(value, Optimizer):
                return {"object": place, "attributes": self.pack(vars(value), near)}
        raise OptionError(
            f"--optimizer_type {self._name}: its state holds a {type(value).__name__}, which cannot be saved exactly. "
            "Use another optimizer, or train without saving the state."
        )

    def _pack_tensor(self, tensor: Tensor, near: Tensor) -> dict[str, Any]:
        if id(tensor) in self._numbers:
            return {"parameter": self._numbers[id(tensor)]}
        if id(tensor) not in self._seen:
            self._seen[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor.detach().to("cpu", copy=True))
        place = _BESIDE if tensor.device == near.device else _ON_CPU
        return {"tensor": self._seen[id(tensor)], "place": _PAGED if getattr(tensor, "is_paged", False) else place}


class Unpacker:
    """Gives back what a `Packer` has packed, for another optimizer of the same class.

    Args:
        optimizer: Whose parameters take the place of the former ones.
        tensors: Those of the packer; they are copied.
    """

    def __init__(self, optimizer: Optimizer, tensors: Sequence[Tensor]) -> None:
        self._optimizer, self._tensors = optimizer, tensors
        self._package = _root(type(optimizer))
        self._parameters = _parameters(optimizer)
        self._made: dict[tuple[int, torch.device], Tensor] = {}

    def unpack_pair(self, pair: Sequence[Any]) -> tuple[Any, Any]:
        """An entry of `Optimizer.state`."""
        key = self.unpack(pair[0])
        return key, self.unpack(pair[1], near=key if isinstance(key, Tensor) else None)

    def unpack(self, packed: Any, near: Tensor | None = None) -> Any:
        """The value itself."""
        if not isinstance(packed, dict):
            return packed
        near = self._parameters[0] if near is None else near
        kind, content = next(iter(packed.items()))
        if kind == "tensor":
            return self._tensor(content, packed["place"], near)
        if kind == "parameter":
            return self._parameters[content]
        if kind == "dict":
            return {self.unpack(key): self.unpack(item, near) for key, item in content}
        if kind == "dtype":
            return self._dtype(content)
        if kind == "object":
            return self._object(content, self.unpack(packed["attributes"], near))
        if kind == "member":
            return self._own_class(content, Enum)[packed["name"]]
        items = [self.unpack(item, near) for item in content]
        if kind == "deque":
            return deque(items, packed["maxlen"])
        return next(row for row, name in _ROWS.items() if name == kind)(items)

    def _tensor(self, number: int, place: str, near: Tensor) -> Tensor:
        value = self._tensors[number]
        if place == _PAGED and near.device.type != "cpu":
            return self._paged(value, near)
        device = torch.device("cpu") if place == _ON_CPU else near.device
        if (number, device) not in self._made:
            self._made[number, device] = value.to(device, copy=True)
        return self._made[number, device]

    def _paged(self, value: Tensor, near: Tensor) -> Tensor:
        """In memory that bitsandbytes moves between host and device; filling it with zeros runs on the device."""
        buffer: Tensor = self._optimizer.get_state_buffer(near, dtype=value.dtype)  # type: ignore[attr-defined]
        torch.cuda.synchronize(near.device)
        buffer.copy_(value)
        return buffer

    def _object(self, place: Sequence[str], attributes: dict[str, Any]) -> Any:
        """An object as it was, without running its constructor."""
        made = object.__new__(self._own_class(place, object))
        vars(made).update(attributes)
        return made

    def _dtype(self, name: str) -> torch.dtype:
        found = getattr(torch, name, None)
        if not isinstance(found, torch.dtype):
            raise foreign_state(f"names {name} as a number format, which it is not")
        return found

    def _own_class(self, place: Sequence[str], base: type) -> Any:
        """A class of the optimizer's own package; a state from elsewhere can name no other."""
        module, name = place
        if module.partition(".")[0] != self._package:
            raise foreign_state(f"names {module}.{name}, which is not of the package {self._package}")
        found = getattr(importlib.import_module(module), name)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise foreign_state(f"names {module}.{name}, which is no class of that kind")
        return found


def foreign_state(what: str) -> CheckpointError:
    """The error about a state that no `Packer` can have made."""
    return CheckpointError(f"the saved optimizer state {what}. Continue from a state that this program has saved.")


def _root(of: type) -> str:
    return of.__module__.partition(".")[0]


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
