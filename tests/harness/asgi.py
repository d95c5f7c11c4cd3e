"""An in-process ASGI driver for answers that stream: the test decides what the client sends, reads and when it goes.

It behaves as Hypercorn on Trio does where that matters: after a disconnect `receive` says so and `send` silently
succeeds; a client that does not read makes `send` wait; on the way out open requests are told of a disconnect, then
cancelled, and the lifespan ends last. An exception out of the app fails the test.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

import anyio
import anyio.lowlevel
from pydantic_core import from_json

from harness.sse import Event, EventReader

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[str, str]]
Body = bytes | Iterable[bytes]

PATIENCE = 600.0
"""Seconds to wait for an app before the test fails; under an autojump clock they take no time."""


@dataclass(frozen=True)
class Answer:
    """A whole answer; `headers` keeps order and repetitions, names in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = field(repr=False)

    def header(self, name: str) -> str | None:
        """Give the value of a header that must not come twice, or `None`."""
        return one_header(self.headers, name)

    def json(self) -> Any:
        return from_json(self.body)

    def events(self) -> list[Event]:
        """Read the body as an event stream."""
        reader = EventReader()
        return reader.feed(self.body)


class Exchange:
    """One request and its answer, in the hands of the test."""

    def __init__(self, what: str, patience: float) -> None:
        self.what = what
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.complete = False
        """The app sent the end of the body."""
        self.disconnected = False
        """The client has gone."""
        self._patience = patience
        self._pieces: list[Message] = []
        self._started = anyio.Event()
        self._finished = anyio.Event()
        self._changed = anyio.Event()
        self._room = math.inf
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self._reader = EventReader()
        self._events: list[Event] = []

    # The client's side

    async def feed(self, body: bytes, *, more: bool) -> None:
        """Send a piece of the request body; `more=False` ends it."""
        self._pieces.append({"type": "http.request", "body": body, "more_body": more})
        self._wake()
        await anyio.lowlevel.checkpoint()

    async def started(self) -> tuple[int, list[tuple[str, str]]]:
        """Wait for the status and the headers."""
        with anyio.fail_after(self._patience):
            await self._started.wait()
        return self.status, self.headers

    def header(self, name: str) -> str | None:
        """Give the value of a header that must not come twice, or `None`; after `started()`."""
        return one_header(self.headers, name)

    async def chunk(self) -> bytes:
        """Wait for the next piece of the body as the app sent it; `EndOfStream` after the last."""
        await anyio.lowlevel.checkpoint()
        with anyio.fail_after(self._patience):
            while not self._chunks:
                if self._ended:
                    raise anyio.EndOfStream
                await self._changed.wait()
        return self._chunks.popleft()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterate()

    async def event(self) -> Event:
        """Wait for the next event or comment of an event stream; `EndOfStream` after the last."""
        while not self._events:
            self._events += self._reader.feed(await self.chunk())
        return self._events.pop(0)

    async def message(self) -> Any:
        """Wait for the next event that carries JSON, passing over comments and empty (priming) events."""
        while not (event := await self.event()).data:
            pass
        return event.json()

    async def messages(self) -> list[Any]:
        """Collect the JSON messages up to the end of the stream."""
        found = []
        try:
            while True:
                found.append(await self.message())
        except anyio.EndOfStream:
            return found

    async def answer(self) -> Answer:
        """Wait for the whole answer; pieces that were read before are not in its body."""
        await self.started()
        return Answer(self.status, self.headers, b"".join([chunk async for chunk in self]))

    def pause(self, room: float = 0) -> None:
        """Stop reading: the app's `send` waits once `room` more bytes of body are buffered on the way."""
        self._room = room

    def resume(self) -> None:
        """Read again."""
        self._room = math.inf
        self._wake()

    async def disconnect(self) -> None:
        """Go away: the app's next `receive` tells it, and what it sends from now on vanishes."""
        self.disconnected = self._ended = True
        self._wake()
        await anyio.lowlevel.checkpoint()

    async def finished(self) -> None:
        """Wait until the app has returned, which may be long after the client went."""
        with anyio.fail_after(self._patience):
            await self._finished.wait()

    @property
    def running(self) -> bool:
        """Whether the app is still at work on this request."""
        return not self._finished.is_set()

    # The server's side

    async def run(self, app: App, scope: Message) -> None:
        """Run the app on this request; one that returns without finishing its answer fails the test."""
        try:
            await app(scope, self._receive, self._send)
            if not (self.complete or self.disconnected):
                raise AssertionError(f"{self.what}: the app returned without completing its answer")
        finally:
            self._ended = True
            self._finished.set()
            self._wake()

    async def _receive(self) -> Message:
        await anyio.lowlevel.checkpoint()
        while not self._pieces:
            if self.disconnected or self.complete:
                return {"type": "http.disconnect"}
            await self._changed.wait()
        return self._pieces.pop(0)

    async def _send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self._start(message)
        elif message["type"] == "http.response.body":
            await self._body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise AssertionError(f"{self.what}: the app sent {message['type']}")

    def _start(self, message: Message) -> None:
        assert not self._started.is_set(), f"{self.what}: the app started its answer twice"
        self.status = message["status"]
        self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
        assert all(name == name.lower() for name, _ in self.headers), f"{self.what}: header names must be lower case"
        self._started.set()

    async def _body(self, body: bytes, *, more: bool) -> None:
        assert self._started.is_set(), f"{self.what}: the app sent a body before its status"
        assert not self.complete, f"{self.what}: the app sent a body after its end"
        while len(body) > self._room and not self.disconnected:
            await self._changed.wait()
        if self.disconnected:
            return
        self._room -= len(body)
        if body:
            self._chunks.append(body)
        if not more:
            self.complete = self._ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _iterate(self) -> AsyncIterator[bytes]:
        while True:
            try:
                yield await self.chunk()
            except anyio.EndOfStream:
                return


