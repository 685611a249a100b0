"""The contact sheet: prompts down, steps across, from the pictures on the disk."""

import json
import logging

import numpy as np
import pytest
from PIL import Image, ImageFont, features

from library.data.pixels.lettering import drawable, font, has_glyph
from library.training.sampling.contact_sheet import (
    MAX_COLUMNS,
    MAX_ROWS,
    Column,
    ContactSheet,
    SheetIndex,
    index_from_json,
    index_to_json,
    rows_of,
    thinned,
)
from library.training.sampling.prompts import SamplePrompt

RED, GREEN, BLUE, GREY = (200, 0, 0), (0, 160, 0), (0, 0, 200), (238, 238, 238)
CAT, DOG = (SamplePrompt(text, "", 96, 64, 1, 3, 4.5, index) for index, text in enumerate(("a cat", "a dog")))


@pytest.fixture(autouse=True)
def _log_lines_reach_caplog(monkeypatch):
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)


@pytest.fixture(autouse=True)
def _font_is_chosen_anew():
    for cached in (font, has_glyph):
        cached.cache_clear()
    yield
    for cached in (font, has_glyph):
        cached.cache_clear()


class Run:
    """Draws one-coloured pictures in place of a model."""

    def __init__(self, folder, name="mine", first_step=None):
        self.folder = folder
        self.sheet = ContactSheet(folder, name, first_step)

    def event(self, step, **colours):
        """event(3, cat=RED, dog=None): the dog could not be drawn."""
        prompts = [{"cat": CAT, "dog": DOG}.get(name) or prompt_of(name) for name in colours]
        pictures = {}
        for number, (name, colour) in enumerate(colours.items()):
            if colour is not None:
                pictures[number] = self.folder / f"{step:06d}_{name}.png"
                Image.new("RGB", (96, 64), colour).save(pictures[number])
        self.sheet.add(Column(step), prompts, pictures)

    def cells(self):
        """Colours of the cells, row by row."""
        pixels = np.asarray(Image.open(self.sheet.path).convert("RGB")).astype(int)
        lefts = range(212, pixels.shape[1], 96 + 6)
        tops = range(24, pixels.shape[0], 112 + 6)
        return [[name_of(pixels[top + 32, left + 40]) for left in lefts] for top in tops]


def prompt_of(name):
    return SamplePrompt(name, "", 96, 64, None, 3, 4.5)


def name_of(pixel):
    """Colours as words: JPEG changes them a little."""
    known = {"red": RED, "green": GREEN, "blue": BLUE, "-": GREY}
    return min(known, key=lambda name: sum(abs(pixel - np.array(known[name]))))


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_prompts_are_rows_and_steps_are_columns(run):
    run.event(0, cat=RED, dog=GREEN)
    run.event(10, cat=GREEN, dog=BLUE)
    run.event(20, cat=BLUE, dog=RED)
    assert run.sheet.path.name == "mine_contact_sheet.png"
    assert run.cells() == [["red", "green", "blue"], ["green", "blue", "red"]]


def test_without_output_name_there_is_no_prefix(tmp_path):
    assert ContactSheet(tmp_path, None).path == tmp_path / "contact_sheet.png"


def test_what_could_not_be_drawn_and_what_was_deleted_is_an_empty_cell(run):
    run.event(10, cat=RED, dog=None)
    run.event(20, cat=GREEN, dog=BLUE)
    (run.folder / "000010_cat.png").unlink()
    (run.folder / "000020_cat.png").write_bytes(b"no picture")
    run.event(30, cat=GREEN, dog=BLUE)
    assert run.cells() == [["-", "-", "green"], ["-", "blue", "blue"]]


def test_new_prompts_are_new_rows_and_edited_ones_go_below(run):
    run.event(10, cat=RED, dog=GREEN)
    run.event(20, bird=BLUE, dog=GREEN)
    assert run.cells() == [["-", "blue"], ["green", "green"], ["red", "-"]]


@pytest.mark.parametrize("first_step", [None, 20])
def test_a_run_that_goes_on_finds_its_older_columns(run, first_step):
    for step, colour in ((10, RED), (20, GREEN), (30, BLUE), (40, BLUE)):
        run.event(step, cat=colour)
    later = Run(run.folder, first_step=first_step)
    later.event(30, cat=RED)  # went on from step 20
    assert later.cells() == [["red", "green", "red"]]


def test_a_fresh_run_begins_a_new_sheet(run):
    run.event(0, cat=RED)
    run.event(10, cat=RED)
    later = Run(run.folder, first_step=0)
    later.event(20, cat=GREEN)
    assert later.cells() == [["green"]]


def test_runs_of_other_names_share_nothing(run):
    run.event(10, cat=RED)
    other = Run(run.folder, name="other")
    other.event(20, cat=GREEN)
    assert other.cells() == [["green"]]


