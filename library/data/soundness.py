"""Decoding every picture once before models are loaded, so that all that are damaged inside are told together.

The scan finds what headers tell; bytes that are wrong further back show only here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from library.data.images import load_image
from library.errors import DatasetError
from library.records import ImageRecord

WORTH_A_BAR = 200  # pictures


def broken_pictures(records: Sequence[ImageRecord], *, is_shown: bool = True) -> list[str]:
    """Decode pictures in threads.

    Args:
        records: The pictures; files that occur several times are decoded once.
        is_shown: Show a bar where it may take a while.

    Returns:
        For each picture that cannot be used, why; to be listed.
    """
    from tqdm import tqdm

    distinct = {record.path: record for record in records}.values()
    is_short = len(distinct) < WORTH_A_BAR
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        found = threads.map(_problem, distinct)
        return [
            problem
            for problem in tqdm(found, "checking pictures", len(distinct), disable=is_short or not is_shown)
            if problem is not None
        ]


def _problem(record: ImageRecord) -> str | None:
    try:
        load_image(record.path, record.size)
    except DatasetError as error:
        return str(error).removesuffix(".")
    return None
