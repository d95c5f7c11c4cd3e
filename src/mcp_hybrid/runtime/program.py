"""The seam: whatever runs code of the served program asks `Program` to.

In place, the code runs in the task of its caller, at no cost. On a loop of its own (`loop`) it runs in another thread,
and what it says to its caller crosses back.
"""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import TypeVar

from mcp_hybrid.containment import on_trio
from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.runtime.loop import ProgramLoop
from mcp_hybrid.runtime.names import RuntimeName

T = TypeVar("T")


class Program:
    """The code of one served program, and where it runs."""

    def __init__(self, runtime: RuntimeName, *, is_set: bool = False) -> None:
        """Make a program for a runtime, which is not `auto` any more; `is_set`: it was asked for by name."""
        self.runtime = runtime
        self._is_set = is_set
        self.loop: ProgramLoop | None = None
        """The loop that the program has for itself while it runs; None: it runs in place."""
        self._left_behind = False

    @property
    def left_behind(self) -> bool:
        """Whether threads of the program run on, though the program has ended."""
        return self._left_behind or (self.loop is not None and self.loop.left_behind)

    @asynccontextmanager
    async def running(
        self, around: Callable[[], AbstractContextManager[object]], describe: Callable[[contextvars.Context], str]
    ) -> AsyncIterator[None]:
        """Let the program run for the duration of the block. `around` is entered where it runs.

        Raises:
            ConfigurationError: It is to run on Trio, and its host does not.
        """
        if not on_trio():
            if self.runtime is RuntimeName.TRIO and self._is_set:
                raise ConfigurationError(
                    'runtime = "trio" needs a host on Trio, such as mcp-hybrid serve or hypercorn -k trio'
                )
        elif self.runtime is RuntimeName.ASYNCIO:
            loop = ProgramLoop(around, describe)
            async with loop.running():
                self.loop = loop
                try:
                    yield
                finally:
                    self.loop = None
                    # Set here for what has been abandoned so far, and below for the thread itself.
                    self._left_behind = loop.left_behind
            self._left_behind = loop.left_behind
            return
        with around():
            yield

    async def run(self, work: Callable[[], Awaitable[T]], name: str = "") -> T:
        """Run a piece of the program and return its result.

        Raises:
            Exception: What the piece raises. In place also what is no `Exception`.
        """
        return await work() if self.loop is None else await self.loop.run(work, name)

    def call_soon(self, act: Callable[..., object], *args: object) -> None:
        """Call a function of the program: at once in place, else soon. It must not raise."""
        if self.loop is None:
            act(*args)
        else:
            self.loop.call(act, *args)

    def entered(
        self, make: Callable[[], AbstractAsyncContextManager[T]], patience: float
    ) -> AbstractAsyncContextManager[T]:
        """Return a context manager of the program's, which is entered and left in one task of the program's.

        On a loop of its own it is given up if it is not left within `patience` seconds.
        """
        return make() if self.loop is None else self.loop.entered(make, patience)


IN_PLACE = Program(RuntimeName.TRIO)
"""A program that runs in place."""
