"""Workers that were started together: so many of them, each replaced when it dies, until the generation is over.

Each place of a generation has one task, the only one that starts, watches and ends the worker in it. So a worker that
dies is replaced at whatever point it dies: nobody else has to notice. No wait for a worker is without a limit: one that
is not ready in time, or does not end in time, is killed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum
from typing import Final, Protocol

import structlog
import trio

from mcp_hybrid.server.worker_process import Worker, WorkerEndedError, WorkerFailedError
from mcp_hybrid.telemetry.directory import forget_worker

STABLE: Final = 10.0
"""Seconds after which a worker that dies is replaced at once, and the delays begin anew."""
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
"""Seconds before the next start in a place, doubled from the first to the longest while workers die early in it."""
LAST_LINE: Final = 0.5
"""Seconds to read what a worker wrote before it died."""
KILLED: Final = 5.0
"""Seconds for a killed process to be gone. One that is not hangs in the system, and is left to it."""
LOOK: Final = 1.0
"""Seconds between two looks at whether a worker is suspended by a signal (SIGSTOP)."""
SUSPENDED_LOOKS: Final = 30
"""Looks in a row that find a worker suspended, after which it is killed. Looks, not seconds: if the whole machine, or
the whole process group, was suspended, the master did not look either."""

log = structlog.get_logger()


class Order(Enum):
    """How a generation's workers are to end."""

    RETIRE = "retire"
    """Others have taken their places: they give idle connections time to move over."""
    STOP = "stop"


class Owner(Protocol):
    """Decides what a generation cannot. Its methods are called synchronously, and must not raise."""

    def complete(self, generation: Generation) -> None:
        """Hear that all workers of the generation serve, at this moment."""

    def start_failed(self, generation: Generation, error: WorkerFailedError, in_a_row: int) -> None:
        """Hear that a worker never became ready: so many times in a row in its place, while nothing else happened."""

    def died(self, generation: Generation, worker: Worker, exit_code: int) -> None:
        """Hear that a worker that served has ended, unasked."""

    def ended(self, worker: Worker, exit_code: int) -> None:
        """Hear that a worker that was asked to end has ended."""


