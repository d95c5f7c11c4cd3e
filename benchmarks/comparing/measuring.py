"""One measurement: a server that was just started, one kind of work, and what it took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from comparing import broadcasting, holding
from comparing.clients import WrongAnswerError, open_sessions
from comparing.contenders import Contender
from comparing.generators import Generator, Load
from comparing.plans import Plan
from comparing.processes import Cores, Server, running
from comparing.workloads import Kind, Workload

Figures = Mapping[str, float]
"""Named after what they count and in which unit; `results` says what each means."""

CONNECTIONS = 8
WARM_UP = 1.0
"""Seconds of the same load before a measurement: imports, caches and free lists fill in the first few hundred."""
SHORT = 2.0
"""Seconds of a load whose cost is that of opening and closing connections for the most part."""
SETTLED = 5.0
"""Seconds after which a server is not waited for any longer."""
QUIET = 0.1
"""Seconds in which a server that has nothing left to do uses no CPU that is counted."""


@dataclass(frozen=True)
class Bench:
    """Under which conditions is measured."""

    generator: Generator
    cores: Cores
    """What servers run on."""
    every: Cores
    """What those run on that have several processes."""
    seconds: float
    """How long a load is measured."""
    streams: int = 1000
    """Open streams that a message goes to."""
    rounds: int = 10
    """Messages to all of them."""
    sessions: int = 2000
    """Sessions that are opened to see what each takes."""
    flood: int = 100_000
    """Requests for sessions that nobody comes back to."""


def measure(bench: Bench, contender: Contender, workload: Workload) -> Figures:
    """Start a server, have it do the work, and stop it.

    Raises:
        ServerError: It did not start, or ended.
        WrongAnswerError: It answered something that was not right.
    """
    with running(contender.program(workload), bench.cores) as server:
        match workload.kind:
            case Kind.LOAD:
                sessions = open_sessions(server.port, CONNECTIONS) if contender.uses_session_for(workload) else []
                seconds = min(bench.seconds, workload.longest or bench.seconds)
                return under_load(bench.generator, server, workload.planned(sessions), seconds)
            case Kind.BROADCAST:
                return broadcasting.measure(server, bench.streams, bench.rounds)
            case Kind.MEMORY:
                return holding.measure(server, bench.sessions)
            case Kind.FLOOD:
                return flood(server, workload.planned([]), bench)


def under_load(
    generator: Generator, server: Server, plan: Plan, seconds: float, connections: int = CONNECTIONS
) -> dict[str, float]:
    """Put a server under load, and give what each request took."""
    generator.run(server.port, plan, connections, min(seconds, WARM_UP))
    used, load = loaded(generator, server, plan, seconds, connections)
    return described(server, load, used / load.requests)


def under_steady_load(
    generator: Generator, server: Server, plan: Plan, seconds: float, connections: int
) -> dict[str, float]:
    """Do the same without what it takes to open and close the connections, which are many.

    It is in a short load as in a long one; what the long one takes beyond the short one is the requests'.
    """
    generator.run(server.port, plan, connections, min(seconds, WARM_UP))
    little, short = loaded(generator, server, plan, SHORT, connections)
    much, long = loaded(generator, server, plan, SHORT + seconds, connections)
    more = long.requests - short.requests
    if more <= 0:
        raise WrongAnswerError(f"{long.requests} answers in {long.seconds} s, {short.requests} in {short.seconds} s")
    return described(server, long, (much - little) / more)


def loaded(generator: Generator, server: Server, plan: Plan, seconds: float, connections: int) -> tuple[float, Load]:
    """Put a server under load once; give the CPU seconds it took, and what came of it."""
    settle(server)
    before = server.cpu()
    load = generator.run(server.port, plan, connections, seconds)
    settle(server)
    if not load.requests:
        raise WrongAnswerError(f"no answer came in {seconds:g} s")
    return server.cpu() - before, load


def described(server: Server, load: Load, cost: float) -> dict[str, float]:
    """Name the figures of a load whose requests cost so many CPU seconds each."""
    return {
        "cpu_us": cost * 1e6,
        "per_second": load.requests / load.seconds,
        "p50_ms": load.p50_ms,
        "p99_ms": load.p99_ms,
        "rss_mib": server.rss() / 1024,
    }


def settle(server: Server) -> None:
    """Wait until a server has nothing left to do: connections that were closed, requests whose client has gone."""
    before, until = server.cpu(), time.monotonic() + SETTLED
    while time.monotonic() < until:
        time.sleep(QUIET)
        now = server.cpu()
        if now == before:
            return
        before = now


def flood(server: Server, plan: Plan, bench: Bench) -> dict[str, float]:
    """Send at least as many requests as there are to be, and give by how much the server has grown."""
    bench.generator.run(server.port, plan, CONNECTIONS, WARM_UP)
    before, sent = server.rss(), 0
    while sent < bench.flood:
        sent += loaded(bench.generator, server, plan, bench.seconds, CONNECTIONS)[1].requests
    return {"requests": sent, "growth_mib": (server.rss() - before) / 1024}
