"""Filling a cache: every entry once, in any number of processes, and nothing is hidden when something fails."""

import logging
import threading

import pytest
import torch

from library.data.cache import CacheEntry, TensorCache
from library.data.cache.precompute import NUM_AHEAD, fill_cache, num_processors
from library.errors import DatasetError, OutputError
from library.log import LOGGER_NAME
from library.records import Size


def make_cache(folder, captions, to_disk=True):
    """An entry for each caption, numbered; equal captions have equal content."""
    return TensorCache([make_entry(folder, str(i), caption, to_disk) for i, caption in enumerate(captions)])


def make_entry(folder, name, caption, to_disk=True):
    header = {"format": "2", "kind": "text", "family": "sd3", "encoder": "clip", "caption": caption}
    path = folder / f"{name}.safetensors" if to_disk else None
    return CacheEntry(name, path, header, about=f"picture {name}", content=caption)


class Encoder:
    """Turns captions into one number each, and keeps account of what it was asked."""

    def __init__(self, cache, captions):
        self.captions = dict(zip((entry.id for entry in cache.entries), captions, strict=True))
        self.encoded = []
        self.threads = set()

    def load(self, ids):
        self.threads.add(threading.get_ident())
        return [self.captions[entry_id] for entry_id in ids]

    def encode(self, ids, captions):
        assert captions == [self.captions[entry_id] for entry_id in ids]
        assert threading.current_thread() is threading.main_thread()
        self.encoded += captions
        return [{"context": torch.tensor([float(len(caption))])} for caption in captions]


def pairs(ids):
    return [ids[i : i + 2] for i in range(0, len(ids), 2)]


def fill(cache, encoder, ids=None, **options):
    batches = pairs(list(cache.check()) if ids is None else ids)
    return fill_cache(cache, batches, encoder.load, encoder.encode, progress=False, **options)


def assert_complete(cache, captions):
    assert cache.check() == {}
    for entry, caption in zip(cache.entries, captions, strict=True):
        assert cache.read(entry.id)["context"].item() == len(caption)


@pytest.mark.parametrize("to_disk", [True, False])
def test_all_entries_are_made_then_kept(tmp_path, to_disk):
    captions = ["a" * n for n in range(1, 12)]
    cache = make_cache(tmp_path, captions, to_disk)
    encoder = Encoder(cache, captions)
    report = fill(cache, encoder)
    assert (report.num_made, report.num_kept, report.reasons) == (11, 0, {"new": 11})
    assert sorted(encoder.encoded) == sorted(captions)
    assert_complete(cache, captions)
    again = fill(cache, encoder)
    assert (again.num_made, again.num_kept, again.reasons) == (0, 11, {})
    assert len(encoder.encoded) == 11


@pytest.mark.parametrize("to_disk", [True, False])
def test_equal_captions_are_encoded_once(tmp_path, to_disk):
    captions = ["one", "three", "one", "one", "three", "four", "one"]
    cache = make_cache(tmp_path, captions, to_disk)
    encoder = Encoder(cache, captions)
    report = fill(cache, encoder)
    assert sorted(encoder.encoded) == ["four", "one", "three"]
    assert_complete(cache, captions)
    assert (report.num_made, report.num_encoded) == (7, 3)


def test_only_stale_entries_are_made_and_the_log_says_why(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger(LOGGER_NAME), "propagate", True)
    captions = ["one", "three", "seven", "eight"]
    fill(cache := make_cache(tmp_path, captions), Encoder(cache, captions))
    edited = ["one", "thirty", "seven", "eight"]
    (tmp_path / "3.safetensors").write_bytes(b"torso")
    cache = make_cache(tmp_path, edited)
    encoder = Encoder(cache, edited)
    with caplog.at_level(logging.INFO, logger=LOGGER_NAME):
        report = fill(cache, encoder, what="text")
    assert encoder.encoded == ["thirty", "eight"]
    assert (report.num_made, report.num_kept) == (2, 2)
    assert report.reasons == {"the caption changed": 1, "unreadable": 1}
    assert "text: making 2 of 4 (1 the caption changed, 1 unreadable)" in caplog.text
    assert_complete(cache, edited)


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_the_work(tmp_path, num_processes):
    captions = ["a" * (n % 5 + 1) for n in range(13)]
    cache = make_cache(tmp_path, captions)
    ids = list(cache.check())
    encoders = [Encoder(cache, captions) for _ in range(num_processes)]
    for rank, encoder in enumerate(encoders):
        fill(cache, encoder, ids, rank=rank, num_processes=num_processes)
    encoded = [caption for encoder in encoders for caption in encoder.encoded]
    assert sorted(encoded) == sorted(set(captions))
    assert all(encoder.encoded for encoder in encoders)
    assert_complete(cache, captions)


def test_every_process_makes_all_entries_in_memory(tmp_path):
    captions = ["one", "three", "seven"]
    cache = make_cache(tmp_path, captions, to_disk=False)
    fill(cache, Encoder(cache, captions), rank=1, num_processes=2)
    assert_complete(cache, captions)


