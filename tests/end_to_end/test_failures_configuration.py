"""Failure catalogue, section C: options, dataset files, prompts. Each row has a test that starts with its number.

What is refused ends with its exit code and one error that names the place, every fault and a way out, before weights
are read, and no file is touched. What is odd but good is told of, and the run goes on.
"""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bad_corpus
import pytest
import torch
from bad_corpus import BAD_CONFIGS, BAD_DATASETS, BAD_PROMPTS

from library.device import precision_note
from library.errors import OutputError

NAN_FOUND = "has NaN or infinite values"
UNET_ONLY = "--network_train_unet_only"
CACHED = (UNET_ONLY, "--cache_latents", "--cache_text_encoder_outputs")
CACHED_TEXTS = ("--cache_text_encoder_outputs", UNET_ONLY)
STEP = "--max_train_steps=1"
NAME = "--output_name=mine"
NO_RANKS = tuple(f"{half}_{layer}_dim=0" for half in ("context", "x") for layer in ("attn", "mlp", "mod"))
SAMPLES = "--sample_at_first"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the claim of a run on its output folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".easel_run.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def logged(run: Any, text: str) -> str:
    """The one line of the log that holds a text."""
    (line,) = {line for line in run.log if text in line}
    return line


# What is refused


@dataclass(frozen=True)
class Bad:
    """What cannot be used.

    Attributes:
        words: What the error says; FOLDER stands for the folder of the test.
        flags: Likewise.
        files: Of the corpus, written into the folder.
        dataset: One of them, given as the dataset file.
        code: The exit code.
    """

    words: tuple[str, ...]
    flags: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    dataset: str | None = None
    code: int = 2


def dataset(name: str, *words: str, flags: tuple[str, ...] = ()) -> Bad:
    """A dataset file of the corpus."""
    return Bad((f"FOLDER/{name}", *words), flags, (name,), name)


def config(name: str, *words: str) -> Bad:
    """A file of the corpus given as --config_file."""
    return Bad((f"FOLDER/{name}", *words), (f"--config_file=FOLDER/{name}",), (name,))


def prompts(name: str, *words: str) -> Bad:
    """A file of the corpus given as --sample_prompts."""
    return Bad(("--sample_prompts: ", f"FOLDER/{name}", *words), (SAMPLES, f"--sample_prompts=FOLDER/{name}"), (name,))


def options(flags: str, *words: str, code: int = 2) -> Bad:
    """A command line."""
    return Bad(words, tuple(flags.split()), code=code)


