"""What a network holds: as it goes into the state of a run, to the last bit, and as its files have it, which are read
back here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError
from library.log import get_logger
from library.memory_use import is_out_of_memory
from library.training.network_module import pickled_network
from networks.other_packages import PACKAGE_FAULTS, is_ours

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

logger = get_logger(__name__)

_REASON = 200  # letters of what a package says


def network_tensors(network: nn.Module) -> dict[str, Tensor]:
    """{name: tensor} of all that a network computes with.

    The `state_dict` of networks of other packages may be what their files have, which is not the same to the last bit
    and not always read back.
    """
    if hasattr(network, "saved_state"):
        return network.state_dict()
    return {name: t.detach() for name, t in (*network.named_parameters(), *network.named_buffers())}


def load_network_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `network_tensors` gave of a network of the same form."""
    if hasattr(network, "saved_state"):
        network.load_state_dict(tensors)
        return
    for name, tensor in network_tensors(network).items():
        tensor.copy_(tensors[name])


def network_state(network: Any, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of a network as they are saved, on the CPU."""
    saved_state = getattr(network, "saved_state", None)
    if saved_state is not None:
        state: dict[str, Tensor] = saved_state(dtype)
        return state
    return {name: t.detach().to("cpu", dtype or t.dtype).contiguous() for name, t in network.state_dict().items()}


def load_network_file(network: Any, path: Path, module: str) -> None:
    """Take over the values of --network_weights. Networks of other packages return what did not fit, where ours raise.

    Args:
        network: Attached.
        path: The file.
        module: `--network_module`.

    Raises:
        CheckpointError: It does not fit.
    """
    weights = pickled_network(path)
    if weights is not None and hasattr(network, "load_saved_state"):
        number = network.load_saved_state(weights, f"--network_weights {path}")
        loaded: object = f"{number} modules loaded from {path}"
    else:
        loaded = _as_package_loads(network, path, module)
    if isinstance(loaded, dict) and (misfits := [name for names in loaded.values() for name in names]):
        raise CheckpointError(
            f"--network_weights {path} does not fit the network: {len(misfits)} tensors are missing or left over "
            f"({', '.join(misfits[:3])}). Use the arguments that it was trained with."
        )
    logger.info("--network_weights: %s", loaded if isinstance(loaded, str) else f"{path} is loaded")


def _as_package_loads(network: Any, path: Path, module: str) -> object:
    try:
        return network.load_weights(str(path))
    except PACKAGE_FAULTS as error:
        if is_ours(module) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:_REASON]
        raise CheckpointError(
            f"--network_weights {path} does not fit the network of {module} ({type(error).__name__}: {reason}). "
            "Use the arguments that it was trained with."
        ) from error
