"""Memory of the host: what a training takes is its largest part and little more, whatever is read before it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.forecast_check import LORA, make_trainer
from benchmarks.host_memory import GOAL, command, copy_pictures
from benchmarks.sized_model import ModelSize, build_model
from library.training.forecast.forecast import Forecaster

ROOT = Path(__file__).resolve().parent.parent.parent
SIZE = ModelSize(denoiser=(640, 5), clip_l=(64, 1), clip_g=(384, 4), t5xxl=(512, 11))  # MMDiT of 280 MB in 32 bits
STEP = 16 << 20  # bytes that a step of this model takes beside its weights, above one of the tiny model

# Trains as each of the command lines asks; prints the most memory that there was after each.
TWO_RUNS = """
import json, sys
import sd3_train_network
from accelerate.state import AcceleratorState

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

peaks = []
for arguments in json.loads(sys.argv[1]):
    AcceleratorState._reset_state(reset_partial_state=True)
    assert sd3_train_network.main(arguments) == 0
    peaks.append(peak())
print(json.dumps(peaks))
"""


def arguments(model, folder):
    copy_pictures(folder, 2)
    return command(model, folder, "--network_dim=1", "--no_metadata", "--mixed_precision=no")[2:]


def foretold(command_line):
    """Bytes beside the process itself."""
    trainer = make_trainer(LORA, command_line)
    forecast = Forecaster(trainer).of(trainer.options)
    return forecast.host - forecast.process


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are told by Linux")
def test_filling_caches_and_training_takes_little_more_than_the_largest_part_as_foretold(tiny_sd3, tmp_path):
    """The parts are stored in 16 bits and kept in 32, so that each is converted; the tiny model brings all imports."""
    model = build_model(tmp_path / "model", SIZE, torch.float16)
    tiny = arguments([f"--pretrained_model_name_or_path={tiny_sd3}"], tmp_path / "tiny")
    large = arguments(model.flags(), tmp_path / "large")
    grows = foretold(large) - foretold(tiny)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", TWO_RUNS, json.dumps([tiny, large])],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout.splitlines()[-1])
    largest = 4 * max(model.numbers.values())
    assert 0.9 * largest < after - before < GOAL * largest + STEP, done.stderr
    assert grows == pytest.approx(after - before, rel=0.25)
