"""The answer to one POST: one JSON body, or an event stream from the first message that precedes the result.

Nothing is decided until something has to be sent. A result that nothing preceded is one JSON body, written by the
task that made it. The first message before that turns the answer into an event stream, and from then on a task of
its own writes it: the tool that reports progress must not wait for a client that reads slowly.

    OPEN ──finish──────────────────────────────→ DONE     one JSON body
      └──push, commit──→ STREAMING ──finish──→ DONE       the result is the last event
                            └──close_early──→ (the client resumes elsewhere; the log goes on to the end)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Protocol

import anyio
import anyio.lowlevel
from starlette.types import Send

from mcp_hybrid.clock import now
from mcp_hybrid.counts import Count, Counts
from mcp_hybrid.exchange import sse
from mcp_hybrid.exchange.timers import Alarm, Delay
from mcp_hybrid.routing.media import Form

Headers = tuple[tuple[bytes, bytes], ...]
Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
"""Starts a task that outlives the request's own."""

BACKLOG: Final = 256
"""Messages that may wait for a slow client before whoever sends more has to wait for it, too."""

YIELDS: Final = 12
"""Scheduler turns that a reporter gives the writer. A write that need not wait for the client is through within them
(Hypercorn takes three or four); one that is not through waits for the client, and then the reporter waits no more."""

BURST_TIME: Final = 0.001
"""Seconds after which a reporter gives the writer these turns again: what is reported meanwhile is written at once."""

BURST: Final = 32
"""Values that may be reported in that time before the writer is given its turns all the same."""


class Journal(Protocol):
    """Keeps a stream's messages for a client that comes back for them."""

    async def record(self, message: bytes, *, result: bool = False) -> str | None:
        """Keep a message (empty: the priming event) and return its event id; None if it is not kept."""
        ...

    async def end(self, *, delivered: bool) -> None:
        """Keep that the stream is over, and whether the client was sent all of it on an unbroken connection."""
        ...


@dataclass(frozen=True, slots=True)
class Resumption:
    """What lets a client come back for the stream of an answer."""

    open_journal: Callable[[], Journal]
    watch_client: Callable[[Callable[[], None]], Callable[[], None]]
    """Given what to do when the client goes while the stream lasts, returns what ends the watch."""
    primed: bool
    """Whether the stream starts with a priming event (2025-11-25 and later only)."""


class _State(Enum):
    OPEN = auto()
    STREAMING = auto()
    DONE = auto()


@dataclass(slots=True)
class _Item:
    """One message that waits to be written."""

    data: bytes
    """What progress says may be replaced by something newer until it is written."""
    result: bool = False


