"""The objective of a family around a U-Net: what its options say about noise, timesteps and weights of the loss.

The settings are plain values, so that they can be had before torch is loaded. Full training and networks have the same
objective: a loss weight of a sample (of regularisation pictures, say) counts in both, whatever else is on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from library.diffusion.ddpm import DdpmObjective

NOISE = (
    "noise_offset",
    "noise_offset_random_strength",
    "adaptive_noise_scale",
    "multires_noise_iterations",
    "multires_noise_discount",
    "ip_noise_gamma",
    "ip_noise_gamma_random_strength",
)
"""Options of `library/diffusion/noise.py`, by their names."""
SCHEDULE_AND_WEIGHTS = (
    "min_timestep",
    "max_timestep",
    "zero_terminal_snr",
    "min_snr_gamma",
    "scale_v_pred_loss_like_noise_pred",
    "v_pred_like_loss",
    "debiased_estimation_loss",
)
"""Options of `library/diffusion/ddpm.py`, by their names."""


def noise_settings(options: Any) -> dict[str, Any]:
    """{name of an option: its value} of all that `make_objective` reads, from the options of a script."""
    loss = {name: getattr(options.loss, name) for name in (*NOISE, *SCHEDULE_AND_WEIGHTS)}
    return {"v_parameterization": options.model.v_parameterization, **loss}


def make_objective(settings: Mapping[str, Any]) -> DdpmObjective:
    """The objective with these settings; names that are missing take its defaults.

    Raises:
        OptionError: A setting is out of its range, or has no meaning with another one; names the option.
    """
    from library.diffusion.ddpm import DdpmObjective
    from library.diffusion.noise import NoiseSettings

    noise = {name: value for name, value in settings.items() if name in NOISE}
    others = {name: value for name, value in settings.items() if name not in NOISE}
    return DdpmObjective(noise_settings=NoiseSettings(**noise), **others)
