"""Before the first step, compiled blocks are compiled and compared with what they replace.

A batch of the kind that the run has most of goes through the model once; each block makes its forward and its backward
pass then, for itself. So a compiler that does not work is told before anything is
trained, and already the first step with such a batch takes as long as all others. Where outputs are preserved, the
passes without gradients are compiled as well. Neither weights nor random numbers of the run are touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from library.errors import DatasetError, UserError
from library.log import get_logger
from library.memory.blocks import blocks
from library.memory_use import is_out_of_memory
from library.training.block_timing import BlockTime, take_gradients, time_block
from library.training.building import make_dataset
from library.training.compiling import kinds_of_batches
from library.training.sampling.sampling import unchanged_random_state

if TYPE_CHECKING:
    from library.records import Batch
    from library.training.denoiser_phases import DenoiserPhases

logger = get_logger(__name__)

_SECONDS = 5.0  # of measuring, for each of the two


@dataclass(frozen=True)
class Called:
    """What a block is called with."""

    inputs: tuple[Any, ...]
    named: Mapping[str, Any]

    def apart(self) -> Called:
        """The same values without what they were computed from; those that got gradients still get some."""
        return Called(_apart(self.inputs), dict(zip(self.named, _apart(self.named.values()), strict=True)))

    @property
    def values(self) -> list[Any]:
        """All of them."""
        return [*self.inputs, *self.named.values()]


def warm_up(trainer: DenoiserPhases) -> None:
    """Compile the denoiser's blocks for training, and tell how much faster they are.

    Raises:
        EnvironmentFault: The compiler does not work.
    """
    if trainer.shards.is_sharded:
        logger.info("compiled blocks: sharded ones are compiled as they run, and not compared.")
        return
    rows = list(blocks(trainer.denoiser))
    logger.info("compiling %d blocks with %s; this may take minutes", len(rows), trainer.options.compute.dynamo_backend)
    trainer.set_training(True)
    try:
        with unchanged_random_state(trainer.device), trainer.accelerator.autocast():
            batch = _usual_batch(trainer)
            weights = [weight for weight in trainer.trained_parameters() if weight.requires_grad]
            began = perf_counter()
            place = _usual_block(rows)
            usual = _pass_through(trainer, rows, lambda: trainer.batch_loss(batch), weights, place)
            if any(trainer.preserved()):
                with torch.no_grad(), trainer.unchanged_model():
                    plain_batch = replace(batch, preserves_output=None)
                    _pass_through(trainer, rows, lambda: trainer.batch_loss(plain_batch), weights, place)
            compiling = perf_counter() - began
            assert usual is not None
            plain, compiled = _compare(trainer, rows[place], usual, weights)
    except DatasetError:
        return  # the loop will meet it, and knows what to do
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("compiled blocks were not compared: there is not enough memory for a whole batch.")
        return
    speed = plain.total / compiled.total
    logger.info("compiled blocks: %.2f x as fast, compiling took %.0f s", speed, compiling)
    if speed < 1:
        logger.warning("compiled blocks are slower than blocks as written. Leave --torch_compile out.")


def _usual_batch(trainer: DenoiserPhases) -> Batch:
    """A batch of the size, and of the number of pictures, that most batches of this epoch have; the largest of equals.

    It is of the same kind in every epoch, so that a run that goes on gets the same graphs.
    """
    epoch = trainer.course.epoch(trainer.step + 1)
    plans = trainer.plan.epoch(epoch, seed=trainer.seed, rank=trainer.accelerator.process_index)
    kinds = kinds_of_batches(plans)
    size, number = max(kinds, key=lambda kind: (kinds[kind], kind))
    plan = next(plan for plan in plans if plan.size == size and len(plan.items) == number)
    return make_dataset(trainer)[plan].to(trainer.device)


def _usual_block(rows: Sequence[nn.Module]) -> int:
    """Place of the last block of the kind that most blocks are."""
    kinds = [tuple((name, tensor.shape) for name, tensor in block.named_parameters()) for block in rows]
    usual = Counter(kinds).most_common(1)[0][0]
    return max(place for place, kind in enumerate(kinds) if kind == usual)


def _pass_through(
    trainer: DenoiserPhases,
    rows: Sequence[nn.Module],
    run: Callable[[], object],
    weights: Sequence[Tensor],
    place: int,
) -> Called | None:
    """Run the model, each block forward and backward for itself; what the block at a place was called with, unless it
    was without gradients."""
    seen: dict[int, Called] = {}

    def stand_in(index: int, own: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
        called = Called(inputs, named).apart()
        if index == place and torch.is_grad_enabled():
            seen[index] = called
        return _checked(trainer, own, called, weights)

    with each_replaced(rows, stand_in), _not_recomputed(trainer.denoiser):
        run()
    return seen.get(place)


@contextmanager
def each_replaced(rows: Sequence[nn.Module], stand_in: Callable[..., Any]) -> Iterator[None]:
    """A context in which `stand_in(index, own forward, ...)` computes each block."""
    own = [block.__dict__.get("forward") for block in rows]
    for index, block in enumerate(rows):
        block.forward = partial(stand_in, index, block.forward)
    try:
        yield
    finally:
        for block, forward in zip(rows, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


@contextmanager
def _not_recomputed(model: Any) -> Iterator[None]:
    """Blocks make their backward pass at once, and have nothing to compute again."""
    recomputes = model.gradient_checkpointing
    model.gradient_checkpointing = False
    try:
        yield
    finally:
        model.gradient_checkpointing = recomputes


def _checked(trainer: DenoiserPhases, own: Callable[..., Any], called: Called, weights: Sequence[Tensor]) -> Any:
    """A pass through a compiled block. Where it fails and would not as written, the compiler has failed."""

    def run() -> Any:
        outputs = own(*called.inputs, **called.named)
        take_gradients(outputs, [*called.values, *weights])
        return _apart([outputs])[0] if isinstance(outputs, Tensor) else _apart(outputs)

    try:
        return run()
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        with _as_written(trainer):
            run()
        raise trainer.compiled[0].fault(error) from error


def _compare(
    trainer: DenoiserPhases, block: nn.Module, called: Called, weights: Sequence[Tensor]
) -> tuple[BlockTime, BlockTime]:
    """A block as written, and compiled."""
    run = partial(
        time_block, block, called.inputs, named=called.named, seconds=_SECONDS, is_trained=True, weights=weights
    )
    with _as_written(trainer):
        plain = run()
    return plain, run()


@contextmanager
def _as_written(trainer: DenoiserPhases) -> Iterator[None]:
    for block in trainer.compiled:
        block.is_on = False
    try:
        yield
    finally:
        for block in trainer.compiled:
            block.is_on = True


def _apart(values: Iterable[Any]) -> tuple[Any, ...]:
    """The same values without what they were computed from; those that got gradients still get some."""
    return tuple(
        value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value for value in values
    )
