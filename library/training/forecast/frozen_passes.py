"""What VAE and text encoders take: their weights, and their passes counted over tensors without numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from library.families.base import ModelFamily
from library.memory.live_memory import LiveMemory, num_bytes
from library.training.forecast.fake_passes import all_parameters, fake

if TYPE_CHECKING:
    from library.records import Size


@dataclass(frozen=True)
class Frozen:
    """A model that runs without gradients, in bytes.

    Attributes:
        weights: All of them.
        passing: The most that a pass takes beside them.
    """

    weights: int
    passing: int

    @property
    def total(self) -> int:
        """While it runs."""
        return self.weights + self.passing


@dataclass(frozen=True)
class Trained:
    """A text encoder that trains, in bytes.

    Attributes:
        weights: All of them.
        kept: What its forward pass keeps for the backward pass.
        peak: The most of both passes, gradients included.
        gradients: All of them.
    """

    weights: int
    kept: int
    peak: int
    gradients: int


def weight_bytes(model: nn.Module) -> int:
    """Of parameters and buffers."""
    return num_bytes([*model.parameters(), *model.buffers()])


def vae_encoding(vae: nn.Module, family: ModelFamily, size: Size, number: int) -> Frozen:
    """A VAE that turns so many pictures of a size into latents.

    Args:
        vae: On the meta device; it is changed.
    """
    cells = family.pixels_per_latent
    shape = (family.latent_channels, size.height // cells, size.width // cells)

    def encode() -> Any:
        images = torch.zeros(number, 3, size.height, size.width)
        encoded = vae.encode(images.to(_dtype(vae))).latent_dist  # type: ignore[operator]
        return encoded.mean.float() + torch.exp(0.5 * encoded.logvar.float()) * torch.zeros(number, *shape)

    return _frozen(vae, encode)


def vae_decoding(vae: nn.Module, family: ModelFamily, size: Size) -> Frozen:
    """A VAE that draws a picture. See `vae_encoding`."""
    cells = family.pixels_per_latent
    shape = (1, family.latent_channels, size.height // cells, size.width // cells)
    return _frozen(vae, lambda: family.decode_latents(vae, torch.zeros(shape)))


def text_encoding(encoder: nn.Module, family: ModelFamily, name: str, number: int) -> Frozen:
    """A text encoder that reads so many captions of full length. See `vae_encoding`."""

    def encode() -> Any:
        return family.encode_text({name: encoder}, family.tokens_of_full_length([name], number))

    return _frozen(encoder, encode)


def _frozen(model: nn.Module, run: Callable[[], Any]) -> Frozen:
    weights = weight_bytes(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake(model)
        with LiveMemory([*model.parameters(), *model.buffers()]) as live, torch.no_grad():
            run()
    return Frozen(weights, live.peak)


def text_training(
    encoder: nn.Module,
    family: ModelFamily,
    name: str,
    number: int,
    *,
    autocast: torch.dtype | None,
    recomputes: bool,
    is_freed: bool,
) -> Trained:
    """A text encoder, or what is attached to it, that trains. See `vae_encoding`.

    Args:
        autocast: Dtype of the arithmetic; None for that of the weights.
        recomputes: Gradient checkpointing.
        is_freed: The optimizer steps inside the backward pass, so that gradients do not stay.
    """
    weights = weight_bytes(encoder)
    model: Any = encoder
    if recomputes:
        new = getattr(model, "activation_checkpointing_enable", None)
        (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
        model.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake(encoder)
        known = [*all_parameters(encoder), *encoder.buffers()]
        handles = [p.register_post_accumulate_grad_hook(_forget) for p in known if is_freed and p.requires_grad]
        with LiveMemory(known) as live:
            with torch.autocast("cpu", autocast, enabled=autocast is not None, cache_enabled=False):
                states = family.encode_text({name: encoder}, family.tokens_of_full_length([name], number))
            loss = _sum(list(states.values()))
            del states
            kept = live.now
            loss.backward()
            del loss
        for handle in handles:
            handle.remove()
    return Trained(weights, kept, live.peak, live.now)


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


def _sum(states: Sequence[Tensor]) -> Tensor:
    return torch.stack([state.float().sum() for state in states]).sum()


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
