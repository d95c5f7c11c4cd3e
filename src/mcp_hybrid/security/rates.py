"""How often each caller has asked lately: one token bucket for each, of bounded number and size.

The buckets are `pyrate_limiter`'s GCRA: one number for each caller, however much it asks, and the wait is exact. (Its
`Limiter` is not used: that one sleeps, and cleans up by a thread.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from math import ceil
from typing import Final

from pyrate_limiter import Decision, Rate, RateItem, StateBucket

CALLERS_REMEMBERED: Final = 10_000
"""Callers whose bucket is kept at a time: 7 MB of them. Who is forgotten before its time starts with a full one."""

_FORGOTTEN_AT_ONCE: Final = 2
"""Idle callers that each new one pushes out: more than come, so that none stays for long."""


class Rates:
    """Admits `count` requests of each caller in `seconds`: so many at once, after that evenly."""

    def __init__(self, count: int, seconds: int, clock: Callable[[], float]) -> None:
        """Begin with nobody having asked. `clock` gives seconds and never goes back."""
        self._rate = Rate(count, seconds * 1000)
        self._clock = clock
        self._buckets: OrderedDict[Hashable, tuple[StateBucket, int]] = OrderedDict()
        """Each caller's bucket and when it was last used (ms), the longest idle first."""

    def __len__(self) -> int:
        """Return how many callers are remembered."""
        return len(self._buckets)

    def take(self, caller: Hashable, count: int) -> int | None:
        """Let `count` requests through and return 0, or return the whole seconds after which they would be.

        None: more than ever go at once. What is not let through does not count.
        """
        now = round(self._clock() * 1000)
        known = self._buckets.get(caller)
        if known is None:
            self._make_room(now)
        bucket = known[0] if known is not None else StateBucket([self._rate])
        decision = bucket.put_decision(RateItem("", now, count))
        assert isinstance(decision, Decision)  # only buckets with a store elsewhere have to be awaited
        self._buckets[caller] = (bucket, now)
        self._buckets.move_to_end(caller)
        if decision.allowed:
            return 0
        return ceil(decision.retry_after_ms / 1000) if decision.retry_after_ms is not None else None

    def _make_room(self, now: int) -> None:
        """Forget callers that have been idle until their bucket was full again, which is as good as a new one."""
        for _ in range(_FORGOTTEN_AT_ONCE):
            if not self._buckets:
                return
            _, used = next(iter(self._buckets.values()))
            if len(self._buckets) < CALLERS_REMEMBERED and now - used <= self._rate.interval:
                return
            self._buckets.popitem(last=False)