BAD = {
    # names
    "C1 keys": dataset(
        "typos.toml",
        *(
            "line 3, [general]: unknown key 'enable_bukcet', the nearest is 'enable_bucket'",
            "'batch_size'",
            "'image_dir'",
        ),
    ),
    "C1 table": dataset("table.toml", "'dataset', the nearest is 'datasets'"),
    "C2 config file": config(
        "config_typos.toml",
        *("line 1: unknown key learning_rat. Did you mean learning_rate?", "line 3: unknown key max_train_step"),
    ),
    "C2 flags": options(
        "--lerning_rate=1 --cache_latent",
        *("--lerning_rate is not an option", "mean --learning_rate?", "mean --cache_latents?"),
    ),
    "C2 not available": options("--dataset_class=a.B", "--dataset_class: not available yet"),
    # types
    "C3 config file": config(
        "config_types.toml",
        *("line 1: learning_rate needs a number, got the text 'abc'", "line 2: max_train_steps needs a whole number"),
        *(
            "line 3: mixed_precision needs one of no, fp16, bf16, got 'bf61'",
            "line 4: network_dim needs a whole number",
        ),
    ),
    "C3 flags": options(
        "--network_dim=four --learning_rate=fast --mixed_precision=bf61",
        *("--network_dim needs a whole number, got 'four'", "--learning_rate needs a number, got 'fast'"),
        "--mixed_precision needs one of no, fp16, bf16, got 'bf61'",
    ),
    "C3 dataset file": dataset(
        "text_for_number.toml", "line 10", "batch_size must be a whole number, got '2'; remove the quotes"
    ),
    "C3 several": dataset("types.toml", "2 faults", "line 3", "enable_bucket must be true or false", "resolution"),
    # twice
    "C4 config file": config("config_twice.toml", "line 4: seed stands both in [a] and in [b]. Keep one of them."),
    "C4 dataset file": dataset("key_twice.toml", "line 14", "twice", "Remove one"),
    # network arguments
    "C5 names": options(
        "--network_args x_attn_dimm=2 wrong=1",
        *("x_attn_dimm is not an argument of this network (did you mean x_attn_dim?)", "wrong is not an argument"),
    ),
    "C5 values": options(
        "--network_args x_attn_dim=big split_qkv=maybe",
        *("x_attn_dim=big: must be a rank", "split_qkv=maybe: must be True or False"),
    ),
    "C5 blocks": options(
        "--network_args train_block_indices=1,2,6-8",
        "train_block_indices=1,2,6-8: this model has no block 2; its blocks are 0 to 1",
    ),
    "C5 embedders": options("--network_args emb_dims=[2,3,4]", "emb_dims=[2,3,4]: must be six ranks"),
    "C6 network": options("--network_args x_attn_dim", "--network_args takes", "key=value, got 'x_attn_dim'"),
    "C6 optimizer": options("--optimizer_args betas", "--optimizer_args takes", "key=value, got 'betas'"),
    "C7 unknown": options(
        "--network_module=networks.lorra", "networks.lorra: cannot be imported", "Did you mean networks.lora?"
    ),
    "C7 something else": options("--network_module=json", "json: this module makes no networks", "Use networks.lora"),
    "C7 no ranks": options(
        " ".join((UNET_ONLY, "--network_args", *NO_RANKS)), "leave 0 modules to train", "Valid block indices are 0 to 1"
    ),
    "C7 no blocks": options(
        f"{UNET_ONLY} --network_args train_block_indices=none",
        *("leave 0 modules to train", "Valid block indices are 0 to 1"),
    ),
    "C7 no rate": options(f"{UNET_ONLY} --unet_lr=0", "leave nothing to train", "above 0"),
    # ranges
    "C9 batch 0": dataset("batch_0.toml", "line 10, dataset 1: batch_size must be at least 1, got 0"),
    "C9 batch -1": dataset("batch_minus_1.toml", "line 10, dataset 1: batch_size must be at least 1, got -1"),
    "C9 config file": Bad(
        ("--train_batch_size must be at least 1, got 0", "--gradient_accumulation_steps must be at least 1, got -1"),
        ("--config_file=FOLDER/config_range.toml",),
        ("config_range.toml",),
    ),
    "C9 flags": options(
        "--train_batch_size=0 --gradient_accumulation_steps=-1 --seed=-1",
        *("--train_batch_size must be at least 1, got 0", "--gradient_accumulation_steps must be at least 1, got -1"),
        "--seed must be between 0 and 4294967295, got -1",
    ),
    "C10 repeats": dataset("repeats_0.toml", "line 13", "num_repeats must be at least 1, got 0"),
    "C10 subset": dataset("subset_twice.toml", "twice", "num_repeats"),
    "C11 resolution": dataset(
        "above_bucket.toml", "max_bucket_reso 128 is below the long side of resolution 256x256; raise it"
    ),
    "C11 position table": dataset("too_large.toml", "goes up to 384 a side", "Lower resolution"),
    "C11 sample": Bad(
        ("--sample_prompts: prompt 1 asks for 1024x1024", "goes up to 384", "smaller --w and --h"),
        (SAMPLES, "--sample_prompts=FOLDER/large.prompts.txt"),
        ("large.prompts.txt",),
    ),
    # form of files
    "C13 backslash": dataset("backslash.toml", "line 13", "backslash", "use '...' or /"),
    "C13 valid escapes": dataset("valid_escapes.toml", "image_dir holds a control character", "single quotes"),
    "C13 JSON": dataset("backslash.json", "line 2", "use / in paths"),
    "C13 config file": config("config_backslash.toml", "line 2", "use '...' or / in paths"),
    "C14 broken": dataset("bracket.toml", "line 1", "Mend the TOML there"),
    "C14 config file": config("config_broken.toml", "line 2", "Mend the TOML there"),
    "C14 encoding": dataset("utf16.toml", "not a UTF-8 file", "Save it again as UTF-8"),
    "C14 encoding of config file": config("config_latin1.toml", "is not UTF-8"),
    "C14 missing": options(
        "--dataset_config=FOLDER/d.toml", "FOLDER/d.toml", "does not exist", "Check --dataset_config"
    ),
    "C14 folder": options("--dataset_config=FOLDER", "FOLDER: this is a folder", "image_dir"),
    "C14 config file missing": options("--config_file=FOLDER/c", "FOLDER/c.toml does not exist"),
    "C14 no folder": dataset("empty_dir.toml", "line 13", "image_dir must not be empty"),
    "C14 forms": dataset(
        "forms.toml",
        *("4 faults", "is_reg cannot be used with metadata_file", "conditioning_data_dir needs --masked_loss"),
    ),
    # what caches would silence
    "C16 shuffled": dataset(
        "shuffled.toml",
        *("--cache_text_encoder_outputs cannot be used with shuffle_caption in", "--text_encoder_cache_variants"),
        flags=CACHED_TEXTS,
    ),
    "C16 dropped tags": dataset(
        "dropped.toml",
        "--cache_text_encoder_outputs cannot be used with",
        "caption_tag_dropout_rate",
        flags=CACHED_TEXTS,
    ),
    "C16 random crop": dataset(
        "cropped.toml", "--cache_latents cannot be used with random_crop in", flags=("--cache_latents",)
    ),
    "C16 colours": dataset(
        "coloured.toml", "--cache_latents cannot be used with color_aug in", flags=("--cache_latents",)
    ),
    "C16 trained T5": options(
        "--cache_text_encoder_outputs --network_args train_t5xxl=True",
        *("train_t5xxl=True cannot be used with --cache_text_encoder_outputs", "Leave one of them out"),
    ),
    # prompts
    "C17 missing": options(
        f"{SAMPLES} --sample_prompts=FOLDER/p.txt", "--sample_prompts: FOLDER/p.txt does not exist", "Check the path"
    ),
    "C17 folder": options(f"{SAMPLES} --sample_prompts=FOLDER", "--sample_prompts: FOLDER cannot be read"),
    "C17 empty": prompts("empty.prompts.txt", "has no prompts", "Write one a line"),
    "C17 none": options("--sample_every_n_steps=1", "need --sample_prompts"),
    "C18 kind": prompts("prompts.md", "ends in '.md'", "Give a .txt, .toml or .json file"),
    "C18 encoding": prompts("latin1.prompts.txt", "is not UTF-8 text (byte 5)", "Save it as UTF-8"),
    "C18 JSON": prompts("broken.prompts.json", "line 2", "trailing comma"),
    "C18 keys": prompts(
        "keys.prompts.json",
        *(
            "entry 1: unknown key widht (did you mean width?)",
            "entry 2: no prompt",
            "entry 2: width must be",
            "entry 3",
        ),
    ),
    "C18 TOML": prompts("no_subset.prompts.toml", "has no [[prompt.subset]]", "Write each prompt"),
    # optimizers
    "C24 name": options(
        "--optimizer_type=AdamW9bit", "--optimizer_type", "unknown optimizer", "Did you mean AdamW8bit?"
    ),
    "C24 arguments": options(
        "--optimizer_args weight_decai=0.1 beta=3",
        *("--optimizer_args: AdamW has no argument weight_decai (did you mean weight_decay?)", "no argument beta"),
    ),
    "C24 value": options("--optimizer_args betas=3", "AdamW does not accept betas=3"),
    "C24 twice": options("--optimizer_args eps=1 eps=2", "--optimizer_args", "twice"),
    "C24 schedule": options("--lr_scheduler=cosin", "--lr_scheduler cosin: unknown", "mean cosine?"),
    # tokenizers
    "C26 wrong folder": options("--tokenizer_dir=FOLDER", "--tokenizer_dir: neither FOLDER nor"),
    "C26 no folder": options("--tokenizer_dir=FOLDER/t", "--tokenizer_dir: FOLDER/t is not a folder", "Check the path"),
}


