"""What a variation trains with, as files that its training can also be started from alone: options and dataset."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.errors import DatasetError, OptionError
from library.log import get_logger
from library.options.config_file import as_toml
from library.options.toml_file import read_toml
from library.tensorfile import write_bytes
from library.training.sweeping.sweep_file import SweepFile, Variation, folder_name

logger = get_logger(__name__)

OPTIONS, DATASET = "options.toml", "dataset.toml"
SEED = 0  # where none is given
_OF_SWEEP = ("output_dir", "output_name", "resume", "dry_run", "debug_dataset")
_SAME_FOR_ALL = ("validation_seed", "validation_split", "max_validation_steps")


@dataclass(frozen=True)
class VariationFiles:
    """The files of a variation, not yet written.

    Attributes:
        variation: Whose they are.
        folder: Of everything that belongs to it.
        options: Content of the options file.
        dataset: Content of a dataset file of its own; None where that of all counts.
    """

    variation: Variation
    folder: Path
    options: str
    dataset: str | None

    @property
    def name(self) -> str:
        """Of the files that the training writes."""
        return self.folder.name

    @property
    def options_path(self) -> Path:
        """The file for --config_file."""
        return self.folder / OPTIONS

    @property
    def numbers_path(self) -> Path:
        """What the training has come to."""
        return self.folder / f"{self.name}_numbers.json"

    def refuse_others(self) -> None:
        """Leave alone what a training with other options has written.

        Raises:
            OptionError: There is such a thing.
        """
        for path, text in self._texts(self.folder).items():
            is_other = path.exists() and path.read_text(encoding="utf-8") != text
            if is_other and any(self.folder.glob(f"{glob.escape(self.name)}*")):
                raise OptionError(
                    f"{path} is of another sweep, or of this one before it was changed. Give another --output_dir, or "
                    f"remove {self.folder}."
                )

    def write(self, place: Path) -> list[str]:
        """Write them into a folder; returns what a script is told.

        Raises:
            OutputError: They cannot be written.
        """
        place.mkdir(parents=True, exist_ok=True)
        for path, text in self._texts(place).items():
            write_bytes(path, text.encode())
        return self.arguments(place)

    def arguments(self, place: Path) -> list[str]:
        """What a script is told where they are written to a folder."""
        more = [] if self.dataset is None else [f"--dataset_config={place / DATASET}"]
        return [f"--config_file={place / OPTIONS}", *more]

    def _texts(self, place: Path) -> dict[Path, str]:
        texts = {place / OPTIONS: self.options}
        return texts if self.dataset is None else {**texts, place / DATASET: self.dataset}


def files_of(sweep: SweepFile, output_dir: Path) -> list[VariationFiles]:
    """The files of all variations.

    Raises:
        OptionError: An option is given that the sweep sets, or that has to be the same for all.
        DatasetError: The dataset file lacks a subset that a variation names, or cannot be read.
    """
    problems = [f"{key} is set by the sweep: leave it out." for key in _OF_SWEEP if key in sweep.options]
    for variation in sweep.variations:
        problems += [f"'{variation.name}': {key} is set by the sweep." for key in _OF_SWEEP if key in variation.values]
        problems += [
            f"'{variation.name}': {key} has to be the same for all, or their validation losses cannot be compared. "
            "Write it below [options]."
            for key in _SAME_FOR_ALL
            if key in variation.values
        ]
    if problems:
        raise OptionError(f"sweep file {sweep.path}: {' '.join(problems)}")
    return [_files_of(sweep, variation, output_dir) for variation in sweep.variations]


def _files_of(sweep: SweepFile, variation: Variation, output_dir: Path) -> VariationFiles:
    folder = output_dir / folder_name(variation.name)
    values = {"seed": SEED, "validation_seed": SEED, **sweep.options, **variation.values}
    values |= _shared_caches(values, output_dir)
    dataset = None
    if variation.subsets:
        dataset = _changed_dataset(sweep, variation, values)
        values["dataset_config"] = (folder / DATASET).as_posix()
    values |= {"output_dir": folder.as_posix(), "output_name": folder.name, "resume": "auto"}
    lines = [f"{key} = {as_toml(value)}\n" for key, value in sorted(values.items())]
    return VariationFiles(variation, folder, "".join(lines), dataset)


def _shared_caches(values: Mapping[str, Any], output_dir: Path) -> dict[str, Any]:
    """Caches that would lie in memory lie in files here: all variations use them."""
    changed: dict[str, Any] = {}
    for name in ("cache_latents", "cache_text_encoder_outputs"):
        if values.get(name) and not values.get(f"{name}_to_disk"):
            changed[f"{name}_to_disk"] = True
    if changed and "cache_dir" not in values:
        changed["cache_dir"] = (output_dir / "cache").as_posix()
    return changed


def _changed_dataset(sweep: SweepFile, variation: Variation, values: Mapping[str, Any]) -> str:
    if "dataset_config" not in values:
        raise OptionError(
            f"sweep file {sweep.path}: '{variation.name}' has subsets, which change a dataset file. "
            "Give dataset_config below [options]."
        )
    path = Path(str(values["dataset_config"]))
    table, _ = read_toml(path, "dataset_config", DatasetError)
    found = [
        subset
        for dataset in table.get("datasets", [])
        for subset in (dataset.get("subsets", []) if isinstance(dataset, dict) else [])
        if isinstance(subset, dict)
    ]
    for name, keys in variation.subsets.items():
        meant = [subset for subset in found if _is_called(subset, name)]
        if not meant:
            known = ", ".join(str(subset.get("image_dir", subset.get("metadata_file"))) for subset in found)
            raise DatasetError(
                f"sweep file {sweep.path}: '{variation.name}' changes the subset {name}, which is not in {path} "
                f"({known}). Write it as image_dir has it there."
            )
        for subset in meant:
            subset.update(keys)
    import toml

    return str(toml.dumps(table))


def _is_called(subset: Mapping[str, Any], name: str) -> bool:
    places = [str(subset[key]) for key in ("image_dir", "metadata_file") if key in subset]
    return any(Path(place) == Path(name) or Path(place).name == name for place in places)
