"""How the cost of a request grows: with connections, with live sessions, with progress, with workers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from comparing.clients import Client, open_sessions
from comparing.contenders import OURS, SDK, Contender
from comparing.measuring import CONNECTIONS, Bench, settle, under_load, under_steady_load
from comparing.plans import ADD
from comparing.processes import running
from comparing.results import Table
from comparing.running import Run
from comparing.workloads import CALL, SESSION_CALL, SESSION_PROGRESS, Workload, reporting

CONNECTION_STEPS = (1, 10, 100, 1000)
SESSION_STEPS = (0, 1_000, 100_000)
PROGRESS_STEPS = (1, 10, 100, 1000)
WORKER_STEPS = (1, 2)

FEW = 100
"""Connections that may be opened and closed in a measurement without being seen in it."""
STEADY = 3
"""Times as long a load is measured where that is taken out: a difference varies more."""
VALUES = 5_000
"""Values of progress that are reported for each second of a measurement, about."""
MOST_CALLS, FEWEST_CALLS = 1_000, 5
"""Calls for each second of a measurement."""
WARM_UP_CALLS = 20

SESSIONS_LAST = {"MCP_HYBRID_SESSIONS__MAX_LIVE": "200000", "MCP_HYBRID_SESSIONS__IDLE_TIMEOUT": "1d"}
"""Settings under which sessions stay live for as long as they are measured."""

PEER = next(each for each in SDK if each.name == "sdk-hypercorn-stateful-sse")
"""Whose progress is compared with ours: the SDK on the same stack."""


@dataclass(frozen=True)
class Sizes:
    """How far a growth is followed."""

    connections: Sequence[int] = CONNECTION_STEPS
    sessions: Sequence[int] = SESSION_STEPS
    progress: Sequence[int] = PROGRESS_STEPS
    workers: Sequence[int] = WORKER_STEPS


def grow(bench: Bench, parts: Sequence[str], repeat: int, sizes: Sizes) -> tuple[Table, list[str]]:
    """Measure these parts; give the figures, under names such as `connections: 100`, and what failed."""
    run = Run()
    for part in parts:
        PARTS[part](run, bench, repeat, sizes)
    return run.collected.table(), run.failures


def with_connections(run: Run, bench: Bench, repeat: int, sizes: Sizes) -> None:
    """Make calls without a session, and in one, on more and more connections."""
    for number in range(1, repeat + 1):
        for workload in (CALL, SESSION_CALL):
            for connections in sizes.connections:
                step = partial(_loaded, bench, OURS, workload, connections)
                run.step(f"{number}/{repeat}", f"connections: {connections}", f"ours, {workload.name}", step)


def with_sessions(run: Run, bench: Bench, repeat: int, sizes: Sizes) -> None:
    """Make calls in a few sessions while more and more others are live.

    All the servers live at the same time, so that they meet the machine alike; who is not asked uses no CPU.
    """
    with ExitStack() as stack:
        servers = {}
        for count in sizes.sessions:
            server = stack.enter_context(running(OURS.program(SESSION_CALL, SESSIONS_LAST), bench.cores))
            print(f"{count} sessions are opened", flush=True)
            _claim(server.port, count)
            servers[count] = server, SESSION_CALL.planned(open_sessions(server.port, CONNECTIONS))
        for number in range(1, repeat + 1):
            for count, (server, plan) in servers.items():
                step = partial(under_load, bench.generator, server, plan, bench.seconds)
                run.step(f"{number}/{repeat}", f"sessions: {count}", f"ours, {SESSION_CALL.name}", step)


def _claim(port: int, sessions: int) -> None:
    """Open sessions that stay live: each is claimed by its first call."""
    with Client.on(port) as client:
        for _ in range(sessions):
            client.call("add", ADD, client.open_session(confirm=False))


def with_progress(run: Run, bench: Bench, repeat: int, sizes: Sizes) -> None:
    """Have calls report more and more values of progress."""
    for number in range(1, repeat + 1):
        for values in sizes.progress:
            for contender in (OURS, PEER):
                step = partial(_reporting, bench, contender, values)
                run.step(f"{number}/{repeat}", f"progress: {values}", contender.name, step)


def with_workers(run: Run, bench: Bench, repeat: int, sizes: Sizes) -> None:
    """Make calls of one worker and of several, which have all the cores, and share one with what drives them."""
    for number in range(1, repeat + 1):
        for workers in sizes.workers:
            step = partial(_loaded, bench, OURS, CALL, CONNECTIONS, workers)
            run.step(f"{number}/{repeat}", f"workers: {workers}", f"ours, {CALL.name}", step)


def _loaded(
    bench: Bench, contender: Contender, workload: Workload, connections: int, workers: int | None = None
) -> dict[str, float]:
    env = {} if workers is None else {"MCP_HYBRID_SERVER__WORKERS": str(workers)}
    cores = bench.cores if workers is None else bench.every
    with running(contender.program(workload, env), cores) as server:
        sessions = open_sessions(server.port, CONNECTIONS) if contender.uses_session_for(workload) else []
        plan = workload.planned(sessions)
        if connections > FEW:
            return under_steady_load(bench.generator, server, plan, STEADY * bench.seconds, connections)
        return under_load(bench.generator, server, plan, bench.seconds, connections)


def _reporting(bench: Bench, contender: Contender, values: int) -> dict[str, float]:
    """Make calls one after another. Those with many values are too long for a load to hold enough of them."""
    with running(contender.program(SESSION_PROGRESS), bench.cores) as server, Client.on(server.port) as client:
        plan = reporting(values)([client.open_session()])
        calls = round(bench.seconds * max(FEWEST_CALLS, min(MOST_CALLS, VALUES / values)))
        for number in range(WARM_UP_CALLS):
            client.follow(plan, number)
        settle(server)
        before = server.cpu()
        for number in range(calls):
            client.follow(plan, number)
        used = server.cpu() - before
        return {"cpu_us": used / calls * 1e6, "events_per_cpu_second": values * calls / used}


PARTS = {
    "connections": with_connections,
    "sessions": with_sessions,
    "progress": with_progress,
    "workers": with_workers,
}
