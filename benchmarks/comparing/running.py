"""The rounds of measurements: one server at a time, all of them by turns, so that they meet the machine alike."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from pathlib import Path

from comparing.clients import WrongAnswerError
from comparing.contenders import Contender
from comparing.measuring import Bench, Figures, measure
from comparing.processes import ServerError, on
from comparing.results import Collected, Figure, Table
from comparing.workloads import LISTED, Kind, Workload

FAILURES = (ServerError, WrongAnswerError, OSError, HTTPException, subprocess.SubprocessError)
"""What a server leads to that does not do its work."""
KERNEL = "kernel"
KERNEL_SECONDS = 2.0
"""The longest that each request of the kernel's is repeated; it is one process and hardly varies."""


@dataclass
class Run:
    """Measures, tells what it measures, and goes on when something fails: the run then counts for nothing."""

    started: float = field(default_factory=time.monotonic)
    failures: list[str] = field(default_factory=list)
    collected: Collected = field(default_factory=Collected)

    def step(self, label: str, what: str, contender: str, measured: Callable[[], Figures]) -> None:
        """Measure one thing."""
        shown = f"{time.monotonic() - self.started:6.0f} s  {label:<5} {what:<20} {contender:<30}"
        try:
            figures = measured()
        except FAILURES as error:
            self.failures.append(f"{what}, {contender}: {error!r}")
            print(f"{shown} FAILED: {error!r}", flush=True)
            return
        self.collected.add(what, contender, figures)
        print(f"{shown} {'  '.join(f'{name} {value:.4g}' for name, value in figures.items())}", flush=True)


def compare(
    bench: Bench, contenders: Sequence[Contender], workloads: Sequence[Workload], repeat: int
) -> tuple[Table, dict[str, Figure], list[str]]:
    """Have every contender do all the work it can, `repeat` times over; give the figures and what failed."""
    run = Run()
    for number in range(1, repeat + 1):
        label = f"{number}/{repeat}"
        for workload in workloads:
            if workload.kind is Kind.FLOOD and number > 1:
                continue  # it is no matter of medians, and takes its time
            for contender in contenders:
                if workload.needs in contender.can:
                    run.step(label, workload.name, contender.name, partial(measure, bench, contender, workload))
        run.step(label, KERNEL, KERNEL, partial(kernel_cost, bench, dict.fromkeys(work.kernel for work in workloads)))
    table = run.collected.table()
    return table, table.pop(KERNEL, {}).get(KERNEL, {}), run.failures


def kernel_cost(bench: Bench, workloads: Iterable[str]) -> dict[str, float]:
    """Measure what the SDK's kernel takes alone, where the servers run."""
    script = Path(__file__).with_name("kernel.py")
    command = [sys.executable, str(script), str(min(bench.seconds, KERNEL_SECONDS)), *workloads]
    with on(bench.cores):
        done = subprocess.run(command, env={"BENCH_TOOLS": str(LISTED)}, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
