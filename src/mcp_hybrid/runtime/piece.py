"""One piece of a program that runs on the program's own event loop, and what it comes to."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import trio

from mcp_hybrid.runtime.crossing import Crossing

Done = Callable[[Any, BaseException | None], None]
"""Takes the outcome of a piece of the program on the host: its result, or what it raised."""


class ProgramExitError(Exception):
    """A program raised what would end a server, such as `SystemExit`, or cancelled itself. The cause is chained."""


class Piece:
    """One piece of the program that runs in a task of its own on the loop. `cancel` may be called on the host."""

    __slots__ = ("_claim", "_context", "_done", "_loop", "_scope", "_task", "_work", "name")

    def __init__(
        self,
        loop: Crossing,
        work: Callable[[], Awaitable[Any]],
        done: Done,
        name: str,
        context: contextvars.Context | None,
    ) -> None:
        self.name = name
        self._loop = loop
        self._work = work
        self._done: Done | None = done
        self._context = context if context is not None else contextvars.copy_context()
        self._claim = [True]  # taken by whoever comes first: the task that begins, or the host that calls it off
        self._scope: anyio.CancelScope | None = None
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
        self._task = self._scope = None
        if done is not None:
            done(result, error)

    def _take(self) -> bool:
        try:
            return self._claim.pop()
        except IndexError:
            return False

    def _cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    async def _run(self) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            # AnyIO's cancellation, as under the SDK's own transports: a thread that the piece waits for is not
            # abandoned by it, and whoever swallows it meets it again at the next await.
            with anyio.CancelScope() as self._scope:
                result = await self._work()
        except Exception as raised:  # noqa: BLE001 - the boundary between a program and the server
            error = raised
        except BaseException as raised:  # noqa: BLE001 - as above; SystemExit would stop the loop
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
