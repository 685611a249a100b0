"""Buckets, captions, regularisation and step counts equal the reference values; see data/SOURCES.d/data_planning.md."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from library.data.config.schema import parse_dataset_config
from library.data.plan.batches import count_steps, epoch_plan, for_process
from library.data.plan.buckets import make_buckets, mean_aspect_error, plan_crop
from library.data.plan.captions import CaptionRules, apply_caption_rules
from library.data.plan.regularisation import balance_regularisation
from library.errors import DatasetError
from library.records import CropPlan, ImageRecord, Size

DATA = Path(__file__).parent / "data"
BUCKETS = json.loads((DATA / "buckets.json").read_text(encoding="utf-8"))
CAPTIONS = json.loads((DATA / "captions.json").read_text(encoding="utf-8"))
BATCHES = json.loads((DATA / "batches.json").read_text(encoding="utf-8"))


def read_spec(case, enable_bucket=True):
    """A dataset with the bucket settings of a golden case, through the dataset file's own checks."""
    table = {
        "resolution": case["resolution"],
        "enable_bucket": enable_bucket,
        "subsets": [{"image_dir": "pictures"}],
        "batch_size": case.get("batch_size", 1),
    }
    if enable_bucket:
        table |= {name: case[name] for name in ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps")}
        table["bucket_no_upscale"] = case["no_upscale"]
    return parse_dataset_config({"datasets": [table]}, "golden", {}, bucket_multiple=8)[0]


@pytest.mark.parametrize("index", range(len(BUCKETS["configs"])))
def test_buckets_and_centre_crops(index):
    case = BUCKETS["configs"][index]
    spec = read_spec(case)
    if not case["no_upscale"]:
        assert (spec.min_bucket_reso, spec.max_bucket_reso) == (case["adjusted_min"], case["adjusted_max"])
        assert [list(size) for size in make_buckets(spec)] == case["predefined_buckets"]
    num_errors = 0
    for image, *row in case["images"]:
        if isinstance(row[0], dict):
            num_errors += 1
            with pytest.raises(DatasetError, match="becomes shorter than bucket_reso_steps"):
                plan_crop(Size(*image), spec)
            continue
        bucket, resized, ratio_error, _, trim, *_ = row
        plan = plan_crop(Size(*image), spec)
        assert (list(plan.bucket), list(plan.resized), [plan.left, plan.top]) == (bucket, resized, trim), image
        assert plan.bucket.width / plan.bucket.height - image[0] / image[1] == pytest.approx(ratio_error, abs=1e-12)
    assert num_errors == (1 if case["no_upscale"] else 0)


@pytest.mark.parametrize("case", BUCKETS["bucketing_disabled"], ids=lambda case: str(case["resolution"]))
def test_one_size_without_bucketing(case):
    spec = read_spec(case, enable_bucket=False)
    for image, bucket, resized in case["images"]:
        plan = plan_crop(Size(*image), spec)
        assert (list(plan.bucket), list(plan.resized)) == (bucket, resized)


def apply(case, draw=None):
    rules = CaptionRules(**case["options"])
    return apply_caption_rules(
        case["caption"],
        rules,
        draw=draw or random.Random(0),
        epoch=case.get("epoch", 1),
        step=case.get("step", 0),
        max_steps=case.get("max_steps", 0),
        replacements=case.get("repl"),
    )


def expected(case, text):
    """The reference text; but here every line has prefix and suffix, not the first and the last one only."""
    prefix, suffix = (case["options"].get(name) for name in ("caption_prefix", "caption_suffix"))
    if "\n" in case["caption"] and prefix and not text.startswith(prefix):
        text = f"{prefix} {text}"
    if "\n" in case["caption"] and suffix and not text.endswith(suffix):
        text = f"{text} {suffix}"
    return text


def test_captions_without_chance():
    for case in CAPTIONS["deterministic"]:
        assert apply(case) == expected(case, case["output"]), case
    assert len(CAPTIONS["deterministic"]) > 150


@pytest.mark.parametrize("case", CAPTIONS["shuffle_invariants"], ids=lambda case: str(case["options"]))
def test_shuffled_captions(case):
    head, tail = case["fixed_head"], case["fixed_tail"]
    seen = set()
    for seed in range(30):
        caption = apply(case, random.Random(seed))
        tags = caption.split(case["joined_with"])
        seen.add(caption)
        assert tags[: len(head)] == head
        assert tags[len(tags) - len(tail) :] == tail
        assert sorted(tags[len(head) : len(tags) - len(tail)]) == case["shuffled_multiset"]
    assert len(seen) >= case["distinct_outputs_seen_at_least"]


@pytest.mark.parametrize("case", CAPTIONS["wildcard_outcomes"], ids=lambda case: case["caption"])
def test_wildcards(case):
    draw = random.Random(1)
    counts = Counter(apply(case, draw) for _ in range(4000))
    assert sorted(counts) == sorted(expected(case, text) for text in case["possible_outputs"])
    for text, frequency in case["frequency"].items():
        assert counts[expected(case, text)] / 4000 == pytest.approx(frequency, abs=0.05)


@pytest.mark.parametrize("case", CAPTIONS["tag_dropout_statistics"], ids=lambda case: str(case["options"]))
def test_tag_dropout(case):
    draw = random.Random(2)
    num_head, total = len(case["fixed_head"]), 0
    for _ in range(3000):
        tags = apply(case, draw).split(", ")
        assert tags[:num_head] == case["fixed_head"]
        remaining = iter(case["flexible"])
        assert all(tag in remaining for tag in tags[num_head:]), "order of tags changed"
        total += len(tags) - num_head
    assert total / 3000 == pytest.approx(case["mean_kept_flexible"], abs=0.1)


@pytest.mark.parametrize("case", CAPTIONS["caption_dropout_statistics"], ids=lambda case: str(case["options"]))
def test_caption_dropout(case):
    draw = random.Random(3)
    empty = sum(apply(case, draw) == "" for _ in range(3000))
    assert empty / 3000 == pytest.approx(case["fraction_empty"], abs=0.03)


@pytest.mark.parametrize("index", range(len(BATCHES["cases"])))
def test_batch_and_step_counts(index):
    case = BATCHES["cases"][index]
    spec = read_spec(case)
    records = [
        ImageRecord(Path("x"), f"{group}/{number}", "", Size(*entry["image_wh"]), entry["repeats"], 0, 0)
        for group, entry in enumerate(case["images"])
        for number in range(entry["count"])
    ]
    crops = [plan_crop(record.size, spec) for record in records]
    counts = Counter()
    for record, crop in zip(records, crops, strict=True):
        counts[crop.bucket] += record.repeats
    assert sorted([list(size), count] for size, count in counts.items()) == sorted(case["bucket_counts"])
    assert mean_aspect_error(records, crops) == pytest.approx(case["mean_ar_error"], rel=1e-6)
    for run in case["runs"]:
        check_run(records, crops, spec.batch_size, run, case["batches_per_epoch"])


def check_run(records, crops, batch_size, run, batches_per_epoch):
    shared = {"num_processes": run["num_processes"], "accumulation": run["gradient_accumulation_steps"]}
    for epochs, max_steps in run["max_train_steps_for_epochs"].items():
        steps = count_steps(records, crops, [batch_size], max_steps=1600, max_epochs=int(epochs), **shared)
        assert steps.batches_per_epoch == batches_per_epoch
        assert steps.batches_per_process == run["batches_per_process"]
        assert steps.steps_per_epoch == run["optimizer_steps_per_epoch"]
        assert (steps.epochs, steps.max_steps) == (int(epochs), max_steps)
    for max_steps, epochs in run["num_epochs_for_max_steps"].items():
        assert count_steps(records, crops, [batch_size], max_steps=int(max_steps), **shared).epochs == epochs
    plans = epoch_plan(records, crops, [batch_size], 7, 2, **shared)
    assert len(plans) == batches_per_epoch
    assert len({plan.step for plan in plans}) == run["optimizer_steps_per_epoch"]
    assert min(plan.step for plan in plans) == run["optimizer_steps_per_epoch"]  # the second epoch goes on
    mine = for_process(plans, run["num_processes"] - 1, run["num_processes"])
    assert len(mine) == run["batches_per_process"]


@pytest.mark.parametrize(
    "case", BATCHES["regularization"], ids=lambda case: f"{case['reg_images']} for {case['train_images']}"
)
def test_regularisation_pictures_match_the_training_pictures(case):
    groups = (("train", False), ("reg", True))
    records = [
        ImageRecord(
            Path(f"{name}{number}.png"),
            f"{name}/{number}",
            "",
            Size(64, 64),
            case[f"{name}_repeats"],
            0,
            0,
            is_reg=is_reg,
        )
        for name, is_reg in groups
        for number in range(case[f"{name}_images"])
    ]
    balanced = balance_regularisation(records, weight=0.5).records
    regular = [record for record in balanced if record.is_reg]
    assert len(regular) == case["used_reg_images"]
    assert sorted((record.repeats for record in regular), reverse=True) == case["reg_repeats_after_sorted"]
    assert sum(record.repeats for record in balanced if not record.is_reg) == case["num_train_images"]
    assert {record.loss_weight for record in regular} == {0.5}
    crops = [CropPlan(record.size, 0, 0, record.size) for record in balanced]
    plans = epoch_plan(balanced, crops, [case["batch_size"]], 0, 1)
    assert len(plans) == case["batches_per_epoch"]
