"""Ctrl-C and SIGTERM: the first finishes the step and saves, the second ends at once; and going on is exact."""

import os
import signal
import time
from pathlib import Path

import pytest

from library.checkpoint.state_folder import open_folder

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


class Interrupted:
    """A script that runs in processes of its own, in a session of their own each."""

    def __init__(self, python, argv, output, ranks):
        self._python, self._started = python, python.start(argv, output, ranks=ranks)

    def wait_for(self, text):
        while text not in self._started.printed():
            assert not self._started.has_ended(), self._started.printed()
            time.sleep(0.01)

    def signal(self, number, is_of_group=False):
        """As `kill` does, or as a terminal, which signals loader workers too."""
        for pid in self._started.pids:
            (os.killpg if is_of_group else os.kill)(pid, number)

    def end(self):
        """The exit code, and what was printed."""
        codes = self._python.wait(self._started)
        return max(codes), self._started.printed()


@pytest.fixture
def start(tmp_path, warm_python):
    """start(code, arguments, ranks=1) runs this code with these arguments."""

    def run(code, arguments, ranks=1):
        script = tmp_path / "script.py"
        script.write_text(code, encoding="utf-8")
        return Interrupted(warm_python, [script, *arguments], tmp_path / "printed.log", ranks)

    return run


@pytest.fixture
def slow(start):
    """slow(arguments) starts a run whose third step takes two seconds, and comes back in the middle of it."""

    def begin(arguments, ranks=1):
        process = start(SLOW, arguments, ranks)
        process.wait_for("third step")
        return process

    return begin


@pytest.fixture
def arguments(training):
    return training.arguments(training.dataset(training.pictures()), *CACHED, NAME, "--max_train_steps=6")


def folder_of(arguments):
    return Path(next(word.partition("=")[2] for word in arguments if word.startswith("--output_dir=")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_first_signal_finishes_the_step_saves_model_and_state_and_gives_130(training, slow, arguments, number):
    process = slow(arguments)
    process.signal(number, is_of_group=True)
    code, output = process.end()
    assert code == 130, output
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
    process.signal(signal.SIGTERM)
    code, output = process.end()
    assert code == 0 and (folder_of(words) / "x.safetensors").exists(), output


def test_second_signal_ends_at_once_and_leaves_what_was_saved(slow, arguments):
    process = slow(arguments)
    process.signal(signal.SIGINT)
    time.sleep(1.3)  # sooner it would count as the same
    process.signal(signal.SIGINT)
    code, output = process.end()
    assert code == 130 and "stopped at once" in output and "Traceback" not in output
    assert not list(folder_of(arguments).glob("*-state"))


def test_signal_while_workers_read_is_heard_by_the_run_alone(slow, training):
    dataset = training.dataset(training.pictures(), batch_size=1)
    words = training.arguments(dataset, "--network_train_unet_only", "--max_train_steps=6", NAME)
    words = [word for word in words if not word.startswith("--max_data_loader")]
    process = slow([*words, "--max_data_loader_n_workers=2"])
    process.signal(signal.SIGINT, is_of_group=True)
    code, output = process.end()
    assert code == 130 and "Traceback" not in output, output
    assert (folder_of(words) / "x-step00000003-state").is_dir()


def test_two_processes_stop_after_the_same_step(slow, training, arguments):
    process = slow(arguments, ranks=2)
    process.signal(signal.SIGTERM)
    _, output = process.end()
    states = sorted(path.name for path in folder_of(arguments).glob("*-state"))
    assert len(states) == 1, output
    assert open_folder(folder_of(arguments) / states[0]).about["current_step"] in (3, 4)


def test_signal_before_the_first_step_ends_with_130_and_saves_nothing(start, arguments):
    early = (
        "import os, signal, sys\nimport sd3_train_network as script\n"
        "class Early(script.Sd3NetworkTrainer):\n"
        "    def load(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "script.Sd3NetworkTrainer = Early\nsys.exit(script.main())\n"
    )
    code, output = start(early, arguments).end()
    assert code == 130 and "interrupted" in output and "Traceback" not in output
    assert not list(folder_of(arguments).glob("*.safetensors"))


def test_signals_that_come_together_are_one(slow, arguments):
    process = slow(arguments)
    process.signal(signal.SIGINT)
    process.signal(signal.SIGTERM)
    code, output = process.end()
    assert code == 130 and (folder_of(arguments) / "x-step00000003-state").is_dir(), output


def test_signal_while_the_final_file_is_written_lets_it_be_written(start, arguments):
    late = (
        "import os, signal, sys\nimport sd3_train_network as script\n"
        "class Late(script.Sd3NetworkTrainer):\n"
        "    def write_model(self, path, **rest):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n        return super().write_model(path, **rest)\n"
        "script.Sd3NetworkTrainer = Late\nsys.exit(script.main())\n"
    )
    code, output = start(late, [*arguments, "--save_state"]).end()
    assert code == 0, output
    assert (folder_of(arguments) / "x.safetensors").exists()
    open_folder(folder_of(arguments) / "x-state")
