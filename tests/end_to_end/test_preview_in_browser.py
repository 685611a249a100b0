"""The preview page as a person uses it: the tool writes it, a headless Chromium opens it, clicks, types and looks.

The picture in the guide is made by

    PREVIEW_PICTURE=docs/images/preview_dataset.png python -m pytest tests/end_to_end/test_preview_in_browser.py

Skipped where the system has no Chromium.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from examples.tiny_sd3.tokenizers import write_tokenizers
from tools.preview_dataset import main

WIDTH, HEIGHT = 1360, 1170
TESTS = Path(__file__).resolve().parents[1]
VISIBLE = "Number(document.getElementById('visible').textContent)"
SHOWN = "[...document.querySelectorAll('.card')].filter((card) => card.offsetParent !== null)"
NAMES = f"{SHOWN}.map((card) => card.querySelector('.name').textContent)"


def load(name: str) -> ModuleType:
    """A module of the tests folder."""
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


browser = load("browser")
pytestmark = pytest.mark.skipif(browser.find_browser() is None, reason="no Chromium on this system")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the landscapes: 18 pictures that can be used, 2 that cannot."""
    folder = tmp_path_factory.mktemp("preview")
    dataset = load("preview_scenes").write_scenes(folder / "scenes")
    write_tokenizers(folder / "tokenizers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(dataset.parent)
        arguments = [f"--dataset_config={dataset.name}", "--masked_loss", f"--tokenizer_dir={folder / 'tokenizers'}"]
        assert main([*arguments, f"--output={folder / 'preview.html'}"]) == 0
    return folder / "preview.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser for all tests."""
    with browser.Browser(tmp_path_factory.mktemp("profile"), width=WIDTH, height=HEIGHT) as started:
        yield started


@pytest.fixture
def window(page: Path, chromium: Any) -> Iterator[Any]:
    """The page, opened anew."""
    chromium.open(page.as_uri())
    yield chromium
    assert chromium.problems == []
    assert chromium.requests == [page.as_uri()]  # nothing is got from anywhere else


def test_a_click_on_a_filter_shows_what_it_says(window):
    assert window.ask(VISIBLE) == window.ask(f"{SHOWN}.length") == 20
    window.click("button[data-group=flag][data-value=masked]")
    assert window.ask(VISIBLE) == window.ask(f"{SHOWN}.length") == 3
    assert window.ask(NAMES) == ["dawn_masked.jpg", "dusk_masked.jpg", "noon_masked.jpg"]
    assert window.ask("document.querySelector('[data-value=masked]').getAttribute('aria-pressed')") == "true"
    window.click("#clear")
    assert window.ask(VISIBLE) == 20


def test_every_filter_shows_as_many_pictures_as_it_says(window):
    buttons = window.ask("document.querySelectorAll('button[data-group]').length")
    assert buttons > 12
    told = window.ask(
        """[...document.querySelectorAll('button[data-group]')].map((button) => {
            const told = Number(button.querySelector('.count').textContent);
            button.click();
            const visible = Number(document.getElementById('visible').textContent);
            button.click();
            return [told, visible];
        })"""
    )
    assert all(first == second > 0 for first, second in told)


def test_buckets_and_search_narrow_each_other(window):
    window.click("button[data-group=bucket][data-value='1024x1024']")
    alone = window.ask(VISIBLE)
    assert 0 < alone < 20
    window.press("/")  # goes to the search
    window.type("lighthouse night")
    window.wait_for(f"{VISIBLE} === 1")
    assert window.ask(NAMES) == ["night_lighthouse.jpg"]
    window.press("Escape", 27)
    assert window.ask(VISIBLE) == 20


def test_the_address_remembers_the_filters(window, page):
    window.click("button[data-group=flag][data-value=validation]")
    address = window.ask("location.href")
    assert window.ask(VISIBLE) == 1
    window.click("#clear")
    window.ask("location.hash = " + repr(address.partition("#")[2]))
    window.wait_for(f"{VISIBLE} === 1")


def test_what_is_cut_away_can_be_hidden(window):
    shape = "((card) => card.querySelector('.shot').getBoundingClientRect())"
    card = "document.querySelector('.card[data-loss]:not([data-loss^=\"0.00\"])')"
    before = window.ask(f"(() => {{ const r = {shape}({card}); return r.width / r.height; }})()")
    window.click(".switch label:nth-of-type(2)")
    after = window.ask(f"(() => {{ const r = {shape}({card}); return r.width / r.height; }})()")
    width, height = map(int, window.ask(f"{card}.dataset.bucket").split("x"))
    assert after == pytest.approx(width / height, rel=0.02)
    assert abs(after - before) > 0.01


def test_the_order_can_be_changed(window):
    window.ask("{const s = document.getElementById('order'); s.value = 'scale'; s.dispatchEvent(new Event('change'))}")
    assert window.ask("document.querySelector('.card .name').textContent") == "fog_cabin.jpg"


def test_the_page_is_there_to_be_seen(window):
    light = window.picture()
    window.click("#theme")
    dark = window.picture()
    for content, bright in ((light, True), (dark, False)):
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(float)
        assert pixels.shape == (HEIGHT, WIDTH, 3)
        assert (pixels[-5:, :5].mean() > 128) == bright  # the ground
        assert len(np.unique(pixels[::4, ::4].reshape(-1, 3), axis=0)) > 500  # pictures, not a blank page
    if target := os.environ.get("PREVIEW_PICTURE"):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(light)).convert("RGB").save(target, optimize=True)
