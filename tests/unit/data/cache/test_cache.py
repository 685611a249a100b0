"""Cache entries of pictures: what makes one valid, where it lies, and what happens to files that are not ours."""

import errno
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from library.data.cache import CacheEntry, DamagedEntry, TensorCache, latent_entries
from library.data.config.specs import DatasetSpec, SubsetSpec
from library.errors import CheckpointError, DatasetError, OutputError
from library.records import CropPlan, ImageRecord, Size

BUCKET = Size(64, 32)
CROP = CropPlan(resized=Size(64, 40), left=0, top=4, bucket=BUCKET)


@pytest.fixture
def record(tmp_path):
    return make_record(tmp_path / "a.png")


def make_record(path, dataset=0, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(b"pixels")
    return ImageRecord(path, f"{dataset}.0/{path.name}", "a cat", Size(80, 50), 1, dataset, 0, **fields)


def make_spec(folder, **subset):
    return DatasetSpec(resolution=BUCKET, subsets=(SubsetSpec(image_dir=folder, **subset),))


def latent_cache(record, crop=CROP, *, identity="vae", settings="", to_disk=True, cache_dir=None, **subset):
    spec = make_spec(record.path.parent, **subset)
    where = {"settings": settings, "to_disk": to_disk, "cache_dir": cache_dir}
    return TensorCache(latent_entries([record], [crop], [spec], family="sd3", identity=identity, **where))


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
    assert reason(latent_cache(record, background=(0, 0, 0))) == "another background"
    assert reason(latent_cache(record, alpha_mask=True)) == "the mask changed"
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
    save_file({"latents": latents(height=3)}, path, {**header, "checksum": "0"})
    assert reason(cache) == "damaged"
    save_file({"latents": latents()}, path, header)  # nothing says what its bytes add up to
    assert reason(cache) == "damaged"
    save_file({"latents": latents()}, path, {**header, "checksum": "0", "full_rows": "many"})
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
    with pytest.raises(DamagedEntry, match="another run has replaced it"):
        cache.read(only(cache))
    assert torch.equal(other.read(only(other))["latents"], latents())  # it is left to the other run


def test_lost_and_damaged_files_are_named_while_training(record):
    cache = latent_cache(record)
    path = cache.entries[0].path
    with pytest.raises(DamagedEntry, match=r"_sd3\.safetensors cannot be read \(it is gone\)"):
        cache.read(only(cache))
    path.write_bytes(b"x" * 100)
    with pytest.raises(DamagedEntry, match=r"_sd3\.safetensors cannot be read \(it is damaged\)") as caught:
        cache.read(only(cache))
    travelled = pickle.loads(pickle.dumps(caught.value))  # as from a worker
    assert (travelled.path, str(travelled)) == (path, str(caught.value))


def test_wrong_bytes_behind_a_right_header_are_found_and_made_again(record):
    cache = latent_cache(record)
    path = cache.entries[0].path
    cache.write(only(cache), {"latents": latents()})
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert cache.check() == {}  # headers cannot tell
    with pytest.raises(DamagedEntry, match="its checksum is wrong"):
        cache.read(only(cache))
    assert reason(cache) == "new"


def test_a_header_that_contradicts_itself_is_found_and_made_again(record):
    cache = latent_cache(record)
    path = cache.entries[0].path
    cache.write(only(cache), {"latents": latents()})
    path.write_bytes(path.read_bytes().replace(b"[16,4,8]", b"[18,4,8]"))  # more numbers than there are bytes
    assert cache.check() == {}
    with pytest.raises(DamagedEntry, match="it is damaged"):
        cache.read(only(cache))
    assert reason(cache) == "new"


def test_values_that_are_not_finite_are_found_on_reading(record, monkeypatch):
    cache = latent_cache(record)
    broken = latents()
    broken[0, 0, 0] = float("nan")
    monkeypatch.setattr("library.data.cache.tensors.is_finite", lambda tensor: True)  # as a version without the check
    cache.write(only(cache), {"latents": broken})
    assert cache.check() == {}
    with pytest.raises(DamagedEntry, match="latents has NaN or infinite values"):
        cache.read(only(cache))
    assert reason(cache) == "new"


def test_the_checksum_is_compared_once_in_a_process(record):
    cache = latent_cache(record)
    cache.write(only(cache), {"latents": latents()})
    cache.read(only(cache))
    content = bytearray(cache.entries[0].path.read_bytes())
    content[-5] ^= 1
    cache.entries[0].path.write_bytes(content)
    assert not torch.equal(cache.read(only(cache))["latents"], latents())
    with pytest.raises(DamagedEntry):
        latent_cache(record).read(only(cache))


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


def test_images_that_differ_in_the_extension_do_not_share(tmp_path):
    records = [make_record(tmp_path / name) for name in ("a.png", "a.jpg")]
    entries = latent_entries(records, [CROP] * 2, [make_spec(tmp_path)], family="sd3", identity="vae", to_disk=True)
    assert len({entry.path for entry in entries}) == 2


def test_latents_with_the_mirrored_ones_serve_a_run_without(record):
    flipped, plain = latent_cache(record, flip_aug=True), latent_cache(record)
    flipped.write(only(flipped), {"latents": latents(), "latents_flipped": latents().flip(-1)})
    assert plain.check() == {} == flipped.check()
    found = plain.read(only(plain))
    assert list(found) == ["latents"] and torch.equal(found["latents"], latents())
    other = latent_cache(record, identity="other")
    assert list(other.check().values()) == ["another VAE or precision"]


def test_latents_of_other_settings_have_a_file_of_their_own(record):
    wide, narrow = (latent_cache(record, identity=f"vae {name}", settings=name) for name in ("float32", "bfloat16"))
    wide.write(only(wide), {"latents": latents()})
    assert list(narrow.check().values()) == ["new"]
    narrow.write(only(narrow), {"latents": latents().bfloat16()})
    assert wide.check() == {} == narrow.check()
    assert torch.equal(wide.read(only(wide))["latents"], latents())


def test_flipped_latents_belong_to_the_entry(record):
    cache = latent_cache(record, flip_aug=True)
    assert cache.entries[0].names == ("latents", "latents_flipped")
    cache.write(only(cache), {"latents": latents(), "latents_flipped": latents().flip(-1)})
    assert set(cache.read(only(cache))) == {"latents", "latents_flipped"}


def test_masks_belong_to_the_entry(record):
    cache = latent_cache(record, flip_aug=True, alpha_mask=True)
    assert cache.entries[0].names == ("latents", "latents_flipped", "mask")
    mask = torch.rand(1, 4, 8).half()
    cache.write(only(cache), {"latents": latents(), "latents_flipped": latents().flip(-1), "mask": mask})
    assert cache.check() == {}
    assert torch.equal(cache.read(only(cache))["mask"], mask)
    with pytest.raises(AssertionError):
        cache.write(only(cache), {"latents": latents(), "latents_flipped": latents(), "mask": latents()})


def test_another_mask_makes_the_entry_anew(tmp_path):
    masks = make_record(tmp_path / "masks" / "a.png").path
    record = make_record(tmp_path / "a.png", mask=masks)
    cache = latent_cache(record, conditioning_data_dir=masks.parent)
    cache.write(only(cache), {"latents": latents(), "mask": torch.ones(1, 4, 8).half()})
    assert cache.check() == {}
    masks.write_bytes(b"another mask")
    assert reason(latent_cache(record, conditioning_data_dir=masks.parent)) == "the mask changed"
    assert reason(latent_cache(make_record(record.path))) == "the mask changed"


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
    entries = latent_entries(records, [CROP] * 2, [make_spec(tmp_path)], family="sd3", identity="vae", to_disk=True)
    assert len({entry.path for entry in entries}) == 2


def test_a_cache_folder_keeps_images_of_one_name_apart(tmp_path):
    records = [make_record(tmp_path / parent / "dogs" / "a.png") for parent in ("one", "two")]
    before = sorted(tmp_path.rglob("*"))
    caches = [latent_cache(record, cache_dir=tmp_path / "cache") for record in records]
    for number, cache in enumerate(caches):
        cache.probe(cache.check())
        cache.write(only(cache), {"latents": latents() + number})
    for number, cache in enumerate(caches):
        assert torch.equal(cache.read(only(cache))["latents"], latents() + number)
    folders = [cache.entries[0].path.parent for cache in caches]
    assert [folder.name.partition("-")[0] for folder in folders] == ["dogs", "dogs"]
    assert [folder.parent for folder in folders] == [tmp_path / "cache"] * 2
    assert [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "cache" not in (path, *path.parents)] == before


def test_a_cache_folder_does_not_depend_on_how_its_images_are_named(tmp_path, monkeypatch):
    record = make_record(tmp_path / "dogs" / "a.png")
    monkeypatch.chdir(tmp_path)
    relative = replace(record, path=Path("dogs/a.png"))
    paths = {latent_cache(each, cache_dir=tmp_path / "cache").entries[0].path for each in (record, relative)}
    assert len(paths) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    entry = CacheEntry("x", tmp_path / "file" / "x.safetensors", {}, about="x", content="x")
    with pytest.raises(OutputError, match=r"file: cache files cannot be written there.*--cache_dir"):
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
    assert torch.equal(cache.read(entry_id)["latents"], latents())


WRITER = """
import sys
import torch
from pathlib import Path
from library.data.cache import CacheEntry, TensorCache

path, header, value = Path(sys.argv[1]), {"format": "2", "run": sys.argv[2]}, float(sys.argv[3])
cache = TensorCache([CacheEntry("x", path, header, about="x", content="x")])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    cache.write("x", {"states": torch.full((300, 50), value)})
"""


def test_two_runs_on_one_folder_leave_whole_files(tmp_path):
    path = tmp_path / "x.safetensors"
    root = Path(__file__).resolve().parents[4]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), run, value],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for run, value in (("one", "1"), ("two", "2"))
    ]
    for run in runs:
        run.stdout.readline()
    for run in runs:
        run.stdin.write(b"go\n")
        run.stdin.flush()
    kept = {"one": 0, "two": 0}
    while any(run.poll() is None for run in runs):
        for value, run in ((1.0, "one"), (2.0, "two")):
            cache = TensorCache([CacheEntry("x", path, {"format": "2", "run": run}, about="x", content="x")])
            if "x" in cache.check():  # not there yet, or the other run's
                continue
            try:
                states = cache.read("x")["states"]
            except DamagedEntry as error:
                assert "another run has replaced it" in str(error)
                continue
            assert torch.equal(states, torch.full((300, 50), value))
            kept[run] += 1
    assert [run.wait() for run in runs] == [0, 0]
    assert kept["one"] + kept["two"] > 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_hiccup_of_a_drive_is_waited_for(record, monkeypatch):
    cache = latent_cache(record)
    cache.write(only(cache), {"latents": latents()})
    real_open, failures = open, [errno.EIO, errno.ESTALE]

    def flaky_open(path, *args, **kwargs):
        if failures and str(path).endswith(".safetensors"):
            raise OSError(failures.pop(), "hiccup", str(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr("library.data.files.patience.PAUSES", (0, 0, 0))
    monkeypatch.setattr("builtins.open", flaky_open)
    assert torch.equal(cache.read(only(cache))["latents"], latents())
    assert not failures
    failures += [errno.EIO] * 4
    with pytest.raises(DamagedEntry, match=r"cannot be read \(hiccup\)"):
        cache.read(only(cache))
    assert cache.entries[0].path.exists()
