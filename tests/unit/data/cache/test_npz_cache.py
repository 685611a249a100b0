"""Archives of sd-scripts: what is found, and what is refused and why."""

import io
import zipfile

import numpy as np
import pytest
import torch

from library.data.cache import TensorCache, latent_entries, text_entries
from library.data.cache.entry_file import DamagedFile
from library.data.cache.npz import find_latents, find_texts, read_arrays, unusable
from library.data.config.specs import DatasetSpec, SubsetSpec
from library.families.sd3.npz_cache import Sd3NpzReader
from library.records import CropPlan, ImageRecord, Size

IMAGE, BUCKET = Size(80, 50), Size(64, 32)
CROP = CropPlan(BUCKET, 0, 0, BUCKET)
READER = Sd3NpzReader(
    clip_widths={"clip_l": 3, "clip_g": 5},
    encoders=("clip_l", "clip_g", "t5xxl"),
    t5_length=4,
    t5_width=6,
    apply_lg_attn_mask=False,
    apply_t5_attn_mask=False,
    dtype=torch.float32,
)
SHARED = {"family": "sd3", "identity": "this", "to_disk": True}


def make_record(path, **fields):
    path.write_bytes(b"pixels")
    return ImageRecord(path, path.name, "a cat", IMAGE, 1, 0, 0, **fields)


def latent_arrays(**changes):
    arrays = {
        "latents_4x8": np.random.default_rng(0).normal(size=(16, 4, 8)).astype(np.float32),
        "original_size_4x8": np.array(IMAGE),
        "crop_ltrb_4x8": np.zeros(4),
    }
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


def text_arrays(**changes):
    rng = np.random.default_rng(0)
    arrays = {
        "lg_out": rng.normal(size=(77, 8)).astype(np.float32),
        "lg_pooled": np.arange(8, dtype=np.float32),
        "t5_out": rng.normal(size=(4, 6)).astype(np.float32),
        "clip_l_attn_mask": np.r_[np.ones(3, np.int64), np.zeros(74, np.int64)],
        "clip_g_attn_mask": np.r_[np.ones(5, np.int64), np.zeros(72, np.int64)],
        "t5_attn_mask": np.array([1, 1, 0, 0]),
        "apply_lg_attn_mask": np.array(False),
        "apply_t5_attn_mask": np.array(False),
    }
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


def latent_cache(records, **subset):
    spec = DatasetSpec(resolution=BUCKET, subsets=(SubsetSpec(image_dir=None, **subset),))
    return TensorCache(latent_entries(records, [CROP] * len(records), [spec], **SHARED))


def found_latents(records, **subset):
    cache = latent_cache(records, **subset)
    return cache, find_latents(cache.entries, records, cache.check(), reader=READER)


def latent_fault(folder, arrays, **subset):
    """Why an archive with these arrays cannot stand for the latents of a picture, or None."""
    record = make_record(folder / "a.png")
    np.savez(folder / "a_0080x0050_sd3.npz", **arrays)
    cache, found = found_latents([record], **subset)
    assert len(found) == 1
    return unusable(cache, found).get(cache.ids[0])


