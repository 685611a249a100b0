"""Where the patches of an image lie: windows into the MMDiT's table of positions, and tables for other spacings.

A table [1, P * P, D] holds one vector for every place of a square of P x P patches, row by row. One patch is
2 x 2 latent cells, 16 x 16 pixels. A window is the part that an image of h x w patches covers; it is a new
tensor, the table stays as it is.

Source: Esser et al. 2024, arXiv:2403.03206, section 5.3.2; the randomly placed windows and the larger table of
SD3.5-medium are described in its model card.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from itertools import pairwise

import torch
from torch import Tensor

from library.errors import DatasetError
from library.log import get_logger

_PIXELS = 16  # side of a patch in pixels
_SPAN = 16.0  # the native window covers the coordinates 0 to 16

_logger = get_logger(__name__)


def centred_window(table: Tensor, height: int, width: int) -> Tensor:
    """The window in the middle of a table, which inference uses.

    Args:
        table: Shape [1, P * P, D].
        height: Rows, in patches.
        width: Columns, in patches.

    Returns:
        Shape [1, height * width, D].

    Raises:
        DatasetError: The image is larger than the table.
    """
    side = _side(table, height, width)
    return _window(table, side, (side - height) // 2, (side - width) // 2, height, width)


def window_at(table: Tensor, height: int, width: int, draw_top: float, draw_left: float) -> Tensor:
    """A window at a random place; every place is equally likely.

    Args:
        table: Shape [1, P * P, D].
        height: Rows, in patches.
        width: Columns, in patches.
        draw_top: In [0, 1).
        draw_left: In [0, 1).

    Returns:
        Shape [1, height * width, D].

    Raises:
        DatasetError: The image is larger than the table.
    """
    side = _side(table, height, width)
    top, left = int(draw_top * (side - height + 1)), int(draw_left * (side - width + 1))
    return _window(table, side, top, left, height, width)


def sincos_table(channels: int, grid: int, native: int) -> Tensor:
    """Sine and cosine of the column (first half of the channels) and of the row (second half), base 10000.

    The window of `native` patches in the middle covers the coordinates 0 to 16, whatever its size is.

    Args:
        channels: D, a multiple of 4.
        grid: P, the side of the table in patches.
        native: Side of the window in patches.

    Returns:
        Float32. Shape [1, grid * grid, channels].
    """
    places = torch.arange(grid, dtype=torch.float64)
    coordinates = (places - (grid - native) / 2) * (_SPAN / native)
    frequencies = 10000.0 ** (-torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    angles = coordinates[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1).float()  # [P, D / 2]
    columns = axis[None].expand(grid, grid, -1)
    rows = axis[:, None].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, grid * grid, channels)


class ScaledPositionTables:
    """Tables whose spacing follows the resolution: one for every resolution of the dataset.

    An image takes the table of the resolution nearest to its area. A side longer than that table adds a table
    for it, which later images of a similar area then use as well: ask for every bucket once, in a fixed order,
    before training, and nothing depends on the order of the batches.
    """

    def __init__(self, latent_sizes: Iterable[int], channels: int, device: torch.device | str = "cpu") -> None:
        """
        Args:
            latent_sizes: For every resolution of the dataset, the square root of its area in latent cells.
            channels: D of the model.
            device: Where the tables lie.
        """
        self._channels = channels
        self._device = device
        self._tables: dict[int, Tensor] = {}
        sizes = tuple(latent_sizes)
        if not sizes or min(sizes) < 2:
            raise ValueError(f"latent sizes must be at least 2, got {sizes}")
        natives = sorted({size // 2 for size in sizes})
        limits = [(small**2 + large**2) // 2 for small, large in pairwise(natives)]
        limits.append(_grid(natives[-1]) ** 2)
        self._natives = dict(zip(limits, natives, strict=True))  # {largest area in patches: native side}

    def copy(self) -> ScaledPositionTables:
        """The same tables; what is added to the copy is not added here."""
        other = copy(self)
        other._tables, other._natives = dict(self._tables), dict(self._natives)
        return other

    @property
    def area_limits(self) -> tuple[tuple[int, int], ...]:
        """(largest area, native side) of every table, both in patches, in the order in which they are tried."""
        return tuple(sorted(self._natives.items()))

    def table(self, height: int, width: int) -> Tensor:
        """The table for an image of `height` x `width` patches. Shape [1, P * P, D]."""
        native = next((side for limit, side in self.area_limits if height * width <= limit), self.area_limits[-1][1])
        longest = max(height, width)
        if longest > _grid(native):
            if longest not in self._natives.values():
                _logger.warning(
                    "no resolution of the dataset has a position table for %d x %d pixels; one is added",
                    width * _PIXELS,
                    height * _PIXELS,
                )
                self._natives[_grid(longest) ** 2] = longest
            native = longest
        if native not in self._tables:
            self._tables[native] = sincos_table(self._channels, _grid(native), native).to(self._device)
        return self._tables[native]


def _grid(native: int) -> int:
    return int(1.5 * native)


def _side(table: Tensor, height: int, width: int) -> int:
    side = round(table.shape[1] ** 0.5)
    if max(height, width) > side:
        raise DatasetError(
            f"an image of {width * _PIXELS} x {height * _PIXELS} pixels is larger than the model's table of positions "
            f"allows: {side * _PIXELS} pixels a side. Lower the resolution or max_bucket_reso of the dataset."
        )
    return side


def _window(table: Tensor, side: int, top: int, left: int, height: int, width: int) -> Tensor:
    square = table.unflatten(1, (side, side))
    return square[:, top : top + height, left : left + width].flatten(1, 2)
