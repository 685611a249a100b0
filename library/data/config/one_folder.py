"""A folder of pictures as a dataset without a dataset file, as somebody has it who has just collected them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from library.data.config.sources import DataPlaces, specs_from_options
from library.data.config.spec_building import SpecBuilder, Table, base_values, expand_home
from library.data.config.specs import DatasetSpec
from library.data.files.caption_hints import CAPTION_SUFFIXES
from library.data.files.headers import IMAGE_SUFFIXES
from library.data.files.listing import Folder, walk_folders
from library.data.problems import dataset_error
from library.log import get_logger
from library.records import Size

logger = get_logger(__name__)

SIDE = 1024  # of training pictures, where nothing is said


def specs_of_folder(
    folder: Path, defaults: Mapping[str, object], given: Collection[str], *, bucket_multiple: int = 16
) -> tuple[str, tuple[DatasetSpec, ...]]:
    """One dataset of a folder; of its sub-folders where it has no pictures but folders called like 10_name.

    What is not given is chosen: a resolution of 1024, buckets, and the ending that most captions have. Of a folder that
    has only folders those are read.

    Args:
        folder: It.
        defaults: Values from the command line by key of the dataset file.
        given: Keys that the user gave.
        bucket_multiple: Sides of training pictures must be multiples of this many pixels.

    Returns:
        The folder's name, for messages, and the specs.

    Raises:
        DatasetError: Values do not go together.
    """
    folder = expand_home(folder)
    found = [each for each in walk_folders(folder, is_recursive=True) if isinstance(each, Folder)]
    has_pictures = bool(found) and any(_suffix(name) in IMAGE_SUFFIXES for name in found[0].files)
    values = {**defaults, **_chosen(found, defaults, given)}
    if found and not has_pictures and any(re.match(r"\d+_", name) for name in found[0].folders):
        return specs_from_options(DataPlaces(train_data_dir=folder), values, bucket_multiple=bucket_multiple)
    values["recursive"] = values.get("recursive") or not has_pictures
    base, problems = base_values(values)
    builder = SpecBuilder(bucket_multiple=bucket_multiple, masked_loss=False)
    table = Table(str(folder), base | {"image_dir": folder})
    specs = () if problems else builder.build([(Table("the pictures", base), [table])])
    if problems or builder.problems:
        raise dataset_error(str(folder), [*problems, *builder.problems])
    for warning in builder.warnings:
        logger.warning("%s: %s", folder, warning)
    return str(folder), specs


def _chosen(folders: list[Folder], defaults: Mapping[str, object], given: Collection[str]) -> dict[str, object]:
    """Values for what is not given."""
    resolution = defaults.get("resolution") or Size(SIDE, SIDE)
    assert isinstance(resolution, tuple)
    suggested: dict[str, object] = {
        "resolution": resolution,
        "enable_bucket": True,
        "min_bucket_reso": min(256, *resolution),
        "max_bucket_reso": 2 * max(resolution),
        "caption_extension": _commonest_ending(folders) or defaults["caption_extension"],
    }
    spellings = {"caption_extension": "caption_extention"}
    chosen = {key: value for key, value in suggested.items() if not {key, spellings.get(key)} & set(given)}
    if "enable_bucket" in chosen and "face_crop_aug_range" in given:  # which go together with no buckets
        del chosen["enable_bucket"]
    return chosen


def _commonest_ending(folders: list[Folder]) -> str | None:
    """The ending that most files have which are called like a picture beside them."""
    endings: Counter[str] = Counter()
    for folder in folders:
        stems = {os.path.splitext(name)[0] for name in folder.files if _suffix(name) in IMAGE_SUFFIXES}
        for name in folder.files:
            if _suffix(name) in CAPTION_SUFFIXES and os.path.splitext(name)[0] in stems:
                endings[_suffix(name)] += 1
    return endings.most_common(1)[0][0] if endings else None


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
