"""A set of adapters that is trained, saved and loaded as one network.

The methods are those that network modules for such training scripts have, so that this network and one of
another package (LyCORIS) can take each other's place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from library.errors import OptionError
from library.log import get_logger
from library.tensorfile import write_tensors
from networks.adapters import NO_DROPOUT, Dropouts, LoraAdapter
from networks.layer_adapter import LayerAdapter
from networks.targets import PlannedModule, adapter_name
from networks.weights import check_fit, factors_by_name, read_network, with_own_names

logger = get_logger(__name__)


@dataclass(frozen=True)
class Part:
    """The adapters of one model.

    Attributes:
        name: As optimizer groups are described: "unet", "textencoder 1" ...
        prefix: How the names of its modules begin in a file, for instance lora_unet.
        adapters: In the order of the model's modules.
        is_denoiser: False for a text encoder.
        rate: Learning rate in place of that of the model; None is the model's.
        rate_factor: The learning rate of the model is multiplied by it.
    """

    name: str
    prefix: str
    adapters: tuple[LayerAdapter, ...]
    is_denoiser: bool
    rate: float | None = None
    rate_factor: float = 1.0


@dataclass(frozen=True)
class LoraPlus:
    """How many times higher the learning rate of `up` is; None is once. Source: Hayou et al. 2024, arXiv:2402.12354."""

    text_encoder: float | None = None
    denoiser: float | None = None


def make_part(
    name: str,
    prefix: str,
    modules: Mapping[str, nn.Module],
    planned: Sequence[PlannedModule],
    *,
    is_denoiser: bool,
    rate: float | None = None,
    rate_factor: float = 1.0,
    multiplier: float = 1.0,
    dropouts: Dropouts = NO_DROPOUT,
    adapter: Callable[..., LayerAdapter] = LoraAdapter,
) -> Part:
    """Adapters without values for planned modules: on the meta device where the layer is, else on the CPU.

    Args:
        name: See `Part`.
        prefix: See `Part`.
        modules: {name as planned: layer}
        planned: From `plan_modules`.
        is_denoiser: See `Part`.
        rate: See `Part`.
        rate_factor: See `Part`.
        multiplier: Strength of all of them.
        dropouts: Of all of them.
        adapter: Makes one of them, from the arguments of `LoraAdapter`.
    """
    adapters = [
        adapter(
            adapter_name(prefix, plan.name),
            modules[plan.name],
            plan.rank,
            plan.alpha,
            multiplier=multiplier,
            num_parts=plan.num_parts,
            dropouts=dropouts,
            device="meta" if _is_meta(modules[plan.name]) else None,
        )
        for plan in planned
    ]
    return Part(name, prefix, tuple(adapters), is_denoiser, rate, rate_factor)


def _is_meta(layer: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in layer.parameters())


class AdapterNetwork(nn.Module):
    """Adapters beside one or more models.

    Args:
        parts: In the order of optimizer groups: text encoders, then the denoiser.
        family: Name of the model family, for messages.
        loraplus: Learning rate ratios.
        aliases: {another name that a file may have for a module: its name here}
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        family: str,
        loraplus: LoraPlus | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.family, self.loraplus, self.aliases = family, loraplus or LoraPlus(), dict(aliases or {})
        self.parts = tuple(part for part in parts if part.adapters)
        for adapter in self.adapters():
            self.add_module(adapter.name, adapter)

    def adapters(self) -> Iterator[LayerAdapter]:
        """All adapters, part by part."""
        for part in self.parts:
            yield from part.adapters

    def reset(self, generator: Generator | None = None) -> None:
        """Start values, drawn in order from `generator` (None: torch's global one): equal seeds give equal weights."""
        for adapter in self.adapters():
            adapter.reset(generator)

    # Attaching

    def apply_to(
        self, text_encoders: Any, unet: nn.Module | None, apply_text_encoder: bool = True, apply_unet: bool = True
    ) -> None:
        """Attach to the models that the network was created for; parts that are not wanted are dropped for good.

        Args:
            text_encoders: Part of the contract; the adapters know their layers.
            unet: Likewise.
            apply_text_encoder: Keep the adapters of text encoders.
            apply_unet: Keep the adapters of the denoiser.

        Raises:
            OptionError: Nothing is left.
        """
        kept = tuple(part for part in self.parts if (apply_unet if part.is_denoiser else apply_text_encoder))
        if kept and (num_dropped := sum(len(part.adapters) for part in self.parts if part not in kept)):
            logger.info("%d of these modules are left out", num_dropped)
        for adapter in self.adapters():
            adapter.detach()
            delattr(self, adapter.name)
        self.parts = kept
        for adapter in self.adapters():
            self.add_module(adapter.name, adapter)
            adapter.attach()
        if not kept:
            raise OptionError(
                "the network has 0 modules to train. Check --network_args, --network_train_unet_only and "
                "--network_train_text_encoder_only."
            )

    def detach_all(self) -> None:
        """Leave the models as they were before `apply_to`."""
        for adapter in self.adapters():
            adapter.detach()

    def set_multiplier(self, multiplier: float) -> None:
        """Strength of the whole network; 0 is the model without it."""
        for adapter in self.adapters():
            adapter.multiplier = multiplier

    def set_enabled(self, is_enabled: bool) -> None:
        """Switch the network off and on without detaching it."""
        for adapter in self.adapters():
            adapter.enabled = is_enabled

    # Training

    def prepare_optimizer_params(
        self,
        text_encoder_lr: float | Sequence[float] | None,
        unet_lr: float | None,
        default_lr: float | None = None,
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Optimizer groups and their descriptions, in the order te1, te2, te3, unet, each followed by its LoRA+ group.

        A part whose learning rate is 0 or None gets no group and no gradients; it still acts and is saved.

        Args:
            text_encoder_lr: One for all encoders, or one each (the last one counts for those that follow).
            unet_lr: Of the denoiser.
            default_lr: For what is None or empty above.
        """
        self.requires_grad_(False)
        groups, descriptions = [], []
        for part in self.parts:
            ratio = self.loraplus.denoiser if part.is_denoiser else self.loraplus.text_encoder
            rate = _rate(part, text_encoder_lr, unet_lr, default_lr)
            if not rate:
                continue
            for is_plus, parameters in _by_rate(part.adapters, ratio is not None).items():
                groups.append({"params": parameters, "lr": rate * (ratio or 1.0) if is_plus else rate})
                descriptions.append(f"{part.name} plus" if is_plus else part.name)
        for group in groups:
            for parameter in group["params"]:  # type: ignore[attr-defined]
                parameter.requires_grad_(True)
        return groups, descriptions

    prepare_optimizer_params_with_multiple_te_lrs = prepare_optimizer_params

    def enable_gradient_checkpointing(self) -> None:
        """Nothing to do: the models recompute the adapters along with their blocks."""

    def prepare_grad_etc(self, *models: Any) -> None:
        """Nothing to do: `prepare_optimizer_params` has chosen what gets gradients."""

    def on_epoch_start(self, *models: Any) -> None:
        """Training mode, in which dropout acts."""
        self.train()

    def on_step_start(self, *models: Any) -> None:
        """Nothing to do."""

    def get_trainable_params(self) -> list[nn.Parameter]:
        """The parameters that get gradients."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def apply_max_norm_regularization(
        self, max_norm: float, device: torch.device | str | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shrink every adapter whose change of the weight has a norm above `max_norm`.

        Args:
            max_norm: Upper limit of the Frobenius norm, at multiplier 1.
            device: Part of the contract; the norms are computed where the adapters are.

        Returns:
            How many adapters were scaled; the mean and the greatest norm afterwards. Tensors where the norms are, so
            that a device is waited for only by who reads them. Each of shape [].
        """
        adapters = list(self.adapters())
        if not adapters:
            return torch.tensor(0), torch.tensor(0.0), torch.tensor(0.0)
        norms = torch.stack([adapter.norm() for adapter in adapters])
        floored = norms.clamp(min=max_norm / 2)  # norms below half the limit count as half the limit
        ratios = floored.clamp(max=max_norm) / floored
        for adapter, ratio in zip(adapters, ratios, strict=True):
            adapter.shrink(ratio)
        after = floored * ratios
        return (ratios != 1).sum(), after.mean(), after.max()

    # Saving, loading, merging

    def saved_state(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The tensors of the file, on the CPU.

        Args:
            dtype: Of what is trained; None keeps its own. An alpha is always float32: it sets the strength.
        """
        state = {}
        for adapter in self.adapters():
            for end, tensor in adapter.saved().items():
                state[adapter.name + end] = _to_save(tensor, dtype if tensor.dim() else None)
        return state

    def save_weights(
        self,
        file: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the file atomically.

        Raises:
            OutputError: It cannot be written.
        """
        write_tensors(file, self.saved_state(dtype), metadata)

    def load_weights(self, file: str | os.PathLike[str]) -> str:
        """Take over the values of a file that fits exactly.

        Returns:
            What was loaded, for the log.

        Raises:
            CheckpointError: The file cannot be read, or has other modules, ranks, alphas or sizes.
        """
        number = self.load_saved_state(read_network(file), f"--network_weights {file}")
        return f"{number} modules loaded from {file}"

    def load_saved_state(self, tensors: Mapping[str, Tensor], what: str = "the file") -> int:
        """`load_weights` for tensors that have been read; `what` names them in messages. Returns how many modules."""
        found = self.values_of_file(tensors, what)
        for adapter in self.adapters():
            adapter.load(found[adapter.name])
        return len(found)

    def values_of_file(self, tensors: Mapping[str, Tensor], what: str) -> Mapping[str, Any]:
        """{adapter's name: what its `load` takes} of a file that fits exactly.

        Raises:
            CheckpointError: It does not.
        """
        found = factors_by_name(with_own_names(tensors, self.aliases, what), what)
        own = [adapter for adapter in self.adapters() if isinstance(adapter, LoraAdapter)]
        check_fit(own, found, what, self.family)
        return found

    def is_mergeable(self) -> bool:
        """LoRA can always be added to the weights."""
        return True

    def merge_to(
        self,
        text_encoders: Any,
        unet: nn.Module | None,
        weights_sd: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Add the network to the weights of its models, which keep their dtype and device. It must not be attached.

        Args:
            text_encoders: Part of the contract; the adapters know their layers.
            unet: Likewise.
            weights_sd: Content of a file with this network's modules; None takes the network's own values.
            dtype: Part of the contract; sums are computed in float32.
            device: Where the changes are computed; None is where each weight is.

        Raises:
            CheckpointError: `weights_sd` does not fit.
        """
        found: Mapping[str, Any] = {}
        if weights_sd is not None:
            found = self.values_of_file(weights_sd, "the network to merge")
        for adapter in self.adapters():
            adapter.merge(found.get(adapter.name), device)


def _to_save(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to("cpu", dtype or tensor.dtype).contiguous()


def _rate(
    part: Part, text_encoder_lr: float | Sequence[float] | None, unet_lr: float | None, default_lr: float | None
) -> float:
    if part.rate is not None:
        return part.rate
    rate = unet_lr if part.is_denoiser else _encoder_rate(text_encoder_lr, part.name)
    return ((default_lr if rate is None else rate) or 0.0) * part.rate_factor


def _encoder_rate(rates: float | Sequence[float] | None, part_name: str) -> float | None:
    """The rate of "textencoder <number>"."""
    if rates is None or isinstance(rates, (int, float)):
        return rates
    rates = list(rates)
    index = int(part_name.rpartition(" ")[2] or 1) - 1 if part_name[-1].isdigit() else 0
    return rates[min(index, len(rates) - 1)] if rates else None


def _by_rate(adapters: Sequence[LayerAdapter], has_plus: bool) -> dict[bool, list[nn.Parameter]]:
    """Parameters by whether they are trained at the LoRA+ rate."""
    groups: dict[bool, list[nn.Parameter]] = {}
    for adapter in adapters:
        for name, parameter in adapter.named_parameters():
            groups.setdefault(has_plus and name.startswith("lora_up"), []).append(parameter)
    return groups
