"""Operations on Redis with a time limit, and what is known of whether it can be reached."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog

from mcp_hybrid.backplane.protocol import BackplaneUnavailableError, LogLimits
from mcp_hybrid.backplane.redis.connection import FAILURES, RedisConnection

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
        limits: LogLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a link that connects when it is first used. `url` is `redis://[user:password@]host[:port][/db]`."""
        self.worker = secrets.token_hex(6)
        self._limits = limits or LogLimits()
        self._prefix = prefix
        self._clock = clock
        self._connection = RedisConnection(url)
        self._judging_from = -math.inf
        """When leases mean something (seconds, monotonic): with Redis away, nobody could renew one."""
        self._known_away = False
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
            BackplaneUnavailableError: It failed, or Redis is known to be away.
        """
        if not self._running or self._known_away:
            raise BackplaneUnavailableError
        try:
            return await self._connection.run(command, *arguments)
        except FAILURES as exc:
            if time.monotonic() - self._heard_at > LATELY:
                self._away(exc)
            raise BackplaneUnavailableError from exc

    async def _run(self, script: str, keys: Sequence[str], *arguments: Argument) -> Any:
        """Run a script of `scripts`."""
        return await self._do(b"EVAL", script, len(keys), *keys, *arguments)

    def _away(self, exc: Exception) -> None:
        if not self._known_away:
            log.error("Redis is away: sessions go on with what is known here", why=type(exc).__name__)
        self._known_away = True

    def _here(self) -> None:
        if self._known_away:
            log.warning("Redis is back")
            self._judging_from = time.monotonic() + LEASE
        self._known_away = False

    @property
    def _age(self) -> int:
        return int(self._limits.age * 1000)

    def _key(self, *parts: str) -> str:
        return self._prefix + ":".join(parts)


def text(value: bytes) -> str:
    """Return an answer's string."""
    return value.decode()
