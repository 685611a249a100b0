"""The table of docs/memory.md is what is computed, and its models have the sizes of the published files."""

from pathlib import Path

import pytest

from benchmarks.fit_table import CHECKPOINTED, LORA_SETTINGS, forecaster_of, write_data, write_models
from benchmarks.memory_table import GIB, MODELS
from library.tensorfile import read_header

PAGE = Path(__file__).resolve().parents[3] / "docs" / "memory.md"
NAME = "SD3-medium"


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Of a model of the real size, and of one picture."""
    folder = tmp_path_factory.mktemp("real")
    return [*write_models(folder, MODELS[NAME]), *write_data(folder)]


def test_the_parts_have_as_many_numbers_as_the_published_ones(flags):
    counts = {}
    for name, path in (flag.removeprefix("--").split("=", 1) for flag in flags[:4]):
        counts[name] = sum((info.end - info.start) // 2 for info in read_header(path).tensors.values())
    base = counts.pop("pretrained_model_name_or_path")
    assert base == 2_084_951_104 + 83_819_683  # MMDiT and VAE
    assert counts == {"clip_l": 123_650_304, "clip_g": 694_659_840, "t5xxl": 4_762_310_656}


def test_a_row_of_the_page_is_what_is_foretold(flags):
    words = next(words for words, own in LORA_SETTINGS if own == CHECKPOINTED)
    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {words} |"))
    forecaster = forecaster_of(flags, CHECKPOINTED, MODELS[NAME])
    found = forecaster.of(forecaster.trainer.options).training.device / GIB
    assert row.split(" | ")[1] == f"{found:.1f}"
