"""When this process is told to stop, and that it then ends, whatever its tools do.

Python's own signal handlers, not the event loop's: a tool that blocks the loop must not keep the process from hearing.
"""

from __future__ import annotations

import _thread
import os
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Final

import structlog
import trio

from mcp_hybrid.telemetry.logs import flush_logs

LAST_WORDS: Final = 2.0
"""Seconds for the last answers to be taken once calls were stopped; then connections are cut."""
FORCE_AFTER: Final = 5.0
"""Seconds after the time for draining in which the process ends by itself, lifespan shutdown included."""
LINGER: Final = 5.0
"""Seconds that idle connections stay open in a process whose place others have taken. Clients that use theirs
meanwhile are told by the answer that it is the last; to others, the end of an idle connection is nothing new."""
FORCED: Final = 1
"""The exit code of a process that had to be ended by force."""

_LAST_LINES: Final = 0.5
"""Seconds for the last lines of the log, in a process that is ended by force."""
_FORCED: Final = "ended by force: something did not let go in time, most likely a tool that blocks the event loop"

log = structlog.get_logger()


class Stopping:
    """How this process comes to its end."""

    def __init__(self, drain_timeout: float) -> None:
        self.told = trio.Event()
        self.over = trio.Event()
        """Set when nothing more is served; in a process whose place others have taken, as soon as that is known."""
        self._now = trio.Event()
        self._drain_timeout = drain_timeout
        self._bounded = False

    def stop(self, why: str) -> None:
        """Stop in order. Only the first call counts."""
        self._now.set()
        self._leave("stopping", why, FORCE_AFTER)

    def retire(self) -> None:
        """Stop in order, with time for clients to go over to those who have taken this process's place."""
        self.over.set()
        self._leave("retiring", "reloaded", LINGER + FORCE_AFTER)

    async def linger(self) -> None:
        """Wait for as long as idle connections may stay."""
        with trio.move_on_after(LINGER):
            await self._now.wait()

    def on_signals(self) -> None:
        """Stop on SIGTERM or SIGINT. A second one ends the process at once, whatever is still draining.

        Must be called on Trio, in the main thread.
        """
        token = trio.lowlevel.current_trio_token()

        def told(number: int, _frame: FrameType | None) -> None:
            for each in (signal.SIGTERM, signal.SIGINT):
                signal.signal(each, signal.SIG_DFL)
            self.bound(FORCE_AFTER)  # here, as the loop may be blocked
            token.run_sync_soon(self.stop, signal.Signals(number).name)

        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, told)

    def _leave(self, what: str, why: str, force_after: float) -> None:
        if not self.told.is_set():
            log.info(what, why=why, drain_timeout=self._drain_timeout)
            self.told.set()
            self.bound(force_after)

    def bound(self, force_after: float) -> None:
        """End by force so many seconds after the time for draining. Only the first call counts.

        May be called in any thread, and in a signal handler.
        """
        if not self._bounded:
            self._bounded = True
            end_by_force_after(self._drain_timeout + force_after)


def end_by_force_after(seconds: float) -> Callable[[], None]:
    """End this process after so many seconds, whatever it is doing then, with exit code `FORCED`.

    What is returned calls that off: for what ends in time in a process that goes on.
    """
    armed = [True]
    # Not `threading`: its locks may be held by what a signal has interrupted.
    _thread.start_new_thread(_end_by_force, (seconds, armed))
    return armed.clear


def _end_by_force(seconds: float, armed: Sequence[bool]) -> None:
    time.sleep(seconds)
    if not armed:
        return
    log.error(_FORCED)
    flush_logs(_LAST_LINES)  # not longer: who reads the log may be what is stuck
    os._exit(FORCED)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


_STARTED_ON_A_TERMINAL: Final = _has_terminal()


def terminal_is_gone() -> bool:
    """Whether a SIGHUP means what it says: the terminal that this process was started on has been closed."""
    return _STARTED_ON_A_TERMINAL and not _has_terminal()
