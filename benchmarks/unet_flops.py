"""Model FLOPs of a training step of a U-Net, counted by torch over tensors without numbers.

Products of matrices and convolutions of both passes, attention as two plain products, nothing that is computed again:
the same rules as in `flops.py`, which computes them for an MMDiT from its sizes.

    python -m benchmarks.unet_flops

prints the count for one picture of each model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.flops import Flops
from benchmarks.plain_loop import add_lora
from benchmarks.unet_loops import attention_layers, random_example
from benchmarks.unet_sizes import SIZES, UNETS, UnetSize
from library.models.unet import UNet


@lru_cache(maxsize=64)
def unet_flops(size: UnetSize, *, side: int, rank: int) -> Flops:
    """Forward and backward pass of one square picture.

    Args:
        size: Of the model.
        side: Of the picture, in pixels.
        rank: Of the LoRA beside each layer of the attention blocks; 0 where the whole model trains.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with FakeTensorMode():
        model = UNet(**size.config())
        if rank:
            model.requires_grad_(False)
            add_lora(model, attention_layers(model), rank, is_naive=True)
        example = random_example(size, side=side, batch=1, dtype=torch.float32, device=torch.device("cpu"))
        with counter, sdpa_kernel(SDPBackend.MATH):
            loss = example.loss(model)
            forward = counter.get_total_flops()
            loss.backward()
    return Flops(forward, counter.get_total_flops() - forward)


def table(models: Iterable[str], sides: Iterable[int], sizes: Mapping[str, UnetSize] = UNETS) -> Iterator[str]:
    """The lines of the table, in TFLOP."""
    head = ["model", "pixels", "training", "forward", "forward and backward"]
    yield f"| {' | '.join(head)} |\n| {' | '.join('---' for _ in head)} |"
    for model in models:
        for side in sides:
            for words, rank in (("LoRA, rank 8", 8), ("whole model", 0)):
                found = unet_flops(sizes[model], side=side, rank=rank)
                yield f"| {model} | {side} | {words} | {found.forward / 1e12:.2f} | {found.total / 1e12:.2f} |"


def main(argv: Iterable[str] | None = None) -> int:
    """Print the table, in TFLOP for one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(UNETS), default=list(UNETS))
    parser.add_argument("--pixels", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--sizes", choices=list(SIZES), default="true", help="tiny: the same code at small widths")
    args = parser.parse_args(None if argv is None else list(argv))
    for line in table(args.models, args.pixels, SIZES[args.sizes]):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
