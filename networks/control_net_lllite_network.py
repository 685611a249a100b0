"""The network of ControlNet-LLLite: modules beside the U-Net of SDXL, which a conditioning picture is given to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from library.errors import CheckpointError, OptionError
from networks.control_net_lllite_adapter import LLLiteAdapter
from networks.control_net_lllite_targets import DENOISER, Widths, modules_of_file, target_levels
from networks.network import AdapterNetwork, Part
from networks.targets import adapter_name


class LLLiteNetwork(AdapterNetwork):
    """Modules beside a U-Net of SDXL. Without a conditioning picture the U-Net is as it was.

    Args:
        layers: {published name: layer} of the layers that get a module.
        widths: Of all modules.
        multiplier: Strength of all of them.
        dropout: See `LLLiteAdapter`.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], widths: Widths, multiplier: float, *, dropout: float = 0.0
    ) -> None:
        adapters = tuple(
            LLLiteAdapter(
                adapter_name(DENOISER.prefix, name),
                layers[name],
                level,
                widths,
                multiplier=multiplier,
                dropout=dropout,
            )
            for name, level in target_levels(layers).items()
        )
        super().__init__([Part(DENOISER.part_name, DENOISER.prefix, adapters, is_denoiser=True)], family="SDXL")
        self.widths = widths
        self.inputs = {name: int(layer.in_features) for name, layer in layers.items()}  # type: ignore[arg-type]

    def apply_to(
        self,
        text_encoders: Any = None,
        unet: nn.Module | None = None,
        apply_text_encoder: bool = False,
        apply_unet: bool = True,
    ) -> None:
        """Attach to the U-Net that the network was created for. The arguments are part of the contract."""
        super().apply_to(text_encoders, unet, apply_text_encoder, apply_unet)

    def set_condition(self, images: Tensor | None) -> None:
        """What the next passes of the U-Net are conditioned with.

        Args:
            images: In -1..1, of the size of the pictures. Shape [B, 3, H, W]; one for each row of the U-Net's input,
                or fewer that its rows are several times (with guidance: first all prompts, then all negative ones).
                None for nothing.
        """
        for adapter in self.adapters():
            assert isinstance(adapter, LLLiteAdapter)
            adapter.set_condition(images)

    def assume_condition(self) -> None:
        """Where no picture is set, compute with an empty one: to foresee what the passes of a training take."""
        for adapter in self.adapters():
            assert isinstance(adapter, LLLiteAdapter)
            adapter.assumes_condition = True

    def values_of_file(self, tensors: Mapping[str, Tensor], what: str) -> Mapping[str, dict[str, Tensor]]:
        """See `AdapterNetwork`."""
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        check_fit(modules_of_file(shapes, what, self.inputs), (self.widths, list(self.inputs)), what)
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, end = key.partition(".")
            found.setdefault(name, {})[f".{end}"] = tensor
        return found

    def is_mergeable(self) -> bool:
        """What a picture adds cannot be a part of the weights."""
        return False

    def merge_to(self, *args: Any, **kwargs: Any) -> None:
        """Raise OptionError: see `is_mergeable`."""
        raise OptionError("a ControlNet-LLLite cannot be merged into a model. Give it as --control_net_lllite_models.")

    def apply_max_norm_regularization(
        self, max_norm: float, device: torch.device | str | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Raise OptionError: there is no change of a weight that could have a norm."""
        raise OptionError("--scale_weight_norms has no place in a ControlNet-LLLite. Leave it out.")


def check_fit(found: tuple[Widths, Iterable[str]], own: tuple[Widths, Iterable[str]], what: str) -> None:
    """A file has the widths and modules of a network.

    Raises:
        CheckpointError: It has not.
    """
    if found[0] != own[0]:
        raise CheckpointError(
            f"{what} was trained with --cond_emb_dim {found[0].condition} --network_dim {found[0].inner}, here they "
            f"are {own[0].condition} and {own[0].inner}. Give those of the file."
        )
    if missing := sorted(set(own[1]) - set(found[1])):
        raise CheckpointError(
            f"{what} lacks {len(missing)} of the modules that are trained ({missing[0]}). Give a file with all of them."
        )
