"""An issuer's public keys (JSON Web Key Set, RFC 7517): from a file, or fetched and kept for a while.

The fetching is done here since PyJWT's own client blocks the whole server while it waits.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import httpx2
import structlog
from jwt import PyJWK
from pydantic_core import from_json

from mcp_hybrid.security.unavailable import VerifierUnavailableError
from mcp_hybrid.security.watched import WatchedFile

log = structlog.get_logger("mcp_hybrid")

KEY_TYPES: Final[Mapping[str, tuple[str, frozenset[str | None]]]] = {
    **{f"{family}{bits}": ("RSA", frozenset({None})) for family in ("RS", "PS") for bits in (256, 384, 512)},
    "ES256": ("EC", frozenset({"P-256"})),
    "ES384": ("EC", frozenset({"P-384"})),
    "ES512": ("EC", frozenset({"P-521"})),
    "EdDSA": ("OKP", frozenset({"Ed25519", "Ed448"})),
}
"""Each algorithm that can be allowed, and the keys it takes: their type and curve. All are asymmetric: with a secret
that both sides know, a public key could be passed off as the secret (RFC 8725, section 2.1)."""

LIFETIME: Final = 600.0
"""Seconds after which the keys are fetched again: a key that the issuer has withdrawn is good for no longer."""
STALE: Final = 86400.0
"""Seconds for which keys are used while the issuer cannot be reached."""
INTERVAL: Final = 10.0
BURST: Final = 3
"""Fetches: so many at once, then one in so many seconds. Tokens with made-up key ids cause no more of them, and a key
that was rotated in is found within one interval even then."""
TIMEOUT: Final = 5.0
"""Seconds that a fetch may take in all."""
SIZE: Final = 512 * 1024
"""Bytes that a key set may have."""

Fetch = Callable[[], Awaitable[str]]


class KeySource(Protocol):
    """Knows an issuer's keys."""

    async def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """Return the key that a token names, or None where there is none.

        Raises:
            VerifierUnavailableError: The keys cannot be had right now.
        """
        ...


class Keys:
    """The usable keys of one key set."""

    def __init__(self, text: str, algorithms: Sequence[str]) -> None:
        """Read a key set. Keys of other kinds than the algorithms take are passed over.

        Raises:
            ValueError: It is no key set.
        """
        data = from_json(text, allow_inf_nan=False)  # the standard library's would overflow the stack on deep nesting
        listed = data.get("keys") if isinstance(data, dict) else None
        if not isinstance(listed, list):
            raise ValueError('a key set has a list "keys"')  # noqa: TRY004 - the one kind of error this function has
        self._keys: dict[tuple[str | None, str], list[PyJWK]] = {}
        for raw in listed:
            if isinstance(raw, dict):
                for algorithm in algorithms:
                    self._add(raw, algorithm)

    def _add(self, raw: dict[str, Any], algorithm: str) -> None:
        kind, curves = KEY_TYPES[algorithm]
        curve, kid = raw.get("crv"), raw.get("kid")
        fits = raw.get("kty") == kind and (kind == "RSA" or (isinstance(curve, str) and curve in curves))
        if not fits or raw.get("alg", algorithm) != algorithm or raw.get("use", "sig") != "sig":
            return
        try:
            key = PyJWK(raw, algorithm)
        except Exception as error:  # noqa: BLE001 - a key's members are anything; what reads them says no in many ways
            log.warning("a key of the key set cannot be used", kid=str(kid)[:80], error=_words(error))
            return
        self._keys.setdefault((kid if isinstance(kid, str) else None, algorithm), []).append(key)

    def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """Return the key of that id; without an id, or for keys without, the one that there is for the algorithm."""
        found = self._keys.get((kid, algorithm)) or self._keys.get((None, algorithm), [])
        if not found and kid is None:
            found = [key for (_, known), keys in self._keys.items() if known == algorithm for key in keys]
        return found[0] if len(found) == 1 else None


class FileKeys:
    """The keys in a file."""

    def __init__(self, path: Path, algorithms: Sequence[str]) -> None:
        """Read the file; it is read again when it changes.

        Raises:
            ConfigurationError: It cannot be read, or is no key set.
        """
        self._file = WatchedFile(path, lambda text: Keys(text, algorithms), "the key set file auth.jwks")

    async def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """Return the key that a token names, or None."""
        return self._file.value.find(kid, algorithm)


class RemoteKeys:
    """The keys at a URL, fetched when they are first needed, when they are old, and when one is not among them."""

    def __init__(self, url: str, algorithms: Sequence[str], fetch: Fetch | None = None) -> None:
        """Prepare to fetch. `fetch` stands in for the network."""
        self._url = url
        self._algorithms = algorithms
        self._fetch: Fetch = fetch or self._get
        self._lock = anyio.Lock()
        self._keys: Keys | None = None
        self._fetched = -math.inf
        self._tries = 0
        self._failing = False
        self._paid_until = -math.inf
        """The fetches so far are paid for until then, at one in `INTERVAL`."""

    async def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """Return the key that a token names, or None where the issuer has none such.

        Raises:
            VerifierUnavailableError: The issuer cannot be asked, and what is known of its keys does not settle it.
        """
        tries = self._tries
        # Whoever finds the keys old fetches them; those who come meanwhile go on with what there is.
        if anyio.current_time() - self._fetched > LIFETIME and (self._usable() is None or not self._lock.locked()):
            await self._refresh(tries)
        keys = self._usable()
        found = keys.find(kid, algorithm) if keys is not None else None
        if found is None and tries == self._tries:
            await self._refresh(tries)
            keys = self._usable()
            found = keys.find(kid, algorithm) if keys is not None else None
        if found is None and (keys is None or self._failing):
            raise VerifierUnavailableError("the issuer's keys cannot be had", retry_after=INTERVAL)
        return found

    def _usable(self) -> Keys | None:
        return self._keys if anyio.current_time() - self._fetched <= STALE else None

    async def _refresh(self, tries: int) -> None:
        """Fetch the keys, unless somebody has since there were so many tries, or they are fetched too often."""
        async with self._lock:
            now = anyio.current_time()
            paid_until = max(self._paid_until, now - BURST * INTERVAL) + INTERVAL
            if self._tries != tries or paid_until > now:
                return
            self._paid_until = paid_until
            try:
                with anyio.fail_after(TIMEOUT):
                    keys = Keys(await self._fetch(), self._algorithms)
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
                self._failing = True
                log.warning("the issuer's keys could not be fetched", url=self._url, error=_words(error))
            except Exception:
                # Not foreseen, and so logged whole; a token that cannot be verified for it is 503 all the same.
                self._failing = True
                log.exception("the issuer's keys could not be fetched", url=self._url)
            else:
                self._keys, self._fetched, self._failing = keys, anyio.current_time(), False
            self._tries += 1

    async def _get(self) -> str:
        # A client for each: it is needed every ten minutes, and an open connection would not live that long.
        async with (
            httpx2.AsyncClient(timeout=TIMEOUT) as client,
            client.stream("GET", self._url, headers={"accept": "application/json"}) as answer,
        ):
            if answer.status_code != 200:
                raise ValueError(f"answered with status {answer.status_code}")
            body = bytearray()
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > SIZE:
                    raise ValueError(f"answered with more than {SIZE} bytes")
        return body.decode()


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
