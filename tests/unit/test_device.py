"""Device and number formats."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from library.device import choose_device, device_words, has_accelerator, memory_words, precision_dtype


def test_an_accelerator_is_chosen_exactly_where_there_is_one():
    assert has_accelerator() == (choose_device().type != "cpu")
    torch.zeros(1, device=choose_device())


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("no", torch.float32), ("float", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_precisions_name_number_formats(precision, dtype):
    assert precision_dtype(precision) == dtype


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not say")
def test_memory_on_the_cpu_is_told():
    amount, unit = memory_words(torch.device("cpu")).split()
    assert unit == "GiB" and float(amount) > 0.05
    assert device_words(torch.device("cpu")) == "CPU"


MODULES = (
    *("device", "memory_use", "training.trainer", "training.sampling.prompts"),
    *("training.optimization.optimizers", "training.optimization.schedules"),
)


@pytest.mark.parametrize("module", MODULES)
def test_importing_does_not_import_torch(module):
    code = f"import sys, library.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