class Reply:
    """One request's answer on its way out."""

    def __init__(
        self,
        send: Send,
        form: Form,
        headers: Headers,
        spawn: Spawn,
        keep_alive: Delay,
        *,
        counts: Counts,
        resumption: Resumption | None = None,
    ) -> None:
        """Make an undecided answer; `resumption` makes its stream resumable, should it become one."""
        self._send = send
        self._form = form
        self._headers = headers
        self._spawn = spawn
        self._keep_alive = keep_alive
        self._counts = counts
        self._resumption = resumption
        self._journal: Journal | None = None
        self._end_watch: Callable[[], None] | None = None
        self._state = _State.OPEN
        self._queue: deque[_Item] = deque()
        self._progress: _Item | None = None
        """The newest value, if it is the last in the queue."""
        self._uncounted = 0
        """Values in the queue that are not in the figures yet."""
        self._yielded = -math.inf
        """When a reporter last gave the writer its turns."""
        self._writing = False
        self._finished = False
        self._wire_open = True
        self._delivered = False
        """Whether the last byte was handed to a connection that was whole until then."""
        self._wake: anyio.Event | None = None
        self._written: anyio.Event | None = None
        self._room: anyio.Event | None = None
        self._alarm: Alarm | None = None

    @property
    def streams(self) -> bool:
        """Whether a message may precede the result."""
        return self._form.streams

    @property
    def streaming(self) -> bool:
        """Whether the answer is an event stream already."""
        return self._state is _State.STREAMING

    def commit(self) -> None:
        """Turn the answer into an event stream now. Does nothing once it is one, or is done, or may not become one."""
        if self._state is not _State.OPEN or not self._form.streams:
            return
        self._state = _State.STREAMING
        if self._resumption is not None:
            self._journal = self._resumption.open_journal()
            self._end_watch = self._resumption.watch_client(self._lose_client)
        self._written = anyio.Event()
        self._counts.add(Count.POST_STREAMS_NOW)
        self._alarm = self._keep_alive.add(self._stay_alive)
        self._spawn(self._write_stream)

    def put(self, message: bytes) -> None:
        """Send a message ahead of the result, without waiting. What comes after the result is dropped."""
        if self._finished or not self._form.streams:
            return
        self.commit()
        self._progress = None
        self._enqueue(_Item(message))

    async def push(self, message: bytes) -> None:
        """Send a message ahead of the result; waits while a client that reads slowly has `BACKLOG` of them to take."""
        self.put(message)
        await anyio.lowlevel.checkpoint()
        await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        while len(self._queue) >= BACKLOG and self._state is _State.STREAMING:
            self._room = self._room or anyio.Event()
            await self._room.wait()

    async def push_progress(self, message: bytes) -> None:
        """Send a progress notification; only the newest is kept while something is being written.

        Gives the writer a few turns now and then, so that a client that keeps up is sent every value even if the tool
        never pauses.
        """
        if self._finished or not self._form.streams:
            return
        if not self.put_progress(message):
            await anyio.lowlevel.checkpoint()
        elif now() - self._yielded >= BURST_TIME or len(self._queue) >= BURST:
            await self._let_write()

    def put_progress(self, message: bytes) -> bool:
        """Send a progress notification, without waiting. Returns False if it took the place of an older one."""
        if self._finished or not self._form.streams:
            return False
        self.commit()
        if self._writing and self._progress is not None:
            # It is the last in the queue: whatever else is put there ends its being the newest.
            self._progress.data = message
            self._counts.add(Count.PROGRESS_COALESCED)
            return False
        self._uncounted += 1
        self._progress = _Item(message)
        self._enqueue(self._progress)
        return True

    async def settle(self) -> None:
        """Wait as senders have to that never pause: the writer has its turns, and a client that reads slowly its time.

        For senders in another thread, which put their messages without waiting.
        """
        await self._let_write()
        await self._wait_for_room()

    async def _let_write(self) -> None:
        for _ in range(YIELDS):
            await anyio.lowlevel.checkpoint()
            if not self._queue and not self._writing:
                break
        self._yielded = now()

    def close_early(self) -> None:
        """End the HTTP answer before the result (requirement E6); the client comes back for the rest by event id."""
        if self._finished or self._resumption is None:
            return
        self.commit()
        self._progress = None  # what is newer comes after the end, and must not take the place of what came before it
        self._enqueue(_CLOSE)

    async def finish(self, bodies: Sequence[bytes], *, status: int = 200, array: bool = False) -> None:
        """Send the result (of a batch, the results) and end the answer. Returns when it has been written.

        `status` is for a JSON body only: a stream has said 200 already. `array` makes the JSON body an array.
        """
        self._finished = True
        if self._state is _State.STREAMING:
            assert self._written is not None
            for body in bodies:
                self._enqueue(_Item(body, result=True))
            self._enqueue(_CLOSE)
            await self._written.wait()
            return
        self._state = _State.DONE
        if self._form is Form.SSE:
            await self._write(200, (*sse.HEADERS, *self._headers), b"".join(map(sse.event, bodies)))
        else:
            body = b"[%b]" % b",".join(bodies) if array else bodies[0]
            await self._write(status, (_JSON, *self._headers), body)

    async def abandon(self) -> None:
        """End the answer without a result: the client is gone, and must be sent nothing more (E11)."""
        self._finished = True
        self._wire_open = False
        if self._state is _State.STREAMING:
            assert self._written is not None
            self._queue.clear()
            self._enqueue(_CLOSE)
            await self._written.wait()
        self._state = _State.DONE

    async def _write(self, status: int, headers: Headers, body: bytes) -> None:
        length = (b"content-length", b"%d" % len(body))
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def _enqueue(self, item: _Item) -> None:
        self._queue.append(item)
        if self._wake is not None:
            self._wake.set()
            self._wake = None

    def _stay_alive(self) -> None:
        if self._state is _State.STREAMING and self._wire_open:
            if not self._queue and not self._writing:
                self._enqueue(_PING)
            self._alarm = self._keep_alive.add(self._stay_alive)

    async def _write_stream(self) -> None:
        """Write the stream until it is finished, whatever becomes of the client meanwhile."""
        assert self._written is not None
        try:
            await self._send_event({"type": "http.response.start", "status": 200, "headers": self._stream_headers()})
            first = await self._priming_event()
            while first or self._queue or not self._finished:
                if first or self._queue:
                    await self._write_queue(first)
                    first = b""
                else:
                    self._wake = anyio.Event()
                    await self._wake.wait()
            if self._journal is not None:
                await self._journal.end(delivered=self._delivered)
        finally:
            self._state = _State.DONE
            if self._end_watch is not None:
                self._end_watch()
                self._end_watch = None
            self._counts.add(Count.POST_STREAMS_NOW, -1)
            if self._alarm is not None:
                self._alarm.cancel()
            if self._room is not None:
                self._room.set()
            self._written.set()

    async def _priming_event(self) -> bytes:
        if self._journal is None or self._resumption is None or not self._resumption.primed:
            return b""
        event_id = await self._journal.record(b"")
        return sse.priming_event(event_id) if event_id is not None else b""

    async def _write_queue(self, first: bytes) -> None:
        """Write what waits, in one go, and something that comes first."""
        self._progress = None  # a newer value must not take the place of one that is on its way
        self._writing = True
        if self._uncounted:
            self._counts.add(Count.PROGRESS_SENT, self._uncounted)
            self._uncounted = 0
        pieces = [first]
        last = False
        try:
            for _ in range(len(self._queue)):  # not what comes meanwhile, or nothing would ever be written
                item = self._queue.popleft()
                if item is _CLOSE:
                    last = True
                    break
                if item is _PING:
                    pieces.append(sse.KEEP_ALIVE)
                else:
                    event_id = await self._record(item)
                    pieces.append(sse.event(item.data, event_id))
            await self._send_bytes(b"".join(pieces), last=last)
        finally:
            self._writing = False
            if self._room is not None and len(self._queue) < BACKLOG:
                self._room.set()
                self._room = None

    async def _record(self, item: _Item) -> str | None:
        return await self._journal.record(item.data, result=item.result) if self._journal is not None else None

    def _lose_client(self) -> None:
        """Take note that the client is gone. ASGI servers take what is sent to it as if it were still there."""
        self._wire_open = False

    def _stream_headers(self) -> list[tuple[bytes, bytes]]:
        return [*sse.HEADERS, *self._headers]

    async def _send_bytes(self, data: bytes, *, last: bool = False) -> None:
        if self._wire_open:
            await self._send_event({"type": "http.response.body", "body": data, "more_body": not last})
        if last:
            self._delivered, self._wire_open = self._wire_open, False

    async def _send_event(self, event: dict[str, Any]) -> None:
        try:
            await self._send(event)
        except OSError:
            # The ASGI way for a server to say that the client is gone; the log goes on without it.
            self._wire_open = False


_JSON: Final = (b"content-type", b"application/json")
_CLOSE: Final = _Item(b"")
_PING: Final = _Item(b"")
