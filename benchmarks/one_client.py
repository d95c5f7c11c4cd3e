"""Takes what one anonymous client can take of a server within a minute, while another one measures what is left to it.

    python benchmarks/one_client.py [--seconds 8] [--only sessions]

Each kind of taking has a `mcp-hybrid serve` of its own, with its defaults, over loopback. The client that takes comes
from 127.0.0.1 and holds on to all that it is given. The one that behaves is a process of its own and comes from
127.0.0.2: it makes a call every 50 ms, and starts a session and opens a stream every second. Ends with exit code 1 if
that one was refused once. Linux only: memory is read from /proc, and all of 127.0.0.0/8 is the machine's own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio
from initialize_flood import memory, serving

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the tests' messages are the benchmark's, too

from harness import mcp

TAKER: Final = "127.0.0.1"
OTHER: Final = "127.0.0.2"
CONNECTIONS: Final = 2000
"""Connections that are tried, at the most: the machine itself must not become what is short."""
AT_ONCE: Final = 64
"""Tries that are going on at a time."""
GAP: Final = 0.05
ANSWER: Final = 30.0
"""Seconds that an answer may take before the client gives up."""
DRAINED: Final = 6.0
"""Seconds within which a body that is refused gets its answer: the server reads on for five, and throws it away."""
STALLED: Final = 4 * 2**20 - 1024
"""Bytes of a body that is sent but for its end."""

CALL: Final = mcp.body(mcp.tool("add", {"a": 1, "b": 2}))
LISTEN: Final = mcp.modern(mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}))


# HTTP/1.1


def request(method: str, fields: list[tuple[str, str]], body: bytes = b"", length: int | None = None) -> bytes:
    """Encode a request whose body is said to have another length, if that is wanted."""
    size = len(body) if length is None else length
    lines = [f"{method} /mcp HTTP/1.1", "host: localhost", f"content-length: {size}", *(f"{k}: {v}" for k, v in fields)]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Answer:
    """The head of an answer, and its body if its length is known."""

    status: int
    head: bytes
    body: bytes

    @property
    def session(self) -> str:
        """The session id that was offered, or nothing."""
        found = re.search(rb"\r\nmcp-session-id: ([!-~]+)", self.head)
        return found[1].decode() if found else ""


class Line:
    """One connection, from an address of the caller's choice."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    @classmethod
    async def open(cls, port: int, address: str) -> Line:
        """Connect to the server from an address of this machine."""
        sock = trio.socket.socket()
        await sock.bind((address, 0))
        try:
            await sock.connect(("127.0.0.1", port))
        except BaseException:
            sock.close()
            raise
        return cls(trio.SocketStream(sock))

    async def ask(self, data: bytes) -> Answer:
        """Send a request and wait for the head of its answer, and for the body if that has a length."""
        await self.stream.send_all(data)
        received = b""
        while b"\r\n\r\n" not in received:
            received += await self._more()
        head, _, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head)
        while length is not None and len(body) < int(length[1]):
            body += await self._more()
        return Answer(int(head.split(b" ", 2)[1]), head, body)

    async def _more(self) -> bytes:
        piece = bytes(await self.stream.receive_some(65536))
        if not piece:
            raise trio.BrokenResourceError
        return piece


async def once(port: int, address: str, data: bytes) -> Answer:
    """Ask on a connection of its own, and close it."""
    line = await Line.open(port, address)
    try:
        return await line.ask(data)
    finally:
        await trio.aclose_forcefully(line.stream)


# The one that behaves


@dataclass
class Other:
    """What a client sees that takes no more than it needs."""

    latencies: list[float] = field(default_factory=list)
    """Milliseconds."""
    wrong: list[str] = field(default_factory=list)

    async def behave(self, port: int) -> None:
        """Make calls until cancelled, now and then in a session with a stream."""
        line: Line | None = None
        number = 0
        while True:
            number += 1
            began = trio.current_time()
            try:
                with trio.fail_after(ANSWER):
                    line = line or await Line.open(port, OTHER)
                    answer = await line.ask(request("POST", mcp.headers(), CALL))
                    self.check("call", answer.status)
                    if number % 20 == 0:
                        await self.open_stream(port)
            except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
                self.wrong.append(type(error).__name__)
                line = None
            self.latencies.append((trio.current_time() - began) * 1000)
            await trio.sleep(GAP)

    async def open_stream(self, port: int) -> None:
        """Start a session, open its stream, and end it."""
        answer = await once(port, OTHER, request("POST", mcp.headers(), mcp.body(mcp.initialize())))
        self.check("initialize", answer.status)
        fields = mcp.headers(answer.session, mcp.LEGACY, accept="text/event-stream", content_type=None)
        self.check("stream", (await once(port, OTHER, request("GET", fields))).status)
        self.check("delete", (await once(port, OTHER, request("DELETE", fields))).status)

    def check(self, what: str, status: int) -> None:
        """Note a refusal."""
        if status not in {200, 204}:
            self.wrong.append(f"{what}: {status}")


