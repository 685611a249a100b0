"""The schedule of noise that a diffusers folder names: its betas, and whether it is one that can be trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError
from library.families.unet.marks import SCHEDULER
from library.families.unet.parts import MODEL_OPTION
from library.log import get_logger

if TYPE_CHECKING:
    from library.diffusion.betas import BetaSchedule
    from library.families.unet.checkpoint import UnetFiles

logger = get_logger(__name__)

_PREDICTIONS = ("epsilon", "v_prediction")
_OTHER_MODELS = ("EDM", "FlowMatch")  # how classes of schedulers begin that are for other kinds of models
_NAMES = {"kind": "beta_schedule", "first": "beta_start", "last": "beta_end"}
# what schedulers of diffusers take for a setting that is left out: most of them, and the others by their class
_LEFT_OUT: dict[str, Any] = {"kind": "linear", "first": 0.0001, "last": 0.02}
_SMALL: dict[str, Any] = {"first": 0.00085, "last": 0.012}
_LEFT_OUT_OF = {
    "HeunDiscreteScheduler": _SMALL,
    "KDPM2DiscreteScheduler": _SMALL,
    "KDPM2AncestralDiscreteScheduler": _SMALL,
    "LCMScheduler": {"kind": "scaled_linear", **_SMALL},
    "TCDScheduler": {"kind": "scaled_linear", **_SMALL},
}
_LEAST_KEPT = 1e-12  # share of the picture at the last step; with less, float32 does not tell the last steps apart


def read_schedule(files: UnetFiles) -> BetaSchedule:
    """The schedule of a model; of a file, which names none, the published one. Another one is told.

    Raises:
        CheckpointError: The scheduler of the folder is for models of another kind, or its settings are unknown.
    """
    from library.diffusion.betas import PUBLISHED

    if fault := schedule_fault(files.scheduler):
        raise CheckpointError(
            f"{MODEL_OPTION}: {files.path / SCHEDULER}: {fault}. Put the scheduler there that the model was made for, "
            "or use another model."
        )
    schedule = schedule_of(files.scheduler)
    if schedule != PUBLISHED:
        logger.warning(
            "%s has a schedule of noise of its own (%s), which is followed. Only folders can say so: programs that "
            "open a single file take the usual one.",
            files.path,
            in_words(schedule),
        )
    return schedule


def in_words(schedule: BetaSchedule) -> str:
    """For messages."""
    return "trained_betas" if schedule.values else f"{schedule.kind}, {schedule.first:g} to {schedule.last:g}"


def names_schedule(settings: Mapping[str, Any]) -> bool:
    """Whether settings of a scheduler name a schedule, be it by the class whose betas they leave as they are."""
    return any(settings.get(name) is not None for name in (*_NAMES.values(), "trained_betas", "_class_name"))


def schedule_of(settings: Mapping[str, Any]) -> BetaSchedule:
    """The schedule of sound settings of a scheduler, as diffusers reads them; the published one where none is named."""
    from library.diffusion.betas import PUBLISHED, BetaSchedule

    if not names_schedule(settings):
        return PUBLISHED
    if settings.get("trained_betas") is not None:
        return BetaSchedule(values=tuple(float(value) for value in settings["trained_betas"]))
    given = {key: settings[name] for key, name in _NAMES.items() if settings.get(name) is not None}
    named = {**_LEFT_OUT, **_LEFT_OUT_OF.get(str(settings.get("_class_name")), {}), **given}
    if named["kind"] == "squaredcos_cap_v2":
        return BetaSchedule(kind=named["kind"])
    return BetaSchedule(**named)


def schedule_settings(schedule: BetaSchedule) -> dict[str, Any]:
    """The settings of a scheduler that say so."""
    named = {name: getattr(schedule, key) for key, name in _NAMES.items()}
    return {"num_train_timesteps": 1000, **named, "trained_betas": list(schedule.values) or None}


def schedule_fault(settings: Mapping[str, Any]) -> str | None:
    """Why a model with such a scheduler cannot be trained or drawn; None where it can."""
    return next(_faults(settings), None) or next(_faults_of_levels(schedule_of(settings)), None)


def _faults_of_levels(schedule: BetaSchedule) -> Iterator[str]:
    """Of betas that are numbers between 0 and 1, but no schedule."""
    from library.diffusion.ddpm import alphas_cumprod

    kept = alphas_cumprod(schedule.betas())
    if kept[-1] < _LEAST_KEPT:
        yield f"its betas ({in_words(schedule)}) are so large that nothing of a picture is left before the last step"
    if not bool((kept.sqrt().diff() < 0).all()):
        yield f"its betas ({in_words(schedule)}) are so small that steps add no noise"


def _faults(settings: Mapping[str, Any]) -> Iterator[str]:
    from library.diffusion.betas import BETA_SCHEDULES

    name, predicted = str(settings.get("_class_name", "")), settings.get("prediction_type") or "epsilon"
    if name.startswith(_OTHER_MODELS):
        yield f"{name} is for models of another kind, which are neither trained nor drawn as this one"
    if predicted not in _PREDICTIONS:
        yield f"prediction_type {predicted!r} is not known; known are {' and '.join(_PREDICTIONS)}"
    if (steps := settings.get("num_train_timesteps")) not in (None, 1000):
        yield f"num_train_timesteps is {steps!r}, and has to be 1000"
    kind, values = settings.get("beta_schedule"), settings.get("trained_betas")
    if values is not None:
        if not isinstance(values, list) or len(values) != 1000 or not all(_is_beta(value) for value in values):
            yield "trained_betas has to be 1000 numbers between 0 and 1"
        return
    if kind not in (None, *BETA_SCHEDULES):
        yield f"beta_schedule {kind!r} is not known; known are {', '.join(BETA_SCHEDULES)}"
    for key in ("beta_start", "beta_end"):
        if settings.get(key) is not None and not _is_beta(settings[key]):
            yield f"{key} is {settings[key]!r}, and has to be a number between 0 and 1"


def _is_beta(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 < value < 1