@pytest.fixture
def data(training: Any) -> Path:
    """A dataset file of good pictures."""
    return training.dataset(training.examples)


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_told_before_weights_are_read(case, training, data, refused):
    folder = training.folder / "files"
    for path in bad_corpus.write(folder, *case.files):
        path.write_bytes(path.read_bytes().replace(b"PICTURES", bytes(training.examples)))
    before = contents(training.folder)

    def placed(text: str) -> str:
        return text.replace("FOLDER", str(folder))

    ended = refused(folder / case.dataset if case.dataset else data, STEP, *map(placed, case.flags))
    assert ended.code == case.code and not ended.has_read_weights, ended.shown
    assert [word for word in map(placed, case.words) if word not in ended.error] == [], ended.error
    assert contents(training.folder) == before


# C7, C8, C12, C15, C16: what is good all the same


def test_c7_the_module_of_every_model_finds_the_layers_of_this_one(training, data):
    run = training.unet_only(data, STEP, "--network_module=networks.lora")
    modules = {name.partition(".")[0] for name in run.weights}
    assert len(modules) > 10 and all(name.startswith("lora_unet_joint_blocks_") for name in modules)


@pytest.mark.parametrize("split", [0, 1e-3])
def test_c8_a_validation_split_may_be_a_whole_number(split, training, refused):
    assert refused(training.dataset(training.examples, validation_split=split), STEP).has_read_weights


