"""The log of one call's answer: what is recorded of it, in which order, and what becomes of that with Redis away."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import anyio
from mcp_types import INTERNAL_ERROR, RequestId
from pydantic_core import to_json

from mcp_hybrid.backplane import Backplane, BackplaneUnavailableError, StreamKey
from mcp_hybrid.errors import SERVER_BUSY, error_body
from mcp_hybrid.exchange.reply import Spawn

RETRY: Final = 0.5
"""Seconds between two attempts to record what is late."""
WORTH_KEEPING: Final = 600.0
"""Seconds after which it is not worth it: the log it belongs to has run out."""

_NOT_KEPT: Final = (
    "The result was lost with the connection: what the servers share cannot be reached, and there is no room to keep "
    "the result meanwhile. Repeat the call."
)


def event_id(stream: StreamKey, entry: str) -> str:
    """Return the SSE event id of a log entry: it names its stream (requirement R3)."""
    return f"{stream.name}.{entry}"


class LateBytes:
    """The bytes that wait for the backplane, of all journals of a process, and how many there may be."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.now = 0

    def take(self, size: int, *, forced: bool = False) -> bool:
        """Take room for a message. Returns whether there is any; what is small and cannot be left out is `forced`."""
        if not forced and self.now + size > self._most:
            return False
        self.now += size
        return True

    def give_back(self, size: int) -> None:
        """Give back the room of a message that was recorded, or is not going to be."""
        self.now -= size


@dataclass(frozen=True, slots=True, eq=False)
class _Record:
    """One entry of the log."""

    number: int
    data: bytes | None
    calls: bytes
    """The ids of the requests that have no answer in the log, once this is in it."""
    answers: RequestId | None = None
    """The request that this is the result of, where it is one."""
    result: bool = False
    delivered: bool = False

    @property
    def ordinary(self) -> bool:
        """Whether it may be dropped: it is neither a result nor the end."""
        return not self.result and self.data is not None

    @property
    def size(self) -> int:
        """What it takes while it waits."""
        return len(self.data or b"") + len(self.calls)


class StreamJournal:
    """The log of one call's answer (`exchange.reply.Journal`). It has one writer.

    What cannot be recorded while the backplane is away is recorded once it is back: a client that lost the stream
    would wait for the result for ever.
    """

    def __init__(
        self,
        backplane: Backplane,
        stream: StreamKey,
        calls: Sequence[RequestId],
        spawn: Spawn,
        late_bytes: LateBytes,
    ) -> None:
        """Make the log of the answer to the requests with these ids."""
        self._backplane = backplane
        self._stream = stream
        self._unanswered = list(calls)
        self._calls = to_json(self._unanswered)
        self._spawn = spawn
        self._limits = backplane.limits
        self._result_bytes = 0
        self._late: deque[_Record] = deque()
        self._late_entries = 0
        self._late_size = 0
        """The number and the bytes of those that are ordinary."""
        self._late_bytes = late_bytes
        self._number = 0

    async def record(self, message: bytes, *, result: bool = False) -> str | None:
        """Keep a message and return its event id; None where it is kept later, so that nobody can come back to it.

        A result that is too large to be kept is represented by an error for its request.
        """
        answers = None
        if result:
            answers, message = self._answer(message)
        return await self._record(_Record(self._next(), message, self._calls, answers, result=result))

    async def end(self, *, delivered: bool) -> None:
        """Keep that the stream is over."""
        await self._record(_Record(self._next(), None, self._calls, delivered=delivered))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _answer(self, body: bytes) -> tuple[RequestId | None, bytes]:
        """Take note which request a result answers, and return that and what is kept of the result."""
        place = next((i for i, id_ in enumerate(self._unanswered) if body.startswith(_start(id_))), None)
        if place is None:  # it answers nothing that is owed
            return None, body
        id_ = self._unanswered.pop(place)
        self._calls = to_json(self._unanswered)
        self._result_bytes += len(body)
        most = self._limits.result_bytes
        if self._result_bytes <= most:
            return id_, body
        self._result_bytes -= len(body)
        return id_, error_body(
            id_,
            INTERNAL_ERROR,
            f"The result has {len(body)} bytes, and was lost with the connection: at most {most} bytes of the results "
            "of a stream are kept for a client that comes back. Repeat the call, or ask for less.",
        )

    async def _record(self, record: _Record) -> str | None:
        if not self._late:
            try:
                return await self._append(record)
            except BackplaneUnavailableError:
                self._spawn(self._catch_up)
        self._put_off(record)
        return None

    async def _append(self, record: _Record) -> str | None:
        entry = await self._backplane.append(
            self._stream,
            record.data,
            record.calls,
            record.number,
            result=record.result,
            delivered=record.delivered,
        )
        return event_id(self._stream, entry) if entry is not None else None

    def _put_off(self, record: _Record) -> None:
        """Have a record wait for the backplane, within the bounds of its log and of the process.

        The oldest of those that are neither results nor the end go first. A result for which there is no room is
        represented by an error: without any answer a client that comes back would wait for ever.
        """
        if record.ordinary:
            while self._late_entries >= self._limits.events or self._late_size + record.size > self._limits.bytes:
                oldest = next((each for each in self._late if each.ordinary), None)
                if oldest is None:
                    return
                self._forget(oldest)
        if not self._late_bytes.take(record.size):
            if record.ordinary:
                return
            if record.answers is not None:
                record = replace(record, data=error_body(record.answers, SERVER_BUSY, _NOT_KEPT))
            self._late_bytes.take(record.size, forced=True)
        self._late.append(record)
        if record.ordinary:
            self._late_entries += 1
            self._late_size += record.size

    def _forget(self, record: _Record) -> None:
        """Have a record wait no more. Does nothing if it waits no more already."""
        if record not in self._late:
            return
        self._late.remove(record)
        self._late_bytes.give_back(record.size)
        if record.ordinary:
            self._late_entries -= 1
            self._late_size -= record.size

    async def _catch_up(self) -> None:
        """Keep what is late, in order. Given up when a client's last event id is no longer good for anything either."""
        try:
            with anyio.move_on_after(WORTH_KEEPING):
                while self._late:
                    await anyio.sleep(RETRY)
                    await self._append_late()
        finally:
            while self._late:
                self._forget(self._late[0])

    async def _append_late(self) -> None:
        try:
            while self._late:
                record = self._late[0]
                await self._append(record)
                # It may have had to make room for a newer one meanwhile.
                self._forget(record)
        except BackplaneUnavailableError:
            return


def _start(request_id: RequestId) -> bytes:
    """Return how the answer to a request begins (`exchange.outcome`, `errors.error_body`)."""
    return b'{"jsonrpc":"2.0","id":%b,' % to_json(request_id)
