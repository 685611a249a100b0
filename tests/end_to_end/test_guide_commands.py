"""The training of the training guide, on a tiny model in place of the drawing one, and the pictures of the guides.

In test_documented_commands.py all trainings of these pages train for an epoch. Here the first one trains for two, and
what it writes is looked at. It runs in this process, which saves it the start of Python and torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.tiny_sd3.make import build_tiny_sd3
from tests.end_to_end.test_documented_commands import Block, read_blocks, run_here

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = ("training_guide.md", "troubleshooting.md")
MODEL = "examples.drawing_sd3.make"
SCRIPT = "sd3_train_network.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model where the pages have the drawing one."""
    place = tmp_path_factory.mktemp("guide")
    build_tiny_sd3(place / "drawing")
    return place


def blocks(page: str) -> list[Block]:
    return list(read_blocks(ROOT / "docs" / page))


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], str]:
    """Runs a command of a page in the folder; returns what it prints."""
    monkeypatch.chdir(folder)

    def in_folder(words: list[str]) -> str:
        assert words[0] == "python", words
        return run_here(words, "in the guide", monkeypatch)

    return in_folder


def commands_of(page: str, folder: Path, run: Callable[[list[str]], str]) -> list[list[str]]:
    """The trainings of a page; what they read is made on the way."""
    trainings = []
    for block in blocks(page):
        if "file" in block.notes:
            (folder / block.notes["file"]).write_text(block.text + "\n", encoding="utf-8")
        for words in block.commands() if block.is_command else []:
            if SCRIPT in words:
                trainings.append(words)
            elif MODEL not in words:
                run(words)
    return trainings


def test_the_training_of_the_guide_writes_what_the_page_shows(folder: Path, run: Callable[[list[str]], str]):
    words = commands_of("training_guide.md", folder, run)[0]
    few = [
        "--max_train_epochs=2",
        "--sample_every_n_epochs=1",
        "--save_every_n_epochs=1",
        "--validate_every_n_epochs=1",
    ]
    printed = run([*words, *few])
    shown = (ROOT / "docs" / "training_guide.md").read_text(encoding="utf-8")
    names = ("toy.safetensors", "toy_curves.png", "toy_loss_by_image.csv", "sample/toy_contact_sheet.png")
    for name in names:
        assert (folder / "out" / name).is_file(), printed
        assert f"`out/{name}`" in shown
    assert "lowest validation loss" in printed


def test_every_picture_of_a_page_is_there_and_small():
    for page in PAGES:
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        pictures = re.findall(r"images/[\w.]+", text)
        assert pictures
        for name in pictures:
            assert (ROOT / "docs" / name).stat().st_size < 150_000, name
