"""What a client is told that has no good token: the challenge (RFC 6750), and where tokens are had (RFC 9728).

`ProtectedResource` is the endpoint as OAuth sees it. The metadata is there for everybody: without a credential, to
pages of every origin. It is there only where there is an authorization server to name; API keys alone are no OAuth.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from mcp.shared.auth import ProtectedResourceMetadata
from starlette.types import Scope, Send

from mcp_hybrid.errors import Cause, Fault

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"

_METHODS: Final = "GET, HEAD, OPTIONS"
_AUTHORITY: Final = re.compile(r"[A-Za-z0-9._\[\]:-]+")
_OPEN: Final = ((b"access-control-allow-origin", b"*"),)
_PREFLIGHT: Final = (
    (b"access-control-allow-methods", _METHODS.encode()),
    (b"access-control-allow-headers", b"*"),
    (b"access-control-max-age", b"600"),
)


class ProtectedResource:
    """The endpoint as a protected resource."""

    def __init__(
        self,
        path: str,
        *,
        url: str | None = None,
        authorization_servers: Sequence[str] = (),
        scopes: Sequence[str] = (),
    ) -> None:
        """Describe the endpoint at `path`.

        `url` is where the public reaches it; without it, it is read off each request, by its scheme and its Host.
        `scopes` are those that every request needs.
        """
        self._path = path
        self._url = url
        self._servers = list(authorization_servers)
        self._scopes = list(scopes)
        own = {"", path.rstrip("/"), urlsplit(url).path.rstrip("/") if url is not None else ""}
        self.paths: frozenset[str] = frozenset(WELL_KNOWN + one for one in own) if self._servers else frozenset()
        """Where the metadata is served: at the well-known address, and with the endpoint's path inserted (3.1)."""

    def challenge(self, scope: Scope, error: str | None = None, description: str = "") -> tuple[bytes, bytes]:
        """Return the `WWW-Authenticate` header of a refusal; `error` only where a token was sent (RFC 6750, 3.1)."""
        parts = [f'error="{error}"', f'error_description="{description}"'] if error is not None else []
        if self._servers:
            parts.append(f'resource_metadata="{self._metadata_url(scope)}"')
        if self._scopes:
            parts.append(f'scope="{" ".join(self._scopes)}"')
        return b"www-authenticate", f"Bearer {', '.join(parts)}".rstrip().encode("latin-1", "replace")

    async def serve(self, scope: Scope, send: Send) -> Fault | None:
        """Answer a request for the metadata."""
        method = scope["method"]
        if method == "OPTIONS":
            await _write(send, 204, (*_OPEN, *_PREFLIGHT), b"")
        elif method in ("GET", "HEAD"):
            body = self._document(scope)
            fields = (
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                # One that was read off the request must not be kept for another.
                (b"cache-control", b"public, max-age=3600" if self._url is not None else b"no-store"),
                *_OPEN,
            )
            await _write(send, 200, fields, body if method == "GET" else b"")
        else:
            allow = (b"allow", _METHODS.encode())
            return Fault(Cause.METHOD_NOT_ALLOWED, f"This address serves {_METHODS}.", headers=(allow, *_OPEN))
        return None

    def _document(self, scope: Scope) -> bytes:
        # From text: a URL that was parsed by itself has a slash added, and clients compare issuers letter by letter.
        metadata = ProtectedResourceMetadata.model_validate(
            {
                "resource": self._url or f"{_base(scope)}{self._path}",
                "authorization_servers": self._servers,
                "scopes_supported": self._scopes or None,
            }
        )
        return metadata.model_dump_json(exclude_none=True).encode()

    def _metadata_url(self, scope: Scope) -> str:
        if self._url is None:
            return f"{_base(scope)}{WELL_KNOWN}{self._path.rstrip('/')}"
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc}{WELL_KNOWN}{parts.path.rstrip('/')}"


def _base(scope: Scope) -> str:
    """Return how a request reached this server, as far as that can be told; the gate has let its Host pass."""
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    # Where every Host is let in, one may hold what must not stand in a quoted string.
    return f"{scope['scheme']}://{host if _AUTHORITY.fullmatch(host) else 'localhost'}{scope.get('root_path', '')}"


async def _write(send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body, "more_body": False})
