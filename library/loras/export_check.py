"""Reading a saved LoRA back, and comparing what other programs make of it with the network as it was trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import UserError
from library.families.lora_layout import LoraPair
from library.log import get_logger
from library.loras.converting_run import report_on
from library.loras.lora_family import layout_of
from library.pickled import read_any_header

if TYPE_CHECKING:
    from torch import Tensor

    from networks.adapters import LoraAdapter

logger = get_logger(__name__)


def check_export(path: Path, adapters: Iterable[LoraAdapter], *, family: str, depth: int) -> bool:
    """Whether every program that reads such files does with it what the network did while it trained.

    What is found is told in the log. Nothing is raised: the file is there, and so is the training.

    Args:
        path: A saved file.
        adapters: Of the network, with the values that were saved.
        family: "sd", "sdxl" or "sd3".
        depth: Number of blocks of the denoiser.
    """
    try:
        trained = {adapter.name: _trained(adapter) for adapter in adapters}
        if layout_of(read_any_header(path, str(path)).shapes()) == "diffusers":
            trained = {name: pair for name, pair in trained.items() if not name.startswith("lora_te3_")}
        return report_on(path, family, trained, depth=depth if family == "sd3" else None) == 0
    except UserError as error:
        logger.error("--verify_export: %s cannot be checked: %s", path, error)
        return False


def _trained(adapter: LoraAdapter) -> LoraPair:
    """As it acts in a forward pass, not as it is written."""
    down, up = (_on_host(factor) for factor in adapter.pair())
    return LoraPair(down, up, adapter.scale)


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu")