def test_an_archive_that_fits_stands_for_an_entry(tmp_path):
    assert latent_fault(tmp_path, latent_arrays()) is None
    cache, found = found_latents([make_record(tmp_path / "a.png")])
    cache.adopt(found)
    assert cache.check() == {}
    expected = (torch.from_numpy(latent_arrays()["latents_4x8"]) - 0.0609) * 1.5305
    torch.testing.assert_close(cache.read(cache.ids[0])["latents"], expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a_0080x0050_sd3.npz"]


NAN = np.full((16, 4, 8), np.nan, np.float32)


@pytest.mark.parametrize(
    ("changes", "subset", "reason"),
    [
        ({"latents_4x8": None}, {}, "it has no latents_4x8"),
        ({"latents_4x8": np.zeros((4, 4, 8), np.float32)}, {}, "latents_4x8 has the shape 4x4x8, not 16x4x8"),
        ({"latents_4x8": NAN}, {}, "latents_4x8 has NaN or infinite values"),
        ({"latents_4x8": np.full((16, 4, 8), "x")}, {}, "latents_4x8 is not made of numbers"),
        ({"original_size_4x8": np.array([50, 80])}, {}, "it was made from a picture of another size"),
        ({}, {"flip_aug": True}, "it has no latents_flipped_4x8"),
        ({}, {"alpha_mask": True}, "it has no alpha_mask_4x8"),
    ],
)
def test_latents_that_do_not_fit_are_refused(tmp_path, changes, subset, reason):
    assert latent_fault(tmp_path, latent_arrays(**changes), **subset) == reason


def test_a_pickle_in_an_archive_is_not_run(tmp_path):
    trap = np.empty((16, 4, 8), object)
    assert "damaged, or not an .npz" in latent_fault(tmp_path, latent_arrays(latents_4x8=trap))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>", b"\x80\x04N.", b"\x93NUMPY"])
def test_files_that_are_no_archives_are_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="not an .npz archive"):
        read_arrays(path, {"x": None})


def test_archives_that_are_cut_off_or_changed_inside_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(1000))
    whole = path.read_bytes()
    assert read_arrays(path, {"x": (1000,)})["x"][3] == 3
    changed = bytearray(whole)
    changed[500] ^= 1
    for content in (whole[:-10], whole[:600], bytes(changed)):
        path.write_bytes(content)
        with pytest.raises(DamagedFile):
            read_arrays(path, {"x": (1000,)})
    single = io.BytesIO()
    np.save(single, np.arange(3))
    path.write_bytes(single.getvalue())
    with pytest.raises(DamagedFile, match="not an .npz archive"):
        read_arrays(path, {"x": None})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no header")
    with pytest.raises(DamagedFile):
        read_arrays(path, {"x": None})


def test_the_transparency_of_an_archive_becomes_a_mask_at_latent_size(tmp_path):
    alpha = np.zeros((32, 64), np.float32)
    alpha[:, :12] = 1
    arrays = latent_arrays(alpha_mask_4x8=alpha)
    assert latent_fault(tmp_path, arrays, alpha_mask=True) is None
    cache, found = found_latents([make_record(tmp_path / "a.png")], alpha_mask=True)
    cache.adopt(found)
    mask = cache.read(cache.ids[0])["mask"]
    assert mask.dtype == torch.float16
    assert torch.equal(mask[0], torch.tensor([1, 0.5, 0, 0, 0, 0, 0, 0]).half().expand(4, 8))


def test_masks_of_a_folder_are_in_no_archive(tmp_path):
    np.savez(tmp_path / "a_0080x0050_sd3.npz", **latent_arrays(alpha_mask_4x8=np.ones((32, 64), np.float32)))
    mask = tmp_path / "mask.png"
    mask.write_bytes(b"")
    record = make_record(tmp_path / "a.png", mask=mask)
    assert found_latents([record], conditioning_data_dir=tmp_path)[1] == {}


def test_pictures_of_one_stem_have_no_archive(tmp_path):
    np.savez(tmp_path / "a_0080x0050_sd3.npz", **latent_arrays())
    records = [make_record(tmp_path / name) for name in ("a.png", "a.jpg")]
    assert found_latents(records)[1] == {}
    assert len(found_latents(records[:1])[1]) == 1


def test_own_files_go_before_archives(tmp_path):
    np.savez(tmp_path / "a_0080x0050_sd3.npz", **latent_arrays())
    record = make_record(tmp_path / "a.png")
    cache = latent_cache([record])
    cache.write(cache.ids[0], {"latents": torch.ones(16, 4, 8)})
    assert found_latents([record])[1] == {}


# Texts


def found_texts(record, captions, reader=READER):
    entries, ids = text_entries([record], [captions], **SHARED)
    cache = TensorCache(entries)
    return cache, ids, find_texts(ids, [record], cache.check(), reader=reader)


