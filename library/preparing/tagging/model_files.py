"""Where the two files of a tagger are: in a folder of this machine, or on the hub, from where they are copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from library.errors import CheckpointError
from library.families.hub_model import hub_advice
from library.log import get_logger
from library.preparing.tagging.labels import CSV_FILE, JSON_FILE

MODEL_FILE = "model.onnx"
_BESIDE = ("model.onnx.data", "model.onnx_data")  # weights that do not fit into the file of the graph
_TABLES = (CSV_FILE, JSON_FILE)

logger = get_logger(__name__)


class TaggerFiles(NamedTuple):
    """The files of a tagger, both there."""

    model: Path
    table: Path


class TaggerPlace(NamedTuple):
    """How the user named a tagger.

    Attributes:
        repo_id: owner/name, owner/name/folder, or a folder.
        model_dir: Where models of the hub are kept, or a folder that has the files itself.
        is_repo_given: The user chose `repo_id`: files in `model_dir` itself are then those of another model.
    """

    repo_id: str
    model_dir: Path
    is_repo_given: bool

    @property
    def kept_in(self) -> Path:
        """Where files of the hub are kept."""
        return self.model_dir / self.repo_id.replace("/", "_")

    @property
    def repository(self) -> str:
        """The name on the hub, without a folder."""
        return "/".join(self.repo_id.split("/")[:2])

    @property
    def folder(self) -> str:
        """The folder in the repository, or nothing."""
        return "/".join(self.repo_id.split("/")[2:])


def find_tagger(place: TaggerPlace, *, is_forced: bool = False) -> TaggerFiles:
    """The files of a tagger; what is not there is downloaded.

    Args:
        place: Where to look.
        is_forced: Download again what was downloaded.

    Raises:
        CheckpointError: They are neither there nor to be had from the hub.
    """
    named = _named_folder(place)
    if named is not None:
        what, folder = named
        if is_forced:
            logger.warning("--force_download has no effect: %s %s is a folder of this machine", what, folder)
        return _complete(folder, f"{what} {folder}")
    if not is_forced:
        for folder in (place.kept_in, place.kept_in / place.folder):
            files = _files_in(folder)
            if files is not None:
                return files
    return _downloaded(place, is_forced)


def _named_folder(place: TaggerPlace) -> tuple[str, Path] | None:
    """The option that names a folder with a model, and the folder."""
    if not place.is_repo_given and any((place.model_dir / name).is_file() for name in (MODEL_FILE, *_TABLES)):
        return "--model_dir", place.model_dir
    path = Path(place.repo_id)
    if path.is_dir():
        return "--repo_id", path
    parts = place.repo_id.split("/")
    if len(parts) < 2 or not all(parts) or path.is_absolute() or parts[0] in (".", "..", "~"):
        raise CheckpointError(
            f"--repo_id: the folder {place.repo_id} does not exist. Check the path; a model of the hub is named as "
            "owner/name."
        )
    return None


def _files_in(folder: Path) -> TaggerFiles | None:
    """The files of a folder, if both are there. Of two tables the CSV is taken."""
    tables = [folder / name for name in _TABLES if (folder / name).is_file()]
    model = folder / MODEL_FILE
    return TaggerFiles(model, tables[0]) if tables and model.is_file() else None


def _complete(folder: Path, what: str) -> TaggerFiles:
    files = _files_in(folder)
    if files is not None:
        return files
    missing = MODEL_FILE if not (folder / MODEL_FILE).is_file() else f"{CSV_FILE} or {JSON_FILE}"
    raise CheckpointError(f"{what} has no {missing}. Put both files of the tagger there: the graph and its tags.")


def _downloaded(place: TaggerPlace, is_forced: bool) -> TaggerFiles:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    from library.models.tokenizer_hub import hub_answers

    if not hub_answers():
        raise CheckpointError(_offline_advice(place, is_forced))
    # The client lets some errors of its HTTP library through; their base is the "HTTPError" that its own extends.
    faults: list[Any] = [base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"]
    try:
        names = list(_needed(place, _names_on_hub(place.repository)))
        logger.info("--repo_id: getting %s of %s into %s", ", ".join(names), place.repository, place.kept_in)
        for name in names:
            hf_hub_download(place.repository, name, local_dir=place.kept_in, force_download=is_forced)
    except (OSError, *faults) as error:
        raise CheckpointError(f"--repo_id: {hub_advice(place.repository, error)}") from None
    return _complete(place.kept_in / place.folder, f"--repo_id {place.repo_id}")


def _names_on_hub(repository: str) -> list[str]:
    from huggingface_hub import HfApi

    return [entry.rfilename for entry in HfApi().model_info(repository).siblings or ()]


def _needed(place: TaggerPlace, there: Sequence[str]) -> Iterator[str]:
    """Which files of a repository to get. The table comes first, so that a graph is never there without it."""
    start = f"{place.folder}/" if place.folder else ""
    tables = [name for name in _TABLES if start + name in there]
    if not tables or start + MODEL_FILE not in there:
        missing = MODEL_FILE if tables else f"{CSV_FILE} or {JSON_FILE}"
        folders = sorted({name.rpartition("/")[0] for name in there if name.endswith(f"/{MODEL_FILE}")})
        known = f" It has taggers in folders, for instance {place.repository}/{folders[0]}." if folders else ""
        raise CheckpointError(
            f"--repo_id: {place.repo_id} on the hub has no {missing}, so it is no ONNX tagger. Name another.{known}"
        )
    yield from (start + name for name in (tables[0], *_BESIDE, MODEL_FILE) if start + name in there)


def _offline_advice(place: TaggerPlace, is_forced: bool) -> str:
    files = " ".join(
        f"{place.folder}/{name}".lstrip("/") for name in (MODEL_FILE, JSON_FILE if place.folder else CSV_FILE)
    )
    if is_forced:
        return "--force_download: the hub cannot be reached. Leave it out to use what was downloaded before."
    return (
        f"--repo_id: {place.repo_id} is not in {place.kept_in}, and the hub cannot be reached. Get it where there is a "
        f"connection (hf download {place.repository} {files} --local-dir FOLDER) and give its folder as --model_dir, "
        "or start once with a connection and without HF_HUB_OFFLINE."
    )
