"""Which optimizers there are: the names users know, and the class that each one means.

Importing this file imports nothing heavy; the package of an optimizer is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from library.errors import EnvironmentFault, OptionError
from library.training.optimization.optimizer_arguments import one_line

if TYPE_CHECKING:
    from torch.optim import Optimizer

_MORE_NAMES = "pytorch_optimizer"  # every class of this package can be asked for by its name


@dataclass(frozen=True)
class OptimizerKind:
    """Where an optimizer comes from.

    Attributes:
        name: As users write it, in any letter case.
        module: Module that has the class.
        class_name: Its name there.
        package: What to install where the module is missing.
        forced: Arguments that make it what its name says.
        preset: Arguments that hold unless the user gives others.
    """

    name: str
    module: str
    class_name: str
    package: str
    forced: tuple[tuple[str, Any], ...] = ()
    preset: tuple[tuple[str, Any], ...] = ()

    @property
    def is_adafactor(self) -> bool:
        """The one that can set its rate itself."""
        return self.class_name == "Adafactor" and self.package == "transformers"

    @property
    def steps_apart(self) -> bool:
        """The step of a weight does not depend on the other weights."""
        return self.package in _STEPPING_APART

    @property
    def takes_stand_ins(self) -> bool:
        """Knows its weights by its groups alone, so that others can take the step for them. Some packages do not."""
        return self.package in {known.package for known in _KINDS}

    @property
    def may_draw(self) -> bool:
        """Those of the packages in the table draw nothing at random; others may."""
        return self.package not in {known.package for known in _KINDS}


def _kinds(module: str, package: str, *names: str, **more: Any) -> tuple[OptimizerKind, ...]:
    return tuple(OptimizerKind(name, module, name, package, **more) for name in names)


_STEPPING_APART = frozenset(("torch", "bitsandbytes", "lion-pytorch", "transformers", "schedulefree"))
_MOMENTUM = (("momentum", 0.9),)
_NESTEROV: dict[str, Any] = {"forced": (("nesterov", True),), "preset": _MOMENTUM}
_KINDS = (
    *_kinds("torch.optim", "torch", "AdamW", "Adam", "Adamax", "NAdam", "RAdam", "Adadelta", "Adagrad", "ASGD"),
    *_kinds("torch.optim", "torch", "RMSprop", "Rprop", "SGD"),
    OptimizerKind("SGDNesterov", "torch.optim", "SGD", "torch", **_NESTEROV),
    *_kinds("bitsandbytes.optim", "bitsandbytes", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit"),
    *_kinds("bitsandbytes.optim", "bitsandbytes", "Adam8bit", "PagedAdam", "PagedAdam8bit", "PagedAdam32bit"),
    *_kinds("bitsandbytes.optim", "bitsandbytes", "Lion8bit", "PagedLion", "PagedLion8bit", "PagedLion32bit"),
    *_kinds("bitsandbytes.optim", "bitsandbytes", "AdEMAMix8bit", "PagedAdEMAMix8bit", "RMSprop8bit"),
    *_kinds("bitsandbytes.optim", "bitsandbytes", "Adagrad8bit", "LAMB8bit"),
    *_kinds("bitsandbytes.optim", "bitsandbytes", "SGD8bit", "LARS8bit", preset=_MOMENTUM),  # cannot do without
    OptimizerKind("SGDNesterov8bit", "bitsandbytes.optim", "SGD8bit", "bitsandbytes", **_NESTEROV),
    *_kinds("lion_pytorch", "lion-pytorch", "Lion"),
    *_kinds("transformers.optimization", "transformers", "Adafactor"),
    OptimizerKind("DAdaptation", "dadaptation.experimental", "DAdaptAdamPreprint", "dadaptation"),
    *_kinds("dadaptation.experimental", "dadaptation", "DAdaptAdamPreprint", "DAdaptAdanIP"),
    *_kinds("dadaptation", "dadaptation", "DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptLion", "DAdaptSGD"),
    *_kinds("prodigyopt", "prodigyopt", "Prodigy"),
    *_kinds("schedulefree", "schedulefree", "RAdamScheduleFree", "AdamWScheduleFree", "SGDScheduleFree"),
)
KNOWN_NAMES = tuple(kind.name for kind in _KINDS)


def find_optimizer(name: str) -> OptimizerKind:
    """The optimizer that a name means; an empty name means AdamW.

    Names are looked for in the table above (any letter case), then among the classes of torch.optim and of
    pytorch-optimizer. "package.module.Class" is taken as it is written.

    Raises:
        OptionError: The name is unknown.
    """
    wanted = name.strip() or "AdamW"
    for kind in _KINDS:
        if kind.name.lower() == wanted.lower():
            return kind
    if "." in wanted:
        return _dotted_kind(wanted)
    modules = [("torch.optim", "torch")]
    if importlib.util.find_spec(_MORE_NAMES) is not None:
        modules.append((_MORE_NAMES, "pytorch-optimizer"))
    known = list(KNOWN_NAMES)
    for module, package in modules:
        classes = _optimizer_classes(module)
        for class_name in classes:
            if class_name.lower() == wanted.lower():
                return OptimizerKind(class_name, module, class_name, package)
        known += classes
    raise OptionError(_unknown(wanted, known, has_more=len(modules) > 1))


def _dotted_kind(path: str) -> OptimizerKind:
    module, _, class_name = path.rpartition(".")
    root = module.partition(".")[0]
    known = {kind.module.partition(".")[0]: kind.package for kind in _KINDS}
    return OptimizerKind(path, module, class_name, {**known, _MORE_NAMES: "pytorch-optimizer"}.get(root, root))


def _optimizer_classes(module: str) -> list[str]:
    from torch.optim import Optimizer

    members = vars(importlib.import_module(module)).items()
    classes = ((name, member) for name, member in members if inspect.isclass(member) and issubclass(member, Optimizer))
    return [name for name, member in classes if member is not Optimizer]


def _unknown(name: str, known: list[str], *, has_more: bool) -> str:
    by_lower = {known_name.lower(): known_name for known_name in reversed(known)}  # the first is the one that is taken
    near = get_close_matches(name.lower(), by_lower, n=1)
    near += [other for other in map(str.lower, KNOWN_NAMES) if near and other not in near and _is_one_off(name, other)]
    names = " or ".join(by_lower[other] for other in near)
    hint = f" Did you mean {names}?" if near else f" Known: {', '.join(KNOWN_NAMES)}."
    more = "" if has_more else " More names come with `pip install pytorch-optimizer`."
    return f"--optimizer_type {name}: unknown optimizer.{hint}{more}"


def _is_one_off(name: str, other: str) -> bool:
    """Whether one letter differs: the likeness of short names suffers too much from it."""
    return len(name) == len(other) and sum(a != b for a, b in zip(name.lower(), other, strict=True)) == 1


def load_class(kind: OptimizerKind) -> type[Optimizer]:
    """The optimizer's class; torch's compiler stays unloaded where only the imported package would load it.

    Raises:
        EnvironmentFault: Its package is missing or broken.
        OptionError: The module has no such optimizer.
    """
    from torch.optim import Optimizer

    from library.training.optimization.lean_optimizer import compilation_off

    try:
        with compilation_off() if kind.package == "bitsandbytes" else nullcontext():
            module = importlib.import_module(kind.module)
    except ImportError as error:
        raise EnvironmentFault(
            f"--optimizer_type {kind.name} needs the package {kind.package}, which cannot be imported "
            f"({one_line(error)}). Run `pip install {kind.package}`, or use AdamW."
        ) from error
    found = getattr(module, kind.class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Optimizer)):
        raise OptionError(
            f"--optimizer_type {kind.name}: {kind.module} has no optimizer {kind.class_name}. "
            f"Check the name, or update {kind.package}."
        )
    return found


def lean_class(kind: OptimizerKind) -> type[Optimizer]:
    """The class without torch's compiler. Where it may draw, its optimizers need the attribute `draws`."""
    from library.training.optimization.lean_optimizer import without_compiler

    skips_zero_rates = kind.class_name == "DAdaptSGD"
    return without_compiler(load_class(kind), skips_zero_rates=skips_zero_rates, draws_by_step=kind.may_draw)
