"""The logs of streams, who reads them, who holds the standalone ones, and what dead workers owed them."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from functools import partial
from typing import Any, Final

import anyio
import structlog
from pydantic_core import from_json

from mcp_hybrid.backplane.protocol import (
    PAGE_BYTES,
    BackplaneUnavailableError,
    Entry,
    Holder,
    StreamKey,
    UnknownEventError,
)
from mcp_hybrid.backplane.redis import scripts
from mcp_hybrid.backplane.redis.ends import RedisEnds
from mcp_hybrid.backplane.redis.inbox import BEAT, REST, Fields
from mcp_hybrid.backplane.redis.link import LEASE, text
from mcp_hybrid.errors import SERVER_BUSY, error_body

log = structlog.get_logger("mcp_hybrid")

_LONGEST_RECHECK: Final = 15.0
_UNREAD: Final = 0.02
"""Seconds between two looks whether a client has read on, while a writer waits for it."""
_ENTRY_ID: Final = re.compile(r"([1-9][0-9]{0,19})-(0|[1-9][0-9]{0,19})", re.ASCII)
LOST: Final = (
    f"The server process that ran this request died, or has not been heard of for {LEASE:g} s. How far the request "
    "got is not known."
)


class RedisLogs(RedisEnds):
    """The part of the backplane that keeps streams for clients that come back for them."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._followed: defaultdict[bytes, set[anyio.Event]] = defaultdict(set)
        self._serving: dict[StreamKey, str] = {}
        """The standalone streams that this worker serves, and by which requests: their writers wait for them."""

    async def tail(self, stream: StreamKey) -> str:
        """Open a stream's log where it does not exist, and return the id after which the next entry will come."""
        return text(await self._run(scripts.TAIL, self._log_keys(stream), self._age, self.limits.total_bytes))

    async def append(
        self,
        stream: StreamKey,
        data: bytes | None,
        calls: bytes | None = None,
        number: int | None = None,
        *,
        result: bool = False,
        delivered: bool = False,
        patience: float = 0.0,
    ) -> str | None:
        """Add an entry, opening the log where it does not exist, and return its id; None where the log has ended."""
        age = int(self.limits.delivered_age * 1000) if delivered else self._age
        flags = "r" if result else "w" if patience else ""
        # What is owed is known from the first entry on; it is sent again only when it has changed.
        owed = number is None or number == 1 or result
        add = partial(self._add, stream, data, calls if number is None else calls or b"[]", number, age=age)
        answer = await add(owed=owed, flags=flags)
        if answer == scripts.OWED_ANEW:
            answer = await add(owed=True, flags=flags)
        if answer == scripts.WAIT:
            with anyio.move_on_after(patience):
                while answer == scripts.WAIT:
                    await anyio.sleep(_UNREAD)
                    answer = await add(owed=owed, flags=flags)
            if answer == scripts.WAIT:
                answer = await add(owed=owed, flags="f")
        return None if answer is None else text(answer)

    async def _add(
        self,
        stream: StreamKey,
        data: bytes | None,
        calls: bytes | None,
        number: int | None,
        *,
        owed: bool,
        flags: str,
        age: int,
    ) -> bytes | None:
        debt = b"%b %b" % (self.worker.encode(), calls) if calls and owed and data is not None else b""
        answer: bytes | None = await self._run(
            scripts.APPEND, self._log_keys(stream), *self._bounds(), "end" if data is None else "d", data or b"",
            debt, "" if number is None else number, flags, age,
        )  # fmt: skip
        return answer

    async def settle(self, stream: StreamKey) -> None:
        """Note that a client was sent a finished log to its end."""
        age = int(self.limits.delivered_age * 1000)
        await self._run(scripts.SETTLE, self._log_keys(stream), age, self.limits.total_bytes)

    async def is_open(self, stream: StreamKey) -> bool:
        """Whether a stream has a log."""
        return bool(await self._do(b"EXISTS", self._log(stream)))

    async def holds(self, stream: StreamKey, after: str) -> bool:
        """Whether `after` is an id of this log."""
        return _is_entry_id(after) and bool(await self._run(scripts.KNOWS, [self._log(stream)], after))

    async def take_over(self, stream: StreamKey, name: str) -> Holder | None:
        """Become the worker that serves a standalone stream, and return the one that did until now."""
        value = f"{self.worker} {name}"
        before = await self._do(b"SET", self._holder(stream), value, b"GET", b"PX", self._age)
        self._serving[stream] = name
        holder = Holder(*text(before).split()) if before else None
        return None if holder is None or holder.worker == self.worker else holder

    async def release(self, stream: StreamKey, name: str) -> None:
        """Stop being the worker that serves a standalone stream, unless another has taken over."""
        if self._serving.get(stream) == name:
            del self._serving[stream]
        keys = [self._holder(stream), f"{self._log(stream)}:read"]
        await self._run(scripts.RELEASE, keys, f"{self.worker} {name}")

    async def is_held(self, stream: StreamKey) -> bool:
        """Whether another worker, and one that lives, serves a standalone stream."""
        return bool(await self._run(scripts.IS_HELD, [self._holder(stream)], self.worker, self._key("worker", "")))

    async def read(self, stream: StreamKey, after: str) -> list[Entry]:
        """Wait until there are entries after `after`, and return them all. Waits out a Redis that is away."""
        key, recheck = self._log(stream).encode(), BEAT
        while True:
            grown = anyio.Event()
            self._followed[key].add(grown)
            try:
                if entries := await self._page(stream, after, delivered=stream in self._serving):
                    return entries
                # Looked at again now and then: word of its growth is lost where Redis was restarted meanwhile, and a
                # worker that dies says nothing.
                with anyio.move_on_after(recheck):
                    await grown.wait()
                    continue
                recheck = BEAT if await self._is_owed(stream) else min(2 * recheck, _LONGEST_RECHECK)
            except BackplaneUnavailableError:
                await anyio.sleep(REST)
            finally:
                self._unfollow(key, grown)

    async def peek(self, stream: StreamKey, after: str) -> list[Entry]:
        """Return the first of the entries after `after` that are there already; later ones are announced here."""
        return await self._page(stream, after, delivered=False)

    async def _page(self, stream: StreamKey, after: str, *, delivered: bool) -> list[Entry]:
        if not _is_entry_id(after):
            raise UnknownEventError
        there, found = await self._run(
            scripts.READ, self._log_keys(stream), self._age, self.limits.total_bytes, after, self.worker, PAGE_BYTES,
            int(delivered),
        )  # fmt: skip
        if not there:
            raise UnknownEventError
        entries = [(text(id_), dict(zip(fields[::2], fields[1::2], strict=True))) for id_, fields in found]
        return [Entry(id_, fields.get(b"d")) for id_, fields in entries if b"open" not in fields]

    async def _is_owed(self, stream: StreamKey) -> bool:
        """Whether a worker still owes the stream something. One that died has its debts paid: an error, not silence."""
        debt = await self._do(b"GET", f"{self._log(stream)}:calls")
        if debt is None:
            return False
        if time.monotonic() < self._judging_from:
            return True
        worker, _, calls = debt.partition(b" ")
        errors = [error_body(request_id, SERVER_BUSY, LOST) for request_id in from_json(calls)]
        keys = [*self._log_keys(stream), self._key("worker", text(worker))]
        outcome = await self._run(scripts.PAY, keys, *self._bounds(), debt, *errors)
        if outcome == scripts.PAID:
            log.warning("a worker died during a call", worker=text(worker), session=stream.session[:12])
        return bool(outcome == scripts.OWED)

    async def _hear(self, fields: Fields) -> None:
        if (grown := fields.get("grown")) is not None:
            for event in self._followed.get(grown, ()):
                event.set()
            return
        await super()._hear(fields)

    def _unfollow(self, key: bytes, event: anyio.Event) -> None:
        followers = self._followed[key]
        followers.discard(event)
        if not followers:
            del self._followed[key]

    def _bounds(self) -> tuple[str | int, ...]:
        limits = self.limits
        return (self._age, limits.total_bytes, self._key("inbox", ""), limits.events, limits.bytes)

    def _log(self, stream: StreamKey) -> str:
        return self._key("log", stream.session, stream.name)

    def _log_keys(self, stream: StreamKey) -> list[str]:
        # Those of the oldest session key: all workers that share one have it, until it is dropped.
        scope = self._scopes[-1]
        return [self._log(stream), self._key("logs", scope), self._key("sizes", scope)]

    def _holder(self, stream: StreamKey) -> str:
        return f"{self._log(stream)}:holder"


def _is_entry_id(text_: str) -> bool:
    """Whether a client's text has the form of the ids that Redis gives: two numbers of 64 bits."""
    match = _ENTRY_ID.fullmatch(text_)
    return match is not None and all(int(number) < 2**64 for number in match.groups())
