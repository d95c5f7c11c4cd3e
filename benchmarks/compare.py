"""Compares our server with its peers, side by side: what a request costs, how fast it is answered, what is held.

    python benchmarks/compare.py [--quick] [--seconds 3] [--repeat 3] [--only NAME]... [--record] [--no-write]
    python benchmarks/compare.py --growth [...]
    python benchmarks/compare.py --render

The peers are installed once, in environments of their own below .cache/bench. One server runs at a time, on a core of
its own; what drives it runs on another. All take their turn in each repetition. Every answer is checked: the exit code
is 1 if one was wrong. What was measured is written to benchmarks/results/latest.json and docs/performance.md, but for a
run of some of it --only. Linux only: CPU time and memory are read from /proc.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from comparing import guard, installing, rendering
from comparing.contenders import CONTENDERS, OURS, Contender
from comparing.generators import Generator, PythonGenerator, Wrk
from comparing.growth import PARTS, PEER, Sizes, grow
from comparing.installing import MissingProgramError, NotInstalledError
from comparing.measuring import CONNECTIONS, Bench
from comparing.processes import allow_many_files, split_cores
from comparing.results import Part, Results, load, machine, save
from comparing.running import compare
from comparing.workloads import WORKLOADS, Workload

SECONDS = 3.0
REPEAT = 3
QUICK_SIZES = Sizes(connections=(1, 100), sessions=(0, 1_000), progress=(1, 100), workers=(1, 2))
QUICK_COUNTS = {"rounds": 5, "sessions": 500, "flood": 1_000}
OURS_USES = ("mcp-hybrid", "mcp", "hypercorn", "httptools", "h11", "trio", "anyio", "pydantic", "starlette")
PEERS_USE = {"sdk": ("uvicorn", "uvloop", "httptools"), "fastmcp": ("fastmcp",)}


def main() -> int:
    options = parse()
    if options.render:
        rendering.write(load())
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    allow_many_files()
    contenders, workloads, parts = chosen(options.only, growth=options.growth)
    try:
        contenders, versions = installed(contenders)
    except NotInstalledError as error:
        print(error, file=sys.stderr)
        return 1
    bench = bench_of(options)
    conditions = conditions_of(options, bench, versions)
    if options.growth:
        sizes = QUICK_SIZES if options.quick else Sizes()
        table, failures = grow(bench, parts, options.repeat, sizes)
        part = Part(conditions, table, {})
    else:
        table, kernel, failures = compare(bench, contenders, workloads, options.repeat)
        part = Part(conditions, table, kernel)
    return conclude(options, part, failures)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a second a time, once, and on a smaller scale")
    parser.add_argument("--seconds", type=float, help=f"how long a load is measured (default {SECONDS:g})")
    parser.add_argument("--repeat", type=int, help=f"how often everything is measured (default {REPEAT})")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="measure nothing else (repeatable)")
    parser.add_argument("--growth", action="store_true", help="measure how the cost grows instead")
    parser.add_argument("--record", action="store_true", help="keep the costs, for later runs to be compared with")
    parser.add_argument("--no-write", action="store_true", help="change no file")
    parser.add_argument("--render", action="store_true", help="only write the document anew, from the last figures")
    options = parser.parse_args()
    options.seconds = options.seconds or (1.0 if options.quick else SECONDS)
    options.repeat = options.repeat or (1 if options.quick else REPEAT)
    return options


def chosen(only: Sequence[str], *, growth: bool) -> tuple[list[Contender], list[Workload], list[str]]:
    """Find what is meant by names and parts of names; a kind of which nothing is named is taken as a whole."""
    contenders = {each.name: each for each in CONTENDERS}
    workloads = {each.name: each for each in WORKLOADS}
    kinds: list[dict[str, Any]] = [dict.fromkeys(PARTS)] if growth else [contenders, workloads]
    for name in only:
        if not any(_meant(name, kind) for kind in kinds):
            sys.exit(f"--only {name}: expected a part of one of {', '.join(word for kind in kinds for word in kind)}")
    picked = [[each for each in kind if each in {m for name in only for m in _meant(name, kind)}] for kind in kinds]
    full = [found or list(kind) for found, kind in zip(picked, kinds, strict=True)]
    if growth:
        return [OURS, PEER], [], full[0]
    return [contenders[name] for name in full[0]], [workloads[name] for name in full[1]], []


def _meant(name: str, kind: Iterable[str]) -> list[str]:
    return [each for each in kind if each == name] or [each for each in kind if name in each]


def installed(contenders: Sequence[Contender]) -> tuple[list[Contender], dict[str, str]]:
    """Install what is missing; return those that can run here, and the versions of what is compared."""
    ready = []
    for each in contenders:
        try:
            each.prepare()
        except MissingProgramError as error:
            print(f"{each.name} is left out: {error}", file=sys.stderr)
        else:
            ready.append(each)
    versions = {name: version(name) for name in OURS_USES}
    for environment, packages in PEERS_USE.items():
        if any(environment in each.name for each in ready):
            versions |= installing.python_versions(installing.python(environment), packages)
    if any("typescript" in each.name for each in ready):
        versions |= installing.node_versions(*installing.node())
    return ready, versions


def bench_of(options: argparse.Namespace) -> Bench:
    """Set up what is measured with; this process, and what it has send the load, leave the server's core alone."""
    server, driver, every = split_cores()
    os.sched_setaffinity(0, driver)
    wrk = installing.wrk()
    generator: Generator = PythonGenerator() if wrk is None else Wrk(wrk, installing.wrk_version(wrk))
    return Bench(generator, server, every, options.seconds, **(QUICK_COUNTS if options.quick else {}))


def conditions_of(options: argparse.Namespace, bench: Bench, versions: dict[str, str]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(len(bench.every)),
        "versions": versions,
        "generator": bench.generator.name,
        "connections": CONNECTIONS,
        "seconds": options.seconds,
        "repeat": options.repeat,
    }


def conclude(options: argparse.Namespace, part: Part, failures: Sequence[str]) -> int:
    """Show what came of a run, and write it; nothing is written of one in which something failed."""
    results = Results(growth=part) if options.growth else Results(comparison=part)
    for row in rendering.targets_reached(results):
        print("  ".join(row))
    for line in guard.compare(part):
        print(line)
    if failures:
        print(f"\n{len(failures)} FAILED; nothing was written:", *failures, sep="\n")
        return 1
    if options.record and not options.no_write:
        guard.record(part)
    if not options.only and not options.no_write:
        latest = load()
        latest.comparison, latest.growth = results.comparison or latest.comparison, results.growth or latest.growth
        save(latest)
        rendering.write(latest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
