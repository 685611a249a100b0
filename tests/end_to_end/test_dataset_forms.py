"""Whichever way pictures are named, the same is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

SQUARE = ("blue_triangle.png", "red_circle.png", "red_square.png", "red_star.png")  # 64 x 64, so one bucket
FAST = ("--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs", "--max_train_steps=3")


@pytest.fixture
def folders(training) -> Path:
    """Two folders of training pictures and one of regularisation pictures, named as people name them."""
    for name in ("train", "reg"):
        (training.folder / name).mkdir()
    training.pictures(SQUARE[:2], to="train/2_red shape")
    training.pictures(SQUARE[2:3], to="train/10_other")
    folder = training.pictures(SQUARE[3:], to="reg/1_shape")
    (folder / "red_star.txt").unlink()
    return training.folder


def run_without_file(training, *flags: str):
    """A training without --dataset_config, with what `training.dataset` says given as options."""
    arguments = [a for a in training.arguments(Path(), *FAST, *flags) if "--dataset_config" not in a]
    arguments += ["--resolution=64", "--enable_bucket", "--bucket_reso_steps=16", "--min_bucket_reso=32"]
    return training.run_arguments(
        [*arguments, "--max_bucket_reso=128", "--caption_extension=.txt", "--train_batch_size=2"]
    )


def test_folders_train_as_the_dataset_file_that_says_the_same(training, folders):
    subsets = [
        {"image_dir": str(folders / "train/2_red shape"), "num_repeats": 2, "class_tokens": "red shape"},
        {"image_dir": str(folders / "train/10_other"), "num_repeats": 10, "class_tokens": "other"},
        {"image_dir": str(folders / "reg/1_shape"), "class_tokens": "shape", "is_reg": True},
    ]
    weight = "--prior_loss_weight=0.5"
    by_file = training.run(training.dataset_of({"subsets": subsets}), *FAST, weight)
    places = f"--train_data_dir={folders / 'train'}", f"--reg_data_dir={folders / 'reg'}"
    by_folders = run_without_file(training, *places, weight)
    assert by_folders.losses == by_file.losses
    plan = by_folders.trainer.plan
    assert [record.caption for record in plan.records if record.is_reg] == ["shape"]
    assert {record.loss_weight for record in plan.records if record.is_reg} == {0.5}
    assert sum(r.repeats for r in plan.records if r.is_reg) == sum(r.repeats for r in plan.records if not r.is_reg)


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_metadata_trains_as_caption_files_with_the_same_words(training, ending):
    folder = training.pictures()
    captions = {
        name: (training.examples / name).with_suffix(".txt").read_text(encoding="utf-8").strip() for name in SQUARE
    }
    by_files = training.run(training.dataset(folder), *FAST)
    file = training.folder / f"meta.{ending}"
    entries = {name: {"caption": caption} for name, caption in captions.items()}
    lines = [json.dumps({"image_path": name, **entry}) for name, entry in entries.items()]
    file.write_text(json.dumps(entries) if ending == "json" else "\n".join(lines), encoding="utf-8")
    by_metadata = run_without_file(training, f"--in_json={file}", f"--train_data_dir={folder}")
    assert by_metadata.losses == by_files.losses


def test_white_masks_change_nothing_and_black_ones_leave_no_loss(training):
    from PIL import Image

    folder, masks = training.pictures(), training.folder / "masks"
    masks.mkdir()
    unmasked = training.run(training.dataset(folder), *FAST)
    for brightness in (255, 0):
        for name in SQUARE:
            Image.new("L", (64, 64), brightness).save(masks / name)
        dataset = training.dataset(folder, conditioning_data_dir=str(masks))
        masked = training.run(dataset, *FAST, "--masked_loss")
        assert masked.losses == (pytest.approx(unmasked.losses) if brightness else [0.0] * 3)


def test_what_is_kept_for_validation_is_not_trained(training):
    folder = training.pictures()
    kept = training.folder / "kept"
    kept.mkdir()
    shutil.move(folder / SQUARE[0], kept)
    subsets = [
        {"image_dir": str(folder)},
        {"image_dir": str(kept), "validation_split": 1.0, "class_tokens": "shape"},
    ]
    run = training.run(training.dataset_of({"subsets": subsets}), *FAST)
    plan = run.trainer.plan
    assert [record.path.name for record in plan.validation_records] == [SQUARE[0]]
    assert {key for batch in run.batches for key in batch.sample_ids}
    assert not any(SQUARE[0] in key for batch in run.batches for key in batch.sample_ids)
