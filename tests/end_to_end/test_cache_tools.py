"""The caching tools: what they make is what a training would make; kill them, share the work, look at what is there."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import safe_open

from library.data.cache.places import settings_mark
from library.errors import CheckpointError, DatasetError, OutputError
from library.log import LOGGER_NAME
from library.options.spec import parse_options
from library.tensorfile import temporary_name
from tools.cache_latents import LatentCacheTool
from tools.cache_options import (
    LATENT_CACHING_SCRIPT,
    TEXT_CACHING_SCRIPT,
    LatentCachingOptions,
    TextCachingOptions,
)
from tools.cache_text_encoder_outputs import TextCacheTool

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
LATENTS, TEXTS = "tools/cache_latents.py", "tools/cache_text_encoder_outputs.py"
TOOLS = {
    LATENTS: (LatentCacheTool, LatentCachingOptions, LATENT_CACHING_SCRIPT),
    TEXTS: (TextCacheTool, TextCachingOptions, TEXT_CACHING_SCRIPT),
}
CACHED = ("--network_train_unet_only", "--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk")


@pytest.fixture
def run_tool(monkeypatch):
    """What the tool logs, run in this process as its command line asks; `lines` has it even if there is an error."""
    logger = logging.getLogger(LOGGER_NAME)
    level = logger.level

    def run(tool, arguments, lines=None):
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one run, outside tests
        kind, options, script = TOOLS[tool]
        lines = [] if lines is None else lines
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        logger.setLevel("INFO")
        logger.addHandler(handler)
        try:
            assert kind(parse_options(options, arguments, **script)).run() == 0
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
        return "\n".join(lines)

    return run


def cache_files(folder):
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.safetensors"))}


def latent_entry(image):
    """Name of the cache file of a picture of 64 x 64 pixels."""
    return f"{image}_0064x0064{settings_mark('torch.float32')}_sd3.safetensors"


def content(path):
    """Header and bytes of every tensor. Safetensors does not keep the order of the header."""
    with safe_open(path, framework="np") as file:
        names = sorted(file.keys())
        return file.metadata(), names, [file.get_slice(name).get_shape() for name in names], path.stat().st_size


def raw(path):
    """The bytes of all tensors."""
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_the_tools_make_what_a_training_makes_which_then_makes_nothing(training, run_tool, tmp_path):
    """The command is that of the training, copied."""
    names = ["red_circle.png", "red_star.png", "white_square.jpg", "blue_circle.png"]
    pictures = training.pictures(names)
    dataset = training.dataset(pictures, flip_aug=True, validation_split=0.5)
    arguments = training.arguments(dataset, "--max_train_steps=1", *CACHED)
    training.run_arguments(arguments)
    by_training = {name: (content(path), raw(path)) for name, path in cache_files(pictures).items()}
    for path in cache_files(pictures).values():
        path.unlink()

    assert "made 4 (4 new), kept 0" in run_tool(LATENTS, arguments)
    assert "made 4 (4 new), kept 0" in run_tool(TEXTS, arguments)
    by_tools = {name: (content(path), raw(path)) for name, path in cache_files(pictures).items()}
    assert len(by_tools) == 8
    assert by_tools == by_training

    again = training.run(dataset, "--max_train_steps=1", *CACHED)
    assert any(line.startswith("latents: all 4 are cached") for line in again.log)
    assert any(line.startswith("text encoder outputs: all 4 are cached") for line in again.log)
    assert "latents: all 4 are cached" in run_tool(LATENTS, arguments)


@pytest.mark.parametrize(("script", "kind"), [("train_network", "sd1"), ("sdxl_train_network", "sdxl")])
def test_the_tools_serve_every_family(training_of, run_tool, script, kind):
    """They tell it from the file, and take the command of its script."""
    train = training_of(script, kind)
    dataset = train.dataset(train.pictures(), flip_aug=True)
    arguments = train.arguments(dataset, "--max_train_steps=1", "--noise_offset=0.1", "--train_batch_size=8", *CACHED)
    overridden = "--train_batch_size has no effect: the file gives values of its own"
    for tool in (LATENTS, TEXTS):
        told = run_tool(tool, arguments)
        assert "made 4 (4 new), kept 0" in told and told.count(overridden) == 1
    run = train.run_arguments(arguments)
    assert len([line for line in run.log if overridden in line]) == 1
    assert any(line.startswith("latents: all 4 are cached") for line in run.log)
    assert any(line.startswith("text encoder outputs: all 4 are cached") for line in run.log)


def test_what_the_text_tool_makes_serves_a_training_of_the_clips_too(training, run_tool):
    """It caches all encoders; a training that runs CLIP in every step takes T5's states from the same files."""
    dataset = training.dataset(training.pictures())
    flags = ("--max_train_steps=2", "--cache_text_encoder_outputs_to_disk")
    fresh = training.compare(dataset, "--max_train_steps=2", "--cache_text_encoder_outputs")
    run_tool(TEXTS, training.arguments(dataset))
    cached = training.compare(dataset, *flags)
    assert any(line.startswith("text encoder outputs: all 4 are cached") for line in cached.log)
    assert cached.losses == pytest.approx(fresh.losses, rel=1e-5)


