"""Options of the doctor for datasets: those of a training, or a folder; and what it does about what it finds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.data.report.lookalikes import DISTANCE
from library.options.spec import OptionGroup, ScriptText, opt
from tools.family_options import AnyFamilyOptions


@dataclass(frozen=True, kw_only=True)
class CheckingOptions(OptionGroup):
    """What is checked, and what becomes of the findings."""

    title: ClassVar[str] = "Check"

    folder: str = opt(
        "",
        "Folder of pictures to check, in place of a dataset file: at --resolution 1024, with buckets, and with the "
        "ending that its captions have, unless options say otherwise.",
        positional=True,
    )
    fix: bool = opt(
        False,
        "Mend what is safe and can be undone: move captions without picture, equal files and broken pictures to "
        ".set_aside beside them, save marked captions as UTF-8, correct names of captions that are not read.",
    )
    strict: bool = opt(False, "End with exit code 2 for warnings too, not only for what would stop a training.")
    json: str | None = opt(None, "File for the findings as JSON; - writes them to stdout in place of the text.")
    output: Path | None = opt(
        None, "Page to write: the preview of the dataset with the findings on top, one HTML file."
    )
    max_pictures: int | None = opt(None, "Show at most this many pictures on the page, evenly spread.", minimum=1)
    trigger_word: str | None = opt(None, "Word or words that every training caption shall have.", free_text=True)
    duplicate_distance: int = opt(
        DISTANCE,
        "How many of the 63 signs of their hashes may differ between pictures that are told to look alike; more finds "
        "copies that were cut more.",
        minimum=0,
        maximum=20,
    )

    def check(self) -> Iterator[str]:
        if self.trigger_word is not None and not self.trigger_word.strip():
            yield "--trigger_word has only blanks. Give the word, or leave the option out."
        if self.json and self.output and os.path.realpath(self.json) == os.path.realpath(self.output):
            yield f"--json and --output both name {self.output}. Give each a file of its own."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.output is None:
            yield "max_pictures", "no page is written without --output"


def _folder_problem(folder: str) -> Iterator[str]:
    """Why FOLDER is none: often the dataset file is meant."""
    from library.data.config.spec_building import expand_home
    from library.data.files.missing import place_hint

    path = expand_home(folder)
    if path.is_dir():
        return
    if not path.exists():
        yield f"FOLDER {folder} does not exist{place_hint(path, '') or '; correct the name'}."
        return
    meant = {".toml": "--dataset_config", ".json": "--in_json", ".jsonl": "--in_json"}.get(path.suffix.lower())
    advice = f"give it as {meant} {folder}" if meant else "name the folder it is in"
    yield f"FOLDER {folder} is a file: {advice}."


@dataclass(frozen=True, kw_only=True)
class CheckOptions(AnyFamilyOptions):
    """All options of tools/check_dataset.py: a command of each script that trains a network works as it is."""

    preview: CheckingOptions = field(default_factory=CheckingOptions)

    leading: ClassVar[tuple[str, ...]] = ("preview", "model")
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = (("folder", "dataset_config", "train_data_dir", "in_json"),)
    tells_ignored: ClassVar[bool] = False

    def check(self) -> Iterator[str]:
        named = [f"--{name}" for name, place in self.data.places.items() if place is not None]
        if self.preview.folder and named:
            yield f"FOLDER {self.preview.folder} and {', '.join(named)} both name pictures. Leave out one of them."
        elif self.preview.folder:
            yield from _folder_problem(self.preview.folder)


CHECK_SCRIPT: ScriptText = {
    "prog": "tools/check_dataset.py",
    "description": "Check a dataset before it is trained: broken pictures, captions that are missing, cut off or left "
    "over, pictures that occur twice, are tiny or lose much to the crop. Takes a folder, or the options of the "
    "training, so that its command can be copied; no weights are read, and the model file may be left out.",
    "example": "python tools/check_dataset.py my_pictures --output=check.html",
    "ignored": {},
}
