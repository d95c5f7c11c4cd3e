"""HTTP/1.1 over a socket of one's own, for clients that behave as badly as a test wants.

What is sent when, and whether anything is read, is the test's to say; h11 keeps the protocol.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import h11
import trio
from pydantic_core import from_json

from harness.mcp import body as encoded
from harness.mcp import headers
from harness.sse import Event, EventReader

Headers = Sequence[tuple[str, str]]

_CHUNK = 65536


@dataclass(frozen=True)
class Head:
    """The head of an answer."""

    status: int
    headers: dict[str, str]


class RawClient:
    """One connection."""

    def __init__(self, stream: trio.SocketStream, host: str) -> None:
        self.stream = stream
        self._host = host
        self._http = h11.Connection(h11.CLIENT)
        self._reader = EventReader()
        self._events: list[Event] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, port: int, *, receive_buffer: int | None = None) -> AsyncIterator[Self]:
        """Connect; a small `receive_buffer` (bytes) makes the server feel sooner that nothing is read."""
        sock = trio.socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await sock.connect(("127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        async with trio.SocketStream(sock) as stream:
            yield cls(stream, f"127.0.0.1:{port}")

    # Sending

    def head(self, method: str, fields: Headers, length: int | None = 0) -> bytes:
        """Encode the head of a request; a body of unknown `length` is sent in chunks."""
        size = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
        target = h11.Request(method=method, target="/mcp", headers=[("host", self._host), size, *fields])
        return self._http.send(target) or b""

    def piece(self, data: bytes) -> bytes:
        """Encode a piece of the body."""
        return self._http.send(h11.Data(data=data)) or b""

    def end(self) -> bytes:
        """Encode the end of the request."""
        return self._http.send(h11.EndOfMessage()) or b""

    async def write(self, *data: bytes) -> None:
        await self.stream.send_all(b"".join(data))

    async def post(self, message: Any, session: str | None = None, version: str | None = None) -> None:
        """Send a whole message as an ordinary client does."""
        await self.send("POST", headers(session, version), encoded(message))

    async def send(self, method: str, fields: Headers, body: bytes = b"") -> None:
        """Send a whole request."""
        await self.write(self.head(method, fields, len(body)), self.piece(body), self.end())

    async def trickle(self, data: Iterable[bytes]) -> None:
        """Send pieces each in a packet of its own; the server is given time to read each."""
        for piece in data:
            await self.stream.send_all(piece)
            await trio.sleep(0.001)

    def reset(self) -> None:
        """Make the connection end with a reset when it is closed, as when a process dies or a proxy gives up."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    # Reading

    async def answer_head(self) -> Head:
        """Wait for the status and the headers."""
        while not isinstance(event := await self._next(), h11.Response):
            assert isinstance(event, h11.InformationalResponse), event
        return Head(event.status_code, {name.decode(): value.decode() for name, value in event.headers})

    async def answer_piece(self) -> bytes | None:
        """Wait for more of the body; None at its end."""
        event = await self._next()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        assert isinstance(event, h11.EndOfMessage), event
        return None

    async def answer_body(self) -> bytes:
        """Wait for the rest of the body."""
        found = b""
        while (piece := await self.answer_piece()) is not None:
            found += piece
        return found

    async def answer_json(self) -> Any:
        """Wait for the rest of the body, which is JSON."""
        return from_json(await self.answer_body())

    async def event(self) -> Event:
        """Wait for the next event of an event stream that carries data."""
        while not (event := await self.any_event()).data:
            pass
        return event

    async def any_event(self) -> Event:
        """Wait for the next event of an event stream, which may be a comment or carry nothing but an id."""
        while not self._events:
            piece = await self.answer_piece()
            assert piece is not None, "the stream ended"
            self._events += self._reader.feed(piece)
        return self._events.pop(0)

    async def event_or_end(self) -> Event | None:
        """Wait for the next event of an event stream, comments passed over; None at its end."""
        while True:
            while self._events:
                event = self._events.pop(0)
                if event.comment is None:
                    return event
            piece = await self.answer_piece()
            if piece is None:
                return None
            self._events += self._reader.feed(piece)

    async def messages(self) -> AsyncIterator[Any]:
        """Give the messages of an event stream up to and with the response that ends it."""
        while True:
            message = (await self.event()).json()
            yield message
            if "method" not in message:
                return

    async def hung_up(self) -> bool:
        """Wait for the server to say or end something, and say whether it ended the connection."""
        return isinstance(await self._next(), h11.ConnectionClosed)

    def next_request(self) -> None:
        """Go on with another request on the same connection, once the answer has been read."""
        self._http.start_next_cycle()

    async def _next(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self.stream.receive_some(_CHUNK))
        return event