def many_pictures(training, number):
    folder = training.folder / "many"
    folder.mkdir()
    for index in range(number):
        Image.effect_noise((256, 256), 40 + index % 50).convert("RGB").save(folder / f"{index:03d}.png")
        (folder / f"{index:03d}.txt").write_text(f"picture {index}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("ranks", [1, 2], ids=["one process", "two processes"])
def test_a_killed_tool_goes_on_where_it_was(ranks, training, run_tool, warm_python):
    number = 40
    folder = many_pictures(training, number)
    arguments = training.arguments(training.dataset(folder, resolution=256, max_bucket_reso=512))
    killed = warm_python.start([ROOT / LATENTS, *arguments], training.folder / "printed.log", ranks=ranks)
    while len(cache_files(folder)) < 3 and not killed.has_ended():
        time.sleep(0.01)
    for pid in killed.pids:
        os.kill(pid, signal.SIGKILL)
    assert set(warm_python.wait(killed)) == {-signal.SIGKILL}, killed.printed()
    made = {name: path.stat().st_mtime_ns for name, path in cache_files(folder).items()}
    assert 3 <= len(made) < number

    output = run_tool(LATENTS, arguments)
    assert f"made {number - len(made)} ({number - len(made)} new), kept {len(made)}" in output
    files = cache_files(folder)
    assert len(files) == number
    assert {name: files[name].stat().st_mtime_ns for name in made} == made
    (folder / temporary_name(killed.pids[0])).write_bytes(b"torso")  # the killed process may have left others
    (folder / temporary_name(os.getpid())).write_bytes(b"being written")
    num_torsos = len(list(folder.glob(".*.tmp"))) - 1
    status = run_tool(LATENTS, [*arguments, "--cache_status"])
    assert f"latents: {number} valid" in status and f"{num_torsos} left over" in status
    run_tool(LATENTS, [*arguments, "--cache_prune"])
    assert [path.read_bytes() for path in folder.glob(".*.tmp")] == [b"being written"]
    assert len(cache_files(folder)) == number


def run_pair(python, tool, arguments, folder):
    """What two processes print that find each other as those of torchrun do, and their exit codes."""
    started = python.start([ROOT / tool, *arguments], folder / f"{Path(tool).stem}.log", ranks=2)
    codes = python.wait(started)
    return started.printed(), codes


def test_two_processes_share_the_work(training, run_tool, warm_python):
    folder = many_pictures(training, 13)
    dataset = training.dataset(folder)
    arguments = training.arguments(dataset, "--text_encoder_batch_size=2")
    for tool, what in ((LATENTS, "images"), (TEXTS, "captions")):
        output, codes = run_pair(warm_python, tool, arguments, training.folder)
        assert codes == (0, 0), output
        assert output.count("made 13 (13 new), kept 0") == 1
        assert re.search(rf"[\d.]+ {what}/s, [\d.]+ kB written", output)
    shared = {name: raw(path) for name, path in cache_files(folder).items()}
    assert len(shared) == 26
    for path in cache_files(folder).values():
        path.unlink()
    for tool in (LATENTS, TEXTS):
        run_tool(tool, arguments)
    assert {name: raw(path) for name, path in cache_files(folder).items()} == shared


def test_torchrun_starts_two_processes_that_share_the_work(training):
    """And ends with 0, as both do."""
    folder = many_pictures(training, 3)
    command = [sys.executable, *TORCHRUN, LATENTS, *training.arguments(training.dataset(folder))]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("made 3 (3 new), kept 0") == 1 and len(cache_files(folder)) == 3


def damage(path):
    """Cut a JPEG or PNG off behind its header, so that only decoding finds it."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 4] = bytes(len(data) // 4)
    path.write_bytes(bytes(data))


def test_damaged_pictures_are_told_when_all_others_are_cached(training, warm_python):
    """By the process that found them and by the other, which share the work."""
    folder = many_pictures(training, 7)
    broken = [folder / name for name in ("002.png", "004.png", "005.png")]
    for path in broken:
        damage(path)
    arguments = training.arguments(training.dataset(folder), "--vae_batch_size=2")
    output, codes = run_pair(warm_python, LATENTS, arguments, training.folder)
    assert 2 in codes, output  # what ends with an error ends the other, too
    assert len(cache_files(folder)) == 4
    assert "3 problems in the data" in output
    for path in broken:
        assert re.search(rf"^\s*{re.escape(str(path))} ", output, re.MULTILINE), output


def test_damaged_pictures_are_an_error_by_default(training, run_tool):
    folder = many_pictures(training, 4)
    damage(folder / "001.png")
    arguments = training.arguments(training.dataset(folder), "--vae_batch_size=3")
    with pytest.raises(DatasetError, match=r"001\.png "):
        run_tool(LATENTS, arguments)
    assert len(cache_files(folder)) == 3


def test_with_skip_damaged_pictures_are_counted(training, run_tool):
    folder = many_pictures(training, 6)
    damage(folder / "003.png")
    arguments = training.arguments(training.dataset(folder), "--on_bad_file=skip")
    output = run_tool(LATENTS, arguments)
    assert len(cache_files(folder)) == 5
    assert "1 picture cannot be used" in output and "5 are used" in output
    assert str(folder / "003.png") in output


def test_status_and_prune_know_what_is_ours(training, run_tool, tmp_path):
    pictures = training.pictures()
    arguments = training.arguments(training.dataset(pictures))
    for tool in (LATENTS, TEXTS):
        run_tool(tool, arguments)
    (pictures / "red_star.txt").write_text("an orange star", encoding="utf-8")
    shutil.copy(pictures / "blue_triangle.png", pictures / "red_square.png")
    (pictures / "red_circle.png").unlink()
    foreign = pictures / "notes_0064x0064_sd3.safetensors"
    foreign.write_bytes(b"not ours")
    before = {name: path.read_bytes() for name, path in cache_files(pictures).items()}

    latents = run_tool(LATENTS, [*arguments, "--cache_status", "--cache_prune"])
    assert re.search(r"latents: 2 valid \([\d.]+ kB\), 1 stale, 0 missing, 1 left over", latents)
    assert f"stale: 1 the image changed: {latent_entry('red_square.png')}" in latents
    assert f"left over: 1: {latent_entry('red_circle.png')}" in latents
    texts = run_tool(TEXTS, [*arguments, "--cache_status"])
    assert re.search(r"text: 2 valid \([\d.]+ kB\), 0 stale, 1 missing, 2 left over", texts)
    assert 'missing: 1: caption "an orange star"' in texts
    masked = run_tool(TEXTS, [*arguments, "--cache_status", "--apply_t5_attn_mask"])
    assert re.search(r"text: 0 valid \(0 bytes\), 0 stale, 3 missing, 4 left over", masked)
    assert {name: path.read_bytes() for name, path in cache_files(pictures).items()} == before

    pruned = run_tool(LATENTS, [*arguments, "--cache_prune"])
    assert re.search(r"latents: removed 1 files that were left over \([\d.]+ kB\)", pruned)
    assert "made 1 (1 the image changed), kept 2" in pruned
    left = cache_files(pictures)
    assert set(before) - set(left) == {latent_entry("red_circle.png")}
    assert foreign.read_bytes() == b"not ours"
    assert "removed 2 files" in run_tool(TEXTS, [*arguments, "--cache_prune"])
    assert len([name for name in cache_files(pictures) if name.startswith("text_encoder_cache/")]) == 3


def test_status_counts_pictures_without_a_file_in_cache_dir(training, run_tool, tmp_path):
    pictures = training.pictures()
    arguments = training.arguments(training.dataset(pictures), f"--cache_dir={tmp_path / 'caches'}")
    assert "latents: 0 valid (0 bytes), 0 stale, 4 missing" in run_tool(LATENTS, [*arguments, "--cache_status"])
    assert not cache_files(tmp_path)
    run_tool(LATENTS, arguments)
    assert len(cache_files(tmp_path / "caches")) == 4
    assert not cache_files(pictures)


def test_prune_keeps_the_files_of_pictures_that_cannot_be_used_now(training, run_tool):
    pictures = training.pictures()
    arguments = training.arguments(training.dataset(pictures), "--on_bad_file=skip")
    for tool in (LATENTS, TEXTS):
        run_tool(tool, arguments)
    before = cache_files(pictures).keys()
    whole = (pictures / "red_star.png").read_bytes()
    (pictures / "red_star.png").write_bytes(whole[:100])
    for tool, number in ((LATENTS, 1), (TEXTS, 1)):
        pruned = run_tool(tool, [*arguments, "--cache_prune"])
        assert f"{number} files are kept that may be of pictures which are not used now" in pruned
        assert "removed 0 files" in pruned
    assert cache_files(pictures).keys() == before
    (pictures / "red_star.png").unlink()
    assert "removed 1 files" in run_tool(LATENTS, [*arguments, "--cache_prune"])
    assert "removed 1 files" in run_tool(TEXTS, [*arguments, "--cache_prune"])


def test_status_is_shown_of_data_that_is_refused(training, run_tool):
    pictures = training.pictures()
    arguments = training.arguments(training.dataset(pictures))
    run_tool(LATENTS, arguments)
    (pictures / "red_star.png").write_bytes(b"no picture")
    looked, made = [], []
    with pytest.raises(DatasetError, match=r"red_star\.png") as caught:
        run_tool(LATENTS, [*arguments, "--cache_status"], looked)
    assert caught.value.exit_code == 2
    (line,) = [line for line in looked if line.startswith("latents: 3 valid")]
    assert "0 left over" in line
    with pytest.raises(DatasetError, match=r"red_star\.png"):
        run_tool(LATENTS, arguments, made)
    assert not [line for line in made if "valid" in line]


def test_status_lists_the_folders_of_other_pictures_in_cache_dir(training, run_tool, tmp_path):
    first, second = training.pictures(), training.pictures(to="others")
    caches = f"--cache_dir={tmp_path / 'caches'}"
    for pictures in (first, second):
        run_tool(LATENTS, training.arguments(training.dataset(pictures), caches))
    before = cache_files(tmp_path / "caches")
    arguments = training.arguments(training.dataset(first), caches)
    status = run_tool(LATENTS, [*arguments, "--cache_status"])
    assert "4 valid" in status and "0 left over" in status
    assert re.search(
        r"1 folders in \S+caches are of no picture here, and are left as they are: others-[0-9a-f]+$", status
    )
    run_tool(LATENTS, [*arguments, "--cache_prune"])
    assert cache_files(tmp_path / "caches") == before


@pytest.mark.parametrize(
    ("is_given", "advice"), [(True, "Choose another --cache_dir"), (False, "Give a folder for them with")]
)
def test_where_files_cannot_be_written_only_what_helps_is_advised(is_given, advice, training, run_tool, tmp_path):
    pictures = training.pictures()
    (tmp_path / "file").write_bytes(b"")
    (pictures / "text_encoder_cache").write_bytes(b"")
    flags = [f"--cache_dir={tmp_path / 'file'}"] if is_given else []
    with pytest.raises(OutputError, match=advice) as caught:
        run_tool(TEXTS, training.arguments(training.dataset(pictures), *flags))
    assert "_to_disk" not in str(caught.value)


def test_variants_are_cached_for_a_training_that_shuffles(training, run_tool):
    dataset = training.dataset(
        training.pictures(), shuffle_caption=True, caption_separator=" ", caption_dropout_rate=0.1
    )
    flags = ("--text_encoder_cache_variants=3", "--max_train_steps=2", *CACHED)
    arguments = training.arguments(dataset, *flags)
    assert "made 13 (13 new)" in run_tool(TEXTS, arguments)  # three of each of four captions, and the empty one
    again = training.run(dataset, *flags)
    assert any(line.startswith("text encoder outputs: all 13 are cached") for line in again.log)


def test_another_family_is_named(training, run_tool, tmp_path):
    import torch
    from safetensors.torch import save_file

    other = tmp_path / "other.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 1)}, other)
    arguments = training.arguments(training.dataset(training.pictures()), model=other)
    for tool in (LATENTS, TEXTS):
        with pytest.raises(CheckpointError, match=rf"{re.escape(str(other))} is a FLUX model"):
            run_tool(tool, arguments)
    with pytest.raises(CheckpointError, match="FLUX"):
        run_tool(LATENTS, [*arguments, "--sd3"])


def test_the_tool_says_that_it_writes_files(training, run_tool):
    arguments = training.arguments(training.dataset(training.pictures()), "--cache_latents")
    output = run_tool(LATENTS, arguments)
    assert output.count("--cache_latents: this tool writes files, as --cache_latents_to_disk does.") == 1


def test_nothing_but_headers_is_imported_where_all_is_valid(training, run_tool, tmp_path):
    arguments = training.arguments(training.dataset(training.pictures()))
    run_tool(TEXTS, arguments)
    script = tmp_path / "witness.py"
    script.write_text(
        "import sys\nfrom tools import cache_text_encoder_outputs as tool\n"
        "code = tool.main()\nprint('imported:', sorted({'transformers', 'diffusers'} & set(sys.modules)))\n"
        "sys.exit(code)\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, script, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert "imported: []" in done.stdout
