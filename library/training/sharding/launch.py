"""What a launcher or the script's options ask for with FSDP or DeepSpeed, refused where it would be ignored.

`accelerate launch` hands its configuration on as variables. accelerate's own FSDP is not used: without a GPU it trains
whole copies and says nothing. Importing this file imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from library.errors import EnvironmentFault
from library.log import get_logger
from library.training.sharding import zero
from library.training.sharding.settings import TRUE, ShardingSettings, is_asked, refuse_without_effect

if TYPE_CHECKING:
    from library.options.groups import DistributedOptions

logger = get_logger(__name__)

_ASKED = "ACCELERATE_USE_FSDP"
_KEYS = {  # variable: (values that change nothing here, what to do about others)
    "FSDP_SHARDING_STRATEGY": (("FULL_SHARD", "1"), "fsdp_reshard_after_forward says how much is kept"),
    "FSDP_AUTO_WRAP_POLICY": (("TRANSFORMER_BASED_WRAP",), "each block of the model is gathered by itself"),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": ((), "each block of the model is gathered by itself"),
    "FSDP_STATE_DICT_TYPE": (("FULL_STATE_DICT",), "models and states are always saved whole"),
    "FSDP_FORWARD_PREFETCH": (("false",), "torch decides by itself what is gathered in advance"),
    "FSDP_ACTIVATION_CHECKPOINTING": (("false",), "give --gradient_checkpointing to the script"),
    "FSDP_IGNORED_MODULES": ((), "all weights of what trains are sharded"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (("false",), "weights are sharded over all processes"),
}


def read_settings(
    environment: Mapping[str, str] | None = None, options: DistributedOptions | None = None
) -> ShardingSettings | None:
    """How weights are sharded; None where nobody asks for it.

    Args:
        environment: None for that of the process.
        options: Of the script.

    Raises:
        EnvironmentFault: Version 1 of FSDP, a single process, or a setting of the launcher that would be ignored.
        OptionError: An option that would be ignored.
    """
    given = os.environ if environment is None else environment
    of_options = None if options is None else zero.zero_of_options(options)
    asked = [item for item in (_fsdp(given), zero.zero_of_launcher(given), of_options) if item is not None]
    if not asked:
        return None
    settings = asked[0]
    if any(other != settings for other in asked):
        raise EnvironmentFault(
            f"the launcher asks for {settings.name}, and {asked[-1].name} is asked for beside it, with other settings. "
            "Keep one of them: the configuration of the launcher, or --deepspeed."
        )
    if int(given.get("WORLD_SIZE") or 1) < 2:
        raise EnvironmentFault(
            f"{settings.name} shards a model over several processes, and there is one. Give --num_processes (or "
            f"torchrun's --nproc_per_node), or leave {settings.name} out."
        )
    if settings.name != "FSDP":
        where = ", shards lie in host memory" if settings.offloads else ""
        logger.info("%s is carried out by FSDP2%s; the deepspeed package is not used", settings.name, where)
    return settings


def _fsdp(environment: Mapping[str, str]) -> ShardingSettings | None:
    """Of accelerate's environment."""
    if not is_asked(environment, _ASKED):
        return None
    if environment.get("FSDP_VERSION", "1") != "2":
        raise EnvironmentFault(
            "FSDP version 1 is not supported. Set fsdp_version: 2, as docs/accelerate/fsdp2.yaml has it, or the "
            "variable FSDP_VERSION=2 with torchrun."
        )
    refuse_without_effect(environment, _KEYS)
    return ShardingSettings(
        reshards_after_forward=_is_on(environment, "FSDP_RESHARD_AFTER_FORWARD", True),
        offloads=_is_on(environment, "FSDP_OFFLOAD_PARAMS", False),
    )


def _is_on(environment: Mapping[str, str], variable: str, default: bool) -> bool:
    value = environment.get(variable, "").lower()
    if value not in ("", *TRUE, "false", "0", "no"):
        raise EnvironmentFault(f"{variable.lower()} must be true or false, got {value}. Correct the configuration.")
    return value in TRUE if value else default


@contextmanager
def plain_processes() -> Iterator[None]:
    """A context in which accelerate makes a plain group of processes, whatever it is asked to shard."""
    asked = {name: os.environ.pop(name) for name in (_ASKED, zero.ASKED) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(asked)
