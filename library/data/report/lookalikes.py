"""Which pictures look like copies of each other, from their hashes. Pure; no file is read.

All pairs are compared, in blocks and by products of matrices. Pictures of another brightness cannot be alike and are
passed over, and of equal hashes one stands for all, so ten thousand plain white pages are no burden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from library.data.pixels.perceptual_hash import PictureHash

DISTANCE = 4  # signs that may differ; benchmarks/lookalikes.py tells what that finds
MOST = 16.0  # of 255: how far colours may be apart, as the root of the mean square
LEAST = 3.0  # what encoding anew does even to a picture of one colour
SHARE = 0.4  # of the contrast: how far the colours of a dull picture may be apart
BLOCK = 512  # pictures compared at once


def lookalikes(hashes: Sequence[PictureHash], distance: int = DISTANCE) -> list[list[int]]:
    """Groups of at least two pictures of which each looks like another one of its group.

    Args:
        hashes: One for each picture.
        distance: How many of the 63 signs may differ.

    Returns:
        Indices in order; groups by their first.
    """
    stand_ins: dict[bytes, int] = {}
    owners = [stand_ins.setdefault(each.to_bytes(), index) for index, each in enumerate(hashes)]
    distinct = list(stand_ins.values())
    labels = np.arange(len(distinct))
    for first, others in _pairs([hashes[index] for index in distinct], distance):
        found = labels[others]
        for label in np.unique(found[found != labels[first]]):
            labels[labels == label] = labels[first]
    label_of = dict(zip(distinct, labels.tolist(), strict=True))
    groups: dict[int, list[int]] = {}
    for index, owner in enumerate(owners):
        groups.setdefault(label_of[owner], []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _pairs(hashes: Sequence[PictureHash], distance: int) -> Iterator[tuple[int, np.ndarray]]:
    """For each picture the indices of those after it that it looks like, if there are any."""
    if len(hashes) < 2:
        return
    signs = np.stack([each.signs for each in hashes]).astype(np.float32)  # [N, 63]
    colours = np.stack([each.colours for each in hashes]).astype(np.float32).reshape(len(hashes), -1, 3)
    means = colours.mean((1, 2))
    order = np.argsort(means, kind="stable")
    signs, means = signs[order], means[order]
    contrast = (colours - colours.mean(1, keepdims=True)).std((1, 2))[order]
    colours = (colours - 128).reshape(len(hashes), -1)[order] / np.float32(np.sqrt(colours[0].size))
    limits = np.clip(SHARE * contrast, LEAST, MOST)  # [N]
    for start in range(0, len(hashes), BLOCK):
        rows = slice(start, start + BLOCK)
        end = int(np.searchsorted(means, means[rows][-1] + MOST, "right"))  # means differ less than colours do
        columns = slice(start, end)
        is_alike = _differing(signs[rows], signs[columns]) <= distance
        allowed = np.minimum(limits[rows, None], limits[None, columns])
        is_alike &= _squares(colours[rows], colours[columns]) <= allowed**2 + 1e-3
        is_alike = np.triu(is_alike, 1)
        for row in np.flatnonzero(is_alike.any(1)):
            yield int(order[start + row]), order[start + np.flatnonzero(is_alike[row])]


def _differing(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """How many signs are opposite. From [R, 63] and [C, 63] to [R, C]."""
    both = np.abs(rows) @ np.abs(columns).T
    return (both - rows @ columns.T) / 2


def _squares(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared distances. From [R, D] and [C, D] to [R, C]."""
    squares = (rows**2).sum(1)[:, None] + (columns**2).sum(1)[None, :]
    return squares - 2 * (rows @ columns.T)
