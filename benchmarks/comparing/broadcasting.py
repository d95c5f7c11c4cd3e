"""What it takes a server to send one message to many sessions, each on the stream that its client holds open."""

from __future__ import annotations

import selectors
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from comparing.clients import PATH, Client, WrongAnswerError
from comparing.processes import Server
from harness import mcp

PATIENCE = 60.0
"""Seconds until everybody must have a message."""
CHUNK = 65536
WARM_UP = 3
"""Rounds that are not measured."""


@dataclass
class Stream:
    """A session's open GET stream."""

    socket: socket.socket
    seen: bytearray = field(default_factory=bytearray)
    """What came since the last message that was waited for."""

    def read(self) -> None:
        """Take what has come."""
        data = self.socket.recv(CHUNK)
        if not data:
            raise WrongAnswerError(f"a stream ended: {bytes(self.seen[-300:])!r}")
        self.seen += data


def measure(server: Server, streams: int, rounds: int) -> dict[str, float]:
    """Send a message to all streams, again and again; give the CPU time for each that came, and how long all took."""
    with ExitStack() as stack:
        client = stack.enter_context(Client.on(server.port))
        sessions = [client.open_session() for _ in range(streams)]
        for session in sessions:
            client.call("join", {}, session, '"result"')
        listening = stack.enter_context(_listening(server.port, sessions))
        took = []
        before = 0.0
        for number in range(WARM_UP + rounds):
            if number == WARM_UP:
                before = server.cpu()
            started = time.perf_counter()
            client.call("tell_all", {"number": number}, sessions[0], '"text":"done"')
            listening.wait_for(b"bench://round/%d/" % number)
            took.append(time.perf_counter() - started)
        used = server.cpu() - before
        return {
            "message_us": used / (rounds * streams) * 1e6,
            "all_ms": statistics.median(took[WARM_UP:]) * 1e3,
            "rss_mib": server.rss() / 1024,
        }


class Listening:
    """All the streams."""

    def __init__(self, selector: selectors.BaseSelector, streams: Sequence[Stream]) -> None:
        self._selector = selector
        self._streams = streams

    def wait_for(self, text: bytes) -> None:
        """Wait until every stream has brought this text, and see that none brings it twice."""
        missing = len(self._streams)
        until = time.monotonic() + PATIENCE
        while missing:
            if time.monotonic() > until:
                raise WrongAnswerError(f"{missing} of {len(self._streams)} streams did not bring {text.decode()}")
            for key, _ in self._selector.select(1.0):
                stream: Stream = key.data
                had = text in stream.seen
                stream.read()
                if stream.seen.count(text) > 1:
                    raise WrongAnswerError(f"a stream brought {text.decode()} twice")
                missing -= not had and text in stream.seen
        for stream in self._streams:
            stream.seen.clear()


@contextmanager
def _listening(port: int, sessions: Sequence[str]) -> Iterator[Listening]:
    """Open a stream for each session, and wait until the server has answered each."""
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        streams = [Stream(stack.enter_context(_opened(port, session))) for session in sessions]
        for stream in streams:
            selector.register(stream.socket, selectors.EVENT_READ, stream)
        listening = Listening(selector, streams)
        listening.wait_for(b" 200 ")
        yield listening


def _opened(port: int, session: str) -> socket.socket:
    headers = mcp.headers(session, mcp.LEGACY, accept="text/event-stream", content_type=None)
    lines = [f"GET {PATH} HTTP/1.1", f"host: 127.0.0.1:{port}", *(f"{name}: {value}" for name, value in headers)]
    opened = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    opened.sendall("\r\n".join([*lines, "", ""]).encode())
    return opened
