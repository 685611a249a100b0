"""Options of the tools that fill caches before a training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt

_LATER_FLUX = "caches for FLUX"


@dataclass(frozen=True, kw_only=True)
class FamilyChoiceOptions(OptionGroup):
    """For which family of models a tool works."""

    title: ClassVar[str] = "Family of the model"

    sd: bool = opt(False, "The base model is Stable Diffusion 1.x or 2.x. Not needed: its file says so.")
    sdxl: bool = opt(False, "The base model is SDXL. Not needed: its file says so.")
    sd3: bool = opt(False, "The base model is SD3 or SD3.5. Not needed: its file says so.")
    flux: bool = opt(False, "The base model is FLUX.", later=_LATER_FLUX)

    @property
    def chosen(self) -> str | None:
        """Name of the family; None where it is not said."""
        return next((name for name in ("sd", "sdxl", "sd3") if getattr(self, name)), None)

    def check(self) -> Iterator[str]:
        asked = [f"--{name}" for name in ("sd", "sdxl", "sd3", "flux") if getattr(self, name)]
        if len(asked) > 1:
            yield f"{' and '.join(asked)} exclude each other. Keep one of them."


@dataclass(frozen=True, kw_only=True)
class CachingOptions(OptionGroup):
    """What is done with the caches."""

    title: ClassVar[str] = "Filling caches"

    cache_status: bool = opt(False, "List which cache files are valid, missing, stale or left over, and make none.")
    cache_prune: bool = opt(
        False,
        "Remove cache files that belong to none of these pictures and captions, before any are made. With "
        "--cache_status they are only listed.",
    )
    skip_existing: bool = opt(
        False, "Keep the files that are there.", no_effect="valid files are always kept, and others always made again"
    )


@dataclass(frozen=True, kw_only=True)
class FluxOptions(OptionGroup):
    """What only FLUX has."""

    title: ClassVar[str] = "FLUX"

    ae: Path | None = opt(None, "Autoencoder of FLUX.")
    controlnet_model_name_or_path: str | None = opt(None, "ControlNet to go on training.")
    guidance_scale: float = opt(3.5, "Guidance that the model is trained with.")
    timestep_sampling: str = opt(
        "sigma", "How timesteps are drawn.", choices=("sigma", "uniform", "sigmoid", "shift", "flux_shift")
    )
    sigmoid_scale: float = opt(1.0, "Scale of --timestep_sampling sigmoid.")
    model_prediction_type: str = opt(
        "sigma_scaled", "What the model predicts.", choices=("raw", "additive", "sigma_scaled")
    )
    discrete_flow_shift: float = opt(3.0, "Moves the noise levels.")
    model_type: str = opt("flux", "Kind of FLUX model.", choices=("flux", "chroma"))
