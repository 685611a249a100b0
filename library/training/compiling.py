"""Compiled blocks: each block's forward pass goes through `torch.compile`, and equal blocks share what comes out.

Blocks are compiled one by one, not the model as a whole, so that recomputing activations, swapping blocks and sharding,
which act between them, stay as they are. A run with pictures of several sizes gets graphs for all sizes at once; one
that turns out to have others after all compiles once more, when the first of them comes. Nothing is assumed about where
weights lie.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from library.errors import EnvironmentFault, OptionError
from library.log import get_logger
from library.memory_use import is_out_of_memory
from library.options.groups.compute import BACKENDS
from library.records import BatchPlan, Size

if TYPE_CHECKING:
    import torch
    from torch import nn

    from library.options.groups import ComputeOptions, MemoryOptions

logger = get_logger(__name__)

Kind = tuple[Size, int]  # of batches

MOST_VARIANTS = 128  # kinds of blocks x with and without gradients x sizes; two dozen are usual
_FIRST_WITH_FP8 = (8, 9)  # compute capability of Ada
_NEEDS = ", or install what it needs: a C++ compiler, and on a GPU Triton"
_INNER_LOGS = ("torch._dynamo", "torch._inductor", "torch._functorch", "torch.fx.experimental.symbolic_shapes")


def check_compiler(
    compute: ComputeOptions, memory: MemoryOptions, capability: Callable[[], tuple[int, int] | None] = lambda: None
) -> None:
    """See whether this torch can do what `--torch_compile` asks for. Loads torch's compiler, if it does.

    Args:
        compute: Says the backend.
        memory: Says what it has to go with.
        capability: Gives the compute capability of the GPU that is computed on; None where it is not NVIDIA's.

    Raises:
        OptionError: It has no such backend, or one that does not go with block swap or with weights in fp8.
    """
    if not compute.torch_compile:
        return
    import torch
    from torch._dynamo import list_backends

    name, known = compute.dynamo_backend, list_backends(exclude_tags=())
    if name not in known:
        there = ", ".join(choice for choice in BACKENDS if choice in known)
        raise OptionError(
            f"--dynamo_backend {name}: torch {torch.__version__} has no such backend here. Leave it out, or use one of "
            f"{there}."
        )
    if name == "cudagraphs" and memory.swaps:
        raise OptionError(
            "--dynamo_backend cudagraphs cannot be used with --blocks_to_swap, given or chosen by --fit: it wants "
            "weights to stay where they are. Use inductor."
        )
    if name == "inductor" and memory.weights_format == "fp8" and (own := capability()) and own < _FIRST_WITH_FP8:
        raise OptionError(
            "--torch_compile with a base in fp8 is not compiled by Triton for this GPU (compute capability "
            f"{own[0]}.{own[1]}). Use --base_weights_dtype int8, or leave --torch_compile out."
        )


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """Of an NVIDIA GPU; None of another device."""
    import torch

    is_nvidia = device.type == "cuda" and not torch.version.hip
    return torch.cuda.get_device_capability(device) if is_nvidia else None


class CompiledBlock:
    """Stands for a block's forward pass, and compiles it when it is called.

    Attributes:
        is_on: False computes as written.
    """

    _has_told = False

    def __init__(self, forward: Callable[..., Any], backend: str | Callable[..., Any], *, is_varied: bool) -> None:
        import torch

        self.is_on, self._plain, self._backend = True, forward, backend
        options = _inductor_options() if backend == "inductor" else None
        self._compiled = torch.compile(forward, backend=backend, options=options, dynamic=is_varied or None)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """What the block gives.

        Raises:
            EnvironmentFault: It cannot be compiled.
        """
        if not self.is_on:
            return self._plain(*inputs, **named)
        from torch._dynamo.exc import FailOnRecompileLimitHit

        try:
            return self._compiled(*inputs, **named)
        except FailOnRecompileLimitHit:
            self._tell_limit()
        except Exception as error:
            if is_out_of_memory(error) or not _is_of_compiler(error):
                raise
            raise self.fault(error) from error
        return self._plain(*inputs, **named)

    def fault(self, error: BaseException) -> EnvironmentFault:
        """What to tell of an error of the compiler."""
        inner = getattr(error, "inner_exception", None) or error
        reason = next((line for line in str(inner).splitlines() if line.strip()), "no reason given").strip()
        name = type(inner).__name__
        words = reason if reason.startswith(name) else f"{name}: {reason}"
        return EnvironmentFault(
            f"--torch_compile: {self._backend} could not compile the model ({words}). Leave --torch_compile out"
            f"{_NEEDS if self._backend == 'inductor' else ''}."
        )

    @classmethod
    def _tell_limit(cls) -> None:
        if not CompiledBlock._has_told:
            CompiledBlock._has_told = True
            logger.warning(
                "compiled blocks: there are more than %d kinds of passes; those that come now are not compiled.",
                MOST_VARIANTS,
            )


def compile_blocks(
    model: nn.Module, backend: str | Callable[..., Any] = "inductor", *, is_varied: bool = False
) -> list[CompiledBlock]:
    """Put a `CompiledBlock` in the place of each block's forward pass; nothing is compiled yet.

    Adapters may be attached to layers inside the blocks before or afterwards. What wraps whole blocks comes afterwards.

    Args:
        model: With rows of blocks, see `library/memory/blocks.py`.
        backend: Of torch's compiler.
        is_varied: Batches of several sizes, or with texts of several lengths, will come.
    """
    import torch._dynamo

    from library.memory.blocks import blocks

    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_VARIANTS)
    config.fail_on_recompile_limit_hit = True
    _quiet()
    compiled = []
    for block in blocks(model):
        compiled.append(CompiledBlock(block.forward, backend, is_varied=is_varied))
        block.forward = compiled[-1]
    return compiled


def kinds_of_batches(plans: Iterable[BatchPlan]) -> Counter[Kind]:
    """How many batches there are of each size of pictures and number of them."""
    return Counter((plan.size, len(plan.items)) for plan in plans)


def _inductor_options() -> dict[str, Any]:
    from library.training.stored_weights import inductor_settings

    # random numbers as torch draws them: dropout is the same with and without compiling
    return {"fallback_random": True, **inductor_settings()}


def _quiet() -> None:
    """What the compiler tells of itself is nothing for users; `TORCH_LOGS` still shows what it asks for."""
    for name in _INNER_LOGS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"torch\.(_dynamo|_inductor|_functorch|fx)\b")


def _is_of_compiler(error: BaseException) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    home = type(error).__module__
    return isinstance(error, TorchDynamoException) or home.startswith(("torch._inductor", "triton"))
