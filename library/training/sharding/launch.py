"""What a launcher asks for with FSDP: read from its environment, and refused where it would be ignored.

`accelerate launch` hands its configuration on as variables. accelerate's own FSDP is not used: without a GPU it trains
whole copies and says nothing. Importing this file imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from library.errors import EnvironmentFault

_ASKED = "ACCELERATE_USE_FSDP"
_TRUE = ("true", "1", "yes")
_KEYS = {  # variable: (values that change nothing here, what to do about others)
    "FSDP_SHARDING_STRATEGY": (("", "FULL_SHARD", "1"), "fsdp_reshard_after_forward says how much is kept"),
    "FSDP_AUTO_WRAP_POLICY": (("", "TRANSFORMER_BASED_WRAP"), "each block of the model is gathered by itself"),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": (("",), "each block of the model is gathered by itself"),
    "FSDP_STATE_DICT_TYPE": (("", "FULL_STATE_DICT"), "models and states are always saved whole"),
    "FSDP_FORWARD_PREFETCH": (("", "false"), "torch decides by itself what is gathered in advance"),
    "FSDP_ACTIVATION_CHECKPOINTING": (("", "false"), "give --gradient_checkpointing to the script"),
    "FSDP_IGNORED_MODULES": (("",), "all weights of what trains are sharded"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (("", "false"), "weights are sharded over all processes"),
}


@dataclass(frozen=True)
class ShardingSettings:
    """How weights are sharded.

    Attributes:
        reshards_after_forward: Gathered weights are freed after the forward pass and gathered anew for the backward
            pass; else they stay in between.
        offloads: Shards of weights, gradients and optimizer lie in host memory.
    """

    reshards_after_forward: bool = True
    offloads: bool = False


def read_settings(environment: Mapping[str, str] | None = None) -> ShardingSettings | None:
    """What the launcher asks for; None where it does not ask for sharding.

    Args:
        environment: None for that of the process.

    Raises:
        EnvironmentFault: Version 1 of FSDP, a single process, or a setting that would be ignored.
    """
    given = os.environ if environment is None else environment
    if given.get(_ASKED, "").lower() not in _TRUE:
        return None
    if given.get("FSDP_VERSION", "1") != "2":
        raise EnvironmentFault(
            "FSDP version 1 is not supported. Set fsdp_version: 2, as docs/accelerate/fsdp2.yaml has it, or the "
            "variable FSDP_VERSION=2 with torchrun."
        )
    if int(given.get("WORLD_SIZE") or 1) < 2:
        raise EnvironmentFault(
            "FSDP shards a model over several processes, and there is one. Give --num_processes (or torchrun's "
            "--nproc_per_node), or leave FSDP out."
        )
    for variable, (usual, advice) in _KEYS.items():
        value = given.get(variable, "")
        if value.lower() not in (item.lower() for item in usual):
            raise EnvironmentFault(f"{variable.lower()}={value} would have no effect: {advice}. Leave it out.")
    return ShardingSettings(
        reshards_after_forward=_is_on(given, "FSDP_RESHARD_AFTER_FORWARD", True),
        offloads=_is_on(given, "FSDP_OFFLOAD_PARAMS", False),
    )


def _is_on(environment: Mapping[str, str], variable: str, default: bool) -> bool:
    value = environment.get(variable, "").lower()
    if value not in ("", *_TRUE, "false", "0", "no"):
        raise EnvironmentFault(f"{variable.lower()} must be true or false, got {value}. Correct the configuration.")
    return value in _TRUE if value else default


@contextmanager
def plain_processes() -> Iterator[None]:
    """A context in which accelerate makes a plain group of processes, whatever it is asked to shard."""
    asked = os.environ.pop(_ASKED, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_ASKED] = asked
