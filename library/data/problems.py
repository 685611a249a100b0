"""Many faults, one error: whoever prepares data sees everything that is wrong at once."""

from __future__ import annotations

from collections.abc import Sequence

from library.errors import DatasetError

NUM_LISTED = 1000  # more would be a list that nobody reads


def dataset_error(source: str, problems: Sequence[str], what: str = "problems in the data") -> DatasetError:
    """Make one error of several faults.

    Args:
        source: The dataset file, as the user named it.
        problems: At least one; each starts with the file or the place it is about and has no full stop.
        what: Plural, follows the number of problems.
    """
    if len(problems) == 1:
        return DatasetError(f"{source}: {problems[0]}.")
    lines = [f"{source}: {len(problems)} {what}:", *(f"  {problem}" for problem in problems[:NUM_LISTED])]
    if len(problems) > NUM_LISTED:
        lines.append(f"  ... and {len(problems) - NUM_LISTED} more")
    return DatasetError("\n".join(lines))


def first_names(names: Sequence[str], limit: int = 5) -> str:
    """The first few names, for a warning that also states the whole count."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """For instance "1 picture", "2 pictures".

    Args:
        number: How many.
        noun: Of one.
        plural: Of several, where it is not the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
