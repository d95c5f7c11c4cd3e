"""The sessions that one process holds in memory, and which of them may be put away.

A session that something holds (`LiveSession.hold`) is busy; the others are idle, and stand in the order in which they
were used. So the one to evict is found at once, however many are busy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from mcp_hybrid.counts import Count, Counts
from mcp_hybrid.sessions.live import LiveSession
from mcp_hybrid.sessions.questions import QuestionBounds


class TooManySessionsError(Exception):
    """Every session that is held is in use, and no more may be."""


@dataclass(slots=True)
class _Owned:
    """The sessions of one owner."""

    held: int = 0
    idle: OrderedDict[str, LiveSession] = field(default_factory=OrderedDict)
    """The longest idle first."""


class HeldSessions:
    """The sessions in memory by their hashes, the idle ones by their last use, and by owner where owners have a limit.

    Every method is synchronous: an index that a checkpoint could find half changed would not be worth much. What is
    passed in is a session, not a hash, and is only acted on while it is the one that is held: under its hash there may
    be another by now, brought back after this one was put away.
    """

    def __init__(
        self,
        limit: int,
        limit_per_owner: int,
        questions: QuestionBounds,
        counts: Counts,
        released: Callable[[LiveSession], None],
    ) -> None:
        """Hold up to `limit` sessions, of one owner up to `limit_per_owner` (0: no limit of its own).

        `released` is called with a session that is no longer held here when its last user lets go of it.
        """
        self.questions = questions
        self._limit = limit
        self._limit_per_owner = limit_per_owner
        self._counts = counts
        self._released = released
        self._all: dict[str, LiveSession] = {}
        self._idle: OrderedDict[str, LiveSession] = OrderedDict()
        self._owners: dict[str, _Owned] = {}

    def __len__(self) -> int:
        """Return how many sessions are held."""
        return len(self._all)

    def __contains__(self, session: LiveSession) -> bool:
        """Whether this very session is held, not another one of the same id."""
        return self._all.get(session.hash) is session

    def get(self, digest: str) -> LiveSession | None:
        """Return the session of that hash."""
        return self._all.get(digest)

    def all(self) -> list[LiveSession]:
        """Return the sessions as they are now, in no order."""
        return list(self._all.values())

    def add(self, session: LiveSession) -> None:
        """Hold a session that is not held yet. It is idle until somebody holds on to it."""
        assert session.hash not in self._all
        self._all[session.hash] = session
        # Sessions of nobody belong to anybody: a limit on them would let one client take them all.
        if self._limit_per_owner and session.record.owner:
            self._owners.setdefault(session.record.owner, _Owned()).held += 1
        self._counts.add(Count.SESSIONS_NOW)
        self.became_idle(session)

    def remove(self, session: LiveSession) -> bool:
        """Hold a session no longer. Returns whether it was held: False for one that was put away before."""
        if session not in self:
            return False
        del self._all[session.hash]
        self._idle.pop(session.hash, None)
        owned = self._owners.get(session.record.owner)
        if owned is not None:
            owned.idle.pop(session.hash, None)
            owned.held -= 1
            if not owned.held:
                del self._owners[session.record.owner]
        if not self._all:  # tables keep the size that they once had
            self._all.clear()
            self._idle.clear()
        self._counts.add(Count.SESSIONS_NOW, -1)
        return True

    def to_evict(self, owner: str) -> LiveSession | None:
        """Return the session that has to go before `owner` can have one more; None where there is room.

        At the owner's own limit it is one of its own, at that of all the longest idle one.

        Raises:
            TooManySessionsError: All that could go are busy.
        """
        owned = self._owners.get(owner)
        if owned is not None and owned.held >= self._limit_per_owner:
            candidates = owned.idle
        elif len(self._all) >= self._limit:
            candidates = self._idle
        else:
            return None
        if not candidates:
            raise TooManySessionsError
        return next(iter(candidates.values()))

    def became_busy(self, session: LiveSession) -> None:
        """Keep a session from being put away: somebody holds on to it."""
        if session not in self:
            return
        self._idle.pop(session.hash, None)
        if (owned := self._owners.get(session.record.owner)) is not None:
            owned.idle.pop(session.hash, None)

    def became_idle(self, session: LiveSession) -> None:
        """Let a session be put away when its turn comes: it is the one that was used last."""
        if session not in self:
            self._released(session)
            return
        self._idle[session.hash] = session
        self._idle.move_to_end(session.hash)
        if (owned := self._owners.get(session.record.owner)) is not None:
            owned.idle[session.hash] = session
            owned.idle.move_to_end(session.hash)
