"""The page of a sweep: one HTML file with everything inside. Ranking, curves, sample pictures side by side."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from library.tensorfile import write_bytes
from library.training.sweeping.standings import Standing, ranked
from library.training.watching.curves import smoothed

_COLOURS = (
    "#2563a8",
    "#d1581b",
    "#2e8b57",
    "#8a4fbf",
    "#b8860b",
    "#c2185b",
    "#00838f",
    "#6d4c41",
    "#5c6bc0",
    "#7cb342",
)
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 860, 320, 64, 34
_MAX_POINTS = 400
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .35rem .6rem; vertical-align: top }
tr { border-bottom: 1px solid #ddd } td.number { font-variant-numeric: tabular-nums; white-space: nowrap }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .4rem }
.bad { color: #b00020 } svg { width: 100%; height: auto } figure { margin: 1.5rem 0; overflow-x: auto }
img { max-width: 100% } code { overflow-wrap: anywhere }
"""


def write_page(path: Path, title: str, standings: Sequence[Standing], remarks: Sequence[str] = ()) -> None:
    """Write the page.

    Args:
        path: The file.
        title: Of the sweep.
        standings: Of all variations.
        remarks: What has to be known to read it.

    Raises:
        OutputError: It cannot be written.
    """
    write_bytes(path, page(title, standings, remarks).encode("utf-8", "backslashreplace"))


def page(title: str, standings: Sequence[Standing], remarks: Sequence[str] = ()) -> str:
    """The page as HTML."""
    order = ranked(standings)
    colours = {standing.name: _COLOURS[index % len(_COLOURS)] for index, standing in enumerate(order)}
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(remark)}</p>" for remark in remarks),
        *_table(order, colours),
        *_charts(order, colours),
        *_sheets(order),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{chr(10).join(parts)}\n</body>\n</html>\n'


def _table(order: Sequence[Standing], colours: dict[str, str]) -> Iterator[str]:
    keys = list(dict.fromkeys(key for standing in order for key in standing.differences))
    titles = ["", "variation", "validation loss", "at step", *keys, "state", "file"]
    yield f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in titles)}</tr>"
    for rank, standing in enumerate(order, 1):
        loss, step, file = standing.best or (math.nan, None, "")
        cells = [
            f"<td>{rank if standing.best else ''}</td>",
            f'<td><span class="key" style="background:{colours[standing.name]}"></span>{escape(standing.name)}</td>',
            f'<td class="number">{f"{loss:.5f}" if standing.best else ""}</td>',
            f'<td class="number">{"" if step is None else step}</td>',
            *(f"<td>{escape(standing.differences.get(key, ''))}</td>" for key in keys),
            f"<td{' class=bad' if standing.problem else ''}>{escape(standing.state)}</td>",
            f"<td><code>{escape(file)}</code></td>",
        ]
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</table>"


def _charts(order: Sequence[Standing], colours: dict[str, str]) -> Iterator[str]:
    known = [standing for standing in order if standing.numbers is not None]
    validation = [
        (colours[standing.name], [float(step) for step, _ in points], [loss for _, loss in points])
        for standing in known
        if standing.numbers and (points := [p for p in standing.numbers.validation if math.isfinite(p[1])])
    ]
    training = [
        (colours[standing.name], *_smooth(standing.numbers.losses))
        for standing in known
        if standing.numbers and standing.numbers.losses
    ]
    for title, lines in (("Validation loss", validation), ("Training loss, smoothed", training)):
        if lines:
            yield f"<h2>{title}</h2>"
            yield _chart(lines)


def _smooth(losses: Sequence[float]) -> tuple[list[float], list[float]]:
    """Steps and smoothed losses, thinned to what can be seen."""
    values = smoothed(np.asarray(losses, dtype=float), max(1, len(losses) // 20))
    chosen = np.unique(np.linspace(0, len(losses) - 1, min(len(losses), _MAX_POINTS)).round().astype(int))
    kept = [int(index) for index in chosen if math.isfinite(values[index])]
    return [float(index + 1) for index in kept], [float(values[index]) for index in kept]


def _chart(lines: Sequence[tuple[str, list[float], list[float]]]) -> str:
    """Lines of (colour, steps, losses) as SVG."""
    steps = [step for _, own, _ in lines for step in own] or [0.0, 1.0]
    losses = [loss for _, _, own in lines for loss in own] or [0.0, 1.0]
    low, high = min(losses), max(losses)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 0.1
    low, high, last = low - margin, high + margin, max(max(steps), 1.0)

    def place(step: float, loss: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT - 10) * step / last
        y = (_HEIGHT - _BOTTOM) * (high - loss) / (high - low)
        return f"{x:.1f},{y:.1f}"

    parts = []
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + fraction * (high - low)
        y = (_HEIGHT - _BOTTOM) * (1 - fraction)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - 10}" stroke="#e6e6e6"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{max(y + 4, 12):.1f}" text-anchor="end">{value:.4g}</text>')
        x = _LEFT + (_WIDTH - _LEFT - 10) * fraction
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{fraction * last:.0f}</text>')
    for colour, own_steps, own_losses in lines:
        points = " ".join(place(step, loss) for step, loss in zip(own_steps, own_losses, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(own_steps) <= 40:
            dots = zip(own_steps, own_losses, strict=True)
            parts += [_dot(place(step, loss), colour) for step, loss in dots]
    text = 'font-size="12" font-family="sans-serif" fill="#555"'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><g {text}>{"".join(parts)}</g></svg>'


def _dot(place: str, colour: str) -> str:
    x, _, y = place.partition(",")
    return f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'


def _sheets(order: Sequence[Standing]) -> Iterator[str]:
    shown = [(standing, sheet) for standing in order if (sheet := standing.sheet) is not None]
    if shown:
        yield "<h2>Sample pictures</h2>"
        yield "<p>The same prompts and seeds in each; from left to right as the training went.</p>"
    for standing, sheet in shown:
        content = base64.b64encode(sheet.read_bytes()).decode()
        name = escape(standing.name)
        picture = f'<img alt="Sample pictures of {name}" src="data:image/png;base64,{content}">'
        yield f"<figure><h3>{name}</h3>{picture}</figure>"
