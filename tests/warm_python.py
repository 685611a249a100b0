"""Starts scripts in processes that are forked from one in which torch and transformers are imported already.

`python tests/warm_python.py` reads a job a line from stdin, as JSON, and writes what comes of it to stdout:
{"argv": script and arguments, "environment": [variables of each process], "output": file for what they print} gives
{"pids": of the processes}; {"wait": pids} gives {"codes": of each, negative for a signal} when all have ended. As with
a launcher, the others get SIGTERM when one ends with an error. `WarmPython` gives it the jobs.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
IMPORTED_ONCE = (
    *("accelerate", "bitsandbytes", "cv2", "einops", "peft", "safetensors.torch", "sentencepiece", "tokenizers"),
    *("diffusers.models.autoencoders.autoencoder_kl", "matplotlib.figure", "matplotlib.backends.backend_agg"),
    *("matplotlib.style", "torch", "transformers.models.clip.modeling_clip", "transformers.models.t5.modeling_t5"),
    *("library.training.building", "library.models.text_encoders", "library.families.sd3.family", "networks.lora"),
    *("library.models.mmdit", "networks.lora_sd3", "networks.lora_unet", "networks.network", "sd3_train_network"),
    "sd3_train",
)
LONGEST = 600  # seconds; what takes longer hangs


@dataclass(frozen=True)
class Started:
    """Processes that run a script.

    Attributes:
        pids: In the order of their ranks.
        output: What they print.
    """

    pids: tuple[int, ...]
    output: Path

    def printed(self) -> str:
        """Up to now."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def has_ended(self) -> bool:
        """Whether one of them has, that is not waited for yet."""
        return any(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in self.pids)


class WarmPython:
    """A process with everything imported, without a GPU, that starts scripts. One at a time is waited for."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def start(
        self, argv: Sequence[str], output: Path, *, ranks: int = 1, environment: Mapping[str, str] | None = None
    ) -> Started:
        """Run a script.

        Args:
            argv: Its path and its arguments.
            output: A file for what all processes print.
            ranks: How many processes; several find each other as those of torchrun do.
            environment: Variables for all of them.
        """
        output.touch()
        given = dict(environment or {})
        each = [{**given, **variables} for variables in (self._launched(ranks) if ranks > 1 else [{}])]
        answer = self._ask({"argv": [str(word) for word in argv], "environment": each, "output": str(output)})
        return Started(tuple(answer["pids"]), output)

    def wait(self, started: Started) -> tuple[int, ...]:
        """Exit codes of all, when they have ended; negative for a signal."""
        return tuple(self._ask({"wait": started.pids})["codes"])

    def close(self) -> None:
        """No script is started any more."""
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _launched(self, ranks: int) -> list[dict[str, str]]:
        """The variables of torchrun. The store in which the processes find each other is here, as it is in torchrun."""
        from torch.distributed import TCPStore

        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port)}
        common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]

    def _ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


# In the process that is asked


def main() -> None:
    """Answer jobs. Of what this starts, each process comes back from here with its script, and runs it."""
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    gc.freeze()  # else every process looks through all of it when it ends, which takes two seconds
    codes: dict[int, int] = {}
    argv: list[str] | None = None
    while argv is None and (line := sys.stdin.readline()):
        job = json.loads(line)
        if "wait" in job:
            _answer({"codes": _codes_of(job["wait"], codes)})
        else:
            argv = _fork_all(job)
    if argv is not None:
        sys.argv = argv
        sys.path[0] = str(Path(argv[0]).resolve().parent)
        runpy.run_path(argv[0], run_name="__main__")


def _fork_all(job: dict[str, Any]) -> list[str] | None:
    """Start the processes; in each of them, what it runs."""
    pids = []
    for variables in job["environment"]:
        pid = os.fork()
        if pid == 0:
            _begin(variables, job["output"])
            argv: list[str] = job["argv"]
            return argv
        pids.append(pid)
    _answer({"pids": pids})
    return None


def _begin(variables: Mapping[str, str], output: str) -> None:
    os.setsid()
    os.environ.update(variables)
    printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (printed, 1), (printed, 2)):
        os.dup2(source, target)


def _codes_of(pids: Sequence[int], codes: dict[int, int]) -> list[int]:
    """Exit codes; `codes` has those of processes that ended before they were asked for."""

    def give_up(*_: object) -> None:
        for pid in set(pids) - codes.keys():
            os.kill(pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LONGEST)
    while not codes.keys() >= set(pids):
        ended, status = os.wait()
        codes[ended] = os.waitstatus_to_exitcode(status)
        for other in set(pids) - codes.keys() if codes[ended] and ended in pids else ():
            os.kill(other, signal.SIGTERM)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return [codes[pid] for pid in pids]


def _answer(content: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
