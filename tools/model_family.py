"""The model family that a tool works for: what the options say, or what the model file holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from library.errors import CheckpointError, OptionError
from library.families.detect import denoiser_place, file_kind
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
    own = options_of_family(options, name)
    for line in own.warnings:
        logger.warning("%s", line)
    return cast("ModelFamily", _family_class(name).from_options(own)), own


def _family_class(name: str) -> Any:
    if name == "sd3":
        from library.families.sd3.family import Sd3Family

        return Sd3Family
    if name == "sdxl":
        from library.families.sdxl.family import SdxlFamily

        return SdxlFamily
    from library.families.sd.family import SdFamily

    return SdFamily


def _family_of_model(options: AnyFamilyOptions) -> str:
    from library.checkpoint.weights import open_weights

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
    place, allow_pickle = denoiser_place(path), options.model.allow_pickle
    weights = open_weights(place, "--pretrained_model_name_or_path", allow_pickle=allow_pickle)
    kind = file_kind(weights.shapes())
    for name, family in FAMILIES.items():
        if kind.name in family.kinds:
            return name
    known = ", ".join(family.title for family in FAMILIES.values())
    raise CheckpointError(f"--pretrained_model_name_or_path: {path} is {kind.title}. This works for {known}.")
