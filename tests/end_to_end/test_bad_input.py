"""Bad input as users give it: an exit code, one error that names the file and the way out, no traceback.

The model of these runs has the header of a real one, and every number in it is NaN. Reading a weight would end with a
message about that, so each test also shows that its fault is found before. The catalogue of failures is gone through
row by row in test_failures_*.py.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from bad_corpus import BAD_DATASETS, changed_dataset, png
from bad_models import BAD_MODELS

import sd3_train_network
from library.log import LOGGER_NAME

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "examples" / "pictures"
NAN_FOUND = "has NaN or infinite values"
UNCAPTIONED = ("enable_bucket = true", 'enable_bucket = true\nclass_tokens = "shape"')


@dataclass(frozen=True)
class Outcome:
    """What a user sees of a run.

    Attributes:
        code: The exit code.
        shown: Everything on stderr.
    """

    code: int
    shown: str

    @property
    def error(self) -> str:
        """The error with its list, if it has one. There is one, it comes last, and no traceback is around it."""
        found = re.findall(r"^error: .*$", self.shown, re.MULTILINE)
        assert len(found) == 1 and "Traceback" not in self.shown, self.shown
        return self.shown[self.shown.index(found[0]) :].rstrip()

    def has_read_weights(self) -> bool:
        """Whether the run got as far as the numbers of the model."""
        return NAN_FOUND in self.shown


class Attempt:
    """Files and runs of one test."""

    def __init__(self, folder: Path, model: Path, run: Callable[[list[str]], Outcome]) -> None:
        self.folder, self.model, self._run = folder, model, run

    def file(self, name: str, content: bytes | str) -> Path:
        """A file in the test's folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def empty_folder(self) -> Path:
        """A folder without anything in it."""
        folder = self.folder / "empty"
        folder.mkdir()
        return folder

    def pictures(self, **files: bytes | str) -> Path:
        """A folder with a good picture and these files; _ in a name stands for its dot."""
        folder = self.folder / "pictures"
        folder.mkdir()
        for name in ("red_circle.png", "red_circle.txt"):
            shutil.copy(PICTURES / name, folder)
        for name, content in files.items():
            self.file(f"pictures/{name.replace('_', '.')}", content)
        return folder

    def dataset(self, *changes: tuple[str, str], pictures: Path = PICTURES) -> str:
        """--dataset_config with a good file, after replacing texts in it."""
        content = changed_dataset(*changes).decode().replace("PICTURES", str(pictures))
        return f"--dataset_config={self.file('data.toml', content)}"

    def arguments(self, *flags: str) -> list[str]:
        """A command line that is right but for `flags`, which go before their likes."""
        usual = [
            f"--pretrained_model_name_or_path={self.model}",
            f"--output_dir={self.folder / 'out'}",
            *("--network_module=networks.lora", "--max_train_steps=1", "--seed=1", "--max_data_loader_n_workers=0"),
        ]
        if not any(flag.startswith("--dataset_config") for flag in flags):
            usual.append(self.dataset())
        given = {flag.partition("=")[0] for flag in flags}
        return [flag for flag in usual if flag.partition("=")[0] not in given] + list(flags)

    def run(self, *flags: str) -> Outcome:
        """Run in this process."""
        return self._run(self.arguments(*flags))


@pytest.fixture
def attempt(tmp_path: Path, nan_model: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Attempt]:
    """Bad input for runs in this process."""
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.handlers[:], logger.propagate, logger.level

    def run(arguments: list[str]) -> Outcome:
        code = sd3_train_network.main(arguments)
        return Outcome(code, capsys.readouterr().err)

    yield Attempt(tmp_path, nan_model, run)
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


GOOD_PNG = (PICTURES / "red_circle.png").read_bytes()
GOOD_JPEG = (PICTURES / "white_star.jpg").read_bytes()
BROKEN_INSIDE = png(64, 64, b"no deflate stream")
HUGE = png(20000, 10000, zlib.compress(b"\0"))

Case = tuple[Callable[[Attempt], "str | Sequence[str]"], tuple[str, ...]]


def model(path: Path) -> str:
    return f"--pretrained_model_name_or_path={path}"


