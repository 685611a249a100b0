"""The status of a cache sorts every file once, and only files that are provably ours are left over."""

import os
import subprocess
import sys

import pytest
import torch

from library.data.cache import CacheEntry, TensorCache
from library.data.cache.status import cache_status, leftovers, remove_files
from library.errors import OutputError
from library.tensorfile import temporary_name, write_tensors


def entry(folder, name, caption="a", family="sd3"):
    header = {"format": "2", "kind": "text", "family": family, "encoder": "clip", "caption": caption}
    path = folder / f"{name:024x}_{family}_te.safetensors"
    return CacheEntry(str(name), path, header, about=f'caption "{caption}"', content=f"{caption} {name}")


def write(cache, *ids):
    for entry_id in ids:
        cache.write(entry_id, {"clip_l": torch.ones(2, 3)})


def test_every_entry_is_in_one_group(tmp_path):
    cache = TensorCache([entry(tmp_path, number) for number in range(5)])
    write(cache, "0", "1", "2", "3")
    changed = TensorCache([entry(tmp_path, number, "b" if number in (1, 2) else "a") for number in range(5)])
    changed["3"].path.write_bytes(b"torso")
    status = cache_status(changed, changed.check(), [])
    assert [len(status.valid), len(status.foreign), len(status.missing), len(status.left_over)] == [1, 0, 1, 0]
    assert {reason: group.names for reason, group in status.stale.items()} == {
        "the caption changed": (changed["1"].path.name, changed["2"].path.name),
        "unreadable": (changed["3"].path.name,),
    }
    assert status.valid.num_bytes == changed["0"].path.stat().st_size
    first, *details = status.lines("text")
    assert first.startswith("text: 1 valid (") and first.endswith("3 stale, 1 missing, 0 left over (0 bytes)")
    assert details[0].startswith("text: stale: 2 the caption changed: ")
    assert details[1].startswith("text: stale: 1 unreadable: ")
    assert details[2] == 'text: missing: 1: caption "a"'


class Npz:
    """A file of another program that stands for an entry."""

    def __init__(self, path):
        self.path = path


def test_what_another_program_made_is_counted_apart(tmp_path):
    cache = TensorCache([entry(tmp_path, 0), entry(tmp_path, 1)])
    (tmp_path / "a.npz").write_bytes(bytes(7))
    cache.adopt({"0": Npz(tmp_path / "a.npz"), "1": Npz(tmp_path / "a.npz")})
    status = cache_status(cache, cache.check(), [])
    assert (len(status.valid), len(status.foreign), len(status.missing)) == (0, 1, 0)
    assert "1 from sd-scripts (7 bytes)" in next(iter(status.lines("text")))


def test_only_our_files_of_the_kind_and_the_family_are_left_over(tmp_path):
    cache = TensorCache([entry(tmp_path, number) for number in range(3)] + [entry(tmp_path, 3, family="sdxl")])
    write(cache, *cache.ids)
    header = {"format": "2", "kind": "latents", "family": "sd3", "encoder": "vae"}
    write_tensors(tmp_path / "a.png_0016x0016_sd3.safetensors", {"latents": torch.zeros(16, 2, 2)}, header)
    (tmp_path / f"{9:024x}_sd3_te.safetensors").write_bytes(b"foreign")
    write_tensors(tmp_path / f"{8:024x}_sd3_te.safetensors", {"x": torch.zeros(1)}, {"format": "pt"})
    wanted = TensorCache([cache["0"]])
    assert leftovers(wanted, [tmp_path], kind="text", family="sd3") == [cache["1"].path, cache["2"].path]
    latents = leftovers(wanted, [tmp_path], kind="latents", family="sd3")
    assert [path.name for path in latents] == ["a.png_0016x0016_sd3.safetensors"]
    assert leftovers(wanted, [tmp_path / "nowhere"], kind="text", family="sd3") == []


def test_torsos_in_the_folders_of_a_kind_are_left_over(tmp_path):
    texts = tmp_path / "text_encoder_cache"
    texts.mkdir()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    torsos = {folder: folder / temporary_name(ended.pid) for folder in (tmp_path, texts)}
    for path in (*torsos.values(), texts / temporary_name(os.getpid())):
        path.write_bytes(b"torso")
    nothing, folders = TensorCache([]), [tmp_path, texts]
    assert leftovers(nothing, folders, kind="text", family="sd3") == [torsos[texts]]
    assert leftovers(nothing, folders, kind="latents", family="sd3") == [torsos[tmp_path]]


def test_removing_counts_bytes_and_passes_over_what_is_gone(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    paths[0].write_bytes(bytes(10))
    paths[2].write_bytes(bytes(5))
    assert remove_files(paths) == 15
    assert not any(path.exists() for path in paths)


def test_a_file_that_cannot_be_removed_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder cannot be removed"):
        remove_files([tmp_path / "folder"])
