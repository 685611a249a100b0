"""What a picture asks for beside prompt, size and sampler: plain values under the names of their options, which travel
in its record. Deep shrink, gradual latents, two passes, other noise, guiding pictures, regions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from library.generation.prompt_lines import LINE_OPTIONS, PromptOptions
from library.generation.record import GenerationRecord
from library.log import get_logger

if TYPE_CHECKING:
    from library.diffusion.gradual_latents import Growth, Unsharp
    from library.families.base import ModelFamily
    from library.generation.options.scripts import GenerationOptions
    from library.models.deep_shrink import DeepShrink

logger = get_logger(__name__)

GROUPS = ("noise", "highres", "guide", "shrink", "gradual")
"""Groups of options whose values may be extras of a picture."""
GUIDE = "guide_image_path"
REGIONS = "network_regional_mask_max_color_codes"
_SWITCHES = {  # {what switches an extra on: how the names of its options begin}
    "ds_depth_1": "ds_",
    "gradual_latent_timesteps": "gradual_latent_",
    "highres_fix_scale": "highres_fix_",
    "pyramid_noise_prob": "pyramid_noise_",
    "noise_offset_prob": "noise_offset_",
    "force_scheduler_zero_steps_offset": "force_",
    "control_net_models": "control_net_",
    "control_net_lllite_models": "control_net_",
    "clip_vision_strength": "clip_vision_",
    REGIONS: "network_regional_",
}
_GUIDED = {"control_net_models", "control_net_lllite_models", "clip_vision_strength", REGIONS}
_FROM_ZERO, _COUNTING_SAMPLERS = "force_scheduler_zero_steps_offset", ("ddim", "pndm")
_NOT_RECORDED = "highres_fix_save_1st"  # changes no picture
_UNSHARP = "3,0.5,0.5,0"


def asked_extras(
    options: GenerationOptions, prompt: PromptOptions, guides: Sequence[Path], *, ignored: frozenset[str]
) -> dict[str, Any]:
    """{option: value} of the extras that act, in plain values for JSON.

    Args:
        options: Of the run; a line goes before them.
        prompt: Of the line.
        guides: Guiding pictures of this prompt.
        ignored: Switches of extras that the family has not.

    Raises:
        OptionError: A line asks for a part of an extra that is not switched on.
    """
    groups = [getattr(options, group) for group in GROUPS]
    values = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
    said = {name: value for name in values if (value := getattr(prompt, name, None)) is not None}
    values |= said
    switches = [name for name in _SWITCHES if name not in ignored and values[name] not in (None, False, ())]
    starts = tuple(_SWITCHES[name] for name in switches)
    acting = {name: value for name, value in values.items() if name.startswith(starts)}
    for name in said.keys() - acting.keys():
        switch = next(switch for switch, start in _SWITCHES.items() if name.startswith(start))
        if switch in ignored:
            raise OptionError(f"{_flag(name)} is not for this kind of model. Leave it out.")
        raise OptionError(f"{_flag(name)} has no effect without {_flag(switch)}. Give both, or leave it out.")
    if options.guide.is_first_apart and "clip_vision_strength" in ignored and REGIONS not in acting:
        guides = guides[1:]  # the first is for CLIP, which this family has not
    if guides and _GUIDED & acting.keys():
        acting[GUIDE] = tuple(guides)
    return {name: _plain(value) for name, value in acting.items() if value is not None and name != _NOT_RECORDED}


def ignored_switches(family: ModelFamily) -> frozenset[str]:
    """What switches on extras that a family has not."""
    of_unets = (
        () if family.samplers else ("ds_depth_1", "gradual_latent_timesteps", "force_scheduler_zero_steps_offset")
    )
    return frozenset((*of_unets, *(() if family.name == "sdxl" else ("clip_vision_strength",))))


def tell_unused(options: GenerationOptions, records: Sequence[GenerationRecord]) -> None:
    """Warn of parts of extras that are set on the command line while no picture has the extra."""
    if not records or records[0].family == "sd3":  # which is told of all of them
        return
    used = {name for record in records for name in record.extras or ()}
    if "ds_depth_2" not in used:
        used.discard("ds_timesteps_2")
    for group, switch in ((options.shrink, "ds_depth_1"), (options.gradual, "gradual_latent_timesteps")):
        for item in fields(group):
            if item.name not in used and getattr(group, item.name) != item.default:
                missing = "ds_depth_2" if item.name == "ds_timesteps_2" and switch in used else switch
                logger.warning("%s has no effect without %s.", _flag(item.name), _flag(missing))
    if _FROM_ZERO in used and not any(record.sampler in _COUNTING_SAMPLERS for record in records):
        logger.warning("--%s has no effect with --sampler %s: it is for ddim and pndm.", _FROM_ZERO, records[0].sampler)


def check_extras(record: GenerationRecord) -> None:
    """Refuse extras that do not go with a picture, or with each other.

    Raises:
        OptionError: They do not.
    """
    extras = record.extras or {}
    if (growth := growth_of(extras)) is not None:
        _check_growth(record, growth)
    for both in (("ds_depth_1", "control_net_models"), ("clip_vision_strength", REGIONS)):
        if all(name in extras for name in both):
            raise OptionError(f"{_flag(both[0])} and --{both[1]} exclude each other. Keep one of them.")
    if "ds_depth_2" in extras and extras["ds_timesteps_2"] >= extras["ds_timesteps_1"]:
        raise OptionError(
            f"{_flag('ds_depth_2')} acts below {_flag('ds_timesteps_1')} only. Give a smaller "
            f"{_flag('ds_timesteps_2')}."
        )
    if REGIONS in extras and len(region_prompts(record.prompt)) not in (1, extras[REGIONS]):
        raise OptionError(
            f"the prompt has {len(region_prompts(record.prompt))} parts between AND, and --{REGIONS} says "
            f"{extras[REGIONS]}. Give as many, or one prompt for all regions."
        )


def region_prompts(prompt: str) -> list[str]:
    """The parts of a prompt between AND."""
    return [part.strip() for part in prompt.split(" AND ")]


def part_of(prompt: str, region: int) -> str:
    """What a prompt says of a region, by its number from 0; all of it if it has no parts."""
    parts = region_prompts(prompt)
    return parts[region] if len(parts) > 1 else parts[0]


def control_pictures(extras: Mapping[str, Any]) -> list[str]:
    """Guiding pictures of ControlNets: the first one is not theirs if it is a map of regions, or for CLIP."""
    is_first_apart = REGIONS in extras or "clip_vision_strength" in extras
    return list(extras[GUIDE])[is_first_apart:]


def growth_of(extras: Mapping[str, Any]) -> Growth | None:
    """How latents grow; None where they do not.

    Raises:
        OptionError: The parameters of sharpening are malformed.
    """
    from library.diffusion.gradual_latents import Growth

    if "gradual_latent_timesteps" not in extras:
        return None
    return Growth(
        timestep=extras["gradual_latent_timesteps"],
        ratio=extras["gradual_latent_ratio"],
        ratio_step=extras["gradual_latent_ratio_step"],
        every_n_steps=extras["gradual_latent_every_n_steps"],
        noise_scale=extras["gradual_latent_s_noise"],
        unsharp=_unsharp(extras.get("gradual_latent_unsharp_params")),
    )


def shrink_of(extras: Mapping[str, Any]) -> DeepShrink | None:
    """How features are shrunk; None where they are not."""
    from library.models.deep_shrink import DeepShrink

    if "ds_depth_1" not in extras:
        return None
    return DeepShrink(
        extras["ds_depth_1"],
        extras["ds_timesteps_1"],
        extras.get("ds_depth_2"),
        extras["ds_timesteps_2"],
        extras["ds_ratio"],
    )


def batch_extras(record: GenerationRecord) -> str:
    """What pictures have in common that are drawn at once; their guiding pictures may differ, not those of regions."""
    extras = record.extras or {}
    shared = {name: value for name, value in extras.items() if name != GUIDE or REGIONS in extras}
    parts = len(region_prompts(record.prompt)) if REGIONS in extras else 1
    return json.dumps([parts, shared], sort_keys=True)


def _check_growth(record: GenerationRecord, growth: Growth) -> None:
    from library.diffusion.gradual_latents import GROWING_SAMPLERS

    option = "--gradual_latent_timesteps"
    if record.sampler not in GROWING_SAMPLERS:
        raise OptionError(f"{option}: latents grow with --sampler euler and euler_a, not {record.sampler}. Use these.")
    if record.image is not None:
        raise OptionError(f"{option} begins at noise, and --image_path does not. Keep one of them.")
    if "control_net_lllite_models" in (record.extras or {}):
        raise OptionError(f"{option} and --control_net_lllite_models exclude each other. Keep one of them.")


def _unsharp(text: str | None) -> Unsharp | None:
    from library.diffusion.gradual_latents import Unsharp

    if text is None:
        return None
    try:
        size, sigma, strength, of_result = text.split(",")
        found = Unsharp(int(size), float(sigma), float(strength), bool(int(of_result)))
    except ValueError:
        found = None
    if found is None or found.size < 1 or found.size % 2 == 0 or not found.sigma > 0:
        raise OptionError(f'--gradual_latent_unsharp_params must be like {_UNSHARP}, got "{text}".')
    return found


def _flag(name: str) -> str:
    """An option, with the one of a line where there is one."""
    letters = next((flag for flag, setting in LINE_OPTIONS.items() if setting == name), None)
    return f"--{name}" if letters is None else f"--{name} ({letters} in a line)"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
