"""Tokenizer files on the model hub and in its client's cache, which all programs of a user share."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from library.log import get_logger

_FILES = ("tokenizer.json", "vocab.json", "spiece.model")
_SECONDS = 5

logger = get_logger(__name__)


def cached_folders(hub_id: str) -> Iterator[Path]:
    """Folders of the cache that have a tokenizer of a repository. Without network."""
    from huggingface_hub import try_to_load_from_cache

    for file in _FILES:
        path = try_to_load_from_cache(hub_id, file)
        if isinstance(path, str):
            yield Path(path).parent


def hub_answers() -> bool:
    """Whether it makes sense to ask the hub. Its client alone would try for half a minute per file."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError as error:
        # Certificates that only the client knows of are no reason to give up; no name, no route, no answer are.
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        is_certificate = type(reason).__name__.startswith("SSL")
        logger.debug("the hub cannot be reached: %s", reason)
        return is_certificate
    return True


def download_files(hub_id: str, files: Sequence[str]) -> list[Path]:
    """Get files of a repository through the client's cache; an empty list where one cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    # The client lets some errors of its HTTP library through; their base is the "HTTPError" that its own extends.
    bases: list[Any] = [base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"]
    try:
        return [Path(hf_hub_download(hub_id, file)) for file in files]
    except (OSError, *bases) as error:
        logger.warning("%s cannot be downloaded: %s", hub_id, " ".join(str(error).split())[:200])
        return []
