"""Operations on Redis with a time limit, and what is known of whether it can be reached."""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import structlog
from coredis.exceptions import NoScriptError, ResponseError

from mcp_hybrid.backplane.protocol import MOST_ENDED, BackplaneUnavailableError, LogLimits
from mcp_hybrid.backplane.redis.connection import FAILURES, RedisConnection, refuses

log = structlog.get_logger("mcp_hybrid")

LEASE: Final = 5.0
"""Seconds after its last sign of life that a worker counts as dead."""

LATELY: Final = 1.5
"""Seconds after an answer for which Redis is taken to be there. The reader has one each second; less than an operation
may take, so that one that waited in vain for all of its time has found Redis silent."""

Argument = bytes | str | float


class RedisLink:
    """This worker's way to Redis, for operations that are answered at once."""

    shared = True

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "mcp-hybrid:",
        keys: Sequence[bytes] = (),
        limits: LogLimits | None = None,
        most_ended: int = MOST_ENDED,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a link that connects when it is first used.

        Args:
            url: `redis://[user:password@]host[:port][/db]`.
            prefix: What all keys in Redis begin with.
            keys: The session keys. Workers that have one in common are one deployment; workers that have none in
                common neither see nor disturb each other.
            limits: What the logs of the deployment may hold.
            most_ended: Ended sessions that are remembered one by one.
            clock: The wall clock, in seconds.
        """
        self.worker = secrets.token_hex(6)
        self.limits = limits or LogLimits()
        self._most_ended = most_ended
        self._prefix = prefix
        self._scopes = [fingerprint(key) for key in keys] or ["0"]
        """What stands for each of the session keys in Redis, that of the oldest last."""
        self._clock = clock
        self._connection = RedisConnection(url)
        self._judging_from = -math.inf
        """When leases mean something (seconds, monotonic): with Redis away, nobody could renew one."""
        self._known_away = False
        self._known_refusing = False
        self._heard_at = -math.inf
        """When the reader of the inbox was last answered (seconds, monotonic)."""
        self._running = False

    @property
    def available(self) -> bool:
        """Whether Redis could be reached when it was last needed."""
        return not self._known_away

    async def _do(self, command: bytes, *arguments: Argument) -> Any:
        """Run one command, for at most `OPERATION` seconds.

        Once one has failed all do, at once, until the reader of the inbox finds Redis back: a request need not wait to
        learn what is known already. But one that fails while the reader is being answered fails alone: it was too much
        for Redis, or its connection broke, and that is no reason to refuse what others ask.

        Raises:
            BackplaneUnavailableError: It failed, or Redis is known to be away, or it refuses this for now.
            ResponseError: Redis does not understand it: a fault of ours, which says nothing about Redis.
        """
        if not self._running or self._known_away:
            raise BackplaneUnavailableError
        try:
            return await self._connection.run(command, *arguments)
        except ResponseError as exc:
            if not refuses(exc):
                raise
            self._refused(exc)
            raise BackplaneUnavailableError from exc
        except FAILURES as exc:
            if time.monotonic() - self._heard_at > LATELY:
                self._away(exc)
            raise BackplaneUnavailableError from exc

    async def _run(self, script: str, keys: Sequence[str], *arguments: Argument) -> Any:
        """Run a script of `scripts`. Its text is sent only where Redis does not have it yet."""
        try:
            return await self._do(b"EVALSHA", _digest(script), len(keys), *keys, *arguments)
        except NoScriptError:
            return await self._do(b"EVAL", script, len(keys), *keys, *arguments)

    def _refused(self, exc: ResponseError) -> None:
        """Take note that Redis is there and does not do what it is asked. What can be read is still read from it."""
        if not self._known_refusing:
            log.error("Redis refuses to write: it is full or read-only", why=str(exc)[:200])
        self._known_refusing = True

    def _away(self, exc: Exception) -> None:
        if not self._known_away:
            log.error("Redis is away: sessions go on with what is known here", why=type(exc).__name__)
        self._known_away = True

    def _here(self) -> None:
        if self._known_away:
            log.warning("Redis is back")
            self._judging_from = time.monotonic() + LEASE
        self._known_away = False

    def _writable(self) -> None:
        if self._known_refusing:
            log.warning("Redis writes again")
        self._known_refusing = False

    @property
    def _age(self) -> int:
        return int(self.limits.age * 1000)

    def _key(self, *parts: str) -> str:
        return self._prefix + ":".join(parts)

    def _each(self, name: str) -> list[str]:
        """Return the keys of that name that are there for each session key."""
        return [self._key(name, scope) for scope in self._scopes]


def fingerprint(key: bytes) -> str:
    """Return what stands for a session key in Redis; the key cannot be found from it."""
    return hashlib.blake2b(key, digest_size=6, person=b"mcp-hybrid").hexdigest()


@lru_cache(maxsize=64)
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def text(value: bytes) -> str:
    """Return an answer's string."""
    return value.decode()