# The one that takes


@dataclass
class Taken:
    """What a client was given, and what it was refused."""

    given: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    bytes: int = 0

    def no(self, why: object) -> None:
        """Note a refusal, or a connection that broke."""
        self.refused[str(why)] = self.refused.get(str(why), 0) + 1


Take = Callable[[int, Taken, "Held"], Awaitable[None]]
"""Tries once more to take something."""


class Held:
    """Connections that are kept open, and never read again."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    async def ask(self, port: int, data: bytes) -> Answer:
        """Ask on a connection that stays open if the answer goes on."""
        line = await Line.open(port, TAKER)
        try:
            answer = await line.ask(data)
        except BaseException:
            await trio.aclose_forcefully(line.stream)
            raise
        if answer.status == 200:
            self.lines.append(line)
        else:
            await trio.aclose_forcefully(line.stream)
        return answer


async def sessions(port: int, taken: Taken, held: Held) -> None:  # noqa: ARG001 - as all of them
    """Start a session, and have it come to life."""
    answer = await once(port, TAKER, request("POST", mcp.headers(), mcp.body(mcp.initialize())))
    if answer.status == 200:
        note = mcp.body(mcp.notification("notifications/initialized"))
        answer = await once(port, TAKER, request("POST", mcp.headers(answer.session, mcp.LEGACY), note))
    count(taken, answer, 202)


async def ended(port: int, taken: Taken, held: Held) -> None:  # noqa: ARG001
    """Start a session and end it: ids of those that ended are remembered."""
    answer = await once(port, TAKER, request("POST", mcp.headers(), mcp.body(mcp.initialize())))
    if answer.status == 200:
        fields = mcp.headers(answer.session, mcp.LEGACY, accept=None, content_type=None)
        answer = await once(port, TAKER, request("DELETE", fields))
    count(taken, answer, 204)


async def streams(port: int, taken: Taken, held: Held) -> None:
    """Open the GET stream of a new session."""
    answer = await once(port, TAKER, request("POST", mcp.headers(), mcp.body(mcp.initialize())))
    if answer.status == 200:
        fields = mcp.headers(answer.session, mcp.LEGACY, accept="text/event-stream", content_type=None)
        answer = await held.ask(port, request("GET", fields))
    count(taken, answer, 200)


async def listening(port: int, taken: Taken, held: Held) -> None:
    """Open a stream of `subscriptions/listen`."""
    count(taken, await held.ask(port, request("POST", mcp.modern_headers(LISTEN), mcp.body(LISTEN))), 200)


async def calls(port: int, taken: Taken, held: Held) -> None:
    """Start a call that takes a minute, and leave it running."""
    message = mcp.body(mcp.tool("slow_echo", {"text": "x", "seconds": 60}))
    line = await Line.open(port, TAKER)
    held.lines.append(line)
    await until_refused(line, request("POST", mcp.headers(), message), taken)


async def questions(port: int, taken: Taken, held: Held) -> None:
    """Have the server ask a question that nobody answers."""
    opening = mcp.body(mcp.initialize(capabilities={"elicitation": {}}))
    answer = await once(port, TAKER, request("POST", mcp.headers(), opening))
    if answer.status == 200:
        message = mcp.body(mcp.tool("ask_name"))
        answer = await held.ask(port, request("POST", mcp.headers(answer.session, mcp.LEGACY), message))
    count(taken, answer, 200)


async def bodies(port: int, taken: Taken, held: Held) -> None:
    """Send nearly all of a large body, and then nothing more."""
    line = await Line.open(port, TAKER)
    held.lines.append(line)
    head = request("POST", mcp.headers(), b"", STALLED + 1024)
    await until_refused(line, head + b" " * STALLED, taken, seconds=DRAINED)


async def parsing(port: int, taken: Taken, held: Held) -> None:  # noqa: ARG001
    """Have a body read that is as much work as one may be."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": [[]] * 99_990}}
    line = await Line.open(port, TAKER)
    try:
        for _ in range(20):
            count(taken, await line.ask(request("POST", mcp.headers(), mcp.body(message))), 200)
    finally:
        await trio.aclose_forcefully(line.stream)


async def log_bytes(port: int, taken: Taken, held: Held) -> None:  # noqa: ARG001
    """Have a streamed call leave as much in its session's event log as it may."""
    answer = await once(port, TAKER, request("POST", mcp.headers(), mcp.body(mcp.initialize())))
    if answer.status == 200:
        text = "x" * 900_000
        message = mcp.body(mcp.tool("log", {"text": text}))
        answer = await once(port, TAKER, request("POST", mcp.headers(answer.session, mcp.LEGACY), message))
        taken.bytes += len(text) if answer.status == 200 else 0
    count(taken, answer, 200)


