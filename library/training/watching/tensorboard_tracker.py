"""TensorBoard: event files in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library.log import get_logger

logger = get_logger(__name__)

_FLUSH_SECONDS = 30  # what a killed run may lose


class TensorBoardTracker:
    """Writes the events of a run.

    Args:
        folder: Of this run; made if it is missing.
        settings: Options to tell, by name; may be empty.
        config: Arguments of torch's SummaryWriter.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object], config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), **{"flush_secs": _FLUSH_SECONDS, **config})
        logger.info("tensorboard: %s", folder)
        if settings:
            lines = [f"| {name} | {value} |" for name, value in settings.items()]
            self._writer.add_text("options", "\n".join(["| option | value |", "| --- | --- |", *lines]), 0)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers by name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_pictures(self, pictures: Mapping[int, tuple[Path, str]], step: int) -> None:
        """Take pictures by number of their prompt: "sample_0" and so on."""
        import numpy as np
        from PIL import Image

        for number, (path, prompt) in pictures.items():
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(f"sample_{number}", pixels, step, dataformats="HWC")
            self._writer.add_text(f"sample_{number}/prompt", prompt, step)
        self._writer.flush()

    def finish(self, exit_code: int) -> None:
        """Write what is left."""
        self._writer.close()
