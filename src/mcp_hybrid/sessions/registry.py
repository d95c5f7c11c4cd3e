"""Which sessions are live here, and what a session id is worth.

offered       `offer` seals a record. Nothing is kept.
live          `use` claims it, or brings it back, and holds it while the request that uses it runs.
hibernating   `sweep` lets go of the idle ones. Their ids are all that is left, and all that is needed.
ended         `end`, or too old. The backplane remembers until the id would have expired.

While a method awaits, a session may be put away and brought back under the same hash, as another object. So what is
decided about a session before a checkpoint is done after it only to that object, while it is still the one held and is
not busy by then. An end is different: it is the id that ends, and with it whatever is live under its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Final

import anyio
import structlog
from anyio.lowlevel import checkpoint
from mcp.shared.dispatcher import Outbound
from mcp_types import InitializeRequestParams, RequestId

from mcp_hybrid.backplane import Backplane, BackplaneUnavailableError
from mcp_hybrid.clock import now
from mcp_hybrid.counts import Count, Counts
from mcp_hybrid.routing.table import Standing
from mcp_hybrid.runtime.program import IN_PLACE, Program
from mcp_hybrid.security.owner import ANONYMOUS, Owner
from mcp_hybrid.sessions.cleanup import CleanUpQueue
from mcp_hybrid.sessions.connection import SessionConnection
from mcp_hybrid.sessions.held import HeldSessions, TooManySessionsError
from mcp_hybrid.sessions.live import LiveSession, Reservation
from mcp_hybrid.sessions.questions import QuestionBounds
from mcp_hybrid.sessions.record import SessionRecord
from mcp_hybrid.sessions.seal import KeyRing

log = structlog.get_logger("mcp_hybrid")

_SWEPT_AT_ONCE: Final = 500
"""Sessions that a sweep looks at before it lets others have their turn: less than a millisecond's worth."""

_CLEAN_UP_TIME: Final = 6.0
"""Seconds for a clean-up on the program's event loop: a little longer than what it may take by itself."""

