"""Has a program do all that a program must not, 10 000 times at random, and shows whether anybody else notices.

    python benchmarks/hostile.py [--calls 10000] [--clients 16] [--pause 0.25] [--quiet 10] [--out folder]

One `mcp-hybrid serve` of `tests/programs/hostile_tools.py`, whose tools raise every exception there is, hang in
threads, return 5 MB, burst on every stream, keep the event loop for 50 ms, cancel themselves, close their own stream.
They are called on all three routes, in an order made from the seed, with a pause after each call, so that what others
wait for is not simply a server that has no time left. Ten clients that behave, in a process of their own
and from another address, talk to tools that behave, at first alone and then the whole time.

The exit code is 1 if a call was not answered by one JSON-RPC message for its id, a client that behaves was answered
wrong or not within 30 s, the process was replaced, or holds more afterwards than before: descriptors, tasks, sessions,
threads, memory (`GROWTH`). It is 1 as well if one step of the server's own, between two checkpoints, took more CPU time
than `--longest-step`: all clients wait for it. The latencies are printed and written, but not judged: they are the
machine's as well. What goes beyond the time for which the program itself blocked the event loop is in a column of its
own. The figures are written as `hostile.json`. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import statistics
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx2
import trio
import watching  # first: it knows where the harness is
from disorder.behaving import Sample, Seen, behave, behaving
from disorder.hostile_calls import REQUEST_TIMEOUT, Tally, mix

from harness import mcp
from harness.process import ServerProcess, program, serve

ENVIRON: Final = {
    "MCP_HYBRID_REQUEST_TIMEOUT": f"{REQUEST_TIMEOUT}s",
    "MCP_HYBRID_STREAM_AFTER": "200ms",
    "MCP_HYBRID_SESSIONS__IDLE_TIMEOUT": "5s",
    "MCP_HYBRID_LOG__LEVEL": "error",
}
WARM_UP: Final = 0.05
"""Share of the calls that are made before anything is measured: what is imported or cached with the first of a kind is
no growth."""
SETTLING: Final = 150.0
"""Seconds in which the server has to let go of what the calls left behind. Logs of streams that were read to their end
are kept for 10 s, and freed memory is given back when the server next looks."""
GROWTH: Final = 24 * 1024
"""KiB of memory that may be left: caches, and what the allocator keeps for threads."""
MADE_ONCE: Final = 10
"""Tasks that a process starts when they are first needed, and keeps."""
LONGEST: Final = 100
"""Milliseconds of CPU time that one step of the server's own may take, by default: twice what a result of 5 MB takes on
a busy machine."""


@dataclass(frozen=True)
class Held:
    """What the process holds."""

    pid: int
    descriptors: int
    tasks: int
    sessions: int
    threads: int
    """Abandoned ones."""
    rss: int
    """Resident memory, in KiB."""

    def __str__(self) -> str:
        memory = f"{self.rss / 1024:.1f} MiB"
        return (
            f"process {self.pid}, {self.descriptors} descriptors, {self.tasks} tasks, {self.sessions} sessions, "
            f"{self.threads} abandoned threads, {memory}"
        )


@dataclass(frozen=True)
class Latency:
    """How long calls took, in milliseconds."""

    calls: int
    p50: float
    p99: float
    highest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Sum up; of nothing all is 0."""
        if not seconds:
            return cls(0, 0, 0, 0)
        times = sorted(1000 * each for each in seconds)
        return cls(
            len(times),
            round(statistics.median(times), 1),
            round(times[min(len(times) - 1, int(0.99 * len(times)))], 1),
            round(times[-1], 1),
        )


class Blocked:
    """When the program itself kept the event loop to itself. No two times overlap: there is one event loop."""

    def __init__(self, times: Sequence[tuple[float, float]]) -> None:
        self._times = sorted(times)
        self._ends = [end for _, end in self._times]

    def within(self, began: float, ended: float) -> float:
        """Return for how many seconds of a time that was so."""
        found = 0.0
        for number in range(bisect_left(self._ends, began), len(self._times)):
            start, end = self._times[number]
            if start >= ended:
                break
            found += min(end, ended) - max(start, began)
        return found


