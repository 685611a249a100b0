"""Rules that every plan keeps, whatever the pictures."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from library.data.config.schema import parse_dataset_config
from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.loader import BatchDataset, make_loader
from library.data.plan.batches import count_steps, epoch_plan, for_process
from library.data.plan.buckets import crop_loss, fit_buckets, make_buckets, plan_crop
from library.data.plan.captions import CaptionRules, apply_caption_rules, cache_conflicts, fixed_caption
from library.data.plan.crops import random_crop
from library.data.plan.regularisation import balance_regularisation
from library.data.plan.validation import split_validation
from library.data.plan.variants import caption_variants, choose_caption
from library.errors import DatasetError
from library.records import CropPlan, ImageRecord, Size

lengths = st.integers(1, 5000)
sizes = st.builds(Size, lengths, lengths)
tags = st.text(st.sampled_from("ab ,;|{}\n"), max_size=20)


@st.composite
def data_sets(draw):
    """Records in up to three buckets of up to two datasets, their crops, and batch sizes."""
    buckets = [Size(64, 64), Size(64, 128), Size(128, 64)]
    records, crops = [], []
    for index in range(draw(st.integers(1, 12))):
        bucket = draw(st.sampled_from(buckets))
        repeats, dataset = draw(st.integers(1, 4)), draw(st.integers(0, 1))
        records.append(ImageRecord(Path("x"), str(index), "", bucket, repeats, dataset, 0))
        crops.append(CropPlan(bucket, 0, 0, bucket))
    return records, crops, [draw(st.integers(1, 5)), draw(st.integers(1, 5))]


@st.composite
def bucket_specs(draw):
    """Datasets with valid bucket settings, made by the dataset file's own rules."""
    step = draw(st.sampled_from([16, 32, 64]))
    width, height = draw(st.integers(step, 1024)), draw(st.integers(step, 1024))
    table = {
        "resolution": [width, height],
        "enable_bucket": True,
        "bucket_reso_steps": step,
        "min_bucket_reso": draw(st.integers(1, min(width, height))),
        "max_bucket_reso": draw(st.integers(max(width, height), 2048)),
        "bucket_no_upscale": draw(st.booleans()),
        "subsets": [{"image_dir": "x"}],
    }
    return parse_dataset_config({"datasets": [table]}, "property", {})[0]


@settings(max_examples=60)
@given(data_sets(), st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_every_record_is_used_as_often_as_it_repeats(data, seed, epoch, num_processes, accumulation):
    records, crops, batch_sizes = data
    plans = epoch_plan(records, crops, batch_sizes, seed, epoch, num_processes=num_processes, accumulation=accumulation)
    items = [item for plan in plans for item in plan.items]
    assert Counter(items) == Counter((i, r) for i, record in enumerate(records) for r in range(record.repeats))
    for plan in plans:
        assert {crops[item.record].bucket for item in plan.items} == {plan.size}
        assert len({records[item.record].dataset for item in plan.items}) == 1
        assert 1 <= len(plan.items) <= batch_sizes[records[plan.items[0].record].dataset]


@settings(max_examples=60)
@given(data_sets(), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_processes_share_the_plan_and_the_steps(data, num_processes, accumulation, epoch):
    records, crops, batch_sizes = data
    shared = {"num_processes": num_processes, "accumulation": accumulation}
    plans = epoch_plan(records, crops, batch_sizes, 1, epoch, **shared)
    count = count_steps(records, crops, batch_sizes, max_steps=100, **shared)
    shares = [for_process(plans, rank, num_processes) for rank in range(num_processes)]
    assert {len(share) for share in shares} == {count.batches_per_process}
    dealt = [plan for row in zip(*shares, strict=True) for plan in row]
    assert tuple(plan for plan in dealt if plan.weight) == plans
    assert [plan.index for plan in dealt] == list(range(len(dealt)))
    first = (epoch - 1) * count.steps_per_epoch
    for share in shares:
        assert [plan.step for plan in share] == [first + local // accumulation for local in range(len(share))]


@given(bucket_specs(), sizes, st.integers(0, 100))
def test_crops_lie_inside_the_resized_picture(spec, size, seed):
    try:
        plan = plan_crop(size, spec)
    except DatasetError:
        assert spec.bucket_no_upscale
        return
    if spec.bucket_no_upscale:
        assert plan.resized.width <= size.width
        assert plan.resized.height <= size.height
    else:
        assert plan.bucket in make_buckets(spec)
    assert all(side % spec.bucket_reso_steps == 0 and side > 0 for side in plan.bucket)
    for crop in (plan, random_crop(plan, random.Random(seed))):
        assert 0 <= crop.left <= crop.resized.width - crop.bucket.width
        assert 0 <= crop.top <= crop.resized.height - crop.bucket.height


@given(bucket_specs())
def test_buckets_keep_to_the_area_and_the_limits(spec):
    area = spec.resolution.width * spec.resolution.height
    for bucket in make_buckets(spec):
        assert bucket.width * bucket.height <= area
        assert max(bucket) <= spec.max_bucket_reso
        assert Size(bucket.height, bucket.width) in make_buckets(spec)


@given(sizes, st.integers(1, 60), st.integers(1, 60))
def test_without_buckets_every_picture_covers_the_resolution(size, width, height):
    resolution = Size(16 * width, 16 * height)
    plan = plan_crop(size, DatasetSpec(resolution=resolution))
    assert plan.bucket == resolution
    assert plan.resized.width == resolution.width or plan.resized.height == resolution.height
    assert plan.resized.width >= resolution.width
    assert plan.resized.height >= resolution.height


@given(
    tags,
    st.builds(
        CaptionRules,
        keep_tokens=st.integers(0, 4),
        keep_tokens_separator=st.sampled_from(["", "|"]),
        secondary_separator=st.sampled_from([None, ";"]),
        caption_prefix=st.sampled_from([None, "", "a b"]),
        caption_suffix=st.sampled_from([None, "c;d"]),
    ),
    st.integers(0, 5),
)
def test_captions_without_chance_equal_the_fixed_ones(caption, rules, seed):
    assert cache_conflicts(rules) == ()
    live = apply_caption_rules(caption, rules, draw=random.Random(seed), epoch=seed + 1, step=seed, max_steps=9)
    assert live == fixed_caption(caption, rules)


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8), st.integers(0, 4), st.integers(0, 100))
def test_shuffling_keeps_all_tags_and_the_first_ones_in_place(words, keep, seed):
    rules = CaptionRules(shuffle_caption=True, keep_tokens=keep)
    caption = apply_caption_rules(",".join(words), rules, draw=random.Random(seed), epoch=1, step=0, max_steps=1)
    shuffled = caption.split(", ")
    assert sorted(shuffled) == sorted(words)
    assert shuffled[:keep] == words[:keep]


@settings(max_examples=60)
@given(data_sets(), st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 3))
def test_the_plan_is_the_same_for_every_number_of_processes(data, seed, epoch, accumulation):
    records, crops, batch_sizes = data
    plans = []
    for num_processes in (1, 2, 4):
        plan = epoch_plan(
            records, crops, batch_sizes, seed, epoch, num_processes=num_processes, accumulation=accumulation
        )
        shares = [for_process(plan, rank, num_processes) for rank in range(num_processes)]
        dealt = [batch for row in zip(*shares, strict=True) for batch in row if batch.weight]
        plans.append([(batch.index, batch.size, batch.items) for batch in dealt])
    assert plans[0] == plans[1] == plans[2]


