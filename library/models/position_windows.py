"""Windows of tables of positions on the device, while the tables stay in host memory.

The table of SD3.5-medium has 226 million numbers, of which a picture of 1024 x 1024 pixels needs 4096 rows of 1536.
"""

from __future__ import annotations

import torch
from torch import Tensor

from library.device import send
from library.models.positions import centred_window

MAX_WINDOWS = 16
MAX_BYTES = 64 * 2**20  # four windows of 1024 x 1024 pixels in 16 bits


class PositionWindows:
    """The last windows in the middle of tables, where they were asked for. Nobody may write to them."""

    def __init__(self) -> None:
        # with the table beside it, so that no other one can get its place in memory and with it its name
        self._windows: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """Of all windows that are kept."""
        return sum(window.nbytes for _, window in self._windows.values())

    def __len__(self) -> int:
        return len(self._windows)

    def centred(self, table: Tensor, height: int, width: int, device: torch.device) -> Tensor:
        """The window in the middle of a table, on a device, in the precision of the table.

        Args:
            table: Anywhere. Shape [1, P * P, D].
            height: Rows, in patches.
            width: Columns, in patches.
            device: Which may still be busy; it is not waited for.

        Returns:
            Shape [1, height * width, D].

        Raises:
            DatasetError: The image is larger than the table.
        """
        key = (id(table), table._version, height, width, device)
        kept = self._windows.pop(key, None)
        if kept is None:
            kept = table, send(centred_window(table, height, width), device)
        self._windows[key] = kept  # the last one asked for comes last
        while len(self._windows) > 1 and (len(self) > MAX_WINDOWS or self.num_bytes > MAX_BYTES):
            del self._windows[next(iter(self._windows))]
        return kept[1]
