"""Plots as SVG, written out: pure functions from figures to text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from comparing.results import Figure, shown

WIDTH = 760
BAR = 24
"""Pixels from one bar to the next."""
TOP = 44
BOTTOM = 34
LABELS = 290
"""Pixels for the names beside the bars."""
VALUES = 70
"""Pixels for the values behind them."""
HEIGHT = 360
"""Of a plot with lines."""
MARGIN = 70
FONT = 'font-family="system-ui, sans-serif"'
INK, FAINT, PAPER = "#222222", "#dddddd", "#ffffff"
COLOURS = {"ours": "#d1495b", "peer": "#8d99ae", "floor": "#b7c9a9", "kernel": "#edae49"}
LINES = ("#d1495b", "#30638e", "#edae49", "#5c8d5a")


@dataclass(frozen=True)
class Bar:
    """One bar."""

    label: str
    figure: Figure
    colour: str
    """One of COLOURS."""


@dataclass(frozen=True)
class Mark:
    """A value that all bars are seen against."""

    label: str
    value: float


def bars(title: str, unit: str, rows: Sequence[Bar], marks: Sequence[Mark] = ()) -> str:
    """Draw a bar for each row, with its spread."""
    values = [row.figure.high for row in rows] + [mark.value for mark in marks]
    step = _step(max(values) / 5)
    end = math.ceil(max(values) / step) * step
    height = TOP + BAR * len(rows) + BOTTOM + 16 * len(marks)
    scale = (WIDTH - LABELS - VALUES) / end
    foot = TOP + BAR * len(rows)
    parts = [_text(12, 22, title, size=15, weight="bold"), _text(WIDTH - 12, 22, unit, anchor="end")]
    for number in range(round(end / step) + 1):
        x = LABELS + number * step * scale
        parts += [_line(x, TOP - 6, x, foot, FAINT), _text(x, foot + 16, f"{number * step:g}", anchor="middle")]
    for number, row in enumerate(rows):
        parts += _bar(row, TOP + number * BAR, scale)
    for number, mark in enumerate(marks):
        x = LABELS + mark.value * scale
        y = foot + 32 + 16 * number
        parts += [
            _line(x, TOP - 6, x, y - 10, INK, "4 3"),
            _text(x, y, f"{mark.label}: {shown(mark.value)}", anchor="middle"),
        ]
    return _document(height, parts)


def _bar(row: Bar, y: float, scale: float) -> list[str]:
    middle, figure = y + BAR / 2 - 2, row.figure
    width = max(0.0, figure.median * scale)
    low, high = LABELS + figure.low * scale, LABELS + figure.high * scale
    return [
        _text(LABELS - 8, middle + 4, row.label, anchor="end"),
        f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR - 6}" fill="{COLOURS[row.colour]}"/>',
        _line(low, middle, high, middle, INK),
        _line(low, middle - 4, low, middle + 4, INK),
        _line(high, middle - 4, high, middle + 4, INK),
        _text(high + 8, middle + 4, shown(figure.median)),
    ]


def lines(title: str, x_label: str, unit: str, rows: Mapping[str, Sequence[tuple[float, Figure]]]) -> str:
    """Draw a line for each row over steps that are evenly spaced, as they are powers of ten."""
    steps = sorted({x for points in rows.values() for x, _ in points})
    highest = max(figure.high for points in rows.values() for _, figure in points)
    step = _step(highest / 5)
    end = math.ceil(highest / step) * step
    left, right, foot = MARGIN, WIDTH - 30, HEIGHT - 64

    def at(x: float, value: float) -> tuple[float, float]:
        share = steps.index(x) / max(1, len(steps) - 1)
        return left + 30 + share * (right - left - 60), foot - value / end * (foot - TOP)

    parts = [_text(12, 22, title, size=15, weight="bold"), _text(WIDTH - 12, 22, unit, anchor="end")]
    for number in range(round(end / step) + 1):
        y = at(steps[0], number * step)[1]
        parts += [_line(left, y, right, y, FAINT), _text(left - 8, y + 4, f"{number * step:g}", anchor="end")]
    parts += [_text(at(x, 0)[0], foot + 18, f"{x:,.0f}".replace(",", " "), anchor="middle") for x in steps]
    parts.append(_text((left + right) / 2, foot + 36, x_label, anchor="middle"))
    for number, (label, points) in enumerate(rows.items()):
        colour = LINES[number % len(LINES)]
        where = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(step, figure.median) for step, figure in points))
        parts.append(f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for each, figure in points:
            (x, low), (_, high), (_, middle) = at(each, figure.low), at(each, figure.high), at(each, figure.median)
            parts += [
                _line(x, low, x, high, colour),
                f'<circle cx="{x:.1f}" cy="{middle:.1f}" r="3.5" fill="{colour}"/>',
            ]
        x = left + number * (right - left) / len(rows)
        parts += [_line(x, HEIGHT - 14, x + 22, HEIGHT - 14, colour, width=2), _text(x + 28, HEIGHT - 10, label)]
    return _document(HEIGHT, parts)


def over_time(title: str, unit: str, rows: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Draw a line for each row over seconds."""
    longest = max(x for points in rows.values() for x, _ in points) or 1.0
    highest = max(y for points in rows.values() for _, y in points)
    step = _step(highest / 5)
    end = math.ceil(highest / step) * step
    left, right, foot = MARGIN, WIDTH - 30, HEIGHT - 64
    parts = [_text(12, 22, title, size=15, weight="bold"), _text(WIDTH - 12, 22, unit, anchor="end")]
    for number in range(round(end / step) + 1):
        y = foot - number * step / end * (foot - TOP)
        parts += [_line(left, y, right, y, FAINT), _text(left - 8, y + 4, f"{number * step:g}", anchor="end")]
    second = _step(longest / 8)
    for number in range(int(longest / second) + 1):
        x = left + number * second / longest * (right - left)
        parts.append(_text(x, foot + 18, f"{number * second:g}", anchor="middle"))
    parts.append(_text((left + right) / 2, foot + 36, "seconds", anchor="middle"))
    for number, (label, points) in enumerate(rows.items()):
        colour = LINES[number % len(LINES)]
        where = " ".join(
            f"{left + x / longest * (right - left):.1f},{foot - y / end * (foot - TOP):.1f}" for x, y in points
        )
        parts.append(f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x = left + number * (right - left) / len(rows)
        parts += [_line(x, HEIGHT - 14, x + 22, HEIGHT - 14, colour, width=2), _text(x + 28, HEIGHT - 10, label)]
    return _document(HEIGHT, parts)


def _document(height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">'
    paper = f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>'
    return "\n".join([head, paper, *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", weight: str = "normal") -> str:
    style = f'{FONT} font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{INK}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "", width: float = 1) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width:g}"{dashed}/>'


def _step(least: float) -> float:
    """Return the next of 1, 2, 5, 10, … that is not below `least`."""
    least = max(least, 1e-6)  # nothing was measured but zeros
    power = 10.0 ** math.floor(math.log10(least))
    return next(float(factor * power) for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)
