"""Whole models of one family merged into one: a weighted average, or one with the difference of two others added.

Tensors are merged and written one after the other, so that no more than one of each model is in memory. A tensor that
another model lacks counts as that of the first; what is no weight is always that of the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from library.checkpoint.tensor_stream import refuse_overflow
from library.errors import OptionError
from library.log import get_logger
from library.model_files.about import about_merged
from library.model_files.mergeable import DENOISER, Mergeable, check_alike, open_mergeable
from library.model_files.options.merging import MergeOptions
from library.model_files.options.precisions import dtype_of
from library.model_files.places import check_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.families.whole_model import Plan

logger = get_logger(__name__)


def merge_models(options: MergeOptions) -> None:
    """Merge the models and write the result.

    Raises:
        CheckpointError: A model cannot be used, or they do not fit each other.
        OptionError: The target is also read, or there is no denoiser for --unet_only.
        EnvironmentFault: There is no such device.
        OutputError: It cannot be written; what was at the target still is.
    """
    from library.checkpoint.tensor_stream import pickle_planned, write_planned
    from library.device import check_device

    target = options.output
    assert target is not None  # the parser has made sure
    check_file(target, options.sources, "--output")
    models = [open_mergeable(path, allow_pickle=options.allow_pickle) for path in options.sources]
    check_alike(models)
    check_device(options.device, "--device")
    _tell_other_predictions(models)
    _report_skipped(models, options)
    plan = plan_merged(models, options)
    if target.suffix.lower() == ".ckpt":
        pickle_planned(target, plan)
    else:
        first = models[0]
        write_planned(target, plan, about_merged(first.metadata, first.kind.name, options.sources, target))
    logger.info("%s is written: %d models, %d tensors.", target, len(models), len(plan))


def plan_merged(models: Sequence[Mergeable], options: MergeOptions) -> Plan:
    """What is written, under the names of the first model.

    Raises:
        OptionError: `--unet_only`, and the first model has no denoiser.
    """
    from library.checkpoint.tensor_stream import PlannedTensor
    from library.tensorfile import torch_dtype

    first, saved = models[0], dtype_of(options.saving_precision)
    assert saved is not None
    if options.unet_only and not any(name.startswith(DENOISER) for name in first.floats):
        raise OptionError(f"--unet_only: {first.path} has no denoiser under the names that are known. Leave it out.")
    plan: Plan = {}
    for name, key in first.floats.items():
        fetch = partial(_merged, models, name, options, saved)
        plan[key] = PlannedTensor(first.shape(name), saved, fetch)
    for key in first.others:
        info = first.files.tensors[key]
        plan[key] = PlannedTensor(info.shape, torch_dtype(info.dtype), partial(first.read_other, key))
    return plan


def _merged(models: Sequence[Mergeable], name: str, options: MergeOptions, saved: torch.dtype) -> Tensor:
    """One tensor, in the type of the file."""
    dtype = dtype_of(options.precision)
    assert dtype is not None
    is_kept = options.unet_only and not name.startswith(DENOISER)
    readers = [model if name in model.floats else models[0] for model in models]
    if is_kept or (options.add_difference and models[0] in readers[1:]):
        result = models[0].read(name, saved, options.device)
    elif options.add_difference:
        tensors = (model.read(name, dtype, options.device) for model in readers)
        result = added_difference(tensors, options.factors[0])
    else:
        factors = joint_factors(readers, options.factors)
        result = weighted_sum(((model.read(name, dtype, options.device), factor) for model, factor in factors), dtype)
    return _saved(result, saved, f"{options.output}: {name}")


def joint_factors(readers: Sequence[Mergeable], factors: Sequence[float]) -> list[tuple[Mergeable, float]]:
    """(model to read, factor), each model once; one that is read in the place of others has their factors too."""
    joint: dict[int, tuple[Mergeable, float]] = {}
    for model, factor in zip(readers, factors, strict=True):
        joint[id(model)] = (model, joint.get(id(model), (model, 0.0))[1] + factor)
    return list(joint.values())


def weighted_sum(terms: Iterator[tuple[Tensor, float]], dtype: torch.dtype) -> Tensor:
    """The sum of factor x tensor. What has the factor 0 is passed over, so that a factor of 1 alone changes no bit.

    Args:
        terms: (tensor, factor); at least one.
        dtype: That is computed in.
    """
    import torch

    total: Tensor | None = None
    shape: tuple[int, ...] = ()
    for tensor, factor in terms:
        shape = tuple(tensor.shape)
        if factor == 0:
            continue
        scaled = tensor if factor == 1 else tensor * factor
        total = scaled if total is None else total + scaled
    return torch.zeros(shape, dtype=dtype) if total is None else total


def added_difference(tensors: Iterator[Tensor], ratio: float) -> Tensor:
    """The first + ratio x (the second - the third)."""
    base, learned, origin = tensors
    return base + ratio * (learned - origin)


def _saved(tensor: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    written = tensor.to(dtype)
    refuse_overflow(what, written, "Use --saving_precision bf16 or float.")
    return written


def _tell_other_predictions(models: Sequence[Mergeable]) -> None:
    """A model that predicts the noise and one that predicts the velocity have nothing in common but their names."""
    first = models[0]
    for model in models[1:]:
        if model.prediction != first.prediction and None not in (model.prediction, first.prediction):
            logger.warning(
                "%s predicts %s, %s predicts %s: a mixture of both mostly draws nothing. The result is marked as the "
                "first one.",
                first.path,
                first.prediction,
                model.path,
                model.prediction,
            )


def _report_skipped(models: Sequence[Mergeable], options: MergeOptions) -> None:
    """Tell what is not merged: by number, and with --show_skipped by name."""
    first = models[0]
    skipped: Mapping[str, Sequence[str]] = {
        f"no weights, taken from {first.path}": sorted(first.others),
        **{
            f"not in {model.path}, taken from {first.path}": sorted(first.floats.keys() - model.floats.keys())
            for model in models[1:]
        },
        **{
            f"only in {model.path}, left out": sorted(model.floats.keys() - first.floats.keys()) for model in models[1:]
        },
    }
    if options.unet_only:
        kept = sorted(name for name in first.floats if not name.startswith(DENOISER))
        skipped = {f"not of the denoiser, taken from {first.path}": kept, **skipped}
    for reason, names in skipped.items():
        if not names:
            continue
        logger.info("not merged: %d tensor%s (%s).", len(names), "s" * (len(names) > 1), reason)
        for name in names if options.show_skipped else ():
            logger.info("  %s", name)
