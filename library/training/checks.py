"""Checks at the start of a run that several scripts share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.data.report.cache_size import free_space
from library.data.report.report_text import bytes_in_words
from library.errors import DatasetError, OptionError, OutputError
from library.log import get_logger
from library.records import Size
from library.training.processes import num_processes
from library.training.sampling.prompts import SamplePrompt

if TYPE_CHECKING:
    from torch import Tensor

    from library.training.saving.saver import SavePlan

logger = get_logger(__name__)

_PROBE_BYTES = 1 << 16  # on a full disk an empty file can still be made
_COPIES_IN_A_STATE = 3  # the weights, and Adam's two averages of gradients
_ELEMENT_BYTES = {"fp16": 2, "bf16": 2, "float": 4}


def check_output_dir(folder: Path) -> None:
    """Make the folder and see whether a file can be written, before anything is computed.

    Raises:
        OutputError: It cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror or error
        raise OutputError(f"--output_dir: {folder} cannot be written ({reason}). Choose another folder.") from None


def check_writable(folders: Iterable[Path], advice: str) -> None:
    """See whether files could be written, without writing any. Folders that do not exist would be made.

    Args:
        folders: Where files would go.
        advice: What to do, without full stop.

    Raises:
        OutputError: They cannot.
    """
    for folder in folders:
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise OutputError(f"{folder}: files cannot be written there. {advice}.")


def check_picture_sizes(
    longest: int | None, buckets: Iterable[Size], prompts: Iterable[SamplePrompt], source: str
) -> None:
    """Refuse pictures that are larger than the model can place, before its weights are read.

    Args:
        longest: Longest side that the model allows, in pixels; None for any.
        buckets: Sizes that are trained.
        prompts: Sample pictures.
        source: The dataset file, for messages.

    Raises:
        DatasetError: A bucket is too large.
        OptionError: A sample picture is.
    """
    if longest is None:
        return
    for size in buckets:
        if max(size) > longest:
            raise DatasetError(
                f"{source}: pictures are trained at {size} pixels, but this model goes up to {longest} a side. "
                "Lower resolution or max_bucket_reso."
            )
    for prompt in prompts:
        if max(prompt.width, prompt.height) > longest:
            raise OptionError(
                f"--sample_prompts: prompt {prompt.index + 1} asks for {prompt.width}x{prompt.height} pixels, but this "
                f"model goes up to {longest} a side. Give it smaller --w and --h."
            )


def check_block_swap(asked: int | str | None, depth: int, has_accelerator: bool) -> None:
    """Say what --blocks_to_swap means for this model.

    Args:
        asked: The option.
        depth: Blocks of the model.
        has_accelerator: Whether there is a device to swap with, or one is meant.
    """
    if not asked:
        return
    if isinstance(asked, int) and asked > depth:
        logger.info("--blocks_to_swap %d: the model has %d blocks, so all of them are meant.", asked, depth)
    if not has_accelerator and isinstance(asked, int):  # what auto means is told where it is chosen
        logger.warning("--blocks_to_swap has no effect without a GPU: there is nothing to swap.")


def check_free_space(
    folder: Path,
    saves: SavePlan,
    trained: Sequence[Tensor],
    *,
    first_step: int = 0,
    num_averages: int = 0,
    model_bytes: int | None = None,
) -> None:
    """Compare the room that the saves of a run will take with what is free, before the first step.

    Sizes are estimates: a model file has the numbers that train, a state three times as many.

    Args:
        folder: `--output_dir`.
        saves: The names that the run will save under.
        trained: Everything that trains, with or without numbers.
        first_step: Steps that are done already.
        num_averages: How many averages of the weights (`--ema_decay`) are saved beside them.
        model_bytes: Of a model with its side files, where it has more in it than what trains.

    Raises:
        OutputError: Not even one save fits.
    """
    free = check_one_save(folder, saves, trained, num_averages=num_averages, model_bytes=model_bytes)
    if free is None:
        return
    model, state = _save_sizes(trained, saves.options.save_precision, num_averages, model_bytes)
    needed = _room_at_most(folder, saves, model, state, first_step)
    if free < needed:
        logger.warning(
            "--output_dir: %s has %s free, and all saves of this run take about %s. Free some space, save less often, "
            "or keep fewer files with --save_last_n_steps or --save_last_n_epochs.",
            folder,
            bytes_in_words(free),
            bytes_in_words(needed),
        )


