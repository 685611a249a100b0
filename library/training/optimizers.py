"""Optimizers by the names users know, and their `--optimizer_args`.

Importing this file imports nothing heavy; the package of an optimizer is imported when it is asked for.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from library.errors import EnvironmentFault, OptionError
from library.log import get_logger

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

logger = get_logger(__name__)


@dataclass(frozen=True)
class OptimizerKind:
    """Where an optimizer comes from.

    Attributes:
        name: As users write it, in any letter case.
        module: Module that has the class.
        class_name: Its name there.
        package: What to install where the module is missing.
    """

    name: str
    module: str
    class_name: str
    package: str


_KINDS = (
    OptimizerKind("AdamW", "torch.optim", "AdamW", "torch"),
    OptimizerKind("AdamW8bit", "bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    OptimizerKind("Adafactor", "transformers.optimization", "Adafactor", "transformers"),
)
# Names that are known and come with a later version.
_LATER = (
    *("PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "Lion", "Lion8bit", "PagedLion8bit"),
    *("SGDNesterov", "SGDNesterov8bit", "RMSprop8bit", "Adagrad8bit"),
    *("DAdaptation", "DAdaptAdamPreprint", "DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptAdanIP"),
    *("DAdaptLion", "DAdaptSGD", "Prodigy", "RAdamScheduleFree", "AdamWScheduleFree", "SGDScheduleFree"),
    *("Adadelta", "Adagrad", "Adam", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
)
_RESERVED = {"params": "it is what trains", "lr": "give it as --learning_rate"}
_FAULTS = (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AttributeError, AssertionError)


def find_optimizer(name: str) -> OptimizerKind:
    """The optimizer that a name means; an empty name means AdamW.

    Raises:
        OptionError: The name is unknown, or not available yet.
    """
    wanted = name.strip().lower() or "adamw"
    for kind in _KINDS:
        if kind.name.lower() == wanted:
            return kind
    available = ", ".join(kind.name for kind in _KINDS)
    if "." in wanted or wanted in {later.lower() for later in _LATER}:
        raise OptionError(f"--optimizer_type {name}: not available yet. Use one of {available}.")
    known = {known.lower(): known for known in (*(kind.name for kind in _KINDS), *_LATER)}
    near = get_close_matches(wanted, known, n=1)
    hint = f" Did you mean {known[near[0]]}?" if near else ""
    raise OptionError(f"--optimizer_type {name}: unknown optimizer.{hint} Available: {available}.")


def split_key_values(items: Sequence[str] | None, flag: str) -> dict[str, str]:
    """Split "key=value" items at their first "=".

    Args:
        items: As given on the command line.
        flag: The option they belong to, for messages.

    Raises:
        OptionError: Lists every item without "=" and every key that is given twice.
    """
    result: dict[str, str] = {}
    problems = []
    for item in items or ():
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(f'"{item}" has no "="' if not equals else f'"{item}" has no name before "="')
        elif key in result:
            problems.append(f"{key} is given twice")
        else:
            result[key] = value.strip()
    if problems:
        raise OptionError(f"{flag}: {'; '.join(problems)}. Write each argument as name=value.")
    return result


def parse_key_values(items: Sequence[str] | None, flag: str) -> dict[str, Any]:
    """Like `split_key_values`, with values read as Python literals.

    true and false count in any letter case; whatever is no literal is a text.
    """
    return {key: _literal(value) for key, value in split_key_values(items, flag).items()}


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def check_optimizer(name: str, args: Sequence[str] | None, learning_rate: float) -> None:
    """Build the optimizer over a small parameter and step it once, before any weights are read.

    Raises:
        OptionError: The name is unknown or not available yet; an argument is unknown or has a wrong value.
        EnvironmentFault: The optimizer's package is missing, or cannot run here.
    """
    kind = find_optimizer(name)
    arguments = parse_key_values(args, "--optimizer_args")
    make = _lean_class(kind)
    _check_names(kind, make, arguments)
    _check_rate(kind, arguments, learning_rate)
    fault = _try_step(kind, make, arguments, learning_rate)
    if fault is None:
        return
    if isinstance(fault, NotImplementedError):
        raise EnvironmentFault(
            f"--optimizer_type {kind.name}: {kind.package} cannot run it on this machine ({_one_line(fault)}). "
            f"Update {kind.package}, or use AdamW."
        ) from fault
    guilty = [key for key, value in arguments.items() if _try_step(kind, make, {key: value}, learning_rate)]
    named = ", ".join(f"{key}={arguments[key]!r}" for key in guilty or arguments) or "its defaults"
    raise OptionError(f"--optimizer_args: {kind.name} does not accept {named} ({_one_line(fault)}).") from fault


def make_optimizer(
    name: str,
    param_groups: Sequence[Mapping[str, Any]],
    *,
    learning_rate: float,
    args: Sequence[str] | None = None,
    use_fused: bool = True,
) -> Optimizer:
    """The optimizer over parameter groups.

    Args:
        name: As users write it; empty means AdamW.
        param_groups: Each with "params" and, where it differs from `learning_rate`, "lr".
        learning_rate: Of groups that have none.
        args: `key=value` items.
        use_fused: Let torch's AdamW use its fused form (same result to rounding, about three times as fast).

    Raises:
        OptionError: As `check_optimizer`, which should have been called before.
    """
    kind = find_optimizer(name)
    arguments = parse_key_values(args, "--optimizer_args")
    make = _lean_class(kind)
    _check_names(kind, make, arguments)
    groups = [{**group, "params": list(group["params"])} for group in param_groups]
    if sets_its_own_rate(name, args):
        groups = _without_rates(kind, groups)
    arguments = _effective_arguments(kind, arguments, learning_rate)
    if use_fused and kind.name == "AdamW" and _can_fuse(groups, arguments):
        arguments["fused"] = True
    optimizer: Optimizer = make(groups, **arguments)
    return optimizer


def sets_its_own_rate(name: str, args: Sequence[str] | None) -> bool:
    """Whether the optimizer ignores learning rates: Adafactor with relative_step, which is its default."""
    if find_optimizer(name).name != "Adafactor":
        return False
    arguments = parse_key_values(args, "--optimizer_args")
    return bool(arguments.get("relative_step", True) or arguments.get("warmup_init", False))


def forced_schedule(name: str, args: Sequence[str] | None, learning_rate: float) -> str | None:
    """The schedule that the optimizer brings itself ("adafactor:<initial rate>"), or None."""
    return f"adafactor:{learning_rate}" if sets_its_own_rate(name, args) else None


def optimizer_description(name: str, args: Sequence[str] | None) -> str:
    """Class and arguments for metadata, "torch.optim.adamw.AdamW(weight_decay=0.1)"."""
    make = _load_class(find_optimizer(name))
    arguments = parse_key_values(args, "--optimizer_args")
    listed = ",".join(f"{key}={value}" for key, value in arguments.items())
    return f"{make.__module__}.{make.__qualname__}" + (f"({listed})" if listed else "")


def _load_class(kind: OptimizerKind) -> type[Optimizer]:
    """The optimizer's class; torch's compiler stays unloaded where only the imported package would load it."""
    from library.training.lean_optimizer import compilation_off

    try:
        with compilation_off() if kind.package == "bitsandbytes" else nullcontext():
            module = importlib.import_module(kind.module)
    except ImportError as error:
        raise EnvironmentFault(
            f"--optimizer_type {kind.name} needs the package {kind.package}, which cannot be imported "
            f"({_one_line(error)}). Run `pip install {kind.package}`, or use AdamW."
        ) from error
    found: type[Optimizer] = getattr(module, kind.class_name)
    return found


def _lean_class(kind: OptimizerKind) -> type[Optimizer]:
    from library.training.lean_optimizer import without_compiler

    return without_compiler(_load_class(kind))


def _check_names(kind: OptimizerKind, make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    accepted = [name for name in inspect.signature(make).parameters if name not in _RESERVED]
    problems = []
    for key in arguments:
        if key in _RESERVED:
            problems.append(f"{key} cannot be given here, {_RESERVED[key]}")
        elif key not in accepted:
            near = get_close_matches(key, accepted, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            problems.append(f"{kind.name} has no argument {key}{hint}")
    if problems:
        raise OptionError(f"--optimizer_args: {'; '.join(problems)}. Known: {', '.join(accepted)}.")


def _check_rate(kind: OptimizerKind, arguments: Mapping[str, Any], learning_rate: float) -> None:
    if not 0 <= learning_rate < float("inf"):
        raise OptionError(f"--learning_rate must be a number of 0 or more, got {learning_rate}.")
    if kind.name == "Adafactor" and arguments.get("warmup_init") and arguments.get("relative_step") is False:
        raise OptionError(
            "--optimizer_args: Adafactor's warmup_init=True needs relative_step=True. Remove one of the two."
        )


def _effective_arguments(kind: OptimizerKind, arguments: Mapping[str, Any], learning_rate: float) -> dict[str, Any]:
    if kind.name != "Adafactor":
        return {"lr": learning_rate, **arguments}
    is_relative = bool(arguments.get("relative_step", True) or arguments.get("warmup_init", False))
    return {**arguments, "relative_step": is_relative, "lr": None if is_relative else learning_rate}


def _try_step(
    kind: OptimizerKind, make: Callable[..., Optimizer], arguments: Mapping[str, Any], learning_rate: float
) -> Exception | None:
    """What goes wrong when the optimizer takes one step on a small parameter, or None."""
    import torch

    parameter = torch.nn.Parameter(torch.ones(8, 8))
    parameter.grad = torch.ones(8, 8)
    try:
        optimizer = make([parameter], **_effective_arguments(kind, arguments, learning_rate))
        if _runs_on_cpu(kind, arguments):
            optimizer.step()
    except _FAULTS as fault:
        return fault
    return None


def _runs_on_cpu(kind: OptimizerKind, arguments: Mapping[str, Any]) -> bool:
    """Whether a step without the GPU tells something about the step with it."""
    import torch

    if arguments.get("capturable") or arguments.get("is_paged"):
        return False
    return kind.package != "bitsandbytes" or not torch.cuda.is_available()


def _without_rates(kind: OptimizerKind, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rates = sorted({group["lr"] for group in groups if group.get("lr") is not None})
    if rates:
        logger.warning(
            "%s with relative_step sets the learning rate itself, so the one given (%s) has no effect; "
            "use --optimizer_args relative_step=False scale_parameter=False warmup_init=False to keep it.",
            kind.name,
            ", ".join(f"{rate:g}" for rate in rates),
        )
    return [{key: value for key, value in group.items() if key != "lr"} for group in groups]


def _can_fuse(groups: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> bool:
    """Whether torch has a fused kernel for all parameters, and the user has not chosen a form."""
    if any(key in arguments for key in ("fused", "foreach", "differentiable")):
        return False
    parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


def _one_line(fault: BaseException) -> str:
    lines = str(fault).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(fault).__name__
