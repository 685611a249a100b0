"""Whether a frozen denoiser in fewer bits can be had, and whether the network beside it can work with it."""

from __future__ import annotations

from collections.abc import Mapping

from library.errors import EnvironmentFault, OptionError
from library.options.groups import MemoryOptions
from networks.other_packages import is_lycoris, is_on, is_ours


def check_base_format(
    memory: MemoryOptions, network_module: str | None = None, network_args: Mapping[str, str] | None = None
) -> None:
    """See, before anything is read, that the package of a format is there and that the network can do without weights.

    Ours can, and so can those of lycoris.kohya that add to what a layer gives ("bypass"). Others compute with the bits
    as if these were the weights.

    Args:
        memory: Says the format.
        network_module: `--network_module`; None where there is no network.
        network_args: `--network_args`.

    Raises:
        OptionError: A network that would compute with the bits.
        EnvironmentFault: A package is missing or broken.
    """
    if memory.weights_format is None:
        return
    flag = _flag(memory)
    if network_module is not None and not is_ours(network_module):
        _check_bypass(flag, network_module, network_args or {})
    if memory.weights_format == "nf4":
        _import_bitsandbytes(flag)


def _flag(memory: MemoryOptions) -> str:
    flag, value = memory.weights_format_flag, memory.base_weights_dtype
    return flag if value is None else f"{flag} {value}"


def _check_bypass(flag: str, module: str, args: Mapping[str, str]) -> None:
    if not is_lycoris(module):
        raise OptionError(
            f"{flag} cannot be used with --network_module {module}, which may compute with the weights themselves. "
            "Use networks.lora, or leave it out."
        )
    if is_on(args, "dora_wd"):
        raise OptionError(
            f"{flag} cannot be used with --network_args dora_wd={args['dora_wd']}, which needs the norms of the "
            "weights themselves. Leave one of them out."
        )
    if not is_on(args, "bypass_mode"):
        raise OptionError(
            f"{flag}: {module} would compute with the bits of the weights. Add bypass_mode=True to "
            "--network_args, or use networks.lora."
        )


def _import_bitsandbytes(flag: str) -> None:
    from library.training.optimization.lean_optimizer import compilation_off

    try:
        with compilation_off():
            import bitsandbytes.functional  # noqa: F401
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise EnvironmentFault(
            f"{flag} needs the package bitsandbytes, which cannot be imported ({reason}). "
            "Run `pip install bitsandbytes`, or use int8."
        ) from error
