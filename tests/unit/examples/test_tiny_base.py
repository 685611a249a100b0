"""The small model that ships with the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.tiny_sd3.build import Plan
from examples.tiny_sd3.painter import Painter, seeds_for
from examples.tiny_sd3.quality import GROUPS, asked, shares
from examples.tiny_sd3.start import write_short_tokenizers
from library.tensorfile import read_header

BASE = Path(__file__).resolve().parents[3] / "examples" / "tiny_sd3" / "base"
MODEL = BASE / "sd3_tiny.safetensors"
MOST_BYTES = 12_000_000
NUM_DRAWN = 8
ENCODERS = ("clip_l", "clip_g", "t5xxl")


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in BASE.rglob("*") if path.is_file()) <= MOST_BYTES


def test_everything_is_in_the_one_file_in_fp16():
    header = read_header(MODEL)
    assert {info.dtype for info in header.tensors.values()} == {"F16"}
    prefixes = ("model.diffusion_model.", "first_stage_model.", *(f"text_encoders.{name}." for name in ENCODERS))
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in header.tensors), prefix
    assert header.metadata == {"modelspec.architecture": "stable-diffusion-3-medium"}


def test_the_tokenizers_beside_it_are_those_that_the_code_writes(tmp_path: Path):
    write_short_tokenizers(tmp_path)
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 8
    for name in written:
        assert (BASE / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_log_has_every_part_to_its_end():
    lines = (BASE / "training_log.txt").read_text(encoding="utf-8").splitlines()
    steps: dict[str, int] = {}
    for part, step, *_ in (line.split(",") for line in lines if not line.startswith(("#", "part"))):
        steps[part] = int(step)
    plan = Plan()
    assert steps == {
        "tiny_sd3_vae": plan.vae_steps,
        "tiny_sd3_decoder": plan.decoder_steps,
        "sd3_tiny": plan.steps,
    }


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(MODEL)


def test_it_draws_what_a_simple_caption_asks_for(painter: Painter):
    wanted = asked("simple", NUM_DRAWN)
    captions = [what.caption for what in wanted]
    right = shares(painter.paint(captions, seeds_for(7, "simple", NUM_DRAWN), steps=12), wanted)
    assert right["background"] == 1
    assert right["all"] >= 1 - 1 / NUM_DRAWN


def test_the_readme_gives_the_figures_of_every_group():
    text = (BASE / "README.md").read_text(encoding="utf-8")
    table = (BASE / "quality.md").read_text(encoding="utf-8")
    assert table.strip() in text
    assert all(title in table for title in GROUPS.values())
