"""A whole model in another layout: one file or a diffusers folder, of any family, in both directions.

Everything is planned from headers and then written tensor by tensor. Names and shapes are those of the published
files, see library/families/<name>/export.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError, OptionError
from library.families.detect import SD1, SD2, SD3
from library.families.unet.folder_schedule import (
    in_words,
    names_schedule,
    schedule_fault,
    schedule_of,
    schedule_settings,
)
from library.families.unet.marks import FLAGS, SCHEDULER, TENSORS, VELOCITY, ZERO_TERMINAL
from library.log import get_logger
from library.model_files.about import about_model
from library.model_files.options.converting import ConversionOptions, is_file_name
from library.model_files.options.metadata_text import read_metadata
from library.model_files.options.precisions import dtype_of
from library.model_files.places import check_file, check_folder, naming
from library.model_files.whole import WholeModel, find_whole_model

if TYPE_CHECKING:
    from library.families.model_folder import ModelFolder
    from library.models.tokenizers import TokenizerSet

_SOURCE, _TARGET, _REFERENCE = "MODEL_TO_LOAD", "MODEL_TO_SAVE", "--reference_model"
_PREDICTED, _ZERO = "prediction_type", "rescale_betas_zero_snr"

logger = get_logger(__name__)


def convert_model(options: ConversionOptions) -> None:
    """Read a model and write it in the layout that the target's name asks for.

    Raises:
        CheckpointError: The model or the reference cannot be used.
        OptionError: Options do not go with the model, or the target is no place for it.
        OutputError: It cannot be written; what was at the target still is.
    """
    source, target = options.model_to_load, options.model_to_save
    assert source is not None and target is not None  # the parser has made sure
    model = find_whole_model(
        source,
        _SOURCE,
        variant=options.variant if source.is_dir() else None,
        allow_pickle=options.allow_pickle,
        prediction_type=options.prediction_type,
        zero_terminal_snr=options.zero_terminal_snr,
    )
    _check_options(options, model)
    _tell(model, options.precision)
    if is_file_name(target):
        check_file(target, model.sources, _TARGET)
        _write_file(model, target, options)
    else:
        check_folder(target, model.sources, _TARGET)
        _write_folder(model, target, options)
    logger.info("%s is written.", target)


def _check_options(options: ConversionOptions, model: WholeModel) -> None:
    for flag, is_given, kind in (("--v1", options.v1, SD1), ("--v2", options.v2, SD2)):
        if is_given and model.kind != kind:
            raise OptionError(
                f"{flag}: {model.path} is {model.kind.title}. Leave {flag} out: the file says what it is."
            )
    target, source = options.model_to_save, options.model_to_load
    if options.variant is not None and source is not None and not source.is_dir() and is_file_name(target or Path()):
        raise OptionError("--variant is for diffusers folders, and neither model is one. Leave it out.")


def _tell(model: WholeModel, precision: str) -> None:
    logger.info("%s is %s with %s.", model.path, model.kind.title, ", ".join(model.parts))
    stored = {info.dtype for part in model.parts.values() for info in _infos(part)}
    if precision == "no" and any(dtype.startswith("F8") for dtype in stored):
        logger.info("weights in fp8 are written as fp16, which all programs read.")


def _infos(part: Any) -> list[Any]:
    return [part.source.tensors[name] for name in part.names]


# One file


def _write_file(model: WholeModel, target: Path, options: ConversionOptions) -> None:
    from library.checkpoint.tensor_stream import pickle_planned, write_planned

    _tell_lost_schedule(model, target)
    plan = model.single_file(dtype_of(options.precision))
    if target.suffix.lower() == ".ckpt":
        pickle_planned(target, plan, beside={"epoch": options.epoch, "global_step": options.global_step})
        _tell_lost_marks(model, target)
        return
    about = about_model(
        model.metadata,
        target,
        architecture=model.architecture,
        prediction_type=model.prediction_type,
        resolution=model.resolution,
        marks=model.marks,
    )
    write_planned(target, plan, {**about, **(read_metadata(options.metadata) if options.metadata else {})})


def _tell_lost_schedule(model: WholeModel, target: Path) -> None:
    settings = _own_scheduler(model)
    fault = schedule_fault(settings)
    own = None if fault else schedule_of(settings)
    if own != schedule_of({}):
        logger.warning(
            "%s cannot say what the scheduler of %s says (%s): programs take the usual schedule of noise for it.",
            target,
            model.path,
            fault if own is None else in_words(own),
        )


def _own_scheduler(model: WholeModel) -> Mapping[str, Any]:
    """Settings of the scheduler of a U-Net model that is a folder; empty where there are none."""
    settings: Mapping[str, Any] = {} if model.kind == SD3 else model.files.scheduler
    return settings


def _tell_lost_marks(model: WholeModel, target: Path) -> None:
    if model.kind in (SD1, SD2) and model.marks & set(TENSORS):
        logger.warning(
            "%s cannot say what the model was trained for, .safetensors files and folders can. Use it with %s.",
            target,
            " and ".join(flag for mark, flag in FLAGS.items() if mark in model.marks),
        )


# A folder


def _write_folder(model: WholeModel, target: Path, options: ConversionOptions) -> None:
    from library.families.model_folder import write_model_folder

    folder = replace(model.folder(dtype_of(options.precision)), variant=options.variant)
    if VELOCITY not in model.marks and not model.is_said:  # programs take noise where nothing is said
        folder = replace(folder, scheduler=_without(folder.scheduler, _PREDICTED))
    if options.reference_model is None:
        _tell_unknown_schedule(model, "the usual scheduler")
        write_model_folder(target, folder, partial(_tokenizers, model, None))
        return
    place = _reference_folder(Path(options.reference_model))
    tokenizers = _tokenizers(model, place)
    scheduled = _with_scheduler(folder, place, model)
    _tell_unknown_schedule(model, "the usual scheduler" if scheduled is folder else f"the scheduler of {place}")
    write_model_folder(target, scheduled, lambda: tokenizers)


def _tell_unknown_schedule(model: WholeModel, instead: str) -> None:
    if fault := schedule_fault(_own_scheduler(model)):
        logger.warning("%s: %s. The folder that is written gets %s.", model.path / SCHEDULER, fault, instead)


def _tokenizers(model: WholeModel, place: Path | None) -> TokenizerSet:
    with naming(_REFERENCE, tokenizer_dir=_REFERENCE):
        return model.tokenizers(place)


def _reference_folder(path: Path) -> Path:
    if not path.is_dir():
        raise OptionError(
            f"{_REFERENCE} {path} is not a folder on this machine. Download its scheduler and tokenizer folders, or "
            "leave the option out: the usual scheduler is written then."
        )
    return path


def _with_scheduler(folder: ModelFolder, reference: Path, model: WholeModel) -> ModelFolder:
    """The same folder with the scheduler of another one, which is told what this model predicts."""
    settings = _read_scheduler(reference)
    if settings is None:
        logger.info("%s has no scheduler: the usual one is written.", reference)
        return folder
    if ZERO_TERMINAL in model.marks and not settings.get(_ZERO):
        logger.warning(
            "the scheduler of %s never reaches pure noise, this model does: the usual one is written.", reference
        )
        return folder
    if settings.get(_ZERO) and ZERO_TERMINAL not in model.marks:
        logger.warning("the scheduler of %s is for other models: its %s is taken out.", reference, _ZERO)
        settings = _without(settings, _ZERO)
    own = folder.scheduler.get(_PREDICTED, "epsilon")
    if model.kind != SD3 and settings.get(_PREDICTED, "epsilon") != own:
        logger.warning("the scheduler of %s is for other models: its prediction_type becomes %s.", reference, own)
        settings = {**settings, _PREDICTED: own}
    betas = _betas_of_model(settings, model)
    if schedule_fault({**settings, **betas}) and betas:
        logger.warning("the scheduler of %s is for models of another kind: the usual one is written.", reference)
        return folder
    if betas:
        told = in_words(schedule_of(betas))
        logger.warning("the scheduler of %s is for other models: its betas become %s.", reference, told)
        settings = {**settings, **betas}
    index = {**folder.index, "scheduler": ["diffusers", settings["_class_name"]]}
    return replace(folder, scheduler=settings, index=index)


def _betas_of_model(settings: Mapping[str, Any], model: WholeModel) -> dict[str, Any]:
    """The settings that turn a scheduler's schedule into the one that a model names; empty where it is that, or the
    model names none that is known."""
    own = _own_scheduler(model)
    if not names_schedule(own) or schedule_fault(own):
        return {}
    named = schedule_of(own)
    is_same = schedule_fault(settings) is None and schedule_of(settings) == named
    return {} if is_same else schedule_settings(named)


def _without(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != key}


def _read_scheduler(reference: Path) -> dict[str, Any] | None:
    path = reference / SCHEDULER
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings["_class_name"], str):
            raise ValueError("no class")
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{_REFERENCE}: {path} is damaged. Download or copy it again.") from None
    return dict(settings)