MakeOutbound = Callable[[str, str], Outbound]
"""Makes what a session sends by outside of any request, from its id and its hash."""


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
    max_questions: int = 1000
    max_questions_per_session: int = 32


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
        self.counts = counts or Counts()
        """What became of sessions since the start."""
        self.program: Program = IN_PLACE
        """Where clean-ups run, which are the application's code."""
        self.clean_ups = CleanUpQueue()
        """Left by sessions that nobody waits for; its `run` must run while the registry is used."""
        self._held = HeldSessions(
            limits.max_live,
            limits.max_live_per_owner,
            QuestionBounds(limits.max_questions_per_session, limits.max_questions),
            self.counts,
            self._released,
        )

    def __len__(self) -> int:
        """Return how many sessions hold memory."""
        return len(self._held)

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
        live = self._held.get(digest)
        record = live.record if live is not None else self._open(session_id)
        if record is None:
            return Found(Standing.UNKNOWN)
        if record.owner != owner.fingerprint:
            return Found(Standing.FOREIGN)
        return await self._look_up(session_id, digest, record, owner)

    async def recall(self, session_id: str) -> Found | None:
        """Return what an id is worth that is held by the application, which has no request of its owner's.

        None where the session is over.
        """
        digest = hash_of(session_id)
        live = self._held.get(digest)
        record = live.record if live is not None else self._open(session_id)
        if record is None:
            return None
        # Until its owner comes, no more is known of it than stands in the id.
        found = await self._look_up(session_id, digest, record, Owner(subject=record.owner))
        if found.standing is not Standing.VALID:
            return None
        live = self._held.get(digest)  # the owner may have come meanwhile
        return replace(found, owner=live.owner) if live is not None else found

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
        live = self._held.get(digest)
        ended = self._backplane.has_heard(digest, live.watch if live is not None else 0, expiry)
        return await self._backplane.is_revoked(digest, expiry) if ended is None else ended

    async def good_until(self, session_id: str) -> float | None:
        """Return when a session ends by itself (wall clock, seconds); None where it is over already.

        For an application that holds on to it: it is neither brought to life by this nor ended.
        """
        digest = hash_of(session_id)
        live = self._held.get(digest)
        record = live.record if live is not None else self._open(session_id)
        if record is None:
            return None
        expiry = self.expiry(record)
        return None if expiry <= self._clock() or await self._was_ended(digest, expiry) else expiry

    def use(self, found: Found, calls: Sequence[RequestId] = (), *, first: bool = False) -> Use:
        """Return a context in which the live session of a valid id is held, and these request ids are taken in it.

        It is entered without a checkpoint, and is the one way in which requests get at a session: from then on nothing
        puts the session away, and no other request gets the same ids. See `attach` for the rest.

            with registry.use(exchange.found, [request.id]) as session:
                ...

        Entering raises:
            DuplicateRequestError: A request with one of these ids is running in the session.
            SessionOverError, TooManySessionsError: As from `attach`.
        """
        return Use(self, found, calls, first=first)

    def attach(self, found: Found, *, first: bool = False) -> LiveSession:
        """Return the live session of a valid id, bringing it to life where it is not.

        It is not held: at the next checkpoint it may be put away. `first` says that this is the message with which a
        client confirms its handshake: an id alone does not say whether it was used before.

        Raises:
            SessionOverError: Its end was heard of since it was found.
            TooManySessionsError: `max_live` sessions are held, or as many as their owner may have, and all are in use;
                or too many that were put away wait for being cleaned up.
        """
        session = self._get(found, first=first)
        if not session.busy:
            self._held.became_idle(session)
        return session

    def _get(self, found: Found, *, first: bool) -> LiveSession:
        assert found.record is not None
        if self._backplane.has_heard(found.hash, 0, self.expiry(found.record)):
            raise SessionOverError
        session = self._held.get(found.hash)
        if session is None:
            session = self._bring_to_life(found, first=first)
        session.owner, session.watch, session.last_used = found.owner, found.watch, now()
        return session

    def _bring_to_life(self, found: Found, *, first: bool) -> LiveSession:
        record = found.record
        assert record is not None
        if self.clean_ups.full:
            raise TooManySessionsError
        evicted = self._held.to_evict(record.owner)
        if evicted is not None:
            self._hibernate(evicted)
        connection = SessionConnection(self.make_outbound(found.id, found.hash), found.id, record)
        worker = self._backplane.worker
        session = LiveSession(found.id, found.hash, record, connection, worker, found.owner, self._held)
        self._held.add(session)
        self.counts.add(Count.CLAIMED if first else Count.BROUGHT_BACK)
        return session

    def sessions(self) -> list[LiveSession]:
        """Return the sessions that are live here, the longest unused first."""
        return sorted(self._held.all(), key=lambda session: session.last_used)

    def live(self, digest: str) -> LiveSession | None:
        """Return the session of that hash if it is live here; for those who want to reach it, not to use it."""
        return self._held.get(digest)

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
        session = self._held.get(digest)
        # Without its record nobody knows when it was issued; no id that is out there outlives one issued now.
        until = self.expiry(session.record) if session is not None else self._clock() + self._limits.max_age
        await self._end(digest, until, Count.ENDED_BY_OPERATOR)

    async def _end(self, digest: str, until: float, how: Count) -> None:
        try:
            await self._backplane.revoke(digest, until)
        except BaseException:
            # Cancelled, it may have been told to the others all the same: the session must not go on here alone.
            if self._backplane.has_heard(digest, 0):
                self.end_here(digest)
            raise
        self.counts.add(how)
        await self._clear(digest, self._take(digest))

    def end_here(self, digest: str) -> None:
        """Let go of a session that was ended elsewhere, if it is live here. Its clean-up runs later."""
        session = self._take(digest)
        if session is not None:
            self.clean_ups.add(partial(self._clear, digest, session))

    async def sweep(self) -> None:
        """Let the sessions hibernate that have been idle for longer than `idle_timeout`; end those that are too old.

        Waits for none of their clean-ups. Pauses now and then, so that others get their turn among many sessions.
        """
        horizon, wall = now() - self._limits.idle_timeout, self._clock()
        for number, session in enumerate(self._held.all(), 1):
            if self.expiry(session.record) <= wall:
                if session in self._held:
                    self.counts.add(Count.EXPIRED)
                    self.end_here(session.hash)
            elif session.last_used <= horizon and not session.busy:
                self._hibernate(session)
            if number % _SWEPT_AT_ONCE == 0:
                await checkpoint()

    async def close(self) -> None:
        """Let go of everything: the process ends. Ids stay good wherever their key is.

        All clean-ups that have not run yet run beside each other, those of ended and evicted sessions too.
        """
        for session in self._held.all():
            self._hibernate(session)
        await self.clean_ups.finish()

    def _open(self, session_id: str) -> SessionRecord | None:
        packed = self._keys.open(session_id)
        return SessionRecord.unpack(packed) if packed is not None else None

    def expiry(self, record: SessionRecord) -> float:
        """Return when a session ends by itself (wall clock, seconds)."""
        return record.issued + self._limits.max_age

    def _hibernate(self, session: LiveSession) -> None:
        """Put a session away, if it is still the one held. Its clean-up runs later: nobody need wait for it."""
        if self._held.remove(session):
            self.counts.add(Count.HIBERNATED)
            self._clean_up_later(session)

    def _released(self, session: LiveSession) -> None:
        """Clean up what was pushed on the exit stack of a session that was over while it was being used."""
        self._clean_up_later(session)

    def _clean_up_later(self, session: LiveSession) -> None:
        if session.connection.has_clean_up:
            self.clean_ups.add(partial(self._clean_up, session.connection))

    async def _expire(self, digest: str) -> None:
        session = self._take(digest)
        if session is not None:
            self.counts.add(Count.EXPIRED)
        await self._clear(digest, session)

    def _take(self, digest: str) -> LiveSession | None:
        """Hold the session of that hash no longer, because it is over, and return it if it was held.

        Its calls and streams end before anything is awaited: whatever happens then, they do not outlive it.
        """
        session = self._held.get(digest)
        if session is not None:
            self._held.remove(session)
            session.end()
        return session

    async def _clear(self, digest: str, session: LiveSession | None) -> None:
        """Drop what was logged for a session that is over, and clean up after it if it was live here."""
        try:
            await self._backplane.forget(digest)
        except BackplaneUnavailableError:
            log.info("what a session left on the backplane is left to run out", session=digest[:12])
        finally:
            if session is not None:
                await self._clean_up(session.connection)

    async def _clean_up(self, connection: SessionConnection) -> None:
        """Clean up where the program runs. A clean-up bounds itself there, unless the program blocks its event loop."""
        if self.program.loop is None:
            await connection.clean_up()
        elif connection.has_clean_up:
            with anyio.move_on_after(_CLEAN_UP_TIME, shield=True) as scope:
                await self.program.run(connection.clean_up, "clean-up of a session")
            if scope.cancelled_caught:
                log.warning("the clean-up of a session was abandoned: the program blocks its event loop")


