"""Before the first step, compiled blocks are compiled and compared with what they replace.

A batch of the kind that the run has most of is brought as far as the first block; what it is called with goes through
all blocks, forward and backward, one block at a time. So a compiler that does not work is told before anything is
trained, and already the first step with such a batch takes as long as all others. Where outputs are preserved, the
passes without gradients are compiled as well. Neither weights nor random numbers of the run are touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

Inputs = tuple[Any, ...]


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
            inputs = first_inputs(rows[0], lambda: trainer.batch_loss(_usual_batch(trainer)))
            weights = [weight for weight in trainer.trained_parameters() if weight.requires_grad]
            began = perf_counter()
            place = _usual_block(rows)
            usual = _pass_through(trainer, rows, inputs, weights)[place]
            if any(trainer.preserved()):
                with torch.no_grad(), trainer.unchanged_model():
                    _pass_through(trainer, rows, _apart(inputs, has_gradients=False), weights)
            compiling = perf_counter() - began
            plain, compiled = _compare(trainer, rows[place], usual, weights)
    except DatasetError:
        return  # the loop will meet it, and knows what to do
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("compiled blocks were not compared: there is not enough memory for a whole batch.")
        return
    logger.info("compiled blocks: %.2f x as fast, compiling took %.0f s", plain.total / compiled.total, compiling)


def first_inputs(block: nn.Module, run: Callable[[], object]) -> Inputs:
    """What a block is called with first; the call does not go on.

    Args:
        block: Of a model.
        run: Runs that model.
    """

    class Called(Exception):
        """With these inputs."""

    def forward(*inputs: Any) -> None:
        raise Called(*inputs)

    own = block.forward
    block.forward = forward  # type: ignore[method-assign]
    try:
        run()
    except Called as call:
        return call.args
    finally:
        block.forward = own  # type: ignore[method-assign]
    raise AssertionError("the model does not run this block")


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
    trainer: DenoiserPhases, rows: Sequence[nn.Module], inputs: Inputs, weights: Sequence[Tensor]
) -> list[Inputs]:
    """Run all blocks, forward and backward, each for itself; what each was called with."""
    seen = []
    for block in rows:
        inputs = _apart(inputs)
        seen.append(inputs)
        outputs = _checked(trainer, block, inputs, weights)
        inputs = (*outputs, *inputs[len(outputs) :])  # what one block gives, the next one takes
    return seen


def _checked(trainer: DenoiserPhases, block: nn.Module, inputs: Inputs, weights: Sequence[Tensor]) -> Inputs:
    """A pass through a compiled block. Where it fails and would not as written, the compiler has failed."""

    def run() -> Inputs:
        outputs = block(*inputs)
        take_gradients(outputs, [*inputs, *weights])
        return tuple(outputs)

    try:
        return run()
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        with _as_written(trainer):
            run()
        raise trainer.compiled[0].fault(error) from error


def _compare(
    trainer: DenoiserPhases, block: nn.Module, inputs: Inputs, weights: Sequence[Tensor]
) -> tuple[BlockTime, BlockTime]:
    """A block as written, and compiled."""
    with _as_written(trainer):
        plain = time_block(block, inputs, seconds=_SECONDS, is_trained=True, weights=weights)
    return plain, time_block(block, inputs, seconds=_SECONDS, is_trained=True, weights=weights)


@contextmanager
def _as_written(trainer: DenoiserPhases) -> Iterator[None]:
    for block in trainer.compiled:
        block.is_on = False
    try:
        yield
    finally:
        for block in trainer.compiled:
            block.is_on = True


def _apart(inputs: Inputs, *, has_gradients: bool = True) -> Inputs:
    """The same values without what they were computed from; those that got gradients still get some, or none does."""
    return tuple(
        value.detach().requires_grad_(value.requires_grad and has_gradients) if isinstance(value, Tensor) else value
        for value in inputs
    )
