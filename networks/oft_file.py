"""What is in a file of networks.oft, and whether it fits a model or a network. Without torch, but for `rotations`.

File layout: `oft_unet_<name of a layer with _>.oft_blocks` and `.alpha` per adapted module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from library.errors import CheckpointError
from networks.oft_targets import DENOISER
from networks.targets import adapter_name
from networks.unet_layers import DENOISER as LORA_DENOISER
from networks.unet_layers import UnetNames
from networks.weights import describe_file, with_own_names

if TYPE_CHECKING:
    from torch import Tensor

    from networks.oft_adapter import Rotation

_BLOCKS, _ALPHA = ".oft_blocks", ".alpha"


def aliases(names: UnetNames) -> dict[str, str]:
    """{name of an adapter in files with the other layout of names: in ours}"""

    def own(name: str) -> str:
        return DENOISER.prefix + name.removeprefix(LORA_DENOISER.prefix)

    return {own(other): own(name) for other, name in names.aliases.items()}


def groups_by_name(
    shapes: Mapping[str, tuple[int, ...]], what: str, names: UnetNames, outputs: Mapping[str, int]
) -> dict[str, int]:
    """{name of an adapter, as our files have it: number of its rotations} of a file for this model.

    Args:
        shapes: {key in the file: shape}
        what: The option and the file, for messages.
        names: Of the U-Net.
        outputs: {name of a layer: number of its outputs}

    Raises:
        CheckpointError: It is no OFT network, or is for another model.
    """
    own = with_own_names(shapes, aliases(names))
    known = {adapter_name(DENOISER.prefix, name): number for name, number in outputs.items()}
    ours = f"{DENOISER.prefix}_"
    strange = [key for key in own if not (key.startswith(ours) and key.endswith((_BLOCKS, _ALPHA)))]
    found = {key.removesuffix(_BLOCKS): shape for key, shape in own.items() if key.endswith(_BLOCKS)}
    strange += [f"{name}{_BLOCKS}" for name, shape in found.items() if len(shape) != 3 or shape[1] != shape[2]]
    if strange or not found:
        first = strange[0] if strange else "no tensor"
        raise CheckpointError(
            f"{what} is {describe_file(shapes)}: {first} cannot be used by networks.oft. "
            "Give a file that was trained with --network_module networks.oft."
        )
    if unknown := [name for name in found if name not in known]:
        raise CheckpointError(
            f"{what} is an OFT network, the model is {names.title}: {len(unknown)} of its {len(found)} modules have no "
            f"place there ({unknown[0]}). Give a file that was trained for this model."
        )
    for name, shape in found.items():
        if shape[0] * shape[1] != known[name]:
            raise CheckpointError(
                f"{what} is for another size of model: {name} turns {shape[0] * shape[1]} outputs and the layer has "
                f"{known[name]}. Give a file that was trained for this model."
            )
    return {name: shape[0] for name, shape in found.items()}


def check_fit(found: Mapping[str, int], planned: Mapping[str, int], what: str, family: str) -> None:
    """A file has the modules of a network, with as many rotations. Both are {name of an adapter: how many}.

    Raises:
        CheckpointError: Otherwise.
    """
    missing, unknown = sorted(planned.keys() - found.keys()), sorted(found.keys() - planned.keys())
    parts = [f"{len(missing)} modules of the network are not in it ({missing[0]})"] if missing else []
    parts += [f"{len(unknown)} of its modules are not in the network ({unknown[0]})"] if unknown else []
    if not parts:
        other = [name for name, groups in found.items() if groups != planned[name]]
        parts = [f"{name} has {found[name]} rotations in the file and {planned[name]} here" for name in other[:1]]
    if parts:
        raise CheckpointError(
            f"{what} does not fit the OFT network for {family}: {'; '.join(parts)}. Set --network_dim and "
            "--network_args as they were for it, or use --dim_from_weights."
        )


def rotations(tensors: Mapping[str, Tensor]) -> dict[str, Rotation]:
    """{name of an adapter: its values} of a file that was checked. A missing alpha is no limit."""
    from networks.oft_adapter import Rotation

    found = {}
    for key, tensor in tensors.items():
        if key.endswith(_BLOCKS):
            name = key.removesuffix(_BLOCKS)
            alpha = tensors.get(name + _ALPHA)
            found[name] = Rotation(tensor, 0.0 if alpha is None else float(alpha))
    return found
