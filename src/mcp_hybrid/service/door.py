"""What a request takes of the server's limits: by its head when it comes, by its route when it is served.

The books themselves are in `security.limits`.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Scope

from mcp_hybrid.errors import Fault
from mcp_hybrid.exchange.modern import LISTEN
from mcp_hybrid.exchange.standalone import STANDALONE
from mcp_hybrid.routing.depth import work
from mcp_hybrid.routing.head import Head
from mcp_hybrid.routing.message import Batch, Message, Request
from mcp_hybrid.routing.table import Action, Route, RouteName
from mcp_hybrid.security.limits import Admission, Bounds, Ticket
from mcp_hybrid.security.owner import Owner

_STREAMS = (Action.OPEN_STREAM, Action.RESUME_STREAM)


class Door:
    """Where requests come in."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float]) -> None:
        """Keep these bounds. `clock` gives seconds and never goes back."""
        self.admission = Admission(bounds, clock)

    def enter(self, scope: Scope, head: Head, owner: Owner) -> Place | Fault:
        """Let a request in before its body is read, or return its refusal."""
        ticket = self.admission.ticket(owner, scope.get("client"))
        fault = self.admission.arrive(ticket, has_body=head.method == "POST", in_session=head.session_id is not None)
        return fault if fault is not None else Place(self.admission, ticket)


class Place:
    """The place of one request that is in. It must be left, however the request ends."""

    __slots__ = ("_admission", "_ticket")

    def __init__(self, admission: Admission, ticket: Ticket) -> None:
        self._admission = admission
        self._ticket = ticket

    def start(self, head: Head, route: Route, message: Message | Batch | None, session: str) -> Fault | None:
        """Let the request do what was decided, or return its refusal. `session` is its session's hash."""
        request_id = message.id if isinstance(message, Request) else None
        if route.action in _STREAMS:
            # A session has one standalone stream: a GET for it ends the one before. Others are each their own.
            standalone = route.action is Action.OPEN_STREAM or (head.last_event_id or "").startswith(f"{STANDALONE}.")
            return self._admission.stream(self._ticket, session if standalone else None, None)
        if isinstance(message, Request):
            if route.name is RouteName.MODERN and message.method == LISTEN:
                return self._admission.stream(self._ticket, None, request_id)
            return self._admission.start(self._ticket, 1, request_id)
        if isinstance(message, Batch) and (calls := sum(isinstance(part, Request) for part in message.messages)):
            return self._admission.start(self._ticket, calls, None)
        self._admission.pass_by(self._ticket)
        return None

    def weigh(self, size: int) -> Fault | None:
        """Let the request hold so many bytes of its body, or return its refusal."""
        return self._admission.weigh(self._ticket, size)

    def read(self, body: bytes) -> Fault | None:
        """Let the request's body be read for what it says, or return its refusal."""
        count = work(body)
        return self._admission.work(self._ticket, count) if count else None

    def leave(self) -> None:
        """Give back all that the request has taken."""
        self._admission.leave(self._ticket)
