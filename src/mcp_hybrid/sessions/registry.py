"""Which sessions are live here, and what a session id is worth.

offered       `offer` seals a record. Nothing is kept.
live          `attach` claims it, or brings it back. The longest idle are first in `_live`.
hibernating   `sweep` lets go of the idle ones. Their ids are all that is left, and all that is needed.
ended         `end`, or too old. The backplane remembers until the id would have expired.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import structlog
from mcp.shared.dispatcher import Outbound
from mcp_types import InitializeRequestParams

from mcp_hybrid.backplane import Backplane, BackplaneUnavailableError
from mcp_hybrid.clock import now
from mcp_hybrid.counts import Count, Counts
from mcp_hybrid.routing.table import Standing
from mcp_hybrid.security.owner import ANONYMOUS, Owner
from mcp_hybrid.sessions.connection import SessionConnection
from mcp_hybrid.sessions.live import LiveSession
from mcp_hybrid.sessions.record import SessionRecord
from mcp_hybrid.sessions.seal import KeyRing

log = structlog.get_logger("mcp_hybrid")

MakeOutbound = Callable[[str, str], Outbound]
"""Makes what a session sends by outside of any request, from its id and its hash."""


class TooManySessionsError(Exception):
    """Every session that is held is in use, and no more may be."""


class SessionOverError(Exception):
    """The session was ended after it was looked up: the end was on its way when the backplane was asked."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How long sessions last and how many are held at a time. Seconds."""

    max_age: float
    idle_timeout: float
    max_live: int
    max_live_per_owner: int = 0
    """0: no limit."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a session id turned out to be."""

    standing: Standing
    id: str = ""
    hash: str = ""
    record: SessionRecord | None = None
    """There where the id is valid."""
    owner: Owner = ANONYMOUS
    watch: int = 0
    """When it was looked up (`Backplane.watch`)."""


