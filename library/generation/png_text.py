"""What a picture's file says about how it was made, as text chunks of a PNG, in three forms.

    parameters   the text that the web interface of AUTOMATIC1111 and most galleries read
    prompt, seed, steps, ...   one chunk each, as sd-scripts writes them
    easel        all of it as JSON: what draws the same picture again

Networks stand behind the prompt in the first form only, as <lora:name:strength>; those of strength 0 do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from library.generation.highres import first_pass, is_in_two_passes
from library.generation.record import GenerationRecord, record_to_json

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

_MULTIPLES = {"sd3": 16}  # of the sides of pictures, in pixels; 8 for the others
PARAMETERS_CHUNK = "parameters"
RECORD_CHUNK = "easel"
SHEET_CHUNK = "easel_sheet"
"""Of sheets: the name of the file that says what is on them."""
NEGATIVE = "Negative prompt:"
SAMPLER_TITLES = {
    "ddim": "DDIM",
    "pndm": "PLMS",
    "lms": "LMS",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpm_2": "DPM2",
    "dpm_2_a": "DPM2 a",
    "dpmsolver": "DPM-Solver",
    "dpmsolver++": "DPM++ 2M",
    "dpmsingle": "DPM++ 2S",
}
"""{name of a sampler: as AUTOMATIC1111 spells it}; that interface has no dpmsolver, nor dpmsingle without noise."""
SAMPLER_NAMES = {title.lower(): name for name, title in SAMPLER_TITLES.items()}


class Setting(NamedTuple):
    """One entry of the last line of the text of AUTOMATIC1111."""

    title: str
    value: str


def generation_text(record: GenerationRecord) -> dict[str, str]:
    """{keyword of a chunk: text} of a picture."""
    return {
        PARAMETERS_CHUNK: parameters_text(record),
        **dict(_single_chunks(record)),
        RECORD_CHUNK: json.dumps(record_to_json(record)),
    }


def png_chunks(texts: Mapping[str, str]) -> PngInfo:
    """The chunks for Pillow's `save(pnginfo=...)`. Half characters, which no file can have, become question marks."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for keyword, text in texts.items():
        chunks.add_text(keyword, text.encode("utf-8", "replace").decode("utf-8").replace("\0", " "))
    return chunks


def parameters_text(record: GenerationRecord) -> str:
    """The text of AUTOMATIC1111: the prompt, the negative prompt, and one line of settings."""
    tags = [f"<lora:{network.name}:{network.multiplier:g}>" for network in record.networks if network.multiplier]
    lines = [" ".join([record.prompt, *tags]).strip()]
    if record.negative_prompt:
        lines.append(f"{NEGATIVE} {record.negative_prompt}")
    lines.append(", ".join(f"{title}: {quoted(value)}" for title, value in _settings(record)))
    return "\n".join(lines)


def quoted(value: str) -> str:
    """A value of the last line; in quotes like those of JSON where it has what separates values."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:\n"') else value


def _settings(record: GenerationRecord) -> Iterator[Setting]:
    name = record.sampler.removeprefix("k_")
    first = first_pass(record, _MULTIPLES.get(record.family, 8)) if is_in_two_passes(record) else record
    yield Setting("Steps", str(first.steps))
    yield Setting("Sampler", SAMPLER_TITLES.get(name, name))
    yield Setting("CFG scale", f"{record.scale:g}")
    yield Setting("Seed", str(record.seed))
    yield Setting("Size", f"{first.width}x{first.height}")
    if record.model_hash:
        yield Setting("Model hash", record.model_hash)
    yield Setting("Model", Path(record.model).stem)
    if record.vae:
        yield Setting("VAE", Path(record.vae).name)
    if record.strength is not None:
        yield Setting("Denoising strength", f"{record.strength:g}")
    if first is not record:
        yield from _of_second_pass(record, first)
    if record.clip_skip:
        yield Setting("Clip skip", str(record.clip_skip))
    hashes = [f"{network.name}: {network.hash}" for network in record.networks if network.hash and network.multiplier]
    if hashes:
        yield Setting("Lora hashes", ", ".join(hashes))
    yield Setting("Version", "Easel")


def _of_second_pass(record: GenerationRecord, first: GenerationRecord) -> Iterator[Setting]:
    extras = record.extras or {}
    is_latent = extras["highres_fix_latents_upscaling"]
    yield Setting("Hires upscale", f"{record.width / first.width:g}")
    yield Setting("Hires steps", str(record.steps))
    yield Setting("Hires upscaler", extras.get("highres_fix_upscaler") or ("Latent" if is_latent else "Lanczos"))


def _single_chunks(record: GenerationRecord) -> Iterator[tuple[str, str]]:
    """What sd-scripts writes beside."""
    yield "prompt", record.prompt
    yield "seed", str(record.seed)
    yield "sampler", record.sampler
    yield "steps", str(record.steps)
    yield "scale", f"{record.scale:g}"
    if record.negative_prompt:
        yield "negative-prompt", record.negative_prompt
    if record.negative_scale is not None:
        yield "negative-scale", f"{record.negative_scale:g}"
    if record.clip_prompt:
        yield "clip-prompt", record.clip_prompt
    if record.sizes is not None:
        for name, value in vars(record.sizes).items():
            yield name.replace("_", "-"), str(value)
