"""Axes of --xyz, the plan of their pictures, and the sheets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from library.data.pixels.lettering import font
from library.errors import OptionError
from library.generation.axes import Axis, Place, parse_axes, plan_cells
from library.generation.sheet import draw_sheet, wrapped, write_sheets
from library.generation.sheet_layout import MAX_PIXELS, lay_out
from library.records import Size

PROMPTS = ["a cat", "a dog"]


def test_axes_are_read():
    axes = parse_axes(["lora=0, 0.5,1", 'ckpt="a,b.safetensors",c.ckpt', "prompt"], PROMPTS)
    assert axes == (
        Axis("lora", (0.0, 0.5, 1.0)),
        Axis("ckpt", ("a,b.safetensors", "c.ckpt")),
        Axis("prompt", ("a cat", "a dog")),
    )
    assert [axis.title(1) for axis in axes] == ["lora 0.5", "ckpt c.ckpt", "a dog"]


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "takes one to three axes, got 0"),
        (["seed=1", "steps=1", "scale=1", "prompt"], "takes one to three axes, got 4"),
        (["stepz=1", "prompt"], 'no axis is called "stepz". Did you mean "steps"?'),
        (["quality=1", "prompt"], "Known are ckpt, weights, lora"),
        (["seed=1", "seed=2"], '"seed" is given twice'),
        (["seed=1,x", "prompt"], 'seed needs whole numbers of 0 or more, got "x"'),
        (["lora=nan", "prompt"], 'lora needs numbers, got "nan"'),
        (["sampler=best", "prompt"], "sampler needs samplers (ddim, pndm"),
        (["steps=0", "prompt"], "steps needs whole numbers of 1 to 1000"),
        (["lora=", "prompt"], "lacks a value"),
        (["lora=1,,2", "prompt"], "lacks a value"),
        (["prompt=a cat"], '"prompt" takes no values'),
        (["seed=1"], "there are 2 prompts, but no axis for them"),
        (["seed=" + ",".join(map(str, range(6000))), "prompt"], "asks for 12,000 pictures"),
    ],
)
def test_wrong_axes_are_named(texts, sentence):
    with pytest.raises(OptionError) as error:
        parse_axes(texts, PROMPTS)
    assert sentence in str(error.value)


names = st.permutations(["ckpt", "weights", "lora", "seed", "prompt"]).map(lambda names: names[:3])


@given(names, st.lists(st.integers(1, 4), min_size=3, max_size=3), st.integers(1, 3))
def test_a_plan_has_every_crossing_once_and_loads_each_model_once(names, lengths, number):
    axes = [Axis(name, tuple(range(length))) for name, length in zip(names[:number], lengths[:number], strict=True)]
    cells = plan_cells(axes)
    expected = 1
    for axis in axes:
        expected *= len(axis.values)
    assert len({cell.place for cell in cells}) == len(cells) == expected
    for cell in cells:
        assert [cell.values[axis.name] for axis in axes] == list(cell.place[:number])
    models = [cell.values.get("ckpt") for cell in cells]
    assert models == sorted(models, key=models.index)


def test_networks_change_more_often_than_models_and_less_often_than_the_rest():
    axes = (Axis("seed", (1, 2)), Axis("weights", ("x", "y")), Axis("ckpt", ("a", "b")))
    order = [(cell.values["ckpt"], cell.values["weights"], cell.values["seed"]) for cell in plan_cells(axes)]
    assert order == sorted(order)


@pytest.fixture
def pictures(tmp_path):
    colours = {Place(0, 0, 0): "red", Place(1, 0, 0): "lime", Place(0, 1, 0): "blue", Place(1, 1, 1): "red"}
    found = {}
    for number, (place, colour) in enumerate(colours.items()):
        found[place] = tmp_path / f"im_{number}.png"
        Image.new("RGB", (96, 128), colour).save(found[place])
    return found


AXES = (Axis("lora", (0.0, 1.0)), Axis("prompt", ("a cat", "a dog")), Axis("seed", (7, 8)))


def test_pictures_stand_at_their_places(pictures):
    sheet = draw_sheet(AXES, {place: path for place, path in pictures.items() if place.sheet == 0})
    layout = lay_out([Size(96, 128)], num_columns=2, num_rows=2, has_title=False, has_rows=True)
    assert sheet.size == layout.size

    def colours_of(column, row):
        left, top = layout.corner(column, row)
        return sheet.crop((left, top, left + 96, top + 128)).getcolors()

    assert colours_of(0, 0) == [(96 * 128, (255, 0, 0))]
    assert colours_of(1, 0) == [(96 * 128, (0, 255, 0))]
    assert colours_of(0, 1) == [(96 * 128, (0, 0, 255))]
    assert colours_of(1, 1) == [(96 * 128, (238, 238, 238))]


def test_titles_are_drawn_above_and_beside(pictures):
    own = {place: path for place, path in pictures.items() if place.sheet == 0}
    sheet = draw_sheet(AXES, own, "seed 7").convert("L")
    layout = lay_out([Size(96, 128)], num_columns=2, num_rows=2, has_title=True, has_rows=True)
    left, top = layout.corner(1, 1)
    boxes = {
        "title": (layout.side, 0, layout.size.width, layout.title),
        "column": (left, layout.title, left + 96, layout.title + layout.head),
        "row": (0, top, layout.side, top + 128),
    }
    assert all(sheet.crop(box).getextrema()[0] < 128 for box in boxes.values())


def test_a_sheet_a_value_of_the_third_axis_and_a_file_that_says_what_is_where(pictures, tmp_path):
    written = write_sheets(AXES, plan_cells(AXES), pictures, folder=tmp_path, name="sheet")
    assert [path.name for path in written] == ["sheet_1.png", "sheet_2.png", "sheet.json"]
    index = json.loads((tmp_path / "sheet.json").read_text())
    assert index["axes"][2] == {"name": "seed", "values": [7, 8]}
    assert index["pictures"][-1] == {
        "column": 1,
        "row": 1,
        "sheet": 1,
        "values": {"lora": 1.0, "prompt": "a dog", "seed": 8},
        "file": "im_3.png",
    }
    assert len(index["pictures"]) == 4


def test_sheets_of_one_value_have_one_name_and_missing_rows_no_titles(pictures, tmp_path):
    one = {Place(0, 0, 0): pictures[Place(0, 0, 0)]}
    written = write_sheets(AXES[:1], plan_cells(AXES[:1]), one, folder=tmp_path, name="sheet")
    assert [path.name for path in written] == ["sheet.png", "sheet.json"]
    layout = lay_out([Size(96, 128)], num_columns=2, num_rows=1, has_title=False, has_rows=False)
    assert layout.side == 0
    assert Image.open(written[0]).size == layout.size


def test_a_sheet_that_is_large_as_png_becomes_jpeg(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("library.generation.sheet.MAX_PNG_BYTES", 100)
    written = write_sheets(AXES[:2], plan_cells(AXES[:2]), _first(pictures), folder=tmp_path, name="sheet")
    assert written[0].name == "sheet.jpg"
    assert Image.open(written[0]).format == "JPEG"
    assert not (tmp_path / "sheet.png").exists()


def _first(pictures):
    return {place: path for place, path in pictures.items() if place.sheet == 0}


@given(st.integers(64, 4096), st.integers(64, 4096), st.integers(1, 60), st.integers(1, 60))
def test_sheets_are_not_larger_than_their_limit(width, height, num_columns, num_rows):
    sizes = [Size(width, height)]
    layout = lay_out(sizes, num_columns=num_columns, num_rows=num_rows, has_title=True, has_rows=True)
    assert 0 < layout.scale <= 1
    if layout.scale < 1 and min(layout.cell) > 96:
        assert layout.cell.width * layout.cell.height * num_columns * num_rows <= MAX_PIXELS * 1.05
    left, top = layout.corner(num_columns - 1, num_rows - 1)
    assert left + layout.cell.width <= layout.size.width
    assert top + layout.cell.height <= layout.size.height


@given(st.text(max_size=200), st.integers(30, 300), st.integers(1, 5))
def test_words_fit_into_their_width(text, width, max_lines):
    lines = wrapped(text, 16, width, max_lines)
    assert 1 <= len(lines) <= max_lines
    assert all(font(16).getlength(line) <= width or line == "..." for line in lines)
