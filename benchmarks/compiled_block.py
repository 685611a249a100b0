"""What compiling a joint block gains, and what it takes: `python -m benchmarks.compiled_block`.

One block of a small MMDiT (two attentions, normed queries and keys), frozen, with a LoRA of rank 16 on all its linear
layers, forward and backward, as written and compiled in one run. The numbers are CPU time of one thread; the ratio is
what can be compared between machines.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from library.models.mmdit import MMDiT, MMDiTConfig
from library.training.block_timing import BlockTime, take_gradients, time_block
from library.training.compiling import compile_blocks
from networks import lora_sd3

_SECONDS = 20.0


def model_with_adapters(hidden: int) -> tuple[MMDiT, list[nn.Parameter]]:
    """Two blocks, so that one is not the last, and the weights that train."""
    config = MMDiTConfig(
        depth=2,
        num_heads=hidden // 64,
        context_dim=64,
        pooled_dim=64,
        position_side=32,
        qk_norm=True,
        dual_attention=(0,),
    )
    model = MMDiT(config).requires_grad_(False)
    network: Any = lora_sd3.create_network(1.0, 16, 16, None, [], model)  # type: ignore[arg-type]
    network.apply_to([], model)
    return model, [parameter.requires_grad_() for parameter in network.parameters()]


def block_inputs(hidden: int, side: int, num_rows: int) -> tuple[Tensor, ...]:
    """Context, image tokens and conditioning of one picture. Shapes [1, N, D], [1, side², D], [1, D]."""
    context, x = torch.randn(1, num_rows, hidden), torch.randn(1, side * side, hidden)
    return context.requires_grad_(), x.requires_grad_(), torch.randn(1, hidden)


def measure(
    hidden: int, side: int, num_rows: int, backend: str, *, seconds: float = _SECONDS
) -> tuple[BlockTime, BlockTime, float]:
    """Times of the block as written and compiled, and the CPU time that compiling took."""
    model, weights = model_with_adapters(hidden)
    inputs = block_inputs(hidden, side, num_rows)
    compiled, block = compile_blocks(model, backend), model.joint_blocks[0]
    began = process_time()
    take_gradients(block(*inputs), [*inputs, *weights])
    compiling = process_time() - began
    fast = time_block(block, inputs, seconds=seconds, is_trained=True, weights=weights, clock=process_time)
    compiled[0].is_on = False
    return (
        time_block(block, inputs, seconds=seconds, is_trained=True, weights=weights, clock=process_time),
        fast,
        compiling,
    )


def main(argv: Iterable[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=384, help="width of the model")
    parser.add_argument("--side", type=int, default=16, help="patches of a picture's side")
    parser.add_argument("--rows", type=int, default=64, help="rows of the context")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="of each measurement")
    chosen = parser.parse_args(None if argv is None else list(argv))
    torch.set_num_threads(1)
    plain, fast, compiling = measure(chosen.hidden, chosen.side, chosen.rows, chosen.backend, seconds=chosen.seconds)
    print(f"width {chosen.hidden}, {chosen.side**2 + chosen.rows} tokens, LoRA rank 16, CPU time forward + backward:")
    for name, time in (("as written", plain), (chosen.backend, fast)):
        print(f"{name}: {time.total * 1e3:.1f} ms ({time.forward * 1e3:.1f} + {time.backward * 1e3:.1f})")
    print(f"{plain.total / fast.total:.2f} x as fast; compiling took {compiling:.0f} CPU-seconds")


if __name__ == "__main__":
    main()
