"""Making optimizers by name, and finding wrong names and arguments before a run.

Importing this file imports nothing heavy; the package of an optimizer is imported when it is asked for.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from library.errors import EnvironmentFault, OptionError
from library.log import get_logger
from library.training.optimization.optimizer_arguments import check_names, one_line, parse_key_values, split_key_values
from library.training.optimization.optimizer_kinds import OptimizerKind, find_optimizer, lean_class, load_class

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

__all__ = [
    "check_optimizer",
    "find_optimizer",
    "forced_schedule",
    "make_optimizer",
    "optimizer_description",
    "parse_key_values",
    "sets_its_own_rate",
    "split_key_values",
]

logger = get_logger(__name__)

_FLAG = "--optimizer_args"
_RESERVED = {"params": "it is what trains", "lr": "give it as --learning_rate"}
_FUSED = {"Adam": ("cpu", "cuda"), "AdamW": ("cpu", "cuda"), "SGD": ("cpu", "cuda"), "Adagrad": ("cpu",)}
_OTHER_FORMS = ("fused", "foreach", "differentiable", "capturable")
_NEEDS_GPU = ("capturable", "is_paged", "use_triton")
_SIDE, _SIDE_OF_PAGED = 8, 320  # of the weight that is tried; bitsandbytes treats 100,000 numbers and more differently
_LEAST_USUAL_SCALE = 0.1  # at this learning rate or below, an optimizer with a step size of its own hardly trains


def check_optimizer(
    name: str,
    args: Sequence[str] | None,
    learning_rate: float,
    *,
    keeps_state: bool = False,
    rounding: str | None = None,
) -> None:
    """Build the optimizer over a small parameter and step it once, before any weights are read.

    Args:
        name: As users write it; empty means AdamW.
        args: `key=value` items.
        learning_rate: Of the run.
        keeps_state: Its state is going to be saved, so it must be one that can be saved.
        rounding: As in `make_optimizer`, where weights will be in bf16.

    Raises:
        OptionError: The name is unknown; an argument is unknown or has a wrong value; the state cannot be saved; or
            steps cannot be rounded so.
        EnvironmentFault: The optimizer's package is missing, or cannot run here.
    """
    kind = find_optimizer(name)
    if rounding not in (None, "nearest") and not kind.takes_stand_ins:
        raise OptionError(
            f"--optimizer_type {kind.name}: optimizers of {kind.package} cannot make the steps of weights in bf16 in "
            "float32. Use --bf16_rounding nearest, which loses small steps, or another optimizer."
        )
    arguments = _read_arguments(kind, args)
    _check_rate(kind, arguments, learning_rate)
    made = _try_step(kind, arguments, learning_rate)
    if isinstance(made, Exception):
        raise _explain(kind, arguments, learning_rate, made) from made
    if keeps_state:
        from library.training.optimization.optimizer_state import optimizer_state

        optimizer_state(made)
    _warn_about(kind, made, learning_rate)


def make_optimizer(
    name: str,
    param_groups: Sequence[Mapping[str, Any]],
    *,
    learning_rate: float,
    args: Sequence[str] | None = None,
    use_fused: bool = True,
    seed: int = 0,
    rounding: str | None = None,
) -> Optimizer:
    """The optimizer over parameter groups, ready to train.

    Args:
        name: As users write it; empty means AdamW.
        param_groups: Each with "params" and, where it differs from `learning_rate`, "lr".
        learning_rate: Of groups that have none.
        args: `key=value` items.
        use_fused: Let torch's Adam, AdamW, SGD and Adagrad use their fused form (same result to rounding, and up to
            three times as fast).
        seed: Of the run, the same on every process: it keys what the optimizer draws at random.
        rounding: Weights in 16 bits take their steps in float32; those in bf16 are put back by "stochastic" rounding,
            by "kahan" summation, or, as with None, the optimizer does by itself what it does ("nearest").

    Raises:
        OptionError: As `check_optimizer`, which should have been called before; or the optimizer refuses the weights.
    """
    from library.training.optimization.optimizer_choices import note_choices

    kind = find_optimizer(name)
    arguments = _read_arguments(kind, args)
    groups = [{**group, "params": list(group["params"])} for group in param_groups]
    if sets_its_own_rate(name, args):
        groups = _without_rates(kind, groups)
    arguments = _effective_arguments(kind, arguments, learning_rate)
    if use_fused and _can_fuse(kind, groups, arguments):
        arguments["fused"] = True
    try:
        optimizer = _build(kind, groups, arguments, seed, rounding=_rounding_of(kind, groups, rounding))
    except Exception as fault:  # packages have error classes of their own
        raise OptionError(
            f"--optimizer_type {kind.name} cannot train these weights ({one_line(fault)}). Use another optimizer."
        ) from fault
    _use_one_rate(kind, optimizer)
    note_choices(optimizer)
    return optimizer


def sets_its_own_rate(name: str, args: Sequence[str] | None) -> bool:
    """Whether the optimizer ignores learning rates: Adafactor with relative_step, which is its default."""
    if not find_optimizer(name).is_adafactor:
        return False
    arguments = parse_key_values(args, _FLAG)
    return bool(arguments.get("relative_step", True) or arguments.get("warmup_init", False))


def forced_schedule(name: str, args: Sequence[str] | None, learning_rate: float) -> str | None:
    """The schedule that the optimizer brings itself ("adafactor:<initial rate>"), or None."""
    return f"adafactor:{learning_rate}" if sets_its_own_rate(name, args) else None


def optimizer_description(name: str, args: Sequence[str] | None) -> str:
    """Class and arguments for metadata, "torch.optim.adamw.AdamW(weight_decay=0.1)"."""
    kind = find_optimizer(name)
    made = load_class(kind)
    arguments = {**dict(kind.preset), **parse_key_values(args, _FLAG), **dict(kind.forced)}
    listed = ",".join(f"{key}={value}" for key, value in arguments.items())
    return f"{made.__module__}.{made.__qualname__}" + (f"({listed})" if listed else "")


def _read_arguments(kind: OptimizerKind, args: Sequence[str] | None) -> dict[str, Any]:
    arguments = parse_key_values(args, _FLAG)
    reserved = {**_RESERVED, **{key: f"{kind.name} has {key}={value}" for key, value in kind.forced}}
    takes_more = kind.package != "pytorch-optimizer"  # its classes swallow what they do not know
    check_names(_FLAG, kind.name, load_class(kind), arguments, reserved=reserved, takes_more=takes_more)
    return arguments


def _check_rate(kind: OptimizerKind, arguments: Mapping[str, Any], learning_rate: float) -> None:
    if not 0 <= learning_rate < float("inf"):
        raise OptionError(f"--learning_rate must be a number of 0 or more, got {learning_rate}.")
    if kind.is_adafactor and arguments.get("warmup_init") and arguments.get("relative_step") is False:
        raise OptionError(
            "--optimizer_args: Adafactor's warmup_init=True needs relative_step=True. Remove one of the two."
        )


def _effective_arguments(kind: OptimizerKind, arguments: Mapping[str, Any], learning_rate: float) -> dict[str, Any]:
    if not kind.is_adafactor:
        return {"lr": learning_rate, **dict(kind.preset), **arguments, **dict(kind.forced)}
    is_relative = bool(arguments.get("relative_step", True) or arguments.get("warmup_init", False))
    return {**arguments, "relative_step": is_relative, "lr": None if is_relative else learning_rate}


def _try_step(kind: OptimizerKind, arguments: Mapping[str, Any], learning_rate: float) -> Optimizer | Exception:
    """The optimizer after one step on a small parameter, or what went wrong."""
    import torch

    side = _SIDE_OF_PAGED if kind.package == "bitsandbytes" else _SIDE
    parameter = torch.nn.Parameter(torch.ones(side, side))
    parameter.grad = torch.ones(side, side)
    try:
        with torch.random.fork_rng(devices=[]), redirect_stdout(io.StringIO()):  # some packages print what they do
            effective = _effective_arguments(kind, arguments, learning_rate)
            optimizer = _build(kind, [{"params": [parameter]}], effective)
            if _runs_on_cpu(kind, arguments):
                optimizer.step()
    except Exception as fault:  # packages have error classes of their own; the caller tells it
        return fault
    return optimizer if "lr" in optimizer.defaults else ValueError("it has no learning rate")


def _rounding_of(kind: OptimizerKind, groups: Sequence[Mapping[str, Any]], rounding: str | None) -> str | None:
    """What is asked for, where there are weights that it acts on."""
    import torch

    formats = {parameter.dtype for group in groups for parameter in group["params"]}
    if not kind.takes_stand_ins:
        return None
    if torch.float16 in formats or (torch.bfloat16 in formats and rounding != "nearest"):
        return rounding
    return None


def _build(
    kind: OptimizerKind,
    groups: list[dict[str, Any]],
    arguments: Mapping[str, Any],
    seed: int = 0,
    *,
    rounding: str | None = None,
) -> Optimizer:
    from library.training.optimization.optimizer_modes import set_train_mode
    from library.training.optimization.rounded_steps import set_rounding, with_rounding

    made = lean_class(kind)
    optimizer = (made if rounding is None else with_rounding(made))(groups, **arguments)
    if rounding is not None:
        set_rounding(
            optimizer,
            keeps_rest=rounding == "kahan",
            seed=seed,
            is_apart=kind.steps_apart,
            shortens_state=kind.package != "bitsandbytes",
        )
        if not kind.steps_apart:
            logger.warning(
                "--optimizer_type %s looks at all weights together, so in the moment of a step all of them, their "
                "gradients and its own numbers are in float32.",
                kind.name,
            )
    set_train_mode(optimizer)
    if kind.may_draw:
        optimizer.draws = (seed, 0)  # type: ignore[attr-defined]
    if getattr(optimizer, "is_paged", False):
        optimizer._cpu_paged_warned = True  # type: ignore[attr-defined]  # `check_optimizer` has said it
    return optimizer


def _explain(
    kind: OptimizerKind, arguments: Mapping[str, Any], learning_rate: float, fault: Exception
) -> OptionError | EnvironmentFault:
    """The fault of a step as a sentence that names the arguments which cause it."""
    if isinstance(fault, NotImplementedError):
        return EnvironmentFault(
            f"--optimizer_type {kind.name}: {kind.package} cannot run it on this machine ({one_line(fault)}). "
            f"Update {kind.package}, or use AdamW."
        )
    if _pages_without_gpu(kind):
        return EnvironmentFault(
            f"--optimizer_type {kind.name} needs a GPU to page from ({one_line(fault)}). "
            f"Use {kind.class_name.removeprefix('Paged')}, or AdamW."
        )
    if isinstance(_try_step(kind, {}, learning_rate), Exception) or not arguments:
        return OptionError(
            f"--optimizer_type {kind.name} cannot take a step ({one_line(fault)}). "
            "Give what it needs as --optimizer_args, or use another optimizer."
        )
    each = {key: _try_step(kind, {key: value}, learning_rate) for key, value in arguments.items()}
    guilty = [key for key, made in each.items() if isinstance(made, Exception)] or list(arguments)
    named = ", ".join(f"{key}={arguments[key]!r}" for key in guilty)
    return OptionError(f"{_FLAG}: {kind.name} does not accept {named} ({one_line(fault)}).")


def _runs_on_cpu(kind: OptimizerKind, arguments: Mapping[str, Any]) -> bool:
    """Whether a step without the GPU tells something about the step with it."""
    import torch

    if any(arguments.get(key) for key in _NEEDS_GPU):
        return False
    return kind.package != "bitsandbytes" or not torch.cuda.is_available()


def _pages_without_gpu(kind: OptimizerKind) -> bool:
    import torch

    return kind.package == "bitsandbytes" and "Paged" in kind.class_name and not torch.cuda.is_available()


def _warn_about(kind: OptimizerKind, optimizer: Optimizer, learning_rate: float) -> None:
    from library.training.optimization.optimizer_rates import has_own_scale

    if has_own_scale(optimizer) and learning_rate <= _LEAST_USUAL_SCALE:
        logger.warning(
            "learning rate %g: %s finds the size of its steps itself and multiplies it by the learning rate. "
            "1 is usual; %g or less hardly trains.",
            learning_rate,
            kind.name,
            _LEAST_USUAL_SCALE,
        )
    if _pages_without_gpu(kind):
        logger.warning("--optimizer_type %s: there is no GPU to page from, so its state stays in memory.", kind.name)


def _use_one_rate(kind: OptimizerKind, optimizer: Optimizer) -> None:
    """Give all groups the first one's rate, where the optimizer allows no other."""
    from library.training.optimization.optimizer_rates import has_own_scale

    groups = optimizer.param_groups
    rates = list(dict.fromkeys(group["lr"] for group in groups))
    if len(rates) < 2 or not has_own_scale(optimizer):
        return
    logger.warning(
        "--optimizer_type %s takes one learning rate for all parts: %g is used everywhere, %s has no effect.",
        kind.name,
        rates[0],
        ", ".join(f"{rate:g}" for rate in rates[1:]),
    )
    for group in groups:
        group["lr"] = rates[0]


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


def _can_fuse(kind: OptimizerKind, groups: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> bool:
    """Whether torch has a fused kernel for all parameters, and the user has not chosen a form."""
    if kind.module != "torch.optim" or any(key in arguments for key in _OTHER_FORMS):
        return False
    devices = _FUSED.get(kind.class_name, ())
    parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
    return all(p.is_floating_point() and p.device.type in devices for p in parameters)
