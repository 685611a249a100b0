"""What the families around a U-Net share: Stable Diffusion 1.x, 2.x and SDXL, as the trainer asks for it.

A family says beside this which text encoders it has, which layer of them is read, and what the U-Net is told. Sources:
Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023, arXiv:2307.01952; the published checkpoints.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from library.families.unet.captions import UnetCaptions
from library.families.unet.folder_schedule import read_schedule
from library.families.unet.loading import UnetLoading
from library.families.unet.marks import NOISE, VELOCITY, ZERO_TERMINAL
from library.families.unet.telltale import is_velocity_unsaid
from library.log import get_logger

if TYPE_CHECKING:
    from torch import Tensor, nn

    from library.diffusion.ddpm import DdpmObjective
    from library.diffusion.samplers import AfterStep, SamplerWays, Start
    from library.families.base import Conditioning
    from library.families.unet.checkpoint import UnetFiles
    from library.families.unet.export import UnetModel
    from library.models.unet import UNet
    from library.records import Size
    from networks.targets import ModelOutline

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class UnetFamily(UnetLoading, UnetCaptions):
    """The settings of a run that such families have, and the functions of `library/families/base.py`."""

    def for_buckets(self, resolutions: Sequence[Size], buckets: Sequence[Size]) -> UnetFamily:
        """Sizes change nothing."""
        return self

    def as_marked(self, files: UnetFiles) -> UnetFamily:
        """The schedule of noise that these files name. Where marks are followed also what they say that they predict,
        and what their schedule ends in, beside what options say.

        Options go before what files say. Of SD 2.x a file that says nothing is taken for what its weights look like.

        Raises:
            CheckpointError: The scheduler of the folder is for models of another kind, or its settings are unknown.
        """
        scheduled = replace(self, noise={**self.noise, "schedule": read_schedule(files)})
        return scheduled._with_marks(files) if self.follows_marks else scheduled

    def _with_marks(self, files: UnetFiles) -> UnetFamily:
        is_velocity = self.is_velocity or VELOCITY in files.marks
        if self.is_velocity and NOISE in files.marks:
            logger.warning("%s says that it predicts noise, --v_parameterization the velocity.", files.path)
        if not is_velocity and is_velocity_unsaid(files):
            logger.info(
                "%s does not say what it predicts. One weight is as in models that predict the velocity: it is taken "
                "for one.",
                files.path,
            )
            is_velocity = True
        marked = {
            "v_parameterization": is_velocity,
            "zero_terminal_snr": self.is_zero_terminal or ZERO_TERMINAL in files.marks,
        }
        return replace(self, noise={**self.noise, **marked})

    def with_text_rows(self, number: int) -> UnetFamily:
        """Reading texts of so many rows of 75 tokens."""
        return replace(self, num_chunks=number)

    # What a family says beside this, and beside what its settings ask for

    @abstractmethod
    def join_text(
        self,
        states: Mapping[str, Tensor],
        denoiser: nn.Module,
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> Conditioning:
        """The states as the U-Net wants them."""

    @abstractmethod
    def architecture(self, files: UnetFiles) -> str:
        """Name for modelspec.architecture."""

    @abstractmethod
    def metadata(self, files: UnetFiles) -> dict[str, Any]:
        """What only these files say, without ss_."""

    def denoiser_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """What the U-Net is told beside the text."""
        return {}

    # Files that are written

    def export(self) -> Any:
        """Whole models are written by `library/families/unet/export.py`."""
        from library.families.unet import export

        return export

    def model_to_write(self, files: UnetFiles, denoiser: Any, encoders: Any, dtype: Any) -> UnetModel:
        """What it takes. It says of itself what its base said, and what it was trained as."""
        from library.families.unet.export import UnetModel

        trained = {VELOCITY: self.is_velocity, ZERO_TERMINAL: self.is_zero_terminal}
        marks = frozenset(mark for mark, is_on in trained.items() if is_on or mark in files.marks)
        return UnetModel(files, denoiser, encoders, dtype, self.mmap, marks)

    def network_to_diffusers(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The PEFT names and factors that diffusers loads."""
        from library.families.unet.lora_format import kohya_to_diffusers

        return kohya_to_diffusers(state, self.name)

    # Networks

    def network_encoders(self, arguments: Mapping[str, str]) -> tuple[str, ...]:
        """All of them."""
        return self.encoder_names

    def check_network_options(self, options: Any, arguments: Mapping[str, str]) -> None:
        """The options have been checked among each other already."""

    def network_model(self, files: UnetFiles) -> ModelOutline:
        """Every linear and convolution layer, as files of networks name them."""
        from library.families.unet.checkpoint import network_layers
        from networks.targets import ModelOutline

        return ModelOutline(files.kind, network_layers(files), 0)

    # Diffusion

    def objective(self) -> DdpmObjective:
        """Diffusion in 1000 steps."""
        from library.families.unet.objective import make_objective

        return make_objective(self.noise)

    def sample(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        *,
        num_steps: int,
        sampler: str | None = None,
        guidance_scale: float = 1.0,
        seed: int | Sequence[int] = 0,
        on_step: Callable[[int, int], None] | None = None,
        start: Start | None = None,
        after_step: AfterStep | None = None,
        ways: SamplerWays | None = None,
    ) -> Tensor:
        """By one of the samplers of `library/diffusion/ddpm_samplers.py`, or `gradual_latents.py`."""
        from library.diffusion.ddpm_samplers import sample_ddpm
        from library.diffusion.gradual_latents import sample_growing

        shared: dict[str, Any] = {
            "sampler": sampler or "ddim",
            "num_steps": num_steps,
            "guidance_scale": guidance_scale,
            "is_velocity": self.is_velocity,
            "is_zero_terminal": self.is_zero_terminal,
            "schedule": self.objective().schedule,
            "seed": seed,
            "on_step": on_step,
        }
        if ways is not None and ways.growth is not None:
            return sample_growing(predict, noise, growth=ways.growth, **shared)
        counts_from_zero = ways is not None and ways.counts_from_zero
        return sample_ddpm(
            predict, noise, start=start, after_step=after_step, counts_from_zero=counts_from_zero, **shared
        )

    def predict(
        self,
        denoiser: nn.Module,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        *,
        position_draw: tuple[float, float, float] | None = None,
    ) -> Tensor:
        """The noise, or the velocity. Shape [B, 4, h, w]."""
        unet = cast("UNet", denoiser)
        result: Tensor = unet(
            noisy_latents.to(unet.dtype),
            timesteps,
            encoder_hidden_states=conditioning.context,
            return_dict=False,
            **self.denoiser_arguments(conditioning),
        )[0]
        return result
