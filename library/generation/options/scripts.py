"""All options of the scripts that draw pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from library.generation.options.computing import DrawingComputeOptions
from library.generation.options.extras import (
    DeepShrinkOptions,
    GradualLatentOptions,
    GuideOptions,
    HighresOptions,
    StartNoiseOptions,
)
from library.generation.options.model import DrawingModelOptions, Sd3DrawingOptions
from library.generation.options.network import DrawingNetworkOptions
from library.generation.options.picture import PictureFileOptions, PictureOptions, SourcePictureOptions
from library.generation.options.prompts import PromptSourceOptions
from library.generation.options.sheets import SheetOptions
from library.options.groups import CommonOptions
from library.options.spec import ScriptText


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(CommonOptions):
    """All options of gen_img.py, which serves every family."""

    model: DrawingModelOptions = field(default_factory=DrawingModelOptions)
    prompts: PromptSourceOptions
    picture: PictureOptions = field(default_factory=PictureOptions)
    source: SourcePictureOptions = field(default_factory=SourcePictureOptions)
    files: PictureFileOptions = field(default_factory=PictureFileOptions)
    network: DrawingNetworkOptions = field(default_factory=DrawingNetworkOptions)
    computing: DrawingComputeOptions = field(default_factory=DrawingComputeOptions)
    sd3: Sd3DrawingOptions = field(default_factory=Sd3DrawingOptions)
    noise: StartNoiseOptions = field(default_factory=StartNoiseOptions)
    highres: HighresOptions = field(default_factory=HighresOptions)
    guide: GuideOptions = field(default_factory=GuideOptions)
    shrink: DeepShrinkOptions = field(default_factory=DeepShrinkOptions)
    gradual: GradualLatentOptions = field(default_factory=GradualLatentOptions)
    sheets: SheetOptions = field(default_factory=SheetOptions)

    leading: ClassVar[tuple[str, ...]] = ("model", "prompts", "picture")

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.source.image_path is None:
            yield "highres_fix_strength", "no --image_path"
            if self.highres.highres_fix_scale is None:
                yield "strength", "no --image_path and no --highres_fix_scale"

        if self.sheets.xyz:
            reason = "a sheet has one picture of each"
            yield from ((name, reason) for name in ("n_iter", "images_per_prompt", "iter_same_seed"))
        if self.sheets.compares("ckpt"):
            yield "ckpt", 'the axis "ckpt" stands for it'
        if not self.has_networks:
            names = ("network_show_meta", "network_merge", "network_pre_calc")
            yield from ((name, "no --network_weights") for name in names)

    @property
    def has_networks(self) -> bool:
        """Whether there are networks, of which a sheet may have an axis."""
        return bool(self.network.num_files) or self.sheets.compares("weights")

    def check(self) -> Iterator[str]:
        if self.sheets.xyz and self.prompts.sources not in (("--prompt",), ("--from_file",)):
            yield f"--xyz takes its prompts from --prompt or --from_file, not from {self.prompts.sources[0]}."
        if self.guide.network_regional_mask_max_color_codes and self.network.num_merged:
            yield "--network_merge and --network_regional_mask_max_color_codes exclude each other. Keep one of them."
        if self.computing.blocks_to_swap and self.network.network_pre_calc:
            yield "--blocks_to_swap and --network_pre_calc exclude each other. Keep one of them."
        if not self.has_networks:
            for name in ("network_mul", "network_module", "network_args", "network_merge_n_models"):
                if getattr(self.network, name):
                    yield f"--{name} needs --network_weights, the network files. Give them, or leave it out."
        if self.model.ckpt is None and not self.prompts.from_png and not self.sheets.compares("ckpt"):
            yield "--ckpt is missing: the model that draws."


@dataclass(frozen=True, kw_only=True)
class SdxlGenerationOptions(GenerationOptions):
    """All options of sdxl_gen_img.py."""

    preset: ClassVar[Mapping[str, object]] = {"sdxl": True}
    unused: ClassVar[Mapping[str, str]] = dict.fromkeys(("v1", "v2", "sd3"), "this script is for SDXL")


@dataclass(frozen=True, kw_only=True)
class Sd3GenerationOptions(GenerationOptions):
    """All options of sd3_gen_img.py."""

    preset: ClassVar[Mapping[str, object]] = {"sd3": True}
    unused: ClassVar[Mapping[str, str]] = dict.fromkeys(("v1", "v2", "sdxl"), "this script is for SD3")


_EXAMPLE = '--outdir=pictures --W=1024 --H=1024 --bf16 --network_weights=my_lora.safetensors --prompt="a cat --d 1"'

GENERATION_SCRIPT: ScriptText = {
    "prog": "gen_img.py",
    "description": "Draw pictures with Stable Diffusion 1.x, 2.x, SDXL or SD3; the model's file says which it is.",
    "example": f"python gen_img.py --ckpt=model.safetensors --sampler=euler_a --steps=28 {_EXAMPLE}",
    "ignored": {},
}

SDXL_GENERATION_SCRIPT: ScriptText = {
    "prog": "sdxl_gen_img.py",
    "description": "Draw pictures with SDXL.",
    "example": f"python sdxl_gen_img.py --ckpt=sdxl.safetensors --sampler=euler_a --steps=28 {_EXAMPLE}",
    "ignored": {},
}

SD3_GENERATION_SCRIPT: ScriptText = {
    "prog": "sd3_gen_img.py",
    "description": "Draw pictures with SD3 or SD3.5.",
    "example": f"python sd3_gen_img.py --ckpt=sd3.5_medium.safetensors --scale=4.5 --steps=28 {_EXAMPLE}",
    "ignored": {},
}
