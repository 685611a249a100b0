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

from library.errors import CheckpointError, DatasetError
from library.families.sd3.cache_options import (
    LATENT_CACHING_SCRIPT,
    TEXT_CACHING_SCRIPT,
    Sd3LatentCachingOptions,
    Sd3TextCachingOptions,
)
from library.log import LOGGER_NAME
from library.options.spec import parse_options
from tools.cache_latents import LatentCacheTool
from tools.cache_text_encoder_outputs import TextCacheTool

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
LATENTS, TEXTS = "tools/cache_latents.py", "tools/cache_text_encoder_outputs.py"
TOOLS = {
    LATENTS: (LatentCacheTool, Sd3LatentCachingOptions, LATENT_CACHING_SCRIPT),
    TEXTS: (TextCacheTool, Sd3TextCachingOptions, TEXT_CACHING_SCRIPT),
}
CACHED = ("--network_train_unet_only", "--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk")


def start(tool, arguments, launcher=()):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        [sys.executable, *launcher, tool, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )


def run_process(tool, arguments, launcher=(), code=0):
    """What the tool prints in a Python of its own."""
    process = start(tool, arguments, launcher)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


@pytest.fixture
def run_tool(monkeypatch):
    """What the tool logs, run in this process as its command line asks."""
    logger = logging.getLogger(LOGGER_NAME)
    level = logger.level

    def run(tool, arguments):
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one run, outside tests
        kind, options, script = TOOLS[tool]
        lines = []
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


def test_a_killed_tool_goes_on_where_it_was(training, run_tool):
    number = 40
    folder = many_pictures(training, number)
    arguments = training.arguments(training.dataset(folder, resolution=256, max_bucket_reso=512))
    process = start(LATENTS, arguments)
    while len(cache_files(folder)) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    made = {name: path.stat().st_mtime_ns for name, path in cache_files(folder).items()}
    assert 3 <= len(made) < number

    output = run_process(LATENTS, arguments)
    assert f"made {number - len(made)} ({number - len(made)} new), kept {len(made)}" in output
    files = cache_files(folder)
    assert len(files) == number
    assert {name: files[name].stat().st_mtime_ns for name in made} == made
    assert f"latents: {number} valid" in run_tool(LATENTS, [*arguments, "--cache_status"])


def test_two_processes_share_the_work(training, run_tool):
    folder = many_pictures(training, 13)
    dataset = training.dataset(folder)
    arguments = training.arguments(dataset, "--text_encoder_batch_size=2")
    for tool, what in ((LATENTS, "images"), (TEXTS, "captions")):
        output = run_process(tool, arguments, TORCHRUN)
        assert output.count("made 13 (13 new), kept 0") == 1
        assert re.search(rf"[\d.]+ {what}/s, [\d.]+ kB written", output)
    shared = {name: raw(path) for name, path in cache_files(folder).items()}
    assert len(shared) == 26
    for path in cache_files(folder).values():
        path.unlink()
    for tool in (LATENTS, TEXTS):
        run_tool(tool, arguments)
    assert {name: raw(path) for name, path in cache_files(folder).items()} == shared


def damage(path):
    """Cut a JPEG or PNG off behind its header, so that only decoding finds it."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 4] = bytes(len(data) // 4)
    path.write_bytes(bytes(data))


def test_damaged_pictures_are_told_when_all_others_are_cached(training):
    """By the process that found them and by the other, which share the work."""
    folder = many_pictures(training, 7)
    broken = [folder / name for name in ("002.png", "004.png", "005.png")]
    for path in broken:
        damage(path)
    arguments = training.arguments(training.dataset(folder), "--vae_batch_size=2")
    output = run_process(LATENTS, arguments, TORCHRUN, code=1)  # the launcher says 1 for every code
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
    assert "1 pictures cannot be used" in output and "5 are used" in output
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
    assert "stale: 1 the image changed: red_square.png_0064x0064_sd3.safetensors" in latents
    assert "left over: 1: red_circle.png_0064x0064_sd3.safetensors" in latents
    texts = run_tool(TEXTS, [*arguments, "--cache_status"])
    assert re.search(r"text: 2 valid \([\d.]+ kB\), 0 stale, 1 missing, 2 left over", texts)
    assert 'missing: 1: caption "an orange star"' in texts
    masked = run_tool(TEXTS, [*arguments, "--cache_status", "--apply_t5_attn_mask"])
    assert "text: stale: 2 another text encoder, precision or setting: " in masked
    assert {name: path.read_bytes() for name, path in cache_files(pictures).items()} == before

    pruned = run_tool(LATENTS, [*arguments, "--cache_prune"])
    assert re.search(r"latents: removed 1 files that were left over \([\d.]+ kB\)", pruned)
    assert "made 1 (1 the image changed), kept 2" in pruned
    left = cache_files(pictures)
    assert set(before) - set(left) == {"red_circle.png_0064x0064_sd3.safetensors"}
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
