"""The run of `--xyz`: pictures at all crossings of its axes, and sheets of them. Each model is read once; networks that
are compared are all attached to it, and one at a time has a strength."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from library.generation.axes import OPTION, Axis, Cell, Place, parse_axes, plan_cells
from library.generation.options.scripts import GenerationOptions
from library.generation.prompt_lines import PromptOptions
from library.generation.sheet import write_sheets
from library.generation.supply import AskedPrompt, PromptSupply
from library.log import get_logger

if TYPE_CHECKING:
    from library.generation.run import PictureRun

logger = get_logger(__name__)

_SEED_BITS = 32
_SETTINGS = {"steps": "steps", "scale": "scale", "sampler": "sampler"}  # {axis: what a prompt calls it}


def draw_sheets(options: GenerationOptions, make_run: Callable[[GenerationOptions], PictureRun]) -> int:
    """Draw the pictures and the sheets; returns the number of pictures.

    Args:
        options: With `--xyz`.
        make_run: The run of one model, which looks at headers only.

    Raises:
        UserError: Something cannot be used, or drawn.
    """
    prompts = list(PromptSupply.of(replace(options.prompts, images_per_prompt=1)).iteration(0))
    axes = parse_axes(options.sheets.xyz or (), [_label(asked) for asked in prompts])
    _tell_left_out(prompts)
    cells = plan_cells(axes)
    seed = secrets.randbits(_SEED_BITS) if options.prompts.seed is None else options.prompts.seed
    runs = []
    for model, group in groupby(cells, key=lambda cell: cell.values.get("ckpt")):
        own = list(group)
        run = make_run(_options_of(options, axes, model))
        asked = [_asked(cell, axes, prompts, seed, options) for cell in own]
        runs.append((run, own, asked))
    pictures: dict[Place, Path] = {}
    for run, own, asked in runs:
        run.draw(PromptSupply(ready=tuple(asked)))
        pictures |= dict(zip((cell.place for cell in own), run.written, strict=True))
        run.drawing = None  # its memory is for the next model
    for path in write_sheets(
        axes, cells, pictures, folder=options.files.outdir, name=f"sheet_{time.strftime('%Y%m%d%H%M%S')}"
    ):
        logger.info("%s", path)
    return len(pictures)


def _label(asked: AskedPrompt) -> str:
    return asked.options.prompt


def _tell_left_out(prompts: Sequence[AskedPrompt]) -> None:
    """Warn of what lines ask for and a sheet has not."""
    if any(len(asked.options.seeds or ()) > 1 for asked in prompts):
        logger.warning("of several seeds of --d a sheet has the first. Compare seeds by the axis seed=1,2.")
    if any(asked.options.file_name is not None for asked in prompts):
        logger.warning("--f has no effect: pictures of a sheet are named as usual.")


def _options_of(options: GenerationOptions, axes: Sequence[Axis], model: Any) -> GenerationOptions:
    """The options of the run of one model."""
    weights = next((axis.values for axis in axes if axis.name == "weights"), None)
    if weights is not None and options.network.network_weights:
        raise OptionError(f'{OPTION}: the axis "weights" stands for --network_weights. Give one of them.')
    if weights is None and not options.network.network_weights and any(axis.name == "lora" for axis in axes):
        raise OptionError(f'{OPTION}: the axis "lora" needs --network_weights or an axis "weights". Give one of them.')
    is_merged = options.network.network_merge or bool(options.network.network_merge_n_models)
    named = next((axis.name for axis in axes if axis.name in ("weights", "lora")), None)
    if is_merged and named is not None:
        raise OptionError(
            f'{OPTION}: merged networks have one strength. Leave --network_merge or the axis "{named}" out.'
        )
    if model is not None:
        options = replace(options, model=replace(options.model, ckpt=str(model)))
    if weights is not None:
        options = replace(options, network=replace(options.network, network_weights=tuple(map(Path, weights))))
    return options


def _asked(
    cell: Cell, axes: Sequence[Axis], prompts: Sequence[AskedPrompt], seed: int, options: GenerationOptions
) -> AskedPrompt:
    """The prompt of a picture with what is special about it. All pictures have one seed, if nothing says another."""
    numbers = {axis.name: number for axis, number in zip(axes, cell.place, strict=False)}
    asked = prompts[numbers.get("prompt", 0)]
    changes = {setting: cell.values[axis] for axis, setting in _SETTINGS.items() if axis in cell.values}
    own: PromptOptions = replace(asked.options, **changes)
    seeds = (cell.values["seed"],) if "seed" in cell.values else (own.seeds or (seed,))[:1]
    own = replace(own, seeds=seeds, network_muls=_strengths(cell, axes, own, options), file_name=None)
    return asked._replace(options=own, num_pictures=1)


def _strengths(
    cell: Cell, axes: Sequence[Axis], prompt: PromptOptions, options: GenerationOptions
) -> tuple[float, ...] | None:
    """Of the networks: that of the axis "lora" goes before that of the line, and this before the option."""
    usual = prompt.network_muls or options.network.network_mul or (1.0,)
    strength = cell.values.get("lora")
    weights = next((axis for axis in axes if axis.name == "weights"), None)
    if weights is None:
        return (strength,) if strength is not None else prompt.network_muls
    chosen = cell.place[list(axes).index(weights)]
    number = len(weights.values)
    each = [strength if strength is not None else usual[min(place, len(usual) - 1)] for place in range(number)]
    return tuple(own if place == chosen else 0.0 for place, own in enumerate(each))
