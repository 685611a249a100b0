"""Checks at the start of a run that several scripts share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from library.errors import DatasetError, OptionError, OutputError
from library.log import get_logger
from library.records import Size
from library.training.prompts import SamplePrompt

logger = get_logger(__name__)


def check_output_dir(folder: Path) -> None:
    """Make the folder and see whether a file can be written, before anything is computed.

    Raises:
        OutputError: It cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            f"--output_dir: {folder} cannot be written ({error.strerror or error}). Choose another folder."
        ) from None


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


def check_block_swap(asked: int | None, depth: int, has_accelerator: bool) -> None:
    """Say what --blocks_to_swap means for this model; refuse it where it would have to do something.

    Args:
        asked: The option.
        depth: Blocks of the model.
        has_accelerator: Whether there is a device to swap with.

    Raises:
        OptionError: There is a device, and swapping is not available yet.
    """
    if not asked:
        return
    if asked > depth:
        logger.info("--blocks_to_swap %d: the model has %d blocks, so all of them are meant.", asked, depth)
    if has_accelerator:
        raise OptionError(
            f"--blocks_to_swap {asked}: swapping blocks on a GPU is not available yet. Leave the option out."
        )
    logger.warning("--blocks_to_swap has no effect without a GPU: there is nothing to swap.")
