"""The decision table: which route a request takes. Pure: no I/O, no clock.

    (mode, request head, parsed body, session lookup result) -> Route | Fault

The rules, in words (design, "The decision table"):

1. Nothing but a session id attaches a request to a session; nothing but its absence makes it stateless.
2. An id that is sent is either right or refused. All wrong ids, whatever is wrong with them, look the same.
3. `initialize` never joins a session: it is offered a fresh one, and an id it carries is left alone.
4. A modern request has no session. Whatever id it carries is not read.
5. A mode narrows what is offered. It never changes what a thing that is offered does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto
from functools import lru_cache
from typing import Final, TypeAlias

from mcp_types import RequestId
from mcp_types.version import LATEST_MODERN_VERSION, is_version_at_least

from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.routing.era import DEFAULT_VERSION, Era, decide_era, version_mismatch
from mcp_hybrid.routing.head import Head
from mcp_hybrid.routing.message import ABSENT, Batch, Message, Notification, Request, envelope_version
from mcp_hybrid.routing.modes import Mode, UnknownSession


class RouteName(StrEnum):
    """What one request got, as the answer header `mcp-hybrid-route` names it."""

    STATELESS = "stateless"
    SESSION = "session"
    MODERN = "modern"


class Kind(Enum):
    """What a request is, as far as routing cares."""

    GET = auto()
    RESUME = auto()
    """A GET with `Last-Event-ID`."""
    DELETE = auto()
    INITIALIZE = auto()
    REQUEST = auto()
    NOTIFICATION = auto()
    RESPONSE = auto()


class Standing(Enum):
    """What the lookup says of the session id that was sent."""

    NONE = auto()
    """No id was sent, or nobody needed to look."""
    VALID = auto()
    UNKNOWN = auto()
    """No key opens it."""
    EXPIRED = auto()
    """Older than `sessions.max_age`."""
    ENDED = auto()
    """Ended by DELETE or by an operator."""
    FOREIGN = auto()
    """Another owner's."""


class Action(Enum):
    """What is to be done with a request that is served."""

    OFFER_SESSION = auto()
    INITIALIZE = auto()
    """Answer the handshake, offer nothing."""
    CALL = auto()
    """Run a request on its route."""
    ACCEPT = auto()
    """202, and that is all."""
    NOTIFY = auto()
    """Hand a notification to its session."""
    ANSWER = auto()
    """Hand a response to the question it answers."""
    OPEN_STREAM = auto()
    RESUME_STREAM = auto()
    END_SESSION = auto()
    BATCH = auto()
    """Each part by its own action."""


@dataclass(frozen=True, slots=True)
class Route:
    """How a request is served."""

    name: RouteName
    action: Action
    version: str
    """The protocol version in effect."""
    session_lost: bool = False
    """An id was sent that no longer stands, and `unknown_session` lets the request through without it."""
    parts: tuple[Route, ...] = ()
    """The routes of a batch's messages, in order."""


class _Sent(Enum):
    """The lookup's results as the table tells them apart."""

    NONE = auto()
    VALID = auto()
    WRONG = auto()


_ALLOW_POST: Final = ((b"allow", b"POST"),)
_NOT_ALLOWED: Final = Fault(
    Cause.METHOD_NOT_ALLOWED,
    "Without a session there is only POST. Send initialize, then echo the mcp-session-id of its answer.",
    headers=_ALLOW_POST,
)
_REQUIRED: Final = Fault(
    Cause.SESSION_REQUIRED,
    "This server needs a session: send initialize, then echo the mcp-session-id of its answer.",
)
_GONE: Final = Fault(
    Cause.SESSION_UNKNOWN,
    "Session not found: it has ended, has expired or never existed. Send initialize to start a new one.",
)
_NO_QUESTION: Final = Fault(
    Cause.UNEXPECTED_RESPONSE,
    "A response without a session answers nothing: this server asks questions in sessions only.",
)

_STATELESS, _SESSION = RouteName.STATELESS, RouteName.SESSION
_Cell: TypeAlias = tuple[RouteName, Action] | Fault

_OFFER: Final[_Cell] = (_SESSION, Action.OFFER_SESSION)
_HANDSHAKE: Final[_Cell] = (_STATELESS, Action.INITIALIZE)
_CALL_ALONE: Final[_Cell] = (_STATELESS, Action.CALL)
_ACCEPT_ALONE: Final[_Cell] = (_STATELESS, Action.ACCEPT)
_OPEN: Final[_Cell] = (_SESSION, Action.OPEN_STREAM)
_RESUME: Final[_Cell] = (_SESSION, Action.RESUME_STREAM)
_END: Final[_Cell] = (_SESSION, Action.END_SESSION)
_CALL: Final[_Cell] = (_SESSION, Action.CALL)
_NOTIFY: Final[_Cell] = (_SESSION, Action.NOTIFY)
_ANSWER: Final[_Cell] = (_SESSION, Action.ANSWER)

