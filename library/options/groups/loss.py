"""Options about noise, timesteps and loss that more than one model family has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.options.spec import OptionGroup, opt

_BESIDE = {  # options that change another one
    "noise_offset_random_strength": "noise_offset",
    "multires_noise_discount": "multires_noise_iterations",
    "ip_noise_gamma_random_strength": "ip_noise_gamma",
}


@dataclass(frozen=True, kw_only=True)
class LossOptions(OptionGroup):
    """Noise, timesteps and loss."""

    title: ClassVar[str] = "Loss and noise"

    loss_type: str = opt("l2", "How prediction and target are compared.", choices=("l1", "l2", "huber", "smooth_l1"))
    huber_schedule: str = opt(
        "snr",
        "How the threshold of huber and smooth_l1 falls towards noise: not at all, evenly on a logarithmic scale, or "
        "with the signal-to-noise ratio.",
        choices=("constant", "exponential", "snr"),
    )
    huber_c: float = opt(
        0.1, "Threshold of huber and smooth_l1, in pure noise where --huber_schedule lets it fall.", above=0
    )
    huber_scale: float = opt(1.0, "Factor on the threshold; not for --huber_schedule snr.", above=0)
    min_timestep: int | None = opt(
        None, "Lowest timestep that is trained. Not set means 0.", unit="0-999", minimum=0, maximum=999
    )
    max_timestep: int | None = opt(
        None,
        "Timesteps are below this, or are this if the lowest is the same. Not set means 1000.",
        unit="1-1000",
        minimum=1,
        maximum=1000,
    )
    prior_loss_weight: float = opt(1.0, "Factor on the loss of regularisation pictures.", minimum=0)
    masked_loss: bool = opt(
        False, "The loss counts only where a mask is white; needs conditioning_data_dir or alpha_mask in a subset."
    )
    noise_offset: float | None = opt(
        None,
        "Shift the noise of each channel by about this much; 0 means off.",
        unit="about 0.1",
        minimum=0,
        zero_is_off=True,
    )
    noise_offset_random_strength: bool = opt(False, "Draw the shift between 0 and --noise_offset.")
    adaptive_noise_scale: float | None = opt(
        None, "Add this times the mean of the latents to --noise_offset; 0 means off.", zero_is_off=True
    )
    multires_noise_iterations: int | None = opt(
        None,
        "Add noise at this many coarser resolutions; 0 means off.",
        unit="6 to 10",
        minimum=1,
        zero_is_off=True,
    )
    multires_noise_discount: float = opt(0.3, "Factor from each coarser resolution to the next.", minimum=0)
    ip_noise_gamma: float | None = opt(
        None,
        "Add noise to the input only, not to the target; 0 means off.",
        unit="about 0.1",
        minimum=0,
        zero_is_off=True,
    )
    ip_noise_gamma_random_strength: bool = opt(False, "Draw it between 0 and --ip_noise_gamma.")
    zero_terminal_snr: bool = opt(False, "Change the noise schedule so that it ends in pure noise.")
    min_snr_gamma: float | None = opt(
        None,
        "Lower the weight of timesteps with little noise; 0 means off.",
        unit="about 5",
        minimum=0,
        zero_is_off=True,
    )
    scale_v_pred_loss_like_noise_pred: bool = opt(False, "Weight v prediction as noise prediction would be.")
    v_pred_like_loss: float | None = opt(
        None, "Add this times the loss of v prediction; 0 means off.", minimum=0, zero_is_off=True
    )
    debiased_estimation_loss: bool = opt(False, "Weight the loss by the inverse square root of the SNR.")

    @property
    def timestep_range(self) -> tuple[int, int]:
        """Lowest timestep, and the one above the highest."""
        low = 0 if self.min_timestep is None else self.min_timestep
        return low, 1000 if self.max_timestep is None else self.max_timestep

    def check(self) -> Iterator[str]:
        low, high = self.timestep_range
        if low > high:
            yield f"--min_timestep {low} may not be above --max_timestep {high}: timesteps lie between them."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.loss_type not in ("huber", "smooth_l1"):
            for name in ("huber_schedule", "huber_c", "huber_scale"):
                yield name, "only --loss_type huber and smooth_l1 use it"
        elif self.huber_schedule == "snr":
            yield "huber_scale", "only --huber_schedule constant and exponential use it"
        for name, needed in _BESIDE.items():
            if getattr(self, needed) is None:
                yield name, f"no --{needed}"