@st.composite
def split_data(draw):
    """Records with distinct file names in one or two datasets of two subsets, and the datasets."""
    shares = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
    specs = [
        DatasetSpec(
            resolution=Size(64, 64),
            validation_seed=draw(st.sampled_from([None, 0, 1, 2])),
            subsets=tuple(SubsetSpec(image_dir=Path("x"), validation_split=draw(shares)) for _ in range(2)),
        )
        for _ in range(2)
    ]
    files = draw(st.lists(st.integers(0, 30), min_size=1, max_size=25))
    places = st.tuples(st.integers(0, 1), st.integers(0, 1), st.booleans())
    records = [
        ImageRecord(Path("x") / f"{file}.png", f"{number}", "", Size(64, 64), 2, dataset, subset, is_reg=is_reg)
        for number, file in enumerate(files)
        for dataset, subset, is_reg in [draw(places)]
    ]
    return records, specs


@settings(max_examples=60)
@given(split_data())
def test_no_picture_is_in_both_training_and_validation(data):
    records, specs = data
    split = split_validation(records, specs)
    held_out = {record.path for record in split.validation}
    assert not held_out & {record.path for record in split.training}
    assert held_out | {record.path for record in split.training} == {record.path for record in records}
    assert all(record.repeats == 1 and not record.is_reg for record in split.validation)
    assert [r for r in records if r.path not in held_out] == list(split.training)
    for record in records:
        share = specs[record.dataset].subsets[record.subset].validation_split
        assert share < 1 or record.is_reg or record.path in held_out


@settings(max_examples=60)
@given(split_data(), st.data())
def test_adding_a_picture_moves_no_other(data, draw):
    records, specs = data
    names = sorted({record.path for record in records})
    removed = draw.draw(st.sampled_from(names))
    rest = [record for record in records if record.path != removed]
    whole, part = split_validation(records, specs), split_validation(rest, specs)
    assert part.training == tuple(record for record in whole.training if record.path != removed)
    assert part.validation == tuple(record for record in whole.validation if record.path != removed)


