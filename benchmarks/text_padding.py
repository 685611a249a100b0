"""What padding costs that a mask makes zero: with all its rows, merged, and left out (which computes something else).

    python -m benchmarks.text_padding

CPU seconds of one thread for a forward and a backward pass at 512 x 512 pixels with a caption of 30 tokens, in turns;
medians, and their ratios to a context without padding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from library.models.merged_padding import merging
from library.models.mmdit import MMDiT, MMDiTConfig

CLIP_ROWS, T5_ROWS = 77, 256


def contexts(used: int, width: int) -> dict[str, tuple[Tensor, Tensor | None]]:
    """{variant: context and its bias}, for a caption of `used` tokens."""
    is_used = torch.cat([torch.arange(rows) < used for rows in (CLIP_ROWS, T5_ROWS)])[None]
    padded = torch.randn(1, CLIP_ROWS + T5_ROWS, width) * is_used[:, :, None]
    merged = merging(is_used)
    assert merged is not None
    return {
        "left out": (padded[:, is_used[0]], None),
        "merged": (merged.context(padded), merged.bias_for(padded)),
        "all rows": (padded, None),
    }


def passes(model: MMDiT, latents: Tensor, context: Tensor, bias: Tensor | None) -> Callable[[], None]:
    """A forward and a backward pass with gradients of all weights."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        pooled = torch.zeros(1, model.config.pooled_dim)
        model(latents, torch.full((1,), 500.0), context, pooled, context_bias=bias).square().mean().backward()

    return run


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--side", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--tokens", type=int, default=30, help="of the caption, with begin and end")
    parser.add_argument("--heads", type=int, default=6, help="of 64 channels each")
    parser.add_argument("--depth", type=int, default=2)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = MMDiTConfig(
        depth=given.depth, num_heads=given.heads, context_dim=1024, pooled_dim=64, position_side=given.side // 16
    )
    model, latents = MMDiT(config), torch.randn(1, 16, given.side // 8, given.side // 8)
    variants = contexts(given.tokens, config.context_dim)
    runs = {name: passes(model, latents, *variant) for name, variant in variants.items()}
    seconds = measure(runs, given.rounds)
    for name, (context, _) in variants.items():
        ratio = seconds[name] / seconds["left out"]
        sys.stdout.write(f"{name:9} {context.shape[1]:4} rows {seconds[name]:7.3f} s {ratio:6.3f}\n")
    return 0


def measure(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """{name: median of the CPU seconds}, after one round that is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if number:
                spent[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


if __name__ == "__main__":
    sys.exit(main())
