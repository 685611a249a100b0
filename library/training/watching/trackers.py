"""Trackers: TensorBoard and wandb get the numbers and pictures of a run.

A tracker never ends a training. What is wrong with its options or packages is told before weights are read
(`check_trackers`); whatever it breaks at later is one warning, and the tracker is off from then on.
"""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Protocol

from library.errors import EnvironmentFault, OptionError
from library.log import get_logger
from library.options.groups import LoggingOptions
from library.options.option import nearest_hint
from library.options.spec import OptionGroup
from library.options.toml_file import read_toml

logger = get_logger(__name__)

Setting = bool | int | float | str
Config = Mapping[str, Mapping[str, Any]]  # by tracker

_CONFIG_FLAG = "--log_tracker_config"
_TENSORBOARD_KEYS = ("purge_step", "max_queue", "flush_secs", "filename_suffix")


class Tracker(Protocol):
    """One tracker of a run."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers by name."""

    def log_pictures(self, pictures: Mapping[int, tuple[Path, str]], step: int) -> None:
        """Take pictures and their prompts by the number of the prompt."""

    def finish(self, exit_code: int) -> None:
        """Write what is left."""


class Trackers:
    """All trackers of a run; none in processes that are not the first one."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    @classmethod
    def start(
        cls,
        options: LoggingOptions,
        values: Mapping[str, Any],
        *,
        is_main: bool,
        output_dir: Path,
        project: str = "network_train",
    ) -> Trackers:
        """Start the trackers that the options name.

        Args:
            options: Those of the log.
            values: All options by name; --log_config tells them, but for keys and paths.
            is_main: Whether this is the first process; others have no trackers.
            output_dir: Where wandb keeps its files if there is no --logging_dir.
            project: Name of the project if --log_tracker_name gives none.
        """
        config = read_tracker_config(options.log_tracker_config) if is_main and options.trackers else {}
        settings = shown_options(values) if options.log_config else {}
        started: dict[str, Tracker] = {}
        for name in options.trackers if is_main else ():
            own = {"project": options.log_tracker_name or project, **config.get(name, {})}
            try:
                started[name] = _STARTS[name](options, own, settings, options.logging_dir or output_dir)
            except Exception as error:  # of another package, and no reason not to train
                _tell_off(name, error)
        return cls(started)

    def __bool__(self) -> bool:
        """Whether any is on."""
        return bool(self._trackers)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name, after an optimizer step."""
        self._each(lambda tracker: tracker.log(values, step))

    def log_pictures(
        self, paths: Sequence[Path], prompts: Sequence[str], step: int, *, numbers: Sequence[int] | None = None
    ) -> None:
        """Sample pictures with their prompts; `numbers` are those of the prompts where some have no picture."""

        def call(tracker: Tracker) -> None:
            pairs = zip(paths, prompts, strict=True)
            order = range(len(paths)) if numbers is None else numbers
            tracker.log_pictures(dict(zip(order, pairs, strict=True)), step)

        self._each(call)

    def finish(self, exit_code: int = 0) -> None:
        """Write what is left. May wait for an upload, so it comes after the last save."""
        self._each(lambda tracker: tracker.finish(exit_code))
        self._trackers = {}

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # of another package, and no reason not to train
                _tell_off(name, error)
                del self._trackers[name]


def _tell_off(name: str, error: Exception) -> None:
    reason = " ".join(str(error).split()) or type(error).__name__
    logger.warning("%s is off from here on, training goes on: %s", name, reason)
    logger.debug("where %s failed:", name, exc_info=error)


def _start_tensorboard(
    options: LoggingOptions, config: dict[str, Any], settings: Mapping[str, Setting], folder: Path
) -> Tracker:
    from library.training.watching.tensorboard_tracker import TensorBoardTracker

    run = f"{options.log_prefix or ''}{time.strftime('%Y%m%d%H%M%S')}"
    return TensorBoardTracker(folder / run / config.pop("project"), settings, config)