@given(data_sets(), st.data())
def test_regularisation_pictures_occur_as_often_as_training_pictures(data, draw):
    records = [replace(record, is_reg=draw.draw(st.booleans())) for record in data[0]]
    balanced = balance_regularisation(records, weight=0.5).records
    for dataset in {record.dataset for record in records}:
        wanted = sum(r.repeats for r in records if r.dataset == dataset and not r.is_reg)
        regular = [r for r in balanced if r.dataset == dataset and r.is_reg]
        given = [r for r in records if r.dataset == dataset and r.is_reg]
        assert [r.key for r in regular] == [r.key for r in given[: len(regular)]]
        number = sum(r.repeats for r in regular)
        if given:
            assert wanted <= number < wanted + max(r.repeats for r in given)
        added = [new.repeats - old.repeats for new, old in zip(regular, given, strict=False)]
        assert sorted(added, reverse=True) == added and (not added or added[0] - added[-1] <= 1)
    assert [r for r in balanced if not r.is_reg] == [r for r in records if not r.is_reg]


@given(bucket_specs(), st.lists(sizes, max_size=12), st.data())
def test_every_picture_is_kept_faulty_or_left_out(spec, found, draw):
    filters = {
        "min_image_size": draw.draw(st.sampled_from([0, 64, 512])),
        "max_aspect_ratio": draw.draw(st.sampled_from([None, 2.0])),
        "max_crop_fraction": draw.draw(st.sampled_from([None, 0.1])),
    }
    spec = replace(spec, subsets=(replace(spec.subsets[0], **filters),))
    records = [ImageRecord(Path(f"{i}.png"), str(i), "", size, 1, 0, 0) for i, size in enumerate(found)]
    fit = fit_buckets(records, [spec])
    others = [fault.path for fault in (*fit.findings.faults, *fit.findings.left_out)]
    assert sorted([*others, *(record.path for record in fit.records)]) == sorted(record.path for record in records)
    for record, crop in zip(fit.records, fit.crops, strict=True):
        assert crop == plan_crop(record.size, spec)
        assert 0 <= crop_loss(crop) <= (filters["max_crop_fraction"] or 1)
        assert min(record.size) >= filters["min_image_size"]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(1, 12),
)
def test_variants_keep_the_first_tags_and_hold_no_others(words, keep, shuffle, dropout, number):
    rules = CaptionRules(
        shuffle_caption=shuffle, keep_tokens=keep, caption_tag_dropout_rate=dropout, caption_dropout_rate=0.5
    )
    record = ImageRecord(Path("x/a.png"), "x/a.png", ", ".join(words), Size(64, 64), 1, 0, 0)
    variants = caption_variants(record, SubsetSpec(image_dir=Path("x"), captions=rules), number)
    assert len(variants) == (number if len(set(variants)) > 1 else 1)
    for text in variants:
        tags = [tag for tag in text.split(", ") if tag]
        assert tags[:keep] == words[:keep]
        assert not Counter(tags) - Counter(words)
        if dropout == 0:
            assert sorted(tags) == sorted(words)
        if not shuffle:
            remaining = iter(words)
            assert all(tag in remaining for tag in tags)


@settings(max_examples=60)
@given(tags, st.integers(1, 8), st.integers(0, 5), st.integers(1, 9))
def test_variants_depend_on_name_caption_rules_and_number_only(caption, number, seed, epoch):
    rules = CaptionRules(shuffle_caption=True, enable_wildcard=True)
    record = ImageRecord(Path("x/a.png"), "x/a.png", caption, Size(64, 64), 1, 0, 0)
    other = ImageRecord(Path("y/a.png"), "1.0/y/a.png", caption, Size(9, 9), 5, 1, 2, 0.5, Path("m.png"), True)
    variants = caption_variants(record, SubsetSpec(image_dir=Path("x"), captions=rules), number)
    lasting = SubsetSpec(image_dir=Path("y"), captions=replace(rules, caption_dropout_rate=0.5), num_repeats=5)
    assert caption_variants(other, lasting, number) == variants
    assert choose_caption(variants, rules, draw=random.Random(seed), epoch=epoch) in variants


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_any_number_of_workers_and_processes_sees_every_sample_once(tmp_path, num_processes):
    specs = [DatasetSpec(resolution=Size(64, 64), batch_size=2, subsets=(SubsetSpec(image_dir=tmp_path),))]
    records = [ImageRecord(tmp_path / f"{i}.png", f"x/{i}.png", "", Size(64, 64), 1 + i % 3, 0, 0) for i in range(7)]
    for record in records:
        Image.new("RGB", record.size).save(record.path)
    crops = fit_buckets(records, specs).crops
    plans = epoch_plan(records, crops, [2], 5, 3, num_processes=num_processes)
    for num_workers in (0, 1, 2):
        seen: Counter[str] = Counter()
        for rank in range(num_processes):
            dataset = BatchDataset(records, crops, specs, seed=5, max_steps=1)
            mine = for_process(plans, rank, num_processes)
            batches = list(make_loader(dataset, mine, num_workers=num_workers))
            assert [batch.plan for batch in batches] == list(mine)
            seen.update(name for batch in batches if batch.weight for name in batch.sample_ids)
        assert seen == Counter(f"x/{i}.png#{repeat}" for i in range(7) for repeat in range(1 + i % 3))
