"""Admission: what one caller, and all of them together, may hold of the server at a time, and how fast they may ask.

Pure bookkeeping, no I/O; the clock is passed in. What a request has taken is noted on its ticket, and all of it is
given back when it leaves, however it ends. A refused request takes nothing.

    arrive   the rate, and a place among those whose body is being read
    start    that place for one among those that are answered: a request, or each of a batch
    stream   that place for one among the streams that have no end of their own
    weigh    the bytes of its body, if it is large: from their arrival until it leaves
    work     more of the rate, if its body is much work to read
    pass_by  that place for nothing: answers, notifications and the end of a session are what a running call may be
             waiting for, so that a caller at its limit can always go on to the end

The caller is the owner; where nobody is authenticated, it is the client's address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Network, ip_address
from typing import Final, TypeAlias

from mcp_types import RequestId

from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.security.owner import ANONYMOUS, Owner
from mcp_hybrid.security.rates import Rates

Caller: TypeAlias = Owner | str

REQUEST_RETRY: Final = 1
"""Seconds after which a request may be tried again. Most are done by then, and nobody knows about the others."""
STREAM_RETRY: Final = 10
"""The same for a stream, which ends when its client goes."""
READING_AT_LEAST: Final = 16
"""Bodies that may be read at a time, however few requests may run: an answer must not miss its turn."""
LIGHT: Final = 64 * 1024
"""Bytes of a body that is not weighed: as many of those as requests may run are no burden."""
_SHARED_PREFIX: Final = 64
"""Bits of an IPv6 address that stand for one customer; it chooses the others as it likes."""
_LONGEST_ADDRESS: Final = 128
"""Characters by which callers without an IP address are told apart."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is admitted. 0 and None: no limit."""

    requests: int = 0
    requests_per_owner: int = 0
    streams_per_owner: int = 0
    rate_per_owner: tuple[int, int] | None = None
    """So many requests in so many seconds."""
    bodies: int = 0
    bodies_per_owner: int = 0
    """Bytes."""


@dataclass(slots=True, eq=False)
class Ticket:
    """What one request has taken."""

    caller: Caller
    reading: int = 0
    running: int = 0
    stream: object = None
    weight: int = 0
    """Bytes of its body, if it is large."""
    held: _Held | None = None
    """The books of its caller, while it is in."""


@dataclass(slots=True)
class _Held:
    """What the requests of one caller, or of all, hold now."""

    inside: int = 0
    """Requests that have these books. They are kept while there is one."""
    reading: int = 0
    running: int = 0
    weight: int = 0
    streams: dict[object, int] = field(default_factory=dict)
    """How many requests hold each stream: for a moment two, where one replaces the other."""


