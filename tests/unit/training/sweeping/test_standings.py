"""Which of several trainings is best, and the page that shows it."""

import json
import math
from pathlib import Path

import pytest

from library.errors import CheckpointError
from library.training.sweeping.standings import Standing, ranked, write_standings
from library.training.sweeping.sweep_page import page
from library.training.watching.numbers import RunNumbers, read_numbers, write_numbers


def standing(name: str, validation, *, saved=(), steps: int = 6, problem: str = "", folder: Path = Path("out")):
    numbers = RunNumbers(steps, 6, (0.5, 0.25, math.nan, 0.125), tuple(validation), tuple(saved))
    return Standing(name, folder / name, {"network_dim": name[-1]}, numbers, problem)


def test_the_lowest_validation_loss_is_first_and_who_has_none_is_last():
    rows = [standing("a1", [(2, 0.3), (4, 0.2)]), standing("a2", []), standing("a3", [(2, 0.1), (4, math.nan)])]
    assert [row.name for row in ranked(rows)] == ["a3", "a1", "a2"]
    assert rows[0].best == (0.2, 4, "") and rows[1].best is None and rows[2].best == (0.1, 2, "")


def test_a_file_that_can_be_used_counts_and_not_a_loss_between_files(tmp_path: Path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"")
    gone = str(tmp_path / "gone.safetensors")
    found = standing("a1", [(2, 0.1), (4, 0.3), (6, 0.2)], saved=[(gone, 2), (str(file), 6)])
    assert found.best == (0.2, 6, str(file))


def test_numbers_come_back_from_their_file(tmp_path: Path):
    numbers = standing("a1", [(2, 0.1), (4, math.nan)], saved=[("x", 2)]).numbers
    assert numbers is not None
    write_numbers(tmp_path / "n.json", numbers)
    assert repr(read_numbers(tmp_path / "n.json")) == repr(numbers)
    assert read_numbers(tmp_path / "other.json") is None
    (tmp_path / "n.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no file of a run's numbers"):
        read_numbers(tmp_path / "n.json")


def test_the_ranking_is_written_with_what_failed(tmp_path: Path):
    write_standings(tmp_path / "r.json", [standing("a1", [], problem="no memory"), standing("a2", [(2, 0.5)], steps=2)])
    rows = json.loads((tmp_path / "r.json").read_text())["variations"]
    assert [(row["rank"], row["name"], row["validation_loss"], row["step"]) for row in rows] == [
        (1, "a2", 0.5, 2),
        (None, "a1", None, None),
    ]
    assert rows[0]["state"] == "stopped after 2 of 6 steps" and rows[1]["state"] == "failed: no memory"


def test_the_page_ranks_draws_and_escapes(tmp_path: Path):
    sheet = tmp_path / "<b>1" / "sample" / "<b>1_contact_sheet.png"
    sheet.parent.mkdir(parents=True)
    sheet.write_bytes(b"picture")
    rows = [standing("<b>1", [(2, 0.25), (4, 0.5)], folder=tmp_path), standing("x2", [(2, 0.125)], folder=tmp_path)]
    text = page("Sweep <i>", rows, ["Mind the <u>."])
    assert "<i>" not in text and "<u>" not in text and "<b>1" not in text
    assert text.index(">x2<") < text.index("&lt;b&gt;1<")
    assert "0.12500" in text and "network_dim" in text and text.count("<polyline") == 4
    assert "data:image/png;base64,cGljdHVyZQ==" in text
    assert "http" not in text and "<script" not in text


def test_a_point_lies_where_its_numbers_say():
    text = page("x", [standing("a1", [(3, 0.0), (6, 1.0)])])
    points = text.split('<polyline points="')[1].split('"')[0].split()
    (x1, y1), (x2, y2) = (tuple(map(float, point.split(","))) for point in points)
    assert x2 - 64 == pytest.approx(2 * (x1 - 64), abs=0.2) and y1 > y2
