"""A run that is killed again and again, at steps and inside saves, ends with the bytes of one that never was.

Each chain starts a run, kills it with SIGKILL, goes on with --resume auto, kills it again, and so on; then it lets the
run end, and compares every file that was saved with those of an unbroken run. Where a kill falls is drawn anew from a
fixed seed; kills with a delay fall where they fall.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from library.checkpoint.state_folder import glance, open_folder

ROOT = Path(__file__).resolve().parents[2]
ON_DISK = ("--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk")
CACHED = (*ON_DISK, "--network_train_unet_only")
KILLS_AT_STEPS, KILLS_IN_SAVES, KILLS_LATER = 4, 4, 2  # of each chain


@dataclass(frozen=True)
class Chain:
    """A kind of training.

    Attributes:
        flags: Of the command line.
        dataset: Keys of the dataset file.
        steps: How many it has.
        script: Which one runs.
    """

    flags: tuple[str, ...]
    dataset: dict[str, object]
    steps: int
    script: str = "sd3_train_network"


EVERY_STEP = ("--max_train_steps=8", "--save_every_n_steps=1", "--save_last_n_steps=2")
CHAINS = {
    "lora": Chain((*CACHED, "--max_train_steps=9", "--save_every_n_steps=2", "--network_dropout=0.1"), {}, 9),
    "accumulation": Chain(
        (*CACHED, "--gradient_accumulation_steps=3", "--max_train_epochs=4", "--save_every_n_epochs=1"),
        {"batch_size": 1},
        8,
    ),
    "workers": Chain(
        (*CACHED, *EVERY_STEP, "--max_data_loader_n_workers=2", "--lr_scheduler=cosine", "--learning_rate=1e-2"),
        {"batch_size": 1, "flip_aug": True},
        8,
    ),
    "text encoders": Chain(
        ("--max_train_steps=5", "--save_every_n_steps=1", "--optimizer_type=AdamW8bit", "--cache_latents_to_disk"),
        {"shuffle_caption": True},
        5,
    ),
    "average": Chain(
        (*CACHED, *EVERY_STEP, "--ema_decay=0.9", "--lr_scheduler=constant_with_warmup", "--lr_warmup_steps=4"), {}, 8
    ),
    "whole model": Chain(  # each save is a model and two files of the CLIPs
        (*ON_DISK, "--train_text_encoder", "--max_train_steps=7", "--save_every_n_steps=2"), {}, 7, "sd3_train"
    ),
}


class Server:
    """Gives jobs to `tests/kill_server.py`."""

    def __init__(self) -> None:
        command = [sys.executable, str(ROOT / "tests" / "kill_server.py")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, **job: object) -> dict[str, int]:
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        outcome: dict[str, int] = json.loads(self.process.stdout.readline())
        return outcome


@pytest.fixture(scope="module")
def server():
    started = Server()
    yield started
    started.process.stdin.close()
    started.process.wait(timeout=60)


def saved_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def steps_done(folder: Path) -> int:
    """Of the newest complete state."""
    return max((int(about["current_step"]) for path in folder.glob("x*-state") if (about := glance(path))), default=0)


def draw_kill(kind: str, chain: Chain, done: int, num_operations: int, draw: random.Random) -> dict[str, object]:
    """Somewhere in what is left of the run."""
    if kind == "step":
        return {"step": draw.randint(done + 1, chain.steps), "is_after": draw.random() < 0.5}
    left = max(1, num_operations * (chain.steps - done) // chain.steps)
    return {"file": draw.randint(1, left), "delay": 0 if kind == "save" else draw.uniform(0.0001, 0.02)}


@pytest.mark.parametrize("name", CHAINS)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(training, full_training, server, tmp_path, name):
    chain, draw = CHAINS[name], random.Random(name)
    training = full_training if chain.script == "sd3_train" else training
    dataset = training.dataset(training.pictures(), **chain.dataset)
    argv = [*training.arguments(dataset), *chain.flags, "--output_name=x", "--save_state"]
    argv = [word for word in argv if not word.startswith("--output_dir=")]
    names = [word.partition("=")[0] for word in argv]
    argv = [word for i, word in enumerate(argv) if names[i] not in names[i + 1 :]]

    def start(folder: str, kill: object, *flags: str) -> dict[str, int]:
        command = [*argv, f"--output_dir={tmp_path / folder}", *flags]
        return server.run(argv=command, script=chain.script, log=str(tmp_path / f"{folder}.log"), kill=kill)

    unbroken = start("unbroken", None)
    assert unbroken["code"] == 0, (tmp_path / "unbroken.log").read_text()

    killed, log = tmp_path / "killed", tmp_path / "killed.log"
    kinds = ["step"] * KILLS_AT_STEPS + ["save"] * KILLS_IN_SAVES + ["later"] * KILLS_LATER
    draw.shuffle(kinds)
    for kind in kinds:
        outcome = {"signal": 0, "code": 0}
        while not outcome["signal"]:  # a run that comes to its end before it is killed begins anew
            done = steps_done(killed)
            if outcome["code"] or done >= chain.steps or (killed / "x.safetensors").exists():
                assert outcome["code"] == 0, log.read_text()
                shutil.rmtree(killed, ignore_errors=True)
                done = 0
            outcome = start("killed", draw_kill(kind, chain, done, unbroken["operations"], draw), "--resume=auto")
        assert outcome["signal"] == signal.SIGKILL

    end = start("killed", None, "--resume=auto")
    assert end["code"] == 0, log.read_text()
    assert saved_bytes(tmp_path / "killed") == saved_bytes(tmp_path / "unbroken")
    states = sorted(path.name for path in (tmp_path / "unbroken").glob("*-state"))
    assert sorted(path.name for path in (tmp_path / "killed").glob("*-state")) == states
    for state in states:
        open_folder(tmp_path / "killed" / state)
    left = [path.name for path in (tmp_path / "killed").iterdir() if path.name.endswith((".tmp", ".replaced"))]
    assert left == []


def test_the_chains_together_make_sixty_kills_and_twenty_of_them_inside_a_save():
    each = KILLS_AT_STEPS + KILLS_IN_SAVES + KILLS_LATER
    assert len(CHAINS) * each >= 60 and len(CHAINS) * KILLS_IN_SAVES >= 20
