"""The report on a run's data: every number of it, and its words."""

from dataclasses import replace
from pathlib import Path

import pytest

from library.data.cache import latent_entries
from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.findings import Fault, Findings
from library.data.plan.batches import count_steps
from library.data.plan.captions import CaptionRules
from library.data.report.cache_size import ENTRY_OVERHEAD, free_space, free_spaces, latent_size
from library.data.report.report import BucketReport, CacheReport, crop_loss, enlargement, group_by_reason, make_report
from library.data.report.report_text import bytes_in_words, describe, table
from library.records import CropPlan, ImageRecord, Size

SQUARE, WIDE = Size(64, 64), Size(96, 48)
UNCUT = CropPlan(SQUARE, 0, 0, SQUARE)
HALVED = CropPlan(Size(128, 64), 32, 0, SQUARE)  # half of the picture is cut away
FOLDER = Path("data/dogs")


def picture(name, *, caption="a dog", size=SQUARE, repeats=1, subset=0, dataset=0, **fields):
    folder = FOLDER if subset == 0 else Path("data/reg")
    return ImageRecord(folder / name, f"{folder.name}/{name}", caption, size, repeats, dataset, subset, **fields)


SPECS = (
    DatasetSpec(
        resolution=SQUARE,
        batch_size=4,
        subsets=(
            SubsetSpec(image_dir=FOLDER, num_repeats=10, class_tokens="sks dog", captions=CaptionRules()),
            SubsetSpec(image_dir=Path("data/reg"), is_reg=True),
        ),
    ),
)
RECORDS = (
    picture("a.png", repeats=10),
    picture("b.png", repeats=10, caption="sks dog", size=Size(256, 128)),
    picture("c.png", repeats=10, caption="", size=Size(16, 16), mask=Path("masks/c.png")),
    picture("r.png", repeats=3, subset=1, is_reg=True),
    picture("v.png"),  # for validation
)
CROPS = (UNCUT, HALVED, UNCUT, CropPlan(WIDE, 0, 0, WIDE), UNCUT)
FINDINGS = Findings(
    faults=(
        Fault(FOLDER / "x.png", "is not an image (starts with '<html')"),
        Fault(FOLDER / "y.png", "is not an image (starts with 'oops')"),
        Fault(FOLDER / "z.txt", "has no text; write a caption into it or delete it", FOLDER / "z.png"),
    ),
    left_out=(Fault(FOLDER / "tiny.png", "has a side of 12 pixels, below min_image_size 64"),),
    notes=("a note",),
    remarks=("a remark",),
)
FILES = {
    (0, 0): {*(FOLDER / f"{name}.png" for name in ("a", "b", "c", "v", "x", "y", "z", "tiny"))},
    (0, 1): {Path("data/reg/r.png")},
}


def make(**changes):
    steps = count_steps(RECORDS[:4], CROPS[:4], [4], num_processes=1, accumulation=1, max_steps=20)
    values = {
        "source": "dogs.toml",
        "specs": SPECS,
        "records": RECORDS,
        "crops": CROPS,
        "num_training": 4,
        "findings": FINDINGS,
        "files": FILES,
        "steps": steps,
    }
    return make_report(**{**values, **changes})


def test_subsets_are_counted():
    dogs, reg = make().subsets
    assert (dogs.place, dogs.source, dogs.pictures, dogs.validation, dogs.samples) == ("1.1", str(FOLDER), 4, 1, 30)
    assert dogs.captions == {"file": 2, "class_tokens": 1, "empty": 1}
    assert (dogs.repeats, dogs.masks, dogs.skipped, dogs.is_reg) == ((10, 10), 1, 4, False)
    assert (reg.place, reg.pictures, reg.samples, reg.repeats, reg.skipped, reg.is_reg) == (
        "1.2",
        1,
        3,
        (3, 3),
        0,
        True,
    )


def test_buckets_count_training_pictures_only():
    assert make().buckets == (BucketReport(1, SQUARE, 3, 30, 8), BucketReport(1, WIDE, 1, 3, 1))


def test_what_is_not_used_is_grouped_by_its_reason():
    broken, empty, small = group_by_reason(FINDINGS)
    assert (broken.reason, broken.is_fault) == ("is not an image ...", True)
    assert broken.lines == tuple(str(fault) for fault in FINDINGS.faults[:2])
    assert (empty.lines, empty.is_fault) == ((str(FOLDER / "z.txt"),), True)
    assert (small.is_fault, small.reason) == (False, "has a side of 12 pixels, below min_image_size 64")


def test_crops_and_enlargement():
    crops = make().crops
    assert crop_loss(HALVED) == 0.5 and crop_loss(UNCUT) == 0
    assert enlargement(RECORDS[2], UNCUT) == 4
    assert crops.mean_loss == pytest.approx(0.1)
    assert (crops.num_much_cut, crops.worst) == (1, ((FOLDER / "b.png", 0.5),))
    assert (crops.num_enlarged, crops.num_much_enlarged) == (2, 1)  # the regularisation picture is a little enlarged
    assert crops.most_enlarged == ((FOLDER / "c.png", 4.0),)


