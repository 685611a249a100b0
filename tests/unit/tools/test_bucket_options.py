"""Options of finetune/prepare_buckets_latents.py, the training options they stand for, and what becomes of entries."""

import shlex
from pathlib import Path

import pytest

from finetune.prepare_buckets_latents import main
from library.errors import OptionError
from library.families.sd.options import FINE_TUNE_SCRIPT, FineTuneOptions
from library.options.spec import parse_options
from library.records import Size
from library.training.bucket_run import Fitted, buckets_in_words, entries_with_sizes
from tools.bucket_options import BUCKET_LATENTS_SCRIPT, BucketLatentsOptions, caching_options, training_flags

BASE = Path(__file__).parents[3] / "examples" / "tiny_sd" / "base" / "sd1_tiny.safetensors"
PLACES = "pictures meta.json lat.json model.safetensors"
ALL = (
    "--max_resolution=640,448 --min_bucket_reso=128 --max_bucket_reso=2048 --bucket_reso_steps=32 --bucket_no_upscale "
    "--resize_interpolation=lanczos --background=black --flip_aug --alpha_mask=1 --mixed_precision=bf16 --no_half_vae "
    "--vae=vae.safetensors --cache_dir=caches --batch_size=3 --v2 --allow_pickle"
)


def parse(flags=""):
    return parse_options(BucketLatentsOptions, shlex.split(f"{PLACES} {flags}"), **BUCKET_LATENTS_SCRIPT)


def test_what_a_training_is_given_is_what_differs_from_its_defaults():
    assert training_flags(parse(), Path("lat.json")) == [
        "--pretrained_model_name_or_path=model.safetensors",
        "--in_json=lat.json",
        "--train_data_dir=pictures",
        "--resolution=512,512",
        "--cache_latents_to_disk",
        "--enable_bucket",
    ]


@pytest.mark.parametrize("flags", ["", ALL])
def test_the_caching_run_and_a_training_are_given_the_same(flags):
    given = parse(flags)
    command = [*training_flags(given, Path("meta.json")), "--output_dir=out"]
    training = parse_options(FineTuneOptions, command, **FINE_TUNE_SCRIPT)
    caching = caching_options(given)
    of_caching = {
        **{"missing_caption": "allow", "empty_caption": "allow", "on_bad_file": "skip"},
        **{"cache_latents": True, "vae_batch_size": given.model.batch_size},
    }
    for group in ("model", "data", "cache", "precision"):
        ours, theirs = (vars(getattr(options, group)) for options in (caching, training))
        assert {name: value for name, value in ours.items() if value != theirs[name]} == {
            name: value for name, value in of_caching.items() if name in theirs and value != theirs[name]
        }


def test_a_family_that_is_named_is_passed_on():
    assert caching_options(parse("--sdxl")).family.chosen == "sdxl"


@pytest.mark.parametrize(
    ("text", "keeps"), [("", False), ("true", True), ("1", True), ("False", False), ("0", False), ("yes", True)]
)
def test_alpha_mask_is_a_word(text, keeps):
    assert parse(f"--alpha_mask='{text}'").buckets.keeps_masks == keeps


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--max_resolution=512x512", "--max_resolution needs one number or width,height in pixels, got '512x512'."),
        ("--max_resolution=0,64", "--max_resolution needs one number or width,height in pixels, got '0,64'."),
        ("--alpha_mask=alpha.png", "--alpha_mask needs true or false, got 'alpha.png'."),
        ("--min_bucket_reso=2048", "--min_bucket_reso 2048 is above --max_bucket_reso 1024."),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_option(flags, message):
    with pytest.raises(OptionError) as caught:
        parse(flags)
    assert str(caught.value) == message


def test_options_without_effect_are_told():
    (line,) = parse("--skip_existing --recursive --max_data_loader_n_workers=2").warnings
    assert all(flag in line for flag in ("--skip_existing", "--recursive", "--max_data_loader_n_workers"))


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        (BASE, ["--v2"], f"--v2: {BASE} is a Stable Diffusion 1.x model. Leave --v2 out."),
        (BASE, ["--vae=none.safetensors"], "--vae: none.safetensors does not exist."),
        ("none.ckpt", ["--v2"], "MODEL_NAME_OR_PATH: none.ckpt does not exist."),
    ],
)
def test_what_the_model_files_say_is_told_before_pictures_are_looked_at(tmp_path, capsys, model, flags, message):
    (tmp_path / "meta.json").write_text('{"gone.png": {"tags": "x"}}')
    assert main([*map(str, (tmp_path, tmp_path / "meta.json", tmp_path / "lat.json", model)), *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


ENTRIES = [("b", {"tags": "x", "own": 1}), ("gone.png", {"caption": "y", "train_resolution": [8, 8]})]
FITTED = {"b": Fitted(Path("pictures/b.png"), Size(30, 20), Size(16, 8))}


def test_entries_keep_their_values_and_get_the_sizes_of_what_is_cached():
    assert list(entries_with_sizes(ENTRIES, FITTED, is_full_path=False)) == [
        ("b", {"tags": "x", "own": 1, "image_size": [30, 20], "train_resolution": [16, 8]}),
        ("gone.png", {"caption": "y"}),
    ]


def test_with_full_path_what_is_cached_is_named_by_its_whole_path():
    names = [name for name, _ in entries_with_sizes(ENTRIES, FITTED, is_full_path=True)]
    assert names == [str(Path("pictures/b.png").absolute()), "gone.png"]


def test_buckets_are_counted_the_most_frequent_first():
    sizes = [Size(64, 64), Size(64, 96), Size(64, 96)]
    assert buckets_in_words(Fitted(Path("a"), size, size) for size in sizes) == "64x96: 2, 64x64: 1"
