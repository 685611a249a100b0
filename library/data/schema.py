"""Dataset files: from tables of keys to `DatasetSpec`s.

A value is looked for in the subset, its dataset, [general], the command line, and the built-in defaults, in this
order. Every fault of a file is reported at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from library.data.captions import CaptionRules
from library.data.config_file import find_line, read_dataset_file
from library.data.keys import KEYS, Level, explain_unknown, names_at, read_option, read_value
from library.data.problems import dataset_error
from library.data.specs import DatasetSpec, SubsetSpec
from library.log import get_logger

logger = get_logger(__name__)

Values = dict[str, Any]


def load_dataset_config(
    path: Path, defaults: Mapping[str, object], *, bucket_multiple: int = 16
) -> tuple[DatasetSpec, ...]:
    """Read a `.toml` or `.json` dataset file.

    Args:
        path: The file.
        defaults: Values from the command line by key of the dataset file; None counts as not given.
        bucket_multiple: Sides of training pictures must be multiples of this many pixels.

    Raises:
        DatasetError: The file cannot be read, or something in it is wrong; all faults are listed.
    """
    table, text = read_dataset_file(path)
    return parse_dataset_config(table, str(path), defaults, bucket_multiple=bucket_multiple, text=text)


def parse_dataset_config(
    table: Mapping[str, Any],
    source: str,
    defaults: Mapping[str, object],
    *,
    bucket_multiple: int = 16,
    text: str = "",
) -> tuple[DatasetSpec, ...]:
    """Check the content of a dataset file and find the value of every key.

    Args:
        table: What the file holds.
        source: Name of the file, for messages.
        defaults: As for `load_dataset_config`.
        bucket_multiple: As for `load_dataset_config`.
        text: The file itself, for line numbers in messages.

    Raises:
        DatasetError: Lists all faults.
    """
    reader = _Reader(text)
    base = {name: key.default for name, key in KEYS.items()}
    base |= reader.read_options(defaults)
    base |= reader.read_keys(_table(table.get("general", {}), "[general]", reader), "general", "[general]")
    datasets = reader.read_datasets(table, base)
    _raise_if_any(reader.problems, source)
    builder = _Builder(bucket_multiple)
    specs = tuple(builder.build_dataset(dataset, subsets, place) for place, dataset, subsets in datasets)
    _raise_if_any(builder.problems, source)
    for warning in (*reader.warnings, *builder.warnings):
        logger.warning("%s: %s", source, warning)
    return specs


def _raise_if_any(problems: list[str], source: str) -> None:
    if problems:
        raise dataset_error(source, problems, "faults in the dataset file")


class _Reader:
    """First pass: every table by itself. Unknown keys, types and ranges."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def read_options(self, defaults: Mapping[str, object]) -> Values:
        unknown = sorted(set(defaults) - set(KEYS))
        if unknown:
            raise ValueError(f"not keys of a dataset file: {', '.join(unknown)}")
        values: Values = {}
        for name, value in defaults.items():
            if value is None:
                continue
            values[name] = value
            try:
                values[name] = read_option(name, value)
            except ValueError as error:
                self.problems.append(str(error))
        return values

    def read_keys(self, table: Mapping[str, Any], level: Level, place: str) -> Values:
        """The values of one table without its sections. Wrong ones are kept: given and wrong is not missing."""
        values: Values = {}
        for name, value in table.items():
            if name not in names_at(level):
                self._add(place, name, explain_unknown(name, level))
            elif name in KEYS:
                values[name] = value
                try:
                    values[name] = read_value(name, value)
                except ValueError as error:
                    self._add(place, name, str(error))
                if not KEYS[name].has_effect and value != KEYS[name].default:
                    self.warnings.append(f"{place}: {name} has no effect")
        return values

    def read_datasets(self, table: Mapping[str, Any], base: Values) -> list[tuple[str, Values, list[Values]]]:
        """Place, values and values of the subsets, for every dataset."""
        for name in table:
            if name not in names_at("top"):
                self._add("top level", name, explain_unknown(name, "top"))
        found = []
        for number, dataset in enumerate(self._tables(table.get("datasets"), "datasets", "the file"), start=1):
            place = f"dataset {number}"
            values = base | self.read_keys(dataset, "dataset", place)
            if values["resolution"] is None:
                self.problems.append(f"{place}: no resolution; set it here, in [general] or with --resolution")
            tables = self._tables(dataset.get("subsets"), "datasets.subsets", place)
            subsets = [
                values | self._read_subset(subset, f"{place}, subset {index}")
                for index, subset in enumerate(tables, start=1)
            ]
            found.append((place, values, subsets))
        return found

    def _read_subset(self, table: Mapping[str, Any], place: str) -> Values:
        values = self.read_keys(table, "subset", place)
        if "image_dir" not in values and "metadata_file" not in values:
            self.problems.append(f"{place}: no image_dir; it names the folder with the pictures")
        return values

    def _tables(self, value: object, name: str, place: str) -> list[Mapping[str, Any]]:
        if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            return value
        what = f"has no [[{name}]]" if value is None or value == [] else f"needs [[{name}]], with two brackets"
        self.problems.append(f"{place} {what}")
        return []

    def _add(self, place: str, name: str, problem: str) -> None:
        line = find_line(self.text, name)
        self.problems.append(f"{place}: {problem}" if line is None else f"line {line}, {place}: {problem}")


