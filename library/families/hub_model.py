"""A model, or a VAE, that is named as the hub names it ("owner/name"): its folder, downloaded into the cache of the
hub's client.

Only what a training reads is downloaded: of each part one form of its weights, and small files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from library.errors import CheckpointError
from library.log import get_logger
from library.options.groups.scripts import PICKLES

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = (".safetensors", *PICKLES)
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_MARK = "unet/config.json"
_VAE_MARKS = ("vae/config.json", "config.json")  # of a whole model, or alone
_SMALL = (".json", ".txt")
_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"-\d+-of-\d+")

_logger = get_logger(__name__)


def is_hub_name(path: Path) -> bool:
    """Whether a path is the name of a model on the hub: two words, and nothing of this machine."""
    name = path.as_posix()
    is_name = _NAME.fullmatch(name) is not None and path.suffix.lower() not in _WEIGHTS
    return is_name and not path.exists() and not path.parent.exists()


def hub_folder(path: Path, what: str) -> Path:
    """The folder of a model on the hub. What is not there yet is downloaded.

    Args:
        path: "owner/name".
        what: How it is called in an error, for instance "--pretrained_model_name_or_path".

    Raises:
        CheckpointError: It is not there, may not be read, has no diffusers folder, or the hub does not answer.
    """
    return _marked_file(path, what, (_MARK,), needed_files).parent.parent


def hub_vae(path: Path, what: str) -> Path:
    """The folder of a VAE on the hub, which lies there alone or in the diffusers folder of a model.

    Args:
        path: "owner/name".
        what: How it is called in an error, for instance "--vae".

    Raises:
        CheckpointError: See `hub_folder`.
    """
    return _marked_file(path, what, _VAE_MARKS, needed_vae_files).parent


def _marked_file(path: Path, what: str, marks: Sequence[str], needed: Callable[[Iterable[str]], list[str]]) -> Path:
    """One of the files that tell where a part lies, when all that is needed is in the cache."""
    from huggingface_hub.errors import HfHubHTTPError

    from library.models.tokenizer_hub import hub_answers

    name = path.as_posix()
    if not hub_answers():
        return _cached_file(name, what, marks)
    # The client lets some errors of its HTTP library through; their base is the "HTTPError" that its own extends.
    faults: list[Any] = [base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"]
    try:
        return _downloaded(name, what, marks, needed)
    except (OSError, *faults) as error:
        raise CheckpointError(f"{what}: {hub_advice(name, error)}") from None


def _cached_file(name: str, what: str, marks: Sequence[str]) -> Path:
    from huggingface_hub import try_to_load_from_cache

    for mark in marks:
        found = try_to_load_from_cache(name, mark)
        if isinstance(found, str):
            return Path(found)
    raise CheckpointError(
        f"{what}: {name} is no file or folder here, it was not downloaded before, and the hub cannot be reached. "
        "Give a file or folder, or start once with a connection and without HF_HUB_OFFLINE."
    )


def _downloaded(name: str, what: str, marks: Sequence[str], needed: Callable[[Iterable[str]], list[str]]) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    there = [entry.rfilename for entry in HfApi().model_info(name).siblings or ()]
    files = needed(there)
    if not files:
        single = [file for file in there if file.endswith(".safetensors") and "/" not in file]
        advice = f"Download one of its files ({', '.join(single[:3])}) and give that." if single else "Give a file."
        raise CheckpointError(f"{what}: {name} on the hub is no diffusers folder with .safetensors. {advice}")
    _logger.info("%s: %d files from the hub; what is not in its cache is downloaded", name, len(files))
    paths = {file: Path(hf_hub_download(name, file)) for file in files}
    return next(paths[mark] for mark in marks if mark in paths)


def needed_vae_files(there: Iterable[str]) -> list[str]:
    """Of the files of a repository those of its VAE; none where it has none as .safetensors with its settings."""
    names = sorted(there)
    for mark in _VAE_MARKS:
        folder = mark.removesuffix("config.json")
        weights = _one_form([name for name in names if name.rpartition("/")[0] == folder.rstrip("/")])
        if weights and mark in names:
            return [mark, *weights]
    return []


def needed_files(there: Iterable[str]) -> list[str]:
    """Of the files of a repository those that a training reads; none where it has no U-Net as .safetensors.

    Of each part weights without a variant (such as .fp16.) are taken, and one variant where there are no others.
    """
    names = sorted(there)
    weights = {part: _one_form([name for name in names if name.rpartition("/")[0] == part]) for part in _PARTS}
    if not weights["unet"] or _MARK not in names:
        return []
    rooms = (*_PARTS, "scheduler", "tokenizer", "tokenizer_2")
    small = [name for name in names if name.endswith(_SMALL) and not name.endswith(".index.json")]
    inside = [name for name in small if name.split("/")[0] in rooms and name.count("/") == 1]
    return [*inside, *(name for name in small if name == "model_index.json"), *chain(*weights.values())]


def _one_form(names: Sequence[str]) -> list[str]:
    """Of the files in one folder the weights in one form, with the index of shards."""
    forms: dict[str, list[str]] = {}
    for name in names:
        file = name.split("/")[-1]
        if file.endswith((".safetensors", _INDEX)):
            stem = _SHARD.sub("", file.removesuffix(_INDEX).removesuffix(".safetensors"))
            if stem.split(".")[0] in ("diffusion_pytorch_model", "model"):
                forms.setdefault(stem, []).append(name)
    return forms[min(forms, key=lambda stem: (stem.count("."), stem))] if forms else []


def hub_advice(name: str, error: Exception) -> str:
    """Why a model cannot be had from the hub, and what to do, to follow the name of the option."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return (
            f"{name} is no file or folder here, and the hub shows no such model. Check the name; if its licence has to "
            "be accepted, do so on its page and log in with `hf auth login`, or set HF_TOKEN."
        )
    return (
        f"{name} cannot be downloaded from the hub ({' '.join(str(error).split())[:200]}). Try again, or give a file."
    )
