"""Options about what is told while a script runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt

_TRACKERS = "TensorBoard and wandb"


@dataclass(frozen=True, kw_only=True)
class LoggingOptions(OptionGroup):
    """What is told, and where."""

    title: ClassVar[str] = "Log"

    console_log_level: str | None = opt(
        None,
        "Least importance of what is told. Not set means INFO.",
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    )
    console_log_file: Path | None = opt(None, "Write the log to this file instead of the console.")
    console_log_simple: bool = opt(False, "Plain lines on stdout, without their importance.")
    debug: bool = opt(False, "Show the traceback of an error.")
    logging_dir: Path | None = opt(None, "Folder for the logs of TensorBoard.", later=_TRACKERS)
    log_with: str | None = opt(None, "Tracker.", choices=("tensorboard", "wandb", "all"), later=_TRACKERS)
    log_prefix: str | None = opt(None, "Beginning of the name of the log folder.", later=_TRACKERS)
    log_tracker_name: str | None = opt(None, "Name of the project in the tracker.", later=_TRACKERS)
    log_tracker_config: Path | None = opt(None, "TOML file with settings of the tracker.", later=_TRACKERS)
    log_config: bool = opt(False, "Tell the tracker the options.", later=_TRACKERS)
    wandb_run_name: str | None = opt(None, "Name of the run in wandb.", later=_TRACKERS)
    wandb_api_key: str | None = opt(None, "Key to log in to wandb.", later=_TRACKERS, secret=True)
