"""How Hypercorn runs an application's task for a request, hardened: the end of a request is always heard.

Hypercorn 0.18 hands the body over in a queue of ten. An application that answers without having read it all leaves the
queue full; then the notice that the request is over waits for room in it, for ever, and so does the connection. Who
asks whether it is over without waiting, as Starlette's `Request.is_disconnected` does, is never told. And who only
sends is not told either, and goes on for ever. A body that goes on while the last of an answer waits for room is handed
over all the same, and nobody reads the connection until it can be.

The queue here has a bound for the body and none for the notice. Handing over takes no turn of the scheduler while there
is room, which is nearly always: Hypercorn's takes two for each request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, HTTPDisconnectEvent, Scope

_OVER: HTTPDisconnectEvent = {"type": "http.disconnect"}

HALF_CLOSED: Final[Any] = {"type": "mcp_hybrid.half_closed"}
"""Handed over when the client has closed its writing half. It may be gone, or may read on.

The application is told that its client is gone, as it often is: one for which that means cancelling must not go on.
What another still answers is written all the same (`nc -N`, `socat`).
"""

Send = Callable[[ASGISendEvent | None], Awaitable[None]]


class _OverError(BrokenPipeError):
    """Says to who sends that nobody is there: an OSError, as ASGI 2.4 has it."""


async def _nobody(_: ASGISendEvent | None) -> None:
    raise _OverError("the request is over: its application has returned")


class HardenedTaskGroup(TaskGroup):
    """The tasks of one connection."""

    def __init__(self) -> None:
        super().__init__()
        self.running = 0
        """Requests that an application still works on, answered or not."""

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Scope, send: Send
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Run the application for a request; returns what hands events over to it."""
        if scope["type"] != "http":
            return await super().spawn_app(app, config, scope, send)
        assert self._nursery is not None
        request = _Request(app, send, config.max_app_queue_size, self)
        run: Any = request.run
        self._nursery.start_soon(
            _handle, run, config, scope, request.receive, send, trio.to_thread.run_sync, trio.from_thread.run
        )
        return request.hand_over


class _Request:
    """One request between Hypercorn and the application."""

    __slots__ = (
        "_answered",
        "_app",
        "_came",
        "_events",
        "_half_closed",
        "_over",
        "_room",
        "_size",
        "_tasks",
        "_to_client",
    )

    def __init__(self, app: AppWrapper, send: Send, size: int, tasks: HardenedTaskGroup) -> None:
        """Queue at most `size` parts of a body. The request is counted among those of `tasks` until `run` ends."""
        self._tasks = tasks
        tasks.running += 1
        self._app = app
        self._to_client = send
        self._size = size
        self._events: deque[ASGIReceiveEvent] = deque()
        self._over = False
        self._half_closed = False
        self._answered = False
        self._came: trio.Event | None = None
        """Set when there is something to receive, where somebody waits for it."""
        self._room: trio.Event | None = None
        """Set when there is room again, where somebody waits for it."""

    async def run(self, scope: Scope, receive: Any, send: Any, *spawners: Any) -> None:  # noqa: ARG002 - Hypercorn's
        try:
            with suppress(_OverError):
                await self._app(scope, receive, self.send, *spawners)
        finally:
            self._tasks.running -= 1
            self._to_client = _nobody  # whose stream holds this: a circle, which would wait for the garbage collector

    async def hand_over(self, event: ASGIReceiveEvent) -> None:
        if event["type"] == "http.disconnect":
            self._over = True
            self._make_room()  # nobody needs to wait for it any more
        elif event is HALF_CLOSED:
            self._half_closed = True
        else:
            while len(self._events) >= self._size and not self._over and not self._answered:
                if self._room is None:
                    self._room = trio.Event()
                await self._room.wait()
            if self._over or self._answered:
                return
            self._events.append(event)
        if self._came is not None:
            self._came.set()
            self._came = None

    async def receive(self) -> ASGIReceiveEvent:
        while not self._events:
            if self._over or self._half_closed:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return _OVER
            if self._came is None:
                self._came = trio.Event()
            await self._came.wait()
        event = self._events.popleft()  # what is there is had even by a task that is cancelled
        self._make_room()
        return event

    async def send(self, event: ASGISendEvent | None) -> None:
        if self._over:
            raise _OverError("the request is over: its client is gone, or it was answered")
        if event is not None and event["type"] == "http.response.body" and not event.get("more_body", False):
            self._read_no_more()
        await self._to_client(event)

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    def _read_no_more(self) -> None:
        """Throw away what comes of the body now: the last words may take long, and who reads the connection waits."""
        self._answered = True
        self._events.clear()
        self._make_room()
