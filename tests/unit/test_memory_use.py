"""Memory in use, and what is told before it runs short."""

import mmap
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from library.memory_use import (
    _free_in_container,
    available_host_memory,
    gpu_memory,
    host_memory_note,
    memory_in_use,
    spill_warning,
    with_own,
)

GIB = 1024**3


def test_the_spill_of_windows_is_told_with_numbers_and_what_to_do():
    line = spill_warning(9 * GIB, 8 * GIB, "win32")
    assert line is not None
    assert "9.0 of the GPU's 8.0 GiB" in line and "--gradient_checkpointing" in line


@pytest.mark.parametrize(
    ("reserved", "platform", "is_told"),
    [(7.5, "win32", False), (7.6, "win32", True), (8, "win32", True), (9, "linux", False), (9, "darwin", False)],
)
def test_the_spill_is_told_on_windows_for_a_gpu_that_is_nearly_full(reserved, platform, is_told):
    assert (spill_warning(int(reserved * GIB) + 1, 8 * GIB, platform) is not None) == is_told


@pytest.mark.parametrize(("needed", "available", "is_told"), [(9, 10, False), (9.1, 10, True), (20, 10, True)])
def test_too_little_host_memory_is_told(needed, available, is_told):
    assert (host_memory_note(int(needed * GIB), available * GIB) is not None) == is_told


def test_memory_that_the_process_has_already_counts_as_its_own():
    assert 10 * GIB < with_own(10 * GIB, 24 * GIB, 0) < 10.5 * GIB  # the context of the driver
    assert with_own(10 * GIB, 24 * GIB, 3 * GIB) - with_own(10 * GIB, 24 * GIB, 0) == 3 * GIB
    assert with_own(24 * GIB, 24 * GIB, 0) == 24 * GIB


def test_the_note_about_host_memory_names_what_needs_it():
    line = host_memory_note(10 * GIB, 4 * GIB, "CLIP and T5")
    assert line is not None
    assert line.startswith("CLIP and T5 need about 10.0 GiB of host memory to be read, and 4.0 GiB are free")


def test_memory_in_use_on_the_cpu_grows_with_a_tensor():
    before = memory_in_use(torch.device("cpu"))
    fresh = mmap.mmap(-1, 64 * 2**20)  # of the system, whatever the process has left over
    held = torch.frombuffer(fresh, dtype=torch.uint8).fill_(1)
    after = memory_in_use(torch.device("cpu"))
    assert held.numel() * 0.9 < after - before < held.numel() * 2


def test_the_cpu_has_no_memory_of_a_gpu():
    assert gpu_memory(torch.device("cpu")) is None
    assert memory_in_use(torch.device("meta")) is None


def test_available_host_memory_is_not_more_than_the_machine_has():
    assert 0 < available_host_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("limit", "used", "cached", "free"), [("1000", 900, 300, 400), ("max", 900, 300, None), ("1000", 2000, 0, 0)]
)
def test_the_limit_of_a_container_counts(tmp_path, limit, used, cached, free):
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\nfile {cached}\nkernel 7\n")
    assert _free_in_container(tmp_path) == free
    assert _free_in_container(tmp_path / "nowhere") is None


def test_importing_imports_neither_torch_nor_psutil():
    code = "import sys, library.memory_use; assert not {'torch', 'psutil'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