@dataclass
class Run:
    """All that was measured."""

    seconds: float
    tally: Tally
    seen: Seen
    began: float
    """When the hostile calls began, by the system's monotonic clock."""
    ended: float
    blocked: list[tuple[float, float]]
    long_steps: list[dict[str, Any]]
    before: Held
    after: Held
    longest_step: float
    """Milliseconds that are allowed."""
    cpu: float
    """Seconds of CPU time that the process took during the hostile calls."""

    @property
    def quiet(self) -> list[Sample]:
        """The calls of clients that behave, before the others came."""
        return [each for each in self.seen.samples if each.began + each.seconds < self.began]

    @property
    def meanwhile(self) -> list[Sample]:
        """Those while the others were at it."""
        return [each for each in self.seen.samples if self.began <= each.began < self.ended]

    def latencies(self) -> dict[str, dict[str, Latency]]:
        """Sum up for each kind of call: alone, meanwhile, and meanwhile without the program's own blocking."""
        blocked = Blocked(self.blocked)
        kinds = sorted({each.kind for each in self.seen.samples})
        found = {}
        for kind in ["all", *kinds]:
            quiet = [each.seconds for each in self.quiet if kind in ("all", each.kind)]
            meanwhile = [each for each in self.meanwhile if kind in ("all", each.kind)]
            beyond = [
                max(0, each.seconds - blocked.within(each.began, each.began + each.seconds)) for each in meanwhile
            ]
            found[kind] = {
                "alone": Latency.of(quiet),
                "meanwhile": Latency.of([each.seconds for each in meanwhile]),
                "beyond the program's own": Latency.of(beyond),
            }
        return found

    def wrong(self) -> list[str]:
        """Say all that must not be."""
        wrong = [f"hostile call: {each}" for each in self.tally.wrong]
        wrong += [f"client that behaves: {each}" for each in self.seen.wrong]
        before, after = self.before, self.after
        if before.pid != after.pid:
            wrong.append(f"process {before.pid} was lost")
        for what, more in (("descriptors", 0), ("tasks", 0), ("sessions", 0), ("threads", 0), ("rss", GROWTH)):
            if getattr(after, what) > getattr(before, what) + more:
                wrong.append(f"{what}: {getattr(before, what)} before, {getattr(after, what)} after")
        for each in self.long_steps:
            if each["cpu"] * 1000 > self.longest_step:
                wrong.append(f"one step took {each['cpu'] * 1000:.0f} ms of CPU time: {each['where'][-200:]}")
        if not self.meanwhile:
            wrong.append("no client that behaves made a call meanwhile")
        return wrong


async def hold(port: int) -> Held:
    """Look at the process from outside and from within."""
    pid, held = await watching.look(port)
    async with httpx2.AsyncClient(timeout=watching.ANSWER) as client:
        page = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    found = re.search(r"^mcp_hybrid_abandoned_threads (\S+)$", page, re.MULTILINE)
    assert found is not None, page
    return Held(pid, held.descriptors, held.tasks, held.sessions, int(float(found[1])), held.rss)


async def settle(port: int, before: Held) -> Held:
    """Wait until the process holds nothing of calls any more, and no more than before; return what it holds."""
    until = trio.current_time() + SETTLING
    while True:
        now = await hold(port)
        calm = now.tasks <= before.tasks and now.descriptors <= before.descriptors and not now.sessions
        if (calm and not now.threads and now.rss <= before.rss + GROWTH) or trio.current_time() > until:
            return now
        await trio.sleep(1)