DAMAGED = [b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b'{"rows": 3, "columns": 4}', b'{"rows": [], "columns": [1]}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_index_is_told_and_the_sheet_begins_anew(run, content, caplog):
    run.event(10, cat=RED)
    (run.folder / "mine_contact_sheet.json").write_bytes(content)
    later = Run(run.folder)
    later.event(20, cat=GREEN)
    assert later.cells() == [["green"]]
    assert "begins anew" in caplog.text


def test_an_index_names_no_files_outside_of_its_folder(tmp_path):
    index = {"rows": [], "columns": [{"step": 1, "epoch": -1, "pictures": {"a": "../../secret.png"}}]}
    assert index_from_json(json.dumps(index).encode()).columns == {Column(1): {"a": "secret.png"}}


def test_hundreds_of_columns_are_thinned_out_evenly():
    (row,) = rows_of([CAT])
    index = SheetIndex()
    for step in range(0, 3000, 10):
        index = index.with_event(Column(step), [row], {row.key: f"{step}.png"})
    steps = [column.step for column in index.columns]
    assert len(steps) == MAX_COLUMNS
    assert (steps[0], steps[-1]) == (0, 2990)
    gaps = np.diff(steps)
    assert gaps.max() <= 2 * gaps.min()


def test_first_and_last_column_always_stay():
    columns = [Column(step) for step in (0, 1, 2, 3, 1000)]
    assert thinned(columns, 3) == (Column(0), Column(3), Column(1000))
    assert thinned(columns, 1) == (Column(0), Column(1000))
    assert thinned(columns, 5) == tuple(columns)


def test_the_number_of_rows_is_bounded_and_the_prompts_of_now_are_among_them():
    index = SheetIndex()
    for step in range(MAX_ROWS + 10):
        rows = rows_of([prompt_of(f"prompt {step}")])
        index = index.with_event(Column(step), rows, {rows[0].key: f"{step}.png"})
        assert index.rows[0] == rows[0]
    assert len(index.rows) == min(MAX_ROWS, MAX_COLUMNS)


def test_the_index_is_read_as_it_was_written():
    rows = rows_of([CAT, DOG])
    index = SheetIndex().with_event(Column(3, 1), rows, {row.key: "a.png" for row in rows})
    assert index_from_json(index_to_json(index).encode()) == index


def test_equal_prompts_have_a_row_each_and_every_setting_counts():
    keys = [row.key for row in rows_of([CAT, CAT, DOG])]
    assert len(set(keys)) == 3
    assert [row.key for row in rows_of([CAT, CAT, DOG])] == keys


def test_columns_are_named_by_what_they_are():
    assert [Column(0, 0).title, Column(40, 2).title, Column(40).title] == ["start", "epoch 2", "step 40"]


def test_wide_and_high_pictures_keep_their_shape(tmp_path):
    sheet = ContactSheet(tmp_path, None)
    Image.new("RGB", (400, 100), RED).save(tmp_path / "wide.png")
    Image.new("RGB", (100, 400), BLUE).save(tmp_path / "high.png")
    sheet.add(Column(1), [CAT, DOG], {0: tmp_path / "wide.png", 1: tmp_path / "high.png"})
    pixels = np.asarray(Image.open(sheet.path).convert("RGB")).astype(int)
    red = (abs(pixels - np.array(RED)).sum(axis=2) < 40).nonzero()
    blue = (abs(pixels - np.array(BLUE)).sum(axis=2) < 40).nonzero()
    assert [np.ptp(axis) + 1 for axis in red] == [48, 192]
    assert [np.ptp(axis) + 1 for axis in blue] == [192, 48]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat", "a cat"),
        ("Kätzchen, très long", "Katzchen, tres long"),
        ("a 猫咪 by the sea", "a ? by the sea"),
        ("美丽的猫", ""),
        ("...", ""),
        ("", ""),
        ("a\x00b\u200bc", "a?b?c"),
    ],
)
def test_letters_that_the_font_lacks_are_replaced(text, shown):
    assert drawable(text) == shown


@pytest.mark.parametrize("text", ["", "美丽的猫 😀", "word " * 100_000, "x" * 100_000, "a\n\nb\x00\ud800"])
def test_any_prompt_has_a_label(tmp_path, text):
    sheet = ContactSheet(tmp_path, None)
    Image.new("RGB", (64, 64), RED).save(tmp_path / "a.png")
    sheet.add(Column(1), [prompt_of(text)], {0: tmp_path / "a.png"})
    assert Image.open(sheet.path).size == (302, 142)
    assert (tmp_path / "contact_sheet.json").stat().st_size < 2000


@pytest.mark.skipif(not hasattr(ImageFont, "load_default_imagefont"), reason="this Pillow cannot be asked for the dots")
def test_pillow_without_outlines_draws_a_sheet_too(run, monkeypatch):
    """Pillow can be built without the library for outlines; its font is made of dots then."""
    monkeypatch.setattr(features, "check", lambda name: False)
    monkeypatch.setattr(ImageFont, "load_default", lambda size=None: ImageFont.load_default_imagefont())
    run.event(10, cat=RED, Kätzchen中=GREEN)
    assert run.cells() == [["red"], ["green"]]
