"""The denoiser of a run: loaded where it belongs, in as many bits as asked for, swapped, compiled.

What is done to it, and in which order, is decided here: weights are read, adapters are attached to its layers, then its
blocks are compiled, and what wraps whole blocks comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from library.data.report.report_text import bytes_in_words
from library.log import get_logger
from library.training.built_training import BuiltTraining
from library.training.compiling import compile_blocks, kinds_of_batches

if TYPE_CHECKING:
    from torch import nn

    from library.models.attention import Attention
    from library.training.compiling import CompiledBlock

logger = get_logger(__name__)


class DenoiserPhases(BuiltTraining):
    """The phases of a training that are about its denoiser.

    Attributes:
        attend: Attention of a package; None for torch's.
        compiled: Blocks of the denoiser that are compiled.
    """

    attend: Attention | None
    compiled: Sequence[CompiledBlock] = ()

    def head_widths(self) -> list[int]:
        """Of the denoiser's attention, before it is read."""
        from library.models.attention import head_widths

        return head_widths(self.family.denoiser_outline(self.files))

    def load(self) -> None:
        """Fill the caches, load the encoders that run in every step, then the denoiser."""
        import torch

        self.encoders.load()
        self.text = self.encoders.text
        load = partial(self.family.load_denoiser, self.files, change=self.denoiser_change(), rounds_on=self.device)
        home = torch.device("cpu") if self.swaps() else self.device
        self.denoiser = self.shards.load(load, self.model_dtype(), home)
        self._tell_format()
        if self.attend is not None:
            from library.models.attention import use_attention

            use_attention(self.denoiser, self.attend)
        if self.options.training.recomputes:
            self._recompute_activations()

    def _tell_format(self) -> None:
        form = self.options.memory.weights_format
        if form is None:
            return
        from library.memory.blocks import blocks

        tensors = (tensor for block in blocks(self.denoiser) for tensor in (*block.parameters(), *block.buffers()))
        size = bytes_in_words(sum(tensor.nbytes for tensor in tensors))
        logger.info("base weights: the blocks of the %s are in %s, %s in all", self.family.denoiser_name, form, size)

    def denoiser_change(self) -> Callable[[nn.Module], None] | None:
        """What is done to the denoiser before its weights are put into fewer bits; None for nothing."""
        return None

    def _recompute_activations(self) -> None:
        """Compute the denoiser's activations again in the backward pass; what it keeps may wait in host memory."""
        from library.memory.activation_checkpoint import HostCheckpoint

        self.denoiser.gradient_checkpointing = True  # type: ignore[assignment]
        self.denoiser.checkpoint_every = self.options.training.gradient_checkpointing_every_n_blocks  # type: ignore[assignment]
        if not self.options.training.cpu_offload_checkpointing:
            return
        if self.device.type == "cpu":
            logger.warning("--cpu_offload_checkpointing has no effect without a GPU: all is in host memory already.")
            return
        self.denoiser.run_checkpointed = HostCheckpoint()  # type: ignore[assignment]

    def swaps(self) -> bool:
        """Whether blocks of the denoiser wait in host memory: there has to be another one."""
        return bool(self.options.memory.swaps) and self.device.type != "cpu"

    def swap_blocks(self) -> None:
        """With `--blocks_to_swap`: blocks stay on the host, where they were read to; all else goes to the device."""
        if not self.swaps():
            return
        from library.memory.block_swap import BlockSwapper
        from library.memory.blocks import around_blocks, blocks, num_streams
        from library.memory.swap_plan import swap_plan
        from library.training.sharding.swapped import Swapped

        chosen, rows = self.options.memory, list(blocks(self.denoiser))
        plan = swap_plan(len(rows), int(chosen.blocks_to_swap), chosen.swap_prefetch)
        self.swapper = BlockSwapper(rows, plan, self.device, num_streams=num_streams(self.denoiser))
        for module in around_blocks(self.denoiser):
            module.to(self.device)
        self.shards = Swapped(self.swapper)
        logger.info(
            "block swap: %d of %d blocks wait in host memory (%s), %d of them at a time on the device (%s)",
            len(plan.swapped),
            plan.depth,
            bytes_in_words(self.swapper.host_bytes),
            plan.num_buffers,
            bytes_in_words(self.swapper.device_bytes),
        )
        if unlocked := self.swapper.unlocked_bytes:
            logger.warning(
                "block swap: the system lets %s of that memory not be page-locked, so copies to the GPU are slower. "
                "Close other programs, or raise the limit of locked memory (ulimit -l).",
                bytes_in_words(unlocked),
            )

    def compile_blocks(self) -> None:
        """With `--torch_compile`: the denoiser's blocks are compiled when they are first used."""
        if self.options.compute.torch_compile:
            kinds = kinds_of_batches(self.plan.epoch(1, seed=self.seed, rank=self.accelerator.process_index))
            merges = any(self.family.may_merge_padding(size, self.device) for size, _ in kinds)
            is_varied = len(kinds) > 1 or merges or len(self.preserved()) > 1
            self.compiled = compile_blocks(self.denoiser, self.options.compute.dynamo_backend, is_varied=is_varied)
            if merges:
                logger.info(
                    "compiled blocks: those of batches with merged padding are compiled apart from those without, each "
                    "when such a batch first comes."
                )

    def preserved(self) -> set[bool]:
        """Whether pictures are compared with the model as it was: for some subsets they may be, and for some not."""
        return {subset.preserves_output for spec in self.plan.specs for subset in spec.subsets}

    def warm_up(self) -> None:
        """With `--torch_compile`: use them, before anything is trained, and tell what it gains."""
        if self.compiled:
            from library.training.warm_up import warm_up

            warm_up(self)