def test_loading_runs_ahead_in_other_threads(tmp_path):
    captions = ["a" * n for n in range(1, 15)]
    cache = make_cache(tmp_path, captions)
    encoder = Encoder(cache, captions)
    last_needed_ahead = threading.Event()
    batches = pairs([entry.id for entry in cache.entries])

    def load(ids):
        if ids == batches[NUM_AHEAD - 1]:
            last_needed_ahead.set()
        return encoder.load(ids)

    def encode(ids, inputs):
        assert last_needed_ahead.wait(10), "nothing was loaded while the first batch was encoded"
        return encoder.encode(ids, inputs)

    fill_cache(cache, batches, load, encode, progress=False)
    assert threading.get_ident() not in encoder.threads
    assert encoder.encoded == captions


def test_a_bad_image_stops_the_filling_and_keeps_what_is_made(tmp_path):
    captions = ["a" * n for n in range(1, 10)]
    cache = make_cache(tmp_path, captions)
    encoder = Encoder(cache, captions)
    ids = [entry.id for entry in cache.entries]

    def load(chosen):
        if ids[4] in chosen:
            raise DatasetError("4.png cannot be decoded")
        return encoder.load(chosen)

    with pytest.raises(DatasetError, match=r"4\.png"):
        fill_cache(cache, pairs(ids), load, encoder.encode, progress=False)
    assert set(ids) - set(cache.check()) == set(ids[:4])


def test_a_failure_while_writing_is_raised(tmp_path):
    captions = ["one", "three"]
    cache = make_cache(tmp_path, captions)
    cache.entries[1].path.mkdir()
    with pytest.raises(OutputError, match=r"1\.safetensors"):
        fill(cache, Encoder(cache, captions))


def test_unwritable_folders_are_found_before_anything_is_encoded(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    entry = CacheEntry("x", tmp_path / "file" / "x.safetensors", {"kind": "text"}, about="x", content="x")
    cache = TensorCache([entry])
    encoder = Encoder(cache, ["x"])
    with pytest.raises(OutputError, match="cannot be written there"):
        fill(cache, encoder, ["x"])
    assert encoder.encoded == []


def test_with_on_fault_the_others_of_the_batch_and_all_further_ones_are_made(tmp_path):
    captions = ["a" * n for n in range(1, 10)]
    cache = make_cache(tmp_path, captions)
    encoder = Encoder(cache, captions)
    told = {}

    def load(chosen):
        for entry_id in chosen:
            if entry_id in ("1", "6", "7"):
                raise DatasetError(f"{entry_id}.png cannot be decoded.")
        return encoder.load(chosen)

    def on_fault(entry_id, error):
        assert threading.current_thread() is threading.main_thread()
        told[entry_id] = str(error)

    report = fill_cache(cache, pairs(list(cache.ids)), load, encoder.encode, progress=False, on_fault=on_fault)
    assert told == {entry_id: f"{entry_id}.png cannot be decoded." for entry_id in ("1", "6", "7")}
    assert (report.num_made, report.num_kept, report.num_encoded) == (6, 0, 6)
    assert list(cache.check()) == ["1", "6", "7"]


def test_other_errors_end_the_filling_with_on_fault_too(tmp_path):
    cache = make_cache(tmp_path, ["one"])

    def load(chosen):
        raise OutputError("the disk is full.")

    with pytest.raises(OutputError):
        fill_cache(cache, [["0"]], load, None, progress=False, on_fault=lambda entry_id, error: None)


def test_several_encoders_make_what_one_makes(tmp_path):
    captions = ["a" * n for n in range(1, 14)]
    cache = make_cache(tmp_path, captions)
    texts = dict(zip(cache.ids, captions, strict=True))
    both_encode = threading.Barrier(2, timeout=10)

    def encode(ids, inputs):
        if "0" in ids or "2" in ids:  # the first two batches, at the same time
            both_encode.wait()
        return [{"context": torch.tensor([float(len(text))])} for text in inputs]

    report = fill_cache(
        cache, pairs(list(cache.ids)), lambda ids: [texts[i] for i in ids], encode, progress=False, num_encoders=2
    )
    assert report.num_made == 13
    assert_complete(cache, captions)


def test_the_report_counts_bytes_and_seconds(tmp_path):
    captions = ["one", "three"]
    cache = make_cache(tmp_path, captions)
    report = fill(cache, Encoder(cache, captions))
    assert report.num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert report.seconds > 0


def test_pictures_are_resized_in_the_threads_that_decode(tmp_path):
    import cv2

    before = cv2.getNumThreads()
    header = {"format": "2", "kind": "latents", "family": "sd3", "encoder": "vae"}
    path = tmp_path / "a.png_0016x0016_sd3.safetensors"
    cache = TensorCache([CacheEntry("a", path, header, "a.png", content="a", names=("latents",), size=Size(16, 16))])
    seen = []

    def load(ids):
        seen.append(cv2.getNumThreads())
        return None

    fill_cache(cache, [["a"]], load, lambda ids, _: [{"latents": torch.zeros(16, 2, 2)}], progress=False)
    assert seen == [1]
    assert cv2.getNumThreads() == before


def test_processes_of_a_machine_share_its_processors(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = num_processors()
    assert alone >= 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert num_processors() == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert num_processors() == 1
