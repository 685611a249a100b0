"""Rules that every plan keeps, whatever the pictures."""

import random
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from library.data.batches import count_steps, epoch_plan, for_process
from library.data.buckets import make_buckets, plan_crop
from library.data.captions import CaptionRules, apply_caption_rules, cache_conflicts, fixed_caption
from library.data.crops import random_crop
from library.data.schema import parse_dataset_config
from library.data.specs import DatasetSpec
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


@settings(deadline=None, max_examples=60)
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


@settings(deadline=None, max_examples=60)
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


@settings(deadline=None)
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


@settings(deadline=None)
@given(bucket_specs())
def test_buckets_keep_to_the_area_and_the_limits(spec):
    area = spec.resolution.width * spec.resolution.height
    for bucket in make_buckets(spec):
        assert bucket.width * bucket.height <= area
        assert max(bucket) <= spec.max_bucket_reso
        assert Size(bucket.height, bucket.width) in make_buckets(spec)


@settings(deadline=None)
@given(sizes, st.integers(1, 60), st.integers(1, 60))
def test_without_buckets_every_picture_covers_the_resolution(size, width, height):
    resolution = Size(16 * width, 16 * height)
    plan = plan_crop(size, DatasetSpec(resolution=resolution))
    assert plan.bucket == resolution
    assert plan.resized.width == resolution.width or plan.resized.height == resolution.height
    assert plan.resized.width >= resolution.width
    assert plan.resized.height >= resolution.height


@settings(deadline=None)
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


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8), st.integers(0, 4), st.integers(0, 100))
def test_shuffling_keeps_all_tags_and_the_first_ones_in_place(words, keep, seed):
    rules = CaptionRules(shuffle_caption=True, keep_tokens=keep)
    caption = apply_caption_rules(",".join(words), rules, draw=random.Random(seed), epoch=1, step=0, max_steps=1)
    shuffled = caption.split(", ")
    assert sorted(shuffled) == sorted(words)
    assert shuffled[:keep] == words[:keep]
