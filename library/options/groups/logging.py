"""Options about what is told while a script runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt

_OF_TRACKERS = ("log_tracker_name", "log_tracker_config", "log_config")
_OF_TENSORBOARD = ("log_prefix",)
_OF_WANDB = ("wandb_run_name", "wandb_api_key")


@dataclass(frozen=True, kw_only=True)
class ConsoleOptions(OptionGroup):
    """What is told on the console or in its file."""

    title: ClassVar[str] = "Log"

    console_log_level: str | None = opt(
        None,
        "Least importance of what is told. Not set means INFO.",
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    )
    console_log_file: Path | None = opt(None, "Write the log to this file instead of the console.")
    console_log_simple: bool = opt(False, "Plain lines on stdout, without their importance.")
    debug: bool = opt(False, "Show the traceback of an error.")


@dataclass(frozen=True, kw_only=True)
class LoggingOptions(ConsoleOptions):
    """What is told, and where: curves too."""

    logging_dir: Path | None = opt(
        None, "Folder for the logs of trackers; every run makes a folder in it. Alone it means --log_with tensorboard."
    )
    log_with: str | None = opt(None, "Where curves are shown too.", choices=("tensorboard", "wandb", "all"))
    log_prefix: str | None = opt(None, "Beginning of the name of the run's folder, before the time of its start.")
    log_tracker_name: str | None = opt(
        None,
        "Name of the project in the tracker. Not set means network_train, for whole models finetuning, and for "
        "train_db.py dreambooth.",
    )
    log_tracker_config: Path | None = opt(
        None, "TOML file with settings of trackers, in the tables [tensorboard] and [wandb]."
    )
    log_config: bool = opt(False, "Tell the tracker the options, but for keys and paths.")
    wandb_run_name: str | None = opt(None, "Name of the run in wandb.")
    wandb_api_key: str | None = opt(
        None,
        "Key to log in to wandb. It is safer in the environment variable WANDB_API_KEY: other users of the machine can "
        "see command lines.",
        secret=True,
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers in use."""
        if self.log_with == "all":
            return ("tensorboard", "wandb")
        if self.log_with:
            return (self.log_with,)
        return ("tensorboard",) if self.logging_dir else ()

    def check(self) -> Iterator[str]:
        if "tensorboard" in self.trackers and self.logging_dir is None:
            yield f"--log_with {self.log_with} needs --logging_dir, the folder to write to."
        if self.log_tracker_name and set(self.log_tracker_name) & set("/\\#?%:"):
            yield f"--log_tracker_name is a name without / \\ # ? % :, got {self.log_tracker_name!r}."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if not self.trackers:
            for name in _OF_TRACKERS:
                yield name, "no --log_with or --logging_dir"
        if self.logging_dir is None:
            for name in _OF_TENSORBOARD:
                yield name, "no --logging_dir"
        if "wandb" not in self.trackers:
            for name in _OF_WANDB:
                yield name, "no --log_with wandb"
