"""What was measured: each figure as the median of its repetitions, with the spread that they had."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparing.installing import ROOT

FOLDER = ROOT / "benchmarks" / "results"
LATEST = FOLDER / "latest.json"
RECORDED = FOLDER / "recorded.json"

UNITS = {
    "cpu_us": "CPU time of all the server's processes for one request, user and system, in microseconds",
    "per_second": "requests answered in a second of time",
    "p50_ms": "milliseconds within which half of the requests were answered",
    "p99_ms": "milliseconds within which 99 of 100 requests were answered",
    "rss_mib": "resident memory of the server after the load, in MiB",
    "message_us": "CPU time for one message that arrived, in microseconds",
    "all_ms": "milliseconds until everybody had the message",
    "session_kib": "resident memory that one more session takes, in KiB",
    "requests": "requests that were sent",
    "growth_mib": "growth of the server's resident memory, in MiB",
    "events_per_cpu_second": "progress notifications sent for each second of CPU time",
}
"""What the figures mean."""
ROUND = 4
"""Significant digits that are kept: there are no more in what is measured."""


@dataclass(frozen=True)
class Figure:
    """A median and its spread."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Sum up repetitions of one measurement."""
        return cls(*(_rounded(value) for value in (statistics.median(values), min(values), max(values))))


Table = dict[str, dict[str, dict[str, Figure]]]
"""Figures by what was measured (a workload, a step of growth), by contender and by name."""


@dataclass
class Part:
    """What one run has measured, and where and how."""

    conditions: dict[str, Any]
    """The machine, the versions, and for how long."""
    table: Table
    kernel: dict[str, Figure]
    """CPU time of the SDK's kernel alone, in microseconds, by workload."""

    def figure(self, what: str, contender: str, name: str) -> Figure | None:
        """Look one up; None where it was not measured."""
        return self.table.get(what, {}).get(contender, {}).get(name)


@dataclass
class Results:
    """The latest figures of both kinds of runs."""

    comparison: Part | None = None
    growth: Part | None = None


class Collected:
    """Figures while they are repeated."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str, str], list[float]] = {}

    def add(self, what: str, contender: str, figures: Mapping[str, float]) -> None:
        """Add one repetition."""
        for name, value in figures.items():
            self._values.setdefault((what, contender, name), []).append(value)

    def table(self) -> Table:
        """Sum up what was added."""
        table: Table = {}
        for (what, contender, name), values in self._values.items():
            table.setdefault(what, {}).setdefault(contender, {})[name] = Figure.of(values)
        return table


def machine(cores: int) -> dict[str, Any]:
    """Say what the figures depend on, and nothing by which the machine could be found."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1].strip() if cpu else platform.machine(),
        "cores": cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def load(path: Path = LATEST) -> Results:
    """Read what was measured last; nothing if nothing was."""
    if not path.exists():
        return Results()
    found = json.loads(path.read_text())
    return Results(*(_part(found[name]) if found.get(name) else None for name in ("comparison", "growth")))


def save(results: Results, path: Path = LATEST) -> None:
    path.parent.mkdir(exist_ok=True)
    written = {"comparison": _written(results.comparison), "growth": _written(results.growth)}
    path.write_text(_compact(json.dumps(written, indent=1)) + "\n")


def _part(found: Mapping[str, Any]) -> Part:
    table = {
        what: {contender: _figures(figures) for contender, figures in row.items()}
        for what, row in found["table"].items()
    }
    return Part(found["conditions"], table, _figures(found["kernel"]))


def _figures(found: Mapping[str, Iterable[float]]) -> dict[str, Figure]:
    return {name: Figure(*values) for name, values in found.items()}


def _written(part: Part | None) -> dict[str, Any] | None:
    if part is None:
        return None
    table = {
        what: {contender: _lists(figures) for contender, figures in row.items()} for what, row in part.table.items()
    }
    return {"conditions": part.conditions, "table": table, "kernel": _lists(part.kernel)}


def _lists(figures: Mapping[str, Figure]) -> dict[str, list[float]]:
    return {name: [figure.median, figure.low, figure.high] for name, figure in figures.items()}


def _compact(text: str) -> str:
    """Put each figure on one line: the file is kept, and its changes are read."""
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)


def shown(value: float) -> str:
    """Write a figure with as many digits as it is good for."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _rounded(value: float) -> float:
    return float(f"{value:.{ROUND}g}")
