"""A sweep file: what many trainings have in common, and in what each differs. TOML, read and checked as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from library.errors import OptionError
from library.options.config_file import config_path
from library.options.option import nearest_hint
from library.options.toml_file import read_toml

MAX_VARIATIONS = 200
_TABLES = ("sweep", "options", "variation", "grid")
_ABOUT = ("script", "config_file")
_OWN = ("name", "subsets")
_TAKEN = ("sweep.html", "sweep.json", "cache")  # what lies beside the folders of variations
_MAX_NAME = 60


@dataclass(frozen=True)
class Variation:
    """One of the trainings.

    Attributes:
        name: Names its folder and its files.
        values: Options in which it differs, {name without dashes: as TOML has it}.
        subsets: Keys of the dataset file in which it differs, {image_dir: {key: value}}.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    subsets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def differences(self) -> dict[str, str]:
        """{what: value} in words."""
        shown = {key: _words(value) for key, value in self.values.items()}
        for folder, keys in self.subsets.items():
            shown |= {f"{folder}: {key}": _words(value) for key, value in keys.items()}
        return shown


@dataclass(frozen=True)
class SweepFile:
    """What a sweep file says.

    Attributes:
        path: The file.
        script: That trains each, a script for networks.
        options: Of all trainings, {name without dashes: as TOML has it}.
        variations: In the order of the file; those of the grid last.
    """

    path: Path
    script: str
    options: Mapping[str, Any]
    variations: tuple[Variation, ...]


def read_sweep(path: Path, scripts: Sequence[str]) -> SweepFile:
    """Read a sweep file.

    Args:
        path: The file.
        scripts: Names of scripts that it may name.

    Raises:
        OptionError: Something is wrong in it; all of it is told.
    """
    table, _ = read_toml(path, "sweep file", OptionError)
    problems = [f"unknown table [{key}].{nearest_hint(key, _TABLES)}" for key in table if key not in _TABLES]
    about = _table(table.get("sweep", {}), "[sweep]", problems)
    problems += [f"[sweep]: unknown key {key}.{nearest_hint(key, _ABOUT)}" for key in about if key not in _ABOUT]
    script = str(about.get("script", ""))
    if script not in scripts:
        got = f"got '{script}'" if script else "and there is none"
        problems.append(f"[sweep] script must be one of {', '.join(scripts)}, {got}.")
    options = {**_common(about), **_table(table.get("options", {}), "[options]", problems)}
    variations = [*_listed(table.get("variation", []), problems), *_grid(table.get("grid", {}), problems)]
    problems += _conflicts(variations) if variations or not problems else ()
    if problems:
        raise OptionError(f"sweep file {path}: {' '.join(problems)}")
    return SweepFile(path, script, options, tuple(variations))


def folder_name(name: str) -> str:
    """The name of a variation as a name of files: letters, digits, dots, dashes."""
    return re.sub(r"[^\w.=+-]+", "_", name).strip("._ ")


def _common(about: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the file that the trainings have in common."""
    if "config_file" not in about:
        return {}
    table, _ = read_toml(config_path(Path(str(about["config_file"]))), "[sweep] config_file", OptionError)
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat


def _table(value: Any, place: str, problems: list[str]) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    problems.append(f"{place.strip('[]')} must be a table, {place}.")
    return {}


def _listed(tables: Any, problems: list[str]) -> Iterator[Variation]:
    if not isinstance(tables, list) or not all(isinstance(item, dict) for item in tables):
        problems.append("Variations are tables of their own, each below [[variation]].")
        return
    for number, item in enumerate(tables, 1):
        values = {key: value for key, value in item.items() if key not in _OWN}
        subsets = _table(item.get("subsets", {}), "[variation.subsets]", problems)
        wrong = [folder for folder, keys in subsets.items() if not isinstance(keys, dict)]
        problems += [f"variation {number}: subsets.{folder} must be a table of keys." for folder in wrong]
        name = str(item.get("name") or _name_of(values)[:_MAX_NAME] or f"variation {number}")
        yield Variation(name, values, {folder: keys for folder, keys in subsets.items() if folder not in wrong})


def _grid(table: Any, problems: list[str]) -> list[Variation]:
    axes = _table(table, "[grid]", problems)
    wrong = [key for key, values in axes.items() if not isinstance(values, list) or not values]
    problems += [f"[grid] {key} must be a list of values, for instance [1e-4, 5e-4]." for key in wrong]
    if not axes or wrong:
        return []
    number = 1
    for values in axes.values():
        number *= len(values)
    if number > MAX_VARIATIONS:
        problems.append(f"[grid] makes {number} variations, more than {MAX_VARIATIONS}. Shorten its lists.")
        return []
    rows = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    names = [_name_of(row) for row in rows]
    if any(len(name) > _MAX_NAME for name in names):
        names = [f"{name[:_MAX_NAME]} {number}" for number, name in enumerate(names, 1)]
    return [Variation(name, row) for name, row in zip(names, rows, strict=True)]


def _name_of(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_words(value)}" for key, value in values.items())


def _words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _conflicts(variations: Sequence[Variation]) -> Iterator[str]:
    """What two variations may not have in common."""
    if not variations:
        yield "There is no variation. Add [[variation]] tables or a [grid]."
    names: dict[str, str] = {}
    seen: dict[str, str] = {}
    for variation in variations:
        folder = folder_name(variation.name).lower()
        if folder in _TAKEN:
            yield f"a variation cannot be called '{variation.name}', which is the name of something else there."
        if not folder:
            yield f"the name '{variation.name}' has no letter or digit. Give another one."
        if folder in names:
            yield f"two variations are called '{variation.name}'. Give each a name of its own."
        same = repr((sorted(variation.values.items(), key=str), sorted(variation.subsets.items(), key=str)))
        if same in seen and folder not in names:
            yield f"'{variation.name}' and '{seen[same]}' are the same. Remove one of them."
        names[folder], seen[same] = variation.name, variation.name