def _start_wandb(
    options: LoggingOptions, config: dict[str, Any], settings: Mapping[str, Setting], folder: Path
) -> Tracker:
    from library.training.watching.wandb_tracker import WandbTracker

    given = {"project": options.log_tracker_name, "name": options.wandb_run_name}
    config |= {name: value for name, value in given.items() if value}  # the command line goes before the file
    return WandbTracker(config, settings, folder=folder, api_key=options.wandb_api_key)


_STARTS: dict[str, Callable[..., Tracker]] = {"tensorboard": _start_tensorboard, "wandb": _start_wandb}


# Checks before anything is loaded


def check_trackers(options: LoggingOptions) -> None:
    """Refuse what cannot work: a missing package, or a wrong file of settings.

    Raises:
        EnvironmentFault: The package of a tracker is not installed.
        OptionError: --log_tracker_config cannot be read, or has an unknown table or key.
    """
    if options.logging_dir is not None and options.logging_dir.is_file():
        raise OptionError(f"--logging_dir: {options.logging_dir} is a file. Give a folder.")
    for name in options.trackers:
        if not _is_installed(name):
            raise EnvironmentFault(
                f"--log_with {name}: the Python package {name} is not installed. "
                f"Run `python3 quickstart.py setup --extras {name}` or `pip install {name}`, or leave it out."
            )
    config = read_tracker_config(options.log_tracker_config)
    for name in options.trackers:
        if table := config.get(name):
            _check_keys(f"{_CONFIG_FLAG}: {options.log_tracker_config}, [{name}]", table, _known_keys(name))
    if settings := config.get("wandb", {}).get("settings") if "wandb" in options.trackers else None:
        _check_wandb_settings(f"{_CONFIG_FLAG}: {options.log_tracker_config}, [wandb.settings]", settings)


def read_tracker_config(path: Path | None) -> Config:
    """The tables of --log_tracker_config by tracker; empty without a file.

    Raises:
        OptionError: It cannot be read, or has something else than tables of trackers.
    """
    if path is None:
        return {}
    tables, _ = read_toml(path, _CONFIG_FLAG, OptionError)
    _check_keys(f"{_CONFIG_FLAG}: {path}", tables, tuple(_STARTS))
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise OptionError(f"{_CONFIG_FLAG}: {path}: {name} is no table. Write [{name}] above its settings.")
    return tables


def _is_installed(package: str) -> bool:
    """A folder of that name, as wandb makes one where it runs, is no package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _known_keys(tracker: str) -> tuple[str, ...]:
    if tracker == "tensorboard":
        return _TENSORBOARD_KEYS
    import inspect

    import wandb

    return tuple(inspect.signature(wandb.init).parameters)


def _check_keys(place: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            raise OptionError(f"{place}: unknown key {key}.{nearest_hint(key, known)}")


def _check_wandb_settings(place: str, settings: Any) -> None:
    import wandb

    try:
        wandb.Settings(**settings)
    except (TypeError, ValueError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise OptionError(f"{place}: wandb does not accept them ({reason}). Correct or remove them.") from error


# What --log_config tells


def shown_options(values: Mapping[str, Any]) -> dict[str, Setting]:
    """The options that are set, as plain values, without keys and without paths.

    Args:
        values: All options by name.
    """
    secrets = {item.name for group in _groups_of(OptionGroup) for item in fields(group) if _is_secret(item)}
    shown: dict[str, Setting] = {}
    for name, value in values.items():
        items = value if isinstance(value, tuple) else (value,)
        if name in secrets or value is None or any(_is_like_a_path(item) for item in items):
            continue
        shown[name] = ", ".join(map(str, items)) if isinstance(value, tuple) else value
    return shown


def _groups_of(base: type[OptionGroup]) -> Iterator[type[OptionGroup]]:
    """All groups that extend one, directly or not."""
    for group in base.__subclasses__():
        yield group
        yield from _groups_of(group)


def _is_secret(item: Field[Any]) -> bool:
    return bool(item.metadata["option"].is_secret)


def _is_like_a_path(value: object) -> bool:
    return isinstance(value, Path) or (isinstance(value, str) and ("/" in value or "\\" in value))
