"""What a training step is compared with: the same model in hand-written loops that know nothing of the toolkit.

Each function takes over the model it is given and returns one step as a function without arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.models.mmdit import MMDiT

RANK = 16
ALPHA = 1.0
LEARNING_RATE = 1e-4
MAX_GRAD_NORM = 1.0


def fused_adamw(trained: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """What a loop takes where nothing else is asked for."""
    return torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)


class Example:
    """Pictures as the model sees them.

    Args:
        latents: Shape [B, C, h, w], float32.
        context: Shape [B, N, D].
        pooled: Shape [B, P].
        positions: Rows of the table of positions; None lets the model take them from its own.
    """

    def __init__(self, latents: Tensor, context: Tensor, pooled: Tensor, positions: Tensor | None = None) -> None:
        self.latents, self.context, self.pooled, self.positions = latents, context, pooled, positions

    def noisy(self) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents at random noise levels, the timesteps, and what has to be found."""
        noise = torch.randn_like(self.latents)
        sigmas = torch.rand(len(self.latents), 1, 1, 1, device=noise.device)
        return torch.lerp(self.latents, noise, sigmas), sigmas.flatten() * 1000, noise - self.latents

    def loss(self, model: MMDiT) -> Tensor:
        """Of the velocity."""
        noisy_latents, timesteps, target = self.noisy()
        prediction = model(noisy_latents, timesteps, self.context, self.pooled, positions=self.positions)
        return F.mse_loss(prediction.float(), target)


class _AddLowRank(torch.autograd.Function):
    """x W' + b + s (x A') B' that keeps x and the rank-sized product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float) -> Tensor:
        tokens, a, b = x.flatten(0, -2), a.to(x.dtype), b.to(x.dtype)
        small = (tokens @ a.t()).mul_(s)
        ctx.s = s
        ctx.save_for_backward(tokens, small, weight, a, b)
        return F.linear(tokens, weight, bias).addmm_(small, b.t()).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tokens, small, weight, a, b = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_small = (rows @ b).mul_(ctx.s)
        grad_x = (rows @ weight).addmm_(grad_small, a).view(*grad.shape[:-1], weight.shape[1])
        return grad_x, None, None, (grad_small.t() @ tokens).float(), (rows.t() @ small).float(), None


class _LowRankLinear(nn.Module):
    """A frozen linear layer with a trained addition."""

    def __init__(self, layer: nn.Linear, rank: int, is_naive: bool) -> None:
        super().__init__()
        self.layer, self.is_naive, self.strength = layer, is_naive, ALPHA / rank
        device = layer.weight.device
        self.a = nn.Parameter(torch.randn(rank, layer.in_features, device=device) * layer.in_features**-0.5)
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_naive:
            return self.layer(x) + F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype)) * self.strength
        return _AddLowRank.apply(x, self.layer.weight, self.layer.bias, self.a, self.b, self.strength)


class _LowRankPixels(nn.Module):
    """A frozen convolution over single pixels with a trained addition."""

    def __init__(self, layer: nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.layer, self.strength, width = layer, ALPHA / rank, layer.in_channels
        device = layer.weight.device
        self.a = nn.Parameter(torch.randn(rank, width, 1, 1, device=device) * width**-0.5)
        self.b = nn.Parameter(torch.zeros(layer.out_channels, rank, 1, 1, device=device))

    def forward(self, x: Tensor) -> Tensor:
        small = F.conv2d(x, self.a.to(x.dtype)) * self.strength
        return self.layer(x) + F.conv2d(small, self.b.to(x.dtype))


class Trainable(Protocol):
    """Something to learn."""

    def loss(self, model: Any) -> Tensor:
        """What a model makes of it."""


def lora_step(
    model: nn.Module,
    example: Trainable,
    *,
    is_naive: bool = False,
    rank: int = RANK,
    layers: Iterable[str] | None = None,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = fused_adamw,
) -> Callable[[], None]:
    """Forward, backward, clipping and the optimizer, with LoRA beside linear layers.

    Args:
        model: Frozen; its layers are replaced.
        example: What is trained on.
        is_naive: The addition as three operations of autograd's own.
        rank: Of each LoRA.
        layers: Names of the layers; None takes all linear ones of an MMDiT's blocks.
        make_optimizer: Gets what trains.
    """
    trained = add_lora(model, _linear_layers(model) if layers is None else layers, rank, is_naive=is_naive)
    optimizer = make_optimizer(trained)

    def step() -> None:
        example.loss(model).backward()
        nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return step


def add_lora(model: nn.Module, layers: Iterable[str], rank: int, *, is_naive: bool = False) -> list[nn.Parameter]:
    """Replace layers by themselves with a trained addition; returns what trains."""
    trained: list[nn.Parameter] = []
    for name in list(layers):
        layer = model.get_submodule(name)
        wrapped: Any = (
            _LowRankPixels(layer, rank) if isinstance(layer, nn.Conv2d) else _LowRankLinear(layer, rank, is_naive)  # type: ignore[arg-type]
        )
        model.set_submodule(name, wrapped)
        trained += [wrapped.a, wrapped.b]
    return trained


def _linear_layers(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if name.startswith("joint_blocks.") and isinstance(module, nn.Linear):
            yield name


def frozen_step(model: MMDiT, example: Example) -> Callable[[], None]:
    """Forward and backward to what enters the blocks, with nothing trained: what every method has to pay."""
    for embedder in (model.x_embedder, model.context_embedder, model.t_embedder):
        embedder.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())
    return lambda: example.loss(model).backward()
