"""Sample pictures: drawn with what is trained so far, and without any effect on it."""

import re

import numpy as np
import pytest
from PIL import Image

CACHED = ("--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs")
PROMPTS = """\
# a comment
a red star --w 64 --h 64 --d 1 --s 3 --l 4.5 --n blue
a yellow square --w 96 --h 80 --d 2 --s 3 --l 1
"""


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS, encoding="utf-8")
    return f"--sample_prompts={path}"


def samples(run):
    return sorted((run.file.parent / "sample").glob("*_[0-9][0-9]_*.png"))


def pixels(run):
    return [np.asarray(Image.open(path), dtype=np.float32) for path in samples(run)]


@pytest.mark.parametrize("flags", [(), CACHED], ids=["live", "cached"])
def test_sampling_in_between_changes_no_byte_of_the_training(training, dataset, prompts, flags):
    flags = ("--max_train_steps=4", "--network_dropout=0.2", *flags)
    plain = training.run(dataset, *flags)
    sampled = training.run(dataset, *flags, prompts, "--sample_every_n_steps=2", "--sample_at_first")
    assert len(samples(sampled)) == 6
    assert sampled.losses == plain.losses
    assert sampled.file.read_bytes() == plain.file.read_bytes()


def test_prompts_that_are_edited_meanwhile_change_no_byte_of_the_training(training, dataset, prompts, tmp_path):
    """Encoders are loaded in between, and dropout goes on with the random numbers that it would have had."""
    flags = ("--max_train_steps=4", "--network_dropout=0.2", *CACHED)
    size = "--w 64 --h 64 --s 1"
    edits = iter([f"a red star {size} --n new\na new one {size}".encode(), b"\xff", f"a cat {size}".encode()])

    def edit():
        content = next(edits, None)
        if content is not None:
            (tmp_path / "prompts.txt").write_bytes(content)

    plain = training.run(dataset, *flags)
    edited = training.run(dataset, *flags, prompts, "--sample_every_n_steps=1", after={"after_step": edit})
    assert [path.name[:9] for path in samples(edited)] == [
        "000001_00",
        "000001_01",
        "000002_00",
        "000002_01",
        "000003_00",
        "000004_00",
    ]
    assert any("is not UTF-8" in line and "prompts stay as they are" in line for line in edited.log)
    assert edited.file.read_bytes() == plain.file.read_bytes()


def test_a_sample_of_another_shape_changes_no_scaled_positions_of_the_training(training, dataset, tmp_path):
    """With two resolutions a long sample picture would add a table between theirs."""
    path = tmp_path / "prompts.txt"
    path.write_text("a long red star --w 160 --h 64 --s 1 --l 1", encoding="utf-8")
    folder = training.pictures(("red_circle.png", "red_star.png"), to="others")
    own = [{"resolution": side, "subsets": [{"image_dir": str(folder)}]} for side in (64, 192)]
    dataset = training.dataset_of(*own, enable_bucket=False, batch_size=1)
    flags = ("--max_train_steps=4", "--enable_scaled_pos_embed", *CACHED)
    plain = training.run(dataset, *flags)
    sampled = training.run(dataset, *flags, f"--sample_prompts={path}", "--sample_at_first")
    assert len(samples(sampled)) == 1
    assert sampled.losses == plain.losses


def test_samples_are_named_by_step_and_have_the_size_of_their_prompt(training, dataset, prompts):
    run = training.unet_only(dataset, "--max_train_steps=4", "--output_name=mine", prompts, "--sample_every_n_steps=2")
    time = r"\d{14}"
    expected = [
        rf"mine_000002_00_{time}_1.png",
        rf"mine_000002_01_{time}_2.png",
        rf"mine_000004_00_{time}_1.png",
        rf"mine_000004_01_{time}_2.png",
    ]
    assert all(re.fullmatch(name, path.name) for name, path in zip(expected, samples(run), strict=True))
    assert [Image.open(path).size for path in samples(run)] == [(64, 64), (96, 80)] * 2


def test_samples_of_epochs_are_named_by_epoch_and_go_before_those_of_steps(training, dataset, prompts):
    flags = ("--max_train_epochs=2", "--output_name=mine", "--sample_every_n_epochs=1", "--sample_every_n_steps=1")
    run = training.unet_only(dataset, prompts, *flags)
    assert [path.name[: len("mine_e000001_00")] for path in samples(run)] == [
        "mine_e000001_00",
        "mine_e000001_01",
        "mine_e000002_00",
        "mine_e000002_01",
    ]


def test_samples_show_what_is_trained(training, dataset, prompts):
    flags = ("--max_train_steps=8", "--learning_rate=1e-2", "--sample_at_first", "--sample_every_n_steps=8")
    first, _, last, _ = pixels(training.unet_only(dataset, *flags, prompts))
    assert np.abs(first - last).mean() > 2


def test_no_dropout_acts_while_sampling(training, dataset, prompts):
    """Adapters begin trained, so that their dropout would show."""
    trained = training.unet_only(dataset, "--max_train_steps=8", "--learning_rate=1e-2").file
    flags = ("--max_train_steps=1", prompts, "--sample_at_first")
    start = training.unet_only(dataset, *flags)
    plain = training.unet_only(dataset, *flags, f"--network_weights={trained}")
    encoder_dropout = ("--t5_dropout_rate=1", "--clip_l_dropout_rate=1", "--clip_g_dropout_rate=1")
    network_dropout = ("--network_dropout=0.9", "--network_args", "rank_dropout=0.9", "module_dropout=0.9")
    dropped = training.unet_only(dataset, *flags, f"--network_weights={trained}", *encoder_dropout, *network_dropout)
    assert np.abs(pixels(plain)[0] - pixels(start)[0]).mean() > 2
    assert dropped.losses != pytest.approx(plain.losses, rel=1e-3)
    assert [picture.tolist() for picture in pixels(dropped)] == [picture.tolist() for picture in pixels(plain)]


def test_prompts_are_part_of_the_text_cache(training, dataset, prompts, tmp_path):
    """Also with masks, and where CLIP is trained: then only what T5 says is cached."""
    flags = ("--max_train_steps=1", prompts, "--sample_at_first", "--apply_lg_attn_mask", "--apply_t5_attn_mask")
    live = training.run(dataset, *flags, "--network_train_unet_only")
    cached = training.unet_only(dataset, *flags)
    clip_live = training.run(dataset, *flags, "--cache_text_encoder_outputs_to_disk")
    for run in (cached, clip_live):
        assert len(samples(run)) == 2
        for picture, expected in zip(pixels(run), pixels(live), strict=True):
            assert np.abs(picture - expected).max() <= 1
    kept = list(tmp_path.glob("*_cache/prompt_*_sd3_te.safetensors"))
    assert len(kept) == 4  # two prompts, "blue", and no negative prompt
    again = training.run(dataset, *flags, "--cache_text_encoder_outputs_to_disk")
    assert any(line.startswith("text encoder outputs: all 8 are cached") for line in again.log)
