"""Copies of saved files on the Hugging Face hub, made by one thread beside the training.

An upload that fails is tried again, then logged, and never ends the training. A file or a folder is one commit, so a
state is on the hub as a whole or not at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Condition, Event, Thread
from typing import TYPE_CHECKING, Any, Literal

from library.errors import EnvironmentFault, OptionError
from library.log import get_logger
from library.training.saving.hub_faults import fault_words, is_final

if TYPE_CHECKING:
    from library.options.groups import HubOptions

logger = get_logger(__name__)

RETRY_DELAYS = (10.0, 60.0, 300.0)  # seconds before the second, third and fourth try
FINISH_SECONDS = 1800.0  # how long the end of a run waits at least: a LoRA takes minutes on a slow line
_SLOW_LINE = 2_000_000  # bytes a second; a whole model is waited for as long as such a line takes
_MOST_NAMES = 5  # that a line lists

State = Literal["uploaded", "failed", "removed"]


@dataclass(frozen=True)
class Target:
    """Where copies go.

    Attributes:
        repo_id: owner/name.
        repo_type: "model", "dataset" or "space".
        folder: In the repository; empty for its root.
        is_private: Of a repository that is made.
    """

    repo_id: str
    repo_type: str = "model"
    folder: str = ""
    is_private: bool = True

    def place_of(self, name: str) -> str:
        """Path in the repository of what is called `name`."""
        folder = self.folder.strip("/")
        return f"{folder}/{name}" if folder else name


@dataclass(frozen=True)
class Outcome:
    """What became of one submission; `reason` says why it failed."""

    path: Path
    state: State
    reason: str = ""


def make_uploader(options: HubOptions) -> Uploader | None:
    """The uploader that the options ask for; None if they ask for none. Nothing is sent before the first submission.

    Raises:
        OptionError: There is no access token.
        EnvironmentFault: The hub's client is missing.
    """
    if options.huggingface_repo_id is None:
        return None
    try:
        from huggingface_hub import constants, get_token
    except ImportError as error:
        raise EnvironmentFault(
            f"--huggingface_repo_id needs the package huggingface_hub, which cannot be imported ({error}). "
            "Run `pip install huggingface_hub`."
        ) from error
    if not options.huggingface_token and not get_token():
        raise OptionError(
            "--huggingface_repo_id: there is no access token. Give --huggingface_token, set HF_TOKEN, "
            "or log in with `hf auth login`."
        )
    if constants.HF_HUB_OFFLINE:
        logger.warning("--huggingface_repo_id: HF_HUB_OFFLINE is set, so nothing will be uploaded; unset it.")
    target = Target(
        options.huggingface_repo_id,
        options.huggingface_repo_type or "model",
        options.huggingface_path_in_repo or "",
        options.huggingface_repo_visibility != "public",
    )
    return Uploader(target, options.huggingface_token)


class Uploader:
    """Uploads what is submitted, in that order, in one thread that does not keep the process alive.

    Args:
        target: Where to.
        token: Access token; None takes the login of the hub's client.
        delays: Seconds to wait before each further try.
    """

    def __init__(self, target: Target, token: str | None = None, *, delays: Sequence[float] = RETRY_DELAYS) -> None:
        self._target, self._token, self._delays = target, token, tuple(delays)
        self._queue: Queue[Path] = Queue()
        self._is_out_of_reach = False  # by all tries of the last file, so the next one is tried once
        self._has_warned = False
        self._open: list[Path] = []
        self._outcomes: list[Outcome] = []
        self._changed = Condition()
        self._is_given_up = Event()
        self._has_repository = False
        self._thread: Thread | None = None  # from the first submission on, when the processes that read data are there

    def submit(self, path: Path) -> None:
        """Upload a file or a folder, which are complete, soon. What lies there by then is uploaded."""
        with self._changed:
            self._open.append(path)
        self._queue.put(path)
        if self._thread is None:
            self._thread = Thread(target=self._work, name="uploads", daemon=True)
            self._thread.start()

    def finish(self, timeout: float | None = None) -> list[str]:
        """Wait for what has been submitted, at most `timeout` seconds; returns lines for the summary.

        Without a limit, as long as `patience` says.
        """
        with self._changed:
            if timeout is None:
                timeout = patience(self._open)
            if self._open:
                logger.info("waiting for %d uploads, at most %.0f s", len(self._open), timeout)
            self._changed.wait_for(lambda: not self._open, timeout)
            self._is_given_up.set()
            return _summary(self._target, self._outcomes, self._open)

    # In the thread

    def _work(self) -> None:
        while not self._is_given_up.is_set():
            outcome = self._upload_with_retries(self._queue.get())
            if outcome is None:
                return
            _tell(outcome, self._target)
            with self._changed:
                self._outcomes.append(outcome)
                self._open.remove(outcome.path)
                self._changed.notify_all()

    def _upload_with_retries(self, path: Path) -> Outcome | None:
        """None if the end of the run did not wait any longer."""
        delays = () if self._is_out_of_reach else self._delays
        for delay in (*delays, None):
            if not os.path.exists(path):
                return Outcome(path, "removed")
            try:
                self._upload(path)
                self._is_out_of_reach = False
                return Outcome(path, "uploaded")
            except Exception as error:  # of any kind: packages below the client raise their own. It is told, always
                if not os.path.exists(path):
                    return Outcome(path, "removed")
                reason = fault_words(error, self._token)
                if delay is None or is_final(error):
                    self._is_out_of_reach = not is_final(error)
                    return Outcome(path, "failed", reason)
            if not self._has_warned:
                logger.info("%s is not uploaded yet, it is tried again in %.0f s: %s", path.name, delay, reason)
            self._has_warned = True
            if self._is_given_up.wait(delay):
                return None
        raise AssertionError("the last try returns")

    def _upload(self, path: Path) -> None:
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi(token=self._token)
        self._make_repository(api)
        place = self._target.place_of(path.name)
        files = {place: path}
        if path.is_dir():
            files = {f"{place}/{file.relative_to(path).as_posix()}": file for file in _files_in(path)}
        started = time.monotonic()
        api.create_commit(
            self._target.repo_id,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()],
            commit_message=f"Upload {path.name}",
            repo_type=self._target.repo_type,
        )
        logger.debug("%s: uploaded in %.1f s", path.name, time.monotonic() - started)

    def _make_repository(self, api: Any) -> None:
        """Once; one that is there stays as it is."""
        if self._has_repository:
            return
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # they would tear the training's
        api.create_repo(
            self._target.repo_id,
            private=self._target.is_private,
            repo_type=self._target.repo_type,
            space_sdk="static" if self._target.repo_type == "space" else None,
            exist_ok=True,
        )
        self._has_repository = True


def patience(paths: Iterable[Path]) -> float:
    """How many seconds the end of a run waits for these uploads: half an hour, or what they take on a slow line."""
    return max(FINISH_SECONDS, sum(map(_num_bytes, paths)) / _SLOW_LINE)


def _files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _num_bytes(path: Path) -> int:
    """Of a file or of all files in a folder; of what goes meanwhile, none."""
    try:
        return sum(file.stat().st_size for file in (_files_in(path) if path.is_dir() else [path]))
    except OSError:
        return 0


def _tell(outcome: Outcome, target: Target) -> None:
    name = outcome.path.name
    if outcome.state == "uploaded":
        logger.info("uploaded %s to %s", name, target.repo_id)
    elif outcome.state == "removed":
        logger.info("%s was removed before it was uploaded", name)
    else:
        logger.warning("%s is not uploaded to %s: %s", name, target.repo_id, outcome.reason)


def _summary(target: Target, outcomes: Sequence[Outcome], still_open: Sequence[Path]) -> list[str]:
    """One line for each kind of outcome that occurred, and one for each reason of a failure."""
    lines = []
    if done := [outcome.path.name for outcome in outcomes if outcome.state == "uploaded"]:
        lines.append(f"uploaded to {target.repo_id}: {_listed(done)}")
    if removed := [outcome.path.name for outcome in outcomes if outcome.state == "removed"]:
        lines.append(f"removed before it was uploaded: {_listed(removed)}")
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    for reason in dict.fromkeys(outcome.reason for outcome in failed):
        names = [outcome.path.name for outcome in failed if outcome.reason == reason]
        lines.append(f"not uploaded: {_listed(names)} ({reason})")
    if still_open:
        lines.append(f"not uploaded in time: {_listed([path.name for path in still_open])}; this machine has it")
    return lines


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
