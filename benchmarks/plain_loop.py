"""What a training step is compared with: the same MMDiT in hand-written loops that know nothing of the toolkit.

Each function takes over the model it is given and returns one step as a function without arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.models.mmdit import MMDiT

RANK = 16
ALPHA = 1.0
LEARNING_RATE = 1e-4
MAX_GRAD_NORM = 1.0


class Example:
    """One picture as the model sees it.

    Args:
        latents: Shape [1, C, h, w], float32.
        context: Shape [1, N, D].
        pooled: Shape [1, P].
    """

    def __init__(self, latents: Tensor, context: Tensor, pooled: Tensor) -> None:
        self.latents, self.context, self.pooled = latents, context, pooled

    def loss(self, model: MMDiT) -> Tensor:
        """Of the velocity at a random noise level."""
        noise, sigma = torch.randn_like(self.latents), torch.rand(1)
        noisy_latents = sigma * noise + (1 - sigma) * self.latents
        prediction = model(noisy_latents, sigma * 1000, self.context, self.pooled)
        return F.mse_loss(prediction.float(), noise - self.latents)


class _AddLowRank(torch.autograd.Function):
    """x W' + b + s (x A') B' that keeps x and the rank-sized product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor, s: float) -> Tensor:
        tokens, a, b = x.flatten(0, -2), a.to(x.dtype), b.to(x.dtype)
        small = (tokens @ a.t()).mul_(s)
        ctx.s = s
        ctx.save_for_backward(tokens, small, weight, a, b)
        return torch.addmm(bias, tokens, weight.t()).addmm_(small, b.t()).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tokens, small, weight, a, b = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_small = (rows @ b).mul_(ctx.s)
        grad_x = (rows @ weight).addmm_(grad_small, a).view(*grad.shape[:-1], weight.shape[1])
        return grad_x, None, None, (grad_small.t() @ tokens).float(), (rows.t() @ small).float(), None


class _LowRankLinear(nn.Module):
    """A frozen linear layer with a trained addition."""

    def __init__(self, layer: nn.Linear, is_naive: bool) -> None:
        super().__init__()
        self.layer, self.is_naive = layer, is_naive
        self.a = nn.Parameter(torch.randn(RANK, layer.in_features) * layer.in_features**-0.5)
        self.b = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_naive:
            return self.layer(x) + F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype)) * (ALPHA / RANK)
        return _AddLowRank.apply(x, self.layer.weight, self.layer.bias, self.a, self.b, ALPHA / RANK)


def lora_step(model: MMDiT, example: Example, *, is_naive: bool = False) -> Callable[[], None]:
    """Forward, backward, clipping and fused AdamW, with LoRA on every linear layer of the blocks.

    Args:
        model: Frozen; its layers are replaced.
        example: What is trained on.
        is_naive: The addition as three operations of autograd's own.
    """
    trained: list[nn.Parameter] = []
    for parent, name in list(_linear_layers(model.joint_blocks)):
        wrapped = _LowRankLinear(getattr(parent, name), is_naive)
        setattr(parent, name, wrapped)
        trained += [wrapped.a, wrapped.b]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

    def step() -> None:
        example.loss(model).backward()
        nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _linear_layers(root: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in root.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                yield module, name


def frozen_step(model: MMDiT, example: Example) -> Callable[[], None]:
    """Forward and backward to what enters the blocks, with nothing trained: what every method has to pay."""
    for embedder in (model.x_embedder, model.context_embedder, model.t_embedder):
        embedder.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())
    return lambda: example.loss(model).backward()
