"""What routing reads of a request before its body: the method and a few headers, in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

SESSION_ID: Final = b"mcp-session-id"
PROTOCOL_VERSION: Final = b"mcp-protocol-version"
MCP_METHOD: Final = b"mcp-method"
MCP_NAME: Final = b"mcp-name"
LAST_EVENT_ID: Final = b"last-event-id"

ROUTING_HEADERS: Final = frozenset({SESSION_ID, PROTOCOL_VERSION, MCP_METHOD, MCP_NAME})
"""Headers that decide where a request goes. Sent twice, a proxy and this server could read different ones."""

_ONCE: Final = ROUTING_HEADERS | {b"host", b"origin"}
"""Headers that must not come twice; of two hosts or origins the gate would have judged the first only."""

_LISTS: Final = frozenset({b"accept", b"content-encoding"})
"""Headers that RFC 9110, section 5.3, lets a client spread over several lines."""

_NONE_IF_EMPTY: Final = ("session_id", "last_event_id")

_FIELDS: Final = {
    b"host": "host",
    b"origin": "origin",
    b"accept": "accept",
    b"content-type": "content_type",
    b"content-encoding": "content_encoding",
    b"content-length": "content_length",
    LAST_EVENT_ID: "last_event_id",
    SESSION_ID: "session_id",
    PROTOCOL_VERSION: "protocol_version",
    MCP_METHOD: "mcp_method",
    MCP_NAME: "mcp_name",
}
"""Each header that is read, and the field of `Head` it becomes."""


class Head(NamedTuple):
    """The part of an HTTP request that routing looks at. Header values are Latin-1 text; absent is None."""

    method: str
    host: str | None = None
    origin: str | None = None
    accept: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    content_length: str | None = None
    last_event_id: str | None = None
    session_id: str | None = None
    protocol_version: str | None = None
    mcp_method: str | None = None
    mcp_name: str | None = None
    duplicate: str | None = None
    """The header that was sent more than once and must not be, if any was."""


def read_head(method: str, headers: Iterable[tuple[bytes, bytes]]) -> Head:
    """Read the headers that routing needs from raw `(lower-case name, value)` pairs.

    An empty session id or event id is none: clients send one that have nothing to say (HTML, "Server-sent events", does
    so for the event id). Sent twice, an id is a duplicate even if one of them is empty.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        field = _FIELDS.get(name)
        if field is None:
            continue
        text = value.decode("latin-1")
        if field not in found:
            found[field] = text
        elif name in _ONCE:
            found["duplicate"] = name.decode("ascii")
        elif name in _LISTS:
            found[field] = f"{found[field]}, {text}"
    for field in _NONE_IF_EMPTY:
        if field in found and not found[field].strip():
            del found[field]
    return Head(method, **found)
