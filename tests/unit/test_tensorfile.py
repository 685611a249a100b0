"""One safetensors file: wrong ones are named before torch is needed, and writing never leaves half a file."""

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.errors import CheckpointError, OutputError
from library.tensorfile import (
    abandoned_files,
    hash_tensors,
    read_header,
    read_tensors,
    remembered_hash,
    temporary_name,
    torch_dtype,
    user_cache_dir,
    write_atomically,
    write_tensors,
)

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def all_types():
    return {str(dtype): torch.tensor([[0, 1, 2], [3, 1, 0]]).to(dtype) for dtype in DTYPES}


def write_raw(path, table, data=b"", pad=True):
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8 if pad else 0)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


# Reading


@pytest.mark.parametrize("mmap", [True, False])
def test_tensors_of_every_type_come_back(path, mmap):
    tensors = {**all_types(), "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)}
    write_tensors(path, tensors, {"key": "välue"})
    header = read_header(path)
    assert header.metadata == {"key": "välue"}
    assert header.shapes() == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = read_tensors(header, mmap=mmap)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].double(), tensor.double())
    assert list(read_tensors(header, ["scalar"], mmap=mmap)) == ["scalar"]


def test_header_offsets_point_at_the_data(path):
    tensors = {"b": torch.arange(5), "a": torch.arange(3, dtype=torch.uint8)}
    save_file(tensors, path)
    header, data = read_header(path), path.read_bytes()
    for name, tensor in tensors.items():
        info = header.tensors[name]
        assert data[info.start : info.end] == tensor.numpy().tobytes()


def test_header_is_read_without_torch(path):
    save_file({"a": torch.zeros(2)}, path)
    code = f"import sys; from library.tensorfile import read_header; read_header({str(path)!r})"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("length", range(632, 656, 8))
def test_header_of_any_length_is_accepted(path, length):
    """640 is b"\\x80\\x02" in little-endian bytes, which is also how a pickle begins."""
    table = {"__metadata__": {"a": ""}, "w": entry()}
    table["__metadata__"]["a"] = "x" * (length - len(json.dumps(table)))
    write_raw(path, table, bytes(8))
    assert int.from_bytes(path.read_bytes()[:8], "little") == length
    assert read_header(path).shapes() == {"w": (2,)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"12345678", "has 8 bytes only"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "is a PNG picture, no weights"),
        (b"<!DOCTYPE html><html>gated</html>", "is a web page, not weights"),
        (b"\n <html lang='en'>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a git-lfs pointer"),
        (b"PK\x03\x04" + bytes(50), "is a pickle"),
        (pickle.dumps({"a": 1}, protocol=2), "is a pickle"),
        (b"GGUF" + bytes(50), "is not a safetensors file"),
        (bytes(100), "is not a safetensors file"),
        ((10**12).to_bytes(8, "little") + b"{}      ", "is not a safetensors file"),
        ((1000).to_bytes(8, "little") + b'{"a": 1', "is truncated"),
        ((2).to_bytes(8, "little") + b"{}extra", "has 5 bytes more than its header says"),
        ((8).to_bytes(8, "little") + b'{"a" 1 }', "the header of .* is damaged"),
        ((8).to_bytes(8, "little") + b'{"\xff": 1}', "the header of .* is damaged"),
    ],
)
def test_other_content_is_named(path, content, message):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"--vae: .*{message}"):
        read_header(path, "--vae")


@pytest.mark.parametrize(
    "table",
    [
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": entry(offsets=(8, 0))},
        {"a": entry(offsets=(-8, 0))},
        {"a": entry(offsets=(0, 4))},
        {"a": entry(shape=(3,))},
        {"a": entry(shape=(-1, -2))},
        {"a": entry(shape=("x",))},
        {"a": entry(offsets=(0,))},
        {"__metadata__": [1], "a": entry()},
    ],
)
def test_headers_without_sense_are_damaged(path, table):
    with pytest.raises(CheckpointError, match="the header of .* is damaged"):
        read_header(write_raw(path, table, bytes(8)))


