"""Which layers of a U-Net are turned by networks.oft, and its --network_args. Without torch.

The tables are over published names, as those of `networks/unet_targets.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from library.errors import OptionError
from networks.arg_parsing import flag, parse_values
from networks.targets import PlannedModule, Slot, TargetRule, plan_modules
from networks.unet_layers import UnetNames

DENOISER = Slot("unet", "oft_unet", "U-Net")
DEFAULT_GROUPS = 4
DEFAULT_LIMIT = 1e-3

_BLOCK = r"(input_blocks\.\d+|middle_block|output_blocks\.\d+)\.\d\."
_ATTENTION = _BLOCK + r"transformer_blocks\.\d+\.attn[12]\.to_(q|k|v|out\.0)"
_ALL_LINEAR = _BLOCK + r"(proj_in|proj_out|transformer_blocks\..+)"
_RESIDUAL = _BLOCK + r"(in_layers\.2|emb_layers\.1|out_layers\.3|skip_connection|op|conv)"


@dataclass(frozen=True, kw_only=True)
class OftArgs:
    """Parsed --network_args.

    Attributes:
        enable_all_linear: The feed-forward layers and projections of the attention blocks too.
        enable_conv: The residual blocks and changes of size too.
        verbose: The log lists the modules.
    """

    enable_all_linear: bool = False
    enable_conv: bool = False
    verbose: bool = False


def parse_network_args(kwargs: Mapping[str, object], neuron_dropout: float | None = None) -> OftArgs:
    """Read the arguments.

    Args:
        kwargs: {name: value as typed}
        neuron_dropout: --network_dropout, where it does not come as the argument `dropout`.

    Raises:
        OptionError: Unknown names and wrong values, all of them.
    """
    if neuron_dropout or kwargs.get("dropout") is not None:
        raise OptionError("--network_dropout has no place in --network_module networks.oft. Leave it out.")
    return OftArgs(**parse_values(kwargs, {"enable_all_linear": flag, "enable_conv": flag, "verbose": flag}))


def num_groups(network_dim: int | None) -> int:
    """--network_dim, checked, or its default.

    Raises:
        OptionError: It is below 1.
    """
    if network_dim is not None and network_dim < 1:
        raise OptionError(f"--network_dim must be at least 1, got {network_dim}.")
    return network_dim or DEFAULT_GROUPS


def plan_denoiser(names: UnetNames, args: OftArgs, groups: int, limit: float) -> tuple[PlannedModule, ...]:
    """The layers that get an adapter, by their names in files, in the order of the model.

    Args:
        names: Of the U-Net.
        args: From --network_args.
        groups: Rotations of each layer.
        limit: The alpha of all adapters; 0 is no limit.
    """
    patterns = [_ALL_LINEAR if args.enable_all_linear else _ATTENTION, *[_RESIDUAL] * args.enable_conv]
    own = {published: name for name, published in names.published.items()}
    planned = plan_modules(own, [TargetRule(pattern, groups) for pattern in patterns])
    return tuple(replace(plan, name=own[plan.name], alpha=limit) for plan in planned)


def refuse_undivided(planned: Sequence[PlannedModule], outputs: Mapping[str, int]) -> None:
    """Refuse a number of groups that divides not every layer's outputs.

    Args:
        planned: The layers.
        outputs: {name of a layer: number of its outputs}

    Raises:
        OptionError: Naming the first such layer.
    """
    wrong = [plan for plan in planned if outputs[plan.name] % plan.rank]
    if wrong:
        first = wrong[0]
        raise OptionError(
            f"--network_dim {first.rank}: networks.oft divides the outputs of each layer into so many groups, and "
            f"{first.name} has {outputs[first.name]} ({len(wrong)} layers do not divide). Give a divisor, such as 4."
        )
