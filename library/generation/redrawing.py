"""Pictures that are drawn once more, from what their files say of themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from library.errors import OptionError, UserError
from library.generation.extras import GROUPS
from library.generation.file_marks import file_mark
from library.generation.options.scripts import GenerationOptions
from library.generation.png_reading import left_out, read_parameters, read_record
from library.generation.prompt_lines import PromptOptions
from library.generation.record import GenerationRecord
from library.generation.settings import MERGING, SETTINGS, files_of, is_of_hub
from library.generation.supply import AskedPrompt, PromptSupply
from library.log import get_logger
from library.options.spec import group_options
from library.options.spec import options_of as options_of_script
from networks.other_packages import is_lycoris, is_ours

logger = get_logger(__name__)

_OF_PROMPT = {  # {option: what of a record it stands for}
    **{name: name for name in ("steps", "sampler", "scale", "negative_scale", "strength")},
    **{"W": "width", "H": "height", "seed": "seed"},
}
_FAMILIES = ("sd", "sdxl", "sd3")


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
    asked = [_asked(path, options) for path in options.prompts.from_png or ()]
    if any(own.model.ckpt is None for own, _ in asked):
        raise UserError("--from_png: a picture does not say which model drew it. Give it with --ckpt.")
    return [
        Redrawing(own, PromptSupply(ready=tuple(one._replace(number=place) for place, (_, one) in enumerate(group))))
        for own, group in groupby(asked, key=lambda pair: pair[0])
    ]


def _asked(path: Path, options: GenerationOptions) -> tuple[GenerationOptions, AskedPrompt]:
    """What a picture asks for, and the options of its run."""
    record = read_record(path)
    if record is None:
        prompt = read_parameters(path)
        lost = left_out(path)
        told = f" Not taken over: {', '.join(lost)}." if lost else ""
        logger.warning("%s was drawn by another program: it will be alike at best.%s", path, told)
        return options, AskedPrompt(prompt, str(path))
    try:
        own = options_of(options, record)
        _refuse_missing(own, options)
    except UserError as error:
        raise type(error)(f"--from_png: {path}: {error}") from error
    _tell_differences(path, own, record)
    return own, AskedPrompt(prompt_of(record), str(path))


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
        file_name=record.file_name,
        **sizes,
    )


def options_of(options: GenerationOptions, record: GenerationRecord) -> GenerationOptions:
    """The options with what a picture says of its model and networks.

    Raises:
        OptionError: It says what no option allows, or names a program that would be run.
    """
    _typed(options, _of_prompt(record))  # of which `prompt_of` makes a prompt
    said = {name: value for name, value in _said(options, record).items() if name not in options.given}
    typed = _typed(options, said)
    _refuse_programs(typed)
    groups = {}
    for field, group in _groups(options):
        groups[field] = replace(group, **{name: typed[name] for name in group_options(type(group)) if name in typed})
    return replace(options, **groups)


def _typed(options: GenerationOptions, said: Mapping[str, Any]) -> dict[str, Any]:
    """{option: value} of plain values, in the types that options have. What is not said is left out."""
    known = options_of_script(type(options))
    typed: dict[str, Any] = {}
    for name, value in said.items():
        if value is None:
            continue
        try:
            typed[name] = known[name].from_toml(value)
        except ValueError as error:
            raise OptionError(f"its text says of {known[name].flag} what cannot be: it {error}") from error
        if problem := known[name].problem(typed[name]):
            raise OptionError(f"its text says of {known[name].flag} what cannot be: it {problem}")
    return typed


def _of_prompt(record: GenerationRecord) -> dict[str, Any]:
    sizes: dict[str, Any] = {} if record.sizes is None else dict(vars(record.sizes))
    return sizes | {name: getattr(record, of) for name, of in _OF_PROMPT.items()}


def _groups(options: GenerationOptions) -> Iterator[tuple[str, Any]]:
    names = ("model", "source", "computing", "network", "sd3", *GROUPS)
    return ((name, getattr(options, name)) for name in names)


def _said(options: GenerationOptions, record: GenerationRecord) -> dict[str, Any]:
    """{option: value} of what a picture says, as plain values. What it does not say is left to the command line."""
    settings, extras = record.settings or {}, record.extras or {}
    of_extras = {name for group in GROUPS for name in group_options(type(getattr(options, group)))}
    if unknown := (settings.keys() - set(SETTINGS)) | (extras.keys() - of_extras):
        raise OptionError(f"its text has settings that this version does not know: {', '.join(sorted(unknown))}.")
    if record.family not in _FAMILIES:
        raise OptionError(f"its text says that {record.family} drew it, which this version does not know.")
    said: dict[str, Any] = {
        "ckpt": record.model,
        "vae": record.vae,
        "textual_inversion_embeddings": list(record.embeddings) or None,
        "image_path": record.image,
        "mask_path": record.mask,
        **extras,
        **settings,
    }
    if record.family != "sd3":
        said |= {
            name: getattr(record, name) for name in ("clip_skip", "max_embeddings_multiples", "emb_normalize_mode")
        }
        if not _is_of_other_model(options, record):
            said |= {name: getattr(record, name) for name in ("v_parameterization", "zero_terminal_snr")}
    if options.model.chosen is not None:
        said |= dict.fromkeys(("v1", "v2", "sdxl"))
    if not options.given & {"fp16", "bf16"} and record.precision != "float":
        said[_precision(record)] = True
    return said | _networks_said(options, record)


def _is_of_other_model(options: GenerationOptions, record: GenerationRecord) -> bool:
    """Whether the command line names another model, and not only its new place."""
    return "ckpt" in options.given and file_mark(Path(str(options.model.ckpt))) != record.model_hash


def _precision(record: GenerationRecord) -> str:
    if record.precision not in ("fp16", "bf16"):
        raise OptionError(f"its text says of the precision what cannot be: {record.precision}.")
    return record.precision


def _networks_said(options: GenerationOptions, record: GenerationRecord) -> dict[str, Any]:
    """Networks of a picture; nothing where the command line names others."""
    names = ("network_weights", "network_mul", "network_module", "network_args")
    if not record.networks or ("network_weights" in options.given and not _have_moved(options, record)):
        return dict.fromkeys((*names, *MERGING))
    found: dict[str, Any] = {
        "network_weights": [use.path for use in record.networks],
        "network_mul": [use.multiplier for use in record.networks],
        "network_module": [use.module for use in record.networks],
    }
    if any(use.args for use in record.networks):
        found["network_args"] = [_joined(use.args) or ";" for use in record.networks]  # "" means: not given
    return found if not options.given & set(MERGING) else {**found, **dict.fromkeys(MERGING)}


def _have_moved(options: GenerationOptions, record: GenerationRecord) -> bool:
    """Whether the command line names the networks of a picture at new places."""
    marks = [(record.files or {}).get(use.path) for use in record.networks]
    return all(marks) and marks == [file_mark(path) for path in options.network.network_weights or ()]


def _joined(args: Mapping[str, str] | None) -> str:
    return ";".join(f"{key}={value}" for key, value in (args or {}).items())


def _refuse_programs(said: Mapping[str, Any]) -> None:
    """A picture may come from anywhere, so it alone starts no program."""
    if "highres_fix_upscaler" in said:
        raise OptionError(
            f"it was enlarged by {said['highres_fix_upscaler']}, a program that may do anything. Give "
            "--highres_fix_upscaler too, if you trust it."
        )
    for module in said.get("network_module") or ():
        if not (is_ours(module) or is_lycoris(module)):
            raise OptionError(
                f"it was drawn with the network module {module}, a program that may do anything. Give "
                "--network_weights and --network_module too, if you trust it."
            )


def _refuse_missing(own: GenerationOptions, options: GenerationOptions) -> None:
    for name, path in files_of(own):
        may_be_of_hub = name in ("ckpt", "vae")
        if name in options.given or path.exists() or (may_be_of_hub and is_of_hub(path)):
            continue
        raise OptionError(f"{path}, which drew the picture, is not there. Name its place by --{name}.")


def _tell_differences(path: Path, own: GenerationOptions, record: GenerationRecord) -> None:
    """Warn of files that have other content now, and of options that pictures go before."""
    marks = {record.model: record.model_hash, **(record.files or {})}
    used = dict.fromkeys(str(file) for _, file in files_of(own))
    changed = [file for file in used if marks.get(file) and file_mark(Path(file)) != marks[file]]
    if changed:
        logger.warning("%s: it will be another picture, for files have changed: %s.", path, ", ".join(changed))
    unused = [f"--{name}" for name in _OF_PROMPT if name in own.given and name != "seed"]
    if unused:
        logger.warning("%s: the picture says what %s says, and goes before it.", path, ", ".join(unused))
