"""Diffusion in 1000 discrete steps, as SD 1.x, SD 2.x and SDXL have it: schedule, loss weights, objective.

Tables are float32. Where the schedule is changed to end in pure noise, every table and weight follows from the changed
one. Weights at an SNR of 0 are finite.

Source: Ho et al. 2020, arXiv:2006.11239; Salimans & Ho 2022, arXiv:2202.00512 (v prediction); Lin et al. 2023,
arXiv:2305.08891 (zero terminal SNR); Hang et al. 2023, arXiv:2303.09556 (min-SNR); Yu et al. 2023,
arXiv:2310.08442 (debiased estimation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from library.diffusion.betas import PUBLISHED, BetaSchedule
from library.diffusion.flow import NUM_TIMESTEPS, to_timesteps
from library.diffusion.noise import Noise, NoiseSettings, draw_noise
from library.diffusion.objective import Draw, Terms, timestep_range
from library.errors import OptionError

_HIGHEST_SNR = 1000.0  # weights other than min-SNR take no higher one
_LOWEST_SNR = 1e-7  # in place of 0, the ratio of pure noise, where a weight divides by it; lower than any other ratio


def with_zero_terminal_snr(betas: Tensor) -> Tensor:
    """The schedule stretched so that nothing of the latents is left at the last step. Shape [T], the last is 1."""
    signal = alphas_cumprod(betas).sqrt()
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    kept = signal**2
    return 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])


def alphas_cumprod(betas: Tensor) -> Tensor:
    """Share of the latents in the variance of the noisy latents, 1 clean .. 0 noise. Shape [T]."""
    return (1 - betas).cumprod(0)


def min_snr_weights(snr: Tensor, gamma: float, *, is_velocity: bool) -> Tensor:
    """Hold down the weight of timesteps with little noise. Shape [B], at most 1."""
    if is_velocity:
        return snr.clamp(max=gamma) / (snr + 1)
    snr = snr.clamp(min=_LOWEST_SNR)
    return snr.clamp(max=gamma) / snr


def noise_like_weights(snr: Tensor) -> Tensor:
    """Weigh the velocity's error as noise prediction would. Shape [B], below 1."""
    snr = snr.clamp(max=_HIGHEST_SNR)
    return snr / (snr + 1)


def velocity_like_weights(snr: Tensor, strength: float) -> Tensor:
    """Add `strength` times the loss that velocity prediction would have, L + k L (S + 1) / S. Shape [B], above 1."""
    snr = snr.clamp(min=_LOWEST_SNR, max=_HIGHEST_SNR)
    return 1 + strength * (snr + 1) / snr


def debiased_weights(snr: Tensor, *, is_velocity: bool) -> Tensor:
    """Weigh noisy timesteps as much as their error in the clean latents asks for. Shape [B], above 0."""
    snr = snr.clamp(max=_HIGHEST_SNR)
    return 1 / (snr + 1) if is_velocity else snr.clamp(min=_LOWEST_SNR).rsqrt()


