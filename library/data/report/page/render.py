"""The preview page: one HTML file with everything inside, from a report and the pictures. Everything is escaped."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

from library.data.problems import counted
from library.data.report.page import contents
from library.data.report.page.contents import PagePicture, ReadText
from library.data.report.report import BucketReport, DataReport, Skipped, SubsetReport
from library.data.report.report_text import bytes_in_words

_FOLDER = Path(__file__).parent
_TONES = {
    contents.PROBLEM: "bad",
    contents.LEFT_OUT: "warn",
    contents.CAPTION_CUT: "warn",
    contents.NO_CAPTION: "warn",
    contents.CUT: "warn",
    contents.ENLARGED: "warn",
}
_FLAGS = (*_TONES, contents.REGULARISATION, contents.VALIDATION, contents.MASKED)
_SHAPE = 16  # pixels of the longer side of a bucket's little picture


def render_page(report: DataReport, pictures: Sequence[PagePicture], findings: str | None = None) -> str:
    """The page as HTML.

    Args:
        report: The data in numbers.
        pictures: All of the page.
        findings: HTML that takes the place of the problems and remarks of the report.
    """
    parts = {
        "title": escape(f"Preview of {Path(report.source).name}"),
        "style": _asset("page.css"),
        "script": _asset("page.js"),
        "source": escape(report.source),
        "tiles": _tiles(report, pictures),
        "problems": _panels(report) if findings is None else findings,
        "flags": _flag_filters(pictures),
        "buckets": _bucket_filters(report, pictures),
        "subsets": _subset_filters(report),
        "lengths": _lengths(report),
        "total": f"{len(pictures):,}",
        "mask_switch": _mask_switch(pictures),
        "cards": "\n".join(_card(picture, order) for order, picture in enumerate(pictures)),
        "footer": _footer(report),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def caption_html(text: ReadText) -> str:
    """A text with what an encoder does not read marked."""
    if not text.text:
        return "<i>empty caption</i>"
    places = sorted({0, len(text.text), *text.cuts.values()})
    pieces = []
    for start, end in pairwise(places):
        piece = escape(text.text[start:end])
        blind = [encoder for encoder, cut in text.cuts.items() if cut <= start]
        if blind:
            some = " some" if len(blind) < len(text.tokens) else ""
            names = escape(" and ".join(blind))
            piece = f'<mark class="beyond{some}" title="not read by {names}">{piece}</mark>'
        pieces.append(piece)
    return "".join(pieces)


def _asset(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8").strip()


def _tiles(report: DataReport, pictures: Sequence[PagePicture]) -> str:
    steps = report.steps
    num_training = report.num_pictures - report.num_validation
    num_faults = sum(contents.PROBLEM in picture.flags for picture in pictures) + len(report.findings.problems)
    num_cut = report.num_captions_cut
    tiles = [("pictures", f"{num_training:,}", "trained", "")]
    if report.num_validation:
        tiles.append(("validation", f"{report.num_validation:,}", "held out", ""))
    if steps is not None:
        tiles.append(("an epoch", f"{steps.samples:,}", "samples", ""))
        tiles.append(("steps", f"{steps.max_steps:,}", f"in {counted(steps.epochs, 'epoch')}", ""))
    if report.crops is not None:
        tiles.append(("cut away", f"{report.crops.mean_loss:.1%}", "of the area, on average", ""))
    if report.lengths:
        tiles.append(("captions cut off", f"{num_cut:,}", "", "warn" if num_cut else ""))
    tiles.append(("problems", f"{num_faults:,}", "", "bad" if num_faults else ""))
    return "".join(
        f'<div class="{tone}"><dt>{title}</dt><dd>{value} <small>{unit}</small></dd></div>'
        for title, value, unit, tone in tiles
    )


def _prose(text: str) -> str:
    """A sentence, with flags that are not broken behind their hyphens."""
    return re.sub(r"(?<![\w-])(--[a-z]\w*)", r'<span class="option">\1</span>', escape(text))


def _panels(report: DataReport) -> str:
    """What is wrong, open; what is merely worth knowing, closed."""
    findings = report.findings
    faults = [group for group in report.skipped if group.is_fault]
    others = [group for group in report.skipped if not group.is_fault]
    html = ""
    if findings.problems or faults:
        items = [f"<li>{_prose(problem)}</li>" for problem in findings.problems]
        items += [_group_html(group) for group in faults]
        number = len(findings.problems) + sum(len(group.entries) for group in faults)
        title = counted(number, "problem")
        html += f'<section class="panel bad"><h2>{title} to put right</h2><ul>{"".join(items)}</ul></section>\n'
    closed = ""
    if others:
        number = sum(len(group.entries) for group in others)
        items = [_group_html(group) for group in others]
        closed += _closed_panel("warn", f"{counted(number, 'file')} left out", items)
    if notes := [*findings.notes, *findings.remarks]:
        items = [f"<li>{_prose(note)}</li>" for note in notes]
        closed += _closed_panel("calm", counted(len(notes), "remark"), items)
    return html + (f'<div class="panels">{closed}</div>\n' if closed else "")


def _closed_panel(tone: str, title: str, items: Iterable[str]) -> str:
    return f'<details class="panel {tone}"><summary>{title}</summary><ul>{"".join(items)}</ul></details>\n'


def _group_html(group: Skipped) -> str:
    if len(group.entries) == 1:
        return f"<li><b>{escape(str(group.entries[0].path))}</b> {escape(group.reason)}</li>"
    files = "".join(f"<li>{escape(line)}</li>" for line in group.lines)
    return f"<li><b>{len(group.entries):,}</b> {escape(group.reason)}<ul>{files}</ul></li>"


def _button(style: str, group: str, value: str, inside: str, number: int, extra: str = "") -> str:
    return (
        f'<li><button type="button" class="{style}" data-group="{group}" data-value="{escape(value)}" '
        f'aria-pressed="false"{extra}>{inside}<span class="count">{number:,}</span></button></li>'
    )


def _flag_filters(pictures: Sequence[PagePicture]) -> str:
    numbers = Counter(flag for picture in pictures for flag in picture.flags)
    found = [flag for flag in _FLAGS if numbers[flag]]
    if not found:
        return ""
    chips = "".join(
        _button(f"chip {_TONES.get(flag, '')}".strip(), "flag", _slug(flag), f"<span>{flag}</span>", numbers[flag])
        for flag in found
    )
    return f'<h2>Worth a look</h2><ul class="choices">{chips}</ul>'


def _bucket_filters(report: DataReport, pictures: Sequence[PagePicture]) -> str:
    numbers = Counter(picture.bucket for picture in pictures if picture.bucket)
    if not numbers:
        return ""
    most, num_datasets = max(numbers.values()), len({subset.place.split(".")[0] for subset in report.subsets})
    trained = {contents.bucket_name(each.dataset - 1, str(each.size), num_datasets): each for each in report.buckets}
    rows = "".join(_bucket_row(name, numbers[name], most, trained.get(name)) for name in sorted(numbers, key=_order))
    return f'<h2>Buckets</h2><ul class="bars">{rows}</ul>'


def _order(bucket: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", bucket)]


def _bucket_row(name: str, number: int, most: int, trained: BucketReport | None) -> str:
    width, height = _order(name)[-2:]
    longest = max(width, height)
    shape = f"--w:{_SHAPE * width / longest:.1f}px;--h:{_SHAPE * height / longest:.1f}px"
    inside = f'<span class="shape" style="{shape}" aria-hidden="true"></span><span>{name}</span>'
    title = "not trained"
    if trained is not None:
        title = f"{counted(trained.samples, 'sample')} in {trained.batches:,} batches an epoch"
    return _button("bucket", "bucket", name, inside, number, f' style="--share:{100 * number / most}%" title="{title}"')


def _subset_filters(report: DataReport) -> str:
    if len(report.subsets) < 2:
        return ""
    rows = "".join(_subset_row(subset) for subset in report.subsets)
    return f'<h2>Subsets</h2><ul class="choices sets">{rows}</ul>'


def _subset_row(subset: SubsetReport) -> str:
    kind = " (regularisation)" if subset.is_reg else ""
    inside = f"<span>{escape(Path(subset.source).name)}{kind}</span>"
    return _button("chip", "set", subset.place, inside, subset.pictures, f' title="{escape(subset.source)}"')


def _lengths(report: DataReport) -> str:
    note = f'<p class="hint">{_prose(report.length_note)}</p>' if report.length_note else ""
    if not report.lengths:
        return f"<h2>Caption lengths</h2>{note}" if note else ""
    rows = "".join(
        f"<tr><td>{escape(each.encoder)}</td><td>{each.median:g}</td>"
        f"<td{' class=over' if each.longest > each.limit else ''}>{each.longest}</td><td>{each.limit}</td></tr>"
        for each in report.lengths
    )
    titles = "<tr><th>encoder</th><th>median</th><th>longest</th><th>reads</th></tr>"
    return f'<h2>Caption lengths, in tokens</h2><table class="numbers">{titles}{rows}</table>{note}'


def _mask_switch(pictures: Sequence[PagePicture]) -> str:
    if not any(picture.thumbnail and picture.thumbnail.mask for picture in pictures):
        return ""
    return '<label class="toggle"><input type="checkbox" id="masks" checked>Masks</label>'


def _card(picture: PagePicture, order: int) -> str:
    longest = max((count for text in picture.texts for count, _ in text.tokens.values()), default=0)
    data = {
        "order": str(order),
        "set": picture.place,
        "bucket": picture.bucket,
        "flags": " ".join(_slug(flag) for flag in picture.flags),
        "loss": f"{picture.loss:.4f}",
        "scale": f"{picture.scale:.4f}",
        "tokens": str(longest),
    }
    attributes = " ".join(f'data-{name}="{escape(value)}"' for name, value in data.items())
    style = "card unused" if picture.problem else "card"
    return (
        f'<article class="{style}" {attributes}>{_shot(picture)}<div class="body">'
        f'<p class="name" title="{escape(str(picture.path))}">{escape(picture.path.name)}</p>'
        f"{_meta(picture)}{_flags(picture)}{_words(picture)}</div></article>"
    )


def _shot(picture: PagePicture) -> str:
    shown = picture.thumbnail
    if shown is None:
        return '<div class="easel"><p class="missing"><b aria-hidden="true">&times;</b>no picture</p></div>'
    left, top, width, height = shown.window
    ratio = shown.size.width / shown.size.height
    variables = {
        "ratio": f"{ratio:.4f}",
        "trained": f"{ratio * width / height:.4f}",
        "zoom-x": f"{100 / width:.2f}%",
        "zoom-y": f"{100 / height:.2f}%",
        "shift-x": f"{-100 * left / width:.2f}%",
        "shift-y": f"{-100 * top / height:.2f}%",
    }
    window = {"l": left, "t": top, "w": width, "h": height}
    full = " full" if width == height == 1 else ""
    mask = f'<img src="{_data("png", shown.mask)}" alt="" loading="lazy">' if shown.mask else ""
    return (
        f'<div class="easel"><div class="shot{full}" style="{_variables(variables)}">'
        f'<img src="{_data("jpeg", shown.jpeg)}" alt="{escape(picture.path.name)}" loading="lazy" decoding="async">'
        f'<div class="window" style="{_variables({n: f"{100 * v:.2f}%" for n, v in window.items()})}">{mask}</div>'
        "</div></div>"
    )


def _variables(values: Mapping[str, str]) -> str:
    return ";".join(f"--{name}:{value}" for name, value in values.items())


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _meta(picture: PagePicture) -> str:
    if not picture.bucket:
        return ""
    parts = [
        f"{picture.stored} &rarr; {picture.bucket}",
        f"{picture.loss:.0%} cut away" if picture.loss >= 0.005 else "",
    ]
    parts.append(f"&times; {picture.repeats}" if picture.repeats > 1 else "")
    return f'<p class="meta">{" &middot; ".join(part for part in parts if part)}</p>'


def _flags(picture: PagePicture) -> str:
    items = "".join(f'<li class="{_TONES.get(flag, "")}">{flag}</li>' for flag in picture.flags)
    return f'<ul class="tags">{items}</ul>' if items else ""


def _words(picture: PagePicture) -> str:
    if picture.problem:
        return f'<p class="why">{escape(picture.problem)}</p>'
    first, *others = picture.texts or (ReadText(""),)
    html = f'<p class="caption" tabindex="0">{caption_html(first)}</p>'
    if picture.rules:
        html += f'<p class="rules">{escape("; ".join(picture.rules))}</p>'
    if others:
        items = "".join(f"<li>{caption_html(text)}</li>" for text in others)
        html += (
            f'<details class="more"><summary>{counted(len(others), "more example")}</summary><ol>{items}</ol></details>'
        )
    return html + "".join(_tokens(picture.texts))


def _tokens(texts: Sequence[ReadText]) -> Iterator[str]:
    """The longest of the texts, for each encoder."""
    encoders = dict.fromkeys(encoder for text in texts for encoder in text.tokens)
    if not encoders:
        return
    items = []
    for encoder in encoders:
        count, limit = max(text.tokens[encoder] for text in texts)
        over = ' class="over"' if count > limit else ""
        items.append(f"<li{over}>{escape(encoder)} {count}/{limit}</li>")
    yield f'<ul class="tokens">{"".join(items)}</ul>'


def _footer(report: DataReport) -> str:
    parts = [report.steps.describe()] if report.steps is not None else []
    parts += [f"{cache.what}: {cache.entries:,} entries, {bytes_in_words(cache.num_bytes)}" for cache in report.caches]
    return " &middot; ".join(escape(part) for part in parts)


def _slug(flag: str) -> str:
    """A flag as one word, for the filters."""
    return re.sub(r"[^a-z0-9]+", "-", flag).strip("-")