def test_c12_a_resolution_between_the_steps_is_told(training, refused):
    ended = refused(
        training.dataset(training.examples, resolution=100, bucket_reso_steps=64, max_bucket_reso=256), STEP
    )
    assert ended.has_read_weights
    assert "resolution 100x100" in ended.shown and "multiples of bucket_reso_steps 64" in ended.shown


def test_c15_more_blocks_to_swap_than_there_are_mean_all(data, refused):
    """That comes from the header: what is wrong with the network is told next."""
    ended = refused(data, STEP, "--blocks_to_swap=32", "--network_args", "wrong=1")
    (told,) = [line for line in ended.shown.splitlines() if "--blocks_to_swap 32" in line]
    assert "the model has 2 blocks, so all of them are meant" in told
    assert not ended.has_read_weights


def test_c16_cached_captions_may_change_where_several_are_cached(training, data):
    dataset = training.dataset(training.pictures(), shuffle_caption=True)
    run = training.run(dataset, STEP, *CACHED_TEXTS, "--text_encoder_cache_variants=3")
    assert len(run.losses) == 1


# C19, C20: prompts


def test_c19_what_is_not_understood_in_a_prompt_is_a_warning_for_each_line(training, data, refused):
    (file,) = bad_corpus.write(training.folder, "flags.prompts.txt")
    ended = refused(data, STEP, SAMPLES, f"--sample_prompts={file}")
    assert ended.has_read_weights
    told = [line for line in ended.shown.splitlines() if "--sample_prompts" in line]
    for place, words in {"line 1": "--s abc", "line 2": "is a prompt", "line 3": "--zz"}.items():
        assert [line for line in told if f"{file} {place}: " in line and words in line], told


def test_c20_prompts_that_are_spoilt_meanwhile_stay_as_they_were(training, data):
    file, size = training.folder / "p.txt", "--w 64 --h 64 --s 1"
    edits = iter(
        [
            lambda: file.write_text("a cat --w 1024 --h 1024", encoding="utf-8"),
            lambda: file.write_bytes(b"\xff"),
            file.unlink,
            file.mkdir,
            lambda: (file.rmdir(), file.write_text(f"a cat {size}\na dog {size}", encoding="utf-8")),
        ]
    )
    file.write_text(f"a cat {size}", encoding="utf-8")
    flags = ("--max_train_steps=6", f"--sample_prompts={file}", "--sample_every_n_steps=1")
    run = training.run(data, *flags, *CACHED, after={"after_step": lambda: next(edits, lambda: None)()})
    assert len(run.losses) == 6
    drawn = [path.name[:6] for path in sorted((run.trainer.folder / "sample").glob("*_[0-9][0-9]_*.png"))]
    assert drawn == ["000001", "000002", "000003", "000004", "000005", "000005", "000006", "000006"]
    told = [line for line in run.log if "the prompts stay as they are: --sample_prompts" in line and "goes on" in line]
    faults = ("goes up to 384", f"{file} is not UTF-8", f"{file} does not exist", f"{file} cannot be read")
    assert len(told) == 4 and all(fault in line for fault, line in zip(faults, told, strict=True)), told


