"""Pictures that are drawn once more, from what their files say of themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from library.errors import OptionError, UserError
from library.generation.extras import GROUPS, option_values
from library.generation.options.scripts import GenerationOptions
from library.generation.png_reading import read_parameters, read_record
from library.generation.prompt_lines import PromptOptions
from library.generation.record import GenerationRecord
from library.generation.supply import AskedPrompt, PromptSupply
from library.log import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Redrawing:
    """A run of its own.

    Attributes:
        options: With the model, networks and source picture of the pictures.
        supply: What is drawn.
    """

    options: GenerationOptions
    supply: PromptSupply


def redrawings(options: GenerationOptions) -> list[Redrawing]:
    """The runs that draw the pictures of `--from_png` again; pictures of one model in a row are drawn by one.

    What the command line says of the model, of networks and of precision goes before what pictures say.

    Raises:
        UserError: A picture cannot be read, or does not say how it was made.
    """
    asked: list[tuple[GenerationOptions, AskedPrompt]] = []
    for path in options.prompts.from_png or ():
        record = read_record(path)
        if record is None:
            logger.warning("%s was drawn by another program: it will be alike at best.", path)
            asked.append((options, AskedPrompt(read_parameters(path), str(path))))
        else:
            asked.append((options_of(options, record), AskedPrompt(prompt_of(record), str(path))))
    if any(own.model.ckpt is None for own, _ in asked):
        raise UserError("--from_png: a picture does not say which model drew it. Give it with --ckpt.")
    return [
        Redrawing(own, PromptSupply(ready=tuple(prompt for _, prompt in group)))
        for own, group in groupby(asked, key=lambda pair: pair[0])
    ]


def prompt_of(record: GenerationRecord) -> PromptOptions:
    """What a picture asks for, as a line would."""
    sizes: dict[str, Any] = {} if record.sizes is None else dict(vars(record.sizes))
    return PromptOptions(
        record.prompt,
        negative_prompt=record.negative_prompt,
        width=record.width,
        height=record.height,
        steps=record.steps,
        seeds=(record.seed,),
        scale=record.scale,
        negative_scale="none" if record.negative_scale is None else record.negative_scale,
        strength=record.strength,
        sampler=record.sampler if record.family != "sd3" else None,
        clip_prompt=record.clip_prompt,
        **sizes,
    )


def options_of(options: GenerationOptions, record: GenerationRecord) -> GenerationOptions:
    """The options with what a picture says of its model and networks.

    Raises:
        OptionError: A file that the picture was drawn from is not there any more.
    """
    model = {
        "ckpt": record.model,
        "vae": None if record.vae is None else Path(record.vae),
        "clip_skip": record.clip_skip,
        "max_embeddings_multiples": record.max_embeddings_multiples,
        "emb_normalize_mode": record.emb_normalize_mode,
        "textual_inversion_embeddings": tuple(map(Path, record.embeddings)) or None,
        "v_parameterization": record.v_parameterization,
        "zero_terminal_snr": record.zero_terminal_snr,
    }
    network: dict[str, Any] = {
        "network_weights": tuple(Path(use.path) for use in record.networks) or None,
        "network_mul": tuple(use.multiplier for use in record.networks) or None,
        "network_module": tuple(use.module for use in record.networks) or None,
        "network_args": tuple(_joined(use.args) for use in record.networks) or None,
    }
    source = {
        "image_path": None if record.image is None else Path(record.image),
        "mask_path": None if record.mask is None else Path(record.mask),
    }
    has_precision = record.precision != "float" and not options.given & {"fp16", "bf16"}
    computing: dict[str, Any] = {record.precision: True} if has_precision else {}
    own = options
    for name, values in (("model", model), ("source", source), ("computing", computing)):
        unsaid = {key: value for key, value in values.items() if key not in options.given}
        own = replace(own, **{name: replace(getattr(own, name), **unsaid)})
    extras = option_values(record.extras or {})
    for name in GROUPS:
        group = getattr(own, name)
        unsaid = {key: value for key, value in extras.items() if hasattr(group, key) and key not in options.given}
        own = replace(own, **{name: replace(group, **unsaid)})
    if not options.given & network.keys():
        own = replace(own, network=replace(own.network, **network))
    _refuse_missing(own, record)
    return own


def _joined(args: Any) -> str:
    return ";".join(f"{key}={value}" for key, value in (args or {}).items())


def _refuse_missing(options: GenerationOptions, record: GenerationRecord) -> None:
    files = [
        ("--ckpt", options.model.ckpt),
        *(("--network_weights", path) for path in options.network.network_weights or ()),
        ("--image_path", options.source.image_path),
    ]
    said = {record.model, record.image, *(use.path for use in record.networks)}
    for option, path in files:
        if path is not None and str(path) in said and not Path(path).exists():
            raise OptionError(f"--from_png: {path}, which drew the picture, is not there. Name its place by {option}.")
