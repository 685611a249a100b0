"""Options of the script that shows what a file says about itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.options.groups import CommonOptions
from library.options.spec import OptionGroup, ScriptText, opt


@dataclass(frozen=True, kw_only=True)
class FileMetadataOptions(OptionGroup):
    """Which file, what is shown, and what a copy does without."""

    title: ClassVar[str] = "Metadata"

    model: Path | None = opt(None, "The file, .safetensors; only its header is read.")
    raw: bool = opt(False, "Show values that are JSON as the text they are.")
    summary: bool = opt(False, "Show a few lines instead: family, rank, steps, base model, most frequent tags.")
    scrub: bool = opt(
        False,
        "Write a copy without what is personal (names and paths of files and folders, tags, comments, dates, "
        "thumbnail, what is not known here) and show what that says of itself. Texts for readers, such as title and "
        "description, stay where no path is in them; the log names them.",
    )
    output: Path | None = opt(None, "The copy of --scrub.")
    overwrite: bool = opt(False, "--output may be there already; it may be the file itself.")
    keep: tuple[str, ...] | None = opt(None, "Names that --scrub leaves as they are.", metavar="NAME")
    remove: tuple[str, ...] | None = opt(None, "Further names that --scrub takes out.", metavar="NAME")

    def check(self) -> Iterator[str]:
        if self.summary and self.raw:
            yield "--summary and --raw exclude each other. Leave one out."
        if not self.scrub:
            used = {"output": self.output, "overwrite": self.overwrite, "keep": self.keep, "remove": self.remove}
            if given := [f"--{name}" for name, value in used.items() if value]:
                yield f"{', '.join(given)}: only for --scrub. Give that too, or leave it out."
            return
        if self.output is None:
            yield "--scrub needs --output, the file to write."
        elif self.output.suffix.lower() != ".safetensors":
            yield f"--output {self.output} must end in .safetensors."
        if both := sorted(set(self.keep or ()) & set(self.remove or ())):
            yield f"{both[0]} is in --keep and in --remove. Leave one out."


@dataclass(frozen=True, kw_only=True)
class ShowMetadataOptions(CommonOptions):
    """Options of tools/show_metadata.py."""

    metadata: FileMetadataOptions = field(default_factory=FileMetadataOptions)

    leading: ClassVar[tuple[str, ...]] = ("metadata",)
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = ("model",)


SHOW_METADATA_SCRIPT: ScriptText = {
    "prog": "tools/show_metadata.py",
    "description": "Show what a .safetensors file says about itself, or write a copy that tells nothing personal.",
    "example": "python tools/show_metadata.py --model output/my_lora.safetensors",
    "ignored": {},
}
