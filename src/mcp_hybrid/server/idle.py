"""How long a connection may be idle, without a task for each time that it is.

Hypercorn 0.18 starts a task after every request, which sleeps until the next one comes: two tasks and most of the
scheduler's work for a request that is answered at once. Here the time is a deadline on the scope in which the
connection is read, since an idle connection does nothing but read.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio


class IdleDeadline:
    """Ends `reading` when the connection has been idle for `seconds`. In the place of Hypercorn's task."""

    def __init__(self, reading: trio.CancelScope, seconds: float, ending: Callable[[], bool]) -> None:
        """End `reading` also when the connection becomes idle while the worker is `ending`."""
        self._reading = reading
        self._seconds = seconds
        self._ending = ending
        self._idle = False

    def note(self, *, idle: bool) -> None:
        """Note that nothing runs on the connection any more, or that something does."""
        self._idle = idle
        self._reading.deadline = trio.current_time() + self._seconds if idle else math.inf
        if self._ending():
            self.expire()

    def expire(self) -> None:
        """Have the time be over now, if the connection is idle."""
        if self._idle:
            self._reading.deadline = -math.inf

    @property
    def expired(self) -> bool:
        """Whether reading was ended because the time was over."""
        return self._idle and self._reading.cancelled_caught

    # What Hypercorn calls on its own. The arguments are for starting a task.

    async def restart(self, *_: object) -> None:
        """Note that the connection is idle from now on."""
        self.note(idle=True)

    async def stop(self) -> None:
        """Note that something runs on the connection."""
        self.note(idle=False)