async def requests(port: int, taken: Taken, held: Held) -> None:  # noqa: ARG001
    """Ask as fast as can be, on connections that are kept."""
    line = await Line.open(port, TAKER)
    try:
        for _ in range(200):
            count(taken, await line.ask(request("POST", mcp.headers(), CALL)), 200)
    finally:
        await trio.aclose_forcefully(line.stream)


async def until_refused(line: Line, data: bytes, taken: Taken, seconds: float = 2.0) -> None:
    """Send a request that is not answered in so many seconds, unless it is refused."""
    with trio.move_on_after(seconds):
        answer = await line.ask(data)
        taken.no(answer.status)
        return
    taken.given += 1


def count(taken: Taken, answer: Answer, good: int) -> None:
    if answer.status == good:
        taken.given += 1
    else:
        taken.no(answer.status)


KINDS: Final[dict[str, Take]] = {
    "sessions": sessions,
    "ended": ended,
    "streams": streams,
    "listening": listening,
    "calls": calls,
    "questions": questions,
    "bodies": bodies,
    "parsing": parsing,
    "log_bytes": log_bytes,
    "requests": requests,
}


@dataclass
class Row:
    """What one kind of taking came to."""

    kind: str
    taken: Taken
    growth: int
    """KiB of the server's resident memory, at its most."""
    other: Other

    def show(self) -> str:
        """Return the row as it is printed."""
        lat = sorted(self.other.latencies) or [0.0]
        p99 = lat[min(len(lat) - 1, int(0.99 * len(lat)))]
        refused = ", ".join(f"{why} x {times}" for why, times in sorted(self.taken.refused.items())) or "none"
        return (
            f"{self.kind:<10} {self.taken.given:>7} {refused:<28} {self.growth / 1024:>8.1f} "
            f"{len(lat):>6} {statistics.median(lat):>7.1f} {p99:>7.1f} {lat[-1]:>7.1f} {len(self.other.wrong):>6}"
        )


HEAD: Final = (
    f"{'':<10} {'given':>7} {'refused':<28} {'+ MiB':>8} "
    f"{'others':>6} {'p50 ms':>7} {'p99 ms':>7} {'max ms':>7} {'wrong':>6}"
)


async def measure(kind: str, seconds: float) -> Row:
    """Take one kind of thing for so long."""
    with serving() as (pid, port):
        taken, held = Taken(), Held()
        await warm(port)
        before, most = memory(pid)[0], 0
        async with behaving(port) as other:
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as takers:
                    for _ in range(AT_ONCE):
                        takers.start_soon(keep_taking, KINDS[kind], port, taken, held)
                    while True:
                        await trio.sleep(0.25)
                        most = max(most, memory(pid)[0] - before)
        for line in held.lines:
            await trio.aclose_forcefully(line.stream)
        os.kill(pid, signal.SIGKILL)  # what was left running would have it drain for half a minute
        return Row(kind, taken, most, other)


@asynccontextmanager
async def behaving(port: int) -> AsyncIterator[Other]:
    """Run the client that behaves in another process; what it saw is there at the end."""
    other = Other()
    command = [sys.executable, __file__, "--behave", str(port)]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert (await process.stdout.receive_some(1)) == b"{"  # it is under way
        yield other
        await process.stdin.aclose()
        said = b"{" + b"".join([piece async for piece in process.stdout])
        found = json.loads(said)
        other.latencies, other.wrong = found["latencies"], found["wrong"]
    finally:
        process.kill()
        await process.wait()


async def behave_until_told(port: int) -> None:
    """Be the client that behaves, until standard input ends."""
    other = Other()
    await once(port, OTHER, request("POST", mcp.headers(), CALL))
    print("{", end="", flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.behave, port)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()
    print(json.dumps({"latencies": other.latencies, "wrong": other.wrong})[1:])


async def keep_taking(take: Take, port: int, taken: Taken, held: Held) -> None:
    while len(held.lines) < CONNECTIONS:
        try:
            await take(port, taken, held)
        except (OSError, trio.BrokenResourceError) as error:
            taken.no(type(error).__name__)
            await trio.sleep(0.05)
    await trio.sleep_forever()


async def warm(port: int) -> None:
    """Make some calls first, so that imports and free lists are no growth."""
    for _ in range(300):
        await once(port, OTHER, request("POST", mcp.headers(), CALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=7.0, help="how long each kind is taken for")
    parser.add_argument("--behave", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=KINDS, action="append", help="this kind only; may be given several times")
    arguments = parser.parse_args()
    if arguments.behave is not None:
        trio.run(behave_until_told, arguments.behave)
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    print(HEAD, flush=True)
    wrong: dict[str, Any] = {}
    for kind in arguments.only or KINDS:
        row = trio.run(measure, kind, arguments.seconds)
        print(row.show(), flush=True)
        if row.other.wrong:
            wrong[kind] = sorted(set(row.other.wrong))
    if wrong:
        sys.exit(f"the other client was refused or left waiting: {json.dumps(wrong)}")


if __name__ == "__main__":
    main()
