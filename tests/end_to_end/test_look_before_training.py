"""Looking before training: `--dry_run`, `--debug_dataset` and the preview page, through the real scripts.

The model of these runs has the header of a real one and NaN for every number: reading a weight would end the run.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from safetensors.torch import load_file

import sd3_train_network
from library.data.cache.places import TEXT_FOLDER
from library.data.report.cache_size import ENTRY_OVERHEAD
from library.data.report.report_text import bytes_in_words
from library.log import LOGGER_NAME
from tools import preview_dataset

SIZES = {"a": (64, 64), "b": (64, 64), "c": (96, 64), "d": (128, 32), "e": (16, 16)}
LONG = ", ".join(["a red star"] * 40)
IN_MEMORY = ("--cache_latents", "--cache_text_encoder_outputs", "--network_train_unet_only")
ON_DISK = (*IN_MEMORY, "--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk")
TOKEN_MASKS = ("--apply_lg_attn_mask", "--apply_t5_attn_mask")


class Shown(NamedTuple):
    """What a user sees of a command."""

    code: int
    out: str
    log: str


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures of several shapes; one has a long caption, one none."""
    folder = tmp_path / "dogs"
    folder.mkdir()
    for name, size in SIZES.items():
        Image.new("RGB", size, "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(LONG if name == "b" else f"tag {name}, dog, grass", encoding="utf-8")
    (folder / "e.txt").unlink()
    return folder


@pytest.fixture
def show(training, nan_model: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Shown]]:
    """show(dataset, *flags) runs the training script on a model whose weights must not be read."""
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.handlers[:], logger.propagate, logger.level

    def run(dataset: Path, *flags: str, main: Callable[..., int] = sd3_train_network.main) -> Shown:
        capsys.readouterr()
        code = main(training.arguments(dataset, *flags, model=nan_model))
        return Shown(code, *capsys.readouterr())

    yield run
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def rows(text: str, title: str) -> list[list[str]]:
    """The rows of a table, in words, by the section it is in."""
    section = re.search(rf"^{title}.*?(?=^[A-Z]|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"no {title} in\n{text}"
    return [line.split() for line in section[0].splitlines()[1:] if line.strip()]


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_counts_everything_and_writes_nothing(training, show, pictures, tmp_path):
    keys = {"class_tokens": "dog", "num_repeats": 3, "min_bucket_reso": 48}
    dataset = training.dataset(pictures, **keys)
    before = files_below(tmp_path)
    flags = ("--dry_run", "--cache_latents_to_disk", "--cache_text_encoder_outputs", "--network_train_unet_only")
    shown = show(dataset, *flags, "--max_train_epochs=4", "--mixed_precision=bf16", "--resolution=512")
    assert shown.code == 0, shown.log
    assert shown.log.count(f"{dataset}: --resolution has no effect: the file gives values of its own") == 1
    assert rows(shown.out, "SUBSETS")[-1] == ["1.1", "5", "3", "15", "4", "files,", "1", "class_tokens"]
    buckets = [row[1:5] for row in rows(shown.out, "BUCKETS")[1:]]
    assert buckets == [["64x64", "3", "9", "5"], ["80x48", "2", "6", "3"]]
    lengths = {row[0]: row[1:5] for row in rows(shown.out, "CAPTION LENGTHS")[1:4]}
    assert [lengths[name][0] for name in ("clip_l", "clip_g", "t5xxl")] == ["77", "77", "16"]
    assert lengths["clip_l"][3] == "1" and int(lengths["clip_l"][2]) == 161  # 40 x 3 words, 39 commas, both ends
    assert "5 images x 3 repeats = 15 samples -> 8 batches of 2" in re.sub(r"\s+", " ", shown.out)
    assert "4 epochs = 32 steps" in re.sub(r"\s+", " ", shown.out)
    caches = {row[0]: row for row in rows(shown.out, "CACHES")[1:3]}
    assert caches["latents"][1] == "5" and caches["text"][3] == "5"
    assert [" ".join(row) for row in rows(shown.out, "TRAINING")] == [
        "networks.lora of rank 4, alpha 4",
        "trains: mmdit at 0.001",
        "optimizer AdamW, schedule constant, seed 5",
    ]
    assert files_below(tmp_path) == before
    assert max(map(len, shown.out.splitlines())) <= 100 + len(str(pictures))


def test_a_dry_run_of_faulty_data_lists_every_fault_and_ends_as_the_training_would(training, show, pictures):
    (pictures / "x.png").write_text("<html>")
    (pictures / "x.txt").write_text("a dog")
    (pictures / "c.txt").write_text("")
    dataset = training.dataset(pictures, class_tokens="dog")
    shown = show(dataset, "--dry_run")
    assert shown.code == 2
    assert "x.png" in shown.log and "c.txt" in shown.log and "SUBSETS" not in shown.out
    skipping = show(dataset, "--dry_run", "--on_bad_file=skip")
    assert skipping.code == 0
    assert "NOT USED: 2 files" in skipping.out
    assert rows(skipping.out, "SUBSETS")[-1][:2] == ["1.1", "4"]


def test_without_tokenizers_a_dry_run_says_so(training, show, pictures, nan_model, tmp_path, monkeypatch):
    alone = tmp_path / "alone" / "sd3.safetensors"
    alone.parent.mkdir()
    shutil.copy(nan_model, alone)
    monkeypatch.setenv("EASEL_CACHE_DIR", str(tmp_path / "nothing"))
    dataset = training.dataset(pictures, class_tokens="dog")
    shown = show(dataset, "--dry_run", f"--pretrained_model_name_or_path={alone}")
    assert shown.code == 0, shown.log
    words = re.sub(r"\s+", " ", shown.out)
    assert "no tokenizer of clip_l, clip_g, t5xxl is at hand" in words and "ends at its start" in words
    assert rows(shown.out, "BUCKETS")


@pytest.mark.parametrize("flags", [(), (*IN_MEMORY, "--text_encoder_cache_variants=3")], ids=["live", "cached"])
def test_the_batches_that_are_shown_are_those_that_are_trained(training, show, pictures, flags):
    keys = {"class_tokens": "dog", "shuffle_caption": True, "flip_aug": True, "caption_dropout_rate": 0.3}
    dataset = training.dataset(pictures, **keys)
    shown = show(dataset, "--debug_dataset", "--max_train_epochs=2", *flags)
    assert shown.code == 0, shown.log
    lines = re.findall(r"^  (\S+\.png) \((.*?)\): (.*)$", shown.out, re.MULTILINE)
    told = [(Path(path).name, "mirrored" in how, text.replace("(empty caption)", "")) for path, how, text in lines]
    trained = list(batches_of(training.run(dataset, "--max_train_epochs=2", *flags)))
    assert told == trained and len(told) == 10


def batches_of(run) -> Iterator[tuple[str, bool, str]]:
    """Name, mirrored or not, and caption of every sample that a run has trained."""
    from library.data.loader import posterior_seed

    plan, latents, texts = run.trainer.plan, run.trainer.encoders.latents, run.trainer.encoders.texts
    for batch in run.batches:
        assert (batch.latents is None, batch.text is None) == (latents is None, texts is None)
        for row, (item, caption) in enumerate(zip(batch.plan.items, batch.captions, strict=True)):
            record = plan.records[item.record]
            is_mirrored = batch.posterior_seeds[row] == posterior_seed(record, batch.plan.size, True)
            if latents is not None:
                cached = latents.read(latents.entries[item.record].id)
                assert batch.latents[row].equal(cached["latents_flipped" if is_mirrored else "latents"])
            if texts is not None:
                cached = texts.read(item.record, caption)
                assert all(states[row].equal(cached[name]) for name, states in batch.text.items())
            yield record.path.name, is_mirrored, caption


CACHES = {  # keys of the dataset file, flags
    "plain": ({}, ()),
    "token masks": ({}, TOKEN_MASKS),
    "dropout": ({"caption_dropout_rate": 0.3}, TOKEN_MASKS),
    "flip": ({"flip_aug": True}, ()),
    "picture masks": ({"alpha_mask": True, "flip_aug": True}, ("--masked_loss", "--mixed_precision=bf16")),
    "variants": ({"shuffle_caption": True}, (*TOKEN_MASKS, "--text_encoder_cache_variants=3")),
    "fp16": ({}, (*TOKEN_MASKS, "--mixed_precision=fp16")),
    "fp16, full VAE": ({}, ("--mixed_precision=fp16", "--no_half_vae")),
    "bf16, full VAE": ({"caption_dropout_rate": 0.3}, (*TOKEN_MASKS, "--mixed_precision=bf16", "--no_half_vae")),
}


def stated_caches(text: str) -> dict[str, tuple[int, str]]:
    """{what: (entries, size in words)}"""
    found = re.findall(r"^  (latents|text encoder outputs) +(\d+)  +(\S+ \S+)  ", text, re.MULTILINE)
    return {what: (int(entries), size) for what, entries, size in found}


def written_caches(folder: Path) -> dict[str, tuple[int, str]]:
    """Likewise, of the cache files below a folder; what is no number counts as the plan counts it."""
    written = {}
    for what, is_text in (("latents", False), ("text encoder outputs", True)):
        files = [path for path in folder.rglob("*.safetensors") if (path.parent.name == TEXT_FOLDER) == is_text]
        numbers = sum(tensor.nbytes for path in files for tensor in load_file(path).values())
        stated = numbers + ENTRY_OVERHEAD * len(files)
        assert numbers < sum(path.stat().st_size for path in files) <= stated
        written[what] = (len(files), bytes_in_words(stated))
    return written


@pytest.mark.parametrize("case", CACHES)
def test_a_dry_run_states_the_size_of_the_caches_that_are_written(training, show, pictures, case):
    keys, flags = CACHES[case]
    dataset = training.dataset(pictures, class_tokens="dog", **keys)
    flags = ("--max_train_steps=1", *ON_DISK, *flags)
    stated = stated_caches(show(dataset, "--dry_run", *flags).out)
    training.run(dataset, *flags)
    assert len(stated) == 2
    assert stated == written_caches(pictures)


@pytest.mark.parametrize(
    "key", [{"resize_interpolation": "nearest"}, {"background": "black"}], ids=lambda key: min(key)
)
def test_a_dry_run_counts_pictures_that_two_datasets_make_different(training, show, pictures, key):
    subset = {"image_dir": str(pictures), "class_tokens": "dog"}
    dataset = training.dataset_of({"subsets": [subset]}, {"subsets": [{**subset, **key}]}, {"subsets": [subset]})
    flags = ("--max_train_steps=1", *ON_DISK)
    stated = stated_caches(show(dataset, "--dry_run", *flags).out)
    training.run(dataset, *flags)
    assert {what: entries for what, (entries, _) in stated.items()} == {"latents": 10, "text encoder outputs": 5}
    assert stated == written_caches(pictures)


def test_a_dry_run_counts_a_caption_of_two_folders_once_in_memory_and_twice_on_disk(training, show, pictures, tmp_path):
    other = Path(shutil.copytree(pictures, tmp_path / "more"))
    folders = [{"image_dir": str(folder), "class_tokens": "dog"} for folder in (pictures, other)]
    dataset = training.dataset_of({"subsets": folders})
    numbers = [stated_caches(show(dataset, "--dry_run", *flags).out) for flags in (IN_MEMORY, ON_DISK)]
    assert [stated["text encoder outputs"][0] for stated in numbers] == [5, 10]
    caches = training.run(dataset, *IN_MEMORY, "--max_train_steps=1").trainer.encoders
    assert (len(caches.texts.cache), len(caches.latents)) == (5, 10)


def test_a_dry_run_counts_what_is_not_used_where_it_belongs(training, show, pictures, tmp_path):
    inner = pictures / "inner"
    inner.mkdir()
    shutil.copy(pictures / "a.png", inner / "a.png")
    (inner / "bad.png").write_bytes(b"")
    (pictures / "f.mp4").write_bytes(b"")
    metadata = tmp_path / "captions.json"
    metadata.write_text(json.dumps({str(inner / "bad.png"): {"caption": "x"}, str(inner / "a.png"): {"caption": "x"}}))
    folders = [{"image_dir": str(folder), "class_tokens": "dog"} for folder in (pictures, inner)]
    dataset = training.dataset_of({"subsets": folders}, {"subsets": [{"metadata_file": str(metadata)}]})
    shown = show(dataset, "--dry_run", "--on_bad_file=skip")
    assert shown.code == 0, shown.log
    table = rows(shown.out, "SUBSETS")[3:]
    assert table[0][4:6] == ["not", "used"]
    assert {row[0]: (row[1], row[4]) for row in table[1:]} == {"1.1": ("5", "1"), "1.2": ("1", "1"), "2.1": ("1", "1")}


def test_a_dry_run_says_that_pictures_were_never_decoded(training, show, pictures):
    dataset = training.dataset(pictures, class_tokens="dog")
    assert "5 pictures were never decoded; damage inside" in show(dataset, "--dry_run").out
    training.unet_only(dataset, "--max_train_steps=1")
    assert "decoded" not in show(dataset, "--dry_run").out
    Image.new("RGB", (64, 64), "blue").save(pictures / "a.png")
    assert "1 picture was never decoded; damage inside" in show(dataset, "--dry_run").out


def test_the_preview_takes_the_command_of_a_training_and_shows_faults(training, show, pictures, tmp_path):
    (pictures / "x.png").write_text("<html>")
    (pictures / "x.txt").write_text("a dog")
    torn = pictures / "a.png"
    torn.write_bytes(torn.read_bytes()[:-20])
    output = tmp_path / "look.html"
    shown = show(training.dataset(pictures), f"--output={output}", main=preview_dataset.main)
    assert shown.code == 0, shown.log
    html = output.read_text(encoding="utf-8")
    assert html.count("<article") == 6
    for name in ("a.png", "x.png", "e.png"):  # torn, no picture, without caption
        assert re.search(rf'class="card unused".*?>{name}</p>', html), name
    assert str(output) in shown.log


def test_the_preview_does_without_a_model(training, pictures, tmp_path, capsys):
    output = tmp_path / "look.html"
    dataset = training.dataset(pictures, class_tokens="dog")
    tokenizers = training.model.parent
    code = preview_dataset.main(
        [f"--dataset_config={dataset}", f"--tokenizer_dir={tokenizers}", f"--output={output}", "--max_pictures=4"]
    )
    assert code == 0, capsys.readouterr().err
    html = output.read_text(encoding="utf-8")
    assert html.count("<article") == 4  # evenly spread: a, b, c, d
    assert '<li class="over">clip_l 161/77</li>' in html
    assert "<td>256</td>" in html  # what T5 reads where nothing else is asked for


@pytest.mark.parametrize(
    ("flags", "said"), [((), None), (("--weighted_captions",), "1 caption has a bracket that is never closed")]
)
def test_open_brackets_are_named_where_brackets_weigh(training, pictures, tmp_path, flags, said):
    (pictures / "a.txt").write_text("a (red dog", encoding="utf-8")
    output = tmp_path / "look.html"
    dataset = training.dataset(pictures, class_tokens="dog", bucket_reso_steps=64)
    given = [f"--dataset_config={dataset}", "--sd", *flags]
    assert preview_dataset.main([*given, f"--tokenizer_dir={training.model.parent}", f"--output={output}"]) == 0
    html = output.read_text(encoding="utf-8")
    assert (said in html and "weighs all behind it: a.png" in html) if said else "never closed" not in html


def test_captions_that_are_cut_are_counted_where_their_pictures_are_not_shown(training, pictures, tmp_path):
    output = tmp_path / "look.html"
    dataset = training.dataset(pictures, class_tokens="dog")
    flags = [f"--tokenizer_dir={training.model.parent}", f"--output={output}", "--max_pictures=1"]
    assert preview_dataset.main([f"--dataset_config={dataset}", *flags]) == 0
    html = output.read_text(encoding="utf-8")
    assert html.count("<article") == 1 and LONG not in html
    assert "<dt>captions cut off</dt><dd>1 " in html


@pytest.mark.parametrize("output", ["missing/look.html", "."])
def test_a_place_that_cannot_be_written_is_refused_at_once(training, pictures, tmp_path, output, capsys):
    code = preview_dataset.main([f"--dataset_config={training.dataset(pictures)}", f"--output={tmp_path / output}"])
    assert code == 5
    assert "--output" in capsys.readouterr().err
