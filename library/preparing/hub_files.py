"""Models that caption or tag: a folder of this machine, or the name of a repository on the hub ("owner/name").

What is not here yet is downloaded into the cache of the hub's client, which all programs of a user share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from library.errors import CheckpointError
from library.families.hub_model import hub_advice, is_hub_name
from library.log import get_logger
from library.models.tokenizer_hub import hub_answers

logger = get_logger(__name__)


def model_folder(name: str, what: str, patterns: Sequence[str], *, is_forced: bool = False) -> Path:
    """The folder of a model.

    Args:
        name: A folder, or "owner/name".
        what: The option, for instance "--model".
        patterns: Which files of a repository are needed, for instance "*.json".
        is_forced: Download again what is there.

    Raises:
        CheckpointError: It is neither a folder nor to be had from the hub.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(f"{what}: {path} is a file. Name the folder that the model's files are in.")
    if not may_be_on_hub(name):
        raise CheckpointError(
            f"{what}: the folder {name} does not exist. Check the path; a model of the hub is named as owner/name."
        )
    return _snapshot(name, what, patterns, is_forced)


def may_be_on_hub(name: str) -> bool:
    """Whether a text is the name of a model on the hub, as its client takes it, and of nothing on this machine."""
    path = Path(name)
    is_plain = path.as_posix() == name and "--" not in name and ".." not in name
    return is_plain and is_hub_name(path) and not any(part.endswith(("-", ".")) for part in path.parts)


def _snapshot(name: str, what: str, patterns: Sequence[str], is_forced: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    is_there = hub_answers()
    # The client lets some errors of its HTTP library through; their base is the "HTTPError" that its own extends.
    faults: list[Any] = [base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"]
    try:
        folder = snapshot_download(
            name, allow_patterns=list(patterns), local_files_only=not is_there, force_download=is_forced and is_there
        )
    except LocalEntryNotFoundError as error:
        if is_there:
            raise CheckpointError(f"{what}: {hub_advice(name, error)}") from None
        raise CheckpointError(
            f"{what}: {name} is no folder here, it was not downloaded before, and the hub cannot be reached. Download "
            f"it where there is a connection (hf download {name} --local-dir FOLDER) and give the folder, or start "
            "once with a connection and without HF_HUB_OFFLINE."
        ) from None
    except (OSError, *faults) as error:
        raise CheckpointError(f"{what}: {hub_advice(name, error)}") from None
    return Path(folder)