# C21: the output folder


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_c21_an_output_dir_that_is_no_folder_gives_5(place, training, data, refused):
    (training.folder / "file").write_bytes(b"precious")
    ended = refused(data, STEP, f"--output_dir={training.folder / place}")
    assert ended.code == 5 and not ended.has_read_weights
    assert f"--output_dir: {training.folder / place} cannot be written" in ended.error
    assert "Choose another folder" in ended.error
    assert (training.folder / "file").read_bytes() == b"precious"


@pytest.mark.skipif(sys.platform != "linux", reason="folders are made read-only in another way")
def test_c21_an_output_dir_without_rights_gives_5(training, data, nan_model, launch):
    folder = training.folder / "mine"
    folder.mkdir(mode=0o555)
    arguments = [*training.arguments(data, STEP, model=nan_model), f"--output_dir={folder}"]
    ended = launch(arguments, is_watched=False, preexec_fn=keep_to_permissions)
    folder.chmod(0o755)
    assert ended.code == 5 and NAN_FOUND not in ended.output
    assert (
        f"error: --output_dir: {folder} cannot be written (Permission denied). Choose another folder." in ended.output
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_c21_a_full_disk_gives_5_before_weights_are_read(training, data, nan_model, launch):
    """A limit on the size of files stands for the full disk."""
    ended = launch(training.arguments(data, STEP, model=nan_model), is_watched=False, preexec_fn=limit_file_size)
    assert ended.code == 5 and NAN_FOUND not in ended.output
    assert f"error: --output_dir: {training.folder / 'out1'} cannot be written" in ended.output


def keep_to_permissions() -> None:
    """Take from root what lets it write into any folder, as the tests of others run as root."""
    drop_bounding_capability, dac_override = 24, 1
    ctypes.CDLL(None).prctl(drop_bounding_capability, dac_override, 0, 0, 0)


def limit_file_size() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))


# C22: files of another run


def test_c22_files_of_another_run_are_not_overwritten(training, data, refused):
    first = training.unet_only(data, "--max_train_steps=2", NAME, "--save_every_n_steps=1", "--save_state")
    folder = first.trainer.folder
    before = contents(folder)
    others = (f"--output_dir={folder}", NAME, "--learning_rate=1e-2")
    ended = refused(data, "--max_train_steps=2", "--save_every_n_steps=1", *others)
    assert ended.code == 2 and not ended.has_read_weights, ended.shown
    assert f"--output_name: {folder} already has mine.safetensors, mine-step00000001.safetensors" in ended.error
    assert all(word in ended.error for word in ("Choose another --output_name", "--resume", "--overwrite"))
    assert contents(folder) == before


@pytest.mark.parametrize("way_out", ["--overwrite", "--output_name=another"])
def test_c22_the_ways_out_that_are_named_work(way_out, training, data):
    first = training.unet_only(data, STEP, NAME)
    before = first.file.read_bytes()
    run = training.unet_only(data, STEP, f"--output_dir={first.trainer.folder}", NAME, "--learning_rate=1e-2", way_out)
    assert (first.file.read_bytes() == before) == (way_out != "--overwrite")
    assert run.file.name == ("mine.safetensors" if way_out == "--overwrite" else "another.safetensors")


# C23: room on the disk

Usage = namedtuple("Usage", ("total", "used", "free"))


@pytest.fixture
def free(monkeypatch) -> Any:
    """free(bytes) says how much is free on every disk from then on."""

    def set_free(number: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, (1 << 40) - number, number))

    return set_free


@pytest.fixture
def file_bytes(training, data) -> int:
    """Of the file that a run here saves."""
    return int(training.unet_only(data, STEP).file.stat().st_size)


def test_c23_room_for_not_even_one_save_gives_5_before_the_first_step(training, data, free):
    with pytest.raises(OutputError, match="1 kB free, and one save takes about") as caught:
        training.run(data, STEP, *CACHED, after={"build_optimizer": lambda: free(1000)})
    assert caught.value.exit_code == 5
    assert str(training.folder / "out1") in str(caught.value) and "Free some space" in str(caught.value)
    assert not contents(training.folder / "out1")


