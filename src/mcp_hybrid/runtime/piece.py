"""One piece of a program that runs on the program's own event loop, and what it comes to."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from mcp_hybrid.runtime.crossing import Crossing

Done = Callable[[Any, BaseException | None], None]
"""Takes the outcome of a piece of the program on the host: its result, or what it raised."""


class ProgramExitError(RuntimeError):
    """A program raised what would end a server, such as `SystemExit`, or cancelled itself. The cause is chained."""


class Piece:
    """One piece of the program that runs in a task of its own on the loop. `cancel` may be called on the host.

    It is cancelled as asyncio cancels: once, so that what it awaits to clean up is not cancelled as well. But not while
    it is held, because a thread runs for it: what the piece holds around the thread, it goes on holding.
    """

    __slots__ = (
        "_claim",
        "_context",
        "_done",
        "_holds",
        "_is_cancelled",
        "_is_wanted",
        "_loop",
        "_task",
        "_work",
        "name",
    )

    def __init__(
        self,
        loop: Crossing,
        work: Callable[[], Awaitable[Any]],
        done: Done,
        name: str,
        context: contextvars.Context | None = None,
    ) -> None:
        self.name = name
        self._loop = loop
        self._work = work
        self._done: Done | None = done
        self._context = context if context is not None else contextvars.copy_context()
        self._claim = [True]  # taken by whoever comes first: the task that begins, or the host that calls it off
        self._holds = 0
        self._is_wanted = True
        self._is_cancelled = False
        self._task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Cancel the piece. One that has not begun, because the loop is blocked, never does."""
        if self._take():
            self.finish(None, None)
        else:
            self._loop.call(self._cancel)

    def begin(self) -> None:
        """Start the task; on the loop."""
        if self._take():
            task = self._loop.loop.create_task(self._run(), name=self.name or None, context=self._context)
            self._task = task  # asyncio keeps no hold of a task that waits

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Hand over the outcome; on the host."""
        self._loop.pieces.discard(self)
        done, self._done = self._done, None
        self._task = None
        if done is not None:
            done(result, error)

    def _take(self) -> bool:
        try:
            return self._claim.pop()
        except IndexError:
            return False

    def hold(self) -> None:
        """Keep the piece from being cancelled until `release`; on the loop."""
        self._holds += 1

    def release(self) -> None:
        """Let it be cancelled again, which may be now; on the loop."""
        self._holds -= 1
        if not self._is_wanted:
            self._cancel()

    def _cancel(self) -> None:
        self._is_wanted = False
        if self._task is not None and not self._holds and not self._is_cancelled:
            self._is_cancelled = True
            self._task.cancel()

    async def _run(self) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = await self._work()
        except Exception as raised:  # noqa: BLE001 - the boundary between a program and the server
            error = raised
        except BaseException as raised:  # noqa: BLE001 - as above; SystemExit would stop the loop
            if not (self._is_cancelled and isinstance(raised, asyncio.CancelledError)):
                error = ProgramExitError(f"the program raised {type(raised).__name__}")
                error.__cause__ = raised
        self._loop.post(self.finish, result, error)
        del error  # its traceback holds this frame


class Waiting:
    """Waits on the host for the outcome of a piece."""

    __slots__ = ("_error", "_result", "event")

    def __init__(self) -> None:
        self.event = trio.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self, result: Any, error: BaseException | None) -> None:
        """Take the outcome."""
        self._result, self._error = result, error
        self.event.set()

    def outcome(self) -> Any:
        """Return the result, or raise what was raised."""
        error, self._error = self._error, None  # its traceback holds this
        if error is not None:
            try:
                raise error
            finally:
                del error
        return self._result
