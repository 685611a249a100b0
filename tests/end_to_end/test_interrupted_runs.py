"""Ctrl-C and SIGTERM: the first finishes the step and saves, the second ends at once; and going on is exact."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from library.checkpoint.state_folder import open_folder

ROOT = Path(__file__).resolve().parents[2]
CACHED = ("--network_train_unet_only", "--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk")
NAME = "--output_name=x"
# The script, with a third step that takes long enough to be interrupted, and says when it begins.
SLOW = """
import sys, time
import sd3_train_network as script

class Slow(script.Sd3NetworkTrainer):
    def after_step(self):
        if self.step == 2:
            print("third step", flush=True)
            time.sleep(2)

script.Sd3NetworkTrainer = Slow
sys.exit(script.main())
"""


@pytest.fixture
def slow(tmp_path):
    """slow(arguments) starts a run whose third step takes two seconds, and comes back in the middle of it."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW, encoding="utf-8")

    def start(arguments, launcher=()):
        process = subprocess.Popen(
            [sys.executable, *launcher, str(script), *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "third step" in line:
                break
        else:
            raise AssertionError("".join(lines))
        return process

    return start


@pytest.fixture
def arguments(training):
    return training.arguments(training.dataset(training.pictures()), *CACHED, NAME, "--max_train_steps=6")


def folder_of(arguments):
    return Path(next(word.partition("=")[2] for word in arguments if word.startswith("--output_dir=")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_first_signal_finishes_the_step_saves_model_and_state_and_gives_130(training, slow, arguments, number):
    process = slow(arguments)
    os.killpg(process.pid, number)  # as a terminal does: loader workers hear it, too
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output and "stopping: this step is finished" in output
    folder = folder_of(arguments)
    assert (folder / "x-step00000003.safetensors").exists() and not (folder / "x.safetensors").exists()
    assert open_folder(folder / "x-step00000003-state").about["current_step"] == 3
    assert "--resume auto" in output

    goes_on = training.run_arguments([*arguments, "--resume=auto"])
    assert goes_on.trainer.continuation.first_step == 3
    unbroken = training.run_arguments([w if not w.startswith("--output_dir=") else f"{w}_2" for w in arguments])
    assert goes_on.file.read_bytes() == unbroken.file.read_bytes()
    assert goes_on.losses == unbroken.losses


def test_signal_in_the_last_step_changes_nothing_any_more(training, slow, tmp_path):
    words = training.arguments(training.dataset(training.pictures()), *CACHED, NAME, "--max_train_steps=3")
    process = slow(words)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and (folder_of(words) / "x.safetensors").exists(), output


def test_second_signal_ends_at_once_and_leaves_what_was_saved(slow, arguments):
    process = slow(arguments)
    process.send_signal(signal.SIGINT)
    time.sleep(1.3)  # sooner it would count as the same
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped at once" in output and "Traceback" not in output
    assert not list(folder_of(arguments).glob("*-state"))


def test_signal_while_workers_read_is_heard_by_the_run_alone(slow, training):
    dataset = training.dataset(training.pictures(), batch_size=1)
    words = training.arguments(dataset, "--network_train_unet_only", "--max_train_steps=6", NAME)
    words = [word for word in words if not word.startswith("--max_data_loader")]
    process = slow([*words, "--max_data_loader_n_workers=2"])
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in output, output
    assert (folder_of(words) / "x-step00000003-state").is_dir()


def test_two_processes_stop_after_the_same_step(slow, training, arguments):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    process = slow(arguments, launcher)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=180)
    states = sorted(path.name for path in folder_of(arguments).glob("*-state"))
    assert len(states) == 1, output
    assert open_folder(folder_of(arguments) / states[0]).about["current_step"] in (3, 4)


def test_signal_before_the_first_step_ends_with_130_and_saves_nothing(training, tmp_path, arguments):
    script = tmp_path / "early.py"
    script.write_text(
        "import os, signal, sys\nimport sd3_train_network as script\n"
        "class Early(script.Sd3NetworkTrainer):\n"
        "    def load(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "script.Sd3NetworkTrainer = Early\nsys.exit(script.main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script), *arguments], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 130 and b"interrupted" in done.stderr and b"Traceback" not in done.stderr
    assert not list(folder_of(arguments).glob("*.safetensors"))


def test_signals_that_come_together_are_one(slow, arguments):
    process = slow(arguments)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and (folder_of(arguments) / "x-step00000003-state").is_dir(), output


def test_signal_while_the_final_file_is_written_lets_it_be_written(training, tmp_path, arguments):
    script = tmp_path / "late.py"
    script.write_text(
        "import os, signal, sys\nimport sd3_train_network as script\n"
        "class Late(script.Sd3NetworkTrainer):\n"
        "    def write_model(self, path, **rest):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n        return super().write_model(path, **rest)\n"
        "script.Sd3NetworkTrainer = Late\nsys.exit(script.main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), *arguments, "--save_state"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (folder_of(arguments) / "x.safetensors").exists()
    open_folder(folder_of(arguments) / "x-state")
