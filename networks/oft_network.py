"""The network of networks.oft: rotations beside a U-Net, with files of their own kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from library.errors import CheckpointError, OptionError
from networks.network import AdapterNetwork, make_part
from networks.oft_adapter import OftAdapter, Rotation
from networks.oft_file import aliases, check_fit, groups_by_name, rotations
from networks.oft_targets import DENOISER
from networks.targets import PlannedModule
from networks.unet_layers import UnetNames
from networks.weights import with_own_names


class OftNetwork(AdapterNetwork):
    """Adapters beside a U-Net.

    Args:
        names: Of the U-Net.
        layers: {name as files have it: layer}
        planned: The layers that get an adapter.
        multiplier: Strength of all of them.
    """

    def __init__(
        self, names: UnetNames, layers: Mapping[str, nn.Module], planned: Sequence[PlannedModule], multiplier: float
    ) -> None:
        part = make_part(
            DENOISER.part_name,
            DENOISER.prefix,
            layers,
            planned,
            is_denoiser=True,
            multiplier=multiplier,
            adapter=OftAdapter,
        )
        super().__init__([part], family=names.title, aliases=aliases(names))
        self.names, self.outputs = names, {name: num_outputs(layer) for name, layer in layers.items()}

    def values_of_file(self, tensors: Mapping[str, Tensor], what: str) -> Mapping[str, Rotation]:
        """See `AdapterNetwork`."""
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        adapters = {adapter.name: adapter for adapter in self.adapters()}
        planned = {name: adapter.rank for name, adapter in adapters.items()}
        check_fit(groups_by_name(shapes, what, self.names, self.outputs), planned, what, self.family)
        found = rotations(with_own_names(tensors, self.aliases, what))
        for name, values in found.items():
            if abs(values.alpha - (own := adapters[name].alpha)) > 1e-2 * own:
                raise CheckpointError(
                    f"{what} was trained with --network_alpha {values.alpha:g}, the network has {own:g} ({name}). "
                    "Set it as it was for the file, or use --dim_from_weights."
                )
        return found

    def apply_max_norm_regularization(
        self, max_norm: float, device: torch.device | str | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A rotation has no norm to limit.

        Raises:
            OptionError: Always.
        """
        raise OptionError("--scale_weight_norms has no place in --network_module networks.oft. Leave it out.")


def num_outputs(layer: Any) -> int:
    """Outputs of a linear or convolution layer."""
    return int(layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features)
