"""Cross-origin answers for browsers (Fetch standard, "CORS protocol"), off unless origins are configured.

Starlette's middleware would answer a preflight with plain text and ahead of the Host gate; every refusal of this
server is JSON-RPC and comes in the order of the gates, so these few headers are written here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mcp_hybrid.security.patterns import OriginTable

EXPOSED: Final = b"mcp-session-id, mcp-hybrid-route, www-authenticate, retry-after"
"""Answer headers that a page may read. Without the first, no browser client can hold a session (python-sdk #1135)."""

_PREFLIGHT: Final = (
    (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
    (b"access-control-max-age", b"600"),
)
_VARY: Final = (b"vary", b"origin")

Headers = tuple[tuple[bytes, bytes], ...]


class Cors:
    """Which origins' pages may read the answers."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = OriginTable(exact=origins)

    def headers(self, origin: str | None) -> Headers:
        """Return what every answer to a page of `origin` carries, refusals too."""
        if not self._origins:
            return ()
        if origin is None or origin not in self._origins:
            return (_VARY,)
        allowed = (b"access-control-allow-origin", origin.encode("latin-1"))
        return (allowed, (b"access-control-expose-headers", EXPOSED), _VARY)

    def preflight(self, origin: str | None, requested_headers: bytes | None) -> Headers:
        """Return the answer headers to a preflight. The headers it asks for are granted: all are ours to judge."""
        simple = self.headers(origin)
        if len(simple) < 2:
            return simple
        granted = ((b"access-control-allow-headers", requested_headers),) if requested_headers else ()
        return (simple[0], *_PREFLIGHT, *granted, _VARY)
