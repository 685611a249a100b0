"""A folder of pictures becomes a metadata dataset by the scripts in finetune/, and trains, with and without caches."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.prepare_buckets_latents import BucketLatentTool
from library.tensorfile import temporary_name
from tests.end_to_end.conftest import ROOT
from tools.bucket_options import BUCKET_LATENTS_SCRIPT, BucketLatentsOptions

PICTURES = {  # of the examples, by their place; two have the same stem
    "red_circle.png": "red_circle.png",
    "one/shape.png": "blue_circle.png",
    "two/shape.jpg": "white_star.jpg",
    "two/deep/square.png": "yellow_square.png",
    "two/triangle.jpg": "green_circle.jpg",
    "star.png": "red_star.png",
}
SIZES = ("--max_resolution=128,96", "--min_bucket_reso=64", "--max_bucket_reso=192")


@pytest.fixture
def pictures(training: Any) -> Path:
    """Pictures in sub-folders, each with a .caption and a .txt of tags."""
    folder: Path = training.folder / "pictures"
    for place, name in PICTURES.items():
        picture = folder / place
        picture.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(training.examples / name, picture)
        words = Path(name).stem.split("_")
        picture.with_suffix(".caption").write_text(f"a {' '.join(words)}", encoding="utf-8")
        picture.with_suffix(".txt").write_text(f"{words[1]}, small_{words[0]}", encoding="utf-8")
    return folder


@pytest.fixture
def run_script(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """run_script("finetune/x", *arguments) runs a script in this process; gives what it writes to stderr."""

    def run(script: str, *arguments: object, code: int = 0) -> str:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one run, outside tests
        capsys.readouterr()
        ended = importlib.import_module(script.replace("/", ".")).main([str(argument) for argument in arguments])
        shown = capsys.readouterr().err
        assert ended == code, shown
        return shown

    return run


def metadata_of(pictures: Path, run_script: Callable[..., str]) -> Path:
    """Captions and tags of the pictures in one file, cleaned."""
    captions, both, clean = (pictures.parent / name for name in ("captions.json", "both.json", "clean.json"))
    run_script("finetune/merge_captions_to_metadata", pictures, captions, "--recursive", "--caption_extension=.caption")
    run_script("finetune/merge_dd_tags_to_metadata", pictures, both, f"--in_json={captions}", "--recursive")
    run_script("finetune/clean_captions_and_tags", both, clean)
    return clean


def entries_of(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8")))


def told_flags(shown: str) -> list[str]:
    """What the script says a training has to be given."""
    (line,) = (line for line in shown.splitlines() if "train with these caches by: " in line)
    return shlex.split(line.partition(" by: ")[2])


def cache_contents(folder: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Header and bytes of each cache file. Safetensors does not keep the order of the header."""
    contents = {}
    for path in sorted(folder.rglob("*.safetensors")):
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        contents[path.relative_to(folder).as_posix()] = json.loads(data[8:end]), data[end:]
    return contents


@pytest.mark.parametrize(
    ("script", "kind", "flags"),
    [("fine_tune", "sd1", ("--flip_aug",)), ("sdxl_train", "sdxl", ("--bucket_reso_steps=32",))],
)
def test_pictures_become_metadata_that_trains_alike_with_and_without_caches(
    training_of: Any, pictures: Path, run_script: Any, script: str, kind: str, flags: tuple[str, ...]
):
    train = training_of(script, kind)
    clean, prepared = metadata_of(pictures, run_script), pictures.parent / "lat.json"
    shown = run_script("finetune/prepare_buckets_latents", pictures, clean, prepared, train.model, *SIZES, *flags)
    entries = entries_of(prepared)
    assert set(entries) == set(PICTURES)
    assert entries["one/shape.png"]["caption"] == "a blue circle"
    assert entries["two/shape.jpg"]["tags"] == "star, small white"

    command = [f"--output_dir={train.folder / 'out'}", "--max_train_steps=2", "--train_batch_size=2", "--seed=5"]
    command += ["--learning_rate=1e-3", "--no_metadata", "--max_data_loader_n_workers=0", *train.family_flags]
    cached = train.run_arguments([*command, *told_flags(shown)])
    assert "latents: all 6 are cached." in cached.log
    buckets = {record.path: crop.bucket for record, crop in zip(*plan_of(cached), strict=True)}
    assert {pictures / name: tuple(entry["train_resolution"]) for name, entry in entries.items()} == buckets
    assert len(set(buckets.values())) > 1

    without = [flag for flag in told_flags(shown) if flag != "--cache_latents_to_disk"]
    live = train.run_arguments([*command, f"--output_dir={train.folder / 'live'}", *without])
    assert live.losses == pytest.approx(cached.losses, rel=1e-5)
    assert not any("latents" in line for line in live.log)


