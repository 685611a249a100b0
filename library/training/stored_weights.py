"""Compiled blocks keep weights for the backward pass as they are stored, not as they are computed with.

Weights in fewer bits, and float32 weights under autocast, are widened or cast where they are used. torch's compiler
sees that the forward and the backward pass do the same with them, does it once, and would keep the result from one to
the other: a second, wide model in memory, and with swapped blocks one that never leaves. So it is told to do that
again. Activations are kept or computed again as torch thinks fit: matrix products and attention are not repeated.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch.fx import Graph, Node


def widen_again(graph: Graph) -> None:
    """Mark what a graph computes of weights alone, so that its backward pass computes it once more.

    Weights are inputs with at most two dimensions; other such inputs of a block are as small as one row of activations.
    Products of weights (adapters have some) and what is smaller than the weight it is made of stay unmarked.

    Args:
        graph: Forward and backward pass in one, before it is cut in two.
    """
    from torch.utils.checkpoint import CheckpointPolicy
    from torch.utils.flop_counter import flop_registry

    forms: dict[Node, int] = {}  # weights and what they become, with how many numbers there are
    for node in graph.nodes:
        size = _size(node)
        if size is None:
            continue
        if node.op == "placeholder":
            if node.meta["val"].ndim <= 2 and "tangents" not in str(node.target):
                forms[node] = size
        elif node.op == "call_function" and getattr(node.target, "overloadpacket", None) not in flop_registry:
            sources = [source for source in node.all_input_nodes if isinstance(source.meta.get("val"), Tensor)]
            if sources and all(source in forms and forms[source] <= size for source in sources):
                forms[node] = size
                node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE


def _size(node: Node) -> int | None:
    """Numbers in the tensor that a node gives; None where it gives none, or their number is not fixed."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not all(isinstance(length, int) for length in value.shape):
        return None
    return value.numel()


def inductor_settings() -> dict[str, Any]:
    """What tells inductor to use `widen_again`; nothing where this torch has no place for it."""
    from torch._inductor import config

    return {"joint_custom_post_pass": _inductor_pass()} if hasattr(config, "joint_custom_post_pass") else {}


@cache
def _inductor_pass() -> Any:
    """The same object for all blocks, so that they share graphs; by its name blocks that lie on the disk are found."""
    try:
        from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
    except ImportError:  # an older torch, which then compiles anew in every run
        return widen_again

    class WidenAgain(CustomGraphPass):
        def __call__(self, graph: Graph) -> None:
            widen_again(graph)

        def uuid(self) -> Any:
            return get_hash_for_files((__file__,))

    return WidenAgain()
