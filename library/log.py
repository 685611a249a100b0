"""Logging of the command-line scripts: plain lines on stderr that do not tear a progress bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER_NAME = "easel"
_NOISY = ("bitsandbytes.backends.cpu",)  # warns of a faster kernel that nothing here uses


@contextmanager
def only_errors() -> Iterator[None]:
    """For what was told before, and would be told again."""
    logger = logging.getLogger(LOGGER_NAME)
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; pass `__name__`."""
    return logging.getLogger(f"{LOGGER_NAME}.{name}")


class _ProgressSafeHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes through tqdm once tqdm is in use, so that log lines and bars do not mix."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm_module = sys.modules.get("tqdm")
        if tqdm_module is None:
            super().emit(record)
            return
        try:
            tqdm_module.tqdm.write(self.format(record), file=self.stream)
            self.flush()
        except OSError:
            self.handleError(record)


def set_up_logging(level: str = "INFO", file: str | None = None, simple: bool = False, is_main: bool = True) -> None:
    """Send the toolkit's log lines to stderr, or to `file`. Processes other than the first only report errors.

    Args:
        level: Name of a logging level.
        file: Written anew; nothing goes to the console then.
        simple: Lines without level names, on stdout.
    """
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logger = logging.getLogger(LOGGER_NAME)
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(level if is_main else "ERROR")
    if file:
        handler: logging.Handler = logging.FileHandler(file, mode="w", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    else:
        stream = sys.stdout if simple else sys.stderr
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        handler = _ProgressSafeHandler(stream)
        handler.setFormatter(logging.Formatter("%(message)s" if simple else "%(levelname)s %(message)s"))
    logger.addHandler(handler)
