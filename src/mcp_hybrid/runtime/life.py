"""A context manager of a program, such as its lifespan: entered and left in one task of the program's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import trio

from mcp_hybrid.runtime.crossing import Crossing

T = TypeVar("T")


class LoopEndedError(Exception):
    """The program's event loop, or its lifespan, has ended or does not answer."""


class Life(Generic[T]):
    """One such context manager, from before it is entered until after it was left."""

    state: T
    """What it gave, once it has begun."""

    def __init__(self, loop: Crossing, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._loop = loop
        self._make = make
        self._leave: asyncio.Event
        self._leaving = False
        self.begun = trio.Event()
        """Set when it was entered, or could not be."""
        self.ended = trio.Event()
        """Set when it was left, or ended by itself."""
        self._error: BaseException | None = None

    async def live(self) -> None:
        """Enter, wait, and leave; on the loop."""
        self._leave = asyncio.Event()
        async with self._make() as state:
            self._loop.post(self._entered, state)
            await self._leave.wait()

    def leave(self) -> None:
        """Have it left, once it was entered; on the host."""
        self._leaving = True
        self._loop.call(self._leave.set)

    def over(self, cancel: Callable[[], None], _result: object, error: BaseException | None) -> None:
        """Take note that it was left, or ended by itself, and then `cancel` what relies on it; on the host."""
        if self.ended.is_set():
            return
        if error is None and not self._leaving:
            error = LoopEndedError("the lifespan ended while the server runs")
        self._error = error
        self.ended.set()
        self.begun.set()
        if not self._leaving:
            cancel()

    def abandon(self) -> None:
        """Wait for its end no longer."""
        self._error = LoopEndedError("the lifespan's clean-up took too long")
        self.ended.set()

    def error(self) -> BaseException | None:
        """Return what it raised, if anything, once."""
        error, self._error = self._error, None
        return error

    def _entered(self, state: T) -> None:
        self.state = state
        self.begun.set()
