"""Dataset files: from tables of keys to `DatasetSpec`s.

A value is looked for in the subset, its dataset, [general], the command line, and the built-in defaults, in this
order. Every fault of a file is reported at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library.data.config.config_file import find_line, read_dataset_file
from library.data.config.key_values import read_value
from library.data.config.keys import KEYS, Level, explain_unknown, names_at
from library.data.config.overridden import NOTHING, overridden_options
from library.data.config.spec_building import PATH_KEYS, SpecBuilder, Table, Values, base_values, expand_home
from library.data.config.specs import DatasetSpec
from library.data.files.missing import place_hint
from library.data.problems import dataset_error
from library.log import get_logger

logger = get_logger(__name__)


def load_dataset_config(
    path: Path,
    defaults: Mapping[str, object],
    *,
    bucket_multiple: int = 16,
    masked_loss: bool = False,
    is_conditioned: bool = False,
    given: Mapping[str, str] = NOTHING,
) -> tuple[DatasetSpec, ...]:
    """Read a `.toml` or `.json` dataset file.

    Args:
        path: The file.
        defaults: Values from the command line by key of the dataset file; None counts as not given.
        bucket_multiple: Sides of training pictures must be multiples of this many pixels.
        masked_loss: Whether `--masked_loss` is given; masks from a second folder need it.
        is_conditioned: The second folder holds conditioning pictures, which every subset must have.
        given: {key that the user gave among `defaults`: flag}; a warning names those that the file overrides.

    Raises:
        DatasetError: The file cannot be read, or something in it is wrong; all faults are listed.
    """
    table, text = read_dataset_file(path)
    return parse_dataset_config(
        table,
        str(path),
        defaults,
        bucket_multiple=bucket_multiple,
        masked_loss=masked_loss,
        is_conditioned=is_conditioned,
        given=given,
        text=text,
    )


def parse_dataset_config(
    table: Mapping[str, Any],
    source: str,
    defaults: Mapping[str, object],
    *,
    bucket_multiple: int = 16,
    masked_loss: bool = False,
    is_conditioned: bool = False,
    given: Mapping[str, str] = NOTHING,
    text: str = "",
) -> tuple[DatasetSpec, ...]:
    """Check the content of a dataset file and find the value of every key.

    Args:
        table: What the file holds.
        source: Name of the file, for messages.
        defaults: As for `load_dataset_config`, like the next two.
        bucket_multiple: As there.
        masked_loss: As there.
        is_conditioned: As there.
        given: As there.
        text: The file itself, for line numbers in messages.

    Raises:
        DatasetError: Lists all faults.
    """
    reader = _Reader(source, text, masked_loss, is_conditioned)
    base, problems = base_values(defaults)
    reader.problems += problems
    general = reader.read_keys(_table(table.get("general", {}), "[general]", reader), "general", "[general]")
    datasets = reader.read_datasets(table, base | general)
    _raise_if_any(reader.problems, source, reader.missing)
    builder = SpecBuilder(bucket_multiple=bucket_multiple, masked_loss=masked_loss, is_conditioned=is_conditioned)
    specs = builder.build(datasets)
    _raise_if_any(builder.problems, source, reader.missing)
    overridden = overridden_options(given, base, general, datasets)
    for warning in (*overridden, *reader.warnings, *builder.warnings):
        logger.warning("%s: %s", source, warning)
    return specs


def _raise_if_any(problems: list[str], source: str, missing: list[str]) -> None:
    """What is missing is told along with other faults; alone it is left to the scan, which tells more."""
    if problems:
        raise dataset_error(source, [*problems, *missing], "faults in the dataset file")


_OTHERWISE = "; conditioning pictures of a ControlNet-LLLite are for the script that trains it, which caches by itself"


class _Reader:
    """First pass: every table by itself. Unknown keys, types, ranges, and keys that exclude each other."""

    def __init__(self, source: str, text: str, masked_loss: bool, is_conditioned: bool = False) -> None:
        self.source = source
        self.text = text
        self.masked_loss = masked_loss
        self.is_conditioned = is_conditioned
        self.problems: list[str] = []
        self.missing: list[str] = []
        self.without_effect: dict[str, str] = {}

    @property
    def warnings(self) -> list[str]:
        """One for each key without effect."""
        return [f"{name} has no effect: {reason}" for name, reason in self.without_effect.items()]

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
                if KEYS[name].no_effect and value != KEYS[name].default:
                    self.without_effect[name] = KEYS[name].no_effect
        return values

    def read_datasets(self, table: Mapping[str, Any], base: Values) -> list[tuple[Table, list[Table]]]:
        """Every dataset with its subsets."""
        for name in table:
            if name not in names_at("top"):
                self._add("top level", name, explain_unknown(name, "top"))
        found = []
        for number, dataset in enumerate(self._tables(table.get("datasets"), "datasets", "the file"), start=1):
            place = f"dataset {number}"
            own = self.read_keys(dataset, "dataset", place)
            values = base | own
            if values["resolution"] is None:
                self.problems.append(f"{place}: no resolution; set it here, in [general] or with --resolution")
            tables = self._tables(dataset.get("subsets"), "datasets.subsets", place)
            subsets = [
                self._read_subset(subset, values, f"{place}, subset {index}")
                for index, subset in enumerate(tables, start=1)
            ]
            found.append((Table(place, values, frozenset(own)), subsets))
        return found

    def _read_subset(self, table: Mapping[str, Any], dataset_values: Values, place: str) -> Table:
        own = self.read_keys(table, "subset", place)
        if "image_dir" not in own and "metadata_file" not in own:
            self.problems.append(f"{place}: no image_dir; it names the folder with the pictures")
        if own.get("is_reg") is True and "metadata_file" in own:
            self._add(
                place,
                "is_reg",
                "is_reg cannot be used with metadata_file; name a folder of regularisation pictures as image_dir",
            )
        if "conditioning_data_dir" in own and not self.is_conditioned:
            self._check_masks(own, place)
        self._look_for_places(own, place)
        return Table(place, dataset_values | own, frozenset(own))

    def _look_for_places(self, own: Values, place: str) -> None:
        for name in PATH_KEYS:
            value = own.get(name)
            if not isinstance(value, str) or not value.isprintable():
                continue  # told already
            path = expand_home(value)
            if not os.path.exists(path):
                self.missing.append(f"{place}: {name} {path} does not exist{place_hint(path, self.source)}")

    def _check_masks(self, own: Values, place: str) -> None:
        name = "conditioning_data_dir"
        if not self.masked_loss:
            self._add(place, name, f"{name} needs --masked_loss: without it the masks would change nothing{_OTHERWISE}")
        if own.get("alpha_mask") is True:
            self._add(place, name, f"{name} and alpha_mask both give masks; remove one of them")

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
