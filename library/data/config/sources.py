"""Where the pictures of a run are named: in a dataset file, in a metadata file, or by folders called "20_sks dog".

Whatever the way, specs come out, made and checked alike. Looks at folder names only, never into folders of pictures.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from library.data.config.overridden import NOTHING
from library.data.config.schema import load_dataset_config
from library.data.config.spec_building import SpecBuilder, Table, Values, base_values, expand_home
from library.data.config.specs import DatasetSpec
from library.data.files.headers import IMAGE_SUFFIXES
from library.data.files.listing import natural_order
from library.data.files.metadata_json import read_entries
from library.data.files.missing import nearest_folder
from library.data.problems import dataset_error, first_names
from library.errors import DatasetError
from library.log import get_logger
from library.records import Size

logger = get_logger(__name__)

_SIDE_STEP = 64  # pixels: sides of usual resolutions are multiples of this
_REPEATS_AND_WORDS = re.compile(r"(\d+)_(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class DataPlaces:
    """The options that name pictures. The first one that is given counts: dataset_config, in_json, train_data_dir.

    Attributes:
        dataset_config: A dataset file; then the others play no part.
        in_json: A metadata file; `train_data_dir` is where its names start.
        train_data_dir: A folder with a folder "N_words" for each subset.
        reg_data_dir: Likewise, of regularisation pictures.
        conditioning_data_dir: Folder of conditioning pictures of the three before; for a folder "N_words" they may be
            in a folder of the same name in it.
    """

    dataset_config: Path | None = None
    in_json: Path | None = None
    train_data_dir: Path | None = None
    reg_data_dir: Path | None = None
    conditioning_data_dir: Path | None = None


def specs_from_options(
    places: DataPlaces,
    defaults: Mapping[str, object],
    *,
    bucket_multiple: int = 16,
    masked_loss: bool = False,
    is_conditioned: bool = False,
    given: Mapping[str, str] = NOTHING,
) -> tuple[str, tuple[DatasetSpec, ...]]:
    """The datasets of a run, and the name of what they were read from, for messages.

    Args:
        places: At least one of the first three is given.
        defaults: Values from the command line by key of the dataset file; None counts as not given.
        bucket_multiple: Sides of training pictures must be multiples of this many pixels.
        masked_loss: Whether `--masked_loss` is given; masks from a second folder need it.
        is_conditioned: The second folder holds conditioning pictures, which every subset must have.
        given: {key that the user gave among `defaults`: flag}; a dataset file may leave it without effect.

    Raises:
        DatasetError: Something is wrong with a file, the folders or the values; all faults are listed.
    """
    if places.dataset_config is not None:
        specs = load_dataset_config(
            places.dataset_config,
            defaults,
            bucket_multiple=bucket_multiple,
            masked_loss=masked_loss,
            is_conditioned=is_conditioned,
            given=given,
        )
        return str(places.dataset_config), specs
    if places.in_json is None and places.train_data_dir is None:
        raise ValueError("one of dataset_config, in_json and train_data_dir must be given")
    reader = _PlacesReader(*base_values(defaults), places.in_json)
    subsets = reader.read(places)
    source = str(places.in_json or places.train_data_dir)
    if reader.problems:
        raise dataset_error(source, reader.problems)
    builder = SpecBuilder(bucket_multiple=bucket_multiple, masked_loss=masked_loss, is_conditioned=is_conditioned)
    specs = builder.build([(Table("the pictures", reader.base), subsets)])
    if builder.problems:
        raise dataset_error(source, builder.problems)
    for warning in (*reader.warnings, *builder.warnings):
        logger.warning("%s: %s", source, warning)
    return source, specs


class _PlacesReader:
    """From places to the subsets of one dataset.

    Attributes:
        base: What applies to all of them.
        in_json: The metadata file, if there is one.
        problems: Found so far.
        warnings: Likewise.
    """

    def __init__(self, base: Values, problems: list[str], in_json: Path | None) -> None:
        self.base = base
        self.problems = list(problems)
        self.warnings: list[str] = []
        if base["resolution"] is None:
            self.problems.append(f"no resolution; {_resolution_advice(in_json)}")

    def read(self, places: DataPlaces) -> list[Table]:
        """Every subset: training first, then regularisation."""
        subsets: list[Table] = []
        if places.in_json is not None:
            subsets.append(self._metadata_subset(places.in_json, places.train_data_dir))
        elif places.train_data_dir is not None:
            subsets += self._folder_subsets(expand_home(places.train_data_dir), "--train_data_dir")
        if places.reg_data_dir is not None:
            subsets += self._folder_subsets(expand_home(places.reg_data_dir), "--reg_data_dir", is_reg=True)
        if places.conditioning_data_dir is None:
            return subsets
        second = expand_home(places.conditioning_data_dir)
        return [_conditioned(subset, second) for subset in subsets]

    def _metadata_subset(self, file: Path, root: Path | None) -> Table:
        if root is not None:
            root = expand_home(root)
            if not root.is_dir():
                self.problems.append(f"--train_data_dir {root} is not a folder{_nearest_hint(root)}")
        return Table(str(file), self.base | {"metadata_file": file, "image_dir": root})

    def _folder_subsets(self, root: Path, flag: str, *, is_reg: bool = False) -> Iterator[Table]:
        try:
            folders, files = _children(root)
        except OSError as error:
            self.problems.append(f"{flag} {root} {_reason(error, root)}")
            return
        named = [(name, match) for name in folders if (match := _REPEATS_AND_WORDS.fullmatch(name))]
        pictures = [name for name in files if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
        if not named:
            self.problems.append(f"{flag} {root} {_what_is_there(folders, files, pictures)}")
            return
        self._warn_of_others(root, [name for name in folders if not _REPEATS_AND_WORDS.fullmatch(name)], pictures)
        for name, match in named:
            repeats, words = int(match[1]), match[2].strip()
            if repeats < 1:
                self.problems.append(f"{root / name}: the number of repeats in its name must be at least 1")
            own = {"image_dir": root / name, "num_repeats": repeats, "class_tokens": words or None, "is_reg": is_reg}
            yield Table(str(root / name), self.base | own)

    def _warn_of_others(self, root: Path, folders: list[str], pictures: list[str]) -> None:
        if folders:
            self.warnings.append(
                f"folders of {root} that are not called like 10_name are not used: {len(folders)} "
                f"({first_names(folders)})"
            )
        if pictures:
            self.warnings.append(
                f"pictures directly in {root} are not used: {len(pictures)} ({first_names(pictures)}); "
                "put them into a folder like 10_name"
            )


def _conditioned(subset: Table, folder: Path) -> Table:
    """The subset with its conditioning pictures: those of a folder that is called as its own, if there is one."""
    named = folder / Path(subset.values["image_dir"] or "").name
    has_own = subset.values["metadata_file"] is None and named.is_dir()
    return replace(subset, values=subset.values | {"conditioning_data_dir": named if has_own else folder})


def _resolution_advice(in_json: Path | None) -> str:
    """What to give as --resolution: entries with train_resolution have caches for one."""
    largest = _largest_bucket(in_json) if in_json is not None else None
    if largest is None:
        return "give --resolution, the size of the model: 512, 768 or 1024"
    side = (math.isqrt(largest.width * largest.height - 1) // _SIDE_STEP + 1) * _SIDE_STEP  # rounded up
    return (
        f"its entries have train_resolution up to {largest}, so give what finetune/prepare_buckets_latents.py told in "
        f'its line "train with these caches by", such as --resolution={side},{side} --enable_bucket: other values mean '
        "other sizes, and caches that are made anew"
    )


def _largest_bucket(in_json: Path) -> Size | None:
    """The largest area among train_resolution; None where there is none, or the file cannot be read, which is told
    when there is a resolution."""
    try:
        entries, _ = read_entries(in_json)
    except DatasetError:
        return None
    values: list[Any] = [entry.get("train_resolution") for _, entry in entries]
    found = [Size(value[0], value[1]) for value in values if _is_size(value)]
    return max(found, key=lambda size: size.width * size.height, default=None)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)


def _children(root: Path) -> tuple[list[str], list[str]]:
    """Names of folders and of files in natural order, without those that start with a dot.

    Raises:
        OSError: The folder is missing or cannot be read.
    """
    with os.scandir(root) as entries:
        children = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    children.sort(key=lambda child: natural_order(child[0]))
    return [name for name, is_folder in children if is_folder], [name for name, is_folder in children if not is_folder]


def _reason(error: OSError, root: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return f"does not exist{_nearest_hint(root)}"
    if isinstance(error, NotADirectoryError):
        return "is a file; name a folder"
    return f"cannot be read ({error.strerror or error})"


def _nearest_hint(folder: Path) -> str:
    nearest = nearest_folder(folder)
    return "" if nearest is None else f"; the nearest folder that exists is {nearest}"


def _what_is_there(folders: list[str], files: list[str], pictures: list[str]) -> str:
    """What a folder holds that has no folder "N_words", and what to do."""
    if pictures:
        found = f"holds pictures itself ({len(pictures)}: {first_names(pictures)})"
        return f"{found}; put them into a folder in it like 10_name, for 10 repeats, or use --dataset_config"
    if folders:
        found = f"has no folder called like 10_name, only {first_names(folders)}"
        return f"{found}; rename it to 10_{folders[0]}, for 10 repeats, or use --dataset_config"
    found = f"has only files ({first_names(files)})" if files else "is empty"
    return f"{found}; it needs folders of pictures like 10_name, for 10 repeats"
