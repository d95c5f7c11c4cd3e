"""What sessions cost: memory for each, the time to bring one back, and what sharing them by Redis adds to a call.

    python benchmarks/sessions.py [--sessions 100000] [--calls 4000] [--restarted 4000]

Memory is measured in this process, calls over loopback against `mcp-hybrid serve` processes. Without a `redis-server`
on the machine the figures for Redis are left out. Linux only: memory and CPU time are read from /proc.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import structlog
import trio
from initialize_flood import ANSWER, BODY, CLOSE, HEADERS, SESSION, STATUS, memory, port_of, read_answer
from one_owner import ENVIRON, LIMITS

from mcp_hybrid import HybridApp, Settings
from mcp_hybrid.demo import server as demo
from mcp_hybrid.sessions.seal import fresh_key

TRACED = 10_000
"""Sessions whose bytes are counted one by one, which is slow."""
BROUGHT_BACK = 2_000
ENDED = 30
CONNECTIONS = 8
TURNS = 10
"""Parts that calls are sent in, so that each kind meets the machine in the same moods."""
TICK = os.sysconf("SC_CLK_TCK")
KEY = fresh_key()

PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'


def call(number: int) -> bytes:
    """Return a call. Several that run at a time in one session need ids of their own."""
    return json.dumps(
        {
            "jsonrpc": "2.0",
            "id": number,
            "method": "tools/call",
            "params": {"name": "add", "arguments": {"a": 1, "b": 2}},
        }
    ).encode()


CALL = call(1)

Row = tuple[str, str]


# In this process


async def ask(app: HybridApp, body: bytes, session: str | None = None) -> tuple[int, str | None]:
    """Send one message to the application; return the status and the session id that came."""
    pieces = [{"type": "http.request", "body": body, "more_body": False}]
    answer: dict[str, Any] = {}

    async def receive() -> MutableMapping[str, Any]:
        return pieces.pop()

    async def send(event: MutableMapping[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        answer.update(event)

    headers = {**HEADERS, "content-length": str(len(body))}
    if session is not None:
        headers |= {"mcp-session-id": session, "mcp-protocol-version": "2025-11-25"}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": raw, "http_version": "1.1", "asgi": {}}
    await app(scope, receive, send)
    found = dict(answer["headers"]).get(b"mcp-session-id")
    return answer["status"], found.decode() if found is not None else None


async def offer(app: HybridApp, count: int) -> list[str]:
    """Have so many sessions offered."""
    ids = [(await ask(app, BODY))[1] for _ in range(count)]
    return [one for one in ids if one is not None]


async def claim(app: HybridApp, ids: Sequence[str]) -> None:
    """Send a message in each session."""
    for session in ids:
        status, _ = await ask(app, PING, session)
        assert status == 200, status


def traced() -> int:
    """Return the bytes that are held now."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def quiet_app(sessions: int) -> HybridApp:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    return HybridApp(
        demo, Settings.model_validate({"sessions": {"max_live": sessions + 1, "keys": [KEY]}, "limits": LIMITS})
    )


async def count_bytes(count: int) -> list[Row]:
    """Count what a session holds in each stage of its life."""
    app = quiet_app(count)
    async with app.lifespan():
        tracemalloc.start()  # before the warm-up: what is filled by it and replaced later must not count as growth
        await claim(app, await offer(app, 100))
        await hibernate(app)
        before = traced()
        ids = await offer(app, count)
        kept_here = sum(map(sys.getsizeof, ids)) + sys.getsizeof(ids)
        offered = traced() - before - kept_here
        await claim(app, ids)
        live = traced() - before - kept_here
        await hibernate(app)
        hibernating = traced() - before - kept_here
        tracemalloc.stop()
    return [
        (
            f"bytes for an {stage} session" if stage == "offered" else f"bytes for a {stage} session",
            f"{held / count:.1f}",
        )
        for stage, held in (("offered", offered), ("live", live), ("hibernating", hibernating))
    ]


