"""The settings of a run that families around a U-Net have, and how the options of all their scripts give them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from library.families.detect import SD1, SD2, SDXL, FileKind
from library.families.latent_family import LatentFamily, model_settings
from library.families.unet.objective import noise_settings
from library.options.groups.sampling import SAMPLERS

if TYPE_CHECKING:
    from library.families.unet.text import LayerChoice

_CHUNK = 75  # tokens of a caption that go into one row of 77


@dataclass(frozen=True, kw_only=True)
class UnetSettings(LatentFamily):
    """What the parts of `UnetFamily` have in common.

    Attributes:
        kinds: Of models that the family takes: "sd1", "sd2", "sdxl".
        num_chunks: Rows of 77 tokens that a caption may fill.
        noise: Settings of the objective, which needs torch; see `library/families/unet/objective.py`.
        input_channels: That the U-Net may take.
        follows_marks: What a model says of itself is taken over, see `as_marked`, and options need not say the same.
    """

    name: str
    denoiser_name: str = "unet"
    latent_channels: int = 4
    pixels_per_latent: int = 8
    bucket_multiple: int
    sample_size: int
    sample_steps: int = 30
    sample_guidance: float = 7.5
    sample_multiple: int = 8
    samplers: tuple[str, ...] = SAMPLERS
    dropout_rates: Mapping[str, float] = field(default_factory=dict)

    kinds: tuple[str, ...]
    num_chunks: int = 1
    noise: Mapping[str, Any] = field(default_factory=dict)
    input_channels: tuple[int, ...] = (4,)
    follows_marks: bool = False

    @property
    def file_kinds(self) -> tuple[FileKind, ...]:
        """What the file of a model may be."""
        return tuple(kind for kind in (SD1, SD2, SDXL) if kind.name in self.kinds)

    @property
    def is_velocity(self) -> bool:
        """Whether the model predicts the velocity."""
        return bool(self.noise.get("v_parameterization"))

    @property
    def is_zero_terminal(self) -> bool:
        """Whether the schedule ends in pure noise."""
        return bool(self.noise.get("zero_terminal_snr"))

    @property
    def prediction_type(self) -> str:
        """As metadata has it."""
        return "v" if self.is_velocity else "epsilon"

    @abstractmethod
    def text_layers(self) -> Mapping[str, LayerChoice]:
        """Which states of each encoder are read."""


def unet_settings(options: Any) -> dict[str, Any]:
    """Arguments of `UnetFamily`, from the options of a script."""
    return {
        **model_settings(options),
        "num_chunks": (options.model.max_token_length or _CHUNK) // _CHUNK,
        "is_weighted": options.data.weighted_captions,
        "noise": noise_settings(options),
    }
