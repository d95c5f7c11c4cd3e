"""How Hypercorn runs an application's task for a request, hardened: the end of a request is always heard.

Hypercorn 0.18 hands the body over in a queue of ten. An application that answers without having read it all leaves the
queue full; then the notice that the request is over waits for room in it, for ever, and so does the connection. Who
asks whether it is over without waiting, as Starlette's `Request.is_disconnected` does, is never told. And who only
sends is not told either, and goes on for ever. A body that goes on while the last of an answer waits for room is handed
over all the same, and nobody reads the connection until it can be.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio.task_group import TaskGroup
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, HTTPDisconnectEvent, Scope

_OVER: HTTPDisconnectEvent = {"type": "http.disconnect"}

Send = Callable[[ASGISendEvent | None], Awaitable[None]]


class _OverError(BrokenPipeError):
    """Says to who sends that nobody is there: an OSError, as ASGI 2.4 has it."""


class HardenedTaskGroup(TaskGroup):
    """The tasks of one connection."""

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Scope, send: Send
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Run the application for a request; returns what hands events over to it."""
        if scope["type"] != "http":
            return await super().spawn_app(app, config, scope, send)
        request = _Request(app)
        bound: Any = await super().spawn_app(cast("AppWrapper", request.run), config, scope, send)
        request.queue = bound.__self__
        return request.hand_over


class _Request:
    """One request between Hypercorn and the application. That it is over is said by the end of the queue."""

    __slots__ = ("_answered", "_app", "_events", "_over", "_send", "queue")

    queue: trio.MemorySendChannel[ASGIReceiveEvent]
    _events: trio.MemoryReceiveChannel[ASGIReceiveEvent]
    _send: Send

    def __init__(self, app: AppWrapper) -> None:
        self._app = app
        self._over = False
        self._answered = False

    async def run(self, scope: Scope, receive: Any, send: Send, *spawners: Any) -> None:
        self._events, self._send = receive.__self__, send
        with suppress(_OverError):
            await self._app(scope, self.receive, self.send, *spawners)

    async def hand_over(self, event: ASGIReceiveEvent) -> None:
        if event["type"] == "http.disconnect":
            self._over = True
            self.queue.close()  # which also lets go whoever waits for room in it
            return
        if not self._answered:
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                await self.queue.send(event)

    async def receive(self) -> ASGIReceiveEvent:
        try:
            return self._events.receive_nowait()  # what is there is had even by a task that is cancelled
        except trio.WouldBlock:
            pass
        except trio.EndOfChannel:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return _OVER
        try:
            return await self._events.receive()
        except trio.EndOfChannel:
            return _OVER

    async def send(self, event: ASGISendEvent | None) -> None:
        if self._over:
            raise _OverError("the request is over: its client is gone, or it was answered")
        if event is not None and event["type"] == "http.response.body" and not event.get("more_body", False):
            self._read_no_more()
        await self._send(event)

    def _read_no_more(self) -> None:
        """Throw away what comes of the body now: the last words may take long, and who reads the connection waits."""
        self._answered = True
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                self._events.receive_nowait()
