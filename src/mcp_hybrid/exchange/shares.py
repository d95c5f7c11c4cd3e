"""A number of places that callers share fairly.

No caller holds more than three quarters of them, whether others wait or not: a place cannot be taken back, and a caller
whose functions hang would otherwise keep all others out. Of the callers that wait, the one that holds the fewest places
comes next; among equals, the one that has waited longest. Each caller's own requests come in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

import anyio
import anyio.lowlevel

RESERVED: Final = 4
"""One in so many places is out of reach of any one caller."""


@dataclass(eq=False, slots=True)
class _Wait:
    event: anyio.Event = field(default_factory=anyio.Event)
    granted: bool = False


class Shares:
    """The places. All methods are for the event loop's thread, in which nothing else runs between two checkpoints."""

    def __init__(self, total: int) -> None:
        """Share `total` places, at least one."""
        self.total = total
        self.most = total - total // RESERVED
        """Places that one caller may hold: of fewer than four, all."""
        self._free = total
        self._held: dict[Hashable, int] = {}
        # Callers in the order of their turns. Where a place is free, each of them holds as many as it may.
        self._waiting: dict[Hashable, deque[_Wait]] = {}

    @property
    def free(self) -> int:
        """Places that no caller holds."""
        return self._free

    async def acquire(self, caller: Hashable) -> None:
        """Wait for a place. Cancelled, none is held."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        if self._may(caller):
            self._take(caller)
            return
        wait = _Wait()
        self._waiting.setdefault(caller, deque()).append(wait)
        try:
            await wait.event.wait()
        except BaseException:
            if wait.granted:  # in the moment in which it was cancelled
                self.release(caller)
            else:
                self._leave(caller, wait)
            raise

    def release(self, caller: Hashable) -> None:
        """Give a place back, and pass it on."""
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]
        self._free += 1
        able = [each for each in self._waiting if self._may(each)]
        if able:
            self._grant(min(able, key=self._holds))

    def _grant(self, caller: Hashable) -> None:
        queue = self._waiting.pop(caller)
        wait = queue.popleft()
        if queue:
            self._waiting[caller] = queue  # behind the others
        self._take(caller)
        wait.granted = True
        wait.event.set()

    def _leave(self, caller: Hashable, wait: _Wait) -> None:
        queue = self._waiting[caller]
        queue.remove(wait)
        if not queue:
            del self._waiting[caller]

    def _take(self, caller: Hashable) -> None:
        self._held[caller] = self._holds(caller) + 1
        self._free -= 1

    def _may(self, caller: Hashable) -> bool:
        return self._free > 0 and self._holds(caller) < self.most

    def _holds(self, caller: Hashable) -> int:
        return self._held.get(caller, 0)
