"""A tool's way to its session: `session_state(ctx)`, and `pin_session(ctx)` for what cannot be kept as state."""

from __future__ import annotations

from collections.abc import Callable

from mcp_hybrid.exchange.crossing import CrossingChannel
from mcp_hybrid.exchange.standalone import StandaloneChannel
from mcp_hybrid.sessions.connection import SessionConnection
from mcp_hybrid.sessions.state import SessionState, SessionStateError


def session_state(ctx: object) -> SessionState:
    """Return the state of the session that `ctx`, the context of any kind of server, belongs to.

    Raises:
        SessionStateError: The request is served without a session, or at 2026-07-28, which has none.
    """
    return _channel(
        ctx,
        "this request has no session, so nothing can be kept for its client: take an identifier as an argument of the "
        "tool, and keep the data under it",
    ).state


def pin_session(ctx: object) -> Callable[[], None]:
    """Keep the session of `ctx` from hibernating in this process; return what lets it go again.

    For what only this process can hold (a connection, a subprocess) and the session's exit stack cleans up. It does
    not bring the client's requests here: with several workers a balancer has to. The end of the session, or of the
    process, is not kept off.

    Raises:
        SessionStateError: The request is served without a session, or at 2026-07-28, which has none.
    """
    channel = _channel(
        ctx, "this request has no session that could be kept: hold what it needs for the time of the call only"
    )
    return channel.pin()


def _channel(ctx: object, why_not: str) -> StandaloneChannel | CrossingChannel:
    session = getattr(ctx, "session", None)
    connection = getattr(session, "_connection", None)  # the SDK has no public way from the one to the other
    outbound = connection.outbound if isinstance(connection, SessionConnection) else None
    if not isinstance(outbound, StandaloneChannel | CrossingChannel):
        raise SessionStateError(why_not)
    return outbound
