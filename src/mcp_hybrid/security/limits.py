"""Admission: what one caller, and all of them together, may hold of the server at a time, and how fast they may ask.

Pure bookkeeping, no I/O; the clock is passed in. What a request has taken is noted on its ticket, and all of it is
given back when it leaves, however it ends. A refused request takes nothing.

    arrive   the rate, and a place among those whose body is being read
    start    that place for one among those that are answered: a request, or each of a batch
    stream   that place for one among the streams that have no end of their own
    pass_by  that place for nothing: answers, notifications and the end of a session are what a running call may be
             waiting for, so that a caller at its limit can always go on to the end

The caller is the owner; where nobody is authenticated, it is the client's address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Network, ip_address
from typing import TYPE_CHECKING, Final, TypeAlias

from mcp_types import RequestId

from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.security.owner import ANONYMOUS, Owner

if TYPE_CHECKING:
    from mcp_hybrid.security.rates import Rates

Caller: TypeAlias = Owner | str

REQUEST_RETRY: Final = 1
"""Seconds after which a request may be tried again. Most are done by then, and nobody knows about the others."""
STREAM_RETRY: Final = 10
"""The same for a stream, which ends when its client goes."""
READING_AT_LEAST: Final = 16
"""Bodies that may be read at a time, however few requests may run: an answer must not miss its turn."""
_SHARED_PREFIX: Final = 64
"""Bits of an IPv6 address that stand for one customer; it chooses the others as it likes."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is admitted. 0 and None: no limit."""

    requests: int = 0
    requests_per_owner: int = 0
    streams_per_owner: int = 0
    rate_per_owner: tuple[int, int] | None = None
    """So many requests in so many seconds."""


@dataclass(slots=True, eq=False)
class Ticket:
    """What one request has taken."""

    caller: Caller
    reading: int = 0
    running: int = 0
    stream: object = None


@dataclass(slots=True)
class _Held:
    """What the requests of one caller, or of all, hold now."""

    reading: int = 0
    running: int = 0
    streams: dict[object, int] = field(default_factory=dict)
    """How many requests hold each stream: for a moment two, where one replaces the other."""

    def __bool__(self) -> bool:
        return bool(self.reading or self.running or self.streams)


