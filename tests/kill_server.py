"""Starts trainings and kills them: `python tests/kill_server.py`, with one job a line on stdin, its outcome on stdout.

A job is JSON: {"argv": the command line, "script": "sd3_train_network" or "sd3_train", "log": file for its output,
"kill": null, or {"step": n, "is_after": whether after it} or {"file": n, "delay": seconds}}. The second kind kills at
the n-th file operation inside a save, at once where the delay is 0, else that much later, wherever the run is by
then. Every training is a process of its own, forked from this one so that torch is imported once. The outcome is
{"signal": that ended it, or 0, "code": exit code, "operations": file operations inside saves}.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.warm_python import IMPORTED_ONCE

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")
NOT_SAVES = (".easel_run.json", "curves.png", "loss_by_image.csv", "numbers.json")


def main() -> None:
    for name in IMPORTED_ONCE:
        importlib.import_module(name)

    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run_job(json.loads(line))), flush=True)


def run_job(job: dict[str, Any]) -> dict[str, int]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_train(job, writer))
    os.close(writer)
    told = b""
    while piece := os.read(reader, 4096):
        told += piece
        if b"k" in piece:
            time.sleep(job["kill"]["delay"])
            os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
    return {"signal": ended_by, "code": code, "operations": told.count(b"f")}


def _train(job: dict[str, Any], tell: int) -> int:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    script: Any = importlib.import_module(job["script"])
    trainer = script.Sd3FullTrainer if job["script"] == "sd3_train" else script.Sd3NetworkTrainer
    kill = job["kill"] or {}
    if "step" in kill:
        _kill_at_step(trainer, kill["step"], kill["is_after"])
    _watch_files(job, kill, tell)
    try:
        return int(script.main(job["argv"]))
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1


def _kill_at_step(trainer: Any, step: int, is_after: bool) -> None:
    real = trainer.optimizer_step

    def optimizer_step(self: Any, batches: Any) -> None:
        if not is_after and self.step + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, batches)
        if is_after and self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.optimizer_step = optimizer_step


def _counted(save: Callable[..., Any], depth: list[int]) -> Callable[..., Any]:
    """The save, which counts in `depth` whether one is going on: tidying up at the start of a run is none."""

    def counted(*args: Any, **named: Any) -> Any:
        depth[0] += 1
        try:
            return save(*args, **named)
        finally:
            depth[0] -= 1

    return counted


def _writes(arguments: tuple[Any, ...]) -> bool:
    """Whether a file is opened to write; what is read of a state before the run goes on is no save."""
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(sign in mode for sign in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _watch_files(job: dict[str, Any], kill: dict[str, Any], tell: int) -> None:
    from library.training.saving.saver import Saver

    folder = next(word.partition("=")[2] for word in job["argv"] if word.startswith("--output_dir="))
    seen, depth = [0], [0]
    for name in ("save_model", "try_to_save_state"):
        setattr(Saver, name, _counted(getattr(Saver, name), depth))

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if not depth[0] or event not in FILE_EVENTS or not isinstance(arguments[0], (str, Path)):
            return
        if event == "open" and not _writes(arguments):
            return
        path = str(arguments[0])
        if not path.startswith(folder + os.sep) or path.endswith(NOT_SAVES):
            return
        seen[0] += 1
        os.write(tell, b"f")
        if kill.get("file") == seen[0]:
            if kill["delay"]:
                os.write(tell, b"k")
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


if __name__ == "__main__":
    main()
