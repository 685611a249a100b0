"""wandb: a run on its server, or a local copy of it where the server is out of reach."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from library.log import get_logger

logger = get_logger(__name__)

_DEFAULTS = {
    "init_timeout": 30.0,  # seconds to wait for the server at the start
    "finish_timeout": 300.0,  # and for the upload at the end; newer versions know it
    "silent": True,  # its own lines would tear the bar
    "x_disable_meta": True,  # the command line is part of it, with keys and paths
}


class WandbTracker:
    """One run of wandb. Steps are a number of their own ("step"), so that a run may go back to an earlier state.

    Args:
        arguments: Of `wandb.init`.
        settings: Options to tell, by name; may be empty.
        folder: wandb makes a folder of its own in it.
        api_key: Logs in with it; None leaves that to wandb.
    """

    def __init__(
        self, arguments: Mapping[str, Any], settings: Mapping[str, object], *, folder: Path, api_key: str | None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        told = {**settings, **arguments.get("config", {})}
        own = _own_settings(arguments.get("settings", {}), api_key)
        self._run = _start({"dir": str(folder), **arguments, "config": told, "settings": own})
        self._run.define_metric("*", step_metric="step")
        logger.info("wandb: %s", Path(self._run.dir).parent if self._run.offline else self._run.url)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers by name."""
        self._run.log({**values, "step": step})

    def log_pictures(self, pictures: Mapping[int, tuple[Path, str]], step: int) -> None:
        """Take pictures by number of their prompt: "sample_0" and so on."""
        import wandb

        shown = {f"sample_{n}": wandb.Image(str(path), caption=prompt) for n, (path, prompt) in pictures.items()}
        self._run.log({**shown, "step": step})

    def finish(self, exit_code: int) -> None:
        """Upload what is left."""
        self._run.finish(exit_code=exit_code)


def _own_settings(given: Mapping[str, Any], api_key: str | None) -> dict[str, Any]:
    import wandb

    known = {name: value for name, value in _DEFAULTS.items() if name in wandb.Settings.model_fields}
    return {**known, **({"api_key": api_key} if api_key else {}), **given}


def _start(arguments: dict[str, Any]) -> Any:
    """A run on the server, or, where there is no key or no way to it, a local one and a warning."""
    import wandb

    try:
        with _no_one_to_ask():
            return wandb.init(**arguments)
    except (wandb.errors.Error, OSError, ValueError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        logger.warning(
            "wandb runs offline (%s): its files go to %s, and `wandb sync` uploads them later",
            reason.rstrip("."),
            Path(arguments["dir"]) / "wandb",
        )
        settings = {name: value for name, value in arguments["settings"].items() if name != "api_key"}
        return wandb.init(**{**arguments, "settings": settings, "mode": "offline"})


@contextmanager
def _no_one_to_ask() -> Iterator[None]:
    """wandb asks for a key on a console, and would wait for an answer all night."""
    console = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = console
