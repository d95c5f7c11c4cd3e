"""The figures as tables and plots: pure functions, and one that writes what they made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from comparing.contenders import CONTENDERS, HARDENED, OURS, Contender
from comparing.growth import PARTS
from comparing.installing import ROOT
from comparing.plots import Bar, Mark, bars, lines
from comparing.results import Figure, Part, Results, shown
from comparing.targets import TARGETS, TIMES
from comparing.workloads import (
    HELLO,
    WORKLOADS,
    Kind,
    Workload,
)

DOCUMENT = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "plots"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
MINIMAL = f"# Performance\n\n{BEGIN}\n{END}\n"

KERNEL = "the SDK's kernel alone"
COLUMNS = {
    "cpu_us": "CPU µs",
    "per_second": "per second",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "rss_mib": "RSS MiB",
    "message_us": "CPU µs for a message",
    "all_ms": "all have it, ms",
    "session_kib": "KiB for a session",
    "requests": "requests",
    "growth_mib": "growth MiB",
    "events_per_cpu_second": "values per CPU second",
}
HEADLINES = {Kind.LOAD: "cpu_us", Kind.BROADCAST: "message_us", Kind.MEMORY: "session_kib"}
"""The figure that a workload is about."""

FAMILIES: tuple[tuple[str, Sequence[str]], ...] = (
    ("Calls without a session", ("floor", "call", "sync-call")),
    ("Calls in a session", ("session-call", "session-progress")),
    ("2026-07-28", ("modern-call", "modern-progress")),
    ("Beginnings and lists", ("initialize", "flood", "tools-list")),
    ("Sessions that are open", ("broadcast", "memory")),
)
GROWTH = {
    "connections": ("connections", "cpu_us", "What a call costs on more connections"),
    "sessions": ("sessions that are live", "cpu_us", "What a call in a session costs among others"),
    "progress": ("values in a call", "events_per_cpu_second", "Progress for each second of CPU time"),
    "workers": ("workers", "cpu_us", "What a call costs with more workers"),
}
"""For each part what grows, what is looked at, and the plot's title."""


@dataclass(frozen=True)
class Rendered:
    """What goes into the document, and the plots that it shows."""

    text: str
    plots: dict[str, str]


def render(results: Results) -> Rendered:
    """Make tables and plots of the figures."""
    sections: list[str] = []
    plots: dict[str, str] = {}
    if results.comparison is not None or results.growth is not None:
        sections.append(_targets(results))
    if (part := results.comparison) is not None:
        sections.append(_conditions("How it compares", part))
        for title, names in FAMILIES:
            sections += _family(title, [work for work in WORKLOADS if work.name in names], part, plots)
        sections += _kernel(part)
    if (part := results.growth) is not None:
        sections.append(_conditions("How it grows", part))
        for name in PARTS:
            sections += _growth(name, part, plots)
    return Rendered("\n\n".join(sections), plots)


def put_into(document: str, text: str) -> str:
    """Put the figures where the document has its marks for them; at its end where it has none."""
    block = f"{BEGIN}\n\n{text}\n\n{END}"
    if BEGIN not in document or END not in document:
        return f"{document.rstrip()}\n\n{block}\n"
    return re.sub(f"{BEGIN}.*?{END}", lambda _: block, document, count=1, flags=re.DOTALL)


def write(results: Results) -> None:
    """Write the document and its plots; plots of an earlier run that this one does not have are removed."""
    rendered = render(results)
    DOCUMENT.parent.mkdir(exist_ok=True)
    document = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else MINIMAL
    DOCUMENT.write_text(put_into(document, rendered.text), encoding="utf-8")
    PLOTS.mkdir(exist_ok=True)
    for old in PLOTS.glob("*.svg"):
        if old.name not in rendered.plots:
            old.unlink()
    for name, svg in rendered.plots.items():
        (PLOTS / name).write_text(svg, encoding="utf-8")


