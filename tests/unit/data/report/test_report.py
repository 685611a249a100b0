"""The report on a run's data: every number of it, and its words."""

from pathlib import Path

import pytest

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


def make(**changes):
    steps = count_steps(RECORDS[:4], CROPS[:4], [4], num_processes=1, accumulation=1, max_steps=20)
    values = {
        "source": "dogs.toml",
        "specs": SPECS,
        "records": RECORDS,
        "crops": CROPS,
        "num_training": 4,
        "findings": FINDINGS,
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
    report = make(texts=texts, counts={"clip_l": ([5, 80, 77, 2, 4, 4], 77)})
    (length,) = report.lengths
    assert (length.limit, length.longest, length.median, length.num_cut) == (77, 80, 4.5, 1)
    assert length.longest_of == FOLDER / "a.png"


def test_latents_take_the_bytes_of_their_numbers():
    subset = SubsetSpec(image_dir=FOLDER, flip_aug=True, alpha_mask=True)
    specs = (DatasetSpec(resolution=SQUARE, subsets=(subset,)),)
    records = [picture("a.png"), picture("b.png"), picture("a.png")]  # the last one shares the first one's entry
    size = latent_size(records, [UNCUT] * 3, specs, channels=16, cells=8, element_bytes=2)
    assert size == (2, 2 * (2 * 16 * 8 * 8 * 2 + 8 * 8 * 2 + ENTRY_OVERHEAD))


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
