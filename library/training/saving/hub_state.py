"""A saved state from the Hugging Face hub, for --resume with --resume_from_huggingface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from library.errors import EnvironmentFault, OptionError
from library.log import get_logger
from library.options.groups.hub import REPO_TYPES
from library.training.saving.hub_faults import fault_words, http_status, is_final

logger = get_logger(__name__)


@dataclass(frozen=True)
class StateReference:
    """A folder in a repository of the hub."""

    repo_id: str
    path: PurePosixPath
    revision: str = "main"
    repo_type: str = "model"


def read_state_reference(text: str) -> StateReference:
    """Read `owner/repo/path[:revision[:type]]`.

    Raises:
        OptionError: It has another form.
    """
    place, *rest = text.split(":")
    parts = [part for part in place.split("/") if part]
    is_plain = len(parts) >= 3 and ".." not in parts and len(rest) <= 2
    revision, repo_type = ([*rest, "", ""])[:2]
    if not is_plain or (repo_type and repo_type not in REPO_TYPES):
        raise OptionError(
            f"--resume with --resume_from_huggingface is owner/repo/path[:revision[:type]], got {text!r}. "
            f"The path is that of a state's folder in the repository, the type one of {', '.join(REPO_TYPES)}."
        )
    path = PurePosixPath(*parts[2:])
    return StateReference("/".join(parts[:2]), path, revision or "main", repo_type or "model")


def download_state(reference: StateReference, token: str | None, folder: Path) -> Path:
    """Download a state's files, all of one revision.

    Args:
        reference: From `read_state_reference`.
        token: Access token; None takes the login of the hub's client.
        folder: Where to; the state keeps its path in the repository below it.

    Returns:
        The state's folder on this machine.

    Raises:
        OptionError: The repository or the state is not there, or not for this token.
        EnvironmentFault: The hub cannot be reached, or the files cannot be written.
    """
    from huggingface_hub import HfApi

    api, repo_type = HfApi(token=token), reference.repo_type
    try:
        info: Any = api.repo_info(reference.repo_id, repo_type=repo_type, revision=reference.revision)
        names = _files_below(reference, [file.rfilename for file in info.siblings or ()])
        logger.info("--resume: downloading %d files of %s", len(names), reference.path)
        for name in names:
            api.hf_hub_download(reference.repo_id, name, repo_type=repo_type, revision=info.sha, local_dir=folder)
    except (OSError, ValueError, *_http_errors()) as error:
        _explain(error, reference, token)
    return folder / reference.path


def _files_below(reference: StateReference, names: Sequence[str]) -> list[str]:
    """Files below the path, whole names compared: "state-1" is not the beginning of "state-10"."""
    found = [name for name in names if reference.path in PurePosixPath(name).parents]
    if not found:
        folders = sorted({str(PurePosixPath(name).parent) for name in names} - {"."})
        there = f"It has {', '.join(folders[:5])}" if folders else "It has no folders"
        raise OptionError(
            f"--resume: {reference.repo_id} has no folder {reference.path} at {reference.revision}. {there}."
        )
    return found


def _http_errors() -> tuple[Any, ...]:
    """What the client lets through of its HTTP library, which differs from version to version."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(base for base in HfHubHTTPError.__mro__ if base.__name__ in ("HTTPError", "RequestException"))


def _explain(error: Exception, reference: StateReference, token: str | None) -> NoReturn:
    words = fault_words(error, token)
    if http_status(error) is not None and is_final(error):
        raise OptionError(
            f"--resume: the hub refuses {reference.repo_id} at {reference.revision} ({words}). "
            "Check the name, the revision and --huggingface_token."
        ) from error
    raise EnvironmentFault(
        f"--resume: {reference.repo_id} cannot be downloaded ({words}). "
        "Check the connection, or give a folder on this machine."
    ) from error
