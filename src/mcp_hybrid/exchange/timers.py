"""Things that happen to a call that lasts, at no cost to one that does not.

Most calls end long before anything would be done about their length, so none gets a task or a timeout scope of its
own for it. All that wait for the same length of time stand in one line: what was added first is due first.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

import anyio

from mcp_hybrid.clock import now


class Alarm:
    """One thing that is due at a time. Must not raise and must not block."""

    __slots__ = ("_line", "due", "ring")

    def __init__(self, due: float, ring: Callable[[], None], line: dict[Alarm, None]) -> None:
        self.due = due
        self.ring = ring
        self._line = line
        line[self] = None

    def cancel(self) -> None:
        """Make it not happen. Does nothing once it has."""
        self._line.pop(self, None)
        self.ring = _nothing  # whose alarm it was mostly holds it: a circle, which would wait for the garbage collector


class Delay:
    """Calls back `seconds` after it was asked to. One task for all; it sleeps for good while nothing is waiting."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._line: dict[Alarm, None] = {}  # in order; what is cancelled leaves at once, wherever it stands
        self._added: anyio.Event | None = None

    def add(self, ring: Callable[[], None]) -> Alarm:
        """Have `ring` called after the delay."""
        alarm = Alarm(now() + self.seconds, ring, self._line)
        if self._added is not None:
            self._added.set()
            self._added = None
        return alarm

    async def run(self) -> None:
        """Serve the line until cancelled."""
        while True:
            if not self._line:
                # Linger for one delay first: under load the line is empty for moments only.
                await anyio.sleep(self.seconds)
            if not self._line:
                self._added = anyio.Event()
                await self._added.wait()
            first = next(iter(self._line), None)
            if first is not None:
                await anyio.sleep_until(first.due)
                self._ring_due()

    def _ring_due(self) -> None:
        time = now()
        for alarm in list(takewhile(lambda alarm: alarm.due <= time, self._line)):
            if alarm in self._line:  # not cancelled by one that rang before it
                ring = alarm.ring
                alarm.cancel()
                ring()


def _nothing() -> None:
    pass