async def hibernate(app: HybridApp, count: int | None = None) -> None:
    """Let the sessions hibernate that were used first, or all, as the sweep does with idle ones."""
    held = app.registry.sessions()
    for session in held[:count]:
        session.last_used = -1e9
    await app.registry.sweep()
    assert len(app.registry) == len(held[count:] if count is not None else [])


async def hold(count: int) -> list[Row]:
    """Hold many live sessions."""
    app = quiet_app(count)
    async with app.lifespan():
        ids = await offer(app, count)
        gc.collect()
        before, _ = memory(os.getpid())
        started = time.perf_counter()
        await claim(app, ids)
        seconds = time.perf_counter() - started
        after, _ = memory(os.getpid())
        held = len(app.registry)
    return [
        (f"{held} live sessions in one process", f"+{(after - before) / 1024:.0f} MiB RSS, {seconds:.0f} s to claim"),
        ("RSS for each of them", f"{(after - before) * 1024 / held:.0f} bytes"),
    ]


async def bring_back(count: int) -> list[Row]:
    """Time a message in sessions that are live and in ones that hibernate, by turns: the machine has its moods."""
    app = quiet_app(2 * count)
    live: list[float] = []
    hibernating: list[float] = []
    async with app.lifespan():
        asleep, awake = await offer(app, count), await offer(app, count)
        await claim(app, [*asleep, *awake])
        await hibernate(app, count)
        for one, other in zip(asleep, awake, strict=True):
            hibernating.append(await time_one(app, one))
            live.append(await time_one(app, other))
    here, back = statistics.median(live), statistics.median(hibernating)
    return [
        ("ping in a live session, median", f"{here:.0f} us"),
        ("ping in a hibernating session, median", f"{back:.0f} us (+{back - here:.0f} to bring it back)"),
    ]


async def time_one(app: HybridApp, session: str) -> float:
    """Return the microseconds that a message takes."""
    started = time.perf_counter()
    await ask(app, PING, session)
    return (time.perf_counter() - started) * 1e6


# Against processes


@contextmanager
def serving(port: int = 0, backplane: str = "memory") -> Iterator[tuple[int, int]]:
    """Run a server; give its process id and port."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MCP_HYBRID_")}
    environ |= {"MCP_HYBRID_SESSIONS__KEYS": KEY, "MCP_HYBRID_BACKPLANE": backplane, **ENVIRON}
    command = [sys.executable, "-c", "from mcp_hybrid.cli import main; main()", "serve", "--port", str(port)]
    with tempfile.TemporaryFile(mode="w+") as log:
        process = subprocess.Popen(command, env=environ, stderr=log, text=True)
        try:
            yield process.pid, port_of(process, log)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


@contextmanager
def redis() -> Iterator[str]:
    """Run a Redis of our own; give its address."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                time.sleep(0.05)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


class Load:
    """Requests that a few connections work off."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self.statuses: list[int] = []
        self.sessions: list[str] = []
        self._port = port
        self._left = list(reversed(requests))

    async def run(self, connections: int = CONNECTIONS) -> float:
        """Send everything; return how many seconds it took."""
        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(self._work)
        return time.perf_counter() - started

    async def _work(self) -> None:
        while self._left:
            async with await trio.open_tcp_stream("127.0.0.1", self._port) as stream:
                while self._left:
                    with trio.fail_after(ANSWER):
                        await stream.send_all(self._left.pop())
                        head = await read_answer(stream)
                    status, session = STATUS.match(head), SESSION.search(head)
                    self.statuses.append(int(status[1]) if status else 0)
                    if session is not None:
                        self.sessions.append(session[1].decode())
                    if CLOSE.search(head):
                        break


def post(body: bytes, session: str | None = None, method: str = "POST") -> bytes:
    headers = {**HEADERS, "content-length": str(len(body))}
    if session is not None:
        headers |= {"mcp-session-id": session, "mcp-protocol-version": "2025-11-25"}
    lines = [f"{method} /mcp HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def cpu(pid: int) -> float:
    """Return the CPU seconds that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def send(port: int, requests: Sequence[bytes], statuses: AbstractSet[int] = frozenset({200})) -> tuple[Load, float]:
    load = Load(port, requests)
    seconds = trio.run(load.run)
    assert set(load.statuses) == statuses, set(load.statuses)
    return load, seconds