def test_truncated_file_says_how_much_is_there(path):
    save_file({"a": torch.zeros(1000)}, path)
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    with pytest.raises(CheckpointError, match=f"is truncated: {len(data) - 1000:,} of {len(data):,} bytes"):
        read_header(path)


def test_missing_file_names_what_is_near(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "sd3_medium.safetensors")
    with pytest.raises(CheckpointError, match=r"does not exist\. Check the path: .* has sd3_medium\.safetensors"):
        read_header(tmp_path / "sd3.safetensors")
    with pytest.raises(CheckpointError, match=r"The nearest folder that exists: .* has sd3_medium\.safetensors"):
        read_header(tmp_path / "models" / "sd3.safetensors")


def test_folder_and_impossible_names_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        read_header(tmp_path)
    with pytest.raises(CheckpointError, match="x{300} cannot be read"):
        read_header(tmp_path / ("x" * 300))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="file/x cannot be read|does not exist"):
        read_header(tmp_path / "file" / "x")


def test_type_that_torch_lacks_is_named(path):
    header = read_header(write_raw(path, {"a": entry("F4_E9", (16,))}, bytes(8)))
    with pytest.raises(CheckpointError, match="F4_E9 are not supported"):
        read_tensors(header)
    with pytest.raises(CheckpointError, match="are not supported"):
        torch_dtype("F1")


@pytest.mark.parametrize("mmap", [True, False])
def test_file_that_shrinks_after_its_header_was_read(path, mmap):
    save_file({"a": torch.zeros(1000)}, path)
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(header, mmap=mmap)


# Writing


