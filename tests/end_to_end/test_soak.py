"""A run of hundreds of steps that saves, validates and draws all the time needs no more memory at its end."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = 500
SETTLED, ALLOWED = 100, 0.02
FLAGS = (
    *("--network_train_unet_only", "--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk"),
    *(f"--max_train_steps={STEPS}", "--save_every_n_steps=25", "--save_last_n_steps=50", "--save_state"),
    *("--sample_every_n_steps=50", "--ema_decay=0.99", "--validate_every_n_steps=50", "--output_name=x"),
)
# The script, which writes down its memory after every tenth step.
MEMORY = """
import gc, json, os, sys
import psutil
import sd3_train_network as script
from library.training.watching import watch

watch.FIRST_WRITING = 0.0  # so that the package which draws the curves is loaded before anything is compared
memory = []

class Weighed(script.Sd3NetworkTrainer):
    def after_step(self):
        if (self.step + 1) % 10 == 0:  # it is counted after this
            gc.collect()
            memory.append(psutil.Process().memory_info().rss)

script.Sd3NetworkTrainer = Weighed
code = script.main()
with open(os.environ["MEMORY"], "w") as file:
    json.dump(memory, file)
sys.exit(code)
"""


def test_memory_does_not_grow_over_saves_and_samples(training, tmp_path):
    pytest.importorskip("psutil")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red star --w 64 --h 64 --d 1 --s 2 --l 3\n", encoding="utf-8")
    dataset = training.dataset(training.pictures(), validation_split=0.3)
    script, memory = tmp_path / "weighed.py", tmp_path / "memory.json"
    script.write_text(MEMORY, encoding="utf-8")
    words = training.arguments(dataset, *FLAGS, f"--sample_prompts={prompts}")
    own = {"MALLOC_ARENA_MAX": "1"}  # several heaps would grow each at its own time
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "MEMORY": str(memory), **own}
    done = subprocess.run(
        [sys.executable, str(script), *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    taken = json.loads(memory.read_text())
    assert len(taken) == STEPS // 10
    settled, end = statistics.median(taken[SETTLED // 10 : 15]), statistics.median(taken[-5:])
    assert end <= settled * (1 + ALLOWED), f"{settled:,} bytes after step {SETTLED}, {end:,} at the end"
    assert len(list((training.folder / "out1" / "sample").glob("x_0*.png"))) == STEPS // 50