def _table(value: object, place: str, reader: _Reader) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    reader.problems.append(f"{place} must be a table")
    return {}


class _Builder:
    """Second pass: values that have to go together."""

    def __init__(self, bucket_multiple: int) -> None:
        self.bucket_multiple = bucket_multiple
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def build_dataset(self, values: Values, subsets: list[Values], place: str) -> DatasetSpec:
        if values["enable_bucket"]:
            values = self._fit_buckets(values, place)
        elif any(side % self.bucket_multiple for side in values["resolution"]):
            self.problems.append(
                f"{place}: resolution {values['resolution']} must be a multiple of {self.bucket_multiple} on both sides"
            )
        names = {f.name for f in fields(DatasetSpec)} - {"subsets"}
        specs = [
            self._build_subset(subset, f"{place}, subset {number}") for number, subset in enumerate(subsets, start=1)
        ]
        self._check_folders_differ(specs, place)
        return DatasetSpec(subsets=tuple(specs), **{name: values[name] for name in names})

    def _fit_buckets(self, values: Values, place: str) -> Values:
        """Round the limits outward to the step, and check that the resolution lies between them."""
        step, resolution = values["bucket_reso_steps"], values["resolution"]
        if step % self.bucket_multiple:
            self.problems.append(f"{place}: bucket_reso_steps must be a multiple of {self.bucket_multiple}, got {step}")
            return values
        if min(resolution) < step:
            self.problems.append(f"{place}: resolution {resolution} has a side below bucket_reso_steps {step}")
            return values
        if any(side % step for side in resolution):
            self.warnings.append(
                f"{place}: resolution {resolution} is not a multiple of bucket_reso_steps {step}; it only sets the area"
            )
        if values["bucket_no_upscale"]:
            return values
        low, high = values["min_bucket_reso"], values["max_bucket_reso"]
        new_low, new_high = max(step, low // step * step), -(-high // step) * step
        if (low, high) != (new_low, new_high):
            self.warnings.append(
                f"{place}: bucket sides go from {new_low} to {new_high}, multiples of bucket_reso_steps {step}"
            )
        if new_low > min(resolution):
            self.problems.append(f"{place}: min_bucket_reso {low} is above the short side of resolution {resolution}")
        if new_high < max(resolution):
            self.problems.append(f"{place}: max_bucket_reso {high} is below the long side of resolution {resolution}")
        return values | {"min_bucket_reso": new_low, "max_bucket_reso": new_high}

    def _build_subset(self, values: Values, place: str) -> SubsetSpec:
        rules = CaptionRules(**{f.name: values[f.name] for f in fields(CaptionRules)})
        if rules.keep_tokens_separator and not rules.edits_tags:
            self.warnings.append(
                f"{place}: keep_tokens_separator has no effect without shuffle_caption, caption_tag_dropout_rate or "
                "token_warmup_step; it stays in the captions"
            )
        extension = values["caption_extension"]
        return SubsetSpec(
            image_dir=_expand_home(values["image_dir"]),
            num_repeats=values["num_repeats"],
            class_tokens=values["class_tokens"],
            caption_extension=extension if extension.startswith(".") else f".{extension}",
            captions=rules,
            flip_aug=values["flip_aug"],
            random_crop=values["random_crop"],
            resize_interpolation=values["resize_interpolation"],
        )

    def _check_folders_differ(self, subsets: list[SubsetSpec], place: str) -> None:
        seen: dict[str, int] = {}
        for number, subset in enumerate(subsets, start=1):
            folder = os.path.normcase(os.path.abspath(subset.image_dir))
            first = seen.setdefault(folder, number)
            if first != number:
                self.problems.append(
                    f"{place}: subsets {first} and {number} both have image_dir {subset.image_dir}; remove one, "
                    "or raise num_repeats"
                )


def _expand_home(folder: str) -> Path:
    try:
        return Path(folder).expanduser()
    except RuntimeError:  # "~name" of nobody on this machine: the scan says that the folder is missing
        return Path(folder)
