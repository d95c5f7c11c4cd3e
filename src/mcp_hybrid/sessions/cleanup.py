"""Clean-up after sessions: what applications left on their exit stacks, and what the backplane keeps of ended ones.

A clean-up is the application's code and may hang. So whoever puts a session away only adds its clean-up here, and goes
on; clean-ups run beside each other, and none waits for another but for one of `AT_ONCE` places.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

log = structlog.get_logger("mcp_hybrid")

CleanUp = Callable[[], Awaitable[None]]
"""Cleans up after one session. It bounds its own time, and shields from cancellation what must be done."""

AT_ONCE: Final = 100
"""Clean-ups that run at a time. One that hangs takes 5 s (`mcp.server.runner.aclose_shielded`)."""

BACKLOG: Final = 1000
"""Clean-ups that may wait before no further session is brought to life."""


class CleanUpQueue:
    """Runs each clean-up exactly once: in its turn by `run`, or at the end by `finish`."""

    def __init__(self) -> None:
        self._waiting: deque[CleanUp] = deque()
        self._running = 0
        self._changed: anyio.Event | None = None

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether so many wait that no more sessions should come to life: each of them will leave another one."""
        return len(self._waiting) >= BACKLOG

    def add(self, clean_up: CleanUp) -> None:
        """Have this run soon. Never refused: a session that is over cannot be kept."""
        self._waiting.append(clean_up)
        self._wake()

    async def run(self) -> None:
        """Run what is added, `AT_ONCE` at a time, until cancelled; then what waits still is run all the same."""
        try:
            async with anyio.create_task_group() as tasks:
                while True:
                    while self._waiting and self._running < AT_ONCE:
                        self._running += 1
                        self._start(tasks)
                    self._changed = anyio.Event()
                    await self._changed.wait()
        finally:
            await self.finish()

    async def finish(self) -> None:
        """Run all that waits, beside each other however many there are, and return when they are done.

        It takes as long as the longest of them. Cancellation does not keep it from starting them all.
        """
        async with anyio.create_task_group() as tasks:
            while self._waiting:
                self._running += 1
                self._start(tasks)

    def _start(self, tasks: TaskGroup) -> None:
        # No checkpoint between taking a clean-up and starting its task, or cancellation would lose it.
        tasks.start_soon(self._run_one, self._waiting.popleft())

    async def _run_one(self, clean_up: CleanUp) -> None:
        try:
            await clean_up()
        except Exception:
            log.exception("cleaning up after a session failed")
        finally:
            self._running -= 1
            self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
