"""How often each caller has asked lately: one token bucket for each, of bounded number and size.

It is GCRA (ITU-T I.371, annex A): a bucket is one number, the moment at which it is full again, and the wait that it
tells is exact. This runs for each request, and a library for it took a thirtieth of what a call takes in all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

CALLERS_REMEMBERED: Final = 10_000
"""Callers whose bucket is kept at a time: 2 MB of them. A caller that is forgotten too early starts with a full one."""

_FORGOTTEN_AT_ONCE: Final = 2
"""Idle callers that each new one pushes out: more than come, so that none stays for long."""

_MICROSECONDS: Final = 1_000_000


class Rates:
    """Admits `count` requests of each caller in `seconds`: so many at once, after that evenly."""

    def __init__(self, count: int, seconds: int, clock: Callable[[], float]) -> None:
        """Begin with nobody having asked. `clock` gives seconds and never goes back."""
        self._count = count
        self._clock = clock
        # A unit of time is 1/count of a microsecond: then one request is worth a whole number of them, whatever the
        # rate, and nothing is ever rounded.
        self._each = seconds * _MICROSECONDS
        self._whole = self._each * count
        self._full_at: OrderedDict[Hashable, int] = OrderedDict()
        """When each caller's bucket is full again, the longest idle caller first."""

    def __len__(self) -> int:
        """Return how many callers are remembered."""
        return len(self._full_at)

    def take(self, caller: Hashable, count: int) -> int | None:
        """Let `count` requests through and return 0, or return the whole seconds after which they would be.

        None: more than ever go at once. What is not let through does not count.
        """
        now = round(self._clock() * _MICROSECONDS) * self._count
        full_at = self._full_at.get(caller)
        if full_at is None:
            self._make_room(now)
            full_at = self._full_at[caller] = now
        else:
            self._full_at.move_to_end(caller)
        after = max(full_at, now) + count * self._each
        late = after - self._whole - now
        if late <= 0:
            self._full_at[caller] = after
            return 0
        return -(-late // (self._count * _MICROSECONDS)) if count <= self._count else None

    def _make_room(self, now: int) -> None:
        """Forget full buckets, which are as good as new ones, and the longest idle if there are too many."""
        for _ in range(_FORGOTTEN_AT_ONCE):
            if not self._full_at:
                return
            full_at = next(iter(self._full_at.values()))
            if len(self._full_at) < CALLERS_REMEMBERED and full_at > now:
                return
            self._full_at.popitem(last=False)