class Admission:
    """The books of one process."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float]) -> None:
        """Begin with nobody holding anything. `clock` gives seconds and never goes back."""
        self._bounds = bounds
        self._held: dict[Caller, _Held] = {}
        self._all = _Held()
        self._rates = Rates(*bounds.rate_per_owner, clock) if bounds.rate_per_owner is not None else None

    @property
    def idle(self) -> bool:
        """Whether nobody holds anything."""
        return not self._held

    @staticmethod
    def ticket(owner: Owner, client: tuple[str, int] | None) -> Ticket:
        """Return the ticket of one request, which has taken nothing yet. `client` is the ASGI scope's."""
        return Ticket(caller_of(owner, client))

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
        self._enter(ticket).reading += 1
        self._all.reading += 1
        ticket.reading = 1
        return None

    def pass_by(self, ticket: Ticket) -> None:
        """Let go on what takes no place among the requests."""
        self._release(ticket)

    def start(self, ticket: Ticket, calls: int, request_id: RequestId | None) -> Fault | None:
        """Let a request be answered, or a batch of so many, or return the refusal."""
        self._release(ticket)
        held = self._enter(ticket)
        cause = self._over(held.running, self._all.running, calls)
        if cause is not None:
            possible = self._over(0, 0, calls) is None
            return _busy(cause, request_id) if possible else Fault(cause, _NEVER, request_id)
        if calls > 1 and (fault := self._charge(ticket, calls - 1, request_id)) is not None:
            return fault
        held.running += calls
        self._all.running += calls
        ticket.running = calls
        return None

    def stream(self, ticket: Ticket, key: object, request_id: RequestId | None) -> Fault | None:
        """Let a stream be opened, or return the refusal. One that replaces another has the same `key`; None: a new one.

        Raises nothing.
        """
        self._release(ticket)
        limit = self._bounds.streams_per_owner
        if not limit:
            return None
        streams = self._enter(ticket).streams
        if key not in streams and len(streams) >= limit:
            words = f"You have {limit} streams open, which is as many as one caller may have. Close one first."
            return Fault(Cause.TOO_MANY_STREAMS, words, request_id, headers=_retry_after(STREAM_RETRY))
        ticket.stream = key if key is not None else ticket
        streams[ticket.stream] = streams.get(ticket.stream, 0) + 1
        return None

    def weigh(self, ticket: Ticket, size: int) -> Fault | None:
        """Let a request hold so many bytes of its body, or return the refusal. It keeps what it holds until it leaves.

        One body passes whatever its size, if there is no other: how large one may be has a limit of its own.
        """
        held = self._enter(ticket)
        for limit, weight, cause in (
            (self._bounds.bodies_per_owner, held.weight, Cause.OWNER_BUSY),
            (self._bounds.bodies, self._all.weight, Cause.REQUESTS_BUSY),
        ):
            others = weight - ticket.weight
            if limit and others and others + size > limit:
                return Fault(cause, _HEAVY[cause], headers=_retry_after(REQUEST_RETRY))
        held.weight += size - ticket.weight
        self._all.weight += size - ticket.weight
        ticket.weight = size
        return None

    def work(self, ticket: Ticket, count: int) -> Fault | None:
        """Charge the rate with a body that is as much work to read as so many requests, or return the refusal.

        At most half of what goes at once is charged: whatever the rate, a caller that has waited gets its body read.
        """
        if self._bounds.rate_per_owner is None:
            return None
        return self._charge(ticket, min(count, self._bounds.rate_per_owner[0] // 2), None)

    def leave(self, ticket: Ticket) -> None:
        """Take back all that a request has taken."""
        held = ticket.held
        if held is None:
            return
        self._release(ticket)
        held.weight -= ticket.weight
        self._all.weight -= ticket.weight
        ticket.weight, ticket.held = 0, None
        held.inside -= 1
        if not held.inside:
            del self._held[ticket.caller]

    def _enter(self, ticket: Ticket) -> _Held:
        """Return the books of a request's caller. They are its own until it leaves."""
        held = ticket.held
        if held is None:
            held = self._held.get(ticket.caller)
            if held is None:
                held = self._held[ticket.caller] = _Held()
            held.inside += 1
            ticket.held = held
        return held

    def _release(self, ticket: Ticket) -> None:
        """Take back a request's place, whichever it is, but not the books and the weight of its body."""
        held = ticket.held
        if held is None:
            return
        if ticket.reading:
            held.reading -= ticket.reading
            self._all.reading -= ticket.reading
        if ticket.running:
            held.running -= ticket.running
            self._all.running -= ticket.running
        if ticket.stream is not None:
            held.streams[ticket.stream] -= 1
            if not held.streams[ticket.stream]:
                del held.streams[ticket.stream]
        ticket.reading, ticket.running, ticket.stream = 0, 0, None

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


_NOTHING: Final = _Held()
_NEVER: Final = "The batch has more requests than one caller may send at a time. Send them in smaller batches."
_HEAVY: Final = {
    Cause.OWNER_BUSY: "The bodies of your requests are as large in all as one caller's may be. Try again in a moment.",
    Cause.REQUESTS_BUSY: "The bodies of all requests are as large as the server takes. Try again in a moment.",
}
_WORDS: Final = {
    Cause.OWNER_BUSY: "As many of your requests are being answered as one caller may have at a time.",
    Cause.REQUESTS_BUSY: "The server is answering as many requests as it takes at a time.",
}


def _busy(cause: Cause, request_id: RequestId | None) -> Fault:
    return Fault(cause, f"{_WORDS[cause]} Try again in a moment.", request_id, headers=_retry_after(REQUEST_RETRY))


def _retry_after(seconds: int) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"retry-after", b"%d" % seconds),)


def caller_of(owner: Owner, client: tuple[str, int] | None) -> Caller:
    """Return who asks: the owner, or without authentication the address. `client` is the ASGI scope's."""
    return owner if owner != ANONYMOUS else _caller_at(client[0] if client is not None else "")


@lru_cache(maxsize=1024)
def _caller_at(address: str) -> str:
    """Return whom an address stands for: an IPv4 address for itself, an IPv6 address for its network of 64 bits."""
    try:
        known = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:_LONGEST_ADDRESS]  # a socket's path, or what a proxy made up
    if known.version == 4:
        return str(known)
    if known.ipv4_mapped is not None:
        return str(known.ipv4_mapped)
    return str(IPv6Network((int(known), _SHARED_PREFIX), strict=False))
