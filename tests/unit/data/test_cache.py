"""Cache entries: what makes one valid, where it lies, and what happens to files that are not ours."""

import os
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from library.data.cache import CacheEntry, TensorCache, latent_entries, prompt_entries, text_entries
from library.data.specs import DatasetSpec, SubsetSpec
from library.errors import CheckpointError, DatasetError, OutputError
from library.records import CropPlan, ImageRecord, Size
from library.tensorfile import read_header

BUCKET = Size(64, 32)
CROP = CropPlan(resized=Size(64, 40), left=0, top=4, bucket=BUCKET)


@pytest.fixture
def record(tmp_path):
    return make_record(tmp_path / "a.png")


def make_record(path, caption="a cat", dataset=0, subset=0):
    if not path.exists():
        path.write_bytes(b"pixels")
    return ImageRecord(path, f"{dataset}.{subset}/{path.name}", caption, Size(80, 50), 1, dataset, subset)


def make_spec(folder, **subset):
    return DatasetSpec(resolution=BUCKET, subsets=(SubsetSpec(image_dir=folder, **subset),))


def latent_cache(record, crop=CROP, *, identity="vae", to_disk=True, **subset):
    spec = make_spec(record.path.parent, **subset)
    return TensorCache(latent_entries([record], [crop], [spec], family="sd3", identity=identity, to_disk=to_disk))


def text_cache(record, caption, *, identity="clip", to_disk=True):
    return TensorCache(text_entries([record], [caption], family="sd3", identity=identity, to_disk=to_disk))


def latents(dtype=torch.float32, height=4, width=8):
    return torch.linspace(-3, 3, 16 * height * width).reshape(16, height, width).to(dtype)


def only(cache):
    (entry_id,) = {entry.id for entry in cache.entries}
    return entry_id


def reason(cache):
    return cache.check().get(only(cache))


def test_names_lie_beside_the_image_and_keep_its_extension(record):
    entry = latent_cache(record).entries[0]
    assert entry.path == record.path.with_name("a.png_0064x0032_sd3.safetensors")
    assert text_cache(record, "a cat").entries[0].path == record.path.with_name("a.png_sd3_te.safetensors")