def plan_of(run: Any) -> tuple[Any, Any]:
    return run.trainer.plan.records, run.trainer.plan.crops


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3"])
def test_the_caches_are_those_of_the_caching_tool_byte_for_byte(
    training: Any, training_of: Any, pictures: Path, run_script: Any, kind: str
):
    """It is given what the script says."""
    model = training.model if kind == "sd3" else training_of("train_network", kind).model
    file, prepared = pictures.parent / "meta.jsonl", pictures.parent / "lat.jsonl"
    file.write_text("\n".join(json.dumps({"image_path": name}) for name in PICTURES), encoding="utf-8")
    flags = (*SIZES, "--flip_aug", "--alpha_mask=true", "--mixed_precision=bf16", "--batch_size=2")
    shown = run_script("finetune/prepare_buckets_latents", pictures, file, prepared, model, *flags)
    ours = cache_contents(pictures)
    for path in pictures.rglob("*.safetensors"):
        path.unlink()
    told = run_script("tools/cache_latents", *told_flags(shown), "--vae_batch_size=2")
    assert "latents: made 6 (6 new), kept 0" in told
    assert ours == cache_contents(pictures)
    assert len(ours) == 6 and all(name.endswith(f"_{'sd' if kind == 'sd1' else kind}.safetensors") for name in ours)


def test_sd3_trains_with_the_caches_and_the_same_entries_by_whole_paths(training: Any, pictures: Path, run_script: Any):
    file, prepared = pictures.parent / "meta.json", pictures.parent / "lat.json"
    file.write_text(json.dumps({name: {"tags": "shape", "own": 1} for name in PICTURES}), encoding="utf-8")
    arguments = (
        pictures,
        file,
        prepared,
        training.model,
        *SIZES,
        "--full_path",
        f"--cache_dir={pictures.parent / 'c'}",
    )
    flags = told_flags(run_script("finetune/prepare_buckets_latents", *arguments))
    assert set(entries_of(prepared)) == {str(pictures / name) for name in PICTURES}
    assert all(entry["own"] == 1 for entry in entries_of(prepared).values())
    own = ["--network_train_unet_only", "--max_train_steps=1", *training.own_flags, *training.family_flags]
    run = training.run_arguments([f"--output_dir={training.folder / 'out'}", "--learning_rate=1e-3", *own, *flags])
    assert "latents: all 6 are cached." in run.log


def test_pictures_that_cannot_be_used_are_listed_when_all_others_are_cached(
    training: Any, pictures: Path, run_script: Any
):
    """One is gone, one is cut off, of one only the pixels are damaged."""
    gone, short, damaged = (pictures / name for name in ("star.png", "two/triangle.jpg", "two/deep/square.png"))
    gone.unlink()
    short.write_bytes(short.read_bytes()[:500])
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2 : len(data) * 3 // 4] = bytes(len(data) * 3 // 4 - len(data) // 2)
    damaged.write_bytes(data)
    file, prepared = pictures.parent / "meta.json", pictures.parent / "lat.json"
    old = {"tags": "shape", "train_resolution": [8, 8]}
    file.write_text(json.dumps(dict.fromkeys(PICTURES, old)), encoding="utf-8")
    torso = pictures / temporary_name(2**30)  # of a process that is gone
    others = [pictures / ".1-notes.tmp", pictures / temporary_name(os.getpid())]
    for path in (torso, *others):
        path.touch()
    shown = run_script("finetune/prepare_buckets_latents", pictures, file, prepared, training.model, *SIZES, code=2)
    first, *listed = shown[shown.index("error: ") :].splitlines()
    assert first == "error: everything else is done: 3 pictures were passed over:"
    assert {line.split()[0] for line in listed} == {str(gone), str(short), str(damaged)}
    assert "what was passed over (3 pictures): remove them, or give --on_bad_file=skip." in shown
    assert f"--in_json={prepared}" in told_flags(shown)
    entries = entries_of(prepared)
    assert set(entries) == set(PICTURES)
    assert not torso.exists() and all(path.exists() for path in others)
    for path in (gone, short, damaged):
        assert entries[path.relative_to(pictures).as_posix()] == {"tags": "shape"}
    assert len(cache_contents(pictures)) == sum("train_resolution" in entry for entry in entries.values()) == 3


