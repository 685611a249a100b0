"""LoRAs merged with each other: the exact sum, or the nearest LoRA of a rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING

from library.checkpoint.tensor_stream import refuse_overflow
from library.families.lora_layout import LoraPair
from library.log import get_logger
from library.loras.lora_family import KOHYA
from library.loras.lora_file import LoraFile, check_target, lora_tensors, write_lora
from library.loras.lora_metadata import lora_metadata
from library.loras.merging import (
    Parts,
    Reduced,
    check_holds,
    check_sizes,
    check_sums,
    exact,
    joined,
    reduced,
    share_kept,
    share_lost,
    size_of,
)
from library.loras.merging_inputs import OPTION, MergeInput, read_inputs

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch

    from library.loras.options.merging import MergeInputOptions, MergeOptions, SvdOptions

logger = get_logger(__name__)

_ADVICE = "Merge it with the script of its family, or with networks/merge_lora.py, which takes all."


def merge_files(options: MergeOptions, families: Collection[str]) -> None:
    """Merge as networks/merge_lora.py does without --sd_model.

    Args:
        options: Of the script.
        families: Those that it takes.

    Raises:
        UserError: A file cannot be used, or the result cannot be written.
    """
    from library.device import precision_dtype

    family, inputs = _inputs(options, families)
    dtype = precision_dtype(options.precision)

    def merge(name: str, parts: Parts) -> Reduced:
        whole = joined(parts, dtype)
        check_holds(name, whole)
        if options.concat or len(parts) == 1:
            return exact(whole)
        return reduced(whole, max(pair.down.shape[0] for pair, _ in parts))

    sums = _merged(inputs, merge)
    modules = {name: _shuffled(name, each.pair) if options.shuffle else each.pair for name, each in sums.items()}
    _write(modules, inputs, family, options)
    if not options.concat and any(each.lost for each in sums.values()):
        logger.info(
            "%s keeps %.1f %% of the sum's norm, with the rank of the largest file. --concat keeps all of it with a "
            "larger rank; networks/svd_merge_lora.py lets you choose the rank.",
            *(options.save_to, 100 * share_kept(sums.values())),
        )


def merge_by_svd(options: SvdOptions, families: Collection[str]) -> None:
    """Merge as networks/svd_merge_lora.py does. Arguments and errors as for `merge_files`."""
    import torch

    from library.device import check_device, precision_dtype

    device = options.device or "cpu"
    if options.device:
        check_device(options.device, "--device")
    family, inputs = _inputs(options, families)
    dtype = precision_dtype(options.precision)

    def merge(name: str, parts: Parts) -> Reduced:
        rank = options.new_rank
        if options.new_conv_rank is not None and len(size_of(parts[0][0])) > 2:
            rank = options.new_conv_rank
        whole = joined([(_cast(pair, dtype), strength) for pair, strength in parts], dtype)
        check_holds(name, whole)
        return reduced(whole, rank, device=torch.device(device), clamp=options.clamp_quantile)

    sums = _merged(inputs, merge)
    _write({name: each.pair for name, each in sums.items()}, inputs, family, options)
    if options.clamp_quantile is None:
        logger.info("%s keeps %.1f %% of the sum's norm.", options.save_to, 100 * share_kept(sums.values()))
    else:
        logger.info("%s differs from the sum by %.1f %% of its norm.", options.save_to, 100 * share_lost(sums.values()))


def _inputs(options: MergeInputOptions, families: Collection[str]) -> tuple[str, list[MergeInput]]:
    assert options.save_to is not None and options.models is not None
    check_target(options.save_to, {f"{OPTION} {path}": path for path in options.models})
    return read_inputs(options, families, advice=_ADVICE)


def _cast(pair: LoraPair, dtype: torch.dtype) -> LoraPair:
    return LoraPair(pair.down.to(dtype), pair.up.to(dtype), pair.scale)


def _merged(inputs: Sequence[MergeInput], merge: Callable[[str, Parts], Reduced]) -> dict[str, Reduced]:
    """Every module that a file has at a strength other than 0."""
    names = dict.fromkeys(name for given in inputs for name in given.changes)
    modules = dict[str, Parts]()
    for name in names:
        owners = [given for given in inputs if name in given.changes]
        pairs = [given.changes[name] for given in owners]
        loras = [pair for pair in pairs if isinstance(pair, LoraPair)]
        check_sizes(name, [(str(given.path), size_of(pair)) for given, pair in zip(owners, loras, strict=True)])
        parts = [(pair, given.strength(name)) for given, pair in zip(owners, loras, strict=True)]
        if used := [(pair, strength) for pair, strength in parts if strength]:
            modules[name] = used
    check_sums(modules.values())
    return {name: merge(name, parts) for name, parts in modules.items()}


def _shuffled(name: str, pair: LoraPair) -> LoraPair:
    """The same with its ranks in another order, which is always the same one."""
    import torch

    from library.rng import torch_stream

    order = torch.randperm(pair.down.shape[0], generator=torch_stream(0, "shuffled ranks", name))
    return LoraPair(pair.down[order], pair.up[:, order], pair.scale)


def _write(
    modules: Mapping[str, LoraPair], inputs: Sequence[MergeInput], family: str, options: MergeInputOptions
) -> None:

    from library.device import precision_dtype

    assert options.save_to is not None
    sources = [given.lora for given in inputs if given.lora is not None]
    wanted = precision_dtype(options.save_precision) if options.save_precision else None
    typed = {name: _cast(pair, wanted or _widest(name, sources)) for name, pair in modules.items()}
    layouts = {source.layout for source in sources}
    tensors = lora_tensors(typed, family, layout=layouts.pop() if len(layouts) == 1 else KOHYA)
    for name, tensor in tensors.items():
        advice = "Lower --ratios." if tensor.element_size() > 2 else "Use --save_precision bf16 or float."
        refuse_overflow(f"{options.save_to}: {name}", tensor, advice)
    used = [given.lora for given in inputs if given.lora is not None and given.ratio]
    title = options.save_to.stem
    metadata = lora_metadata(typed, sources=used, title=title, family=family, tensors=tensors)
    write_lora(options.save_to, tensors, None if options.no_metadata else metadata)
    files = f"{len(used)} file{'s' * (len(used) != 1)}"
    logger.info("%s: %d modules of %s", options.save_to, len(modules), files)


def _widest(name: str, sources: Sequence[LoraFile]) -> torch.dtype:
    """The type that holds what all files have of a module."""
    import torch

    types = [source.modules[name].down.dtype for source in sources if name in source.modules]
    return reduce(torch.promote_types, types)
