"""The logs of streams, who reads them, who holds the standalone ones, and what dead workers owed them."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any, Final

import anyio
import structlog
from pydantic_core import from_json

from mcp_hybrid.backplane.protocol import BackplaneUnavailableError, Entry, Holder, StreamKey, UnknownEventError
from mcp_hybrid.backplane.redis import scripts
from mcp_hybrid.backplane.redis.ends import RedisEnds
from mcp_hybrid.backplane.redis.inbox import BEAT, REST, Fields
from mcp_hybrid.backplane.redis.link import LEASE, text
from mcp_hybrid.errors import SERVER_BUSY, error_body

log = structlog.get_logger("mcp_hybrid")

_LONGEST_RECHECK: Final = 15.0
_LOST: Final = (
    f"The server process that ran this request died, or has not been heard of for {LEASE:g} s. How far the request "
    "got is not known."
)


class RedisLogs(RedisEnds):
    """The part of the backplane that keeps streams for clients that come back for them."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._followed: defaultdict[bytes, set[anyio.Event]] = defaultdict(set)

    async def tail(self, stream: StreamKey) -> str:
        """Open a stream's log where it does not exist, and return the id after which the next entry will come."""
        return text(await self._run(scripts.TAIL, [self._log(stream)], self._age))

    async def append(
        self, stream: StreamKey, data: bytes | None, calls: bytes | None = None, number: int | None = None
    ) -> str | None:
        """Add an entry, opening the log where it does not exist, and return its id; None where the log has ended."""
        field, debt = ("end" if data is None else "d"), (b"%b %b" % (self.worker.encode(), calls) if calls else b"")
        answer = await self._run(
            scripts.APPEND, self._log_keys(stream), *self._bounds(),
            field, data or b"", debt, "" if number is None else number,
        )  # fmt: skip
        return None if answer is None else text(answer)

    async def is_open(self, stream: StreamKey) -> bool:
        """Whether a stream has a log."""
        return bool(await self._do(b"EXISTS", self._log(stream)))

    async def holds(self, stream: StreamKey, after: str) -> bool:
        """Whether a log can be read on from `after` without a gap."""
        return bool(await self._do(b"XRANGE", self._log(stream), after, after, b"COUNT", 1))

    async def take_over(self, stream: StreamKey, name: str) -> Holder | None:
        """Become the worker that serves a standalone stream, and return the one that did until now."""
        value = f"{self.worker} {name}"
        before = await self._do(b"SET", self._holder(stream), value, b"GET", b"PX", self._age)
        holder = Holder(*text(before).split()) if before else None
        return None if holder is None or holder.worker == self.worker else holder

    async def release(self, stream: StreamKey, name: str) -> None:
        """Stop being the worker that serves a standalone stream, unless another has taken over."""
        await self._run(scripts.RELEASE, [self._holder(stream)], f"{self.worker} {name}")

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
                if entries := await self.peek(stream, after):
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
        """Return the entries after `after` that are there already; word of later ones comes to this worker."""
        keys = [self._log(stream), f"{self._log(stream)}:followers", self._holder(stream)]
        there, found = await self._run(scripts.READ, keys, after, self.worker, self._age)
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
        errors = [error_body(request_id, SERVER_BUSY, _LOST) for request_id in from_json(calls)]
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
        return (self._limits.events, self._limits.bytes, self._age, self._key("inbox", ""))

    def _log(self, stream: StreamKey) -> str:
        return self._key("log", stream.session, stream.name)

    def _log_keys(self, stream: StreamKey) -> list[str]:
        log_ = self._log(stream)
        return [log_, f"{log_}:followers", f"{log_}:calls"]

    def _holder(self, stream: StreamKey) -> str:
        return f"{self._log(stream)}:holder"
