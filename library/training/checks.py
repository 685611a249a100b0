"""Checks at the start of a run that several scripts share."""

from __future__ import annotations

import tempfile
from pathlib import Path

from library.errors import OptionError, OutputError
from library.log import get_logger

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
