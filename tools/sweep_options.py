"""Options of the tool that trains variations."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.options.groups import CommonOptions
from library.options.spec import OptionGroup, ScriptText, opt


@dataclass(frozen=True, kw_only=True)
class SweepGroup(OptionGroup):
    """Which variations, and how they are trained."""

    title: ClassVar[str] = "Sweep"

    sweep_file: Path | None = opt(
        None, "TOML file: the script, the options of all trainings, and in what each differs.", positional=True
    )
    output_dir: Path | None = opt(
        None, "Folder to write to: a folder for each variation, the ranking and the page sweep.html."
    )
    together: str = opt(
        "auto",
        "Whether the trainings take their steps in turn beside one base in memory. auto means yes if they can share "
        "it and fit into memory; otherwise one trains after the other.",
        choices=("auto", "yes", "no"),
    )
    launcher: str | None = opt(
        None,
        "Program that starts each training that has a process of its own, for instance 'accelerate launch --quiet'. "
        "Not set means this Python.",
    )
    dry_run: bool = opt(False, "Check every variation and tell the steps of each; train nothing.")

    def check(self) -> Iterator[str]:
        if self.launcher is not None:
            yield from self._about_launcher(self.launcher)
        if self.launcher is not None and self.together == "yes":
            yield "--launcher starts processes, which --together=yes does not have. Leave one of them out."

    def _about_launcher(self, launcher: str) -> Iterator[str]:
        try:
            words = shlex.split(launcher)
        except ValueError as error:
            yield f"--launcher {launcher} cannot be read as a command ({error}). Check its quotes."
            return
        if not words or shutil.which(words[0]) is None:
            yield f"--launcher: there is no program {words[0] if words else launcher!r} here. Check its name."


@dataclass(frozen=True, kw_only=True)
class SweepOptions(CommonOptions):
    """All options of tools/sweep.py."""

    sweep: SweepGroup = field(default_factory=SweepGroup)

    leading: ClassVar[tuple[str, ...]] = ("sweep",)
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = ("output_dir",)


SWEEP_SCRIPT: ScriptText = {
    "prog": "tools/sweep.py",
    "description": "Train variations of a LoRA on one base model, and rank them by validation loss.",
    "example": "python tools/sweep.py my_sweep.toml --output_dir=sweep",
    "ignored": {},
}
