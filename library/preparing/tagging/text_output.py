"""Tags in text files beside the pictures. What a person has written there stays, unless something else is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from library.data.files.text_files import decode_text, text_lines
from library.data.findings import Fault
from library.errors import DatasetError
from library.preparing.outcome import Outcome
from library.preparing.pictures import is_blank, text_file_faults, text_file_of
from library.preparing.tagging.choosing import appended
from library.preparing.text_writing import TextWriter, write_text


@dataclass(frozen=True)
class TextOutput:
    """Writes a text file for each picture.

    Attributes:
        writer: Does the writing.
        outcome: Is told what became of each picture; whole when the writer is done.
        extension: Of the files, with its dot.
        separator: What stands between tags.
        is_appended: Tags are added to those of the file.
        is_overwritten: Files are replaced.
    """

    writer: TextWriter
    outcome: Outcome
    extension: str
    separator: str
    is_appended: bool = False
    is_overwritten: bool = False

    def faults(self, pictures: Sequence[Path]) -> dict[Path, Fault]:
        """{picture: what keeps it from having a text file of its own}."""
        return text_file_faults(pictures, self.extension)

    def kept(self, pictures: Sequence[Path]) -> list[Path]:
        """The pictures whose file stays as it is."""
        if self.is_appended or self.is_overwritten:
            return []
        return [picture for picture in pictures if text_file_of(picture, self.extension).exists()]

    def is_empty(self, picture: Path) -> bool:
        """Whether the text file of a picture has nothing in it. It must be there."""
        return is_blank(text_file_of(picture, self.extension), 2)

    def put(self, picture: Path, tags: Sequence[str]) -> None:
        """Have the tags of a picture written.

        Raises:
            OutputError: An earlier file could not be written.
        """
        file = text_file_of(picture, self.extension)
        self.writer.write(file, self.separator.join(tags), lambda place, text: self._write(picture, place, text, tags))

    def _write(self, picture: Path, file: Path, text: str, tags: Sequence[str]) -> None:
        """Look again at what is there, since a person may have written it while the model worked; then write."""
        is_there = file.exists() and not self.is_overwritten
        if is_there and self.is_appended:
            try:
                there = _only_line(file, picture)
            except DatasetError as error:
                problem = str(error).removeprefix(f"{picture} ").removesuffix(".")
                self.outcome.faults.append(Fault(picture, problem))
                return
            text = appended(there, tags, self.separator)
            is_there = text == there
        if is_there:
            self.outcome.kept += 1
            return
        write_text(file, text)
        self.outcome.written += 1


def _only_line(file: Path, picture: Path) -> str:
    """The text of a file that tags are added to; raises DatasetError where it is not one line."""
    try:
        lines = text_lines(decode_text(file.read_bytes())[0])
    except ValueError as error:
        raise DatasetError(f"{picture} keeps its old text: {file.name} {error}; save it again as UTF-8.") from None
    except OSError as error:
        reason = error.strerror or error
        raise DatasetError(f"{picture} keeps its old text: {file.name} cannot be read ({reason}).") from None
    if len(lines) > 1:
        raise DatasetError(
            f"{picture} keeps its old text: {file.name} has {len(lines)} lines, and tags are added to one; join them, "
            "or give another --caption_extension."
        )
    return lines[0] if lines else ""
