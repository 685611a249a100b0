"""Where tensors lie after reading: in the mapped file only where nothing about them changes."""

import sys
from pathlib import Path

import pytest
import torch

from library.checkpoint.weights import open_weights, read_weights, select_part, stored_weights
from library.tensorfile import write_tensors


@pytest.fixture
def part(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_tensors(path, {"a": torch.arange(1000.0), "b": torch.full((2, 3), 0.5)})
    return select_part("vae", open_weights(path), {"a": "first", "b": "second"})


def is_mapped(part):
    return str(part.path) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped is told by Linux")
@pytest.mark.parametrize(
    ("dtype", "mmap", "expected"),
    [(None, True, True), (torch.float32, True, True), (None, False, False), (torch.bfloat16, True, False)],
)
def test_pages_of_the_file_stay_only_where_they_are_the_tensors(part, dtype, mmap, expected):
    tensors = read_weights(part, dtype=dtype, mmap=mmap)
    assert is_mapped(part) == expected
    assert torch.equal(tensors["first"].float(), torch.arange(1000.0, dtype=dtype).float())
    del tensors
    assert not is_mapped(part)


def test_weights_can_be_read_in_any_order_and_after_the_last_one_was_named(part):
    first, second = stored_weights(part)
    assert (first.name, first.dtype, first.is_fp8) == ("first", torch.float32, False)
    assert torch.equal(second.wide(torch.float16), torch.full((2, 3), 0.5, dtype=torch.float16))
    assert torch.equal(first.stored, first.wide()) and first.stored.data_ptr() != first.wide().data_ptr()
