"""A worker's lease, by which the others know that it lives, and its inbox, by which they reach it.

One blocking reader a worker, on a connection of its own. Everything that concerns a worker is put into its inbox by
whoever knows it: signals, word that a log grew which one of its clients follows, word that it was heard.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import anyio
import structlog
from anyio.abc import TaskStatus
from coredis.exceptions import ResponseError

from mcp_hybrid.backplane.protocol import BackplaneUnavailableError, Handler, Signal, SignalKind
from mcp_hybrid.backplane.redis import scripts
from mcp_hybrid.backplane.redis.connection import FAILURES, OPERATION, RedisConnection, refuses
from mcp_hybrid.backplane.redis.link import LEASE, RedisLink, text

log = structlog.get_logger("mcp_hybrid")

REST: Final = 0.5
"""Seconds between two looks whether Redis is back."""
BEAT: Final = 1.0
"""Seconds between two signs of life: how long the reader waits for its inbox at a time."""
AT_ONCE: Final = 1000
"""Entries that are read from the inbox at a time. An inbox keeps ten times as many."""
INBOX_BYTES: Final = 64 * 1024 * 1024
"""What an inbox may hold before no more answers are put into it: clients make them as large as a body may be."""
_GOODBYE: Final = 0.5
"""Seconds for a worker that stops to take back its lease."""

Fields = Mapping[str, bytes]


class RedisInbox(RedisLink):
    """The part of the backplane by which workers know and reach each other."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._url = url
        self._inbox_connection = RedisConnection(url)
        self._handler: Handler
        self._position = b"0-0"
        """The last entry of the inbox that was taken."""
        self._was_puzzled = False

    async def run(self, handler: Handler, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep this worker known and hand it its signals, until cancelled. Outlives every failure of Redis."""
        self._handler = handler
        async with self._connection, self._inbox_connection:
            self._running = True
            task_status.started()
            try:
                await self._read_on()
            finally:
                self._running = False
                await self._leave()

    async def _read_on(self) -> None:
        while True:
            try:
                await self._read_inbox()
            except ResponseError as exc:
                await self._go_without(exc)
            except (BackplaneUnavailableError, *FAILURES) as exc:
                self._away(exc)
                await anyio.sleep(REST)

    async def _go_without(self, exc: ResponseError) -> None:
        """Go on without a lease while Redis refuses to write one: what is there can still be read."""
        if refuses(exc):
            self._refused(exc)
            self._heard_at = time.monotonic()
            self._here()
        else:
            log.error("Redis does not understand what keeps this worker known", exc_info=exc)
        self._lease_lost()
        await anyio.sleep(REST)

    async def _read_inbox(self) -> None:
        asked = time.monotonic()
        await self._beat()
        self._here()
        self._writable()
        found = await self._inbox_connection.run(
            b"XREAD", b"COUNT", AT_ONCE, b"BLOCK", int(BEAT * 1000),
            b"STREAMS", self._key("inbox", self.worker), self._position, within=BEAT + OPERATION,
        )  # fmt: skip
        self._heard_at = time.monotonic()
        entries = next(iter(found.values())) if found else []
        for identifier, fields in entries:
            self._position = identifier
            await self._take(fields)
        await self._have_heard(asked, all_of_it=len(entries) < AT_ONCE)

    async def _take(self, raw: Sequence[bytes]) -> None:
        """Take one entry of the inbox. One that is not understood is passed over: a newer release may have sent it."""
        try:
            await self._hear(dict(zip(map(bytes.decode, raw[::2]), raw[1::2], strict=True)))
        except (LookupError, ValueError):
            if not self._was_puzzled:  # whoever sends one sends more
                log.exception("what another worker says is not understood, and passed over")
            self._was_puzzled = True

    async def _hear(self, fields: Fields) -> None:
        """Take one entry of the inbox."""
        signal = Signal(SignalKind(fields["kind"].decode()), fields["session"].decode(), fields["body"])
        await self._handler(signal)

    async def _have_heard(self, asked: float, *, all_of_it: bool) -> None:
        """Take note that what was in the inbox at `asked` (seconds, monotonic) has been heard."""

    async def _beat(self) -> None:
        """Say that this worker lives, and have what it has taken from its inbox thrown away."""
        keys = [self._key("worker", self.worker), self._key("inbox", self.worker), *self._each("workers")]
        had = await self._inbox_connection.run(
            b"EVAL", scripts.BEAT, len(keys), *keys, self.worker, int(LEASE * 1000), self._position
        )
        self._heard_at = time.monotonic()
        if not had:
            self._lease_lost()

    def _lease_lost(self) -> None:
        """Take note that for a time the others could not know that this worker lives."""

    async def _leave(self) -> None:
        """Let the others know that this worker is gone, rather than have them wait for its lease to run out."""
        keys = [self._key("worker", self.worker), self._key("inbox", self.worker)]
        with anyio.move_on_after(_GOODBYE, shield=True):
            try:
                async with RedisConnection(self._url) as connection:  # the others are being cancelled
                    await connection.run(b"DEL", *keys)
                    for workers in self._each("workers"):
                        await connection.run(b"ZREM", workers, self.worker)
            except FAILURES:
                log.debug("the lease is left to run out: Redis is away")

    async def workers(self) -> list[str]:
        """Return the names of the workers whose lease is good, this one among them."""
        found = await self._run(scripts.ALIVE, self._each("workers"), self._key("worker", ""))
        return sorted({self.worker, *map(text, found)})

    async def send(self, worker: str, signal: Signal) -> None:
        """Say something to one worker."""
        put = await self._put(worker, "kind", signal.kind.value, "session", signal.session, "body", signal.body)
        if put == scripts.FULL:
            log.warning("a worker has too much to hear already", worker=worker)
            raise BackplaneUnavailableError
        if put == scripts.NOBODY and time.monotonic() < self._judging_from:
            raise BackplaneUnavailableError  # it may not have found Redis back yet

    async def _put(self, worker: str, *fields: bytes | str) -> int:
        keys = [self._key("inbox", worker), *self._each("workers")]
        put: int = await self._run(scripts.PUT, keys, worker, INBOX_BYTES, *fields)
        return put

    async def broadcast(self, signal: Signal) -> None:
        """Say something to all other workers."""
        await self._run(scripts.BROADCAST, self._each("workers"), *self._to_all(signal))

    def _to_all(self, signal: Signal) -> Sequence[bytes | str | int]:
        fields = ("kind", signal.kind.value, "session", signal.session, "body", signal.body)
        lists = len(self._scopes)
        return (lists, self.worker, self._key("inbox", ""), self._key("worker", ""), *fields)

    async def prune(self) -> None:
        """Drop what is past its time. Leases, inboxes and logs have lifetimes of their own."""
