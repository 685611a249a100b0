"""The preview page without a browser: what is in it, that everything is escaped, and that it needs nothing else."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.findings import Fault, Findings
from library.data.plan.batches import count_steps
from library.data.plan.buckets import plan_crop
from library.data.plan.captions import CaptionRules
from library.data.report.page import contents
from library.data.report.page.contents import ReadText, caption_rules, page_pictures
from library.data.report.page.render import caption_html, render_page
from library.data.report.page.thumbnails import SIDE, make_plain_thumbnail, make_thumbnail
from library.data.report.report import make_report
from library.records import ImageRecord, Size

NASTY = "<script>alert('x')</script> & \"quoted\" {{cards}}"
RED, BLUE = (220, 30, 30), (30, 30, 220)


class Page(HTMLParser):
    """Elements of a page, with their attributes."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open_tags = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input"):
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def spec():
    subset = SubsetSpec(image_dir=Path("dogs"), captions=CaptionRules(shuffle_caption=True, keep_tokens=1))
    return DatasetSpec(resolution=Size(64, 64), subsets=(subset,))


def save(path, size=(64, 64), colour=RED):
    Image.new("RGB", size, colour).save(path)
    return path


def record_of(path, **fields):
    with Image.open(path) as image:
        size = Size(*image.size)
    return ImageRecord(path, path.name, "a dog", size, 1, 0, 0, **fields)


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_a_thumbnail_shows_what_is_cut_away_around_the_trained_part(tmp_path, spec):
    path = tmp_path / "wide.png"
    image = Image.new("RGB", (256, 64), BLUE)
    image.paste(RED, (96, 0, 160, 64))  # what is left after the crop
    image.save(path)
    record = record_of(path)
    crop = plan_crop(record.size, spec)
    made = make_thumbnail(record, crop, spec, cells=8)
    assert made.size == (2 * SIDE, SIDE)  # as much as is shown of it
    assert made.window == pytest.approx((0.25, 0, 0.5, 1))
    pixels = decoded(made.jpeg)
    assert np.abs(pixels[SIDE // 2, SIDE] - RED).max() < 12
    assert np.abs(pixels[SIDE // 2, 20] - BLUE).max() < 12


def test_a_picture_that_is_not_cut_fills_its_thumbnail(tmp_path, spec):
    record = record_of(save(tmp_path / "a.png", (128, 128)))
    made = make_thumbnail(record, plan_crop(record.size, spec), spec, cells=8)
    assert (made.size, made.window, made.mask) == ((SIDE, SIDE), (0, 0, 1, 1), None)


def test_a_mask_veils_what_is_not_learned(tmp_path, spec):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    mask.save(tmp_path / "mask.png")
    subset = replace(spec.subsets[0], conditioning_data_dir=tmp_path)
    spec = replace(spec, subsets=(subset,))
    record = record_of(save(tmp_path / "a.png"), mask=tmp_path / "mask.png")
    made = make_thumbnail(record, plan_crop(record.size, spec), spec, cells=8)
    veil = np.asarray(Image.open(io.BytesIO(made.mask)))
    assert veil.shape == (8, 8, 4)
    assert (veil[:, :4, 3] > 100).all() and (veil[:, 4:, 3] == 0).all()


def test_what_cannot_be_decoded_has_no_thumbnail(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("<html>")
    assert make_plain_thumbnail(path) is None
    assert make_plain_thumbnail(save(tmp_path / "b.png")).size == (64, 64)


def test_the_part_that_is_not_read_is_marked_for_each_encoder():
    text = ReadText("one <two> three", {"clip_l": (9, 5), "t5xxl": (9, 7)}, {"clip_l": 4, "t5xxl": 10})
    assert caption_html(text) == (
        'one <mark class="beyond some" title="not read by clip_l">&lt;two&gt; </mark>'
        '<mark class="beyond" title="not read by clip_l and t5xxl">three</mark>'
    )
    assert caption_html(ReadText("short", {"clip_l": (3, 77)})) == "short"
    assert caption_html(ReadText("")) == "<i>empty caption</i>"


def test_rules_are_told_in_words():
    rules = CaptionRules(shuffle_caption=True, keep_tokens=2, caption_dropout_rate=0.1, enable_wildcard=True)
    subset = SubsetSpec(image_dir=Path("dogs"), captions=rules)
    assert caption_rules(subset) == ("tags shuffled, the first 2 stay", "wildcards", "empty 10% of the time")
    assert caption_rules(SubsetSpec(image_dir=Path("dogs"))) == ()


@pytest.fixture
def shown(tmp_path, spec):
    """A page of three pictures: one small and for validation, one damaged inside, one that is no picture at all."""
    small = record_of(save(tmp_path / "small & <b>.png", (16, 16)))
    torn = record_of(save(tmp_path / "torn.png", (200, 200)))
    torn.path.write_bytes(torn.path.read_bytes()[:-60])
    no_picture = tmp_path / "no_picture.png"
    no_picture.write_text("<html>")
    records = [torn, small]
    crops = [plan_crop(record.size, spec) for record in records]
    findings = Findings(
        problems=(f"problem {NASTY}",), faults=(Fault(no_picture, "is not an image"),), notes=(f"note {NASTY}",)
    )
    texts = [[ReadText("a dog", {"clip_l": (4, 77)})], [ReadText(NASTY, {"clip_l": (80, 77)}, {"clip_l": 9})] * 2]
    pictures = page_pictures(records, crops, [spec], num_training=1, findings=findings, texts=texts, cells=8)
    steps = count_steps(records[:1], crops[:1], [1], num_processes=1, accumulation=1, max_steps=3)
    report = make_report(
        source=f"{NASTY}.toml",
        specs=[spec],
        records=records,
        crops=crops,
        num_training=1,
        findings=findings,
        steps=steps,
        texts=[["a dog"], [NASTY]],
        counts={"clip_l": ([4, 80], 77)},
    )
    return pictures, render_page(report, pictures)


def test_pictures_carry_what_is_special_about_them(shown):
    pictures, _ = shown
    assert [picture.path.name for picture in pictures] == ["no_picture.png", "torn.png", "small & <b>.png"]
    no_picture, torn, small = pictures
    assert (no_picture.flags, no_picture.problem) == ((contents.PROBLEM,), "is not an image")
    assert torn.flags == (contents.PROBLEM,) and "torn.png" in torn.problem
    assert small.flags == (contents.CAPTION_CUT, contents.ENLARGED, contents.VALIDATION)
    assert (small.bucket, small.place, small.scale, small.stored) == ("64x64", "1.1", 4, "16x16")


def test_the_page_is_whole_and_has_a_card_for_every_picture(shown):
    page = Page(shown[1])
    assert page.open_tags == []
    cards = page.all("article")
    assert [card["data-flags"] for card in cards] == [
        "cannot-be-used",
        "cannot-be-used",
        "caption-cut-off enlarged-over-1-5-x validation",
    ]
    assert [card["data-bucket"] for card in cards] == ["", "64x64", "64x64"]
    filters = {(button["data-group"], button["data-value"]) for button in page.all("button") if "data-group" in button}
    assert filters == {
        ("flag", "cannot-be-used"),
        ("flag", "caption-cut-off"),
        ("flag", "enlarged-over-1-5-x"),
        ("flag", "validation"),
        ("bucket", "64x64"),
    }


def test_nothing_that_a_user_wrote_becomes_markup(shown):
    html = shown[1]
    page = Page(html)
    assert len(page.all("script")) == 1 and "alert('x')" not in html
    assert html.count("{{cards}}") == 6  # title, heading, problem, note and two texts show what was written
    assert "small &amp; &lt;b&gt;.png" in html


def test_the_page_needs_nothing_from_anywhere(shown):
    html = shown[1]
    page = Page(html)
    addresses = [a[name] for _, a in page.elements for name in ("src", "href") if name in a]
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"https?://|url\(|@import", html)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'")


def test_thumbnails_are_inside(shown):
    sources = [image["src"] for image in Page(shown[1]).all("img")]
    (content,) = [base64.b64decode(s.removeprefix("data:image/jpeg;base64,")) for s in sources]
    assert np.abs(decoded(content)[SIDE // 2, SIDE // 2] - RED).max() < 12


def test_a_page_without_any_picture_says_what_is_wrong():
    findings = Findings(problems=("image_dir dogs does not exist",))
    report = make_report(source="a.toml", specs=[], records=[], crops=[], num_training=0, findings=findings, steps=None)
    html = render_page(report, [])
    assert Page(html).open_tags == []
    assert "image_dir dogs does not exist" in html and "1 problem to put right" in html


def test_flags_in_sentences_are_not_broken_behind_their_hyphens():
    findings = Findings(problems=("a-b needs --masked_loss; <give> it",))
    report = make_report(source="a.toml", specs=[], records=[], crops=[], num_training=0, findings=findings, steps=None)
    html = render_page(report, [])
    assert 'a-b needs <span class="option">--masked_loss</span>; &lt;give&gt; it' in html
    assert ".option { white-space: nowrap; }" in html
