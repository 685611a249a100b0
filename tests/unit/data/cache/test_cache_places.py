"""Which files in the cache folders belong to nothing, and which are not ours to touch."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from library.data.cache import (
    TensorCache,
    cache_folder,
    cache_folders,
    files_of,
    latent_entries,
    orphans,
    other_folders,
    prompt_entries,
    text_entries,
)
from library.data.config.specs import DatasetSpec, SubsetSpec
from library.records import CropPlan, ImageRecord, Size

BUCKET = Size(64, 32)
CROP = CropPlan(BUCKET, 0, 0, BUCKET)
SHARED = {"family": "sd3", "identity": "this", "to_disk": True}


def make_record(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"pixels")
    return ImageRecord(path, path.name, "unused", BUCKET, 1, 0, 0)


def filled(records, captions, cache_dir=None):
    """Entries of these pictures and captions, all written."""
    spec = DatasetSpec(resolution=BUCKET, subsets=(SubsetSpec(image_dir=None),))
    pictures = latent_entries(records, [CROP] * len(records), [spec], cache_dir=cache_dir, **SHARED)
    texts, _ = text_entries(records, captions, cache_dir=cache_dir, **SHARED)
    entries = [*pictures, *texts]
    cache = TensorCache(entries)
    for entry in entries:
        cache.write(entry.id, {"latents": torch.ones(16, 4, 8)} if entry.size else {"states": torch.ones(2, 2)})
    return entries


def test_files_of_lost_pictures_and_edited_captions_are_found(tmp_path):
    for cache_dir in (None, tmp_path / "cache"):
        first, second = (make_record(tmp_path / "pictures" / name) for name in ("a.png", "b.png"))
        before = filled([first, second], [("cat",), ("dog",)], cache_dir)
        folders = cache_folders([first, second], cache_dir)
        assert orphans(before, folders) == []
        now = filled([first], [("cat", "")], cache_dir)
        left = {before[1].path, before[3].path}  # latents of b.png, states of "dog"
        assert orphans(now, folders) == sorted(left)
        assert orphans([], folders) == sorted({*left, *(entry.path for entry in now)})


def test_folders_of_pictures_and_texts(tmp_path):
    records = [make_record(tmp_path / folder / "a.png") for folder in ("one", "two", "two/three")]
    folders = cache_folders([*records, records[0]], None)
    names = ("one", "one/text_encoder_cache", "two", "two/text_encoder_cache", "two/three")
    assert folders == tuple(tmp_path / name for name in (*names, "two/three/text_encoder_cache"))


def test_the_texts_of_the_format_before_are_found(tmp_path):
    header = {"format": "1", "kind": "text", "family": "sd3", "encoder": "this", "caption": "hash"}
    for name in ("a.png_sd3_te.safetensors", "a.png_sd3_te-2.safetensors"):
        save_file({"states": torch.ones(2)}, tmp_path / name, header)
    assert [path.name for path in orphans([], [tmp_path])] == ["a.png_sd3_te-2.safetensors", "a.png_sd3_te.safetensors"]


def test_what_is_not_provably_ours_is_left_alone(tmp_path):
    record = make_record(tmp_path / "a.png")
    (ours, _) = filled([record], [("cat",)])
    like_ours = tmp_path / "b.png_0064x0032_sd3.safetensors"
    save_file({"latents": torch.ones(2)}, like_ours)  # no header
    shutil.copy(ours.path, tmp_path / "my_model.safetensors")  # our header, another name
    (tmp_path / "c.png_0064x0032_sd3.safetensors").write_bytes(ours.path.read_bytes()[:-3])  # cut off
    (tmp_path / "a_0064x0032_sd3.npz").write_bytes(b"PK")
    (tmp_path / "d.png_0064x0032_sd3.safetensors").mkdir()
    prompts = TensorCache(prompt_entries(["a prompt"], folder=tmp_path, family="sd3", identity="this"))
    prompts.write(prompts.ids[0], {"states": torch.ones(2)})
    assert orphans([], [tmp_path, tmp_path / "nowhere", Path(like_ours)]) == [ours.path]


def test_files_of_a_picture_are_its_latents_and_all_texts_beside_it(tmp_path):
    for cache_dir in (None, tmp_path / "cache"):
        names = ("one/a.png", "one/a.png_0064x0032_x.png", "two/a.png")
        records = [make_record(tmp_path / "pictures" / name) for name in names]
        entries = filled(records, [("cat",), ("dog",), ("cat",)], cache_dir)
        paths = [entry.path for entry in entries]
        assert files_of([records[0].path], paths, cache_dir) == [paths[0], paths[3], paths[4]]
        assert files_of([records[1].path], paths, cache_dir) == [paths[1], paths[3], paths[4]]
        assert files_of([records[2].path, tmp_path / "b.png"], paths, cache_dir) == [paths[2], paths[5]]


def test_folders_in_cache_dir_that_are_of_no_image_folder(tmp_path):
    for name in ("index", "my-own", "own-0123456789ab.txt", "gone-0123456789ab"):
        (tmp_path / name).mkdir()
    (tmp_path / "file-0123456789ab").write_bytes(b"")
    own = cache_folder(tmp_path / "pictures", tmp_path)
    own.mkdir()
    gone = tmp_path / "gone-0123456789ab"
    assert other_folders(tmp_path, [tmp_path / "pictures"]) == [gone]
    assert other_folders(tmp_path, []) == [gone, own]
    assert other_folders(tmp_path / "nowhere", []) == []
