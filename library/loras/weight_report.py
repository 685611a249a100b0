"""What a LoRA file is and holds: its numbers by tensor, the strength of each block, and what is wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from library.log import get_logger
from library.loras.lora_family import DIFFUSERS, FAMILY_TITLES
from library.loras.lora_file import LoraFile, read_lora
from library.loras.low_rank import norm_of, svd_of_product
from library.loras.options.looking import LookOptions
from library.pickled import read_any_header, tensor_reader

if TYPE_CHECKING:
    from torch import Tensor

    from library.families.lora_layout import LoraPair

_FACTOR_ENDS = re.compile(r"\.(lora_down|lora_up|lora_A|lora_B|lora\.down|lora\.up)(\.default)?\.weight$")
_BROKEN = 2  # exit code
_WORDS = {"sdxl": "SDXL", "sd": "SD1 and SD2", "sd3": "SD3 and SD3.5"}
_BLOCKS = (  # first hit wins: what begins so, with its number, is one block of the report
    re.compile(r"lora_unet_joint_blocks_\d+"),
    re.compile(r"lora_unet_(input_blocks_\d+|middle_block|output_blocks_\d+)"),
    re.compile(r"lora_unet_(down_blocks_\d+|mid_block|up_blocks_\d+)"),
    re.compile(r"lora_te\d?_text_model_encoder_layers_\d+"),
    re.compile(r"lora_te3_encoder_block_\d+"),
    re.compile(r"lora_(unet|te\d?)"),
)

logger = get_logger(__name__)


def report_file(options: LookOptions) -> int:
    """Tell everything; returns the exit code, 2 where numbers are broken.

    Raises:
        CheckpointError: The file cannot be read, or is no LoRA.
    """
    assert options.file is not None, "it is required"
    file = read_lora(options.file, "FILE")
    for line in tensor_lines(options, file):
        logger.info("%s", line)
    for line in (*description(file), *rank_lines(file.modules), *strength_lines(sound(file.modules))):
        logger.info("%s", line)
    for line in silent_modules(file.modules):
        logger.warning("%s", line)
    broken = broken_modules(file.modules)
    if broken:
        logger.error(
            "%d of %d modules have NaN or infinite values: %s. The training has diverged: use a file saved earlier.",
            *(len(broken), len(file.modules), ", ".join(broken[:3]) + (" ..." if len(broken) > 3 else "")),
        )
    return _BROKEN if broken else 0


def tensor_lines(options: LookOptions, file: LoraFile) -> Iterator[str]:
    """A line for each factor, or for each tensor: its name in the file, shape, mean and least size of its numbers."""
    reader = tensor_reader(read_any_header(file.path, "FILE"))
    for name in sorted(reader.header.tensors):
        if options.show_all_keys or _FACTOR_ENDS.search(name):
            tensor = reader.read(name)
            sizes = tensor.detach().float().abs()
            values = f"mean |w| {sizes.mean():.4g}, min |w| {sizes.min():.4g}" if sizes.numel() else "empty"
            yield f"{name}, {_shape(tensor)}, {values}"


def description(file: LoraFile) -> Iterator[str]:
    """What the file is, and who reads it."""
    size = file.path.stat().st_size / 2**20
    yield f"{file.path}: a LoRA for {FAMILY_TITLES[file.family]}, {len(file.modules)} modules, {size:.2f} MiB."
    if file.layout == DIFFUSERS:
        yield "Layout: that of diffusers (PEFT). diffusers reads it by load_lora_weights."
    else:
        yield f"Layout: kohya. ComfyUI, Forge and others read it as a LoRA of {_WORDS[file.family]}."
    dim, module = file.metadata.get("ss_network_dim"), file.metadata.get("ss_network_module")
    if module:
        yield f"Its metadata says: made by {module}, rank {dim}, alpha {file.metadata.get('ss_network_alpha')}."


def rank_lines(modules: Mapping[str, LoraPair]) -> Iterator[str]:
    """How many modules have which rank and alpha, in the text encoders and in the denoiser."""
    groups: dict[tuple[str, int, float], int] = {}
    for name, pair in modules.items():
        rank = pair.down.shape[0]
        key = (name.split("_")[1], rank, round(pair.scale * rank, 6))
        groups[key] = groups.get(key, 0) + 1
    for (part, rank, alpha), number in sorted(groups.items(), key=lambda item: (item[0][0], -item[1])):
        yield f"{part}: {number} modules of rank {rank}, alpha {alpha:g}, strength alpha / rank {alpha / rank:.4g}"


def strength_lines(modules: Mapping[str, LoraPair]) -> Iterator[str]:
    """What each block adds to its weights: the Frobenius norm of all of it together. Squares of norms add up."""
    blocks: dict[str, list[float]] = {}
    for name, pair in modules.items():
        norm = abs(pair.scale) * norm_of(svd_of_product(pair.down, pair.up).s)
        blocks.setdefault(block_of(name), []).append(norm)
    whole = math.hypot(*(norm for norms in blocks.values() for norm in norms))
    for block, norms in blocks.items():
        norm = math.hypot(*norms)
        share = (norm / whole) ** 2 if whole else 0.0
        number = f"{len(norms)} module{'s' * (len(norms) > 1)}"
        yield f"{block}: Frobenius norm {norm:.4g} ({share:.1%} of the whole's square), {number}"
    yield f"whole: Frobenius norm {whole:.4g}"


def block_of(name: str) -> str:
    """The block that a module belongs to."""
    return next((match[0] for pattern in _BLOCKS if (match := pattern.match(name))), name)


def broken_modules(modules: Mapping[str, LoraPair]) -> list[str]:
    """Those with NaN or infinite values."""
    return [name for name, pair in modules.items() if not pair.is_finite]


def sound(modules: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
    """The others."""
    return {name: pair for name, pair in modules.items() if pair.is_finite}


def silent_modules(modules: Mapping[str, LoraPair]) -> Iterator[str]:
    """A line about modules that add nothing."""
    silent = [name for name, pair in modules.items() if not (pair.down.any() and pair.up.any() and pair.scale)]
    if silent:
        parts = f"all {len(silent)}" if len(silent) == len(modules) else f"{len(silent)} of {len(modules)}"
        yield f"{parts} modules add nothing, as a factor is all zeros: they were not trained ({silent[0]})."


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