class Registry:
    """The sessions of one process."""

    def __init__(
        self,
        keys: KeyRing,
        backplane: Backplane,
        limits: SessionLimits,
        clock: Callable[[], float],
        counts: Counts | None = None,
    ) -> None:
        """Make an empty registry. `clock` is the wall clock, in seconds: ages are compared across machines."""
        self._keys = keys
        self._backplane = backplane
        self._limits = limits
        self.make_outbound: MakeOutbound
        """Given by whoever knows how to reach clients, before the first session is attached."""
        self._clock = clock
        self._live: OrderedDict[str, LiveSession] = OrderedDict()
        self._of_owner: dict[str, OrderedDict[str, LiveSession]] = {}
        """Those of each owner, the longest idle first, where owners have a limit."""
        self._evicted: list[SessionConnection] = []
        """Of sessions put away to make room: cleaned up by the next sweep; the request that came need not wait."""
        self.counts = counts or Counts()
        """What became of sessions since the start."""

    def __len__(self) -> int:
        """Return how many sessions hold memory."""
        return len(self._live)

    def offer(self, params: InitializeRequestParams, version: str, owner: Owner) -> str:
        """Return the id of a fresh session. It costs nothing until it is echoed.

        Raises:
            TooLargeToSealError: What the client says of itself does not fit into an id.
        """
        sealed = self._keys.seal(SessionRecord.of(params, version, owner.fingerprint, self._clock()).pack())
        self.counts.add(Count.OFFERED)
        return sealed

    async def find(self, session_id: str, owner: Owner) -> Found:
        """Say what `session_id` is worth to `owner`.

        The owner comes first: an id of somebody else's says nothing about what has become of it.
        """
        digest = hash_of(session_id)
        live = self._live.get(digest)
        record = live.record if live is not None else self._open(session_id)
        if record is None:
            return Found(Standing.UNKNOWN)
        if record.owner != owner.fingerprint:
            return Found(Standing.FOREIGN)
        return await self._look_up(session_id, digest, record, owner)

    async def recall(self, session_id: str) -> LiveSession | None:
        """Return the live session of an id that is held by the application, which has no request of its owner's.

        It is brought to life where it is not; None where it is over.

        Raises:
            TooManySessionsError: As from `attach`.
        """
        digest = hash_of(session_id)
        live = self._live.get(digest)
        record = live.record if live is not None else self._open(session_id)
        if record is None:
            return None
        # Until its owner comes, no more is known of it than stands in the id.
        owner = live.owner if live is not None else Owner(subject=record.owner)
        found = await self._look_up(session_id, digest, record, owner)
        with suppress(SessionOverError):
            return self.attach(found) if found.standing is Standing.VALID else None
        return None

    async def _look_up(self, session_id: str, digest: str, record: SessionRecord, owner: Owner) -> Found:
        """Say whether a session is over."""
        watch = self._backplane.watch
        if await self._was_ended(digest, self.expiry(record)):
            return Found(Standing.ENDED)
        if self.expiry(record) <= self._clock():
            await self._expire(digest)
            return Found(Standing.EXPIRED)
        return Found(Standing.VALID, session_id, digest, record, owner, watch)

    async def _was_ended(self, digest: str, expiry: float) -> bool:
        live = self._live.get(digest)
        ended = self._backplane.has_heard(digest, live.watch if live is not None else 0, expiry)
        return await self._backplane.is_revoked(digest, expiry) if ended is None else ended

    async def good_until(self, session_id: str) -> float | None:
        """Return when a session ends by itself (wall clock, seconds); None where it is over already.

        For an application that holds on to it: it is neither brought to life by this nor ended.
        """
        digest = hash_of(session_id)
        live = self._live.get(digest)
        record = live.record if live is not None else self._open(session_id)
        if record is None:
            return None
        expiry = self.expiry(record)
        return None if expiry <= self._clock() or await self._was_ended(digest, expiry) else expiry

    def attach(self, found: Found, *, first: bool = False) -> LiveSession:
        """Return the live session of a valid id, bringing it to life where it is not.

        Whoever attaches makes it busy before the next checkpoint, or does not hold on to it. `first` says that this is
        the message with which a client confirms its handshake: an id alone does not say whether it was used before.

        Raises:
            SessionOverError: Its end was heard of since it was found.
            TooManySessionsError: `max_live` sessions are held, or as many as their owner may have, and all are in use.
        """
        assert found.record is not None
        if self._backplane.has_heard(found.hash, 0, self.expiry(found.record)):
            raise SessionOverError
        session = self._live.get(found.hash)
        if session is None:
            self._make_room(found.record.owner)
            connection = SessionConnection(self.make_outbound(found.id, found.hash), found.id, found.record)
            session = LiveSession(found.id, found.hash, found.record, connection, self._backplane.worker, found.owner)
            self._live[found.hash] = session
            if self._limits.max_live_per_owner:
                self._of_owner.setdefault(found.record.owner, OrderedDict())[found.hash] = session
            self.counts.add(Count.CLAIMED if first else Count.BROUGHT_BACK)
            self.counts.add(Count.SESSIONS_NOW)
        session.owner, session.watch = found.owner, found.watch
        self.touch(session)
        return session

    def sessions(self) -> list[LiveSession]:
        """Return the sessions that are live here, the longest idle first."""
        return list(self._live.values())

    def live(self, digest: str) -> LiveSession | None:
        """Return the session of that hash if it is live here; for those who want to reach it, not to use it."""
        return self._live.get(digest)

    def touch(self, session: LiveSession) -> None:
        """Note that a session was used just now."""
        session.last_used = now()
        if session.hash in self._live:
            self._live.move_to_end(session.hash)
            if self._of_owner:
                self._of_owner[session.record.owner].move_to_end(session.hash)

    async def end(self, found: Found) -> None:
        """End a session, everywhere and for good.

        Raises:
            BackplaneUnavailableError: The other workers cannot be told; nothing was done.
        """
        assert found.record is not None
        await self._end(found.hash, self.expiry(found.record), Count.DELETED)

    async def end_by_hash(self, digest: str) -> None:
        """End the session of that hash, everywhere and for good, whether or not it is live here, or exists.

        Raises:
            BackplaneUnavailableError: The other workers cannot be told; nothing was done.
        """
        session = self._live.get(digest)
        # Without its record nobody knows when it was issued; no id that is out there outlives one issued now.
        until = self.expiry(session.record) if session is not None else self._clock() + self._limits.max_age
        await self._end(digest, until, Count.ENDED_BY_OPERATOR)

    async def _end(self, digest: str, until: float, how: Count) -> None:
        await self._backplane.revoke(digest, until)
        self.counts.add(how)
        await self._drop(digest)

    async def end_here(self, digest: str) -> None:
        """Let go of a session that was ended elsewhere."""
        await self._drop(digest)

    async def sweep(self) -> None:
        """Let the sessions hibernate that have been idle for longer than `idle_timeout`; end those that are too old."""
        horizon = now() - self._limits.idle_timeout
        idle: list[LiveSession] = []
        for session in self._live.values():
            if session.last_used > horizon:
                break
            idle.append(session)
        for session in idle:
            if self.expiry(session.record) <= self._clock():
                await self._expire(session.hash)
            elif session.busy:
                self.touch(session)
            else:
                await self._hibernate(session)
        await self._release_evicted()

    async def close(self) -> None:
        """Let go of everything: the process ends. Ids stay good wherever their key is."""
        for session in list(self._live.values()):
            await self._hibernate(session)
        await self._release_evicted()

    def _open(self, session_id: str) -> SessionRecord | None:
        packed = self._keys.open(session_id)
        return SessionRecord.unpack(packed) if packed is not None else None

    def expiry(self, record: SessionRecord) -> float:
        """Return when a session ends by itself (wall clock, seconds)."""
        return record.issued + self._limits.max_age

    def _make_room(self, owner: str) -> None:
        """Put the longest idle session away if a cap is reached: one of the owner's own, if it is the owner's cap."""
        own = self._of_owner.get(owner)
        if own is not None and len(own) >= self._limits.max_live_per_owner:
            self._evict(own)
        elif len(self._live) >= self._limits.max_live:
            self._evict(self._live)

    def _evict(self, among: OrderedDict[str, LiveSession]) -> None:
        for session in _longest_idle(among):
            if not session.busy:
                self._take(session.hash)
                if session.connection.has_clean_up:
                    self._evicted.append(session.connection)
                self.counts.add(Count.HIBERNATED)
                return
        raise TooManySessionsError

    def _take(self, digest: str) -> LiveSession | None:
        """Stop holding a session, and return it if it was held."""
        session = self._live.pop(digest, None)
        if session is not None:
            self.counts.add(Count.SESSIONS_NOW, -1)
            own = self._of_owner.get(session.record.owner)
            if own is not None:
                del own[digest]
                if not own:
                    del self._of_owner[session.record.owner]
        return session

    async def _release_evicted(self) -> None:
        while self._evicted:
            await self._evicted.pop().clean_up()

    async def _hibernate(self, session: LiveSession) -> None:
        if self._take(session.hash) is not None:
            self.counts.add(Count.HIBERNATED)
            await session.connection.clean_up()

    async def _expire(self, digest: str) -> None:
        if digest in self._live:
            self.counts.add(Count.EXPIRED)
        await self._drop(digest)

    async def _drop(self, digest: str) -> None:
        """Let go of a session that is over, and of what was logged for it."""
        session = self._take(digest)
        try:
            await self._backplane.forget(digest)
        except BackplaneUnavailableError:
            log.info("what a session left on the backplane is left to run out", session=digest[:12])
        if session is not None:
            session.end()
            await session.connection.clean_up()


def _longest_idle(sessions: OrderedDict[str, LiveSession]) -> Iterator[LiveSession]:
    """Give each session, the longest idle first; the next one to look need not look at these again."""
    for _ in range(len(sessions)):
        session = next(iter(sessions.values()))
        yield session
        sessions.move_to_end(session.hash)


def hash_of(session_id: str) -> str:
    """Return what stands for an id in logs and on the backplane. The id itself is a credential, and stays out."""
    return hashlib.blake2b(session_id.encode("ascii"), digest_size=16).hexdigest()
