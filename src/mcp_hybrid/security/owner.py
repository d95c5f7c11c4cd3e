"""The owner of a session: the authenticated principal it belongs to; and who finds out which one a request is from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Protocol

from starlette.types import Scope

from mcp_hybrid.errors import Fault

if TYPE_CHECKING:
    # The settings import this module by way of the limits, and small commands do without the SDK, which takes a second.
    from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser


@dataclass(frozen=True)
class Owner:
    """A stable principal: issuer, subject and client, never a token, so that a refreshed token keeps its sessions.

    The subject is the end user, not only the OAuth client: two users of one client own different sessions.
    """

    issuer: str = ""
    subject: str = ""
    client: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """A digest of bounded length that stands for this owner in a session id; empty for the anonymous one."""
        if self == ANONYMOUS:
            return ""
        # Lengths first, so that no two owners can be written as the same text.
        parts = "".join(f"{len(part)}:{part}" for part in (self.issuer, self.subject, self.client))
        return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @property
    def is_text(self) -> bool:
        """Whether all parts are Unicode text.

        JSON can also spell halves of characters (lone surrogates), which cannot be written anywhere.
        """
        return all(part.isascii() or _is_text(part) for part in (self.issuer, self.subject, self.client))

    def __str__(self) -> str:
        """How the log names the owner."""
        name = "/".join(filter(None, (self.issuer, self.subject, self.client))) or "anonymous"
        return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def _is_text(part: str) -> bool:
    try:
        part.encode()
    except UnicodeEncodeError:
        return False
    return True


ANONYMOUS: Final = Owner()
"""Everybody, where no authentication is configured."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request's credential has proved."""

    owner: Owner
    expires_at: float | None = None
    """When the credential stops being good, in seconds since the epoch; None where it does not say."""
    user: AuthenticatedUser | None = None
    """What the SDK's `get_access_token()` reads in handlers; None where the credential is no token."""


NOBODY: Final = Caller(ANONYMOUS)
"""Who a request is from where nobody is asked for a credential."""


class Authenticator(Protocol):
    """Finds out whose a request is. Asked about every request, inside a session too: an id is no credential."""

    async def authenticate(self, scope: Scope) -> Caller | Fault:
        """Return whom an ASGI `http` scope's credential proves it is from, or the refusal (401, 403 or 503)."""
        ...