_MODES: Final = (Mode.STATELESS, Mode.HYBRID, Mode.STATEFUL)

# A table is read by its columns.
# fmt: off
_LEGACY: Final[Mapping[tuple[Kind, _Sent], tuple[_Cell, _Cell, _Cell]]] = {
    #                                  stateless       hybrid          stateful
    (Kind.GET,           _Sent.NONE):  (_NOT_ALLOWED,  _NOT_ALLOWED,   _REQUIRED),
    (Kind.GET,           _Sent.VALID): (_NOT_ALLOWED,  _OPEN,          _OPEN),
    (Kind.GET,           _Sent.WRONG): (_NOT_ALLOWED,  _GONE,          _GONE),
    (Kind.RESUME,        _Sent.NONE):  (_NOT_ALLOWED,  _NOT_ALLOWED,   _REQUIRED),
    (Kind.RESUME,        _Sent.VALID): (_NOT_ALLOWED,  _RESUME,        _RESUME),
    (Kind.RESUME,        _Sent.WRONG): (_NOT_ALLOWED,  _GONE,          _GONE),
    (Kind.DELETE,        _Sent.NONE):  (_NOT_ALLOWED,  _NOT_ALLOWED,   _REQUIRED),
    (Kind.DELETE,        _Sent.VALID): (_NOT_ALLOWED,  _END,           _END),
    (Kind.DELETE,        _Sent.WRONG): (_NOT_ALLOWED,  _GONE,          _GONE),
    (Kind.INITIALIZE,    _Sent.NONE):  (_HANDSHAKE,    _OFFER,         _OFFER),
    (Kind.INITIALIZE,    _Sent.VALID): (_HANDSHAKE,    _OFFER,         _OFFER),
    (Kind.INITIALIZE,    _Sent.WRONG): (_HANDSHAKE,    _OFFER,         _OFFER),
    (Kind.REQUEST,       _Sent.NONE):  (_CALL_ALONE,   _CALL_ALONE,    _REQUIRED),
    (Kind.REQUEST,       _Sent.VALID): (_CALL_ALONE,   _CALL,          _CALL),
    (Kind.REQUEST,       _Sent.WRONG): (_CALL_ALONE,   _GONE,          _GONE),
    (Kind.NOTIFICATION,  _Sent.NONE):  (_ACCEPT_ALONE, _ACCEPT_ALONE,  _REQUIRED),
    (Kind.NOTIFICATION,  _Sent.VALID): (_ACCEPT_ALONE, _NOTIFY,        _NOTIFY),
    (Kind.NOTIFICATION,  _Sent.WRONG): (_ACCEPT_ALONE, _GONE,          _GONE),
    (Kind.RESPONSE,      _Sent.NONE):  (_NO_QUESTION,  _NO_QUESTION,   _NO_QUESTION),
    (Kind.RESPONSE,      _Sent.VALID): (_NO_QUESTION,  _ANSWER,        _ANSWER),
    (Kind.RESPONSE,      _Sent.WRONG): (_NO_QUESTION,  _GONE,          _GONE),
}
# fmt: on

_ONE_MESSAGE: Final = Fault(
    Cause.NOT_A_MESSAGE, "At 2026-07-28 the body is one request or notification: no batch, and no response."
)
_POST_ONLY: Final = Fault(Cause.METHOD_NOT_ALLOWED, "At 2026-07-28 there is only POST.", headers=_ALLOW_POST)

_MODERN: Final[Mapping[Kind, Action | Fault]] = {
    Kind.GET: _POST_ONLY,
    Kind.RESUME: _POST_ONLY,
    Kind.DELETE: _POST_ONLY,
    Kind.INITIALIZE: Action.CALL,  # removed at this revision: the kernel answers -32601, the status table 404
    Kind.REQUEST: Action.CALL,
    Kind.NOTIFICATION: Action.ACCEPT,
    Kind.RESPONSE: _ONE_MESSAGE,
}

_BATCHES_UNTIL: Final = "2025-03-26"
"""The one revision of Streamable HTTP that has batches (requirements P1 to P3)."""

_SENT: Final[Mapping[Standing, _Sent]] = {
    Standing.NONE: _Sent.NONE,
    Standing.VALID: _Sent.VALID,
    Standing.UNKNOWN: _Sent.WRONG,
    Standing.EXPIRED: _Sent.WRONG,
    Standing.ENDED: _Sent.WRONG,
    Standing.FOREIGN: _Sent.WRONG,
}

_FORGIVEN: Final = frozenset({Standing.UNKNOWN, Standing.EXPIRED})
"""Ids that `unknown_session = "stateless"` overlooks. One that was ended, or is another's, is refused all the same."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """The result of looking a session id up."""

    standing: Standing = Standing.NONE
    version: str | None = None
    """The session's protocol version, where the id is valid."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator configured about routing."""

    mode: Mode = Mode.HYBRID
    unknown_session: UnknownSession = UnknownSession.REJECT