def check_one_save(
    folder: Path,
    saves: SavePlan,
    trained: Iterable[Tensor],
    *,
    num_averages: int = 0,
    model_bytes: int | None = None,
) -> int | None:
    """See whether there is room for one save, and tell how many bytes are free; None where the system does not say.

    Args:
        folder: See `check_free_space`, also for the others and for errors.
    """
    free, options = free_space(folder), saves.options
    model, state = _save_sizes(trained, options.save_precision, num_averages, model_bytes)
    one = model + (state if options.save_state or options.save_state_on_train_end else 0)
    if free is not None and free < one:
        raise OutputError(
            f"--output_dir: {folder} has {bytes_in_words(free)} free, and one save takes about {bytes_in_words(one)}. "
            "Free some space, or choose another folder."
        )
    return free


def save_bytes(
    folder: Path,
    saves: SavePlan,
    trained: Sequence[Tensor],
    *,
    num_averages: int = 0,
    model_bytes: int | None = None,
) -> tuple[int, int]:
    """Bytes of one save, and the most that all saves of a run add to the folder.

    Args:
        folder: See `check_free_space`, also for the others.
    """
    options = saves.options
    model, state = _save_sizes(trained, options.save_precision, num_averages, model_bytes)
    one = model + (state if options.save_state or options.save_state_on_train_end else 0)
    return one, _room_at_most(folder, saves, model, state, 0)


def _save_sizes(
    trained: Iterable[Tensor], precision: str | None, num_averages: int, model_bytes: int | None
) -> tuple[int, int]:
    """Bytes of a model file with its averages, and of a state."""
    model = state = 0
    for tensor in trained:
        as_trained = tensor.element_size()
        model += tensor.numel() * (as_trained if precision is None else _ELEMENT_BYTES[precision])
        state += tensor.numel() * as_trained
    if model_bytes is not None:
        model = model_bytes
    return model * (1 + num_averages), state * (_COPIES_IN_A_STATE + num_averages)


def _room_at_most(folder: Path, saves: SavePlan, model: int, state: int, first_step: int) -> int:
    """Bytes that the saves after a step add to a folder at most. A new file is complete before an old one goes."""
    added = most = 0
    is_there: dict[str, bool] = {}
    for name, old, size in _writes(saves, model, state, first_step):
        most = max(most, added + size)
        if not is_there.setdefault(name, (folder / name).exists()):
            added += size
        is_there[name] = True
        if old is not None and old != name and is_there.setdefault(old, (folder / old).exists()):
            added -= size
            is_there[old] = False
    return most


def _writes(saves: SavePlan, model: int, state: int, first_step: int) -> Iterator[tuple[str, str | None, int]]:
    """(name, name that it replaces, bytes) of everything that is saved after a step."""
    options = saves.options
    for step in range(first_step + 1, saves.course.num_steps + 1):
        for save in saves.due(step):
            yield save.model, save.old_model, model
            if options.save_state:
                yield save.state, save.old_state, state
    end = saves.of_end()
    yield end.model, None, model
    if options.save_state or options.save_state_on_train_end:
        yield end.state, None, state


def check_steps_in_backward(options: Any) -> None:
    """Refuse what cannot be done where the optimizer steps inside the backward pass.

    Raises:
        OptionError: Gradients would have to be added up, or scaled; there are several processes; or adapters are to
            step by blocks.
    """
    flag = options.optimizer.steps_in_backward
    if flag is None:
        return
    if options.optimizer.blockwise_fused_optimizers and hasattr(options, "network"):
        raise OptionError(
            f"{flag} steps the weights of a block together, and adapters are not among them. Use --fused_backward_pass."
        )
    number = options.training.gradient_accumulation_steps
    if number > 1:
        raise OptionError(
            f"{flag} uses each gradient at once, so --gradient_accumulation_steps {number} has nothing to add up. "
            "Leave one of them out."
        )
    if options.precision.mixed_precision == "fp16":
        raise OptionError(
            f"{flag} cannot be used with --mixed_precision fp16, whose loss scaling must see all gradients before a "
            "step. Use bf16."
        )
    if num_processes() > 1:
        raise OptionError(
            f"{flag} trains in one process, and {num_processes()} were started, which share all gradients before a "
            "step. Leave it out, or start one process."
        )
