"""What an operator chooses about routing: three settings with closed sets of values."""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """Which ways of serving the endpoint offers (design: "Words")."""

    HYBRID = "hybrid"
    """Each request decides: no session id is stateless, a session id is attached to its session."""
    STATELESS = "stateless"
    """No sessions at all; a session id that is sent is ignored."""
    STATEFUL = "stateful"
    """Sessions only; a request without an id is refused, as the SDK's stateful server does."""


class ProgressPolicy(StrEnum):
    """Which requests that sent a progress token are served their progress."""

    SESSION = "session"
    """Handshake-era requests inside a session, and every 2026-07-28 request."""
    ALWAYS = "always"
    """Also session-less requests that can read an event stream; log messages then go with their answers, too."""
    OFF = "off"
    """None."""


class UnknownSession(StrEnum):
    """What a POST with a session id that no key opens, or that is too old, gets in hybrid mode."""

    REJECT = "reject"
    """404, so that a client which follows the specification starts a new session."""
    STATELESS = "stateless"
    """Served without a session, and told so, for clients that never start a new one."""
