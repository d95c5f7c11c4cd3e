"""Verifiers of bearer tokens, as the SDK has them (`mcp.server.auth.provider.TokenVerifier`): API keys and JWTs.

Each answers what a token is worth, or None. Why it is worth nothing is logged at level debug and told nobody else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jwt
import structlog
from jwt.utils import base64url_decode
from mcp.server.auth.provider import AccessToken
from pydantic_core import from_json

from mcp_hybrid.security import api_keys
from mcp_hybrid.security.jwks import KeySource
from mcp_hybrid.security.watched import WatchedFile

log = structlog.get_logger("mcp_hybrid")

API_KEY_ISSUER: Final = "mcp-hybrid"
API_KEY_CLIENT: Final = "api-key"
"""Issuer and client of those who show an API key: the same for all keys of an owner, so that a key that replaces
another keeps the sessions."""

_CLIENT_CLAIMS: Final = ("client_id", "azp", "cid")
"""Where issuers put the OAuth client, the standard's name first (RFC 9068, OpenID Connect, Okta)."""

_SCOPE_CLAIMS: Final = ("scope", "scp")
"""Where they put the scopes (RFC 9068; Entra and Okta)."""

_TYPES: Final = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""What the header `typ` may say, if it is there (RFC 9068 is not asked for): logout tokens and the like say others."""


class ApiKeyVerifier:
    """Takes the keys that a file lists."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Read the file; it is read again when it changes. `clock` is the wall clock, in seconds.

        Raises:
            ConfigurationError: It cannot be read or understood.
        """
        self._file = WatchedFile(path, api_keys.parse, "the API key file")
        self._clock = clock

    def __len__(self) -> int:
        """Return how many keys there are."""
        return len(self._file.value)

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return what an API key is worth; nothing that is none is looked up."""
        if not token.startswith(api_keys.PREFIX):
            return None
        key = self._file.value.get(api_keys.digest(token))
        if key is None:
            return _refused("unknown API key")
        expires_at = key.expires.timestamp() if key.expires is not None else None
        if expires_at is not None and expires_at <= self._clock():
            return _refused("expired API key", key=key.id)
        return AccessToken(
            token=token,
            client_id=API_KEY_CLIENT,
            scopes=list(key.scopes),
            expires_at=int(expires_at) if expires_at is not None else None,
            subject=key.owner,
            claims={"iss": API_KEY_ISSUER, "key": key.id},
        )


class JwtVerifier:
    """Takes the JWTs that one issuer has signed for this server (RFC 7519, RFC 8725, RFC 9068)."""

    def __init__(
        self,
        keys: KeySource,
        *,
        issuer: str,
        audience: Sequence[str],
        algorithms: Sequence[str],
        clock_skew: float,
        clock: Callable[[], float],
    ) -> None:
        """Make a verifier. Times are in seconds; `clock` is the wall clock."""
        self._keys = keys
        self._issuer = issuer
        self._audience = list(audience)
        self._algorithms = frozenset(algorithms)
        self._skew = clock_skew
        self._clock = clock
        self._jwt = jwt.PyJWT(
            # Times are looked at here, by the clock that was given.
            {"require": ["exp", "iss", "aud"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}
        )

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return what a token is worth.

        `expires_at` has the clock skew added: it is when the token stops being good here.

        Raises:
            VerifierUnavailableError: The issuer's keys cannot be had right now.
        """
        try:
            _check_shape(token)
            header = jwt.get_unverified_header(token)
            algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ")
            if not isinstance(algorithm, str) or algorithm not in self._algorithms:
                return _refused("algorithm not allowed", algorithm=str(algorithm)[:20])
            if kind is not None and str(kind).lower() not in _TYPES:
                return _refused("not an access token", typ=str(kind)[:40])
            key = await self._keys.find(kid, algorithm)
            if key is None:
                return _refused("unknown key", kid=str(kid)[:80])
            claims = self._jwt.decode(
                token, key=key, algorithms=[algorithm], audience=self._audience, issuer=self._issuer
            )
        except (jwt.PyJWTError, ValueError) as error:
            return _refused(type(error).__name__)
        return self._access(token, claims)

    def _access(self, token: str, claims: Mapping[str, Any]) -> AccessToken | None:
        now = self._clock()
        expires, not_before = _seconds(claims["exp"]), _seconds(claims.get("nbf", 0))
        if expires is None or not_before is None:
            return _refused("a time that is no number")
        if expires + self._skew <= now:
            return _refused("expired")
        if not_before - self._skew > now:
            return _refused("not yet valid")
        subject = claims.get("sub")
        client = next((claims[name] for name in _CLIENT_CLAIMS if isinstance(claims.get(name), str)), "")
        if not subject and not client:
            return _refused("neither a subject nor a client")
        audience = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        return AccessToken(
            token=token,
            client_id=client,
            scopes=_scopes(claims),
            expires_at=int(expires + self._skew),
            resource=next(one for one in audience if one in self._audience),
            subject=subject,
            claims=dict(claims),
        )


def _check_shape(token: str) -> None:
    """Check that a token's header and claims are objects in strict JSON, before anything less strict reads them.

    The standard library's parser, which PyJWT uses, overflows the stack on deep nesting, and lets lone surrogates and
    NaN through.

    Raises:
        ValueError: They are not.
    """
    parts = token.encode("ascii").split(b".")
    if len(parts) != 3:
        raise ValueError("not three parts")
    for part in parts[:2]:
        value = from_json(base64url_decode(part), allow_inf_nan=False)
        if not isinstance(value, dict):
            raise ValueError("not an object")  # noqa: TRY004 - the one kind of error this function has


def _seconds(value: object) -> float | None:
    """Return a NumericDate, or None for what is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _scopes(claims: Mapping[str, Any]) -> list[str]:
    for name in _SCOPE_CLAIMS:
        value = claims.get(name)
        if isinstance(value, str):
            return value.split()
        if isinstance(value, list):
            return [scope for scope in value if isinstance(scope, str)]
    return []


def _refused(why: str, **facts: object) -> AccessToken | None:
    """Log why a token is worth nothing, and return what says so."""
    log.debug("token refused", reason=why, **facts)
    return None
