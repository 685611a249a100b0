"""Failure catalogue, section E: caches. Each row has a test that starts with its number.

Whatever lies in the place of a cache entry, the weights that are trained are those of the pictures and captions, and
nothing else in the folder is touched.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import bad_corpus
import pytest
from bad_corpus import CACHE_DAMAGE, write
from safetensors.torch import load_file

from library.errors import DatasetError, OutputError

SCRIPT = Path(__file__).resolve().parents[2] / "sd3_train_network.py"
UNET_ONLY = "--network_train_unet_only"
LATENTS, TEXTS = "--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk"
CACHED = (UNET_ONLY, LATENTS, TEXTS)
STEPS = "--max_train_epochs=1"
TOLD_AT_THE_START = ("truncated", "header only", "zero", "foreign", "foreign safetensors")
WRONG_INSIDE = ("nan", "one bit", "wrong shape", "other dtype")  # some are told only when the numbers are read


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def latent_file(folder: Path) -> Path:
    """One latent entry."""
    (path,) = folder.glob("red_star.png_0064x0064_*_sd3.safetensors")
    return path


def text_file(folder: Path) -> Path:
    """One text entry."""
    return sorted(folder.glob("text_encoder_cache/*_sd3_te.safetensors"))[0]


ENTRIES = {"latents": latent_file, "text": text_file}


def logged(run: Any, text: str) -> str:
    """The one line of the log that holds a text."""
    (line,) = {line for line in run.log if text in line}
    return line


def damage(path: Path, how: str) -> None:
    path.write_bytes(CACHE_DAMAGE[how](path.read_bytes()))


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


@pytest.fixture
def pictures(training) -> Path:
    return training.pictures()


@pytest.fixture
def dataset(training, pictures) -> Path:
    return training.dataset(pictures)


@pytest.fixture
def first(training, dataset) -> Any:
    """The run that made the caches."""
    return training.run(dataset, STEPS, *CACHED)


# E1 to E3: what lies in the place of an entry


@pytest.mark.parametrize("how", TOLD_AT_THE_START)
@pytest.mark.parametrize("kind", ENTRIES)
def test_e1_damaged_and_foreign_files_are_made_again(kind, how, training, dataset, pictures, first):
    before = contents(pictures)
    entry = ENTRIES[kind](pictures)
    damage(entry, how)
    run = training.run(dataset, STEPS, *CACHED)
    assert "making 1 of 4 (1 " in logged(run, f"{kind}: ")
    assert run.losses == pytest.approx(first.losses, rel=1e-5)
    assert changed(before, contents(pictures)) <= {str(entry.relative_to(pictures))}


@pytest.mark.parametrize("how", WRONG_INSIDE)
def test_e2_latents_with_wrong_numbers_are_not_trained_on(how, training, dataset, pictures, first):
    before = contents(pictures)
    entry = latent_file(pictures)
    damage(entry, how)
    run = training.run(dataset, STEPS, *CACHED)
    assert run.losses == pytest.approx(first.losses, rel=1e-5)
    if any(line.startswith("latents: all") for line in run.log):  # then it was found when it was read
        assert str(entry) in logged(run, "Until then the picture is decoded")
        assert "making 1 of 4" in logged(training.run(dataset, STEPS, *CACHED), "latents: ")
    assert changed(before, contents(pictures)) <= {entry.name}


@pytest.mark.parametrize("how", WRONG_INSIDE)
def test_e2_text_states_with_wrong_numbers_are_not_trained_on(how, training, dataset, pictures, first):
    entry = text_file(pictures)
    before = contents(pictures)
    damage(entry, how)
    try:
        run = training.run(dataset, STEPS, *CACHED)
    except DatasetError as error:
        assert str(entry) in str(error) and "Start again" in str(error)
        run = training.run(dataset, STEPS, *CACHED)
    assert "making 1 of 4" in logged(run, "text: ")
    assert run.losses == pytest.approx(first.losses, rel=1e-5)
    assert changed(before, contents(pictures)) <= {str(entry.relative_to(pictures))}


def npz_folder(training, *names: str) -> Path:
    """Pictures of one colour with archives of sd-scripts beside them."""
    folder = training.folder / "pictures"
    write(folder, *names)
    for number, name in enumerate(names):
        (folder / f"{name.split('_')[0]}.png").write_bytes(bad_corpus.plain((80 * number % 255, 90, 30)))
    return folder


BAD_ARCHIVES = (*("trunc", "zero", "nan", "shape", "overflowed"),)


def test_e3_archives_of_others_are_ignored(training):
    names = [f"{name}_0064x0064_sd3.npz" for name in ("good", *BAD_ARCHIVES)]
    folder = npz_folder(training, *names, "notes_sd3.npz")
    archives = {name: (folder / name).read_bytes() for name in (*names, "notes_sd3.npz")}
    dataset = training.dataset(folder, class_tokens="x")
    run = training.run(dataset, STEPS, LATENTS)
    assert run.losses == pytest.approx(training.run(dataset, STEPS).losses, rel=1e-4)
    assert "making 7 of 7 (7 new)" in logged(run, "latents: making")
    assert "--skip_cache_check uses them" in logged(run, ".npz caches")
    assert {name: (folder / name).read_bytes() for name in archives} == archives


def test_e8_of_archives_that_are_trusted_only_whole_ones_are_used(training):
    names = [f"{name}_0064x0064_sd3.npz" for name in ("good", *BAD_ARCHIVES)]
    folder = npz_folder(training, *names, "notes_sd3.npz")
    archives = {name: (folder / name).read_bytes() for name in (*names, "notes_sd3.npz")}
    run = training.run(training.dataset(folder, class_tokens="x"), STEPS, LATENTS, "--skip_cache_check")
    assert "1 .npz caches of sd-scripts are used as they are" in logged(run, "--skip_cache_check")
    assert "making 6 of 7" in logged(run, "latents: making")
    records = run.trainer.plan.records
    (latents,) = {
        float(batch.latents[row].float().mean())
        for batch in run.batches
        for row, item in enumerate(batch.plan.items)
        if records[item.record].path.name == "good.png"
    }
    assert latents == pytest.approx((0.5 - 0.0609) * 1.5305, rel=1e-2)  # what the archive holds, shifted and scaled
    assert {name: (folder / name).read_bytes() for name in archives} == archives


def test_e8_our_own_entries_are_checked_all_the_same(training, dataset, pictures, first):
    shutil.copy(pictures / "blue_triangle.png", pictures / "red_star.png")
    (pictures / "red_star.txt").write_text("another caption", encoding="utf-8")
    run = training.run(dataset, STEPS, *CACHED, "--skip_cache_check")
    assert "making 1 of 4 (1 the image changed)" in logged(run, "latents: ")
    assert "making 1 of 4" in logged(run, "text: ")
    assert run.losses == pytest.approx(training.run(dataset, STEPS, UNET_ONLY).losses, rel=1e-4)


# E4


@pytest.mark.parametrize(
    ("keys", "flags", "reason"),
    [
        ({"flip_aug": True}, [], "flip_aug changed"),
        ({"resize_interpolation": "nearest"}, [], "resize_interpolation"),
        ({}, ["--mixed_precision=bf16"], "2 new"),
        ({"alpha_mask": True}, [], "mask changed"),
    ],
    ids=["flip", "interpolation", "precision", "mask"],
)
def test_e4_what_changes_latents_makes_them_anew(keys, flags, reason, training):
    folder = training.pictures(["red_circle.png", "white_square.jpg"])
    training.run(training.dataset(folder), STEPS, LATENTS)
    dataset = training.dataset(folder, **keys)
    run = training.run(dataset, STEPS, LATENTS, *flags)
    told = logged(run, "latents: making")
    assert reason in told, told
    assert run.losses == pytest.approx(training.run(dataset, STEPS, *flags).losses, rel=1e-3)


def test_e4_another_size_is_another_entry(training, pictures):
    for side, number in ((64, 4), (96, 8)):
        run = training.run(training.dataset(pictures, resolution=side), STEPS, LATENTS)
        assert "making 4 of 4 (4 new)" in logged(run, "latents: ")
        assert len(list(pictures.glob("*_sd3.safetensors"))) == number
    assert "all 4 are cached" in logged(training.run(training.dataset(pictures), STEPS, LATENTS), "latents: ")


# E5, E6: folders and disks


def keep_to_permissions() -> None:
    """Take from root what lets it write into any folder, as the tests of others run as root."""
    drop_bounding_capability, dac_override = 24, 1
    ctypes.CDLL(None).prctl(drop_bounding_capability, dac_override, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="folders are made read-only in another way")
def test_e5_pictures_that_cannot_be_written_beside_train_with_cache_dir(training, pictures, dataset, launch):
    """That it is an error without --cache_dir, exit code 5 before weights are read, is shown in test_bad_input.py."""
    before, caches = contents(pictures), training.folder / "caches"
    arguments = training.arguments(dataset, STEPS, *CACHED, f"--cache_dir={caches}")
    pictures.chmod(0o555)
    run = launch(arguments, is_watched=False, preexec_fn=keep_to_permissions)
    pictures.chmod(0o755)
    assert run.code == 0, run.output
    assert contents(pictures) == before
    assert len(list(caches.rglob("*_sd3.safetensors"))) == len(list(caches.rglob("*_te.safetensors"))) == 4


@pytest.mark.parametrize("ending", ["_sd3.safetensors", "_te.safetensors"])
def test_e6_a_full_disk_leaves_no_torso_and_the_next_start_goes_on(ending, training, dataset, pictures, monkeypatch):
    real_replace, written = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if str(target).endswith(ending):
            written.append(target)
            if len(written) > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_replace(source, target)

    before = contents(pictures)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)") as caught:
            training.run(dataset, STEPS, *CACHED, "--vae_batch_size=1")
    assert caught.value.exit_code == 5 and ending in str(caught.value)
    after = contents(pictures)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith(".tmp")]
    assert sum(name.endswith(ending) for name in after) == 2
    run = training.run(dataset, STEPS, *CACHED)
    assert "making 2 of 4 (2 new)" in logged(run, "latents: " if "sd3" in ending else "text: ")
    fresh = training.run(dataset, STEPS, UNET_ONLY)
    assert run.losses == pytest.approx(fresh.losses, rel=1e-4)


# E7


def test_e7_two_runs_may_fill_one_folder_at_once(training, dataset, pictures, warm_python):
    commands = [[SCRIPT, *training.arguments(dataset, STEPS, *CACHED)] for _ in range(2)]
    runs = [warm_python.start(command, training.folder / f"{i}.log") for i, command in enumerate(commands)]
    assert [warm_python.wait(run) for run in runs] == [(0,), (0,)], runs[0].printed() + runs[1].printed()
    files = [path.read_bytes() for path in sorted(training.folder.glob("out*/*.safetensors"))]
    assert len(files) == 2 and files[0] == files[1]
    assert not list(pictures.rglob("*.tmp"))
    assert len(list(pictures.rglob("*_sd3.safetensors"))) == len(list(pictures.rglob("*_te.safetensors"))) == 4
    run = training.run(dataset, STEPS, *CACHED)
    assert "all 4 are cached" in logged(run, "latents: ") and "all 4 are cached" in logged(run, "text encoder")


def test_e7_a_run_with_other_settings_leaves_the_files_of_a_training_as_they_are(
    training, dataset, pictures, first, warm_python
):
    before = contents(pictures)
    others = ("--mixed_precision=bf16", "--apply_t5_attn_mask")
    arguments = training.arguments(dataset, STEPS, *CACHED, *others)

    def train_another() -> None:
        done = warm_python.start([SCRIPT, *arguments], training.folder / "another.log")
        assert warm_python.wait(done) == (0,) and done.printed().count("making 4 of 4 (4 new)") == 2, done.printed()

    run = training.run(dataset, STEPS, *CACHED, after={"load": train_another})
    assert run.losses == first.losses
    assert not [line for line in run.log if "cannot be read" in line or "decoded each time" in line]
    assert before.items() <= contents(pictures).items()
    assert "all 4 are cached" in logged(training.run(dataset, STEPS, *CACHED, *others), "text encoder")


# E9, E10: during training


@pytest.fixture
def flaky(monkeypatch) -> Any:
    """flaky(path, times) lets opening a picture fail as a network drive does, that often."""
    real_open, left = Path.open, {}

    def opened(self: Path, *args: Any, **kwargs: Any) -> Any:
        if left.get(self, 0) > 0:
            left[self] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr("library.data.files.patience.PAUSES", (0.0, 0.0, 0.0))
    return left.__setitem__


def test_e9_a_hiccup_of_the_drive_is_waited_out(training, dataset, pictures, flaky):
    calm = training.run(dataset, STEPS)
    hiccup = partial(flaky, pictures / "red_star.png", 3)
    run = training.run(dataset, STEPS, after={"load": hiccup})
    assert run.losses == calm.losses
    assert any("trying again" in line and "red_star.png" in line for line in run.log)


def test_e9_a_drive_that_is_gone_is_named(training, dataset, pictures, flaky):
    gone = partial(flaky, pictures / "red_star.png", 1000)
    with pytest.raises(DatasetError, match=r"red_star\.png cannot be decoded \(.*\)\. .*look after the drive"):
        training.run(dataset, STEPS, after={"load": gone})


@pytest.mark.parametrize(("fault", "workers"), [("gone", 0), ("gone", 2), ("nan", 0)])
def test_e10_latents_that_vanish_or_break_during_training_are_made_from_the_picture(
    fault, workers, training, dataset, pictures, first
):
    entry = latent_file(pictures)
    act = entry.unlink if fault == "gone" else partial(damage, entry, fault)
    run = training.run(dataset, STEPS, *CACHED, f"--max_data_loader_n_workers={workers}", after={"load": act})
    assert run.losses == pytest.approx(first.losses, rel=1e-5)
    told = [line for line in run.log if str(entry) in line]
    assert len(told) == 1 and "decoded each time" in told[0]
    again = training.run(dataset, STEPS, *CACHED)
    assert "making 1 of 4" in logged(again, "latents: ")
    assert again.losses == pytest.approx(first.losses, rel=1e-5)


def test_e10_text_states_that_vanish_during_training_are_named(training, dataset, pictures, first):
    entry = text_file(pictures)
    with pytest.raises(DatasetError, match="is gone") as caught:
        training.run(dataset, STEPS, *CACHED, after={"load": entry.unlink})
    assert str(entry) in str(caught.value) and "Start again" in str(caught.value)
    run = training.run(dataset, STEPS, *CACHED)
    assert "making 1 of 4" in logged(run, "text: ") and run.losses == pytest.approx(first.losses, rel=1e-5)


def test_e10_what_was_trained_before_text_states_vanished_is_saved(training, dataset, pictures, first):
    remove = partial(text_file(pictures).unlink, missing_ok=True)
    with pytest.raises(DatasetError, match="is gone"):
        training.run(dataset, "--max_train_epochs=3", *CACHED, after={"_optimizer_step": remove})
    (saved,) = training.folder.glob("out*/*-step*.safetensors")
    assert load_file(saved).keys() == first.weights.keys()


def test_every_row_has_a_test():
    assert {f"e{n}" for n in range(1, 11)} <= {name.split("_")[1] for name in globals() if name[:6] == "test_e"}
    assert {*TOLD_AT_THE_START, *WRONG_INSIDE} == set(CACHE_DAMAGE)
