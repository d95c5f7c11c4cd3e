"""How long a connection may be idle, without a task for each time that it is.

Hypercorn 0.18 starts a task after every request, which sleeps until the next one comes: two tasks and most of the
scheduler's work for a request that is answered at once. Here all idle connections of a worker stand in one line, which
costs a connection next to nothing to join and to leave. An idle connection does nothing but read, so that ending its
reading is all there is to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from mcp_hybrid.exchange.timers import Alarm, Delay


class IdleDeadline:
    """Ends `reading` when the connection has been idle for as long as `line` has it; in place of Hypercorn's task."""

    def __init__(self, reading: trio.CancelScope, line: Delay, ending: Callable[[], bool]) -> None:
        """End `reading` also when the connection becomes idle while the worker is `ending`."""
        self._reading = reading
        self._line = line
        self._ending = ending
        self._alarm: Alarm | None = None
        """Set while the connection is idle."""
        self._over = False

    def note(self, *, idle: bool) -> None:
        """Note that nothing runs on the connection any more, or that something does."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._over:  # and a request came all the same, before the scheduler has ended anything
            self._over = False
            self._reading.deadline = math.inf
        if idle:
            self._alarm = self._line.add(self.expire)
            if self._ending():
                self.expire()

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs on the connection."""
        return self._alarm is not None

    def expire(self) -> None:
        """Have the time be over now, if the connection is idle."""
        if self._alarm is not None:
            self._over = True
            self._reading.deadline = -math.inf

    @property
    def expired(self) -> bool:
        """Whether reading was ended because the time was over."""
        return self._alarm is not None and self._reading.cancelled_caught

    # What Hypercorn calls on its own. The arguments are for starting a task.

    async def restart(self, *_: object) -> None:
        """Note that the connection is idle from now on."""
        self.note(idle=True)

    async def stop(self) -> None:
        """Note that something runs on the connection."""
        self.note(idle=False)
