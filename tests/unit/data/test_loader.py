"""A batch depends on its plan and the seed, not on who makes it."""

import logging
import multiprocessing
import os
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from library.data import loader as loader_module
from library.data.cache import CachedTexts, TensorCache, latent_entries, text_entries
from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.loader import BatchDataset, Made, make_loader, posterior_seed
from library.data.pixels.images import load_image, prepare_image
from library.data.pixels.pictures import prepare_picture
from library.data.plan.batches import epoch_plan, for_process, sample_id
from library.data.plan.buckets import plan_crop
from library.data.plan.captions import CaptionRules
from library.errors import DatasetError
from library.records import ImageRecord, Size

RULES = CaptionRules(shuffle_caption=True, caption_dropout_rate=0.2)


class Pictures:
    """Six small pictures in two buckets, with repeats, flips, random crops and shuffled captions.

    `mixed`: those with even numbers are of a subset with masks and output preservation, the others of a plain one.
    """

    def __init__(self, folder, mixed=False, **subset):
        settings = {"image_dir": folder, "captions": RULES, "flip_aug": True, "random_crop": True, **subset}
        special = {"conditioning_data_dir": folder / "masks", "custom_attributes": {"diff_output_preservation": True}}
        subsets = (SubsetSpec(**settings, **special), SubsetSpec(**settings)) if mixed else (SubsetSpec(**settings),)
        self.specs = (
            DatasetSpec(
                resolution=Size(32, 32),
                batch_size=2,
                enable_bucket=True,
                min_bucket_reso=16,
                max_bucket_reso=64,
                bucket_reso_steps=16,
                subsets=subsets,
            ),
        )
        rng = np.random.default_rng(0)
        (folder / "masks").mkdir(exist_ok=True)
        self.records = []
        for index in range(6):
            size = Size(40, 44) if index < 3 else Size(60, 33)
            path = folder / f"{index}.png"
            Image.fromarray(rng.integers(0, 255, (size.height, size.width, 3), np.uint8)).save(path)
            mask = folder / "masks" / path.name if mixed and index % 2 == 0 else None
            if mask is not None:
                Image.fromarray(rng.integers(0, 255, (size.height, size.width), np.uint8)).save(mask)
            caption, weight = f"picture {index}, red, green, blue", 1 + index / 10
            subset = index % len(subsets)
            self.records.append(ImageRecord(path, f"p/{index}.png", caption, size, 2, 0, subset, weight, mask))
        self.crops = [plan_crop(record.size, self.specs[0]) for record in self.records]
        self.variants = [tuple(f"{record.caption} {number}" for number in range(3)) for record in self.records]

    def plans(self, epoch=1, **shared):
        return epoch_plan(self.records, self.crops, [2], 5, epoch, **shared)

    def dataset(self, seed=5, **caches):
        return BatchDataset(self.records, self.crops, self.specs, seed=seed, max_steps=100, **caches)

    def filled_caches(self, to_disk=True):
        """A latent cache with numbers that tell record and direction, and a text cache with numbers of the caption."""
        shared = {"family": "sd3", "to_disk": to_disk}
        latents = TensorCache(latent_entries(self.records, self.crops, self.specs, identity="vae", **shared))
        captions = [(*texts, "") for texts in self.variants]
        entries, ids = text_entries(self.records, captions, identity="clip", **shared)
        texts = CachedTexts(TensorCache(entries), ids)
        for index, (crop, entry) in enumerate(zip(self.crops, latents.entries, strict=True)):
            shape = (16, crop.bucket.height // 8, crop.bucket.width // 8)
            made = {name: torch.full(shape, float(sign * (index + 1))) for name, sign in LATENT_SIGNS.items()}
            made["mask"] = self.prepared(index, is_flipped=False).mask
            latents.write(entry.id, {name: made[name] for name in entry.names})
        for text, entry_id in {pair for own in ids for pair in own.items()}:
            texts.cache.write(entry_id, {"context": torch.full((5, 8), 1.0), "pooled": torch.full((8,), mark(text))})
        return latents, texts

    def prepared(self, index, *, is_flipped):
        return prepare_picture(self.records[index], self.crops[index], self.specs[0], is_flipped=is_flipped, cells=8)


def mark(text):
    """A number that tells a caption from others."""
    return float(sum(text.encode()) % 251)


LATENT_SIGNS = {"latents": 1, "latents_flipped": -1}


@pytest.fixture
def pictures(tmp_path):
    return Pictures(tmp_path)


def assert_same(first, second):
    assert (first.plan, first.sample_ids, first.captions) == (second.plan, second.sample_ids, second.captions)
    assert first.posterior_seeds == second.posterior_seeds
    assert torch.equal(first.loss_weights, second.loss_weights)
    for name in ("images", "latents", "masks", "preserves_output"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None and other is None) or torch.equal(one, other)
    texts = [batch.text or {} for batch in (first, second)]
    assert texts[0].keys() == texts[1].keys()
    assert all(torch.equal(texts[0][name], texts[1][name]) for name in texts[0])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(pictures, num_workers, monkeypatch):
    monkeypatch.setattr(loader_module, "_num_processors", lambda: 2)
    plans = [plan for epoch in (1, 2) for plan in pictures.plans(epoch)]
    alone = list(make_loader(pictures.dataset(), plans))
    shared = list(make_loader(pictures.dataset(), iter(plans), num_workers=num_workers))
    assert [batch.plan for batch in alone] == plans
    for one, other in zip(alone, shared, strict=True):
        assert_same(one, other)


def test_workers_read_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(loader_module, "_num_processors", lambda: 2)
    pictures = Pictures(tmp_path, mixed=True, random_crop=False)
    latents, texts = pictures.filled_caches()
    dataset = pictures.dataset(latents=latents, texts=texts, variants=pictures.variants)
    alone = list(make_loader(dataset, pictures.plans()))
    shared = list(make_loader(dataset, pictures.plans(), num_workers=2))
    for one, other in zip(alone, shared, strict=True):
        assert_same(one, other)


def test_order_of_asking_changes_nothing(pictures):
    plans = pictures.plans(3)
    forward = [pictures.dataset()[plan] for plan in plans]
    backward = [pictures.dataset()[plan] for plan in reversed(plans)]
    for one, other in zip(forward, reversed(backward), strict=True):
        assert_same(one, other)


def test_what_a_batch_holds(pictures):
    dataset = pictures.dataset()
    for plan in pictures.plans():
        batch = dataset[plan]
        count = len(plan.items)
        records = [pictures.records[item.record] for item in plan.items]
        assert batch.images.shape == (count, 3, plan.size.height, plan.size.width)
        assert batch.images.dtype == torch.float32
        assert batch.latents is None and batch.text is None
        assert batch.sample_ids == tuple(sample_id(pictures.records[i.record], i.repeat) for i in plan.items)
        assert batch.loss_weights.tolist() == pytest.approx([record.loss_weight for record in records])
        for caption, record in zip(batch.captions, records, strict=True):
            assert caption == "" or sorted(caption.split(", ")) == sorted(record.caption.split(", "))


def test_draws_differ_between_samples_epochs_and_seeds(pictures):
    def captions(epoch, seed=5):
        batches = [pictures.dataset(seed)[plan] for plan in pictures.plans(epoch)]
        return {
            sample: text for batch in batches for sample, text in zip(batch.sample_ids, batch.captions, strict=True)
        }

    assert captions(1) == captions(1)
    assert captions(1) != captions(2)
    assert captions(1) != captions(1, seed=6)
    orders = [tuple(text.split(", ")[1:]) for text in captions(1).values() if text]
    assert len(set(orders)) > 2


def test_pixels_follow_flip_and_crop(pictures):
    """Every picture is one of the crops that fit, mirrored or not; and both directions and several places occur."""
    dataset = pictures.dataset()
    seen = set()
    for epoch in range(1, 7):
        for plan in pictures.plans(epoch):
            batch = dataset[plan]
            for item, pixels in zip(plan.items, batch.images, strict=True):
                seen.add((item.record, *find_crop(pictures, item.record, pixels)))
    assert {is_flipped for _, is_flipped, _, _ in seen} == {True, False}
    assert len({(record, left, top) for record, _, left, top in seen}) > 20


def find_crop(pictures, record, pixels):
    crop = pictures.crops[record]
    whole = prepare_image(
        load_image(pictures.records[record].path),
        type(crop)(crop.resized, 0, 0, crop.resized),
        None,
        False,
    )
    for is_flipped in (False, True):
        wanted = pixels.flip(-1) if is_flipped else pixels
        for left in range(crop.resized.width - crop.bucket.width + 1):
            for top in range(crop.resized.height - crop.bucket.height + 1):
                part = whole[:, top : top + crop.bucket.height, left : left + crop.bucket.width]
                if torch.equal(part, wanted):
                    return is_flipped, left, top
    raise AssertionError("no crop of the picture")


@pytest.mark.parametrize("to_disk", [True, False])
def test_cached_latents_are_those_of_the_record_and_its_direction(tmp_path, to_disk):
    pictures = Pictures(tmp_path, random_crop=False)
    latents, texts = pictures.filled_caches(to_disk)
    shared = {"variants": pictures.variants}
    cached, live = pictures.dataset(latents=latents, texts=texts, **shared), pictures.dataset(**shared)
    directions = set()
    for plan in pictures.plans():
        batch, pixels = cached[plan], live[plan]
        assert batch.images is None
        assert (batch.captions, batch.posterior_seeds) == (pixels.captions, pixels.posterior_seeds)
        assert batch.latents.shape == (len(plan.items), 16, plan.size.height // 8, plan.size.width // 8)
        assert batch.text["context"].shape == (len(plan.items), 5, 8)
        for row, item in enumerate(plan.items):
            is_flipped, _, _ = find_crop(pictures, item.record, pixels.images[row])
            directions.add(is_flipped)
            sign = -1 if is_flipped else 1
            assert batch.latents[row].unique().tolist() == [sign * (item.record + 1)]
            assert batch.text["pooled"][row].unique().tolist() == [mark(batch.captions[row])]
            assert batch.posterior_seeds[row] == posterior_seed(pictures.records[item.record], plan.size, is_flipped)
    assert directions == {True, False}


def test_posterior_draws_depend_on_picture_size_and_direction_only(pictures):
    first, second = pictures.records[:2]
    seeds = {posterior_seed(r, size, f) for r in (first, second) for size in ((8, 8), (8, 16)) for f in (False, True)}
    assert len(seeds) == 8
    batches = [pictures.dataset(seed)[plan] for seed in (5, 6) for plan in pictures.plans(1)]
    by_sample = {}
    for batch in batches:
        for item, drawn in zip(batch.plan.items, batch.posterior_seeds, strict=True):
            by_sample.setdefault(item.record, set()).add(drawn)
    assert all(len(drawn) <= 2 for drawn in by_sample.values())


def test_filters_of_subset_and_dataset(tmp_path):
    area = Pictures(tmp_path, resize_interpolation="nearest", random_crop=False, flip_aug=False)
    plain = Pictures(tmp_path, random_crop=False, flip_aug=False)
    plan = area.plans()[0]
    record = area.records[plan.items[0].record]
    expected = prepare_image(load_image(record.path), area.crops[plan.items[0].record], "nearest", False)
    assert torch.equal(area.dataset()[plan].images[0], expected)
    assert not torch.equal(plain.dataset()[plan].images[0], expected)


def test_a_process_without_a_batch_repeats_the_last_one_with_weight_0(pictures):
    plans = pictures.plans(num_processes=4)
    shares = [for_process(plans, rank, 4) for rank in range(4)]
    short = shares[-1][-1]
    assert (len(plans) % 4, short.weight) != (0, 1.0)
    batch, real = pictures.dataset()[short], pictures.dataset()[plans[-1]]
    assert (batch.weight, real.weight) == (0.0, 1.0)
    assert torch.equal(batch.images, real.images)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_one_sentence_also_from_a_worker(pictures, num_workers):
    plan = pictures.plans()[0]
    path = pictures.records[plan.items[0].record].path
    path.write_bytes(b"broken")
    with pytest.raises(DatasetError) as caught:
        list(make_loader(pictures.dataset(), [plan], num_workers=num_workers))
    assert str(caught.value).startswith(f"{path} is damaged or not an image")
    assert "Traceback" not in str(caught.value)


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="the class below cannot be pickled")
def test_workers_have_one_thread(pictures):
    loader = make_loader(pictures.dataset(), pictures.plans(), num_workers=1)

    class CountThreads(type(loader.dataset)):
        def __getitem__(self, plan):
            return Made((torch.get_num_threads(), os.getpid()))

    loader.dataset.__class__ = CountThreads
    found = list(loader)
    assert {threads for threads, _ in found} == {1}
    assert os.getpid() not in {process for _, process in found}


@pytest.mark.parametrize("is_cached", [False, True])
def test_workers_start_after_opencv_had_threads(tmp_path, is_cached, monkeypatch):
    """Its threads are not there in a forked worker, which must not wait for them."""
    monkeypatch.setattr(loader_module, "_num_processors", lambda: 2)
    pictures = Pictures(tmp_path, random_crop=False)
    latents = pictures.filled_caches()[0] if is_cached else None
    for entry in latents.entries if latents else ():
        entry.path.unlink()  # so that workers decode
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 5)
    time.sleep(0.2)  # until its threads sleep
    loader = make_loader(pictures.dataset(latents=latents), pictures.plans(), num_workers=2)
    loader.timeout = 60  # an error instead of waiting forever
    made = list(loader)
    assert [batch.images is not None for batch in made] == [True] * len(pictures.plans())


