"""How weights are sharded, and how settings that would be ignored are refused. Importing this imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from library.errors import EnvironmentFault

TRUE = ("true", "1", "yes")


@dataclass(frozen=True)
class ShardingSettings:
    """How weights are sharded.

    Attributes:
        reshards_after_forward: Gathered weights are freed after the forward pass and gathered anew for the backward
            pass; else they stay in between.
        offloads: Shards of weights, gradients and optimizer lie in host memory.
        name: What the user knows it as.
        offload_name: The setting that lets shards lie in host memory, as the user writes it.
    """

    reshards_after_forward: bool = True
    offloads: bool = False
    name: str = field(default="FSDP", compare=False)
    offload_name: str = field(default="fsdp_offload_params: true", compare=False)


def is_asked(environment: Mapping[str, str], variable: str) -> bool:
    """Whether a variable is true."""
    return environment.get(variable, "").lower() in TRUE


def refuse_without_effect(environment: Mapping[str, str], keys: Mapping[str, tuple[tuple[str, ...], str]]) -> None:
    """Raise EnvironmentFault where a launcher sets what nothing here follows.

    Args:
        environment: Of the process.
        keys: {variable: (values that change nothing, what to do about others)}.
    """
    for variable, (usual, advice) in keys.items():
        value = environment.get(variable, "")
        if value.lower() not in (item.lower() for item in ("", *usual)):
            name = variable.lower().removeprefix("accelerate_")
            raise EnvironmentFault(f"{name}={value} would have no effect: {advice}. Leave it out.")
