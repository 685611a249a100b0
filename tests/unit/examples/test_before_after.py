"""The sheet that shows what a LoRA changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from examples.tiny_sd3.before_after import draw_before_after, main, read_prompts
from examples.tiny_sd3.painter import Painter
from library.errors import OptionError
from networks.lora_sd3 import create_network

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = "a red star --w 64 --h 64 --d 1 --s 2 --l 3\na blue circle --w 64 --h 64 --d 2 --s 2 --l 3\n"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS, encoding="utf-8")
    return path


@pytest.fixture
def lora(tmp_path: Path, tiny_sd3: Path) -> Path:
    """A LoRA that changes something."""
    network = create_network(1.0, 4, 4, None, None, Painter(tiny_sd3).mmdit)
    for adapter in network.adapters():
        for part in adapter._weights(adapter.lora_up):
            torch.nn.init.normal_(part, std=0.1, generator=torch.Generator().manual_seed(len(adapter.name)))
    network.save_weights(tmp_path / "some.safetensors")
    return tmp_path / "some.safetensors"


def test_the_columns_are_the_strengths_0_half_and_1(tiny_sd3: Path, lora: Path, prompts: Path):
    cells = [cell for cell in _cells(draw_before_after(Painter(tiny_sd3), lora, read_prompts(prompts)))]
    for strength, column in zip((None, 0.5, 1.0), cells, strict=True):
        painter = Painter(tiny_sd3)
        if strength:
            painter.add_lora(lora, strength)
        drawn = [painter.paint([text], [seed], steps=2, guidance=3.0)[0] for text, seed in (("a red star", 1),)]
        assert column == drawn[0].resize((128, 128), Image.Resampling.NEAREST).tobytes()
    assert len(set(cells)) == 3


def _cells(sheet: Image.Image) -> list[bytes]:
    """The three pictures of the first row."""
    left, top, step = 212, 24, 134
    return [sheet.crop((left + n * step, top, left + n * step + 128, top + 128)).tobytes() for n in range(3)]


def test_the_sheet_lies_beside_the_lora_unless_it_is_told_where(tiny_sd3: Path, lora: Path, prompts: Path):
    assert main([str(tiny_sd3), "--lora", str(lora), "--prompts", str(prompts)]) == 0
    with Image.open(lora.with_name("some_before_after.png")) as sheet:
        assert sheet.width > 3 * 128 and sheet.height > 2 * 128


@pytest.mark.parametrize("options", ["--w 64 --h 64", "--w 64 --h 64 --d 1 --n blurry", "--w 96 --h 64 --d 1"])
def test_a_prompt_that_the_sheet_cannot_show_is_named(options: str, prompts: Path):
    prompts.write_text(f"a cat {options}\n", encoding="utf-8")
    with pytest.raises(OptionError, match="'a cat' must have a seed"):
        read_prompts(prompts)


def test_a_lora_that_is_not_there_is_one_sentence(tiny_sd3: Path, prompts: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tiny_sd3), "--lora=nowhere.safetensors", "--prompts", str(prompts)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "nowhere.safetensors" in line


def test_the_prompts_of_the_example_can_be_shown():
    assert len(read_prompts(ROOT / "examples" / "zorp_prompts.txt")) == 7