def test_number_of_workers(pictures):
    latents, _ = pictures.filled_caches(to_disk=False)
    dataset = pictures.dataset()
    assert make_loader(dataset, []).num_workers == 0
    assert make_loader(dataset, [], num_workers=1).num_workers == 1
    assert make_loader(dataset, [], num_workers=10_000).num_workers <= (os.cpu_count() or 1)
    assert make_loader(pictures.dataset(latents=latents), [], num_workers=2).num_workers == 0
    on_disk, _ = pictures.filled_caches()
    assert make_loader(pictures.dataset(latents=on_disk), [], num_workers=1).num_workers == 1


def test_a_variant_is_drawn_each_time_and_the_encoders_read_one_text(pictures):
    _, texts = pictures.filled_caches(to_disk=False)
    dataset = pictures.dataset(texts=texts, variants=pictures.variants)
    seen = {}
    for plan in (plan for epoch in range(1, 13) for plan in pictures.plans(epoch)):
        batch = dataset[plan]
        assert batch.text["pooled"][:, 0].tolist() == [mark(caption) for caption in batch.captions]
        for item, caption in zip(plan.items, batch.captions, strict=True):
            seen.setdefault(item.record, set()).add(caption)
    assert all(seen[index] == {*pictures.variants[index], ""} for index in range(6))  # "": caption dropout