DATA: dict[str, Case] = {
    "no_folder": (
        lambda a: a.dataset(pictures=a.folder / "a" / "b"),
        ("data.toml: image_dir ", "does not exist; the nearest folder that does is"),
    ),
    "empty_folder": (
        lambda a: a.dataset(pictures=a.empty_folder()),
        ("empty has no images, it is empty; put pictures into it",),
    ),
    "no_pictures": (
        lambda a: a.dataset(pictures=a.file("texts/a.txt", "x").parent),
        ("texts has no images; its files are 1 .txt",),
    ),
    "pictures_one_level_down": (
        lambda a: a.dataset(pictures=a.file("top/sub/a.png", GOOD_PNG).parent.parent),
        ("top has no images, only folders (sub)", "subset of its own"),
    ),
    "bad_pictures": (
        lambda a: a.dataset(
            UNCAPTIONED,
            pictures=a.pictures(
                zero_png="",
                page_jpg="<html>404</html>",
                cut_png=GOOD_PNG[:-30],
                cut_jpg=GOOD_JPEG[:-300],
                noise_png=bytes(range(200)),
            ),
        ),
        (
            *("data.toml: 5 problems in the data:", "zero.png is empty (0 bytes)", "page.jpg is not an image"),
            *("cut.png is cut off", "cut.jpg is cut off", "noise.png is damaged", "replace or remove it"),
        ),
    ),
    "broken_and_broken_behind_the_header": (
        lambda a: a.dataset(UNCAPTIONED, pictures=a.pictures(a_png=GOOD_PNG[:-30], b_png=BROKEN_INSIDE)),
        ("2 problems in the data:", "a.png is cut off", "b.png cannot be decoded"),
    ),
    "broken_behind_the_header": (
        lambda a: a.dataset(UNCAPTIONED, pictures=a.pictures(a_png=BROKEN_INSIDE, b_png=BROKEN_INSIDE)),
        ("2 problems in the data:", "a.png cannot be decoded", "b.png cannot be decoded", "remove the picture"),
    ),
    "broken_behind_the_header_with_cache": (
        lambda a: [a.dataset(UNCAPTIONED, pictures=a.pictures(a_png=BROKEN_INSIDE)), "--cache_latents"],
        ("data.toml: ", "a.png cannot be decoded", "remove the picture"),
    ),
    "huge_picture": (
        lambda a: [a.dataset(UNCAPTIONED, pictures=a.pictures(huge_png=HUGE)), "--max_image_pixels=100000000"],
        ("huge.png", "20000x10000", "max_image_pixels"),
    ),
    "no_captions": (
        lambda a: a.dataset(pictures=a.pictures(a_png=GOOD_PNG, b_png=GOOD_PNG)),
        ("2 problems", "a.png has no caption file a.txt", "b.png has no caption", 'missing_caption = "allow"'),
    ),
    "empty_captions": (
        lambda a: a.dataset(pictures=a.pictures(a_png=GOOD_PNG, a_txt="", b_png=GOOD_PNG, b_txt="\n \n")),
        ("2 problems", "a.txt has no text", "b.txt has no text", "write a caption"),
    ),
    "captions_not_utf8": (
        lambda a: a.dataset(pictures=a.pictures(a_png=GOOD_PNG, a_txt=b"caf\xe9", b_png=GOOD_PNG, b_txt=b"\xe4")),
        ("a.txt is not UTF-8 (byte 0xe9 at 3)", "b.txt is not UTF-8", "save it again as UTF-8", "caption_encoding"),
    ),
    "captions_of_another_extension": (
        lambda a: a.dataset(('".txt"', '".caption"')),
        ("has no .caption files but .txt files", 'set caption_extension = ".txt"'),
    ),
    "pictures_that_share_a_caption": (
        lambda a: a.dataset(pictures=a.pictures(a_png=GOOD_PNG, a_jpg=GOOD_JPEG, a_txt="x")),
        ("a.jpg shares the caption file a.txt with a.png", "a.png shares", "rename one"),
    ),
}


def check(attempt: Attempt, case: Case) -> None:
    make_flags, words = case
    flags = make_flags(attempt)
    outcome = attempt.run(*([flags] if isinstance(flags, str) else flags))
    assert outcome.code == 2, outcome.shown
    assert not outcome.has_read_weights()
    for word in words:
        assert word in outcome.error


@pytest.mark.parametrize("case", DATA.values(), ids=DATA)
def test_data(case, attempt):
    check(attempt, case)


