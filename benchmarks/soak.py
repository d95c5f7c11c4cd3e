"""Keeps a server at full load with streams for minutes, and shows whether its memory stays flat.

    python benchmarks/soak.py [--minutes 10] [--backplane memory|redis] [--clients 4] [--out folder]

The load, as fast as it is answered: calls in sessions with ten progress values, questions, GET streams on which
something is told, calls whose connection is lost and whose stream is resumed, and sessions that start and end. Every
answer is checked. Each second the resident memory of the server and its open descriptors are read, and the memory of
Redis, where it is the backplane.

Memory is flat if the last quarter of the run is no higher than the time after the first minute (in short runs: the
first quarter), but for `NOISE`. The exit code is 1 if it is not, or if an answer was wrong. The figures are written as
`soak-<backplane>.json`, with a plot beside them. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import trio
import watching  # first: it knows where the harness is
from comparing.plots import over_time
from disorder.callers import Asked, Caller, Following, InSession, Line, Listening, Load
from initialize_flood import memory

from harness import mcp
from harness.process import ServerProcess, serve
from harness.redis import RedisServer, redis_server
from mcp_hybrid.backplane.redis.connection import RedisConnection

ENVIRON = {
    "MCP_HYBRID_LOG__LEVEL": "warning",
    "MCP_HYBRID_STREAM_AFTER": "0.2",
    "MCP_HYBRID_SESSIONS__IDLE_TIMEOUT": "20",
}
EVERY = 1.0
"""Seconds between two looks."""
WARM = 60.0
"""Seconds after which memory must not grow any more; logs of calls that were delivered are kept for ten."""
NOISE = 0.05
"""Share of the memory by which two quarters may differ."""
MIB = 1024 * 1024


class Counting(Following):
    """Follows ten progress values in a session."""

    pause = 0
    steps = 10
    delay = 0


class Adding(InSession):
    """Adds numbers without a pause."""

    pause = 0


class BeingAsked(Asked):
    """Is asked again soon."""

    pause = 0.01


class Hearing(Listening):
    """Has something told again soon."""

    pause = 0.01


class Resuming(Caller):
    """Loses the connection of a call, and comes back for the rest."""

    kind = "resumption"
    pause: ClassVar[float] = 0

    async def call(self, line: Line) -> None:
        """Make a call on a connection of its own, leave after its first event, and read on from there on this one."""
        id_ = next(self.ids)
        assert self.session is not None
        cut = mcp.tool("countdown", {"steps": 5, "delay": 0.02}, id_, token=f"{self.number}/{id_}")
        last: list[str | None] = []

        async def begin(other: Line) -> None:
            head = await other.send(cut, self.session)
            assert head.status == 200, head
            last.append((await other.client.event()).id)

        if not await self.on_a_line(begin):
            return
        assert last[0] is not None
        since = ("last-event-id", last[0])
        wanted = mcp.headers(self.session, mcp.LEGACY, since, accept="text/event-stream", content_type=None)
        await line.client.send("GET", wanted)
        head = await line.client.answer_head()
        assert head.status == 200, (head, await line.client.answer_body())
        messages = []
        while (event := await line.client.event_or_end()) is not None:
            messages += [event.json()] if event.data else []
        assert messages[-1]["result"]["content"][0]["text"] == "lift-off", messages[-1]
        line.client.next_request()


class StartingAndEnding(Caller):
    """Starts a session, calls once, and ends it."""

    kind = "session life"
    pause: ClassVar[float] = 0

    async def open(self, _line: Line) -> None:
        """Want none to keep."""

    async def call(self, line: Line) -> None:
        """Live one short life."""
        session = await line.open_session()
        result = await line.ask(mcp.tool("add", {"a": 1, "b": 2}, 1), session)
        assert result["structuredContent"] == {"result": 3}
        await line.client.send("DELETE", mcp.headers(session, mcp.LEGACY, accept=None, content_type=None))
        head = await line.client.answer_head()
        assert head.status == 204, (head, await line.client.answer_body())
        await line.client.answer_body()
        line.client.next_request()


KINDS: tuple[type[Caller], ...] = (Counting, Adding, BeingAsked, Hearing, Resuming, StartingAndEnding)


@dataclass(frozen=True)
class Look:
    """What there was at a time."""

    seconds: float
    server: float
    """Resident memory in MiB."""
    descriptors: int
    calls: int
    """Answered so far."""
    redis: float | None = None
    """What Redis holds, in MiB."""


@dataclass(frozen=True)
class Verdict:
    """Whether one kind of memory stayed flat, in MiB."""

    of: str
    after_warm_up: float
    at_the_end: float
    highest: float

    @property
    def flat(self) -> bool:
        """Whether it did not grow."""
        return self.at_the_end <= self.after_warm_up * (1 + NOISE) + 1

    def __str__(self) -> str:
        change = f"{self.after_warm_up:.1f} MiB once warm, {self.at_the_end:.1f} MiB at the end"
        return f"{self.of}: {change}, {self.highest:.1f} MiB at most: {'flat' if self.flat else 'GROWING'}"


async def soak(
    server: ServerProcess, load: Load, redis: RedisServer | None, clients: int, seconds: float
) -> list[Look]:
    """Keep up the load, and look each second."""
    looks: list[Look] = []
    started = trio.current_time()
    async with MaybeConnected(redis) as connection, trio.open_nursery() as nursery:
        for kind in KINDS:
            for number in range(clients):
                nursery.start_soon(kind(load, number).run)
        while (now := trio.current_time() - started) < seconds:
            looks.append(await look(server, load, connection, now))
            await trio.sleep(EVERY)
        load.over = True
        nursery.cancel_scope.deadline = trio.current_time() + 30
    return looks


class MaybeConnected:
    """A connection to Redis, where there is one."""

    def __init__(self, redis: RedisServer | None) -> None:
        self._connection = RedisConnection(redis.url) if redis is not None else None

    async def __aenter__(self) -> RedisConnection | None:
        return await self._connection.__aenter__() if self._connection is not None else None

    async def __aexit__(self, *error: object) -> None:
        if self._connection is not None:
            await self._connection.__aexit__(None, None, None)


async def look(server: ServerProcess, load: Load, redis: RedisConnection | None, seconds: float) -> Look:
    """Look at the server, and at Redis."""
    held = None
    if redis is not None:
        said = (await redis.run(b"INFO", b"memory")).decode()
        held = int(said.partition("used_memory:")[2].split()[0]) / MIB
    descriptors = len(os.listdir(f"/proc/{server.pid}/fd"))  # noqa: PTH208 - it is no file, and makes nobody wait
    resident = memory(server.pid)[0] / 1024
    return Look(round(seconds, 1), round(resident, 2), descriptors, sum(load.done.values()), held)


def judge(looks: Sequence[Look]) -> list[Verdict]:
    """Compare the last quarter with the time right after the warm-up."""
    end = looks[-1].seconds
    warm = WARM if end >= 2 * WARM else end / 4
    early = [each for each in looks if warm <= each.seconds <= warm + max(end / 8, 5)]
    late = [each for each in looks if each.seconds >= end * 0.75]
    verdicts = [_verdict("server", [e.server for e in early], [e.server for e in late], [e.server for e in looks])]
    if looks[0].redis is not None:
        redis = [[each.redis or 0.0 for each in part] for part in (early, late, looks)]
        verdicts.append(_verdict("redis", *redis))
    return verdicts


def _verdict(of: str, early: Sequence[float], late: Sequence[float], all_: Sequence[float]) -> Verdict:
    return Verdict(of, statistics.median(early), statistics.median(late), max(all_))


def write(folder: Path, backplane: str, looks: Sequence[Look], verdicts: Sequence[Verdict], load: Load) -> None:
    """Write the figures and their plot."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "backplane": backplane,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "calls": dict(load.done),
        "verdicts": [{**asdict(verdict), "flat": verdict.flat} for verdict in verdicts],
        "looks": [asdict(each) for each in looks],
    }
    (folder / f"soak-{backplane}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    rows = {"server, resident": [(each.seconds, each.server) for each in looks]}
    if looks[0].redis is not None:
        rows["Redis, used"] = [(each.seconds, each.redis or 0.0) for each in looks]
    title = f"Memory under full load with streams, {backplane} backplane"
    (folder / f"soak-{backplane}.svg").write_text(over_time(title, "MiB", rows), encoding="utf-8")


@contextmanager
def serving(backplane: str) -> Iterator[tuple[ServerProcess, RedisServer | None]]:
    """Run the server, and a Redis of its own where it needs one."""
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server()) if backplane == "redis" else None
        environ = {**ENVIRON, **({"MCP_HYBRID_BACKPLANE": redis.url} if redis is not None else {})}
        yield stack.enter_context(serve(watching.TARGET, env=environ)), redis


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10, help="how long (default 10)")
    parser.add_argument("--backplane", choices=["memory", "redis"], default="memory", help="which (default memory)")
    parser.add_argument("--clients", type=int, default=4, help="clients of each kind (default 4)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the figures go")
    options = parser.parse_args()

    started = time.monotonic()
    with serving(options.backplane) as (server, redis):
        load = Load(server.port, several=False)
        looks = trio.run(soak, server, load, redis, options.clients, options.minutes * 60)
    verdicts = judge(looks)
    write(options.out, options.backplane, looks, verdicts, load)
    seconds = time.monotonic() - started
    print(f"{sum(load.done.values())} calls in {seconds:.0f} s: {', '.join(f'{n} {k}' for k, n in load.done.items())}")
    print(f"{looks[0].descriptors} descriptors at first, {looks[-1].descriptors} at the end")
    for verdict in verdicts:
        print(verdict)
    print(f"{len(load.wrong)} wrong answers")
    for each in load.wrong[:20]:
        print(f"  {each}")
    return 0 if not load.wrong and all(verdict.flat for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
