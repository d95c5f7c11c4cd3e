"""An asyncio event loop in a thread of its own, for a program whose host runs on Trio.

There is no pool of threads, and no task on the asyncio side but those of the pieces of the program themselves.

    host (Trio)                                          program (asyncio)
    begin(work, done) ───── call_soon_threadsafe ─────→  a task of its own for `work`
    done(result, error) ←── TrioToken.run_sync_soon ───  its outcome, with its traceback
    Lane.send, Lane.ask ←── the same queue ────────────  what it says to the host meanwhile

The thread is a daemon: a program that never yields cannot keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any, Final, TypeVar

import structlog
import trio

from mcp_hybrid.runtime.blocked import BlockedWatch
from mcp_hybrid.runtime.crossing import Crossing
from mcp_hybrid.runtime.lane import Lane
from mcp_hybrid.runtime.life import Life, LoopEndedError
from mcp_hybrid.runtime.piece import Done, Piece, Waiting

log = structlog.get_logger("mcp_hybrid")

T = TypeVar("T")

LET_GO: Final = 1.0
"""Seconds that a cancelled piece of the program has before its caller goes on without it."""

STOP_TIME: Final = 3.0
"""Seconds for the tasks that are left on the loop when all else has ended; then they are left behind."""

SWITCH: Final = 0.001
"""Seconds after which a program that computes lets the server have the interpreter; Python's own number is 0.005. Each
system call of the server's may have to wait for it, and an answer takes several."""

_LOOK: Final = 0.02
"""Seconds between two looks at threads that are to end."""