def test_a_launch_that_got_fewer_processes_gives_3(attempt, monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    outcome = attempt.run()
    assert outcome.code == 3
    assert "asks for several processes" in outcome.error and "torchrun" in outcome.error


def test_options_without_meaning_for_sd3_are_one_warning(attempt):
    outcome = attempt.run("--v2", "--clip_skip=2", "--min_snr_gamma=5", model(attempt.folder / "none"))
    (warning,) = re.findall("^WARNING.*", outcome.shown, re.MULTILINE)
    assert all(flag in warning for flag in ("--v2", "--clip_skip", "--min_snr_gamma"))


def test_empty_texts_are_not_given(attempt):
    flags = [f"--{name}=" for name in ("vae", "clip_l", "clip_g", "t5xxl", "network_weights", "sample_prompts")]
    assert attempt.run(*flags).has_read_weights()


def test_pictures_without_caption_and_class_tokens_are_counted(attempt):
    dataset = attempt.dataset(pictures=attempt.pictures(a_png=GOOD_PNG))
    outcome = attempt.run(dataset, "--missing_caption=allow")
    assert outcome.has_read_weights()
    assert "an empty caption: 1 (a.png)" in outcome.shown


def test_debug_shows_where_an_error_comes_from(attempt):
    outcome = attempt.run("--debug", model(attempt.folder / "none.safetensors"))
    assert outcome.code == 2
    assert "Traceback" in outcome.shown and "inspect_files" in outcome.shown
    assert outcome.shown.splitlines()[-1].startswith("error: --pretrained_model_name_or_path: ")


# Processes of their own


def start(arguments: list[str], *command: str, **options: object) -> Outcome:
    done = subprocess.run(
        [sys.executable, *(command or ("sd3_train_network.py",)), *arguments],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
        **options,  # type: ignore[call-overload]
    )
    return Outcome(done.returncode, done.stderr)


WITHOUT_TORCH = """
import sys
import sd3_train_network
code = sd3_train_network.main()
heavy = {"torch", "numpy", "transformers", "diffusers", "accelerate", "safetensors"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else code)
"""


@pytest.mark.parametrize("name", ["xl.safetensors", "cut.safetensors"])
def test_faults_of_models_are_told_before_torch_is_loaded(name, attempt):
    file = attempt.file(name, BAD_MODELS[name](attempt.model.read_bytes()))
    outcome = start(attempt.arguments(model(file)), "-c", WITHOUT_TORCH)
    assert outcome.code == 2, outcome.shown
    assert str(file) in outcome.error


@pytest.mark.parametrize("name", ["typos.toml", "empty_dir.toml"])
def test_faults_of_dataset_files_are_told_before_torch_is_loaded(name, attempt):
    file = attempt.file(name, BAD_DATASETS[name])
    outcome = start(attempt.arguments(f"--dataset_config={file}"), "-c", WITHOUT_TORCH)
    assert outcome.code == 2, outcome.shown
    assert str(file) in outcome.error


def test_faults_of_pictures_are_told_before_torch_is_loaded(attempt):
    make_flags, words = DATA["no_folder"]
    outcome = start(attempt.arguments(str(make_flags(attempt))), "-c", WITHOUT_TORCH)
    assert outcome.code == 2, outcome.shown
    assert all(word in outcome.error for word in words)


def test_the_script_ends_with_the_exit_code(attempt):
    attempt.file("file", "")
    assert start(attempt.arguments(f"--output_dir={attempt.folder / 'file'}")).code == 5
    assert start(attempt.arguments("--lerning_rate=1")).code == 2


def keep_to_permissions() -> None:
    """Take from root what lets it write into any folder, as the tests of others run as root."""
    drop_bounding_capability, dac_override = 24, 1
    ctypes.CDLL(None).prctl(drop_bounding_capability, dac_override, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="folders are made read-only in another way")
@pytest.mark.parametrize(
    "flags", [["--cache_latents_to_disk"], ["--cache_text_encoder_outputs_to_disk", "--network_train_unet_only"]]
)
def test_disk_caches_of_a_read_only_folder_give_5_before_weights_are_read(flags, attempt):
    folder = attempt.pictures()
    folder.chmod(0o555)
    arguments = attempt.arguments(attempt.dataset(pictures=folder), *flags)
    outcome = start(arguments, preexec_fn=keep_to_permissions)
    folder.chmod(0o755)
    assert outcome.code == 5 and not outcome.has_read_weights(), outcome.shown
    assert str(folder) in outcome.error and "cache files cannot be written there" in outcome.error
    assert "--cache_dir" in outcome.error
    assert "_to_disk" in outcome.error
    assert sorted(os.listdir(folder)) == ["red_circle.png", "red_circle.txt"]
