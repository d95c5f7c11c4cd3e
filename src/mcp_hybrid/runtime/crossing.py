"""The ways from a program's event loop to its host, which runs on Trio, and back.

Two queues lead across, one each way, and each is emptied in order by one callback. The first entry of a queue wakes the
other side; further ones, until it has looked, cost an append.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import structlog
import trio

log = structlog.get_logger("mcp_hybrid")

_Queue = deque[tuple[Callable[..., object], tuple[Any, ...]]]


class Crossing:
    """Has functions called on the other side, in order."""

    loop: asyncio.AbstractEventLoop
    thread = 0
    """The loop's thread, as `threading.get_ident` gives it."""

    def __init__(self) -> None:
        self.pieces: set[object] = set()
        """What runs on the loop, or waits to. Changed on the host only."""
        self._token: trio.lowlevel.TrioToken
        self._tasks: trio.Nursery
        self._to_loop: _Queue = deque()
        self._loop_told = False
        self._to_host: _Queue = deque()
        self._host_told = False

    def call(self, act: Callable[..., object], *args: Any) -> None:
        """Have `act` called on the loop, after all that was called before. Must not raise."""
        self._to_loop.append((act, args))
        if not self._loop_told:
            self._loop_told = True
            with suppress(RuntimeError):  # it has ended
                self.loop.call_soon_threadsafe(self._empty_on_loop)

    def post(self, act: Callable[..., object], *args: Any) -> None:
        """Have `act` called on the host, after all that was posted before. Must not raise."""
        self._to_host.append((act, args))
        if not self._host_told:
            self._host_told = True
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._empty_on_host)

    def _empty_on_loop(self) -> None:
        self._loop_told = False  # before anything is taken: a later append schedules this again
        _call_all(self._to_loop)

    def _empty_on_host(self) -> None:
        self._host_told = False  # as above
        _call_all(self._to_host)

    def start_on_host(self, context: contextvars.Context, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a task on the host that ends with the loop; `work` must not raise."""
        context.run(self._tasks.start_soon, work)


def _call_all(queue: _Queue) -> None:
    while queue:
        act, args = queue.popleft()
        try:
            act(*args)
        except Exception:
            # Trio takes no exception here, and asyncio would lose what is queued behind.
            log.exception("crossing between the server and the program failed")