def targets_reached(results: Results) -> list[tuple[str, str, str, str]]:
    """List the targets that can be judged: what, wanted, measured, held or missed."""
    verdicts = [(target.what, target.verdict(results)) for target in TARGETS]
    return [(what, *verdict) for what, verdict in verdicts if verdict is not None]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; all columns but the first are figures."""
    lined = "|".join([" --- ", *[" ---: "] * (len(headings) - 1)])
    return "\n".join([f"| {' | '.join(headings)} |", f"|{lined}|", *(f"| {' | '.join(row)} |" for row in rows)])


def _targets(results: Results) -> str:
    return f"## What was to be reached\n\n{table(('', 'wanted', 'measured', ''), targets_reached(results))}"


def _conditions(title: str, part: Part) -> str:
    at = part.conditions
    machine = at["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in at["versions"].items())
    return (
        f"## {title}\n\n"
        f"Measured on {at['date']}: {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"{machine['system']}, Python {machine['python']}; {at['connections']} connections, "
        f"{at['seconds']:g} s a time, {at['repeat']} times, driven by {at['generator']}. Versions: {versions}."
    )


def _family(title: str, workloads: Sequence[Workload], part: Part, plots: dict[str, str]) -> list[str]:
    sections = []
    for work in workloads:
        rows = _rows(work, part)
        if rows:
            sections.append(f"**{work.title}**\n\n{_workload_table(work, rows)}")
            if work.kind in HEADLINES and work is not HELLO:
                name = f"{work.name}.svg"
                plots[name] = _plot(work, rows, part)
                sections.append(f"![{work.title}](plots/{name})")
    return [f"### {title}", *sections] if sections else []


def _rows(work: Workload, part: Part) -> list[tuple[Contender, dict[str, Figure]]]:
    found = part.table.get(work.name, {})
    return [(each, found[each.name]) for each in CONTENDERS if each.name in found]


def _workload_table(work: Workload, rows: Sequence[tuple[Contender, dict[str, Figure]]]) -> str:
    found = [name for name in COLUMNS if name in rows[0][1]]
    headline = HEADLINES.get(work.kind, found[0])
    names = [headline, *(name for name in found if name != headline)]
    ours = next((figures[headline] for contender, figures in rows if contender is OURS), None)
    against = [f"{TIMES} ours"] if ours is not None and len(rows) > 1 else []
    lined = []
    for contender, figures in rows:
        cells = [_spread(figures[name]) if name == headline else _short(figures[name]) for name in names]
        if ours is not None and against:
            cells.insert(1, f"{figures[headline].median / ours.median:.2f}" if ours.median > 0 else "")
        lined.append([f"**{contender.title}**" if contender is OURS else contender.title, *cells])
    columns = [COLUMNS[name] for name in names]
    return table(["", *columns[:1], *against, *columns[1:]], lined)


def _plot(work: Workload, rows: Sequence[tuple[Contender, dict[str, Figure]]], part: Part) -> str:
    headline = HEADLINES[work.kind]
    shown = [Bar(each.title, figures[headline], each.family.value) for each, figures in rows]
    marks = []
    if work.kind is Kind.LOAD:
        for contender, figures in _rows(HELLO, part):
            shown.append(Bar(contender.title, figures["cpu_us"], contender.family.value))
            if contender is HARDENED:
                marks.append(Mark("hello on our worker", figures["cpu_us"].median))
        if (kernel := part.kernel.get(work.kernel)) is not None:
            shown.append(Bar(KERNEL, kernel, "kernel"))
    return bars(work.title, COLUMNS[headline], shown, marks)


def _kernel(part: Part) -> list[str]:
    if not part.kernel:
        return []
    titles = {work.name: work.title for work in WORKLOADS}
    rows = [(titles[name], _spread(figure)) for name, figure in part.kernel.items()]
    return ["### What is the SDK's", table(("the SDK's kernel per call: validate, run, serialise", "CPU µs"), rows)]


def _growth(name: str, part: Part, plots: dict[str, str]) -> list[str]:
    x_label, headline, title = GROWTH[name]
    steps = {int(what.rpartition(" ")[2]): row for what, row in part.table.items() if what.startswith(f"{name}: ")}
    if not steps:
        return []
    contenders = list(dict.fromkeys(each for row in steps.values() for each in row))
    names = [each for each in COLUMNS if each in next(iter(next(iter(steps.values())).values()))]
    rows = [
        [
            _titled(contender),
            f"{step:,}".replace(",", " "),
            *(_spread(row[contender][each]) if each == headline else _short(row[contender][each]) for each in names),
        ]
        for contender in contenders
        for step, row in sorted(steps.items())
        if contender in row
    ]
    drawn = {
        _titled(contender): [
            (step, row[contender][headline]) for step, row in sorted(steps.items()) if contender in row
        ]
        for contender in contenders
    }
    plots[f"growth-{name}.svg"] = lines(title, x_label, COLUMNS[headline], drawn)
    headings = ["", x_label, *(COLUMNS[each] for each in names)]
    return [f"### {title}", table(headings, rows), f"![{title}](plots/growth-{name}.svg)"]


def _titled(name: str) -> str:
    """Give the title of a contender, or of one with the workload it was given."""
    contender, _, work = name.partition(", ")
    title = next(each.title for each in CONTENDERS if each.name == contender)
    return f"{title}, {work}" if work else title


def _spread(figure: Figure) -> str:
    if figure.low == figure.high:
        return _short(figure)
    return f"{_short(figure)} ({shown(figure.low)} to {shown(figure.high)})"


def _short(figure: Figure) -> str:
    return shown(figure.median)
