"""The threads in which a program's blocking functions run: a bounded number, and none that the server needs itself.

The SDK and FastMCP run a plain `def` tool by `anyio.to_thread.run_sync`, with the event loop's default limiter, which
the host's own endpoints and the name resolution of the server share. A tool that hangs would take all of them. The
default limiter is therefore wrapped while an application runs: for a caller that is the handler of a request it takes a
thread of that application's `ToolThreads`, for everybody else it is what it was.

A thread cannot be stopped. What is known here lets the request go on without it: who waits for a thread, who holds one,
and which threads are held for requests that have been answered (abandoned ones).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import anyio
import anyio.to_thread
import structlog
import trio

from mcp_hybrid.containment import on_trio
from mcp_hybrid.counts import Count, Counts
from mcp_hybrid.exchange.context import ExchangeContext, current
from mcp_hybrid.exchange.shares import Shares
from mcp_hybrid.runtime.loop import ProgramLoop
from mcp_hybrid.security.limits import Caller

log = structlog.get_logger("mcp_hybrid")

Tell = Callable[..., None]
"""Has a function called with arguments where contexts and counts are written, in the order of these calls."""

_REMEMBERED: Final = 4096
"""Handlers of which is remembered whether they use threads. What is beyond that counts as unknown."""


class ToolThreads:
    """The threads of one application's tools, and which of its handlers use any."""

    def __init__(self, total: int, counts: Counts, loop: ProgramLoop | None = None) -> None:
        """Let at most `total` of them be in use at a time, shared among callers (`exchange.shares`).

        Where the program has a `loop` of its own, threads are taken and given back there, and what is noted of that is
        noted on the host: a context and the counts have one writer, and need no lock.
        """
        self.loop = loop
        self._counts = counts
        self._tell: Tell = loop.post if loop is not None else _at_once
        self._shares = Shares(total)
        self._holders: dict[object, tuple[ExchangeContext, Caller]] = {}
        self._uses: dict[str, bool] = {}
        self.abandoned = 0
        """Requests that were answered and whose handlers run on."""

    async def acquire(self, borrower: object, context: ExchangeContext) -> None:
        """Wait for a thread, on the program's event loop. Cancelled, none is held.

        Raises:
            RuntimeError: The borrower holds one already, as AnyIO's own limiter does.
        """
        if borrower in self._holders:
            raise RuntimeError("this borrower is already holding one of this CapacityLimiter's tokens")
        caller = context.caller
        self._tell(_note_waiting, context, 1)
        try:
            await self._shares.acquire(caller)
        finally:
            self._tell(_note_waiting, context, -1)
        self._holders[borrower] = context, caller
        if context.piece is not None:
            context.piece.hold()
        self._tell(self._note_held, context, 1)

    def release(self, borrower: object) -> None:
        """Give a thread back, on the program's event loop."""
        context, caller = self._holders.pop(borrower)
        self._shares.release(caller)
        if context.piece is not None:
            context.piece.release()
        self._tell(self._note_held, context, -1)

    def _note_held(self, context: ExchangeContext, amount: int) -> None:
        context.threads += amount
        context.used_threads = True
        if context.abandoned:
            self._counts.add(Count.ABANDONED_THREADS_NOW, amount)

    def abandon(self, context: ExchangeContext) -> None:
        """Note that a request is answered while its handler runs on. Nothing that it comes to is used."""
        context.abandoned = True
        self.abandoned += 1
        self._counts.add(Count.CALLS_ABANDONED)
        self._counts.add(Count.ABANDONED_THREADS_NOW, context.threads)
        log.warning(
            "call abandoned: its function does not stop, and runs on", tool=context.name, threads=context.threads
        )

    def ended(self, context: ExchangeContext, seconds: float) -> None:
        """Note that the handler of an abandoned request has ended after so long."""
        self.abandoned -= 1
        log.info("abandoned call ended", tool=context.name, seconds=round(seconds, 1))

    def uses_none(self, handler: str) -> bool:
        """Whether a handler has answered before without a thread, and has never used one."""
        return self._uses.get(handler) is False

    def learn(self, handler: str, *, used: bool, answered: bool) -> None:
        """Remember whether a handler used threads. One that ever did may do so again."""
        if handler not in self._uses and len(self._uses) >= _REMEMBERED:
            return
        if used:
            self._uses[handler] = True
        elif answered:
            # Arguments that are refused never reach the function: a failure says nothing of it.
            self._uses.setdefault(handler, False)


def _at_once(act: Callable[..., object], *args: object) -> None:
    act(*args)


def _note_waiting(context: ExchangeContext, amount: int) -> None:
    context.waiting_for_thread += amount


class _DividedLimiter:
    """An event loop's default limiter while applications run: theirs for their handlers, else the original."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.users = 0
        self._pools: dict[object, ToolThreads] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    @property
    def total_tokens(self) -> float:
        total: float = self.original.total_tokens
        return total

    @total_tokens.setter
    def total_tokens(self, value: float) -> None:
        self.original.total_tokens = value

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        context = current.get()
        pool = context.pool if context is not None else None
        if context is None or pool is None:
            await self.original.acquire_on_behalf_of(borrower)
            return
        await pool.acquire(borrower, context)
        self._pools[borrower] = pool  # no checkpoint since it was acquired

    def release_on_behalf_of(self, borrower: object) -> None:
        # The event loop calls this outside of the request's context.
        pool = self._pools.pop(borrower, None)
        if pool is None:
            self.original.release_on_behalf_of(borrower)
        else:
            pool.release(borrower)

    async def __aenter__(self) -> None:
        await self.acquire_on_behalf_of(_current_task())

    async def __aexit__(self, *_: object) -> None:
        self.release_on_behalf_of(_current_task())


@contextmanager
def divided_limiter() -> Iterator[None]:
    """Have the default limiter of this event loop keep the threads of tools apart, until the last application ends."""
    variable = _default_limiter()
    limiter = variable.get()
    if not isinstance(limiter, _DividedLimiter):
        limiter = _DividedLimiter(limiter)
        variable.set(limiter)
    limiter.users += 1
    try:
        yield
    finally:
        limiter.users -= 1
        if not limiter.users:
            variable.set(limiter.original)


def _default_limiter() -> Any:
    """Return the variable in which the event loop keeps its default limiter (pinned by a contract test)."""
    if on_trio():
        trio.to_thread.current_default_thread_limiter()  # makes it
        return trio._threads._limiter_local  # noqa: SLF001 - there is no public way
    anyio.to_thread.current_default_thread_limiter()
    from anyio._backends import _asyncio  # noqa: PLC0415 - imported by AnyIO already, for this loop only

    return _asyncio._default_thread_limiter  # noqa: SLF001 - as above


def _current_task() -> object:
    return trio.lowlevel.current_task() if on_trio() else asyncio.current_task()