def test_two_processes_share_the_work_and_one_writes_the_metadata(training: Any, pictures: Path, run_script: Any):
    file = pictures.parent / "meta.json"
    file.write_text(json.dumps({name: {"tags": "shape"} for name in PICTURES}), encoding="utf-8")
    alone, shared = (pictures.parent / name for name in ("alone.json", "shared.json"))
    run_script("finetune/prepare_buckets_latents", pictures, file, alone, training.model, *SIZES)
    contents = cache_contents(pictures)
    for path in pictures.rglob("*.safetensors"):
        path.unlink()
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["finetune/prepare_buckets_latents.py", str(pictures), str(file), str(shared), str(training.model)]
    done = subprocess.run(
        [sys.executable, *command, *SIZES],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("latents: made 6 (6 new), kept 0") == 1
    assert done.stderr.count("shared.json: 6 entries, 6 with train_resolution") == 1
    assert shared.read_bytes() == alone.read_bytes()
    assert cache_contents(pictures) == contents


def test_what_is_corrected_while_it_runs_is_in_the_file_that_it_writes(training: Any, pictures: Path, caplog: Any):
    from accelerate.state import AcceleratorState

    from library.options.spec import parse_options
    from library.preparing.metadata.rewriting import Rewriting

    AcceleratorState._reset_state(reset_partial_state=True)
    caplog.set_level("INFO", logger="easel")
    file, prepared = pictures.parent / "meta.json", pictures.parent / "lat.json"
    file.write_text(json.dumps({"star.png": {"tags": "shape"}, "red_circle.png": {}}), encoding="utf-8")
    flags = [str(path) for path in (pictures, file, prepared, training.model)]
    options = parse_options(BucketLatentsOptions, [*flags, *SIZES], **BUCKET_LATENTS_SCRIPT)
    tool = BucketLatentTool(options, Rewriting(file, "IN_JSON", prepared, is_overwrite=False))
    tool.run()
    file.write_text(json.dumps({"star.png": {"tags": "by hand"}, "two/shape.jpg": {}}), encoding="utf-8")
    tool.write()
    written = entries_of(prepared)
    assert written["star.png"].keys() == {"tags", "image_size", "train_resolution"}
    assert (written["star.png"]["tags"], written["two/shape.jpg"]) == ("by hand", {})
    assert len(written) == 2
    assert "was changed while this ran" in caplog.text
    assert "2 entries, 1 with train_resolution (64x64: 1)" in caplog.text
    assert "train with these caches" not in caplog.text


def nothing_of_a_model(folder: Path) -> str:
    from safetensors.numpy import save_file

    save_file({}, folder / "nothing.safetensors")
    return str(folder / "nothing.safetensors")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"in_json": "nowhere.json"}, "error: IN_JSON: {0}/nowhere.json does not exist"),
        ({"out_json": "lat.txt"}, "error: OUT_JSON must end in .json or .jsonl, got {0}/lat.txt."),
        ({"pictures": "nowhere"}, "--train_data_dir {0}/nowhere is not a folder"),
        (
            {"model": "nothing.safetensors"},
            "error: MODEL_NAME_OR_PATH: {0}/nothing.safetensors is no model that is known here",
        ),
        ({"out_json": "old.json"}, "old.json is there already and has what the new one would not have (1): other.png"),
        (
            {"out_json": "hand.json"},
            "hand.json is there already and has what the new one would not have (1): star.png (tags)",
        ),
        ({"model": "none.safetensors"}, "error: MODEL_NAME_OR_PATH: {0}/none.safetensors does not exist."),
        ({"flags": "--vae=nowhere"}, "error: --vae: nowhere does not exist."),
        ({"flags": "--max_resolution=96,32"}, "has a side below bucket_reso_steps 64"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    training: Any, pictures: Path, run_script: Any, changed: dict[str, str], message: str
):
    folder = pictures.parent
    nothing_of_a_model(folder)
    (folder / "meta.json").write_text(json.dumps({"star.png": {"tags": "shape"}}), encoding="utf-8")
    (folder / "old.json").write_text(json.dumps({"other.png": {"caption": "by hand"}}), encoding="utf-8")
    (folder / "hand.json").write_text(json.dumps({"star.png": {"tags": "by hand"}}), encoding="utf-8")
    before = sorted(folder.rglob("*"))
    named = {"pictures": "pictures", "in_json": "meta.json", "out_json": "lat.json", "model": str(training.model)}
    places = [folder / (named | changed)[name] for name in named]
    shown = run_script("finetune/prepare_buckets_latents", *places, changed.get("flags", "--flip_aug"), code=2)
    assert message.format(folder) in shown[shown.index("error: ") :]
    assert sorted(folder.rglob("*")) == before
    assert json.loads((folder / "old.json").read_text(encoding="utf-8")) == {"other.png": {"caption": "by hand"}}
    assert json.loads((folder / "hand.json").read_text(encoding="utf-8")) == {"star.png": {"tags": "by hand"}}
