"""One HTTP request that is served, as the actions see it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from starlette.types import Receive, Scope, Send

from mcp_hybrid.exchange.reply import Headers
from mcp_hybrid.exchange.timers import Delay
from mcp_hybrid.routing.head import LAST_EVENT_ID, MCP_METHOD, MCP_NAME, SESSION_ID, Head
from mcp_hybrid.routing.media import Form, accepted
from mcp_hybrid.routing.message import Batch, Message
from mcp_hybrid.routing.progress import Progress
from mcp_hybrid.routing.table import Route, RouteName, Standing
from mcp_hybrid.security.owner import Owner
from mcp_hybrid.sessions.registry import Found

ROUTE_HEADER: Final = b"mcp-hybrid-route"
SESSION_HEADER: Final = b"mcp-session-id"


@dataclass(slots=True)
class Exchange:
    """One HTTP request that is served, and what is known of it."""

    scope: Scope
    receive: Receive
    send: Send
    head: Head
    owner: Owner
    route: Route
    message: Message | Batch | None
    found: Found
    headers: Headers
    """Cross-origin headers, which every answer carries."""
    progress: Progress = Progress.NOT_WANTED
    lapsed: Callable[[], Awaitable[None]] | None = None
    """Waits until the credential of the request is no longer good; None where none was asked for."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the log line says beyond the route."""

    @property
    def form(self) -> Form:
        """The answers the client takes. The gates have refused those that take none."""
        return accepted(self.head.accept) or Form.JSON

    @property
    def program_scope(self) -> Scope:
        """The request as the served program may see it: without headers that this route did not read, or not check.

        Programs key what they keep by such headers (FastMCP its session state by `mcp-session-id`), and would take one
        that nobody has compared with its owner for the id of a session.
        """
        head, dropped = self.head, []
        in_session = self.route.name is RouteName.SESSION and self.found.standing is Standing.VALID
        if head.session_id is not None and not in_session:
            dropped.append(SESSION_ID)
        if head.last_event_id is not None:
            dropped.append(LAST_EVENT_ID)
        if self.route.name is not RouteName.MODERN:
            if head.mcp_method is not None:
                dropped.append(MCP_METHOD)
            if head.mcp_name is not None:
                dropped.append(MCP_NAME)
        if not dropped:
            return self.scope
        headers = [(key, value) for key, value in self.scope["headers"] if key.lower() not in dropped]
        return {**self.scope, "headers": headers}

    def answer_headers(self, *extra: tuple[bytes, bytes]) -> Headers:
        """Return the headers of the answer: the route, with what was not as the client may think."""
        name = self.route.name.value
        if self.route.session_lost:
            name += "; session=unknown"
        if self.progress is Progress.WITHHELD:
            name += "; progress=withheld"
        return ((ROUTE_HEADER, name.encode()), *extra, *self.headers)


class Timers(NamedTuple):
    """The delays of a running server."""

    stream_after: Delay
    keep_alive: Delay
    watch: Delay
    """How long a modern call runs before somebody watches whether its client is still there."""
    request: Delay
    """How long a call may take."""
