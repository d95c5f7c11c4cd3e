"""The gates a request passes before anybody asks which route it takes. The same in every mode, in this order.

Host, origin and credentials come first (`security`); the body is parsed last (`message`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.routing.head import Head
from mcp_hybrid.routing.media import accepted, is_identity, is_json

METHODS: Final = ("GET", "POST", "DELETE", "OPTIONS")

_DOTS: Final = frozenset({".", ".."})

_SESSION_ID: Final = re.compile(r"[\x21-\x7E]+")
"""Visible ASCII, nothing else (basic/transports, "Session Management")."""

_LONGEST_NUMBER: Final = 18
"""Digits of a length that is looked at: 64 bits. Python itself refuses to read one of more than 4300."""

HEADER_COST: Final = 32
"""Bytes that a header counts beside its name and value, so that many small ones are bounded too (RFC 9113, 6.5.2)."""


def check_size(headers: Iterable[tuple[bytes, bytes]], target: int, limit: int) -> Fault | None:
    """Return the refusal of a head of more than `limit` bytes; `target` is how many its path and query have."""
    size = target
    for name, value in headers:
        size += len(name) + len(value) + HEADER_COST
    if size > limit:
        return Fault(Cause.HEAD_TOO_LARGE, f"The request's path and headers are larger than {limit} bytes together.")
    return None


def check_path(path: str, raw: bytes) -> Fault | None:
    """Return the refusal of a path that a proxy in front may have read otherwise; `raw` is how it was sent.

    A proxy that resolves dot segments (RFC 3986, section 5.2.4), or takes an encoded slash for one, decides by a path
    that is not the one it passes on.
    """
    sent = raw.lower()
    if b"%2f" in sent or b"%5c" in sent or "\\" in path or not _DOTS.isdisjoint(path.split("/")):
        words = "The path has '.' or '..' in it, or a slash that is encoded. Send it as it is meant."
        return Fault(Cause.NOT_FOUND, words)
    return None


def check_head(head: Head) -> Fault | None:
    """Return the refusal of a request whose method or routing headers cannot be served."""
    if head.method not in METHODS:
        allow = ((b"allow", ", ".join(METHODS).encode()),)
        return Fault(Cause.METHOD_NOT_ALLOWED, f"The endpoint serves {', '.join(METHODS)}.", headers=allow)
    if head.duplicate is not None:
        return Fault(Cause.DUPLICATE_HEADER, f"The header {head.duplicate} was sent more than once.")
    if head.session_id is not None and not _SESSION_ID.fullmatch(head.session_id):
        return Fault(Cause.MALFORMED_SESSION_ID, "mcp-session-id must be visible ASCII (0x21 to 0x7E).")
    return None


def check_post(head: Head, body_limit: int) -> Fault | None:
    """Return the refusal of a POST by its headers alone. `body_limit` is in bytes."""
    if head.content_length is not None and _exceeds(head.content_length, body_limit):
        return body_too_large(body_limit)
    if head.content_encoding is not None and not is_identity(head.content_encoding):
        accept = ((b"accept-encoding", b"identity"),)  # RFC 9110, 15.5.16: tells this 415 from one of the media type
        return Fault(Cause.UNSUPPORTED_MEDIA_TYPE, "Send the message without Content-Encoding.", headers=accept)
    if not is_json(head.content_type):
        return Fault(Cause.UNSUPPORTED_MEDIA_TYPE, "Send the message with Content-Type: application/json.")
    if accepted(head.accept) is None:
        wanted = "Accept must admit application/json or text/event-stream (best both)."
        return Fault(Cause.NOT_ACCEPTABLE, wanted)
    return None


def _exceeds(digits: str, limit: int) -> bool:
    """Whether a number of any length is above `limit`. What is no number is for the HTTP server to refuse."""
    if not (digits.isascii() and digits.isdecimal()):
        return False
    digits = digits.lstrip("0")
    return len(digits) > _LONGEST_NUMBER or int(digits or "0") > limit


def body_too_large(body_limit: int) -> Fault:
    """Return the refusal of a body over `body_limit` bytes, declared or received."""
    return Fault(Cause.BODY_TOO_LARGE, f"The body is larger than {body_limit} bytes.")
