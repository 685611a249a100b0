"""How many operations a training step asks the device for: `python -m benchmarks.operations`.

A fast GPU has done a small step before the host has asked for the next; then the number of operations is what takes
time. Counted by torch's dispatcher at the depth of SD3.5-medium and a width of almost nothing, on a CPU, without those
that only look at a tensor in another shape. Some are one kernel on a GPU and several here (norms of heads).
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_rows import DIFFUSERS, OURS, TRAININGS, WRITTEN
from benchmarks.memory_table import MODELS
from benchmarks.mmdit_subject import MmditSubject
from benchmarks.random_model import SIZES
from benchmarks.unfiled_training import build_training

MODEL, TRAINING = "SD3.5-medium", "LoRA 16"
SIDE = 64  # pixels


class Operations(TorchDispatchMode):
    """A context that counts operations.

    Attributes:
        counts: {name: how often}.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one, and count it unless its result is a view."""
        is_view = any(made.alias_info and not made.alias_info.is_write for made in func._schema.returns)
        if not is_view:
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def narrow(depth: int) -> MmditSubject:
    """The kinds of blocks of the real model, one head of 32 channels."""
    tiny = SIZES["tiny"]
    dual = tuple(block for block in MODELS[MODEL].dual_attention if block < depth)
    config = replace(tiny.models[MODEL], depth=depth, num_heads=1, head_dim=32, dual_attention=dual)
    return MmditSubject(config, tiny)


def steps(folder: Path, batch: int, depth: int) -> dict[str, Callable[[], None]]:
    """A step of each loop. Those whose packages are missing are left out."""
    subject, training = narrow(depth), TRAININGS[TRAINING]
    trainer = build_training(folder, subject, training.all_flags(), side=SIDE, batch=batch, is_network=True)
    made = {OURS: partial(trainer.one_step, trainer.batches_from(0))}
    for name in (WRITTEN, DIFFUSERS):
        try:
            made[name] = subject.other_step(
                training,
                side=SIDE,
                batch=batch,
                device=torch.device("cpu"),
                is_diffusers=name == DIFFUSERS,
                recomputes=False,
            )
        except ImportError:
            continue
    return made


def main(argv: Iterable[str] | None = None) -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--depth", type=int, default=MODELS[MODEL].depth, help="blocks")
    given = parser.parse_args(None if argv is None else list(argv))
    logging.getLogger("easel").setLevel("ERROR")
    print("| loop | operations | most of them |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, step in steps(Path(folder), given.batch, given.depth).items():
            step()
            step()
            with Operations() as operations:
                step()
            most = ", ".join(f"{kind} {number}" for kind, number in operations.counts.most_common(6))
            print(f"| {name} | {sum(operations.counts.values()):,} | {most} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
