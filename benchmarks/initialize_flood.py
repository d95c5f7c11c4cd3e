"""Floods a server with `initialize` by clients that never echo the session id, and shows that nothing is kept.

    python benchmarks/initialize_flood.py [--count 100000] [--connections 4]

First against `mcp-hybrid serve`, a process of its own, over loopback: all are answered, and its resident memory stays
where it was. Then against the same application inside this process, where its sessions can be counted. Ends with exit
code 1 if a request was not answered with an id of its own, a session was kept, or the memory grew.
Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import structlog
import trio
from one_owner import ENVIRON, LIMITS

from mcp_hybrid import HybridApp, Settings
from mcp_hybrid.counts import Count
from mcp_hybrid.demo import server as demo

WARM_UP = 2000
"""Requests before memory is looked at: imports, caches and free lists fill in the first few hundred."""
GROWTH = 10 * 1024
"""KiB by which the server's resident memory may differ before and after: noise, whatever the count."""
START = 30.0
"""Seconds the server may take until it listens."""
ANSWER = 30.0
"""Seconds one answer may take."""

BODY = json.dumps(
    {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {"roots": {"listChanged": True}, "sampling": {}, "elicitation": {}},
            "clientInfo": {"name": "flood", "version": "1"},
        },
    }
).encode()
HEADERS = {
    "host": "127.0.0.1",
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "content-length": str(len(BODY)),
}
REQUEST = "".join(["POST /mcp HTTP/1.1\r\n", *(f"{k}: {v}\r\n" for k, v in HEADERS.items()), "\r\n"]).encode() + BODY

STATUS = re.compile(rb"HTTP/1\.1 (\d+)")
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)")
SESSION = re.compile(rb"\r\nmcp-session-id: ([\x21-\x7e]+)")
CLOSE = re.compile(rb"\r\nconnection: close", re.IGNORECASE)


@dataclass
class Tally:
    """What came back."""

    left: int
    answered: int = 0
    refused: int = 0
    ids: set[int] = field(default_factory=set)
    """Hashes of the session ids: they must all differ."""

    def count(self, status: int, session: bytes | None) -> None:
        """Count one answer."""
        if status == 200 and session is not None:
            self.answered += 1
            self.ids.add(hash(session))
        else:
            self.refused += 1


# Against a process


@contextmanager
def serving(env: Mapping[str, str] | None = None) -> Iterator[tuple[int, int]]:
    """Run `mcp-hybrid serve` with these settings, or its defaults; give its process id and port."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MCP_HYBRID_")}
    command = [sys.executable, "-c", "from mcp_hybrid.cli import main; main()", "serve", "--port", "0"]
    with tempfile.TemporaryFile(mode="w+") as log:
        process = subprocess.Popen(command, env={**inherited, **(env or {})}, stderr=log, text=True)
        try:
            yield process.pid, port_of(process, log)
        finally:
            process.terminate()
            process.wait(START)


def port_of(process: subprocess.Popen[str], log: IO[str]) -> int:
    """Wait for the line that says where the server listens."""
    until = time.monotonic() + START
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(r'"url":"http://127\.0\.0\.1:(\d+)', os.pread(log.fileno(), 10_000, 0).decode()):
            return int(found[1])
        time.sleep(0.05)
    sys.exit("the server did not start")


async def flood(port: int, count: int, connections: int) -> Tally:
    """Send `count` times `initialize` over a few connections that are kept alive."""
    tally = Tally(count)
    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(keep_asking, port, tally)
    return tally


async def keep_asking(port: int, tally: Tally) -> None:
    """Ask until nothing is left; the server closes a connection after so many requests, and a new one is opened."""
    while tally.left:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            while tally.left:
                tally.left -= 1
                with trio.fail_after(ANSWER):
                    await stream.send_all(REQUEST)
                    head = await read_answer(stream)
                status, session = STATUS.match(head), SESSION.search(head)
                tally.count(int(status[1]) if status else 0, session[1] if session else None)
                if CLOSE.search(head):
                    break


async def read_answer(stream: trio.SocketStream) -> bytes:
    """Read one answer, of which the head is returned."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += await more(stream)
    length = LENGTH.search(data, 0, end)
    missing = (int(length[1]) if length else 0) - (len(data) - end - 4)
    while missing > 0:
        missing -= len(await more(stream))
    return data[:end]


async def more(stream: trio.SocketStream) -> bytes:
    chunk = await stream.receive_some()
    if not chunk:
        raise ConnectionError("the server closed a connection in the middle of an answer")
    return bytes(chunk)


def memory(pid: int) -> tuple[int, int]:
    """Return the resident memory of a process, now and at its most, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    now, most = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
    assert now is not None
    assert most is not None
    return int(now[1]), int(most[1])


# In this process


async def count_sessions(count: int) -> tuple[Tally, int, int]:
    """Send `count` times `initialize` to the application itself; return what came, sessions offered, sessions held."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    app, tally = HybridApp(demo, Settings.model_validate({"limits": LIMITS})), Tally(count)
    async with app.lifespan():
        for _ in range(count):
            await ask(app, tally.count)
        return tally, app.registry.counts[Count.OFFERED], len(app.registry)


async def ask(app: HybridApp, done: Callable[[int, bytes | None], None]) -> None:
    pieces = [{"type": "http.request", "body": BODY, "more_body": False}]
    answer: dict[str, Any] = {}

    async def receive() -> MutableMapping[str, Any]:
        if pieces:
            return pieces.pop()
        await trio.sleep_forever()
        raise AssertionError

    async def send(event: MutableMapping[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        answer.update(event)

    raw = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": raw, "http_version": "1.1", "asgi": {}}
    await app(scope, receive, send)
    done(answer["status"], dict(answer["headers"]).get(b"mcp-session-id"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=100_000, help="how many initialize requests (default 100000)")
    parser.add_argument("--connections", type=int, default=4, help="connections that are kept alive (default 4)")
    options = parser.parse_args()

    with serving(ENVIRON) as (pid, port):
        trio.run(flood, port, min(WARM_UP, options.count), options.connections)
        before, _ = memory(pid)
        started = time.perf_counter()
        tally = trio.run(flood, port, options.count, options.connections)
        seconds = time.perf_counter() - started
        after, most = memory(pid)
    print("mcp-hybrid serve, one process")
    print(f"  initialize sent        {options.count}")
    print(f"  answered with an id    {tally.answered} ({len(tally.ids)} different ids)")
    print(f"  refused                {tally.refused}")
    print(f"  seconds                {seconds:.1f} ({options.count / seconds:.0f} a second)")
    print(f"  RSS before             {before / 1024:.1f} MiB")
    print(f"  RSS after              {after / 1024:.1f} MiB ({(after - before) / 1024:+.1f} MiB)")
    print(f"  RSS at its most        {most / 1024:.1f} MiB")

    inside, offered, held = trio.run(count_sessions, options.count)
    print("the application, in this process")
    print(f"  answered with an id    {inside.answered} ({len(inside.ids)} different ids)")
    print(f"  sessions offered       {offered}")
    print(f"  sessions held          {held}")
    if after - before > GROWTH:
        print(f"the server grew by more than {GROWTH // 1024} MiB")
        return 1
    every = tally.answered == inside.answered == len(tally.ids) == len(inside.ids) == options.count
    return 0 if every and held == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
