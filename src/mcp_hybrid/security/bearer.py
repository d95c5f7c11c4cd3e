"""Authentication by bearer token (RFC 6750), through the SDK's own verifiers, backend and user.

Where the SDK's middleware would wrap the whole application, only its backend is asked here: refusals are then JSON-RPC
in the order of the gates, and a server without authentication has nothing in its way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser, BearerAuthBackend
from mcp.server.auth.provider import principal_components
from starlette.authentication import AuthCredentials
from starlette.requests import HTTPConnection
from starlette.types import Scope

from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.security.metadata import ProtectedResource
from mcp_hybrid.security.owner import NOBODY, Caller, Owner
from mcp_hybrid.security.unavailable import VerifierUnavailableError

log = structlog.get_logger("mcp_hybrid")

TOKEN_LIMIT: Final = 16 * 1024
"""Bytes of an `Authorization` header that are looked at. What is longer is no token that an issuer makes."""

_INVALID: Final = "The token is not valid here. It may be wrong, expired, or meant for another server."


class BearerAuthenticator:
    """Takes a token that one of several verifiers takes, if it has the scopes that every request needs."""

    def __init__(
        self, backends: Sequence[BearerAuthBackend], resource: ProtectedResource, scopes: Sequence[str] = ()
    ) -> None:
        """Make an authenticator that asks `backends` in turn."""
        self._backends = tuple(backends)
        self._resource = resource
        self._scopes = tuple(scopes)

    async def authenticate(self, scope: Scope) -> Caller | Fault:
        """Return whom the request's token proves it is from, or its refusal."""
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(sent) > 1:
            return Fault(Cause.DUPLICATE_HEADER, "The header authorization was sent more than once.")
        if not sent or sent[0][:7].lower() != b"bearer ":
            return self._unauthorized(scope, "This server needs a credential: send Authorization: Bearer <token>.")
        try:
            found = await self._ask(_with_one_space(scope, sent[0])) if len(sent[0]) <= TOKEN_LIMIT else None
        except VerifierUnavailableError as error:
            log.warning("a token could not be verified", reason=str(error))
            retry = (b"retry-after", b"%d" % max(1, round(error.retry_after)))
            return Fault(Cause.VERIFIER_UNAVAILABLE, "Tokens cannot be verified right now. Keep yours, and try again.",
                         headers=(retry,))  # fmt: skip
        if found is None:
            return self._unauthorized(scope, _INVALID, "invalid_token")
        credentials, user, caller = found
        missing = [name for name in self._scopes if name not in credentials.scopes]
        if missing:
            words = f"The token lacks the scope {', '.join(missing)}."
            return Fault(
                Cause.INSUFFICIENT_SCOPE, words, headers=(self._resource.challenge(scope, "insufficient_scope", words),)
            )
        scope["auth"], scope["user"] = credentials, user  # where handlers look that were written for Starlette
        return caller

    async def _ask(self, scope: Scope) -> tuple[AuthCredentials, AuthenticatedUser, Caller] | None:
        """Ask one verifier after another. One that cannot tell does not keep the others from accepting.

        A principal that is no text is no principal: neither an id nor a log line could hold it.
        """
        connection, unavailable = HTTPConnection(scope), None
        for backend in self._backends:
            try:
                found: tuple[AuthCredentials, AuthenticatedUser] | None = await backend.authenticate(connection)
                if found is not None and (caller := caller_of(found[1])).owner.is_text:
                    return *found, caller
            except VerifierUnavailableError as error:
                unavailable = error
        if unavailable is not None:
            raise unavailable
        return None

    def _unauthorized(self, scope: Scope, words: str, error: str | None = None) -> Fault:
        return Fault(Cause.UNAUTHORIZED, words, headers=(self._resource.challenge(scope, error, words),))


def _with_one_space(scope: Scope, sent: bytes) -> Scope:
    """Return a scope whose credential has one space before the token (RFC 9110, 11.4, allows more; the SDK does not).

    Nothing else stands between scheme and token: a tab is no space.
    """
    credential = sent[:7] + sent[7:].strip(b" ")
    if credential == sent:
        return scope
    others = [header for header in scope["headers"] if header[0] != b"authorization"]
    return {**scope, "headers": [*others, (b"authorization", credential)]}


def caller_of(user: AuthenticatedUser) -> Caller:
    """Return the caller that an SDK user is: the same principal that the SDK binds request state to."""
    token = user.access_token
    client, issuer, subject = principal_components(token)
    return Caller(Owner(issuer or "", subject or "", client), token.expires_at, user)


def known_already(scope: Scope) -> Caller:
    """Return whom the application around this one has found a request to be from, by the SDK's own middleware."""
    user = scope.get("user")
    return caller_of(user) if isinstance(user, AuthenticatedUser) else NOBODY


@contextmanager
def acting_for(user: AuthenticatedUser) -> Iterator[None]:
    """Let handlers find the token by the SDK's `get_access_token()`, as behind its own middleware."""
    token = auth_context_var.set(user)
    try:
        yield
    finally:
        auth_context_var.reset(token)