@pytest.mark.parametrize("to_disk", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read(record, to_disk, dtype):
    cache = latent_cache(record, to_disk=to_disk)
    assert reason(cache) == "new"
    cache.write(only(cache), {"latents": latents(dtype)})
    assert cache.check() == {}
    found = cache.read(only(cache))["latents"]
    assert (found.dtype, cache.in_memory) == (dtype, not to_disk)
    assert torch.equal(found, latents(dtype))
    assert len(list(record.path.parent.iterdir())) == (2 if to_disk else 1)


def test_memory_keeps_a_copy_that_can_be_trained_with(record):
    cache = latent_cache(record, to_disk=False)
    with torch.inference_mode():
        made = latents()
        cache.write(only(cache), {"latents": made})
        made.zero_()
    found = cache.read(only(cache))["latents"]
    weight = torch.ones(1, requires_grad=True)
    (found * weight).sum().backward()
    assert torch.equal(found, latents())


def test_every_change_has_its_reason(record):
    cache = latent_cache(record)
    cache.write(only(cache), {"latents": latents()})
    shifted = replace(CROP, top=5)
    assert reason(latent_cache(record)) is None
    assert reason(latent_cache(record, identity="other")) == "another VAE or precision"
    assert reason(latent_cache(record, shifted)) == "another size or crop"
    assert reason(latent_cache(record, replace(CROP, resized=Size(70, 40)))) == "another size or crop"
    assert reason(latent_cache(record, flip_aug=True)) == "flip_aug changed"
    assert reason(latent_cache(record, resize_interpolation="area")) == "another resize_interpolation"
    stat = record.path.stat()
    os.utime(record.path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert reason(latent_cache(record)) == "the image changed"
    os.utime(record.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert reason(latent_cache(record)) is None
    record.path.write_bytes(b"more pixels")
    assert reason(latent_cache(record)) == "the image changed"


def test_another_bucket_has_a_file_of_its_own(record):
    cache = latent_cache(record)
    cache.write(only(cache), {"latents": latents()})
    other = latent_cache(record, CropPlan(Size(64, 64), 0, 0, Size(64, 64)))
    assert reason(other) == "new"
    other.write(only(other), {"latents": latents(height=8)})
    assert reason(cache) is None


def test_captions_and_encoders_of_text_entries(record):
    cache = text_cache(record, "a cat")
    cache.write(only(cache), {"context": torch.zeros(3, 4), "mask": torch.ones(3, dtype=torch.int64)})
    assert reason(text_cache(record, "a cat")) is None
    assert reason(text_cache(record, "a dog")) == "the caption changed"
    assert reason(text_cache(record, "a cat", identity="masked")) == "another text encoder, precision or setting"


def test_files_that_are_not_valid_entries_are_made_again(record):
    cache = latent_cache(record)
    path, entry_id = cache.entries[0].path, only(cache)
    cache.write(entry_id, {"latents": latents()})
    whole, header = path.read_bytes(), dict(cache.entries[0].header)
    for content in (b"", whole[:-1], whole[:20], b"PK\x03\x04 an npz", b"<html>"):
        path.write_bytes(content)
        assert cache.check() == {entry_id: "unreadable"}
    save_file({"latents": latents()}, path)
    assert reason(cache) == "not a cache file"
    save_file({"latents": latents()}, path, {**header, "format": "0"})
    assert reason(cache) == "another format version"
    save_file({"latents": latents()}, path, {**header, "new key": "1"})
    assert reason(cache) == "other settings"
    save_file({"other": latents()}, path, header)
    assert reason(cache) == "damaged"
    save_file({"latents": latents(height=3)}, path, header)
    assert reason(cache) == "damaged"
    cache.write(entry_id, {"latents": latents()})
    assert cache.check() == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_are_refused(record, value, dtype):
    cache = latent_cache(record)
    broken = latents(dtype)
    broken[3, 1, 2] = value
    with pytest.raises(CheckpointError, match=r"a\.png: the encoder gave NaN or infinite values for latents"):
        cache.write(only(cache), {"latents": broken})
    assert reason(cache) == "new"


def test_a_file_replaced_by_another_run_is_not_used(record):
    cache = latent_cache(record)
    cache.write(only(cache), {"latents": latents()})
    other = latent_cache(record, identity="other")
    other.write(only(other), {"latents": latents()})
    with pytest.raises(DatasetError, match="another run has replaced it"):
        cache.read(only(cache))


def test_lost_and_damaged_files_are_named_while_training(record):
    cache = latent_cache(record)
    path = cache.entries[0].path
    with pytest.raises(DatasetError, match=r"_sd3\.safetensors cannot be read \(it is gone\)"):
        cache.read(only(cache))
    path.write_bytes(b"x" * 100)
    with pytest.raises(DatasetError, match=r"_sd3\.safetensors cannot be read"):
        cache.read(only(cache))


def test_an_empty_memory_cache_says_what_is_missing(record):
    cache = latent_cache(record, to_disk=False)
    with pytest.raises(DatasetError, match=r"a\.png: nothing is cached"):
        cache.read(only(cache))


def test_equal_records_share_an_entry_and_different_ones_do_not(tmp_path):
    first = make_record(tmp_path / "a.png")
    again, flipped, filtered = (make_record(tmp_path / "a.png", dataset=number) for number in (1, 2, 3))
    specs = [
        make_spec(tmp_path),
        make_spec(tmp_path),
        make_spec(tmp_path, flip_aug=True),
        make_spec(tmp_path / "." / "", resize_interpolation="area"),
    ]
    records = [first, again, flipped, filtered]
    entries = latent_entries(records, [CROP] * 4, specs, family="sd3", identity="vae", to_disk=True)
    stem = "a.png_0064x0032_sd3"
    assert [e.path.name for e in entries] == [f"{stem}{end}.safetensors" for end in ("", "", "-2", "-3")]
    cache = TensorCache(entries)
    assert len(cache) == 3
    texts = text_entries(records, ["one", "two", "one", "two"], family="sd3", identity="clip", to_disk=True)
    assert [e.path.name for e in texts] == [f"a.png_sd3_te{end}.safetensors" for end in ("", "-2", "", "-2")]


def test_images_that_differ_in_the_extension_do_not_share(tmp_path):
    records = [make_record(tmp_path / name) for name in ("a.png", "a.jpg")]
    entries = latent_entries(records, [CROP] * 2, [make_spec(tmp_path)], family="sd3", identity="vae", to_disk=True)
    assert len({entry.path for entry in entries}) == 2


def test_flipped_latents_belong_to_the_entry(record):
    cache = latent_cache(record, flip_aug=True)
    assert cache.entries[0].names == ("latents", "latents_flipped")
    cache.write(only(cache), {"latents": latents(), "latents_flipped": latents().flip(-1)})
    assert set(cache.read(only(cache))) == {"latents", "latents_flipped"}


def test_latents_of_other_proportions_are_our_own_mistake(record):
    cache = latent_cache(record)
    with pytest.raises(AssertionError, match=r"a\.png"):
        cache.write(only(cache), {"latents": latents(height=8, width=4)})


def test_vanished_images_are_listed(tmp_path):
    records = [make_record(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    records[0].path.unlink()
    records[2].path.unlink()
    with pytest.raises(DatasetError, match=r"(?s)2 images have vanished.*a\.png.*c\.png"):
        latent_entries(records, [CROP] * 3, [make_spec(tmp_path)], family="sd3", identity="vae", to_disk=True)


@pytest.mark.parametrize("name", ["猫 [1] ü.png", "x" * 240 + ".png", "猫" * 80 + ".png"])
def test_unusual_and_long_names(tmp_path, name):
    cache = latent_cache(make_record(tmp_path / name))
    cache.write(only(cache), {"latents": latents()})
    assert cache.check() == {}
    assert torch.equal(cache.read(only(cache))["latents"], latents())


def test_long_names_with_the_same_beginning_do_not_share(tmp_path):
    records = [make_record(tmp_path / ("x" * 240 + end)) for end in ("1.png", "2.png")]
    entries = text_entries(records, ["one", "one"], family="sd3", identity="clip", to_disk=True)
    assert len({entry.path for entry in entries}) == 2


def test_prompts_are_named_by_their_text(tmp_path):
    entries = prompt_entries(["one", "two", "one"], folder=tmp_path / "prompts", family="sd3", identity="clip")
    assert [e.id for e in entries] == [entries[0].id, entries[1].id, entries[0].id]
    assert entries[0].id != entries[1].id
    cache = TensorCache(entries)
    cache.probe(cache.check())
    cache.write(entries[0].id, {"context": torch.zeros(2)})
    assert list(cache.check()) == [entries[1].id]
    assert {path.name for path in (tmp_path / "prompts").iterdir()} == {entries[0].path.name}
    in_memory = prompt_entries(["one"], folder=None, family="sd3", identity="clip")
    assert TensorCache(in_memory).in_memory


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    entry = CacheEntry("x", tmp_path / "file" / "x.safetensors", {}, about="x", content="x")
    with pytest.raises(OutputError, match=r"file: cache files cannot be written there"):
        TensorCache([entry]).probe(["x"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder_is_named(record):
    record.path.parent.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="cannot be written there"):
            latent_cache(record).probe([only(latent_cache(record))])
    finally:
        record.path.parent.chmod(0o700)


def test_probing_leaves_nothing(record):
    cache = latent_cache(record)
    cache.probe(cache.check())
    assert list(record.path.parent.iterdir()) == [record.path]


def test_writers_in_several_threads_leave_whole_files(record):
    cache = latent_cache(record)
    entry_id = only(cache)
    threads = [
        threading.Thread(target=lambda: [cache.write(entry_id, {"latents": latents()}) for _ in range(5)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.check() == {}
    assert sorted(path.name for path in record.path.parent.iterdir()) == sorted(
        [record.path.name, cache[entry_id].path.name]
    )
    assert read_header(cache[entry_id].path).metadata == cache[entry_id].header
