"""Weights files written tensor by tensor: the same bytes as written at once, and nothing where it fails."""

import hashlib
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.checkpoint.tensor_stream import (
    HASH_KEY,
    PlannedTensor,
    pickle_planned,
    plan_tensor,
    total_bytes,
    write_planned,
)
from library.errors import CheckpointError, OutputError
from library.tensorfile import read_header

TENSORS = {
    "b.half": torch.arange(6).reshape(2, 3).half(),
    "a.bfloat": torch.arange(6).bfloat16(),
    "c.float": torch.arange(12).reshape(3, 4).float().T,  # not contiguous
    "c.double": torch.arange(3).double(),
    "number": torch.tensor(2.5),
    "ids": torch.arange(4),
    "nothing": torch.zeros(0, 3),
}


def planned(tensors, dtype=None):
    return {name: plan_tensor(tensor, dtype) for name, tensor in tensors.items()}


def test_the_bytes_are_those_of_the_safetensors_package(tmp_path):
    write_planned(tmp_path / "ours", planned(TENSORS), {"format": "pt"})
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_hash_in_the_header_is_that_of_the_tensor_data(tmp_path):
    write_planned(tmp_path / "file", planned(TENSORS), {HASH_KEY: "", "title": "x"})
    content = (tmp_path / "file").read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert read_header(tmp_path / "file").metadata == {
        HASH_KEY: f"0x{hashlib.sha256(data).hexdigest()}",
        "title": "x",
    }
    assert len(data) == total_bytes(planned(TENSORS))


def test_floats_are_cast_and_integers_are_not(tmp_path):
    write_planned(tmp_path / "file", planned(TENSORS, torch.bfloat16))
    types = {name: tensor.dtype for name, tensor in load_file(tmp_path / "file").items()}
    assert types == {name: torch.int64 if name == "ids" else torch.bfloat16 for name in TENSORS}


def test_fp8_is_written_as_fp16_unless_it_is_asked_for():
    tensor = torch.ones(2).to(torch.float8_e4m3fn)
    assert plan_tensor(tensor).dtype == torch.float16
    assert plan_tensor(tensor, torch.float8_e4m3fn).dtype == torch.float8_e4m3fn


def test_one_tensor_under_two_names_is_written_twice(tmp_path):
    write_planned(tmp_path / "file", planned({"a": TENSORS["c.float"], "b": TENSORS["c.float"]}))
    loaded = load_file(tmp_path / "file")
    assert torch.equal(loaded["a"], loaded["b"]) and loaded["a"].data_ptr() != loaded["b"].data_ptr()


def test_each_tensor_is_let_go_before_the_next_is_fetched(tmp_path):
    fetched: list[weakref.ref] = []

    def fetch():
        assert all(reference() is None for reference in fetched)
        tensor = torch.zeros(1000)
        fetched.append(weakref.ref(tensor))
        return tensor

    write_planned(
        tmp_path / "file", {str(i): PlannedTensor((1000,), torch.float32, fetch) for i in range(5)}, {HASH_KEY: ""}
    )
    assert len(fetched) == 5


@pytest.mark.parametrize(
    ("tensor", "dtype", "message"),
    [
        (torch.tensor([1e6]), torch.float16, "w has numbers that float16 cannot hold"),
        (torch.zeros(3), torch.float32, r"w has shape \[3\], \[1\] was expected"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(tensor, dtype, message, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    with pytest.raises(OutputError, match=message):
        write_planned(path, {"w": PlannedTensor((1,), dtype, lambda: tensor)})
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_source_that_fails_half_way_leaves_nothing(tmp_path):
    def fail():
        raise CheckpointError("the drive has gone.")

    plan = {**planned(TENSORS), "z": PlannedTensor((1,), torch.float16, fail)}
    with pytest.raises(CheckpointError, match="gone"):
        write_planned(tmp_path / "model.safetensors", plan)
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_has_the_tensors_and_not_what_they_are_views_of(tmp_path):
    whole = torch.arange(100_000).float()
    pickle_planned(tmp_path / "model.ckpt", planned({"part": whole[:4], **TENSORS}))
    loaded = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in {**TENSORS, "part": whole[:4]}.items())
    assert (tmp_path / "model.ckpt").stat().st_size < 20_000
