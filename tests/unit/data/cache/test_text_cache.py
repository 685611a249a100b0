"""Text entries: one for each caption and folder, and rows of zeros that are not stored."""

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from library.data.cache import CachedTexts, DamagedEntry, TensorCache, prompt_entries, text_entries
from library.data.cache.entry_file import pack, unpack
from library.errors import CheckpointError
from library.records import ImageRecord, Size
from library.tensorfile import read_header

STATES = {"t5": torch.arange(12.0).reshape(3, 4), "pooled": torch.ones(5)}


def make_record(path):
    return ImageRecord(path, path.name, "unused", Size(8, 8), 1, 0, 0)


def make_texts(records, captions, *, identity="clip", to_disk=True, cache_dir=None):
    where = {"to_disk": to_disk, "cache_dir": cache_dir}
    entries, ids = text_entries(records, captions, family="sd3", identity=identity, **where)
    return CachedTexts(TensorCache(entries), ids)


def digest(caption):
    return hashlib.sha256(caption.encode()).hexdigest()[:24]


def test_equal_captions_of_a_folder_share_a_file_named_by_their_text(tmp_path):
    records = [make_record(tmp_path / name) for name in ("a.png", "b.png")]
    texts = make_texts(records, [("one", "two"), ("two", "")])
    folder = tmp_path / "text_encoder_cache"
    expected = [folder / f"{digest(caption)}_sd3_te.safetensors" for caption in ("one", "two", "")]
    assert [entry.path for entry in texts.cache.entries] == expected
    assert texts.ids[0]["two"] == texts.ids[1]["two"]


def test_folders_have_files_of_their_own_and_share_what_is_encoded(tmp_path):
    records = [make_record(tmp_path / folder / "a.png") for folder in ("one", "two")]
    first, second = make_texts(records, [("cat",), ("cat",)]).cache.entries
    assert first.path.name == second.path.name
    assert first.path.parent != second.path.parent
    assert first.content == second.content


def test_a_cache_folder_takes_the_place_of_the_images_folder(tmp_path):
    records = [make_record(tmp_path / parent / "dogs" / "a.png") for parent in ("one", "two")]
    paths = [e.path for e in make_texts(records, [("cat",), ("cat",)], cache_dir=tmp_path / "cache").cache.entries]
    assert len(set(paths)) == 2
    assert {path.parent.name for path in paths} == {"text_encoder_cache"}
    assert {path.parent.parent.parent for path in paths} == {tmp_path / "cache"}


@pytest.mark.parametrize("to_disk", [True, False])
def test_the_states_of_each_caption_are_read(tmp_path, to_disk):
    records = [make_record(tmp_path / name) for name in ("a.png", "b.png")]
    texts = make_texts(records, [("one", "two"), ("two", "")], to_disk=to_disk)
    assert texts.in_memory != to_disk
    for number, entry_id in enumerate(texts.cache.check()):
        texts.cache.write(entry_id, {name: state + number for name, state in STATES.items()})
    assert texts.cache.check() == {}
    numbers = {"one": 0, "two": 1, "": 2}
    for record, captions in ((0, ("one", "two")), (1, ("two", ""))):
        for caption in captions:
            found = texts.read(record, caption)
            assert found.keys() == STATES.keys()
            assert all(torch.equal(found[name], STATES[name] + numbers[caption]) for name in STATES)


def test_an_edited_caption_is_new_and_another_encoder_makes_it_anew(tmp_path):
    records = [make_record(tmp_path / "a.png")]
    texts = make_texts(records, [("cat",)])
    texts.cache.write(texts.ids[0]["cat"], STATES)
    assert make_texts(records, [("cat",)]).cache.check() == {}
    assert list(make_texts(records, [("dog",)]).cache.check().values()) == ["new"]
    other = make_texts(records, [("cat",)], identity="masked").cache.check()
    assert list(other.values()) == ["another text encoder, precision or setting"]


def test_settings_have_files_of_their_own_and_encoders_do_not(tmp_path):
    records, shared = [make_record(tmp_path / "a.png")], {"family": "sd3", "to_disk": True}

    def paths(**origin):
        texts, _ = text_entries(records, [("cat",)], **shared, **origin)
        prompts = prompt_entries(["cat"], folder=tmp_path, family="sd3", **origin)
        return texts[0].path, prompts[0].path

    first = paths(identity="clip bf16", settings="bf16")
    assert paths(identity="clip t5 bf16", settings="bf16") == first
    assert not set(paths(identity="clip fp32", settings="fp32")) & set(first)


def test_a_caption_whose_states_are_not_finite_is_named(tmp_path):
    texts = make_texts([make_record(tmp_path / "a.png")], [("a cat " * 30,)])
    with pytest.raises(CheckpointError, match=r'^caption "a cat .*\.\.\." of .*a\.png: the encoder gave NaN'):
        texts.cache.write(texts.cache.ids[0], {"t5": torch.full((2, 2), float("nan"))})


def test_a_lost_file_is_named(tmp_path):
    texts = make_texts([make_record(tmp_path / "a.png")], [("cat",)])
    with pytest.raises(DamagedEntry, match=r"_sd3_te\.safetensors cannot be read \(it is gone\)"):
        texts.read(0, "cat")


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


# Rows of zeros


@pytest.mark.parametrize("to_disk", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_at_the_end_take_no_room_and_come_back(tmp_path, to_disk, dtype):
    texts = make_texts([make_record(tmp_path / "a.png")], [("cat",)], to_disk=to_disk)
    states = torch.zeros(256, 64, dtype=dtype)
    states[:40] = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    states[7] = 0  # in between they stay
    texts.cache.write(texts.cache.ids[0], {"t5": states})
    found = texts.read(0, "cat")["t5"]
    assert (found.dtype, found.shape) == (dtype, (256, 64))
    assert torch.equal(found, states)
    if to_disk:
        assert read_header(texts.cache.entries[0].path).shapes() == {"t5": (40, 64)}


@settings(max_examples=60)
@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3), st.sampled_from(["float32", "bfloat16", "int64"]))
def test_packing_changes_nothing(rows, zeros, columns, dtype):
    states = torch.ones(rows, columns).to(getattr(torch, dtype))
    states = torch.cat([states, torch.zeros(zeros, columns, dtype=states.dtype)])
    found = unpack(pack({"states": states, "vector": states.reshape(-1), "number": torch.tensor(3)}))
    assert torch.equal(found["states"], states)
    assert found["states"].dtype == states.dtype
    assert torch.equal(found["vector"], states.reshape(-1))
    assert found["number"] == 3


def test_damage_in_the_stated_length_is_found(tmp_path):
    texts = make_texts([make_record(tmp_path / "a.png")], [("cat",)])
    texts.cache.write(texts.cache.ids[0], {"t5": torch.eye(4)[:, :2]})
    path = Path(texts.cache.entries[0].path)
    content = path.read_bytes()
    for damage, reason in ((b'{\\"t5\\": 3}', "its checksum is wrong"), (b'{\\"t5\\"; 4}', "it is damaged")):
        path.write_bytes(content.replace(b'{\\"t5\\": 4}', damage))
        with pytest.raises(DamagedEntry, match=reason):
            make_texts([make_record(tmp_path / "a.png")], [("cat",)]).read(0, "cat")
