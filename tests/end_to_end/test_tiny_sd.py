"""The tiny model of examples/tiny_sd: fine_tune.py makes it, and it draws things in the colours that captions say."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from examples.tiny_sd.build import BASE, MODEL, Plan, draw_pictures, training_command, vae_of
from examples.tiny_sd.painter import Painter, right_shares
from examples.tiny_sd.start import write_start

LOSSES = json.loads((Path(__file__).parent.parent / "golden" / "data" / "tiny_sd_losses.json").read_text())
STOP_AFTER = 2  # steps


def test_the_stored_model_draws_things_in_the_colours_that_captions_say():
    assert right_shares(Painter(BASE / f"{MODEL}.safetensors"), 40)["colour"] >= 0.9


def test_its_training_repeats_the_stored_losses_across_a_stop(training_of, tmp_path):
    """Two starts, each stopped by a signal, against the losses of the unbroken training that made the stored model."""
    train = training_of("fine_tune", "sd1")
    plan, start = Plan(), tmp_path / "start" / f"{MODEL}.safetensors"
    write_start(start, vae_of(BASE / f"{MODEL}.safetensors"), plan.seed)
    pictures = draw_pictures(tmp_path / "pictures", plan)
    arguments = training_command(start, pictures, tmp_path / "out", plan)[1:]
    live = [word for word in arguments if word != "--cache_latents"]  # only the pictures of these steps are encoded
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle on a black background --w 64 --h 64 --s 2 --d 1 --ss euler_a\n", encoding="utf-8")
    live += ["--save_state", "--resume=auto", "--sample_at_first", f"--sample_prompts={prompts.as_posix()}"]

    for number in (1, 2):
        run = train.run_arguments(live, after={"after_step": stopping(STOP_AFTER)})
        assert run.losses == pytest.approx(LOSSES["losses"][: number * STOP_AFTER], rel=1e-4)
    assert list((tmp_path / "out" / "sample").glob("*_00_*_1.png"))


def stopping(steps):
    """Called after each step: after so many it sends what a terminal sends for Ctrl-C."""
    done = []

    def after_step():
        done.append(None)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGINT)

    return after_step
