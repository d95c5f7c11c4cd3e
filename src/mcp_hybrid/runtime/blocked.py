"""Tells in the log that a program blocks its event loop: which part of it, where, and for how long.

While anything of the program runs, the host sends a beat across now and then. One that is not answered in time means
that something on the loop does not yield.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from mcp_hybrid.runtime.crossing import Crossing

log = structlog.get_logger("mcp_hybrid")

PERIOD: Final = 0.25
"""Seconds between two beats."""

BLOCKED: Final = 1.0
"""Seconds without an answer after which the loop counts as blocked."""


class BlockedWatch:
    """Watches one loop."""

    def __init__(self, describe: Callable[[contextvars.Context], str]) -> None:
        """Make a watch. `describe` names what a context belongs to; empty: nothing."""
        self._describe = describe
        self._idle: trio.Event | None = None
        self._sent = 0.0
        self._answered: float | None = None
        self._told: str | None = None

    def wake(self) -> None:
        """Watch from now on: something of the program runs."""
        if self._idle is not None:
            self._idle.set()
            self._idle = None

    async def run(self, loop: Crossing) -> None:
        """Watch until cancelled."""
        while True:
            if not loop.pieces:
                self._idle = trio.Event()
                await self._idle.wait()
            # By the clock on the wall of the machine: it is a thread that is waited for.
            self._sent, self._answered = time.monotonic(), None
            loop.call(self._beat)
            await trio.sleep(PERIOD)
            while not self._is_answered():
                self._look(loop)
                await trio.sleep(PERIOD / 5)
            self._end()

    def _is_answered(self) -> bool:
        return self._answered is not None

    def _beat(self) -> None:
        self._answered = time.monotonic()

    def _look(self, loop: Crossing) -> None:
        """Log a blocked loop, once for each time."""
        if self._told is None and time.monotonic() - self._sent >= BLOCKED:
            self._told = self._who(loop)
            log.warning(
                "the program blocks its event loop, and delays its other calls: run blocking code in a plain def tool, "
                "or by asyncio.to_thread",
                tool=self._told,
                at=self.doing(loop),
            )

    def _end(self) -> None:
        if self._told is not None and self._answered is not None:
            log.warning(
                "the program's event loop was blocked",
                tool=self._told,
                seconds=round(self._answered - self._sent, 1),
            )
            self._told = None

    def _who(self, loop: Crossing) -> str:
        task = asyncio.current_task(loop.loop)
        if task is None:
            return "a callback"
        context: Any = getattr(task, "get_context", None)  # Python 3.12 and later
        name = self._describe(context()) if context is not None else ""
        return name or task.get_name()

    def doing(self, loop: Crossing) -> str:
        """Return where in the code the loop's thread is."""
        frame = sys._current_frames().get(loop.thread)  # noqa: SLF001 - public but for its name
        return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame is not None else ""
