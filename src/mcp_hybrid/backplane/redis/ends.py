"""Which sessions have ended: remembered in Redis, and known to every worker without asking.

An end is told to all workers, each says that it has heard, and only then is the DELETE answered. A worker that says
nothing is waited for until it is sure to ask Redis again: it trusts what it has heard for `FRESH` seconds after it last
heard all there was, and no longer. So a session is over on every worker when its DELETE is answered, and no request
has to ask Redis for it.
"""

from __future__ import annotations

import math
import secrets
import time
from typing import Any, Final

import anyio

from mcp_hybrid.backplane.ended import EndedSessions
from mcp_hybrid.backplane.protocol import BackplaneUnavailableError, Signal, SignalKind
from mcp_hybrid.backplane.redis import scripts
from mcp_hybrid.backplane.redis.inbox import Fields, RedisInbox

FRESH: Final = 3.0
"""Seconds that a worker trusts what it has heard. Longer than two beats, which it takes to hear again on a quiet day;
shorter than a lease: a worker that has none has nothing to trust either, and need not be waited for."""


class _Round:
    """Who has heard of an end."""

    def __init__(self) -> None:
        self.heard: set[bytes] = set()
        self.more = anyio.Event()

    def add(self, worker: bytes) -> None:
        self.heard.add(worker)
        self.more.set()

    async def all_of(self, workers: set[bytes]) -> None:
        while not workers <= self.heard:
            self.more = anyio.Event()
            await self.more.wait()


class RedisEnds(RedisInbox):
    """The part of the backplane that knows which sessions have ended."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._ended = EndedSessions(self._most_ended)
        """The ends that this worker knows of."""
        self._watch = 0
        self._fresh_until = -math.inf
        self._rounds: dict[str, _Round] = {}
        self._to_confirm: dict[str, list[str]] = {}
        """The rounds of each worker whose end has been heard of, and that has not been told so."""

    @property
    def watch(self) -> int:
        """The number of the time since when no end can have been missed; 0 where one may have been."""
        return self._watch if time.monotonic() < self._fresh_until and not self._known_away else 0

    async def revoke(self, session: str, until: float) -> None:
        """Remember that a session ended, and return when all other workers know it."""
        token = secrets.token_hex(6)
        self._rounds[token] = round_ = _Round()
        body = f"{until} {self.worker} {token}".encode()
        try:
            keys = [*self._each("workers"), *self._each("ended")]
            signal = Signal(SignalKind.END, session, body)
            times = (int(self._clock()), math.ceil(until))
            told = await self._run(scripts.END, keys, *self._to_all(signal), *times, self._most_ended)
            self._ended.add(session, until)
            with anyio.move_on_after(FRESH):
                await round_.all_of(set(told))
        finally:
            del self._rounds[token]

    def has_heard(self, session: str, watch: int, until: float = math.inf) -> bool | None:
        """Whether a session was ended, as far as this worker has heard; None where Redis has to be asked."""
        if self._ended.covers(session, until):
            return True
        return False if watch and watch == self.watch else None

    async def is_revoked(self, session: str, until: float = math.inf) -> bool:
        """Whether a session was ended; with Redis away, whether this worker knows that it was."""
        if self._ended.covers(session, until):
            return True
        try:
            expires = "inf" if until == math.inf else math.ceil(until)
            return bool(await self._run(scripts.IS_ENDED, self._each("ended"), session, expires))
        except BackplaneUnavailableError:
            return False

    async def prune(self) -> None:
        """Forget the ends whose ids have expired."""
        self._ended.prune(self._clock())
        await super().prune()

    async def _hear(self, fields: Fields) -> None:
        if (tokens := fields.get("heard")) is not None:
            for token in tokens.decode().split():
                if (round_ := self._rounds.get(token)) is not None:
                    round_.add(fields["by"])
            return
        if fields.get("kind") == SignalKind.END.value.encode():
            until, worker, token = fields["body"].decode().split()
            self._ended.add(fields["session"].decode(), float(until))
            self._to_confirm.setdefault(worker, []).append(token)
        await super()._hear(fields)

    async def _have_heard(self, asked: float, *, all_of_it: bool) -> None:
        if all_of_it:
            self._fresh_until = asked + FRESH
        else:
            # So much has piled up that the oldest of it may have been dropped.
            self._begin_watch()
        while self._to_confirm:
            worker, tokens = self._to_confirm.popitem()
            await self._put(worker, "heard", " ".join(tokens), "by", self.worker)
        await super()._have_heard(asked, all_of_it=all_of_it)

    def _lease_lost(self) -> None:
        # Ends may have been told to everybody but this worker.
        self._begin_watch()
        super()._lease_lost()

    def _begin_watch(self) -> None:
        self._watch += 1
        self._fresh_until = -math.inf
