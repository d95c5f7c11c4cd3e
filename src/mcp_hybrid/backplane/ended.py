"""The ended sessions that a process remembers, within a bound."""

from __future__ import annotations

import heapq
import math
from array import array
from typing import Final

_BUCKET: Final = 10
"""Seconds of expiry that are forgotten together."""
_DIGITS: Final = 15
"""Hexadecimal digits of a session's hash that are kept: 60 bits, an integer of 32 bytes. That two of a million
sessions have them in common is as likely as one in two million."""


class EndedSessions:
    """Ended sessions, by their hashes, until their ids would have expired by themselves.

    Beyond `most` the ones that expire first, which were issued first, are forgotten, and from then on every session
    that expires no later counts as ended: an ended id never becomes valid again. About 100 bytes for each.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._members: set[int] = set()
        self._buckets: dict[int, array[int]] = {}
        self._order: list[int] = []
        self.horizon = -math.inf
        """Sessions that expire at this time or before it are over (wall clock, seconds)."""

    def __len__(self) -> int:
        """Return how many are remembered one by one."""
        return len(self._members)

    def __contains__(self, session: str) -> bool:
        """Whether that session is remembered."""
        return _shortened(session) in self._members

    def covers(self, session: str, until: float) -> bool:
        """Whether a session is over whose id expires at `until` (wall clock, seconds)."""
        return until <= self.horizon or session in self

    def add(self, session: str, until: float) -> None:
        """Remember that a session ended whose id expires at `until`."""
        member = _shortened(session)
        if member in self._members or until <= self.horizon:
            return
        bucket = math.ceil(until / _BUCKET)
        if bucket not in self._buckets:
            self._buckets[bucket] = array("Q")
            heapq.heappush(self._order, bucket)
        self._buckets[bucket].append(member)
        self._members.add(member)
        while len(self._members) > self._most:
            self.horizon = max(self.horizon, self._forget_first() * _BUCKET)

    def prune(self, now: float) -> None:
        """Forget those whose ids have expired at `now` (wall clock, seconds)."""
        while self._order and self._order[0] * _BUCKET <= now:
            self._forget_first()

    def _forget_first(self) -> int:
        bucket = heapq.heappop(self._order)
        self._members.difference_update(self._buckets.pop(bucket))
        return bucket


def _shortened(session: str) -> int:
    return int(session[:_DIGITS], 16)
