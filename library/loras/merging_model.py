"""LoRAs merged into a model's file: each tensor is read, changed and written before the next.

What no LoRA touches is copied byte for byte, unless another precision is asked for. Sums are computed on wide weights
and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from typing import TYPE_CHECKING

from library.checkpoint.tensor_stream import (
    PlannedTensor,
    pickle_planned,
    refuse_overflow,
    write_planned,
    written_dtype,
)
from library.checkpoint.weights import (
    FLOATS,
    FP8_MARKS,
    Part,
    StoredWeight,
    WeightFiles,
    open_weights,
    select_part,
    stored_weights,
)
from library.errors import CheckpointError
from library.families.detect import FileKind, file_kind
from library.families.lora_layout import LoraPair
from library.families.unet.marks import NOISE, VELOCITY, file_marks
from library.log import get_logger
from library.loras.lora_family import FAMILY_TITLES
from library.loras.lora_file import check_target, is_pickle
from library.loras.lora_metadata import PREDICTIONS, prediction_of
from library.loras.merged_model_metadata import model_metadata
from library.loras.merging import UNROUNDED, check_sums, size_of
from library.loras.merging_inputs import OPTION, MergeInput, read_inputs
from library.loras.merging_places import Place, Places, check_modules, family_of_model, places_in
from library.pickled import tensor_reader
from library.tensorfile import TensorInfo, torch_dtype

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from library.loras.options.merging import MergeOptions
    from networks.oft_adapter import Rotation

MODEL_OPTION = "--sd_model"
_FP8 = ("F8_E4M3", "F8_E5M2")
_SETTINGS = ("denoiser.", "model_ema.decay", "model_ema.num_updates")  # numbers beside the networks
_ENCODERS = "lora_te"

logger = get_logger(__name__)

_Weights = Callable[[], Mapping[str, StoredWeight]]


@dataclass(frozen=True)
class Step:
    """What one module of one file does to a tensor."""

    place: Place
    change: LoraPair | Rotation
    strength: float


def merge_into_model(options: MergeOptions, families: Collection[str]) -> None:
    """Merge as networks/merge_lora.py does with --sd_model.

    Args:
        options: Of the script.
        families: Those that it takes.

    Raises:
        UserError: A file cannot be used, the files do not fit each other, or the result cannot be written.
    """
    from library.device import precision_dtype

    assert options.sd_model is not None and options.save_to is not None and options.models is not None
    sources = {f"{OPTION} {path}": path for path in options.models} | {MODEL_OPTION: options.sd_model}
    check_target(options.save_to, sources)
    source, kind, family = _open_model(options, families)
    advice = f"Give LoRAs of the family of {MODEL_OPTION} {source.path}, which is {kind.title}."
    _, inputs = read_inputs(options, (family,), advice=advice, takes_oft=True)
    if options.skip_text_encoders:
        inputs = [_without_encoders(given) for given in inputs]
    _tell_other_predictions(source, inputs)
    places = _places(source, kind)
    steps = _steps(inputs, places, source)
    wanted = precision_dtype(options.save_precision) if options.save_precision else None
    _refuse_narrow(source, steps, wanted)
    differing: set[str] = set()
    plan = _plan(source, steps, wanted, precision=precision_dtype(options.precision), differing=differing)
    if not is_pickle(options.save_to):
        metadata = None if options.no_metadata else model_metadata(source, kind, inputs, options.save_to.stem, wanted)
        write_planned(options.save_to, plan, metadata)
    else:
        pickle_planned(options.save_to, plan)
    _tell(options.save_to, len(differing), len(steps), len(plan))


def _tell(target: Path, num_changed: int, num_merged: int, num_tensors: int) -> None:
    logger.info("%s: %d of %d tensors changed", target, num_changed, num_tensors)
    if num_changed < num_merged:
        logger.warning(
            "%s: of %d tensors that LoRAs are merged into, %d stay what they were: what is added is zero, or smaller "
            "than the steps between their numbers.",
            *(target, num_merged, num_merged - num_changed),
        )


def _tell_other_predictions(source: WeightFiles, inputs: Sequence[MergeInput]) -> None:
    """LoRAs that are for models which predict something else than this one says; SD3 has no such kinds."""
    marks = file_marks(source.tensors, source.headers[0].metadata)
    own = "v" if VELOCITY in marks else ("epsilon" if NOISE in marks else None)
    for given in inputs:
        said = prediction_of(given.lora) if given.lora is not None and given.ratio else None
        if own is not None and said in PREDICTIONS and said != own:
            logger.warning(
                "%s is for models that predict %s, and %s says that it predicts %s. The merged model says so too.",
                *(given.path, PREDICTIONS[said], source.path, PREDICTIONS[own]),
            )


def _open_model(options: MergeOptions, families: Collection[str]) -> tuple[WeightFiles, FileKind, str]:
    path = options.sd_model
    assert path is not None
    if path.is_dir():
        raise CheckpointError(
            f"{MODEL_OPTION}: {path} is a folder. Give a single file; a folder of diffusers becomes one with "
            "tools/convert_diffusers20_original_sd.py."
        )
    source = open_weights(path, MODEL_OPTION, allow_pickle=options.allow_pickle)
    kind = file_kind(source.shapes())
    family = family_of_model(kind)
    if family is None or family not in families:
        wanted = " or ".join(FAMILY_TITLES[name] for name in families)
        advice = "Use networks/merge_lora.py, which takes all of them." if family else "Give the base model."
        raise CheckpointError(f"{MODEL_OPTION}: {path} is {kind.title}, not a model of {wanted}. {advice}")
    return source, kind, family


def _without_encoders(given: MergeInput) -> MergeInput:
    kept = {name: change for name, change in given.changes.items() if not name.startswith(_ENCODERS)}
    if not kept:
        raise CheckpointError(
            f"{OPTION}: {given.path} changes text encoders only, and --skip_text_encoders leaves them out. "
            "Leave out the option, or the file."
        )
    return replace(given, changes=kept)


def _places(source: WeightFiles, kind: FileKind) -> Places:
    try:
        return places_in(source, kind)
    except CheckpointError as error:
        told = str(error).removeprefix("--pretrained_model_name_or_path: ").removeprefix(f"{source.path}: ")
        raise CheckpointError(f"{MODEL_OPTION}: {source.path}: {told}") from None


# Which file does what to which tensor


def _steps(inputs: Sequence[MergeInput], places: Places, source: WeightFiles) -> dict[str, list[Step]]:
    """{tensor: what is done to it, in the order of the files}"""
    for given in inputs:
        check_modules(given.changes, places, f"{OPTION}: {given.path}", str(source.path))
    steps: dict[str, list[Step]] = {}
    for key, found in places.by_tensor.items():
        for given in inputs:
            for place in found:
                change = given.changes.get(place.module)
                if change is None:
                    continue
                _check_size(place, change, source.tensors[key], given, source)
                if strength := given.strength(place.module):
                    steps.setdefault(key, []).append(Step(place, change, strength))
    _refuse_nothing(inputs)
    return steps


def _refuse_nothing(inputs: Sequence[MergeInput]) -> None:
    """LoRAs that take each other away. What turns weights is never taken for nothing."""
    sums: dict[str, list[tuple[LoraPair, float]]] = {}
    for given in inputs:
        for name, change in given.changes.items():
            if strength := given.strength(name):
                if not isinstance(change, LoraPair):
                    return
                sums.setdefault(name, []).append((change, strength))
    check_sums(sums.values())


def _check_size(
    place: Place, change: LoraPair | Rotation, info: TensorInfo, given: MergeInput, source: WeightFiles
) -> None:
    rows, columns = info.shape[0] // place.rows[1] * place.change[1], prod(info.shape[1:])
    if isinstance(change, LoraPair):
        size = size_of(change)
        found = (size[0], prod(size[1:]))
    else:
        found = (change.num_outputs, columns)
    if found != (rows, columns):
        raise CheckpointError(
            f"{OPTION}: {given.path} is for another size of model: {place.module} is {found[0]} x {found[1]} there and "
            f"{rows} x {columns} in {source.path}. Give a LoRA of this model."
        )


def _refuse_narrow(source: WeightFiles, steps: Collection[str], wanted: torch.dtype | None) -> None:
    """Most of what a LoRA adds is smaller than the steps between numbers of 8 bits."""
    types = {key: source.tensors[key].dtype for key in steps}
    if key := next((key for key, dtype in types.items() if dtype not in FLOATS), None):
        raise CheckpointError(
            f"{MODEL_OPTION}: {source.path}: {key} is stored as {types[key]}. Use an fp16, bf16, fp32 or fp8 file."
        )
    if wanted is None and (key := next((key for key, dtype in types.items() if dtype in _FP8), None)):
        raise CheckpointError(
            f"{MODEL_OPTION}: {source.path} is in fp8 ({key}), where most of a LoRA would be rounded away. "
            "Give --save_precision fp16 or bf16."
        )


# What is written


def _plan(
    source: WeightFiles,
    steps: Mapping[str, Sequence[Step]],
    wanted: torch.dtype | None,
    *,
    precision: torch.dtype,
    differing: set[str],
) -> dict[str, PlannedTensor]:
    """All tensors of the new file. Those that are not what they were are put into `differing` as they are written."""
    (header,) = source.headers
    reader = tensor_reader(header, mmap=False)  # pages of a mapped file would stay in the memory of the process
    part = _networks(source)
    weights = cache(lambda: {weight.key: weight for weight in stored_weights(part, mmap=False)})
    plan = {}
    for key, info in source.tensors.items():
        dtype = written_dtype(torch_dtype(info.dtype), wanted)
        if key in steps:
            fetch = partial(_merged, weights, key, steps[key], types=(precision, dtype), differing=differing)
            plan[key] = PlannedTensor(info.shape, dtype, fetch)
        elif key in part.names and wanted is not None:
            plan[key] = PlannedTensor(info.shape, dtype, partial(_wide, weights, key, dtype))
        elif wanted is None or not key.endswith(FP8_MARKS):  # which belong to weights that are not in fp8 any more
            plan[key] = PlannedTensor(info.shape, torch_dtype(info.dtype), partial(reader.read, key))
    return plan


def _networks(source: WeightFiles) -> Part:
    """All weights of the file, with the scales of those in fp8."""
    names = [key for key, info in source.tensors.items() if info.dtype in FLOATS and not _is_setting(key, info)]
    marks = [key for key in source.tensors if key.endswith(FP8_MARKS)]
    return select_part("model", source, {key: key for key in (*names, *marks)})


def _is_setting(key: str, info: TensorInfo) -> bool:
    """What is no weight of a network: schedules of noise, marks, counters."""
    return not prod(info.shape) or key.startswith(_SETTINGS) or ("." not in key and len(info.shape) < 2)


def _wide(weights: _Weights, key: str, dtype: torch.dtype) -> Tensor:
    return weights()[key].wide(dtype)


def _merged(
    weights: _Weights, key: str, steps: Sequence[Step], *, types: tuple[torch.dtype, torch.dtype], differing: set[str]
) -> Tensor:
    """As it is written; `types` are those of the computation and of the file."""
    import torch

    precision, dtype = types
    before = weights()[key].wide(precision)
    after = changed(before, steps)
    refuse_overflow(f"{key}, with what is merged into it,", after, UNROUNDED)
    if not torch.equal(after.to(dtype), before.to(dtype)):
        differing.add(key)
    return after


def changed(weight: Tensor, steps: Sequence[Step]) -> Tensor:
    """A weight with everything that is done to it, one after the other, in its own type."""
    result = weight.clone()
    for step in steps:
        rows = result.T if step.place.is_transposed else result
        index, count = step.place.rows
        rows = rows.chunk(count)[index]
        rows += _change(rows, step)
    return result


def _change(rows: Tensor, step: Step) -> Tensor:
    """What is added to some rows. Shape of `rows`."""
    from networks.oft_adapter import turned

    if not isinstance(step.change, LoraPair):
        turn = step.change.turn() * step.strength
        return turned(rows.to(turn.dtype), turn, 0).to(rows.dtype)
    index, count = step.place.change
    up = step.change.up.flatten(1).chunk(count)[index]
    if step.place.is_swapped:
        up = up.roll(up.shape[0] // 2, 0)
    down = step.change.down.flatten(1)
    product = (up.to(rows.dtype) @ down.to(rows.dtype)) * (step.change.scale * step.strength)
    return product.reshape(rows.shape)