def compare_backplanes(count: int) -> list[Row]:
    """Compare what a call takes of the server's CPU with Redis and with memory, by turns."""
    with ExitStack() as stack:
        here = stack.enter_context(serving())
        kinds: dict[str, tuple[tuple[int, int], str | None]] = {
            "stateless tools/call": (here, None),
            "tools/call in a session, memory": (here, in_session(here)),
        }
        if shutil.which("redis-server") is not None:
            shared = stack.enter_context(serving(backplane=stack.enter_context(redis())))
            kinds["tools/call in a session, Redis"] = (shared, in_session(shared))
        costs: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(TURNS + 1):
            for kind, ((pid, port), session) in kinds.items():
                requests = [post(call(number), session) for number in range(count // TURNS)]
                before = cpu(pid)
                send(port, requests)
                costs[kind].append((cpu(pid) - before) / (count // TURNS) * 1e6)
    return [(f"CPU of a {kind}, median", f"{statistics.median(took[1:]):.0f} us") for kind, took in costs.items()]


def in_session(server: tuple[int, int]) -> str:
    """Return the id of a new session of a server."""
    (session,) = send(server[1], [post(BODY)])[0].sessions
    return session


def end_sessions(count: int) -> list[Row]:
    """Time DELETE, which is answered when the other worker knows that the session is over."""
    if shutil.which("redis-server") is None:
        return []
    with redis() as url, serving(backplane=url) as (_, one), serving(backplane=url) as (_, other):
        took = []
        for _ in range(count):
            (session,) = send(one, [post(BODY)])[0].sessions
            send(other, [post(CALL, session)])
            started = time.perf_counter()
            send(one, [post(b"", session, "DELETE")], {204})
            took.append((time.perf_counter() - started) * 1e3)
            send(other, [post(CALL, session)], {404})
    return [("DELETE with two workers that share a Redis, median", f"{statistics.median(took):.1f} ms")]


def restart(count: int) -> list[Row]:
    """Do it with what a process knows by itself, and with Redis, which knows what has ended meanwhile."""
    rows = restarted("memory", count, "memory")
    if shutil.which("redis-server") is not None:
        with redis() as url:
            rows += restarted("Redis", count, url)
    return rows


def restarted(kind: str, count: int, backplane: str) -> list[Row]:
    """Kill a server that has many live sessions, start it again, and let every client go on at once."""
    with serving(backplane=backplane) as (_, port):
        ids = send(port, [post(BODY)] * count)[0].sessions
        send(port, [post(CALL, session) for session in ids])
    with serving(port, backplane) as (pid, _):
        at_first = cpu(pid)
        _, first = send(port, [post(CALL, session) for session in ids])
        between = cpu(pid)
        _, again = send(port, [post(CALL, session) for session in ids])
        live = cpu(pid) - between
    added = (between - at_first - live) / count * 1e6
    return [
        (f"sessions brought back a second, {kind} ({count}, one call each)", f"{count / first:.0f}"),
        ("the same calls a second, once they are live", f"{count / again:.0f}"),
        ("CPU to bring one back", f"{added:+.0f} us"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--sessions", type=int, default=100_000, help="live sessions to hold (default 100000)")
    parser.add_argument("--calls", type=int, default=4_000, help="calls for a cost (default 4000)")
    parser.add_argument("--restarted", type=int, default=4_000, help="sessions over a restart (default 4000)")
    options = parser.parse_args()

    rows = trio.run(hold, options.sessions)  # first: what others have freed would hide its growth
    rows += trio.run(count_bytes, min(TRACED, options.sessions))
    rows += trio.run(bring_back, min(BROUGHT_BACK, options.sessions))
    rows += compare_backplanes(options.calls)
    rows += end_sessions(min(ENDED, options.calls))
    rows += restart(options.restarted)
    width = max(len(what) for what, _ in rows)
    for what, value in rows:
        print(f"{what:<{width}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
