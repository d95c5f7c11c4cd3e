"""What the HTTP answers say about how a call was served, read without changing the SDK's client."""

from __future__ import annotations

import httpx2
from pydantic_core import from_json

ROUTE_HEADER = "mcp-hybrid-route"
SESSION_HEADER = "mcp-session-id"


class Answers:
    """An httpx2 response hook: remembers the route of the last `tools/call` and the last refusal's status.

    With `hide_session` the session id is taken off every answer before the SDK sees it, so that the SDK behaves as the
    many clients do that never echo one.
    """

    def __init__(self, *, hide_session: bool) -> None:
        self.route: str | None = None
        self.status = 200
        self._hide_session = hide_session

    async def __call__(self, response: httpx2.Response) -> None:
        """Look at one answer; its body is still to be read."""
        if self._hide_session:
            response.headers.pop(SESSION_HEADER, None)
        if response.request.method == "POST":
            self.status = response.status_code
            if _method(response.request) == "tools/call":
                self.route = response.headers.get(ROUTE_HEADER)


def progress_note(route: str | None, *, seen: bool) -> str | None:
    """Say why no progress came, if the route is the reason; `None` if some came or the tool simply reported none."""
    if seen or route is None:
        return None
    name, *parameters = (part.strip() for part in route.split(";"))
    if "progress=withheld" not in parameters:
        return None
    if "session=unknown" in parameters:
        why = "the server did not know this call's session, so it was served without one"
    elif name == "stateless":
        why = "this call was served without a session"
    else:
        why = "this server sends none to such calls"
    return f"no progress: {why} (route: {route})"


def _method(request: httpx2.Request) -> str | None:
    message = from_json(request.content)
    return message.get("method") if isinstance(message, dict) else None