class AsgiClient:
    """Serves an ASGI app in-process: `async with AsgiClient(app) as client`."""

    def __init__(
        self, app: App, *, lifespan: bool = True, host: str = "127.0.0.1:8000", patience: float = PATIENCE
    ) -> None:
        self.host = host
        self.left_running: list[str] = []
        """Requests that were still at work when the server stopped, and were cancelled."""
        self._app = app
        self._patience = patience
        self._lifespan = Lifespan(app, patience) if lifespan else None
        self._exchanges: set[Exchange] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._lifespan is not None:
                await stack.enter_async_context(self._lifespan)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.push_async_exit(self._stop)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, trace)

    async def request(self, method: str, path: str, headers: Headers = (), body: Body = b"") -> Answer:
        """Send a request, its body in one piece or several, and wait for the whole answer."""
        async with self.stream(method, path, headers, body) as exchange:
            return await exchange.answer()

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, headers: Headers = (), body: Body | None = b""
    ) -> AsyncIterator[Exchange]:
        """Send a request and hand over the exchange; the client disconnects on leaving the block.

        With `body=None` the test feeds the body itself. The app may run on after the block.
        """
        pieces = [] if body is None else [body] if isinstance(body, bytes) else list(body) or [b""]
        size = sum(map(len, pieces))
        length = [("content-length", str(size))] if size else []
        exchange = Exchange(f"{method} {path}", self._patience)
        self._exchanges.add(exchange)
        self._tasks.start_soon(self._run, exchange, self._scope(method, path, [*headers], length))
        try:
            for number, piece in enumerate(pieces, start=1):
                await exchange.feed(piece, more=number < len(pieces))
            yield exchange
        finally:
            with anyio.CancelScope(shield=True):
                await exchange.disconnect()

    async def _run(self, exchange: Exchange, scope: Message) -> None:
        try:
            await exchange.run(self._app, scope)
        finally:
            self._exchanges.discard(exchange)

    async def _stop(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            if error is None:
                await self._hang_up()
        finally:
            self._tasks.cancel_scope.cancel()

    async def _hang_up(self) -> None:
        """Disconnect every client, and give the app a moment to notice."""
        for exchange in list(self._exchanges):
            await exchange.disconnect()
        with anyio.move_on_after(0.1):
            for exchange in list(self._exchanges):
                await exchange.finished()
        self.left_running = sorted(exchange.what for exchange in self._exchanges)

    def _scope(self, method: str, path: str, headers: list[tuple[str, str]], length: list[tuple[str, str]]) -> Message:
        raw_path, _, query = path.partition("?")
        given = {name.lower() for name, _ in headers}
        every = [one for one in [("host", self.host), *length] if one[0] not in given] + headers
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(raw_path),
            "raw_path": raw_path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": "",
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in every],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "state": dict(self._lifespan.state) if self._lifespan is not None else {},
            "extensions": {},
        }


class Lifespan:
    """Runs the app's lifespan around a block; a failed start or stop fails the test with the app's own message."""

    def __init__(self, app: App, patience: float) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._patience = patience
        self._events_in, self._events = anyio.create_memory_object_stream[Message](2)
        self._replies_in, self._replies = anyio.create_memory_object_stream[Message](2)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for end in (self._events_in, self._events, self._replies_in, self._replies):
                stack.enter_context(end)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(self._run)
            await self._step("startup")
            stack.push_async_exit(self._stop)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, trace)

    async def _stop(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:  # otherwise the task group cancels the app
            await self._step("shutdown")

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        with self._replies_in:  # an app that ends early ends the wait for its reply
            await self._app(scope, self._events.receive, self._replies_in.send)

    async def _step(self, name: str) -> None:
        await self._events_in.send({"type": f"lifespan.{name}"})
        with anyio.fail_after(self._patience):
            reply = await self._replies.receive()
        if reply["type"] != f"lifespan.{name}.complete":
            raise AssertionError(f"lifespan {name}: {reply.get('message') or reply['type']}")


def one_header(headers: Iterable[tuple[str, str]], name: str) -> str | None:
    """Give the value of the header `name`; one that comes twice fails the test."""
    values = [value for known, value in headers if known == name.lower()]
    assert len(values) <= 1, f"{name} came {len(values)} times"
    return values[0] if values else None


def at_address(app: App, address: str) -> App:
    """Have the app's connections come from another address."""

    async def served(scope: Message, receive: Receive, send: Send) -> None:
        await app({**scope, "client": (address, 1)}, receive, send)

    return served
