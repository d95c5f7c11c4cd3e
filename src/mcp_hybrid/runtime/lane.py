"""What one sender of a program says to the host, in order and with backpressure."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import structlog
import trio

from mcp_hybrid.runtime.crossing import Crossing

log = structlog.get_logger("mcp_hybrid")

T = TypeVar("T")

IN_FLIGHT: Final = 64
"""Messages that one sender may have on their way to the host before it waits until the host has dealt with them."""

UNDO_TIME: Final = 2.0
"""Seconds that a cancelled asker waits until the host has undone what is to be undone."""


class Lane:
    """What one sender of the program says to the host, in the order in which it was said.

    What `send` says takes effect as soon as it arrives. What `ask` asks has a task on the host; what was said after it
    waits until the task has let the lane go on.
    """

    __slots__ = ("_host_busy", "_loop", "_room", "_settle", "_unsettled", "_waiting")

    def __init__(self, loop: Crossing, settle: Callable[[], Awaitable[None]] | None = None) -> None:
        """Make a lane. `settle` waits, on the host, for as long as a sender there would have to."""
        self._loop = loop
        self._settle = settle
        self._unsettled = 0
        self._room: asyncio.Event | None = None
        self._host_busy = False
        self._waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] | None = None

    # on the loop

    async def send(self, act: Callable[..., object], *args: Any) -> None:
        """Have `act` called on the host. Waits while `IN_FLIGHT` such messages have not been dealt with there."""
        while self._unsettled >= IN_FLIGHT:
            await self._make_room()
        self._unsettled += 1
        self._loop.post(self._take, act, args)

    async def ask(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` on the host and return its result. What is said later waits until it has ended."""
        answer: T = await self._ask(_Question(self, self._loop, work))
        return answer

    async def ask_ahead(self, work: Callable[[Callable[[], None]], Awaitable[T]]) -> T:
        """Run `work` on the host, which is given a function that lets what is said later go on before it has ended."""
        question = _Question(self, self._loop)
        question.work = partial(work, question.go_on)
        answer: T = await self._ask(question)
        return answer

    async def _ask(self, question: _Question) -> Any:
        self._loop.post(self._take, question.start, ())
        return await question.answer()

    async def _make_room(self) -> None:
        if self._room is not None:
            await self._room.wait()
            return
        self._room = room = asyncio.Event()
        try:
            if self._settle is not None:
                await self.ask(self._settle)
        finally:
            self._unsettled, self._room = 0, None
            room.set()

    # on the host

    def _take(self, act: Callable[..., object], args: tuple[Any, ...]) -> None:
        if self._host_busy:
            self._waiting = self._waiting if self._waiting is not None else deque()
            self._waiting.append((act, args))
        else:
            act(*args)

    def occupy(self) -> None:
        """Keep what is said from now on waiting."""
        self._host_busy = True

    def go_on(self) -> None:
        """Do what was said meanwhile, up to the next that takes its time."""
        self._host_busy = False
        while self._waiting and not self._host_busy:
            act, args = self._waiting.popleft()
            try:
                act(*args)
            except Exception:
                log.exception("a message of the program was lost")


class _Question:
    """One piece of the host's work that a task of the program waits for."""

    __slots__ = ("_context", "_future", "_is_cancelled", "_lane", "_loop", "_over", "_scope", "work")

    def __init__(self, lane: Lane, loop: Crossing, work: Callable[[], Awaitable[Any]] | None = None) -> None:
        self._lane: Lane | None = lane
        self._loop = loop
        self.work = work
        self._context = contextvars.copy_context()
        self._future: asyncio.Future[Any] = loop.loop.create_future()
        self._scope: trio.CancelScope | None = None
        self._is_cancelled = False
        self._over = False

    async def answer(self) -> Any:
        try:
            return await self._future
        except asyncio.CancelledError:
            if not self._over:
                self._future = self._loop.loop.create_future()  # the other one was cancelled with its waiter
                self._loop.post(self._cancel)
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([self._future], timeout=UNDO_TIME)
            self._forget()
            raise

    def start(self) -> None:
        if self._is_cancelled:  # while it waited for its turn
            self._loop.call(self._answer, None, None)
            return
        assert self._lane is not None
        self._lane.occupy()
        self._scope = trio.CancelScope()
        self._loop.start_on_host(self._context, self._run)

    def go_on(self) -> None:
        """Let the lane go on."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.go_on()

    def _cancel(self) -> None:
        self._is_cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    async def _run(self) -> None:
        assert self._scope is not None
        assert self.work is not None
        result: Any = None
        error: BaseException | None = None
        try:
            with self._scope:
                result = await self.work()
        except Exception as raised:  # noqa: BLE001 - it is the program's to deal with
            error = raised
        finally:
            self.go_on()
            self.work = None  # it may hold this
            self._loop.call(self._answer, result, error)
            del error

    def _answer(self, result: Any, error: BaseException | None) -> None:
        self._over = True
        if self._future.done():
            return
        if error is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(result)

    def _forget(self) -> None:
        if self._future.done() and not self._future.cancelled():
            self._future.exception()  # retrieved, or asyncio would log it