def test_views_and_shared_tensors_are_written(path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"row": base[1], "column": base[:, 2], "all": base, "again": base, "half": base[2:], "other": base[0]}
    write_tensors(path, tensors)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_equal_tensors_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_tensors(tmp_path / name, {"w": torch.ones(3), "v": torch.zeros(2)}, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_header(tmp_path / "a").metadata == {}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path):
    path.write_bytes(b"old")

    def fail(place):
        place.write_bytes(b"half of the new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"weights\.safetensors: cannot be written \(No space left on device\)"):
        write_atomically(path, fail)
    assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [(path.name, b"old")]


def test_what_a_killed_process_has_left_is_told_from_what_is_being_written(tmp_path):
    script = "import os, sys; from library.tensorfile import write_atomically as write; "
    script += "write(sys.argv[1], lambda place: os.kill(os.getpid(), 9))"
    ended = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "a")], cwd=ROOT)
    ended.wait()
    (torso,) = tmp_path.iterdir()
    name = temporary_name(ended.pid)
    elsewhere = name.replace(name.split("-")[1][:6], "000000")  # a process of another machine may still run
    names = [temporary_name(os.getpid()), elsewhere, "notes.tmp", ".1-2.tmp"]
    for each in names:
        (tmp_path / each).write_bytes(b"")
    assert abandoned_files(tmp_path) == [torso]
    for each in names:
        os.utime(tmp_path / each, (0, 0))
    assert set(abandoned_files(tmp_path)) == {torso, tmp_path / names[0], tmp_path / elsewhere}
    assert abandoned_files(tmp_path / "nowhere") == []


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(path):
    path.write_bytes(b"old")

    def interrupt(place):
        place.write_bytes(b"half of the new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupt)
    assert [p.read_bytes() for p in path.parent.iterdir()] == [b"old"]


def test_too_little_space_is_found_before_writing(path):
    with pytest.raises(OutputError, match=r"needs 1,000,000,000,000,000,000 bytes, the disk has [\d,]+ free"):
        write_atomically(path, lambda place: pytest.fail("was called"), 10**18)
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody writes to")
def test_a_folder_that_nobody_writes_to_is_not_called_full():
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomically("/proc/new.safetensors", lambda place: pytest.fail("was called"), 10**6)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_disk_that_fills_up_is_an_output_error(path):
    """A limit on the size of files stands for the full disk: the writer of safetensors reports both alike."""
    code = f"""
import resource, signal, torch
from library.errors import OutputError
from library.tensorfile import write_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_tensors({str(path)!r}, {{"a": torch.zeros(100_000)}})
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{path}: cannot be written (")
    assert list(path.parent.iterdir()) == []


def test_missing_folders_are_made_and_impossible_ones_named(tmp_path):
    write_tensors(tmp_path / "a" / "b" / "c.safetensors", {"w": torch.ones(1)})
    assert (tmp_path / "a" / "b" / "c.safetensors").is_file()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"c\.safetensors: cannot be written"):
        write_tensors(tmp_path / "file" / "c.safetensors", {"w": torch.ones(1)})
    with pytest.raises(OutputError, match="cannot be written"):
        write_tensors(tmp_path / "a", {"w": torch.ones(1)})


@pytest.mark.parametrize("name", ["猫" * 80, "x" * 250, "a [1] ü"])
def test_long_and_unusual_names(tmp_path, name):
    write_tensors(tmp_path / name, {"w": torch.ones(1)})
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_permissions_follow_the_umask(path):
    """Also while other threads write."""
    old = os.umask(0o027)
    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(write_tensors, path, {"w": torch.ones(100)}) for _ in range(20)]:
                done.result()
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]


# Hashes


def test_hash_of_a_part_is_the_same_under_a_prefix(tmp_path):
    part = {"b": torch.ones(2), "a": torch.zeros(3, 2)}
    save_file(part, tmp_path / "part")
    whole = {f"vae.{name}": tensor for name, tensor in part.items()} | {"other": torch.ones(1)}
    save_file(whole, tmp_path / "whole")
    names = {f"vae.{name}": name for name in part}
    first = hash_tensors(read_header(tmp_path / "part"))
    assert first == hash_tensors(read_header(tmp_path / "whole"), names)
    for changed in (
        {**part, "a": torch.zeros(2, 3)},
        {**part, "a": torch.zeros(3, 2).half()},
        {**part, "a": torch.full((3, 2), 1e-30)},
        {"b": part["b"], "c": part["a"]},
    ):
        save_file(changed, tmp_path / "changed")
        assert hash_tensors(read_header(tmp_path / "changed")) != first


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("EASEL_CACHE_DIR", str(tmp_path / "store"))
    return tmp_path / "store" / "hashes.json"


def test_hashes_are_remembered_until_the_file_changes(tmp_path, store):
    path = tmp_path / "model"
    path.write_bytes(b"1")
    calls = []

    def compute():
        calls.append(path.read_bytes())
        return f"hash {len(calls)}"

    assert [remembered_hash(path, "x", compute) for _ in range(3)] == ["hash 1"] * 3
    assert remembered_hash(path, "another label", compute) == "hash 2"
    assert remembered_hash(tmp_path / "." / "model", "x", compute) == "hash 1"
    path.write_bytes(b"22")
    assert remembered_hash(path, "x", compute) == "hash 3"
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert remembered_hash(path, "x", compute) == "hash 4"


@pytest.mark.parametrize("content", ["", "no json", "[1]", '{"a": 1}'])
def test_a_damaged_memory_is_no_fault(tmp_path, store, content):
    store.parent.mkdir()
    store.write_text(content)
    path = tmp_path / "model"
    path.write_bytes(b"1")
    assert remembered_hash(path, "x", lambda: "h") == "h"
    assert remembered_hash(path, "x", lambda: "not asked") == "h"


def test_a_memory_that_cannot_be_written_is_no_fault(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EASEL_CACHE_DIR", str(tmp_path / "file" / "store"))
    assert remembered_hash(tmp_path / "file", "x", lambda: "h") == "h"


def test_the_memory_stays_small(tmp_path, store):
    path = tmp_path / "model"
    path.write_bytes(b"1")
    store.parent.mkdir()
    store.write_text(json.dumps({f"old {number}": "h" for number in range(5000)}))
    remembered_hash(path, "x", lambda: "new")
    kept = json.loads(store.read_text())
    assert len(kept) == 1000
    assert "old 4999" in kept and "new" in kept.values()


@pytest.mark.skipif(sys.platform == "win32", reason="other variables")
def test_where_things_are_remembered(tmp_path, monkeypatch):
    monkeypatch.delenv("EASEL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_dir() == tmp_path / "easel"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache_dir() == tmp_path / ".cache" / "easel"
