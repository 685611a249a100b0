"""Options that add to how pictures are drawn: a second, larger pass, guidance by pictures, and others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt

CONTROL_PREPS = ("none", "canny", "canny_LOW_HIGH", "blur", "blur_RADIUS", "invert")


@dataclass(frozen=True, kw_only=True)
class StartNoiseOptions(OptionGroup):
    """The noise that drawing begins at."""

    title: ClassVar[str] = "Noise"

    pyramid_noise_prob: float | None = opt(
        None, "Chance that a picture begins at noise with coarse structure.", unit="0-1", minimum=0, maximum=1
    )
    pyramid_noise_discount_range: tuple[float, ...] | None = opt(
        None, "Two numbers: the weight of each coarser level, to that of the level before, is drawn between them."
    )
    noise_offset_prob: float | None = opt(
        None, "Chance that a picture begins at noise with a shift of each channel.", unit="0-1", minimum=0, maximum=1
    )
    noise_offset_range: tuple[float, ...] | None = opt(
        None, "Two numbers: the standard deviation of the shift is drawn between them."
    )
    force_scheduler_zero_steps_offset: bool = opt(
        False, "Count timesteps from 0 and not from 1, in the samplers ddim and pndm."
    )

    def check(self) -> Iterator[str]:
        for chance, span in (
            ("pyramid_noise_prob", "pyramid_noise_discount_range"),
            ("noise_offset_prob", "noise_offset_range"),
        ):
            numbers = getattr(self, span)
            if getattr(self, chance) is not None and numbers is None:
                yield f"--{chance} needs --{span}, two numbers to draw between. Give both."
            if numbers is not None and (len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1]):
                yield f"--{span} needs two numbers, the smaller first and none below 0, got {_joined(numbers)}."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.pyramid_noise_prob is None:
            yield "pyramid_noise_discount_range", "no --pyramid_noise_prob"
        if self.noise_offset_prob is None:
            yield "noise_offset_range", "no --noise_offset_prob"


@dataclass(frozen=True, kw_only=True)
class HighresOptions(OptionGroup):
    """A small picture first, which is then enlarged and drawn over by --strength."""

    title: ClassVar[str] = "Larger pictures in two passes"

    highres_fix_scale: float | None = opt(
        None, "Sides of a first, smaller picture, as a share of those of the picture.", unit="0-1", above=0, maximum=1
    )
    highres_fix_steps: int = opt(28, "Sampling steps of the first pass.", minimum=1, maximum=1000)
    highres_fix_strength: float | None = opt(
        None,
        "With --image_path: the --strength of the first pass. Not set means that of the second.",
        unit="0-1",
        minimum=0,
        maximum=1,
    )
    highres_fix_save_1st: bool = opt(False, "Write the pictures of the first pass too.")
    highres_fix_latents_upscaling: bool = opt(False, "Enlarge latents and not pixels: softer, and differs more.")
    highres_fix_upscaler: str | None = opt(
        None, "Python module, or file.py, whose create_upscaler enlarges pictures. Not set means Lanczos resampling."
    )
    highres_fix_upscaler_args: str | None = opt(None, "Its arguments, as key=value with ; between several.")
    highres_fix_disable_control_net: bool = opt(False, "No ControlNet in the second pass.")

    def check(self) -> Iterator[str]:
        if self.highres_fix_latents_upscaling and self.highres_fix_upscaler:
            yield "--highres_fix_latents_upscaling and --highres_fix_upscaler exclude each other. Keep one of them."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.highres_fix_scale is None:
            names = ("steps", "strength", "save_1st", "latents_upscaling", "upscaler", "upscaler_args")
            yield from ((f"highres_fix_{name}", "no --highres_fix_scale") for name in (*names, "disable_control_net"))
        elif self.highres_fix_upscaler is None:
            yield "highres_fix_upscaler_args", "no --highres_fix_upscaler"


@dataclass(frozen=True, kw_only=True)
class GuideOptions(OptionGroup):
    """Pictures that guide the drawing."""

    title: ClassVar[str] = "Guiding pictures"

    guide_image_path: tuple[Path, ...] | None = opt(
        None,
        "Guiding pictures, or folders of them, one for each ControlNet or one for all: of a folder, the first picture "
        "is for the first prompt, and so on, over and over. A map of regions, or what CLIP sees, comes before those of "
        "ControlNets.",
    )
    control_net_models: tuple[Path, ...] | None = opt(
        None, "ControlNets: diffusers folders, or single files.", metavar="PATH"
    )
    control_net_preps: tuple[str, ...] | None = opt(
        None, f"What is made of each guiding picture: {', '.join(CONTROL_PREPS)}. Not set means none."
    )
    control_net_multipliers: tuple[float, ...] | None = opt(None, "Strength of each. Not set means 1.")
    control_net_ratios: tuple[float, ...] | None = opt(
        None, "Share of the steps, the first ones, in which each acts. Not set means 1."
    )
    control_net_lllite_models: tuple[Path, ...] | None = opt(None, "ControlNet-LLLite files, of SDXL.", metavar="PATH")
    clip_vision_strength: float | None = opt(
        None, "How much of the pooled text of SDXL what CLIP sees in the guiding picture stands for.", unit="0-1"
    )
    clip_vision_model: Path | None = opt(
        None, "Folder of the CLIP model that sees it, of transformers: laion/CLIP-ViT-bigG-14-laion2B-39B-b160k."
    )
    network_regional_mask_max_color_codes: int | None = opt(
        None,
        "The guiding picture is a map of so many regions, in red, green, yellow, blue, magenta, cyan and white: each "
        "part of a prompt between AND is for one, and each network.",
        minimum=1,
        maximum=7,
    )

    @property
    def num_nets(self) -> int:
        """ControlNets of both kinds."""
        return len(self.control_net_models or ()) + len(self.control_net_lllite_models or ())

    @property
    def is_first_apart(self) -> bool:
        """Whether the first guiding picture is a map of regions or for CLIP, and not for ControlNets."""
        return bool(self.clip_vision_strength or self.network_regional_mask_max_color_codes)

    def check(self) -> Iterator[str]:
        if self.control_net_models and self.control_net_lllite_models:
            yield "--control_net_models and --control_net_lllite_models exclude each other. Keep one of them."
        for name in ("control_net_preps", "control_net_multipliers", "control_net_ratios"):
            given = getattr(self, name)
            if given and self.num_nets and len(given) not in (1, self.num_nets):
                yield f"--{name} has {len(given)} values for {self.num_nets} ControlNets. Give one for each, or one."
        yield from self._missing_pictures()
        yield from self._wrong_number_of_pictures()
        for ratio in self.control_net_ratios or ():
            if not 0 <= ratio <= 1:
                yield f"--control_net_ratios must be 0 to 1, got {ratio:g}."
        if self.clip_vision_strength is not None and not 0 <= self.clip_vision_strength <= 1:
            yield f"--clip_vision_strength must be 0 to 1, got {self.clip_vision_strength:g}."

    def _wrong_number_of_pictures(self) -> Iterator[str]:
        given, number = len(self.guide_image_path or ()), self.num_nets
        if not given:
            return
        if self.is_first_apart and given not in ({2, 1 + number} if number else {1}):
            nets = f", then one for each of {number} ControlNets, or one for all of them" if number else ""
            yield f"--guide_image_path has {given} values. Give first the map of regions or what CLIP sees{nets}."
        if number and not self.is_first_apart and given not in (1, number):
            yield f"--guide_image_path has {given} values for {number} ControlNets. Give one for each, or one."

    def _missing_pictures(self) -> Iterator[str]:
        users = {
            "control_net_models": self.control_net_models,
            "control_net_lllite_models": self.control_net_lllite_models,
            "clip_vision_strength": self.clip_vision_strength,
            "network_regional_mask_max_color_codes": self.network_regional_mask_max_color_codes,
        }
        used = next((name for name, value in users.items() if value), None)
        if used and not self.guide_image_path:
            yield f"--{used} needs --guide_image_path, the guiding picture. Give it."
        if self.clip_vision_strength is not None and self.clip_vision_model is None:
            yield (
                "--clip_vision_strength needs --clip_vision_model, the folder of a CLIP model with its image encoder: "
                "download laion/CLIP-ViT-bigG-14-laion2B-39B-b160k from the Hugging Face hub."
            )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if not self.num_nets:
            names = ("control_net_preps", "control_net_multipliers", "control_net_ratios")
            yield from ((name, "no ControlNet") for name in names)
        if self.control_net_lllite_models and self.control_net_preps is None:
            return
        if self.clip_vision_strength is None:
            yield "clip_vision_model", "no --clip_vision_strength"
        is_used = self.num_nets or self.clip_vision_strength or self.network_regional_mask_max_color_codes
        if not is_used:
            yield "guide_image_path", "nothing is guided by it"


@dataclass(frozen=True, kw_only=True)
class DeepShrinkOptions(OptionGroup):
    """Smaller features inside the U-Net in the first steps."""

    title: ClassVar[str] = "Deep shrink"

    ds_depth_1: int | None = opt(
        None, "Block of the U-Net before which features become smaller: 3 is usual.", minimum=1
    )
    ds_timesteps_1: int = opt(650, "Down to this timestep.", unit="0-1000", minimum=0, maximum=1000)
    ds_depth_2: int | None = opt(None, "Another block, below --ds_timesteps_1.", minimum=1)
    ds_timesteps_2: int = opt(650, "Down to this timestep.", unit="0-1000", minimum=0, maximum=1000)
    ds_ratio: float = opt(0.5, "Sides of small features, as a share of what they were.", above=0, maximum=1)

    def check(self) -> Iterator[str]:
        if self.ds_depth_2 is not None and self.ds_timesteps_2 >= self.ds_timesteps_1:
            yield "--ds_depth_2 acts below --ds_timesteps_1 only: give a smaller --ds_timesteps_2."


@dataclass(frozen=True, kw_only=True)
class GradualLatentOptions(OptionGroup):
    """Latents that are small in the first steps."""

    title: ClassVar[str] = "Gradual latents"

    gradual_latent_timesteps: int | None = opt(
        None, "Latents begin small, and grow below this timestep: 750 is usual.", unit="0-1000", minimum=0, maximum=1000
    )
    gradual_latent_ratio: float = opt(0.5, "Sides of small latents, as a share of all.", above=0, maximum=1)
    gradual_latent_ratio_step: float = opt(0.125, "Added to that each time they grow.", above=0)
    gradual_latent_every_n_steps: int = opt(3, "Steps from one time to the next.", unit="steps", minimum=1)
    gradual_latent_s_noise: float = opt(1.0, "Factor on the noise that is added where they grow.", minimum=0)
    gradual_latent_unsharp_params: str | None = opt(
        None,
        "Sharpening where they grow: size of the blur (odd), its deviation, strength, and 1 to sharpen the result of "
        "the step or 0 what it begins from; as 3,0.5,0.5,0.",
    )


def _joined(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:g}" for number in numbers) or "nothing"