def cpu_time(pid: int) -> float:
    """Return the seconds of CPU time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def steps(port: int) -> dict[str, Any]:
    """Ask which steps took long since the last time."""
    async with httpx2.AsyncClient(timeout=watching.ANSWER) as client:
        message = mcp.tool("steps")
        answer = await client.post(f"http://127.0.0.1:{port}/mcp", headers=mcp.headers(), content=mcp.body(message))
    found: dict[str, Any] = answer.json()["result"]["structuredContent"]
    return found


async def run(server: ServerProcess, options: argparse.Namespace) -> Run:
    """Warm up, look, run hostile and other clients at the same time, and look again."""
    started = time.monotonic()
    clients, pause, seed = options.clients, options.pause, options.seed
    fresh = await hold(server.port)
    warm = max(clients, int(options.calls * WARM_UP))
    async with behaving(__file__, server.url):
        first = await mix(server.url, warm, clients, pause, seed + 1)
    before = await settle(server.port, replace(fresh, tasks=fresh.tasks + MADE_ONCE))
    await steps(server.port)
    async with behaving(__file__, server.url) as seen:
        await trio.sleep(options.quiet)
        began, cpu = time.monotonic(), cpu_time(server.pid)
        tally = await mix(server.url, options.calls, clients, pause, seed)
        ended, cpu = time.monotonic(), cpu_time(server.pid) - cpu
    found = await steps(server.port)
    after = await settle(server.port, before)
    tally.wrong += [f"while warming up: {each}" for each in first.wrong]
    blocked = [(start, end) for start, end in found["blocked"]]
    return Run(
        time.monotonic() - started, tally, seen, began, ended, blocked, found["long"], before, after,
        options.longest_step, cpu,
    )  # fmt: skip


def show(found: Run) -> None:
    """Print the figures."""
    outcomes = sorted({outcome for _, outcome in found.tally.answers})
    print(f"{'hostile calls':<31}" + "".join(f"{each:>19}" for each in outcomes))
    for name in sorted({name for name, _ in found.tally.answers}):
        print(f"{name:<31}" + "".join(f"{found.tally.answers[name, each]:>19}" for each in outcomes))
    print("\n" + ", ".join(f"{count} {what}" for what, count in sorted(found.tally.heard.items())))
    print(f"\n{'clients that behave':<20}{'':<26}{'calls':>8}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}")
    for kind, rows in found.latencies().items():
        for when, each in rows.items():
            print(f"{kind:<20}{when:<26}{each.calls:>8}{each.p50:>9}{each.p99:>9}{each.highest:>9}")
    blocked = sum(end - start for start, end in found.blocked)
    print(f"\nthe program itself blocked the event loop {len(found.blocked)} times, for {blocked:.1f} s in all")
    print(f"the process took {found.cpu:.0f} s of CPU time in {found.ended - found.began:.0f} s")
    stalled = [each["wall"] * 1000 for each in found.long_steps if each["wall"] > 0.1]
    print(f"{len(stalled)} steps took more than 100 ms on the wall, {max(stalled, default=0):.0f} ms at most")
    longest = sorted(found.long_steps, key=lambda each: -each["cpu"])
    print(f"{sum(each['cpu'] > 0.01 for each in longest)} steps of the server's own took more than 10 ms of CPU time")
    for step in longest[:5]:
        print(f"  {step['cpu'] * 1000:>6.1f} ms  {step['where'][-200:]}")
    print(f"\nbefore: {found.before}\nafter:  {found.after}")


def write(folder: Path, found: Run, options: argparse.Namespace) -> None:
    """Write the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    answers: dict[str, Counter[str]] = {}
    for (name, outcome), count in sorted(found.tally.answers.items()):
        answers.setdefault(name, Counter())[outcome] = count
    figures = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "seed": options.seed,
        "hostile calls": found.tally.calls,
        "hostile clients": options.clients,
        "seconds": round(found.ended - found.began, 1),
        "cpu seconds of the server": round(found.cpu, 1),
        "answers": answers,
        "streams": found.tally.heard,
        "latencies in ms": {
            kind: {when: asdict(each) for when, each in rows.items()} for kind, rows in found.latencies().items()
        },
        "failures of clients that behave": len(found.seen.wrong),
        "blocked by the program": {
            "times": len(found.blocked),
            "seconds": round(sum(end - start for start, end in found.blocked), 1),
        },
        "long steps": {
            "more than 10 ms of CPU time": sum(each["cpu"] > 0.01 for each in found.long_steps),
            "longest in ms": round(1000 * max((each["cpu"] for each in found.long_steps), default=0), 1),
        },
        "longest step on the wall in ms": round(1000 * max((each["wall"] for each in found.long_steps), default=0), 1),
        "before": asdict(found.before),
        "after": asdict(found.after),
        "wrong": len(found.wrong()),
    }
    (folder / "hostile.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=10_000, help="hostile calls (default 10 000)")
    parser.add_argument("--clients", type=int, default=16, help="clients that make them (default 16)")
    parser.add_argument("--pause", type=float, default=0.25, help="seconds between two of a client's (default 0.25)")
    parser.add_argument("--quiet", type=float, default=10, help="seconds without them, for comparison (default 10)")
    parser.add_argument("--seed", type=int, default=1, help="what the calls are made from (default 1)")
    parser.add_argument("--longest-step", type=float, default=LONGEST, help=f"milliseconds of CPU (default {LONGEST})")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the figures go")
    parser.add_argument("--behave", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.INFO)  # the program's library has put a handler in place, and clients log each request
    if options.behave is not None:
        trio.run(behave, options.behave)
        return 0

    with serve(program("hostile_tools"), env=ENVIRON) as server:
        found = trio.run(run, server, options)
        log = server.log
    show(found)
    write(options.out, found, options)
    wrong = found.wrong()
    print(f"\n{found.tally.calls} hostile calls in {found.ended - found.began:.0f} s, {found.seconds:.0f} s in all")
    print(f"{len(wrong)} things that must not be")
    for each in wrong[:40]:
        print(f"  {each}")
    if wrong:
        (options.out / "hostile.log").write_text(log, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