class Admission:
    """The books of one process."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float]) -> None:
        """Begin with nobody holding anything. `clock` gives seconds and never goes back."""
        self._bounds = bounds
        self._held: dict[Caller, _Held] = {}
        self._all = _Held()
        self._rates = _make_rates(*bounds.rate_per_owner, clock) if bounds.rate_per_owner is not None else None

    @property
    def idle(self) -> bool:
        """Whether nobody holds anything."""
        return not (self._held or self._all)

    @staticmethod
    def ticket(owner: Owner, client: tuple[str, int] | None) -> Ticket:
        """Return the ticket of one request, which has taken nothing yet. `client` is the ASGI scope's."""
        return Ticket(owner if owner != ANONYMOUS else _caller_at(client[0] if client is not None else ""))

    def arrive(self, ticket: Ticket, *, has_body: bool, in_session: bool) -> Fault | None:
        """Let a request in, or return its refusal. Nothing of its body has been read.

        Without a session it cannot be what a running call waits for, and need not be read for it to be known that there
        is no room. In a session it is read; as many bodies may be read at a time as requests may run.
        """
        fault = self._charge(ticket, 1, None)
        if fault is not None or not has_body:
            return fault
        held = self._held.get(ticket.caller, _NOTHING)
        cause = self._over(held.reading, self._all.reading, 1, at_least=READING_AT_LEAST)
        if cause is None and not in_session:
            cause = self._over(held.running, self._all.running, 1)
        if cause is not None:
            return _busy(cause, None)
        self._book(ticket, reading=1)
        return None

    def pass_by(self, ticket: Ticket) -> None:
        """Let go on what takes no place among the requests."""
        self._book(ticket)

    def start(self, ticket: Ticket, calls: int, request_id: RequestId | None) -> Fault | None:
        """Let a request be answered, or a batch of so many, or return the refusal."""
        self._book(ticket)
        held = self._held.get(ticket.caller, _NOTHING)
        cause = self._over(held.running, self._all.running, calls)
        if cause is not None:
            possible = self._over(0, 0, calls) is None
            return _busy(cause, request_id) if possible else Fault(cause, _NEVER, request_id)
        if calls > 1 and (fault := self._charge(ticket, calls - 1, request_id)) is not None:
            return fault
        self._book(ticket, running=calls)
        return None

    def stream(self, ticket: Ticket, key: object, request_id: RequestId | None) -> Fault | None:
        """Let a stream be opened, or return the refusal. One that replaces another has the same `key`; None: a new one.

        Raises nothing.
        """
        self._book(ticket)
        limit = self._bounds.streams_per_owner
        if not limit:
            return None
        streams = self._held.get(ticket.caller, _NOTHING).streams
        if key not in streams and len(streams) >= limit:
            words = f"You have {limit} streams open, which is as many as one caller may have. Close one first."
            return Fault(Cause.TOO_MANY_STREAMS, words, request_id, headers=_retry_after(STREAM_RETRY))
        self._book(ticket, stream=key if key is not None else ticket)
        return None

    def leave(self, ticket: Ticket) -> None:
        """Take back all that a request has taken."""
        self._book(ticket)

    def _charge(self, ticket: Ticket, count: int, request_id: RequestId | None) -> Fault | None:
        wait = self._rates.take(ticket.caller, count) if self._rates is not None else 0
        if wait == 0:
            return None
        if wait is None:
            return Fault(Cause.RATE_EXCEEDED, _NEVER, request_id)
        words = f"You ask more often than one caller may. Wait for {wait} s."
        return Fault(Cause.RATE_EXCEEDED, words, request_id, headers=_retry_after(wait))

    def _over(self, own: int, everybody: int, count: int, *, at_least: int = 0) -> Cause | None:
        """Return why so many more may not come to those there are, if they may not."""
        for limit, there, cause in (
            (self._bounds.requests_per_owner, own, Cause.OWNER_BUSY),
            (self._bounds.requests, everybody, Cause.REQUESTS_BUSY),
        ):
            if limit and there + count > max(limit, at_least):
                return cause
        return None

    def _book(self, ticket: Ticket, reading: int = 0, running: int = 0, stream: object = None) -> None:
        """Change what a request holds to this."""
        held = self._held.setdefault(ticket.caller, _Held())
        for books in (held, self._all):
            books.reading += reading - ticket.reading
            books.running += running - ticket.running
        if ticket.stream is not None:
            held.streams[ticket.stream] -= 1
            if not held.streams[ticket.stream]:
                del held.streams[ticket.stream]
        if stream is not None:
            held.streams[stream] = held.streams.get(stream, 0) + 1
        ticket.reading, ticket.running, ticket.stream = reading, running, stream
        if not held:
            del self._held[ticket.caller]


def _make_rates(count: int, seconds: int, clock: Callable[[], float]) -> Rates:
    from mcp_hybrid.security.rates import Rates  # noqa: PLC0415 - its library is not loaded for those who set no rate

    return Rates(count, seconds, clock)


_NOTHING: Final = _Held()
_NEVER: Final = "The batch has more requests than one caller may send at a time. Send them in smaller batches."
_WORDS: Final = {
    Cause.OWNER_BUSY: "As many of your requests are being answered as one caller may have at a time.",
    Cause.REQUESTS_BUSY: "The server is answering as many requests as it takes at a time.",
}


def _busy(cause: Cause, request_id: RequestId | None) -> Fault:
    return Fault(cause, f"{_WORDS[cause]} Try again in a moment.", request_id, headers=_retry_after(REQUEST_RETRY))


def _retry_after(seconds: int) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"retry-after", b"%d" % seconds),)


@lru_cache(maxsize=1024)
def _caller_at(address: str) -> str:
    """Return whom an address stands for: an IPv4 address for itself, an IPv6 address for its network of 64 bits."""
    try:
        known = ip_address(address.partition("%")[0])
    except ValueError:
        return address  # a socket's path, or what a proxy made up
    if known.version == 4:
        return str(known)
    if known.ipv4_mapped is not None:
        return str(known.ipv4_mapped)
    return str(IPv6Network((int(known), _SHARED_PREFIX), strict=False))
