"""The runs of networks/resize_lora.py and networks/extract_lora_from_dylora.py: read, make smaller, write, tell."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from library.checkpoint.metadata import tensor_hashes
from library.device import check_device, precision_dtype
from library.errors import CheckpointError, OptionError, UserError
from library.log import get_logger
from library.loras.dylora_parts import cut_at, ranks_of_cuts
from library.loras.lora_file import LoraFile, check_target, lora_tensors, read_lora, write_lora
from library.loras.lora_metadata import DYNAMIC, lora_metadata
from library.loras.options.resizing import CutOptions, RankOptions
from library.loras.resizing import RankRule, check_numbers, resize
from library.loras.retained import summary

if TYPE_CHECKING:
    from torch import Tensor

    from library.families.lora_layout import LoraPair

_STALE = ("sshs_", "lora_adapter_metadata", "modelspec.hash_sha256")
_DYLORA = "networks.dylora"
_OWN = "easel/"  # how modelspec.implementation_version of its trainings begins

logger = get_logger(__name__)


def resize_file(options: RankOptions) -> None:
    """Write a LoRA with smaller ranks.

    Raises:
        UserError: The file cannot be used, or nothing can be written.
    """
    assert options.model is not None and options.save_to is not None, "both are required"
    device = options.device or "cpu"
    check_device(device, "--device")
    file = _read(options.model, options.save_to)
    rule = RankRule(
        options.new_rank,
        options.new_rank if options.new_conv_rank is None else options.new_conv_rank,
        options.dynamic_method,
        options.dynamic_param,
    )
    modules, retained = resize(file.modules, rule, device=device)
    if options.verbose:
        for module in retained:
            logger.info("%s", module.line)
    _tell_small_ranks(file, rule)
    logger.info("%s", summary(retained))
    _write(
        file,
        options.save_to,
        modules=modules,
        precision=options.save_precision,
        comment=_comment(file, modules, rule),
        is_dynamic=rule.method is not None,
    )
    old, new = (path.stat().st_size / 2**20 for path in (file.path, options.save_to))
    logger.info("%s: written, %.2f MiB (%s has %.2f MiB).", options.save_to, new, file.path, old)


def cut_file(options: CutOptions) -> None:
    """Write one LoRA for each rank of a DyLoRA.

    Raises:
        UserError: The file cannot be used, or nothing can be written.
    """
    assert options.model is not None and options.save_to is not None and options.unit is not None, "all are required"
    file = _read(options.model, options.save_to)
    _check_dylora(file, options.unit)
    largest = max(pair.down.shape[0] for pair in file.modules.values())
    ranks = ranks_of_cuts(largest, options.unit)
    if not ranks:
        raise OptionError(
            f"--unit {options.unit}: {file.path} has rank {largest}, so there is nothing to cut. Give a lower one."
        )
    targets = {rank: options.save_to.with_stem(f"{options.save_to.stem}-{rank:06d}") for rank in ranks}
    if taken := [target for target in targets.values() if target.exists()]:
        raise OptionError(f"--save_to: {taken[0]} is there already. Give another name, or move it away.")
    _write_cuts(file, targets, precision=options.save_precision)
    for rank, target in targets.items():
        logger.info("%s: written, rank %d of %d.", target, rank, largest)


def _write_cuts(file: LoraFile, targets: Mapping[int, Path], *, precision: str | None) -> None:
    """All files or none."""
    largest = max(pair.down.shape[0] for pair in file.modules.values())
    written: list[Path] = []
    try:
        for rank, target in targets.items():
            cut, comment = cut_at(file.modules, rank), f"cut from rank {largest} to {rank}"
            _write(file, target, modules=cut, precision=precision, comment=comment)
            written.append(target)
    except (UserError, KeyboardInterrupt):
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _read(model: Path, target: Path) -> LoraFile:
    check_target(target, {"--model": model})
    file = read_lora(model, "--model")
    check_numbers(file.modules, "--model", model)
    return file


def _tell_small_ranks(file: LoraFile, rule: RankRule) -> None:
    """Where nothing can be saved, as a rank that is asked for is that of the file, or more."""
    wanted = {True: rule.conv_rank, False: rule.rank}
    pairs = file.modules.values()
    kept = [pair for pair in pairs if pair.down.shape[0] < wanted[pair.down.dim() > 2]]
    if kept:
        ranks = [pair.down.shape[0] for pair in kept]
        logger.info(
            "%d of %d modules have a lower rank than asked for (%d to %d) and keep it: a greater one would add zeros.",
            *(len(kept), len(file.modules), min(ranks), max(ranks)),
        )


def _comment(file: LoraFile, modules: Mapping[str, LoraPair], rule: RankRule) -> str | None:
    """What was done; None where no rank has changed."""
    old, new = _ranks(file.modules), _ranks(modules)
    if all(pair.down.shape == modules[name].down.shape for name, pair in file.modules.items()):
        return None
    if rule.method is not None:
        return f"Dynamic resize with {rule.method}: {rule.param} from {old}"
    return f"dimension is resized from {old} to {new}"


def _ranks(modules: Mapping[str, LoraPair]) -> str:
    """Least and greatest rank."""
    ranks = {pair.down.shape[0] for pair in modules.values()}
    return f"{min(ranks)}-{max(ranks)}" if len(ranks) > 1 else str(*ranks)


def _write(
    file: LoraFile,
    target: Path,
    *,
    modules: Mapping[str, LoraPair],
    precision: str | None,
    comment: str | None,
    is_dynamic: bool = False,
) -> None:
    dtype = None if precision is None else precision_dtype(precision)
    tensors = lora_tensors(modules, file.family, layout=file.layout, dtype=dtype)
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise CheckpointError(
            f"--save_precision {precision or 'not set'}: {broken[0]} has numbers too large for the file to write. Give "
            "--save_precision float or bf16."
        )
    write_lora(
        target,
        tensors,
        _metadata(file, target, modules=modules, tensors=tensors, comment=comment, is_dynamic=is_dynamic),
    )


def _metadata(
    file: LoraFile,
    target: Path,
    *,
    modules: Mapping[str, LoraPair],
    tensors: Mapping[str, Tensor],
    comment: str | None,
    is_dynamic: bool,
) -> dict[str, str]:
    """What the source says of itself, with the new sizes and hashes, and what was done before its comment."""
    made = lora_metadata(modules, sources=[file], title=target.stem, family=file.family, tensors=tensors)
    made.pop("modelspec.merged_from", None)  # nothing was
    sizes = ("ss_network_dim", "ss_network_alpha")
    kept = {key: value for key, value in file.metadata.items() if not key.startswith(_STALE)}
    kept |= {key: made[key] for key in ("modelspec.title", "ss_output_name", "ss_network_module")}
    kept |= {key: DYNAMIC if is_dynamic else made[key] for key in sizes}
    if comment:
        kept["ss_training_comment"] = "; ".join(filter(None, (comment, file.metadata.get("ss_training_comment"))))
    if "ss_network_args" in kept:
        kept["ss_network_args"] = _args_without_ranks(kept["ss_network_args"])
    whole = {**made, **kept}
    model_hash, legacy_hash = tensor_hashes(tensors, whole)
    return {**whole, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}


def _args_without_ranks(text: str) -> str:
    """Arguments of the training's network, without the ranks and alphas that are no longer true."""
    try:
        args = json.loads(text)
    except ValueError:
        return text
    if not isinstance(args, dict):
        return text
    endings = ("_dim", "_dims", "_alpha", "_alphas", "unit")
    return json.dumps({name: value for name, value in args.items() if not name.endswith(endings)})


def _check_dylora(file: LoraFile, unit: int) -> None:
    """Refuse what was trained by another module: its first ranks mean nothing by themselves."""
    module = file.metadata.get("ss_network_module")
    if module is None:
        logger.warning("%s does not say how it was trained; only a DyLoRA can be cut with sense.", file.path)
    elif module != _DYLORA:
        raise CheckpointError(
            f"--model {file.path} was trained with {module}, not with {_DYLORA}, so its first ranks are no LoRA by "
            "themselves. Use networks/resize_lora.py for it."
        )
    if not file.metadata.get("modelspec.implementation_version", "").startswith(_OWN):
        logger.warning(
            "%s does not say that Easel has trained it. Other trainers let all ranks act in every pass, and then the "
            "first ranks lean on those that a cut leaves out. networks/resize_lora.py serves such files better.",
            file.path,
        )
    trained = _unit_of(file.metadata.get("ss_network_args", "{}"))
    if trained and unit % trained:
        logger.warning(
            "--unit %d is no multiple of %d, the unit of the training: ranks in between were not trained to be cut at.",
            *(unit, trained),
        )


def _unit_of(args: str) -> int | None:
    try:
        return int(json.loads(args).get("unit", 1))
    except (ValueError, TypeError, AttributeError):
        return None
