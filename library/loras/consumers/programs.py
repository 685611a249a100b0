"""The programs whose reading of a LoRA file is checked, and which of them is known to read which form of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from library.loras.consumers import a1111, comfyui, diffusers, forge
from library.loras.consumers.rules import Content, Reading, published_names

COMFYUI, FORGE, A1111, DIFFUSERS = "ComfyUI", "Forge", "A1111", "diffusers"
READERS: Mapping[str, Callable[[Content], Reading]] = {
    COMFYUI: comfyui.read,
    FORGE: forge.read,
    A1111: a1111.read,
    DIFFUSERS: diffusers.read,
}
_ALL = tuple(READERS)
_PEFT = ("unet.", "transformer.", "text_encoder.", "text_encoder_2.", "text_encoder_3.")


@dataclass(frozen=True)
class Known:
    """What is known of a form of file.

    Attributes:
        title: What the form is called.
        readers: Programs that read it in full.
    """

    title: str
    readers: tuple[str, ...]


_FORMS: Mapping[str, Mapping[str, Known]] = {
    "sd3": {
        "published": Known("kohya", (COMFYUI, FORGE)),
        "native": Known("native", (COMFYUI, FORGE)),
        "peft": Known("diffusers", (COMFYUI, DIFFUSERS)),
    },
    "sdxl": {
        "published": Known("kohya with published names", _ALL),
        "other": Known("kohya with the names of diffusers", (COMFYUI, FORGE)),
        "native": Known("native", (COMFYUI, FORGE)),
        "peft": Known("diffusers", (DIFFUSERS,)),
    },
    "sd": {
        "published": Known("kohya with published names", (COMFYUI, FORGE, A1111)),
        "other": Known("kohya with the names of diffusers", _ALL),
        "native": Known("native", (COMFYUI, FORGE)),
        "peft": Known("diffusers", (DIFFUSERS,)),
    },
}
_ADVICE = {  # what makes a file that the program reads
    "sd3": {FORGE: "--to kohya", A1111: "--to kohya --fold_alpha", DIFFUSERS: "--to diffusers"},
    "sdxl": {A1111: "--to kohya", DIFFUSERS: "--to kohya", FORGE: "--to kohya", COMFYUI: "--to kohya"},
    "sd": {A1111: "--to kohya", DIFFUSERS: "--to kohya", FORGE: "--to kohya", COMFYUI: "--to kohya"},
}

TO_MOVE_A_NOTE: Mapping[str, str] = {"sd3": "--to diffusers", "sdxl": "--to kohya", "sd": "--to kohya"}
"""{family: options of the converter that move a strength from the metadata into the factors}"""


def form_of(content: Content) -> Known:
    """What form a file has. A form that is not known here is to be read by ComfyUI, which knows most."""
    family, names = content.layers.family, content.modules()
    forms = _FORMS[family]
    if any(name.startswith("diffusion_model.") for name in names):
        return forms["native"]
    if any(name.startswith(_PEFT) for name in names):
        return forms["peft"]
    if any(name.startswith(("lora_transformer_", "lycoris_", "base_model.")) for name in names):
        return Known("of another trainer", (COMFYUI,))
    known = published_names(content.layers)
    own = [name in known for name in names if name.startswith("lora_unet_")]
    is_published = any(own) if own else family != "sd"
    return forms["published" if is_published or family == "sd3" else "other"]


def advice_for(program: str, family: str) -> str | None:
    """Options of the converter that make a file which the program reads; None where there are none."""
    return _ADVICE[family].get(program)