@dataclass(frozen=True, kw_only=True)
class DdpmObjective:
    """The model predicts the noise, or the velocity sqrt(a) noise - sqrt(1 - a) latents. Names are the options'.

    Weights multiply each other. They may be applied before or after the mean over a sample, in any order.

    Attributes:
        v_parameterization: The model predicts the velocity.
        min_timestep: Lowest timestep; None for 0.
        max_timestep: Timesteps stay below this (or are this, where both are equal); None for 1000.
        zero_terminal_snr: The schedule ends in pure noise.
        min_snr_gamma: SNR above which min-SNR lowers weights; None or 0 for no such weight.
        scale_v_pred_loss_like_noise_pred: Weight S / (S + 1); for the velocity only.
        v_pred_like_loss: Share of a velocity loss that is added; for noise prediction only; None or 0 for none.
        debiased_estimation_loss: Weight 1 / sqrt(S), or 1 / (S + 1) for the velocity.
        noise_settings: How noise differs from the plain one.
        schedule: How much noise each step adds, before it is made to end in pure noise.

    Raises:
        OptionError: A setting is out of its range, or has no meaning with another one; names the option.
    """

    v_parameterization: bool = False
    min_timestep: int | None = None
    max_timestep: int | None = None
    zero_terminal_snr: bool = False
    min_snr_gamma: float | None = None
    scale_v_pred_loss_like_noise_pred: bool = False
    v_pred_like_loss: float | None = None
    debiased_estimation_loss: bool = False
    noise_settings: NoiseSettings = NoiseSettings()
    schedule: BetaSchedule = PUBLISHED

    def __post_init__(self) -> None:
        timestep_range(self.min_timestep, self.max_timestep)
        for name in ("min_snr_gamma", "v_pred_like_loss"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise OptionError(f"--{name} must be at least 0, got {value}.")
        if self.scale_v_pred_loss_like_noise_pred and not self.v_parameterization:
            raise OptionError("--scale_v_pred_loss_like_noise_pred needs --v_parameterization.")
        if self.v_pred_like_loss and self.v_parameterization:
            raise OptionError("--v_pred_like_loss and --v_parameterization exclude each other. Keep one of them.")

    def draw(self, uniform: Tensor, normal: Tensor) -> Draw:
        """Timesteps, all equally likely, from draws in [0, 1) of shape [B]. `normal` is not used."""
        low, high = timestep_range(self.min_timestep, self.max_timestep)
        highest = min(max(low, high - 1), NUM_TIMESTEPS - 1)
        return self.at(to_timesteps(uniform.float(), low, high).clamp(max=highest))

    def at(self, timesteps: Tensor) -> Draw:
        """The draw of given timesteps, whole numbers 0..999. Shape [B]."""
        return Draw(timesteps.float(), (1 - self._kept(timesteps)).sqrt())

    def draw_noise(self, seeds: Sequence[int], latents: Tensor) -> Noise:
        """Noise as the settings shape it."""
        return draw_noise(self.noise_settings, seeds, latents)

    def corrupt(self, latents: Tensor, noise: Tensor, draw: Draw) -> Tensor:
        """sqrt(a) latents + sqrt(1 - a) noise. Shape [B, C, h, w], float32."""
        signal, deviation = self._factors(draw)
        return signal * latents.float() + deviation * noise.float()

    def terms(self, prediction: Tensor, latents: Tensor, noise: Tensor, noisy_latents: Tensor, draw: Draw) -> Terms:
        """The prediction, against the noise or the velocity."""
        target = noise.float()
        if self.v_parameterization:
            signal, deviation = self._factors(draw)
            target = signal * target - deviation * latents.float()
        return Terms(prediction.float(), target, self.weights(self.snr(draw)))

    def snr(self, draw: Draw) -> Tensor:
        """a / (1 - a). Shape [B], float32."""
        kept = self._kept(draw.timesteps)
        return kept / (1 - kept)

    def weights(self, snr: Tensor) -> Tensor:
        """Product of the weights that are on, at these signal-to-noise ratios. Finite. Shape [B], float32."""
        weights = torch.ones_like(snr)
        if self.min_snr_gamma:
            weights = weights * min_snr_weights(snr, self.min_snr_gamma, is_velocity=self.v_parameterization)
        if self.scale_v_pred_loss_like_noise_pred:
            weights = weights * noise_like_weights(snr)
        if self.v_pred_like_loss:
            weights = weights * velocity_like_weights(snr, self.v_pred_like_loss)
        if self.debiased_estimation_loss:
            weights = weights * debiased_weights(snr, is_velocity=self.v_parameterization)
        return weights

    def _kept(self, timesteps: Tensor) -> Tensor:
        table = _alphas_cumprod_on(timesteps.device, self.schedule, is_zero_terminal=self.zero_terminal_snr)
        return table[timesteps.long()]

    def _factors(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Of latents and noise in the noisy latents. Shape [B, 1, 1, 1] each."""
        kept = self._kept(draw.timesteps).view(-1, 1, 1, 1)
        return kept.sqrt(), (1 - kept).sqrt()


@lru_cache
def _alphas_cumprod_on(device: torch.device, schedule: BetaSchedule, *, is_zero_terminal: bool) -> Tensor:
    """The table on a device, sent there once. Only read."""
    betas = schedule.betas()
    return alphas_cumprod(with_zero_terminal_snr(betas) if is_zero_terminal else betas).to(device)
