"""What the design wants to be reached, and whether it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from comparing.contenders import PLAIN
from comparing.growth import SESSION_STEPS
from comparing.measuring import Bench
from comparing.results import Part, Results
from comparing.workloads import CALL, FLOOD, HELLO, MEMORY, SESSION_CALL, SESSION_PROGRESS

TIMES = "\N{MULTIPLICATION SIGN}"
Measured = Callable[[Results], float | None]


@dataclass(frozen=True)
class Target:
    """One figure to reach."""

    what: str
    limit: float
    measured: Measured
    """None where one of the figures that it takes is missing."""
    unit: str = TIMES
    at_least: bool = False

    def verdict(self, results: Results) -> tuple[str, str, str] | None:
        """Return what was wanted, what was measured, and whether that is enough."""
        value = self.measured(results)
        if value is None:
            return None
        held = value >= self.limit if self.at_least else value <= self.limit
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.limit:g} {self.unit}", f"{value:.3g} {self.unit}", "held" if held else "**missed**"


def _ratio(what: str, against: str, *, other: str | None = None, name: str = "cpu_us") -> Measured:
    """Compare ours with another contender: its median in the same workload, or in the workload `other`."""

    def measured(results: Results) -> float | None:
        part = results.comparison
        ours = part.figure(what, "ours", name) if part else None
        theirs = part.figure(other or what, against, name) if part else None
        return ours.median / theirs.median if ours and theirs else None

    return measured


def _own(what: str, name: str) -> Measured:
    def measured(results: Results) -> float | None:
        figure = results.comparison.figure(what, "ours", name) if results.comparison else None
        return figure.median if figure else None

    return measured


def _flood_growth(results: Results) -> float | None:
    """Give the growth in a flood, if it was a whole one."""
    sent, growth = (_own(FLOOD.name, name)(results) for name in ("requests", "growth_mib"))
    return growth if sent and sent >= Bench.flood else None


def _progress_gain(results: Results) -> float | None:
    """Compare progress notifications for each second of CPU time: the calls report equally many."""
    ratio = _ratio(SESSION_PROGRESS.name, "sdk-hypercorn-stateful-sse")(results)
    return 1 / ratio if ratio else None


def _saturated_gain(results: Results) -> float | None:
    """Compare the most progress notifications for each second of CPU time, however many a call reports."""
    part = results.growth
    if part is None:
        return None
    most = [_most_events(part, contender) for contender in ("ours", "sdk-hypercorn-stateful-sse")]
    return most[0] / most[1] if most[0] and most[1] else None


def _most_events(part: Part, contender: str) -> float | None:
    rows = [what for what in part.table if what.startswith("progress: ")]
    found = [part.figure(what, contender, "events_per_cpu_second") for what in rows]
    return max((figure.median for figure in found if figure), default=None)


def _session_growth(results: Results) -> float | None:
    """Compare what a call costs with the most sessions and with none."""
    part = results.growth
    if part is None:
        return None
    few, *_, many = (part.figure(f"sessions: {n}", f"ours, {SESSION_CALL.name}", "cpu_us") for n in SESSION_STEPS)
    return many.median / few.median if few and many else None


_CALLS = (
    ("SDK on Hypercorn-Trio, stateless, JSON", CALL, "sdk-hypercorn-stateless-json", 0.50),
    ("SDK on Hypercorn-Trio, stateless, SSE (its default)", CALL, "sdk-hypercorn-stateless-sse", 0.33),
    ("SDK on uvicorn + uvloop, stateless, SSE (its default)", CALL, "sdk-uvicorn-stateless-sse", 0.6),
    ("FastMCP on uvicorn + uvloop, stateless", CALL, "fastmcp-stateless", 0.4),
    ("SDK on Hypercorn-Trio, stateful, JSON", SESSION_CALL, "sdk-hypercorn-stateful-json", 0.60),
    ("SDK on Hypercorn-Trio, stateful, SSE (its default)", SESSION_CALL, "sdk-hypercorn-stateful-sse", 0.42),
    ("SDK on uvicorn + uvloop, stateful, SSE (its default)", SESSION_CALL, "sdk-uvicorn-stateful-sse", 0.6),
    ("FastMCP on uvicorn + uvloop, stateful", SESSION_CALL, "fastmcp-stateful", 0.4),
)

_TAILS = ((CALL, "stateless"), (SESSION_CALL, "stateful"))
_FORMS = {"SSE (its default)": "sse", "JSON": "json"}

TARGETS = (
    *(
        Target(f"CPU of a {work.title}, against {peer}", limit, _ratio(work.name, name))
        for peer, work, name, limit in _CALLS
    ),
    Target(
        f"CPU of a {CALL.title}, against a bare ASGI hello on Hypercorn-Trio",
        1.7,
        _ratio(CALL.name, PLAIN.name, other=HELLO.name),
    ),
    *(Target(f"p99 of a {work.title}, on 8 connections", 10, _own(work.name, "p99_ms"), "ms") for work, _ in _TAILS),
    *(
        Target(
            f"p99 of a {work.title}, against the SDK on Hypercorn-Trio, {title}",
            0.25,
            _ratio(work.name, f"sdk-hypercorn-{state}-{form}", name="p99_ms"),
        )
        for work, state in _TAILS
        for title, form in _FORMS.items()
    ),
    Target("memory for each live session", 2, _own(MEMORY.name, "session_kib"), "KiB"),
    Target("growth in 100 000 `initialize` without an echo", 10, _flood_growth, "MiB"),
    Target(
        f"progress per CPU second in a {SESSION_PROGRESS.title}, against the SDK on Hypercorn-Trio, SSE",
        3,
        _progress_gain,
        at_least=True,
    ),
    Target("the same where it is at its most, however many values a call has", 3, _saturated_gain, at_least=True),
    Target("CPU of a call in a session with 100 000 sessions live, against none", 1.1, _session_growth),
)
