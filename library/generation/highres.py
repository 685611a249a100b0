"""Pictures in two passes: a small one first, which is enlarged and drawn over."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from library.generation.prompt_lines import shortened
from library.generation.record import GenerationRecord, PictureSizes
from library.records import Size

if TYPE_CHECKING:
    from PIL.Image import Image

    from library.generation.model import DrawingModel

_OPTION = "--highres_fix_upscaler"
_FIRST_ONLY = ("gradual_latent_",)  # extras of the first pass
_KNOWN_FORM = "lowreso_imgs"  # a parameter of upscalers that were written for sd-scripts

Enlarge = Callable[[Sequence["Image"], Size], list["Image"]]


def is_in_two_passes(record: GenerationRecord) -> bool:
    """Whether the record asks for them."""
    return "highres_fix_scale" in (record.extras or {})


def first_pass(record: GenerationRecord, multiple: int) -> GenerationRecord:
    """The small picture of a picture. Sides are multiples of a number of pixels, at least one."""
    extras = dict(record.extras or {})
    scale = extras["highres_fix_scale"]

    def small(side: int) -> int:
        return max(int(side * scale) // multiple, 1) * multiple

    strength = extras.get("highres_fix_strength", record.strength)
    return replace(
        record,
        width=small(record.width),
        height=small(record.height),
        steps=extras["highres_fix_steps"],
        sizes=None if record.sizes is None else _scaled(record.sizes, scale),
        strength=None if record.image is None else strength,
        extras={name: value for name, value in extras.items() if not name.startswith("highres_fix_")},
    )


def second_pass(record: GenerationRecord) -> GenerationRecord:
    """The large picture, which begins at what the first pass came to."""
    extras = dict(record.extras or {})
    left_out = ("highres_fix_", *_FIRST_ONLY, *(("control_net_",) if extras["highres_fix_disable_control_net"] else ()))
    return replace(record, extras={name: value for name, value in extras.items() if not name.startswith(left_out)})


def enlarger(extras: Mapping[str, Any], model: DrawingModel | None = None) -> Enlarge:
    """What enlarges pictures: the module that extras name, or Lanczos resampling.

    Args:
        extras: Of a record.
        model: For modules in the form of sd-scripts, which are given its VAE.

    Raises:
        OptionError: The module cannot be used.
    """
    name = extras.get("highres_fix_upscaler")
    if name is None:
        return _by_lanczos
    create = find_upscaler(name)
    try:
        upscaler = create(**upscaler_arguments(extras.get("highres_fix_upscaler_args")))
    except Exception as error:
        raise OptionError(f"{_OPTION}: create_upscaler of {name} fails ({_reason(error)}). Mend it.") from error
    if not callable(getattr(upscaler, "upscale", None)):
        raise OptionError(f"{_OPTION}: what create_upscaler of {name} gives has no upscale(pictures, width, height).")
    return _known_form(upscaler, model) if _is_known_form(upscaler) else _simple_form(upscaler, name)


def find_upscaler(name: str) -> Callable[..., Any]:
    """`create_upscaler` of a module, or of a Python file.

    Raises:
        OptionError: It cannot be imported, or has no such function.
    """
    try:
        module = _loaded(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except Exception as error:
        raise OptionError(f"{_OPTION}: the module {name} cannot be imported ({_reason(error)}). Check it.") from error
    create = getattr(module, "create_upscaler", None)
    if not callable(create):
        raise OptionError(f"{_OPTION}: {name} has no function create_upscaler. Add it, or leave the option out.")
    return create


def upscaler_arguments(text: str | None) -> dict[str, str]:
    """{key: value} of "key=value;key=value".

    Raises:
        OptionError: It is of another form.
    """
    pairs = [part.partition("=") for part in (text or "").split(";") if part.strip()]
    for key, equals, _ in pairs:
        if not equals or not key.strip():
            raise OptionError(f"--highres_fix_upscaler_args {text}: write key=value, with ; between several.")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _loaded(path: Path) -> Any:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location("upscaler_module", path)
    assert spec is not None and spec.loader is not None  # of a name that ends in .py there is one
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _by_lanczos(pictures: Sequence[Image], size: Size) -> list[Image]:
    from PIL import Image as pillow

    return [picture.resize(size, pillow.Resampling.LANCZOS) for picture in pictures]


def _simple_form(upscaler: Any, name: str) -> Enlarge:
    def enlarge(pictures: Sequence[Image], size: Size) -> list[Image]:
        try:
            larger = list(upscaler.upscale(list(pictures), size.width, size.height))
        except Exception as error:
            raise OptionError(f"{_OPTION}: upscale of {name} fails ({_reason(error)}). Mend it.") from error
        if len(larger) != len(pictures):
            raise OptionError(f"{_OPTION}: upscale of {name} gives {len(larger)} pictures for {len(pictures)}.")
        return _by_lanczos(larger, size)  # in case that it knows few sizes only

    return enlarge


def _is_known_form(upscaler: Any) -> bool:
    return _KNOWN_FORM in inspect.signature(upscaler.upscale).parameters


def _known_form(upscaler: Any, model: DrawingModel | None) -> Enlarge:
    """Of modules for sd-scripts: upscale(vae, lowreso_imgs, lowreso_latents, dtype, width, height, batch_size,
    vae_batch_size)."""

    def enlarge(pictures: Sequence[Image], size: Size) -> list[Image]:
        assert model is not None  # it is loaded when pictures are drawn
        if hasattr(upscaler, "to"):
            upscaler.to(model.dtype)
            upscaler.to(model.device)
        number = len(pictures)
        larger = upscaler.upscale(model.vae, list(pictures), None, model.dtype, *size, number, number)
        if not all(hasattr(picture, "resize") for picture in larger):
            raise OptionError(f"{_OPTION}: the module gives no pictures. Use one that enlarges pictures, not latents.")
        return _by_lanczos(list(larger), size)

    return enlarge


def _scaled(sizes: PictureSizes, scale: float) -> PictureSizes:
    return PictureSizes(**{name: round(value * scale) for name, value in vars(sizes).items()})


def _reason(error: Exception) -> str:
    return shortened(f"{type(error).__name__}: {error}", 200)