class ProgramLoop(Crossing):
    """The loop, its thread, and the ways there and back. Belongs to one running application."""

    def __init__(
        self, around: Callable[[], AbstractContextManager[object]], describe: Callable[[contextvars.Context], str]
    ) -> None:
        """Make a loop that does not run yet.

        `around` is entered on the loop for as long as it runs. `describe` names what a context belongs to, for the log.
        """
        super().__init__()
        self.left_behind = False
        """Whether the thread, or a thread of the program's, outlives the loop's end."""
        self._around = around
        self._ended = trio.Event()
        self._is_over = False
        self._stop: asyncio.Event
        self._watch = BlockedWatch(describe)

    # ---- from its start to its end

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the loop for the duration of the block."""
        self._token = trio.lowlevel.current_trio_token()
        started = trio.Event()
        threading.Thread(target=self._main, args=(started,), name="mcp-hybrid program", daemon=True).start()
        await started.wait()
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, SWITCH))
        error: Exception | None = None
        async with trio.open_nursery() as self._tasks:
            self._tasks.start_soon(self._watch.run, self)
            try:
                yield
            except Exception as raised:  # noqa: BLE001 - raised below: a nursery would wrap it
                error = raised
            finally:
                with trio.CancelScope(shield=True):
                    await self._end()
                sys.setswitchinterval(before)
                self._tasks.cancel_scope.cancel()
        _raise(error)

    async def _end(self) -> None:
        self.call(self._set_stop)
        with trio.move_on_after(STOP_TIME):
            await self._ended.wait()
        self._is_over = True
        if not self._ended.is_set():
            self.left_behind = True
            log.warning("the program's event loop does not end, and is left behind", at=self._watch.doing(self))

    def _set_stop(self) -> None:
        self._stop.set()

    def _main(self, started: trio.Event) -> None:
        """Be the thread."""
        self.thread = threading.get_ident()
        self.loop = _new_loop()
        asyncio.set_event_loop(self.loop)
        try:
            self._run(self._live(started))
            self._wind_up()
        except BaseException:
            log.exception("the program's event loop failed")
        finally:
            self._tell(self._ended.set)

    async def _live(self, started: trio.Event) -> None:
        self._stop = asyncio.Event()
        with self._around():
            self._tell(started.set)
            await self._stop.wait()

    def _tell(self, act: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(act)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the loop until `work` is done. A task of the program's own that raises SystemExit does not stop it."""
        main = self.loop.create_task(work)
        while not main.done():
            try:
                self.loop.run_until_complete(main)
            except (SystemExit, KeyboardInterrupt):
                log.exception("a background task raised")

    def _wind_up(self) -> None:
        """End the tasks that are left, as `asyncio.run` does, but wait for nothing for longer than `LET_GO`."""
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        if left:
            self._run(_wait_for(left))
        self._run(_bounded(self.loop.shutdown_asyncgens()))
        self._run(self._end_executor())
        self.loop.close()

    async def _end_executor(self) -> None:
        """End the threads of `asyncio.to_thread`. The interpreter would wait for those that do not, for ever."""
        executor = getattr(self.loop, "_default_executor", None)
        if executor is None:
            return
        executor.shutdown(wait=False, cancel_futures=True)
        threads = [*getattr(executor, "_threads", ())]
        with suppress(TimeoutError):
            async with asyncio.timeout(LET_GO):
                while any(thread.is_alive() for thread in threads):  # noqa: ASYNC110 - threads end without a word
                    await asyncio.sleep(_LOOK)
        self.left_behind = self.left_behind or any(thread.is_alive() for thread in threads)

    # ---- pieces of the program

    def begin(
        self,
        work: Callable[[], Awaitable[Any]],
        done: Done,
        name: str = "",
        context: contextvars.Context | None = None,
    ) -> Piece:
        """Start a piece of the program; `done` gets its outcome, on the host.

        Its context variables are the caller's, if no `context` is given, which then belongs to the piece.
        """
        piece = Piece(self, work, done, name, context)
        self.start(piece)
        return piece

    def start(self, piece: Piece) -> None:
        """Start a piece that was made before."""
        self.pieces.add(piece)
        self._watch.wake()
        self.call(piece.begin)

    async def run(
        self, work: Callable[[], Awaitable[T]], name: str = "", context: contextvars.Context | None = None
    ) -> T:
        """Run a piece of the program, as `begin` does, and return its result.

        Cancelled, it waits for the piece to end, for `LET_GO` at the most.

        Raises:
            LoopEndedError: The loop has ended.
            Exception: What the piece raises.
        """
        if self._is_over or self._ended.is_set():
            raise LoopEndedError("the program's event loop has ended")
        waiting = Waiting()
        piece = self.begin(work, waiting.done, name, context)
        try:
            await waiting.event.wait()
        except trio.Cancelled:
            piece.cancel()
            with trio.move_on_after(LET_GO, shield=True):
                await waiting.event.wait()
            raise
        result: T = waiting.outcome()
        return result

    @asynccontextmanager
    async def entered(self, make: Callable[[], AbstractAsyncContextManager[T]], patience: float) -> AsyncIterator[T]:
        """Enter a context manager of the program on its loop, and leave it in the same task, within `patience` seconds.

        Raises:
            Exception: What the context manager raises; also while the block runs, which is then cancelled.
            LoopEndedError: It is not left in time. It is abandoned then.
        """
        life: Life[T] = Life(self, make)
        error: Exception | None = None
        async with trio.open_nursery() as nursery:
            piece = self.begin(life.live, partial(life.over, nursery.cancel_scope.cancel), "lifespan")
            try:
                await life.begun.wait()
            except trio.Cancelled:
                piece.cancel()
                with trio.move_on_after(LET_GO, shield=True):
                    await life.ended.wait()
                raise
            if not life.ended.is_set():
                try:
                    yield life.state
                except Exception as raised:  # noqa: BLE001 - as above
                    error = raised
                finally:
                    life.leave()
                    with trio.move_on_after(patience, shield=True):
                        await life.ended.wait()
                    if not life.ended.is_set():
                        self._abandon(life, piece, patience)
        _raise(error or life.error())

    def _abandon(self, life: Life[Any], piece: Piece, patience: float) -> None:
        """Go on without the end of a context manager."""
        at = self._watch.doing(self)
        log.error("the lifespan's clean-up takes too long, and is abandoned", seconds=patience, at=at)
        life.abandon()
        piece.cancel()
        self.left_behind = True

    # ---- what the program asks of the host

    async def on_host(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run something of the host's on the host, with the caller's context variables, and return its result.

        Cancelled, it waits until the host has undone what is to be undone.

        Raises:
            Exception: What it raises there.
        """
        return await Lane(self).ask(work)


def _raise(error: BaseException | None) -> None:
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback holds this frame


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop: uvloop's, where that is installed."""
    try:
        uvloop = import_module("uvloop")  # an extra
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def _wait_for(tasks: set[asyncio.Task[Any]]) -> None:
    done, pending = await asyncio.wait(tasks, timeout=LET_GO)
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task raised", exc_info=error)
    if pending:
        log.warning("tasks of the program do not end, and are left behind", tasks=len(pending))


async def _bounded(ending: Coroutine[Any, Any, None]) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(ending, LET_GO)