@pytest.mark.parametrize(
    "flags",
    [
        ["--cache_text_encoder_outputs", "--mixed_precision=bf16", "--full_bf16"],
        ["--train_text_encoder", "--ema_decay=0.9", "--save_state", "--save_clip", "--save_precision=fp16"],
    ],
    ids=["in half precision", "with encoders, average and state"],
)
def test_c23_room_for_not_even_one_whole_model_is_told_before_weights_are_read(full_training, data, free, flags):
    """By the same size that is known when everything is built."""
    told = []
    for phase in ("plan_run", "build_optimizer"):
        with pytest.raises(OutputError, match="one save takes about") as caught:
            full_training.run(data, STEP, *flags, "--cache_latents", after={phase: lambda: free(1000)})
        told.append(str(caught.value).partition(" has ")[2])
        free(1 << 40)
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("flags", "is_told"),
    [
        (["--save_every_n_steps=1"], True),
        (["--save_every_n_steps=1", "--save_last_n_steps=1"], False),
        (["--save_every_n_steps=1", "--save_precision=fp16"], False),
        (["--save_every_n_steps=4"], False),
        (["--save_every_n_steps=4", "--ema_decay=0.9"], True),
    ],
    ids=["all", "the last", "in half precision", "few", "with averages"],
)
def test_c23_room_for_some_saves_only_is_a_warning(flags, is_told, training, data, free, file_bytes):
    """Six steps, and room for three files and a half."""
    flags = ["--max_train_steps=6", *flags]
    room = int(3.5 * file_bytes)
    run = training.run(data, *flags, *CACHED, after={"build_optimizer": lambda: free(room)})
    told = [line for line in run.log if "all saves of this run take about" in line]
    assert len(told) == is_told
    assert all(str(run.trainer.folder) in line and "--save_last_n_steps" in line for line in told)
    assert len(run.losses) == 6


def test_c23_a_disk_that_fills_up_costs_files_and_no_steps(training, data, free):
    flags = ("--max_train_steps=3", NAME, "--save_every_n_steps=1")
    counter = iter((0, 10))  # bytes that are free after the first and the second step
    before: dict[str, bytes] = {}

    def fill() -> None:
        before.update(contents(training.folder / "out1"))
        if (room := next(counter, None)) == 10:
            free(room)

    with pytest.raises(OutputError, match=r"mine\.safetensors: needs [\d,]+ bytes, the disk has 10 free") as caught:
        training.run(data, *flags, *CACHED, after={"after_step": fill})
    assert caught.value.exit_code == 5 and "Free some space" in str(caught.value)
    assert set(before) == {"mine-step00000001.safetensors"}
    assert before.items() <= contents(training.folder / "out1").items()
    assert not list((training.folder / "out1").glob("*step00000003*"))


# C25, C26: machine and tokenizers


def test_c25_fp16_without_a_gpu_is_told_with_the_way_out(data, refused):
    ended = refused(data, STEP, "--mixed_precision=fp16")
    assert ended.has_read_weights
    assert "fp16 without a GPU" in ended.shown and "use --mixed_precision bf16" in ended.shown


@pytest.mark.parametrize(("capability", "is_told"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_c25_bf16_on_a_gpu_without_it_is_told(capability, is_told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    note = precision_note("bf16", torch.device("cuda"))
    assert bool(note) == is_told
    assert note is None or ("7.5" in note and "Use --mixed_precision fp16" in note)
    assert precision_note("fp16", torch.device("cuda")) is precision_note("bf16", torch.device("cpu")) is None


def test_c25_the_start_says_what_it_runs_on(training, data):
    assert "on CPU" in logged(training.unet_only(data, STEP), "mixed precision no")


def test_c26_tokenizers_that_are_nowhere_are_told_before_weights_are_read(training, data, nan_model, refused):
    model = training.folder / "alone" / "sd3.safetensors"
    model.parent.mkdir()
    shutil.copy(nan_model, model)
    ended = refused(data, STEP, model=model)
    assert ended.code == 2 and not ended.has_read_weights, ended.shown
    words = (
        "No tokenizer for clip_l, clip_g, t5xxl",
        f"beside {model}",
        "make_clip_tokenizer",
        "T5's is",
        "--tokenizer_dir",
    )
    assert [word for word in words if word not in ended.error] == []


def test_every_row_has_a_test():
    names = [name.split("_")[1] for name in globals() if name.startswith("test_c")]
    rows = {name.split()[0].lower() for name in BAD} | set(names)
    assert {f"c{number}" for number in range(1, 27)} <= rows
    used = {name for case in BAD.values() for name in case.files}
    assert {*BAD_DATASETS, *BAD_CONFIGS, *BAD_PROMPTS} <= used