def test_texts_are_taken_apart(tmp_path):
    np.savez(tmp_path / "a_sd3_te.npz", **text_arrays())
    cache, ids, found = found_texts(make_record(tmp_path / "a.png"), ("a cat", ""))
    assert list(found) == [ids[0]["a cat"]]
    assert unusable(cache, found) == {}
    cache.adopt(found)
    assert list(cache.check()) == [ids[0][""]]
    states, arrays = cache.read(ids[0]["a cat"]), {k: torch.from_numpy(v) for k, v in text_arrays().items()}
    assert torch.equal(states["clip_l"], arrays["lg_out"][:, :3])
    assert torch.equal(states["clip_g"], arrays["lg_out"][:, 3:])
    assert torch.equal(states["clip_l_pooled"], torch.tensor([0.0, 1, 2]))
    assert torch.equal(states["clip_g_pooled"], torch.tensor([3.0, 4, 5, 6, 7]))
    assert torch.equal(states["t5xxl"], arrays["t5_out"])


def test_rows_that_masks_hide_become_zero(tmp_path):
    flags = {"apply_lg_attn_mask": np.array(True), "apply_t5_attn_mask": np.array(True)}
    np.savez(tmp_path / "a_sd3_te.npz", **text_arrays(**flags))
    reader = Sd3NpzReader(
        READER.clip_widths,
        READER.encoders,
        4,
        6,
        apply_lg_attn_mask=True,
        apply_t5_attn_mask=True,
        dtype=torch.bfloat16,
    )
    states = reader.texts(tmp_path / "a_sd3_te.npz")
    kept = {name: int(states[name].ne(0).any(dim=1).sum()) for name in ("clip_l", "clip_g", "t5xxl")}
    assert kept == {"clip_l": 3, "clip_g": 5, "t5xxl": 2}
    assert {state.dtype for state in states.values()} == {torch.bfloat16}


def test_only_the_cached_encoders_are_read(tmp_path):
    np.savez(tmp_path / "a_sd3_te.npz", **text_arrays(lg_out=None, lg_pooled=None))
    reader = Sd3NpzReader(READER.clip_widths, ("t5xxl",), 4, 6, False, False, torch.float32)
    assert list(reader.texts(tmp_path / "a_sd3_te.npz")) == ["t5xxl"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"apply_lg_attn_mask": np.array(True)}, "it was made with --apply_lg_attn_mask"),
        ({"apply_t5_attn_mask": np.array(True)}, "it was made with --apply_t5_attn_mask"),
        ({"t5_out": np.zeros((9, 6), np.float32)}, "t5_out is not 4 tokens long"),
        ({"t5_out": np.zeros((4, 9), np.float32)}, "t5_out is 9 wide, not 6: another T5 made it"),
        ({"lg_out": np.zeros((77, 2048), np.float32)}, "lg_out has the shape 77x2048, not 77x8"),
        ({"clip_g_attn_mask": None}, "it has no clip_g_attn_mask"),
        ({"t5_out": np.full((4, 6), np.inf, np.float32)}, "t5_out has NaN or infinite values"),
    ],
)
def test_texts_that_do_not_fit_are_refused(tmp_path, changes, reason):
    np.savez(tmp_path / "a_sd3_te.npz", **text_arrays(**changes))
    cache, ids, found = found_texts(make_record(tmp_path / "a.png"), ("a cat",))
    assert unusable(cache, found) == {ids[0]["a cat"]: reason}


def test_an_archive_cannot_tell_which_of_several_captions_it_holds(tmp_path):
    np.savez(tmp_path / "a_sd3_te.npz", **text_arrays())
    assert found_texts(make_record(tmp_path / "a.png"), ("a cat", "a dog"))[2] == {}


@pytest.mark.parametrize("other", ["a dog", ""])
def test_an_archive_stands_for_no_text_of_a_picture_that_has_another_in_another_dataset(tmp_path, other):
    np.savez(tmp_path / "a_sd3_te.npz", **text_arrays())
    record = make_record(tmp_path / "a.png")
    for captions, number in ((("a cat",), ("a cat", "")), 1), ((("a cat",), (other,)), 0):
        entries, ids = text_entries([record, record], captions, **SHARED)
        cache = TensorCache(entries)
        assert len(find_texts(ids, [record, record], cache.check(), reader=READER)) == number
