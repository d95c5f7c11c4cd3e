"""A handler in a task of its own, so that its request can be answered while it runs on.

A function in a thread cannot be stopped, and the task that waits for it cannot be cancelled. If that were the request's
own task, a limit on the request would be none. So the handler has a task that belongs to no connection: its request
waits for it, and leaves it behind when it was interrupted and the handler does not let go. Nothing is unwound under the
function's feet: whatever the handler holds while its thread runs, it holds until that has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from typing import Any, Final

import anyio
import anyio.lowlevel
import structlog
import trio

from mcp_hybrid.clock import now
from mcp_hybrid.containment import on_trio
from mcp_hybrid.exchange.context import ExchangeContext
from mcp_hybrid.exchange.threads import ToolThreads
from mcp_hybrid.runtime.loop import LET_GO
from mcp_hybrid.runtime.piece import Piece
from mcp_hybrid.sessions.live import Interruption

log = structlog.get_logger("mcp_hybrid")

Handler = Callable[[], Awaitable[Mapping[str, Any] | None]]
"""Makes a request's result; for a notification, None."""

_TURNS: Final = 4
"""Turns of the scheduler in which a handler that can be cancelled has mostly ended."""

_on_asyncio: Final[set[asyncio.Task[None]]] = set()
"""What asyncio runs: it keeps no hold of its own tasks."""


Wake = anyio.Event | trio.Event


class HandlerTask:
    """One handler, from its start to its end."""

    __slots__ = (
        "_abandoned",
        "_context",
        "_done",
        "_handler",
        "_loop",
        "_since",
        "_threads",
        "_wake",
        "error",
        "result",
    )

    def __init__(self, handler: Handler, context: ExchangeContext, threads: ToolThreads) -> None:
        self._handler = handler
        self._context = context
        self._threads = threads
        self._wake: Wake = anyio.Event() if threads.loop is None else trio.Event()  # which takes a fifth of the time
        self._since = now()
        self._done = False
        self._abandoned = False
        self.result: Mapping[str, Any] | None = None
        self.error: BaseException | None = None

    async def run(self) -> Mapping[str, Any] | None:
        """Run the handler, and return its result. Interrupted, returns None soon, whatever the handler does.

        Raises:
            BaseException: What the handler raises. Cancelled from outside, the caller waits as for an interrupted one.
        """
        context = self._context
        context.on_interrupt = self._wake.set
        self._spawn()
        try:
            await self._wake.wait()
        except BaseException:
            context.interrupt(Interruption.SERVER_STOPPING)
            with anyio.CancelScope(shield=True):
                await self._leave()
            raise
        finally:
            context.on_interrupt = None
        if not self._done:
            await self._leave()
        error, self.error = self.error, None  # its traceback holds this
        if error is not None:
            try:
                raise error
            finally:
                del error
        return self.result

    async def _leave(self) -> None:
        """Wait until the handler has ended, or need not be waited for."""
        self._wake = anyio.Event()
        for _ in range(_TURNS):
            await anyio.lowlevel.checkpoint()
            if self._done:
                return
        if not self._context.threads:
            with anyio.move_on_after(LET_GO):
                await self._wake.wait()
        if not self._done:
            self._abandoned = True
            self._threads.abandon(self._context)

    def _spawn(self) -> None:
        loop = self._threads.loop
        if loop is not None:
            piece = Piece(loop, self._handler, self._end, self._context.name)
            self._context.piece = piece
            self._context.enter(piece)
            loop.start(piece)
            return
        if on_trio():
            trio.lowlevel.spawn_system_task(self._isolated, context=copy_context())
            return
        task = asyncio.get_running_loop().create_task(self._handle())
        _on_asyncio.add(task)
        task.add_done_callback(_on_asyncio.discard)

    async def _isolated(self) -> None:
        """Run in a nursery, which takes what a handler makes of its task: a scope or nursery that it left open."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._handle)
        except BaseException:
            # A system task that raises ends the whole run.
            log.exception("handler left its task in disorder", tool=self._context.name)

    async def _handle(self) -> None:
        result = None
        try:
            with anyio.CancelScope() as scope:
                self._context.enter(scope)
                result = await self._handler()
        except BaseException as error:  # noqa: BLE001 - the boundary between a program and the server
            self._end(None, error)
        else:
            self._end(result, None)

    def _end(self, result: Mapping[str, Any] | None, error: BaseException | None) -> None:
        """Note the handler's outcome. The result of an abandoned handler is dropped."""
        self._done = True
        if self._abandoned:
            self._threads.ended(self._context, now() - self._since)
        else:
            self.result, self.error = result, error
        self._wake.set()
