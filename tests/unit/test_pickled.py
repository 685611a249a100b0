"""Files of torch.save are read as safetensors files are, and nothing that they name is run."""

import argparse
import io
import pickle
import random
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from library.checkpoint.weights import open_weights, part_identity, read_weights, select_part
from library.errors import CheckpointError
from library.pickled import PickledReader, read_pickled_header
from library.tensorfile import write_tensors
from tests.bad_models import payload

NUMBERS = torch.arange(24.0).reshape(4, 6)
SHARED = torch.arange(10.0)
TENSORS = {
    "a.weight": NUMBERS,
    "half": NUMBERS.half(),
    "bf16": NUMBERS.bfloat16(),
    "fp8": NUMBERS.to(torch.float8_e4m3fn),
    "counter": torch.tensor(7),
    "ids": torch.arange(77).expand(1, -1),
    "transposed": NUMBERS.t(),
    "of_shared": SHARED[2:5],
    "with_shared": SHARED[4:],
    "every_second": SHARED[::2],
    "none": torch.zeros(0),
    "parameter": torch.nn.Parameter(NUMBERS + 1),
}


def saved(place, content):
    path = place / "model.ckpt"
    torch.save(content, path)
    return path


def all_of(source):
    """Every tensor of a file, by its own name."""
    floats = {name: name for name, info in source.tensors.items() if not info.dtype.startswith("I")}
    return select_part("vae", source, floats)


@pytest.mark.parametrize("read", ["read", "borrow", "view"])
@pytest.mark.parametrize("mmap", [True, False])
def test_every_tensor_is_read_as_torch_reads_it(read, mmap, tmp_path):
    path = saved(tmp_path, {"state_dict": TENSORS})
    header = read_pickled_header(path)
    reader = PickledReader(header, mmap=mmap)
    expected = torch.load(path, weights_only=True)["state_dict"]
    assert header.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        found = getattr(reader, read)(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found.float(), tensor.detach().float()) and found.is_contiguous(), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"state_dict": tensors},
        lambda tensors: {"model": tensors},
        lambda tensors: {"state_dict": tensors, "epoch": 3, "global_step": 7, "lr": np.float64(0.1)},
        lambda tensors: {"module": {"state_dict": OrderedDict(tensors)}},
    ],
)
def test_the_weights_are_found_at_the_top_or_inside(wrap, tmp_path):
    path = saved(tmp_path, wrap({"a": NUMBERS, "b": NUMBERS + 1}))
    assert open_weights(path).shapes() == {"a": (4, 6), "b": (4, 6)}


def test_the_state_of_a_module_with_its_version_notes_is_read(tmp_path):
    state = torch.nn.Linear(2, 3).state_dict()
    assert state._metadata
    assert open_weights(saved(tmp_path, state)).shapes() == {"weight": (3, 2), "bias": (3,)}


def packages(name):
    """A module and all that it lies in."""
    parts = name.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts) + 1)]


def test_the_callback_of_lightning_needs_neither_lightning_nor_leave(tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for part in packages(name):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    kind = sys.modules[name].ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    path = saved(tmp_path, {"callbacks": {kind: {"best": np.float64(1.5)}}, "state_dict": {"a": NUMBERS}})
    monkeypatch.undo()
    assert open_weights(path).shapes() == {"a": (4, 6)}


def test_a_part_has_the_numbers_and_the_identity_of_its_safetensors_twin(tmp_path):
    state = {name: tensor for name, tensor in TENSORS.items() if tensor.is_floating_point()}
    pickled = all_of(open_weights(saved(tmp_path, {"state_dict": state})))
    write_tensors(tmp_path / "twin.safetensors", state)
    twin = all_of(open_weights(tmp_path / "twin.safetensors"))
    assert part_identity(pickled) == part_identity(twin)
    expected = read_weights(twin)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read_weights(pickled).items())


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped is told by Linux")
def test_the_file_is_mapped_only_as_long_as_its_pages_are_the_tensors(tmp_path):
    part = all_of(open_weights(saved(tmp_path, {"a": NUMBERS, "b": NUMBERS})))

    def is_mapped():
        return str(part.path) in Path("/proc/self/maps").read_text()

    as_stored = read_weights(part)
    assert is_mapped()
    del as_stored
    cast = read_weights(part, dtype=torch.float16)
    assert not is_mapped() and torch.equal(cast["a"], NUMBERS.half())


def test_an_old_diffusers_folder_of_bin_files_opens(tmp_path):
    torch.save({"a": NUMBERS}, tmp_path / "diffusion_pytorch_model.bin")
    assert open_weights(tmp_path).shapes() == {"a": (4, 6)}


def zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return buffer.getvalue()


def test_what_asks_for_more_is_refused_by_name_and_read_with_leave(tmp_path, caplog):
    path = saved(tmp_path, {"state_dict": {"a": NUMBERS}, "options": argparse.Namespace(steps=3)})
    with pytest.raises(CheckpointError, match=r"^--vae: .* asks for argparse\.Namespace, .* --allow_pickle") as caught:
        open_weights(path, "--vae")
    assert str(caught.value).count(". ") == 1  # what and where; what to do
    assert open_weights(path, allow_pickle=True).shapes() == {"a": (4, 6)}
    assert "asks for argparse.Namespace: such a file runs code" in caplog.text


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_is_run_with_leave_or_without(protocol, tmp_path):
    path, mark = tmp_path / "model.ckpt", tmp_path / "was_run"
    path.write_bytes(zipped(payload(mark, protocol)))
    with pytest.raises(CheckpointError, match=r"asks for .*, which weights do not need"):
        open_weights(path)
    with pytest.raises(CheckpointError, match="is a pickle without tensors"):
        open_weights(path, allow_pickle=True)
    assert not mark.exists()


def rewritten(content, change=lambda name, data: data, method=zipfile.ZIP_STORED):
    """The file with other records; None takes one away."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            if (data := change(name, old.read(name))) is not None:
                new.writestr(name, data)
    return buffer.getvalue()


def farther(name, data):
    """Tensors begin 16 numbers later in their storages."""
    return data.replace(b"K\x00K\x64K\x64\x86", b"K\x10K\x64K\x64\x86") if name.endswith(".pkl") else data


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-100], "is damaged"),
        (lambda content: content[: len(content) // 2], "is damaged"),
        (lambda content: rewritten(content, method=zipfile.ZIP_DEFLATED), "is compressed"),
        (lambda content: rewritten(content, lambda name, data: None if "/data/" in name else data), "0 is missing"),
        (lambda content: rewritten(content, lambda name, data: None if ".pkl" in name else data), "without data.pkl"),
        (lambda content: rewritten(content, lambda name, data: b"big" if "order" in name else data), "big-endian"),
        (lambda content: rewritten(content, farther), "not inside its storage"),
        (lambda content: zipped(pickle.dumps({"epoch": 3}, 2)), "is a pickle without tensors"),
        (lambda content: zipped(pickle.dumps([1, 2], 2)), "is a pickle without tensors"),
        (lambda content: zipped(b"\x80\x02}q\x00."[:-2]), "is damaged"),
        (lambda content: zipped(b""), "is damaged"),
        (lambda content: b"", "is empty"),
        (lambda content: pickle.dumps({"a": 1}, 2), "is a pickle"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(damage, message, tmp_path):
    path = saved(tmp_path, {"state_dict": {"a": torch.randn(100, 100)}})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_weights(path, "--vae")
    assert str(caught.value).startswith(f"--vae: {path} ") and "\n" not in str(caught.value)


def test_a_pickle_with_wrong_bytes_is_read_or_told_and_never_anything_else(tmp_path):
    whole = saved(tmp_path, {"state_dict": {"a": NUMBERS, "b": torch.nn.Parameter(NUMBERS)}, "epoch": 3}).read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        content = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    draw, told = random.Random(7), 0
    for _ in range(400):
        changed = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(len(changed))] = draw.choice((draw.randrange(256), 0, 98, 82, 46))
        path = tmp_path / "changed.ckpt"
        path.write_bytes(rewritten(whole, lambda name, data, new=bytes(changed): new if ".pkl" in name else data))
        try:
            open_weights(path)
        except CheckpointError:
            told += 1
    assert 100 < told < 400


def test_the_file_of_before_torch_1_6_is_told(tmp_path):
    torch.save({"a": NUMBERS}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"is a pickle .* Convert it to \.safetensors"):
        open_weights(tmp_path / "m.ckpt")


def test_a_tensor_of_a_type_that_torch_files_have_and_safetensors_lack_is_told_when_it_is_a_weight(tmp_path):
    source = open_weights(saved(tmp_path, {"a": torch.zeros(2, dtype=torch.complex64), "b": NUMBERS}))
    assert torch.equal(read_weights(select_part("vae", source, {"b": "b"}))["b"], NUMBERS)
    with pytest.raises(CheckpointError, match="a is stored as ComplexFloatStorage, which is not supported"):
        select_part("vae", source, {"a": "a"})
