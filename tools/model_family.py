"""The model family that a tool works for: what the options say, or what the model file holds."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from library.errors import CheckpointError, OptionError
from library.families.detect import FileKind, denoiser_place, file_kind
from library.families.hub_model import is_hub_name
from library.log import get_logger
from tools.family_options import FAMILIES, AnyFamilyOptions, AnyToolOptions, options_of_family

if TYPE_CHECKING:
    from library.families.base import ModelFamily

_DEFAULT = "sd3"  # where there is no model file, and nothing is said

logger = get_logger(__name__)


def choose_family(options: AnyToolOptions) -> tuple[ModelFamily, AnyToolOptions]:
    """The family and its options, told by a flag such as `--sdxl` or from the headers of the base model.

    Raises:
        CheckpointError: The base model is of no family, or cannot be read.
        OptionError: It has to be downloaded first; or an option does not go with the family.
    """
    name = options.family.chosen or _family_of_model(options)
    if options.family.chosen:
        _check_choice(options, name)
    own = options_of_family(options, name)
    for line in own.warnings:
        logger.warning("%s", line)
    family = _family_class(name).from_options(own)
    if name != "sd3":  # nothing is predicted here, so what the model predicts need not be said
        family = replace(family, follows_marks=True)
    return cast("ModelFamily", family), own


def _family_class(name: str) -> Any:
    if name == "sd3":
        from library.families.sd3.family import Sd3Family

        return Sd3Family
    if name == "sdxl":
        from library.families.sdxl.family import SdxlFamily

        return SdxlFamily
    from library.families.sd.family import SdFamily

    return SdFamily


def _check_choice(options: AnyFamilyOptions, name: str) -> None:
    """Refuse a flag that says another family than the file. What is wrong with the file itself is told by the family.

    Raises:
        OptionError: It is of another family that a tool works for.
    """
    given = options.model.pretrained_model_name_or_path
    if not given or not Path(given).exists():
        return
    with suppress(CheckpointError):
        kind = _kind_of_file(Path(given), options)
        if any(kind.name in family.kinds for key, family in FAMILIES.items() if key != name):
            raise OptionError(f"--{name}: {given} is {kind.title}. Leave out --{name}: the file says what it is.")


def _family_of_model(options: AnyFamilyOptions) -> str:
    given = options.model.pretrained_model_name_or_path
    if not given:
        logger.info("no --pretrained_model_name_or_path: captions are read as by %s.", FAMILIES[_DEFAULT].title)
        return _DEFAULT
    path = Path(given)
    if is_hub_name(path):
        raise OptionError(
            f"--pretrained_model_name_or_path: {given} is not on this machine, so its files do not tell its family. "
            "Say it with --sd or --sdxl, or check the path."
        )
    kind = _kind_of_file(path, options)
    for name, family in FAMILIES.items():
        if kind.name in family.kinds:
            return name
    known = ", ".join(family.title for family in FAMILIES.values())
    raise CheckpointError(f"--pretrained_model_name_or_path: {path} is {kind.title}. This works for {known}.")


def _kind_of_file(path: Path, options: AnyFamilyOptions) -> FileKind:
    from library.checkpoint.weights import open_weights

    option, allow_pickle = "--pretrained_model_name_or_path", options.model.allow_pickle
    return file_kind(open_weights(denoiser_place(path), option, allow_pickle=allow_pickle).shapes())
