"""Failure catalogue, section A: pictures and folders. Each row has a test that starts with its number.

Rows of BAD are refused: exit code 2, one error that names every bad file and a way out, before weights are read, and
no file is touched. With --on_bad_file=skip the rest trains, the count is exact. The other rows are odd but good: what
reaches the training loop is looked at.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bad_corpus
import numpy as np
import pytest
from bad_corpus import FIRST_FRAME, GREY_20000, INK_GREY, quarters, write

from library.records import Size

ADVICE = re.compile(
    r"; (replace|fetch|make|rename|raise|remove|add|give|put|install|repair|keep)|\. (Repair|Name)|set "
)
LATENTS = "--cache_latents_to_disk"
TEXTS = "--cache_text_encoder_outputs_to_disk"
UNET_ONLY = "--network_train_unet_only"
EPOCH = "--max_train_epochs=1"
SKIP = "--on_bad_file=skip"
TOKENS = {"class_tokens": "a picture"}  # so that no caption files are needed
GOOD = ("good1.png", "good2.png")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_folder(training, *names: str, to: str = "pictures") -> Path:
    """A folder with two good pictures and these files of the corpus."""
    folder = training.folder / to
    write(folder, *names)
    for number, name in enumerate(GOOD):
        (folder / name).write_bytes(bad_corpus.plain((60 * number, 120, 200)))
    return folder


def seen_pixels(run: Any, name: str) -> np.ndarray:
    """What the loop got of a picture, as 8-bit RGB. Shape [height, width, 3]."""
    records = run.trainer.plan.records
    for batch in run.batches:
        for row, item in enumerate(batch.plan.items):
            if records[item.record].path.name == name:
                return np.rint((batch.images[row].permute(1, 2, 0).numpy() + 1) * 127.5).astype(int)
    raise AssertionError(f"{name} was not trained")


def record_of(run: Any, name: str) -> Any:
    (record,) = [record for record in run.trainer.plan.records if record.path.name == name]
    return record


def logged(run: Any, text: str) -> str:
    """The one line of the log that holds a text."""
    (line,) = {line for line in run.log if text in line}
    return line


def assert_differs_by(pixels: np.ndarray, expected: Any, most: float) -> None:
    assert np.abs(pixels - np.asarray(expected, int)).max() <= most


# What is refused


@dataclass(frozen=True)
class Bad:
    """Files of the corpus that cannot be used.

    Attributes:
        files: All of them must be named.
        words: What the error says of them.
        keys: Of the dataset file.
    """

    files: tuple[str, ...]
    words: tuple[str, ...]
    keys: Mapping[str, Any] = field(default_factory=dict)


BAD = {
    "A1 cut off": Bad(
        ("trunc.jpg", "trunc.png", "trunc.webp", "trunc.gif", "trunc.bmp", "trunc.tif"), ("is cut off", "replace")
    ),
    "A1 broken inside": Bad(("broken_inside.png", "broken_too.png"), ("cannot be decoded", "epair")),
    "A2": Bad(
        ("zero.png", "html.jpg", "text.png", "lfs.png"),
        ("is empty (0 bytes)", "is not an image (it starts with '<!DOCTYPE')", "damaged or not an image", "Git LFS"),
    ),
    "A11": Bad(
        ("20000x10000.png",), ("200,000,000 pixels", "max_image_pixels", "make it smaller"), {"max_image_pixels": 10**8}
    ),
    "A13": Bad(
        ("40x400.png",), ("min_image_size", "bucket_no_upscale"), {"bucket_no_upscale": True, "bucket_reso_steps": 64}
    ),
    "A14 no_upscale": Bad(("30000x40.png",), ("max_aspect_ratio",), {"bucket_no_upscale": True}),
    "A15": Bad(("lying.webp",), ("cannot be read as an image",)),
}


def bad_folder(training, case: Bad) -> Path:
    folder = make_folder(training, *(name for name in case.files if name != "broken_too.png"))
    if "broken_too.png" in case.files:
        shutil.copy(folder / "broken_inside.png", folder / "broken_too.png")
    return folder


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_pictures_are_all_named_before_weights_are_read(case, training, refused):
    folder = bad_folder(training, case)
    before = contents(folder)
    ended = refused(training.dataset(folder, **TOKENS, **case.keys), EPOCH)
    assert ended.code == 2 and not ended.has_read_weights, ended.shown
    assert all(str(folder / name) in ended.error for name in case.files)
    assert all(word in ended.error for word in case.words), ended.error
    lines = [line for line in ended.error.splitlines() if str(folder) in line]
    assert len(lines) == len(case.files) and all(ADVICE.search(line) for line in lines)
    assert f"{len(lines)} problems" in ended.error or len(lines) == 1
    assert not any(name in ended.error for name in GOOD)
    assert contents(folder) == before


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_the_rest_trains_with_skip(case, training):
    folder = bad_folder(training, case)
    before = contents(folder)
    dataset = training.dataset(folder, num_repeats=3, **TOKENS, **case.keys)
    run = training.run(dataset, EPOCH, SKIP)
    assert run.seen == sorted(GOOD * 3)
    assert run.trainer.plan.steps.max_steps == len(run.losses) == 3
    told = logged(run, "left out, as --on_bad_file says")
    assert f"{len(case.files)} picture" in told and "cannot be used" in told and "; 2 are used" in told
    assert all(str(folder / name) in told for name in case.files)
    assert contents(folder) == before


def test_a1_bad_pictures_are_moved_by_quarantine(training):
    folder = make_folder(training, "zero.png", "trunc.jpg", "broken_inside.png")
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text(path.stem, encoding="utf-8")
    before = contents(folder)
    dataset = training.dataset(folder)
    run = training.run(dataset, EPOCH, "--on_bad_file=quarantine")
    assert run.seen == sorted(GOOD)
    moved = {f"{stem}{suffix}" for stem, suffix in (("zero", ".png"), ("trunc", ".jpg"), ("broken_inside", ".png"))}
    moved |= {f"{Path(name).stem}.txt" for name in moved}
    expected = {str(Path(".quarantine") / name) if name in moved else name: data for name, data in before.items()}
    assert contents(folder) == expected
    assert "6 files" in logged(run, "moved ")
    assert training.run(dataset, EPOCH).seen == sorted(GOOD)  # nothing is wrong any more


def test_a1_pictures_that_another_dataset_trains_are_not_moved(training):
    folder = make_folder(training, "trunc.jpg")
    (folder / "good1.note").write_text("text", encoding="utf-8")
    (folder / "trunc.note").write_text("text", encoding="utf-8")
    (folder / "good1.psd").write_bytes(b"not a caption")
    strict = {"subsets": [{"image_dir": str(folder), "caption_extension": ".note"}]}
    lenient = {"subsets": [{"image_dir": str(folder), "class_tokens": "a picture"}]}
    run = training.run(training.dataset_of(strict, lenient), EPOCH, "--on_bad_file=quarantine")
    assert run.seen == ["good1.png", "good1.png", "good2.png"]
    assert contents(folder).keys() == {
        *(".quarantine/trunc.jpg", ".quarantine/trunc.note"),
        *(*GOOD, "good1.note", "good1.psd"),
    }
    assert "another subset uses them: 1 (good2.png)" in logged(run, "not moved")


def test_a1_two_processes_leave_out_and_move_the_same(training, launch_pair):
    """Each decodes half of the pictures; what one finds the other knows."""
    names = ("broken_inside.png", "trunc.jpg", "plain.tiff", "wrongext.jpg")
    folder = make_folder(training, *names)
    shutil.copy(folder / "broken_inside.png", folder / "a_broken_one.png")
    dataset = training.dataset(folder, batch_size=1, num_repeats=2, **TOKENS)
    arguments = training.arguments(dataset, EPOCH, UNET_ONLY, "--on_bad_file=quarantine")
    run = launch_pair(arguments)
    assert run.code == 0, run.output
    first, second = run.accounts
    assert first["losses"] == second["losses"] and len(first["losses"]) == 4  # 4 pictures x 2 / 2 processes
    moved = {path.name for path in (folder / ".quarantine").iterdir()}
    assert moved == {"broken_inside.png", "a_broken_one.png", "trunc.jpg"}
    assert {path.name for path in folder.iterdir()} == {*GOOD, "plain.tiff", "wrongext.jpg", ".quarantine"}


def test_a1_skip_with_nothing_left_is_an_error(training, refused):
    folder = training.folder / "pictures"
    write(folder, "zero.png", "trunc.jpg")
    ended = refused(training.dataset(folder, **TOKENS), EPOCH, SKIP)
    assert ended.code == 2 and not ended.has_read_weights, ended.shown
    assert "zero.png" in ended.shown and "trunc.jpg" in ended.shown


def test_a1_skip_with_nothing_left_after_decoding_is_an_error(training, refused):
    folder = training.folder / "pictures"
    write(folder, "broken_inside.png")
    ended = refused(training.dataset(folder, **TOKENS), EPOCH, SKIP)
    assert ended.code == 2 and not ended.has_read_weights, ended.shown
    assert "broken_inside.png" in ended.shown and ended.error


# What is odd and read right


def test_a3_every_exif_orientation_is_trained_upright(training):
    names = [f"exif{number}.jpg" for number in range(1, 9)] + ["exif6.png", "exif6.webp", "exif6.tif"]
    folder = training.folder / "pictures"
    write(folder, *names)
    run = training.run(training.dataset(folder, resolution=[96, 64], batch_size=11, **TOKENS), EPOCH)
    (batch,) = run.batches
    assert batch.plan.size == Size(96, 64)
    for name in names:
        assert record_of(run, name).size == Size(96, 64)
        assert_differs_by(seen_pixels(run, name), quarters(96, 64), 3)
    assert ": 10 (" in logged(run, "as their EXIF orientation says")


def test_a4_deep_pictures_are_scaled_to_8_bits(training):
    folder = training.folder / "pictures"
    write(folder, "gray16.png", "gray16.tif", "rgb16.png", "float.tif")
    run = training.run(training.dataset(folder, batch_size=4, **TOKENS), EPOCH)
    for name in ("gray16.png", "gray16.tif", "rgb16.png"):
        assert (seen_pixels(run, name) == GREY_20000).all()
    ramp = seen_pixels(run, "float.tif")[0, :, 0]
    assert_differs_by(ramp, np.linspace(0, 255, 64), 1)
    assert "gray16.png" in logged(run, "of 16 or 32 bits")


def test_a5_cmyk_goes_through_its_profile(training):
    folder = training.folder / "pictures"
    write(folder, "cmyk.jpg", "cmyk_plain.jpg")
    run = training.run(training.dataset(folder, **TOKENS), EPOCH)
    assert_differs_by(seen_pixels(run, "cmyk.jpg"), np.full((64, 64, 3), INK_GREY), 3)
    assert_differs_by(seen_pixels(run, "cmyk_plain.jpg"), np.full((64, 64, 3), (0, 255, 255)), 3)
    assert ": 2 (" in logged(run, "print or LAB colours")


@pytest.mark.parametrize(("background", "colour"), [(None, 255), ("black", 0), ("#204060", (32, 64, 96))])
def test_a6_transparent_pictures_are_laid_on_the_background(background, colour, training):
    folder = training.folder / "pictures"
    write(folder, "rgba_hidden.png", "la0.png", "palette_alpha.png")
    keys = {} if background is None else {"background": background}
    run = training.run(training.dataset(folder, batch_size=3, **TOKENS, **keys), EPOCH)
    for name in ("la0.png", "palette_alpha.png"):
        assert_differs_by(seen_pixels(run, name), np.full((64, 64, 3), colour), 0)
    pixels = seen_pixels(run, "rgba_hidden.png")
    assert_differs_by(pixels[:, :32], np.full((64, 32, 3), (0, 0, 255)), 0)
    assert_differs_by(pixels[:, 32:], np.full((64, 32, 3), colour), 0)
    assert ": 3 (" in logged(run, "pictures with transparency")


def test_a6_transparency_can_be_the_mask(training):
    folder = training.folder / "pictures"
    write(folder, "rgba_hidden.png")
    run = training.run(training.dataset(folder, alpha_mask=True, **TOKENS), EPOCH)
    mask = run.batches[0].masks[0, 0]
    assert (mask[:, :4] == 1).all() and (mask[:, 4:] == 0).all()


def test_a7_palette_one_bit_and_wrong_extension_are_read(training):
    folder = training.folder / "pictures"
    write(folder, "palette.png", "onebit.png", "wrongext.jpg")
    run = training.run(training.dataset(folder, batch_size=3, **TOKENS), EPOCH)
    assert_differs_by(seen_pixels(run, "palette.png"), quarters(), 0)
    assert_differs_by(seen_pixels(run, "wrongext.jpg"), quarters(), 0)
    expected = np.where(np.arange(64)[None, :, None] < 32, 255, 0) * np.ones((64, 1, 3))
    assert_differs_by(seen_pixels(run, "onebit.png"), expected, 0)


def test_a8_of_animations_the_first_frame_is_used_at_its_true_size(training):
    folder = training.folder / "pictures"
    write(folder, "anim.webp", "anim.gif", "anim.png")
    run = training.run(training.dataset(folder, **TOKENS), EPOCH)
    assert record_of(run, "anim.webp").size == Size(640, 480)
    for name in ("anim.webp", "anim.gif", "anim.png"):
        assert (seen_pixels(run, name) == FIRST_FRAME).all()
    told = logged(run, "animated")
    assert ": 3 (" in told and "anim.webp: first frame of 2 used" in told


def test_a9_every_type_in_any_letter_case_is_found_and_the_rest_is_listed(training):
    names = ["plain.GIF", "plain.tiff", "plain.Jpg", "plain.BMP", "plain.jPeG"]
    folder = training.folder / "pictures"
    write(folder, *names, *bad_corpus.UNREADABLE_TYPES)
    more = [f"photo{number}.heic" for number in range(7)]
    for name in more:
        shutil.copy(folder / "photo.heic", folder / name)
    run = training.run(training.dataset(folder, batch_size=5, **TOKENS), EPOCH)
    assert run.seen == sorted(names)
    for name in names:
        assert_differs_by(seen_pixels(run, name), quarters(), 3)
    told = [line for line in run.log if line.startswith("left out")]
    for name in (*bad_corpus.UNREADABLE_TYPES, *more):
        assert any(name in line and "convert" in line for line in told), told


def test_a10_files_of_file_managers_are_ignored(training):
    folder = make_folder(training, *bad_corpus.NOT_PICTURES)
    run = training.run(training.dataset(folder, **TOKENS), EPOCH)
    assert run.seen == sorted(GOOD)
    assert not any(name in line for line in run.log for name in bad_corpus.NOT_PICTURES)


def test_a11_a_huge_jpeg_below_the_limit_trains(training):
    folder = training.folder / "pictures"
    write(folder, "20000x10000.jpg")
    run = training.run(training.dataset(folder, **TOKENS), EPOCH)
    assert record_of(run, "20000x10000.jpg").size == Size(20000, 10000)
    assert_differs_by(seen_pixels(run, "20000x10000.jpg"), np.full((48, 80, 3), 90), 2)


def test_a12_tiny_pictures_are_told_of_and_can_be_left_out(training):
    folder = make_folder(training, "16x16.png")
    run = training.run(training.dataset(folder, batch_size=3, **TOKENS), EPOCH)
    assert run.seen == sorted([*GOOD, "16x16.png"])
    assert "16x16.png" in logged(run, "enlarged more than")
    filtered = training.run(training.dataset(folder, min_image_size=32, **TOKENS), EPOCH)
    assert filtered.seen == sorted(GOOD)
    assert "16x16.png" in logged(filtered, "min_image_size 32")


@pytest.mark.parametrize("limit", [{"max_aspect_ratio": 20}, {"max_crop_fraction": 0.5}])
def test_a14_extreme_shapes_are_told_of_and_can_be_left_out(limit, training):
    folder = make_folder(training, "4000x20.png")
    run = training.run(training.dataset(folder, **TOKENS), EPOCH)
    assert run.seen == sorted([*GOOD, "4000x20.png"])
    assert any("4000x20.png" in line and ("area" in line or "cut" in line) for line in run.log)
    filtered = training.run(training.dataset(folder, **TOKENS, **limit), EPOCH)
    assert filtered.seen == sorted(GOOD)
    assert "4000x20.png" in logged(filtered, next(iter(limit)))


def test_a15_a_picture_that_changes_after_the_scan_is_named(training, refused, monkeypatch):
    from sd3_train_network import Sd3NetworkTrainer

    folder = make_folder(training)
    inspect = Sd3NetworkTrainer.inspect_files

    def replaced_meanwhile(run):
        (folder / "good1.png").write_bytes(bad_corpus.plain((1, 2, 3), size=(80, 64)))
        inspect(run)

    monkeypatch.setattr(Sd3NetworkTrainer, "inspect_files", replaced_meanwhile)
    ended = refused(training.dataset(folder, **TOKENS), EPOCH)
    assert ended.code == 2 and not ended.has_read_weights, ended.shown
    assert f"{folder / 'good1.png'} is 80x64 pixels but was 64x64" in ended.error


def test_a16_two_pictures_of_one_stem_cannot_share_a_caption_file(training, refused):
    bad_corpus.write_folders(training.folder / "folders")
    folder = training.folder / "folders" / "same_stems"
    ended = refused(training.dataset(folder), EPOCH)
    assert ended.code == 2 and not ended.has_read_weights
    assert all(name in ended.error for name in ("a.jpg", "a.png", "a.txt", "rename one")), ended.error


def test_a16_two_pictures_of_one_stem_have_caches_of_their_own(training):
    bad_corpus.write_folders(training.folder / "folders")
    folder = training.folder / "folders" / "same_stems"
    (folder / "a.txt").unlink()
    dataset = training.dataset(folder, **TOKENS)
    run = training.run(dataset, EPOCH, LATENTS)
    assert run.seen == ["a.jpg", "a.png"]
    assert len(list(folder.glob("a.*_sd3.safetensors"))) == 2
    (batch,) = run.batches
    assert (batch.latents[0] - batch.latents[1]).abs().max() > 0.1
    assert training.run(dataset, EPOCH, LATENTS).losses == run.losses


def test_a17_one_folder_at_two_resolutions(training):
    folder = make_folder(training)
    both = [{"resolution": side, "subsets": [{"image_dir": str(folder)}]} for side in (64, 96)]
    dataset = training.dataset_of(*both, **TOKENS)
    run = training.run(dataset, EPOCH, LATENTS)
    assert run.seen == sorted(GOOD * 2)
    assert {batch.plan.size for batch in run.batches} == {Size(64, 64), Size(96, 96)}
    assert len(list(folder.glob("*_sd3.safetensors"))) == 4
    before = contents(folder)
    again = training.run(dataset, EPOCH, LATENTS)
    assert "all 4 are cached" in logged(again, "latents: ")
    assert contents(folder) == before and again.losses == run.losses


def test_a18_a_replaced_picture_is_cached_anew(training):
    folder = make_folder(training)
    dataset = training.dataset(folder, **TOKENS)
    training.run(dataset, EPOCH, LATENTS)
    (folder / "good1.png").write_bytes(bad_corpus.plain((250, 250, 250)))
    run = training.run(dataset, EPOCH, LATENTS)
    assert "making 1 of 2 (1 the image changed)" in logged(run, "latents: ")
    assert run.losses == pytest.approx(training.run(dataset, EPOCH).losses, rel=1e-4)


def test_a19_a_picture_replaced_by_one_of_another_size_is_trained_at_its_own(training):
    folder = make_folder(training)
    dataset = training.dataset(folder, **TOKENS)
    training.run(dataset, EPOCH, LATENTS)
    (folder / "good1.png").write_bytes(bad_corpus.encoded(quarters(64, 128)))
    run = training.run(dataset, EPOCH, LATENTS)
    assert record_of(run, "good1.png").size == Size(64, 128)
    wide, high = sorted({batch.plan.size for batch in run.batches}, key=lambda size: size.height)
    assert wide == Size(64, 64) and high.height > high.width
    assert run.losses == pytest.approx(training.run(dataset, EPOCH).losses, rel=1e-4)


def test_a20_caches_of_names_that_begin_alike_are_kept_apart(training):
    folder = training.folder / "pictures"
    folder.mkdir()
    (folder / "img10.png").write_bytes(bad_corpus.encoded(quarters(64, 128)))
    dataset = training.dataset(folder, **TOKENS)
    training.run(dataset, EPOCH, LATENTS)
    (folder / "img1.png").write_bytes(bad_corpus.encoded(quarters(128, 64)))
    run = training.run(dataset, EPOCH, LATENTS)
    assert record_of(run, "img1.png").size == Size(128, 64) and record_of(run, "img10.png").size == Size(64, 128)
    assert "making 1 of 2" in logged(run, "latents: ")
    assert run.losses == pytest.approx(training.run(dataset, EPOCH).losses, rel=1e-4)


def test_a21_the_index_notices_deleted_new_and_renamed_pictures_and_new_captions(training):
    folder = make_folder(training)
    for name in GOOD:
        (folder / name).with_suffix(".txt").write_text("old", encoding="utf-8")
    dataset = training.dataset(folder, cache_info=True)
    training.run(dataset, EPOCH)
    (folder / "good1.png").unlink()
    (folder / "good2.png").rename(folder / "good3.png")
    (folder / "good2.txt").rename(folder / "good3.txt")
    (folder / "good3.txt").write_text("new words", encoding="utf-8")
    write(folder, "plain.tiff")
    (folder / "plain.txt").write_text("a new one", encoding="utf-8")
    run = training.run(dataset, EPOCH)
    assert run.seen == ["good3.png", "plain.tiff"]
    assert sorted(caption for batch in run.batches for caption in batch.captions) == ["a new one", "new words"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none/at all", ("does not exist", "the nearest folder that does is")),
        ("empty", ("has no images, it is empty", "put pictures into it")),
        ("only_texts", ("its files are 1 .txt", "Name a folder with pictures")),
        ("same_stems/a.png", ("is a file", "name the folder it is in")),
    ],
)
def test_a22_a_folder_without_pictures_is_an_error(name, words, training, refused):
    bad_corpus.write_folders(training.folder / "folders")
    folder = training.folder / "folders" / name
    for flags in ((), (SKIP,)):
        ended = refused(training.dataset(folder, **TOKENS), EPOCH, *flags)
        assert ended.code == 2 and not ended.has_read_weights
        assert all(word in ended.error for word in (str(folder), *words)), ended.error


def test_a22_all_bad_folders_and_pictures_are_told_at_once(training, refused):
    bad_corpus.write_folders(training.folder / "folders")
    names = [make_folder(training, "zero.png"), *(training.folder / "folders" / name for name in ("empty", "gone"))]
    dataset = training.dataset_of({"subsets": [{"image_dir": str(name)} for name in names]}, **TOKENS)
    ended = refused(dataset, EPOCH)
    assert ended.code == 2 and "3 problems" in ended.error
    assert all(str(name) in ended.error for name in (names[0] / "zero.png", *names[1:]))


def test_a23_sub_folders_are_hinted_at_and_read_with_recursive(training, refused):
    bad_corpus.write_folders(training.folder / "folders")
    folder = training.folder / "folders" / "one_level_down"
    ended = refused(training.dataset(folder, **TOKENS), EPOCH)
    assert ended.code == 2 and not ended.has_read_weights
    assert all(word in ended.error for word in (str(folder), "only folders (sub)", "recursive = true")), ended.error
    run = training.run(training.dataset(folder, recursive=True, **TOKENS), EPOCH)
    assert run.seen == ["plain.tiff"]


@pytest.fixture
def masked(training) -> Path:
    """Five pictures; one has no mask, one a mask of another shape, one a mask that is no picture."""
    folder = make_folder(training)
    masks = training.folder / "masks"
    masks.mkdir()
    for name, size in (("good1", (64, 64)), ("good2", (32, 32)), ("long", (64, 32)), ("nobody", (64, 64))):
        (masks / f"{name}.png").write_bytes(bad_corpus.plain((255, 255, 255), size=size))
    (masks / "cut.png").write_bytes(bad_corpus.cut(bad_corpus.encoded(bad_corpus.noise())))
    for name in ("alone", "long", "cut"):
        (folder / f"{name}.png").write_bytes(bad_corpus.plain((9, 99, 9)))
    return training.dataset(folder, conditioning_data_dir=str(masks), **TOKENS)


def test_a24_all_masks_that_do_not_fit_are_named(masked, training, refused):
    pictures, masks = training.folder / "pictures", training.folder / "masks"
    before = contents(training.folder / "pictures") | contents(masks)
    ended = refused(masked, EPOCH, "--masked_loss")
    assert ended.code == 2 and not ended.has_read_weights
    assert "3 problems" in ended.error
    assert f"{pictures / 'alone.png'} has no mask in {masks}" in ended.error
    assert f"{masks / 'long.png'} is 64x32 but its picture long.png is 64x64" in ended.error
    assert f"{masks / 'cut.png'} is cut off" in ended.error
    assert "nobody.png" in ended.shown
    assert contents(training.folder / "pictures") | contents(masks) == before


def test_a24_the_rest_trains_with_skip(masked, training):
    run = training.run(masked, EPOCH, "--masked_loss", SKIP)
    assert run.seen == sorted(GOOD)
    assert "3 pictures cannot be used" in logged(run, "as --on_bad_file says")
    assert "nobody.png" in logged(run, "is the mask of no picture")
    assert "good2.png" in logged(run, "masks of another size")


# Names


@pytest.mark.skipif(sys.platform == "win32", reason="other characters are allowed there")
def test_names_of_any_characters_train_and_cache(training):
    names = ["日本 語 é.png", "br[1]{a|b} 100%.png"]
    folder = training.folder / "pict[ur]es ü"
    write(folder, *names)
    for name in names:
        (folder / name).with_suffix(".txt").write_text(f"text of {name[0]}", encoding="utf-8")
    dataset = training.dataset(folder)
    run = training.run(dataset, EPOCH, UNET_ONLY, LATENTS, TEXTS)
    assert run.seen == sorted(names)
    again = training.run(dataset, EPOCH, UNET_ONLY, LATENTS, TEXTS)
    assert "all 2 are cached" in logged(again, "latents: ") and "all 2 are cached" in logged(again, "text encoder")
    assert again.losses == run.losses


def test_every_row_has_a_test():
    names = [name.split("_")[1] for name in globals() if name.startswith("test_a")]
    rows = {name.split()[0].lower() for name in BAD} | set(names)
    assert {f"a{number}" for number in range(1, 25)} <= rows
