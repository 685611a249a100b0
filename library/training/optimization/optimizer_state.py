"""The whole state of an optimizer, such that continuing from it changes no bit.

torch's own `load_state_dict` casts tensors to the dtype of the parameters, and packages keep numbers in places that
`state_dict` does not know, or objects that are not safe to unpickle. Here everything that can change is kept as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from library.errors import CheckpointError
from library.training.optimization.lean_optimizer import bare_optimizer
from library.training.optimization.optimizer_choices import changed, check_form, choices
from library.training.optimization.optimizer_packing import Packer, Unpacker, foreign_state, is_kept_by_constructor

_FORMAT = 2
# Attributes of an optimizer that belong to the process: what every optimizer has, and what bitsandbytes shares.
_NOT_STATE = {
    *("state", "param_groups", "defaults", "step", "grad_scale", "found_inf"),
    *("_zero_grad_profile_name", "_warned_capturable_if_run_uncaptured", "_cpu_paged_warned"),
    *("args", "mng", "page_mng", "choices", "_step_supports_amp_scaling", "_need_device_dtype_check_for_fused"),
    "rounding",
}


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """A copy of the state, on the CPU; `torch.load(weights_only=True)` reads it from a file.

    Args:
        optimizer: In train mode; also inside accelerate's wrapper.

    Raises:
        OptionError: The state holds something that cannot be kept exactly.
    """
    bare = bare_optimizer(optimizer)
    packer = Packer(bare)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in bare.param_groups]
    return {
        "format": _FORMAT,
        "optimizer": _class_name(bare),
        "shapes": _shapes(bare),
        "state": [packer.pack_pair(key, value) for key, value in bare.state.items()],
        "groups": [packer.pack(group) for group in groups],
        "attributes": packer.pack(_own_attributes(bare)),
        "choices": packer.pack(choices(bare)),
        "tensors": packer.tensors,
    }


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Put a state into an optimizer that was made over the same parameters.

    Arguments and learning rates that it was made with count where they are others than those of the saved optimizer.
    What a schedule makes of the rates is put back by `load_schedule_state`, which is called next.

    Tensors that lay beside their parameter go to the device where it is now; others stay on the CPU.

    Raises:
        CheckpointError: The state belongs to another optimizer, or to other parameters; or no optimizer of this
            program can have saved it.
    """
    bare = bare_optimizer(optimizer)
    _check_fits(bare, state)
    unpacker = Unpacker(bare, state["tensors"])
    pairs = [unpacker.unpack_pair(pair) for pair in state["state"]]
    attributes = unpacker.unpack(state["attributes"])
    own = _own_attributes(bare)  # some classes make others in their first step
    if strange := [name for name in attributes if name not in own and (not _is_state(name) or hasattr(bare, name))]:
        raise foreign_state(f"replaces {', '.join(strange)}, which is no state of {_class_name(bare)}")
    before, now = unpacker.unpack(state["choices"]), choices(bare)
    for pair in zip(before["groups"], now["groups"], strict=True):
        check_form(*pair)
    bare.state.clear()
    bare.state.update(pairs)
    for index, group in enumerate(bare.param_groups):
        parameters, saved = group["params"], unpacker.unpack(state["groups"][index])
        chosen = changed(before["groups"][index], now["groups"][index])
        of_schedule = now["schedule"][index] if now["schedule"] else {}
        group.clear()
        group.update({**saved, **chosen, **of_schedule, "params": parameters})
    vars(bare).update(attributes, **changed(before["attributes"], now["attributes"]))


def _own_attributes(optimizer: Optimizer) -> dict[str, Any]:
    return {
        name: value for name, value in vars(optimizer).items() if _is_state(name) and not is_kept_by_constructor(value)
    }


def _is_state(name: str) -> bool:
    return name not in _NOT_STATE and not name.startswith("_optimizer_")


def _class_name(optimizer: Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def _shapes(optimizer: Optimizer) -> list[list[list[int]]]:
    return [[list(parameter.shape) for parameter in _parameters(group)] for group in optimizer.param_groups]


def _parameters(group: Mapping[str, Any]) -> list[Tensor]:
    parameters: list[Tensor] = group["params"]
    return parameters


def _check_fits(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    if state.get("format") != _FORMAT:
        raise CheckpointError(
            f"the optimizer's state has format {state.get('format')}, this version reads {_FORMAT}. "
            "Continue with the version that saved it."
        )
    if state["optimizer"] != _class_name(optimizer):
        raise CheckpointError(
            f"the saved state belongs to the optimizer {state['optimizer']}, this run uses {_class_name(optimizer)}. "
            "Give the same --optimizer_type as before."
        )
    saved, here = state["shapes"], _shapes(optimizer)
    if saved != here:
        raise CheckpointError(
            f"the saved optimizer state is of {_size_words(saved)}, this run trains {_size_words(here)}, or weights of "
            "other shapes. Give the options it was made with: what trains, and at which learning rates."
        )


def _size_words(shapes: list[list[list[int]]]) -> str:
    return f"{sum(map(len, shapes))} weights in {len(shapes)} groups"
