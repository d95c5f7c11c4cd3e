"""Tasks that no request waits for, of which only so many may run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from mcp_hybrid.exchange.reply import Spawn

log = structlog.get_logger("mcp_hybrid")

AT_ONCE: Final = 100
"""Tasks that other workers' signals may keep running here at a time."""


class BackgroundTasks:
    """Starts tasks for what other workers ask, so that the reader of their signals never waits."""

    def __init__(self, spawn: Spawn, limit: int = AT_ONCE) -> None:
        self._spawn = spawn
        self._limit = limit
        self._running = 0
        self._refusing = False

    def start(self, work: Callable[[], Coroutine[Any, Any, None]], what: str) -> bool:
        """Start `work` in a task of its own, or return False where too many run already; `what` is for the log."""
        if self._running >= self._limit:
            if not self._refusing:  # one line for each time that it begins
                log.warning("too much to do for other workers; dropped", what=what, running=self._running)
            self._refusing = True
            return False
        self._running += 1
        self._refusing = False

        async def run() -> None:
            try:
                await work()
            finally:
                self._running -= 1

        self._spawn(run)
        return True