class Use:
    """One request's use of a session (`Registry.use`)."""

    __slots__ = ("_calls", "_first", "_found", "_registry", "_reserved", "_session")

    def __init__(self, registry: Registry, found: Found, calls: Sequence[RequestId], *, first: bool) -> None:
        self._registry = registry
        self._found = found
        self._calls = calls
        self._first = first
        self._session: LiveSession
        self._reserved: Mapping[RequestId, Reservation]

    def __enter__(self) -> LiveSession:
        """Hold the session and take the request ids. No checkpoint, and all or nothing."""
        session = self._registry._get(self._found, first=self._first)  # noqa: SLF001 - a part of it
        self._reserved = session.reserve(self._calls)
        session.hold()
        self._session = session
        return session

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give back those ids whose calls were never started, and let go of the session."""
        for request_id, reservation in self._reserved.items():
            self._session.finish_call(request_id, reservation)
        self._session.release()


def hash_of(session_id: str) -> str:
    """Return what stands for an id in logs and on the backplane. The id itself is a credential, and stays out."""
    return hashlib.blake2b(session_id.encode("ascii"), digest_size=16).hexdigest()


__all__ = [
    "Found",
    "MakeOutbound",
    "Registry",
    "SessionLimits",
    "SessionOverError",
    "TooManySessionsError",
    "Use",
    "hash_of",
]