def test_augmentation_draws_differ_between_samples(tmp_path):
    """Twenty repeats of one picture in an epoch get many different crops and colours; again the same in another run."""
    pictures = Pictures(tmp_path, color_aug=True, flip_aug=False)
    pictures.records = [replace(pictures.records[0], repeats=20)]
    pictures.crops = pictures.crops[:1]
    first, again = (
        [image.numpy().tobytes() for plan in pictures.plans() for image in pictures.dataset()[plan].images]
        for _ in range(2)
    )
    assert first == again
    assert len(set(first)) > 8


class TestMasks:
    def test_each_sample_has_its_own_and_ones_where_there_is_none(self, tmp_path):
        pictures = Pictures(tmp_path, mixed=True, random_crop=False)
        dataset = pictures.dataset()
        kinds = set()
        for plan in pictures.plans():
            batch = dataset[plan]
            assert batch.masks.shape == (len(plan.items), 1, plan.size.height // 8, plan.size.width // 8)
            for item, image, mask in zip(plan.items, batch.images, batch.masks, strict=True):
                is_flipped = torch.equal(image, pictures.prepared(item.record, is_flipped=True).image)
                expected = pictures.prepared(item.record, is_flipped=is_flipped)
                assert torch.equal(image, expected.image)
                assert torch.equal(mask, torch.ones_like(mask) if expected.mask is None else expected.mask)
                kinds.add((expected.mask is None, is_flipped))
        assert len(kinds) == 4

    def test_cached_masks_are_the_live_ones(self, tmp_path):
        pictures = Pictures(tmp_path, mixed=True, random_crop=False)
        latents, _ = pictures.filled_caches()
        cached, live = pictures.dataset(latents=latents), pictures.dataset()
        for plan in pictures.plans():
            assert torch.equal(cached[plan].masks, live[plan].masks)

    def test_no_masks_where_the_run_has_none(self, pictures):
        assert all(pictures.dataset()[plan].masks is None for plan in pictures.plans())

    def test_output_is_preserved_where_the_subset_asks(self, tmp_path, pictures):
        mixed = Pictures(tmp_path, mixed=True)
        wanted = set()
        for plan in mixed.plans():
            expected = [item.record % 2 == 0 for item in plan.items]
            preserves = mixed.dataset()[plan].preserves_output
            assert (preserves is None and not any(expected)) or preserves.tolist() == expected
            wanted.update(expected)
        assert wanted == {True, False}
        assert all(pictures.dataset()[plan].preserves_output is None for plan in pictures.plans())


class TestDamagedCache:
    """A file of the latent cache goes bad after the start."""

    @pytest.fixture
    def broken(self, tmp_path):
        """(pictures, cached dataset, plan of the first batch, file of its second picture)"""
        pictures = Pictures(tmp_path, mixed=True, random_crop=False)
        latents, _ = pictures.filled_caches()
        plan = pictures.plans()[0]
        assert len(plan.items) == 2
        path = latents.entries[plan.items[1].record].path
        return pictures, pictures.dataset(latents=latents), plan, path

    @pytest.mark.parametrize("fault", ["gone", "damaged"])
    def test_the_whole_batch_is_decoded(self, broken, fault):
        pictures, cached, plan, path = broken
        damage(path, fault)
        assert_same(cached[plan], pictures.dataset()[plan])
        assert not path.exists()  # so that the next start makes it again
        others = [other for other in pictures.plans() if plan.items[1].record not in {i.record for i in other.items}]
        assert others and all(cached[other].images is None for other in others)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_each_file_is_said_once(self, broken, num_workers, caplog, monkeypatch):
        monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)
        monkeypatch.setattr(loader_module, "_num_processors", lambda: 2)
        pictures, cached, _, path = broken
        damage(path, "gone")
        plans = [plan for epoch in (1, 2, 3) for plan in pictures.plans(epoch)]
        made = list(make_loader(cached, plans, num_workers=num_workers))
        assert sum(batch.images is not None for batch in made) >= 3
        assert caplog.text.count(f"{path} cannot be read (it is gone)") == 1

    def test_text_states_that_are_gone_are_an_error_that_names_the_file(self, pictures):
        _, texts = pictures.filled_caches()
        dataset = pictures.dataset(texts=texts, variants=pictures.variants)
        for entry in texts.cache.entries:
            entry.path.unlink()
        with pytest.raises(DatasetError, match="_te.safetensors cannot be read"):
            list(make_loader(dataset, pictures.plans(), num_workers=1))


def damage(path, fault):
    if fault == "gone":
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    content[-20] ^= 255
    path.write_bytes(content)
