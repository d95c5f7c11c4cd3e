"""Server-sent events (WHATWG HTML, section 9.2.6) as MCP uses them."""

from __future__ import annotations

from typing import Final

HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # or nginx keeps progress back until the end (requirement E12)
)

KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment: nothing to a client, a sign of life to the proxies in between (E13)."""

KEEP_ALIVE_INTERVAL: Final = 15.0
"""Seconds of silence after which a stream is kept alive. Proxies commonly cut at 60."""

RETRY: Final = 1000
"""Milliseconds that a client should wait before it comes back for the rest of a stream (E6)."""

STANDALONE_RETRY: Final = 5000
"""The same for a standalone stream, for which nobody waits. It is most often lost to a restart of the server, and the
SDKs' clients try once or twice, this far apart, and then never again: the server must be back by then."""


def event(message: bytes, event_id: str | None = None) -> bytes:
    """Return one event that carries a JSON-RPC message; JSON has no raw line breaks, so one data line does."""
    if event_id is None:
        return b"event: message\ndata: %b\n\n" % message
    return b"event: message\nid: %b\ndata: %b\n\n" % (event_id.encode(), message)


def event_start(event_id: str) -> bytes:
    """Return what comes before the message of one event; `EVENT_END` comes after it."""
    return b"event: message\nid: %b\ndata: " % event_id.encode()


EVENT_END: Final = b"\n\n"


def priming_event(event_id: str, retry: int = RETRY) -> bytes:
    """Return the event that lets a client resume before anything was said: an id, no data (2025-11-25, E7)."""
    return b"id: %b\nretry: %d\ndata: \n\n" % (event_id.encode(), retry)


def come_back(retry: int) -> bytes:
    """Return what tells a client when to come back, and nothing else (E6)."""
    return b"retry: %d\n\n" % retry