def needs_lookup(policy: Policy, era: Era, head: Head, message: Message | Batch | None) -> bool:
    """Whether a request's session id matters at all, and so is worth opening."""
    if head.session_id is None or era is Era.MODERN or policy.mode is Mode.STATELESS:
        return False
    return not _is_initialize(message)


def era_of(head: Head, message: Message | Batch | None) -> Era | Fault:
    """Return the era of a request, or its refusal. `message` is None for a GET or DELETE."""
    era = decide_era(head.protocol_version, envelope_version(message), initialize=_is_initialize(message))
    return replace(era, request_id=_request_id(message)) if isinstance(era, Fault) else era


def decide(policy: Policy, era: Era, head: Head, message: Message | Batch | None, lookup: Lookup) -> Route | Fault:
    """Decide how a request is served. `message` is None for a GET or DELETE."""
    if era is Era.MODERN:
        return _decide_modern(head, message)
    if isinstance(message, Batch):
        return _decide_batch(policy, head, message, lookup)
    kind = _kind(head, message)
    lost = _overlooked(policy, kind, lookup.standing)
    sent = _Sent.NONE if lost else _SENT[lookup.standing]
    cell = _LEGACY[kind, sent][_MODES.index(policy.mode)]
    if isinstance(cell, Fault):
        return replace(cell, request_id=_request_id(message))
    name, action = cell
    return _route(name, action, _effective_version(head, lookup), lost)


@lru_cache(maxsize=256)  # few differ, and they are made for each request
def _route(name: RouteName, action: Action, version: str, session_lost: bool) -> Route:
    return Route(name, action, version, session_lost)


def _decide_modern(head: Head, message: Message | Batch | None) -> Route | Fault:
    outcome = _ONE_MESSAGE if isinstance(message, Batch) else _MODERN[_kind(head, message)]
    if isinstance(outcome, Fault):
        return replace(outcome, request_id=_request_id(message))
    if outcome is Action.ACCEPT and envelope_version(message) not in (ABSENT, head.protocol_version):
        return version_mismatch()  # of a request it is the classifier's to say
    return Route(RouteName.MODERN, outcome, head.protocol_version or LATEST_MODERN_VERSION)


def _decide_batch(policy: Policy, head: Head, batch: Batch, lookup: Lookup) -> Route | Fault:
    """Decide a batch: as its messages, all or nothing."""
    version = _effective_version(head, lookup)
    is_known = lookup.standing in (Standing.NONE, Standing.VALID)  # of a wrong id, that it is wrong matters more
    if is_known and is_version_at_least(version, _BATCHES_UNTIL) and version != _BATCHES_UNTIL:
        return Fault(Cause.BATCH_NOT_ALLOWED, f"Protocol {version} has no batches: send one message a request.")
    if any(_is_initialize(message) for message in batch.messages):
        return Fault(Cause.BATCH_NOT_ALLOWED, "initialize must not be part of a batch.")
    parts: list[Route] = []
    for message in batch.messages:
        part = decide(policy, Era.LEGACY, head, message, lookup)
        if isinstance(part, Fault):
            return replace(part, request_id=None)
        parts.append(part)
    return replace(parts[0], action=Action.BATCH, parts=tuple(parts))


def gone(message: Message | Batch | None) -> Fault:
    """Return the refusal of a session that is over, for whoever learns of it after the decision."""
    return replace(_GONE, request_id=_request_id(message))


def _kind(head: Head, message: Message | None) -> Kind:
    if isinstance(message, Request):
        return Kind.INITIALIZE if message.method == "initialize" else Kind.REQUEST
    if message is not None:
        return Kind.NOTIFICATION if isinstance(message, Notification) else Kind.RESPONSE
    if head.method == "DELETE":
        return Kind.DELETE
    return Kind.GET if head.last_event_id is None else Kind.RESUME


def _is_initialize(message: Message | Batch | None) -> bool:
    return isinstance(message, Request) and message.method == "initialize"


def _request_id(message: Message | Batch | None) -> RequestId | None:
    return message.id if isinstance(message, Request) else None


def _overlooked(policy: Policy, kind: Kind, standing: Standing) -> bool:
    """Whether a wrong id is let pass: in hybrid mode only (a stateful server has no other way to serve), POST only."""
    return (
        standing in _FORGIVEN
        and policy.unknown_session is UnknownSession.STATELESS
        and policy.mode is Mode.HYBRID
        and kind not in (Kind.GET, Kind.RESUME, Kind.DELETE)
    )


def _effective_version(head: Head, lookup: Lookup) -> str:
    """Return the session's version, else the header's, else the oldest of Streamable HTTP."""
    return lookup.version or head.protocol_version or DEFAULT_VERSION