def test_lengths_count_pictures_with_a_caption_that_is_too_long():
    texts = (("x", "y"), ("z",), ("",), ("r",), ("v",))
    t5xxl = ([5, 20, 17, 2, 4, 4], 16)
    report = make(texts=texts, counts={"clip_l": ([5, 80, 77, 2, 4, 4], 77), "t5xxl": t5xxl})
    length, _ = report.lengths
    assert (length.limit, length.longest, length.median, length.num_cut) == (77, 80, 4.5, 1)
    assert length.longest_of == FOLDER / "a.png"
    assert report.num_captions_cut == 2  # for T5 that of b.png too


def test_a_picture_that_one_dataset_uses_and_another_leaves_out_is_unused_in_the_other_only():
    specs = (*SPECS, DatasetSpec(resolution=SQUARE, subsets=(SubsetSpec(image_dir=FOLDER),)))
    files = {**FILES, (1, 0): {FOLDER / "a.png", FOLDER / "b.png"}}
    findings = Findings(left_out=(Fault(FOLDER / "b.png", "is too small"),))
    records, crops = (*RECORDS, picture("a.png", dataset=1)), (*CROPS, UNCUT)
    subsets = make(specs=specs, records=records, crops=crops, findings=findings, files=files).subsets
    assert {subset.place: subset.skipped for subset in subsets} == {"1.1": 0, "1.2": 0, "2.1": 1}


def test_latents_take_the_bytes_of_their_numbers(tmp_path):
    subset = SubsetSpec(image_dir=tmp_path, flip_aug=True, alpha_mask=True)
    pixelated = replace(subset, resize_interpolation="nearest")
    specs = (DatasetSpec(resolution=SQUARE, subsets=(subset, subset, pixelated)),)
    records = [
        ImageRecord(path, path.name, "a dog", SQUARE, 1, 0, number)
        for path, number in ((tmp_path / "a.png", 0), (tmp_path / "b.png", 0), (tmp_path / "a.png", 1))
    ]
    records.append(replace(records[0], subset=2))  # the one before shares the first one's entry, this one does not
    for record in records:
        record.path.touch()
    entries = latent_entries(records, [UNCUT] * 4, specs, family="sd3", identity="", to_disk=True)
    size = latent_size(entries, channels=16, cells=8, element_bytes=2)
    assert size == (3, 3 * (2 * 16 * 8 * 8 * 2 + 8 * 8 * 2 + ENTRY_OVERHEAD))


def test_free_space_is_told_of_folders_that_are_not_there_yet(tmp_path):
    assert free_space(tmp_path / "not" / "yet") > 0
    assert list(free_spaces([tmp_path / "a", tmp_path / "b"])) == [tmp_path / "a"]  # one disk is told once


def test_the_words_have_every_part():
    caches = [CacheReport("latents", 5, 5_000_000, True)]
    counts = {"clip_l": ([5, 80, 2, 4, 4], 77)}
    texts = (("x",), ("z",), ("",), ("r",), ("v",))
    report = make(texts=texts, counts=counts, caches=caches, cache_folders={FOLDER: 1_000_000})
    lines = describe(report)
    text = "\n".join(lines)
    for part in (
        "plan of dogs.toml",
        "2 files, 1 class_tokens, 1 empty",
        "data/reg (regularisation)",
        "NOT USED: 4 files",
        "  2: is not an image",
        f"     {FOLDER / 'tiny.png'}",
        "64x64",
        "10.0% of the area is cut away",
        f"50%  {FOLDER / 'b.png'}",
        f"4.0 x  {FOLDER / 'c.png'}",
        "b.png",
        "9 batches of 4",
        "1 picture kept for validation",
        "5 MB  on disk",
        "THE DISK IS TOO SMALL",
        "a note",
        "a remark",
    ):
        assert part in text, part
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(("number", "words"), [(0, None), (1, "1 picture was never"), (12, "12 pictures were never")])
def test_pictures_that_may_be_damaged_inside_are_told(number, words):
    text = "\n".join(describe(replace(make(), num_never_decoded=number)))
    assert words in text if words else "decoded" not in text


def test_nothing_to_train_is_told_without_numbers():
    findings = Findings(problems=("image_dir data/dogs does not exist",))
    report = make(records=(), crops=(), num_training=0, steps=None, findings=findings)
    text = "\n".join(describe(report))
    assert "1 PROBLEM\n  image_dir data/dogs does not exist" in text
    assert "STEPS" not in text and "BUCKETS" not in text


def test_many_pictures_of_one_reason_are_shortened():
    faults = tuple(Fault(Path(f"{number}.png"), "is empty") for number in range(25))
    text = "\n".join(describe(make(findings=Findings(faults=faults))))
    assert "25: is empty" in text and "and 15 more" in text and "24.png" not in text


def test_tables_align_numbers_at_the_right():
    assert table(["name", "number"], [["a", 5], ["long", 1234]]) == [
        "  name  number",
        "  a          5",
        "  long    1234",
    ]


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1_048_576, "1.05 MB"), (4.2e9, "4.2 GB"), (123e9, "123 GB")],
)
def test_bytes_in_words(number, words):
    assert bytes_in_words(int(number)) == words