class Generation:
    """The workers of one start, or of one reload."""

    def __init__(self, size: int, launch: Callable[[], Awaitable[Worker]], owner: Owner, known: set[Worker]) -> None:
        """Have `size` places. `launch` starts a worker's process; `known` is kept up to date with those that live."""
        self.size = size
        self.serving: set[Worker] = set()
        """Those that are ready and have not ended."""
        self.deaths = 0
        """Workers that died after they had been ready."""
        self.over = trio.Event()
        """Set when the workers are to end: none is started or replaced any more."""
        self.told = trio.Event()
        """Set when those that served at the first order have received one, or have ended."""
        self.gone = trio.Event()
        """Set when all of them have ended."""
        self._untold: set[Worker] = set()
        self._launch = launch
        self._owner = owner
        self._known = known
        self._failures: Counter[int] = Counter()
        self._order = Order.STOP
        self._deadline = 0.0
        self._ordered = trio.Event()

    async def run(self) -> None:
        """Keep the workers, until they have ended by an order."""
        try:
            async with trio.open_nursery() as nursery:
                for place in range(self.size):
                    nursery.start_soon(self._keep, place)
        finally:
            self.told.set()
            self.gone.set()

    def end(self, order: Order, within: float) -> None:
        """Have the workers end, and kill those that have not after so many seconds. May be called again, to hurry."""
        self._order, self._deadline = order, trio.current_time() + within
        if not self.over.is_set():
            self._untold = set(self.serving)
        self.over.set()
        self._ordered.set()
        self._ordered = trio.Event()

    # One place

    async def _keep(self, place: int) -> None:
        delay = 0.0
        while not self.over.is_set():
            served = await self._run_one(place)
            delay = 0.0 if served >= STABLE else min(max(2 * delay, FIRST_DELAY), LONGEST_DELAY)
            with trio.move_on_after(delay):
                await self.over.wait()

    async def _run_one(self, place: int) -> float:
        """Run one worker until it has ended. Returns for how many seconds it served."""
        try:
            worker = await self._launch()
        except WorkerFailedError as error:
            self._note_failure(place, error)
            return 0.0
        run = _Run(worker)
        self._known.add(worker)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._await_end, run)
            nursery.start_soon(_kill_if_suspended, worker)
            await self._start_and_serve(place, run)
            if not run.ended.is_set():
                await self._end(run)
            nursery.cancel_scope.cancel()
        self._note_told(worker)
        return run.served

    def _note_told(self, worker: Worker) -> None:
        self._untold.discard(worker)
        if self.over.is_set() and not self._untold:
            self.told.set()

    async def _start_and_serve(self, place: int, run: _Run) -> None:
        """Return when the worker has ended, has to be ended, or the generation is over."""
        worker = run.worker
        error = await self._until_ready(run)
        if error is not None:
            if run.ended.is_set() and isinstance(error, WorkerEndedError):
                error = WorkerEndedError(f"it ended with exit code {run.exit_code}")
            self._note_failure(place, error)
            return
        if not worker.ready:
            return  # the generation is over
        self._failures.clear()
        if not run.ended.is_set():
            self.serving.add(worker)
            if len(self.serving) == self.size and not self.over.is_set():
                self._owner.complete(self)
            await _first(run.ended.wait, self.over.wait)
        run.served = trio.current_time() - worker.since
        if run.ended.is_set() and not self.over.is_set():
            self._failures.clear()
            self.deaths += 1
            self._owner.died(self, worker, run.exit_code)

    async def _until_ready(self, run: _Run) -> WorkerFailedError | None:
        """Wait until it is ready, has failed to be (which is returned), or the generation is over."""
        failed: WorkerFailedError | None = None
        scope = trio.CancelScope()

        async def ready() -> None:
            nonlocal failed
            try:
                with scope:
                    await run.worker.until_ready()
            except WorkerFailedError as error:
                failed = error
            else:
                if scope.cancelled_caught:
                    failed = WorkerEndedError("it ended")
            if isinstance(failed, WorkerEndedError):
                with trio.move_on_after(LAST_LINE):  # its exit code says more
                    await run.ended.wait()

        async def bounded() -> None:
            # What it wrote before it died can still be read. Something that it started may hold the socket open, so
            # the end of the stream need not come.
            await run.ended.wait()
            scope.deadline = trio.current_time() + LAST_LINE
            await trio.sleep_forever()

        await _first(ready, bounded, self.over.wait)
        return None if self.over.is_set() else failed

    def _note_failure(self, place: int, error: WorkerFailedError) -> None:
        if not self.over.is_set():
            self._failures[place] += 1
            self._owner.start_failed(self, error, self._failures[place])

    # The end of a worker

    async def _await_end(self, run: _Run) -> None:
        """Note the end of a worker's process as soon as it comes."""
        run.exit_code = await run.worker.process.wait()
        self.serving.discard(run.worker)
        self._known.discard(run.worker)
        run.ended.set()
        if run.worker.ready and self.over.is_set():
            self._owner.ended(run.worker, run.exit_code)
        with suppress(OSError):
            forget_worker(run.worker.process.pid)
        await run.worker.control.aclose()

    async def _end(self, run: _Run) -> None:
        """Ask a worker to end, as the orders say, and kill it when their time is over or it never became ready."""
        given: Order | None = None
        while self.over.is_set() and not run.ended.is_set() and trio.current_time() < self._deadline:
            if given is not self._order:
                given = self._order
                await (run.worker.retire() if given is Order.RETIRE else run.worker.stop())
                self._note_told(run.worker)
                continue
            with trio.move_on_at(self._deadline):
                await _first(run.ended.wait, self._ordered.wait)
        if run.ended.is_set():
            return
        pid = run.worker.process.pid
        if self.over.is_set():
            log.error("a worker had to be killed: it did not end by itself", pid=pid)
        run.worker.process.kill()
        with trio.move_on_after(KILLED):
            await run.ended.wait()
        if not run.ended.is_set():
            log.error("a worker was killed and is still there: it hangs in the system", pid=pid)
            self._known.discard(run.worker)


class _Run:
    """One worker in its place."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.ended = trio.Event()
        self.exit_code = 0
        self.served = 0.0


async def _kill_if_suspended(worker: Worker) -> None:
    """Kill a worker that somebody suspended and did not continue: it serves nobody, and holds its clients up.

    What the system says of the process is exact. A worker that answers slowly, or whose loop a tool blocks, is not
    suspended; so nothing is asked of the worker itself.
    """
    looks = 0
    while looks < SUSPENDED_LOOKS:
        await trio.sleep(LOOK)
        looks = looks + 1 if _is_suspended(worker.process.pid) else 0
    log.error("a worker is suspended (SIGSTOP) and is killed", pid=worker.process.pid, seconds=looks * LOOK)
    worker.process.kill()


def _is_suspended(pid: int) -> bool:
    """Whether a child of this process is suspended by a signal; false where the system does not tell."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


async def _first(*waits: Callable[[], Awaitable[object]]) -> None:
    """Wait until one of them has returned."""
    async with trio.open_nursery() as nursery:

        async def wait_and_end(wait: Callable[[], Awaitable[object]]) -> None:
            await wait()
            nursery.cancel_scope.cancel()

        for wait in waits:
            nursery.start_soon(wait_and_end, wait)
