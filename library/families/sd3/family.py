"""Stable Diffusion 3 / 3.5: what is special about it, as the trainer asks for it.

Sources: Esser et al. 2024, arXiv:2403.03206; the published checkpoints and their reference inference code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from library.device import send
from library.errors import OptionError
from library.families.base import Conditioning
from library.families.sd3.captions import Sd3Captions
from library.families.sd3.loading import Sd3Loading
from library.families.sd3.settings import ENCODER_NAMES, sd3_settings
from library.log import get_logger
from library.records import Size

if TYPE_CHECKING:
    from torch import Tensor, nn

    from library.diffusion.objective import FlowObjective
    from library.diffusion.samplers import AfterStep, SamplerWays, Start
    from library.families.sd3.checkpoint import Sd3Files
    from library.families.sd3.export import Sd3Model
    from library.families.sd3.options import Sd3NetworkOptions
    from library.models.mmdit import MMDiT
    from library.models.positions import ScaledPositionTables
    from networks.targets import ModelOutline

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sd3Family(Sd3Loading, Sd3Captions):
    """The settings of one run that only SD3 has, and the functions of `library/families/base.py`."""

    @classmethod
    def from_options(cls, options: Sd3NetworkOptions) -> Sd3Family:
        """The family as the command line asks for it."""
        return cls(**sd3_settings(options))

    def for_buckets(self, resolutions: Sequence[Size], buckets: Sequence[Size]) -> Sd3Family:
        """The same settings, told what position tables have to cover."""
        return replace(self, resolutions=tuple(resolutions), buckets=tuple(buckets))

    # Files that are written

    def export(self) -> Any:
        """Whole models are written by `library/families/sd3/export.py`."""
        from library.families.sd3 import export

        return export

    def model_to_write(self, files: Sd3Files, denoiser: Any, encoders: Any, dtype: Any) -> Sd3Model:
        """What it takes."""
        from library.families.sd3.export import Sd3Model

        return Sd3Model(files, denoiser, encoders, dtype, self.mmap)

    def architecture(self, files: Sd3Files) -> str:
        """Name for modelspec.architecture."""
        return f"stable-diffusion-3-{files.variant}"

    def metadata(self, files: Sd3Files) -> dict[str, Any]:
        """What only SD3 files say, without ss_. The base model version is the variant, as other tools write it."""
        return {
            "base_model_version": files.variant,
            "apply_lg_attn_mask": self.apply_lg_attn_mask,
            "apply_t5_attn_mask": self.apply_t5_attn_mask,
            **{name: value for name, value in self.flow.items() if not name.endswith("_timestep")},
            "t5xxl_max_token_length": self.t5_length,
            "clip_l_dropout_rate": self.dropout_rates["clip_l"],
            "clip_g_dropout_rate": self.dropout_rates["clip_g"],
            "t5_dropout_rate": self.dropout_rates["t5xxl"],
            "pos_emb_random_crop_rate": self.pos_emb_random_crop_rate,
            "enable_scaled_pos_embed": self.enable_scaled_pos_embed,
        }

    def network_to_diffusers(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The PEFT names and factors that diffusers loads; it has no place for adapters of T5."""
        from library.families.sd3.lora_format import kohya_to_diffusers

        conversion = kohya_to_diffusers(state)
        if conversion.dropped:
            logger.warning("%d modules of T5 are left out: diffusers cannot load them.", len(conversion.dropped))
        return conversion.tensors

    # Networks

    def network_encoders(self, arguments: Mapping[str, str]) -> tuple[str, ...]:
        """CLIP-L and CLIP-G; T5 on request."""
        return ENCODER_NAMES if _trains_t5(arguments) else ENCODER_NAMES[:2]

    def check_network_options(self, options: Any, arguments: Mapping[str, str]) -> None:
        """What a T5 with adapters does not go with.

        Raises:
            OptionError: It is given.
        """
        if not _trains_t5(arguments):
            return
        if options.network.network_train_unet_only:
            raise OptionError(
                "--network_args train_t5xxl=True and --network_train_unet_only exclude each other. Keep one of them."
            )
        if options.precision.mixed_precision == "fp16":
            raise OptionError(
                "--network_args train_t5xxl=True cannot be used with --mixed_precision fp16: "
                "T5's numbers exceed the range of fp16. Use bf16."
            )
        if options.cache.caches_text:
            raise OptionError(
                "--network_args train_t5xxl=True cannot be used with --cache_text_encoder_outputs: "
                "a trained encoder has no fixed output. Leave one of them out."
            )

    def network_model(self, files: Sd3Files) -> ModelOutline:
        """The joint blocks, by their number."""
        from networks.targets import ModelOutline

        return ModelOutline("sd3", {}, files.config.depth)

    # Diffusion

    def objective(self) -> FlowObjective:
        """Rectified flow."""
        from library.diffusion.objective import FlowObjective

        return FlowObjective(**self.flow)

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
        """Euler's method with the published shift of 3. There is no other sampler, and nothing is drawn on the way."""
        from library.diffusion.samplers import euler_flow, flow_sigmas

        sigmas = flow_sigmas(num_steps, shift=3.0)
        return euler_flow(
            predict,
            noise,
            sigmas,
            guidance_scale=guidance_scale,
            on_step=on_step,
            start=start,
            after_step=after_step,
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
        """The velocity. Shape [B, 16, h, w]."""
        mmdit = _mmdit(denoiser)
        positions = self._positions(mmdit, noisy_latents, position_draw)
        context, bias = _merged(mmdit, noisy_latents, conditioning)
        result: Tensor = denoiser(
            noisy_latents, timesteps, context, conditioning.pooled, context_bias=bias, positions=positions
        )
        return result

    def _positions(self, mmdit: MMDiT, latents: Tensor, draw: tuple[float, float, float] | None) -> Tensor | None:
        """None for the usual centred window of the stored table; otherwise the rows to use instead."""
        from library.models.positions import window_at

        patch = mmdit.config.patch_size
        height, width = latents.shape[-2] // patch, latents.shape[-1] // patch
        is_random = draw is not None and draw[0] < self.pos_emb_random_crop_rate
        if not self.enable_scaled_pos_embed and not is_random:
            return None
        table = mmdit.pos_embed
        if self.enable_scaled_pos_embed:
            table = _scaled_table(self.resolutions, self.buckets, table.shape[-1], patch, height, width)
        if draw is not None and is_random:
            return send(window_at(table, height, width, draw[1], draw[2]), latents.device)
        return mmdit.windows.centred(table, height, width, latents.device)


def _trains_t5(arguments: Mapping[str, str]) -> bool:
    """Of --network_args."""
    return arguments.get("train_t5xxl", "").lower() in ("true", "1")


def _merged(mmdit: MMDiT, latents: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor | None]:
    """The context, and the bias that goes with it: with rows merged that are zero, where that is of use."""
    from library.models.merged_padding import merging, pays

    context = conditioning.context
    if conditioning.is_used is None or not mmdit.takes_bias:
        return context, None
    merged, num_patches = merging(conditioning.is_used), latents[0, 0].numel() // mmdit.config.patch_size**2
    if merged is None or not pays(merged, context.shape[1], num_patches, latents.device):
        return context, None
    return merged.context(context), merged.bias_for(context)


def _mmdit(denoiser: nn.Module) -> MMDiT:
    """What `load_denoiser` made."""
    return cast("MMDiT", denoiser)


@lru_cache(maxsize=2)
def _scaled_tables(
    resolutions: tuple[Size, ...], buckets: tuple[Size, ...], channels: int, patch: int
) -> ScaledPositionTables:
    """The tables for these resolutions. Every bucket asks once, so that the order of batches changes nothing."""
    from library.models.positions import ScaledPositionTables

    tables = ScaledPositionTables([round((size.width * size.height) ** 0.5) // 8 for size in resolutions], channels)
    for bucket in buckets:
        tables.table(bucket.height // (8 * patch), bucket.width // (8 * patch))
    return tables


@lru_cache(maxsize=8)
def _scaled_table(
    resolutions: tuple[Size, ...], buckets: tuple[Size, ...], channels: int, patch: int, height: int, width: int
) -> Tensor:
    """The table for a picture of this many patches. Sizes that are not trained, of samples, leave the others theirs."""
    tables = _scaled_tables(resolutions, buckets, channels, patch)
    is_trained = Size(width * 8 * patch, height * 8 * patch) in buckets
    return (tables if is_trained else tables.copy()).table(height, width)
