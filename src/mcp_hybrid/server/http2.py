"""Hypercorn's HTTP/2, hardened: connections end in order, and nothing on them lasts longer than it may.

Hypercorn 0.18 ends a whole connection for a DATA frame that comes after its stream was answered. When it stops, or has
served `keep_alive_max_requests` on a connection, it declares the connection closed before the last answer's end is
written, which then never is, and resets requests that come in meanwhile. It closes idle connections without a word,
under clients that are sending their next request; and connections on which nothing was ever asked, or only what it
refused by itself, it takes for busy and never closes. A client that goes while an answer waits for it to take more
leaves the application waiting for ever, and so does one that stays and takes nothing. A few PRIORITY frames that make
streams depend on one another in a circle have the whole worker search for the next stream for ever.

What is wrong with single frames is `http2_frames`' matter.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any, ClassVar, Final, cast

import h2.events
import structlog
import trio
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Trailers
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.trio.worker_context import EventWrapper

from mcp_hybrid.counts import Count, Counts
from mcp_hybrid.server.http2_frames import ServerConnection, TooManyResetsError
from mcp_hybrid.server.tasks import HardenedTaskGroup

log = structlog.get_logger("mcp_hybrid")

_LOOK: Final = 0.01
"""Seconds between two looks at whether everything has been written."""

_TURN: Final = 4096
"""Bytes that are read at a time before others have a turn. The smallest frames, of which a client can send thousands
in one packet, take some 20 µs each."""


class HardenedH2Protocol(H2Protocol):
    """One HTTP/2 connection. It serves until it is idle, and only then does it go."""

    write_time: ClassVar[float] = 60.0
    """Seconds for a client to take one part of an answer (`limits.write_time`)."""
    counts: ClassVar[Counts] = Counts()
    """Counts what was closed for a limit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What it is told of the worker's end makes it cut its last answers; the connection around it ends it instead.
        context = copy.copy(self.context)
        context.terminated = EventWrapper()
        context.mark_request = self.context.mark_request  # type: ignore[method-assign]  # the worker counts, not the copy
        self.context = context
        self._finished = False
        plain = self.connection
        self._frames = self.connection = ServerConnection(plain.config, self._is_full)
        self.connection.DEFAULT_MAX_INBOUND_FRAME_SIZE = plain.DEFAULT_MAX_INBOUND_FRAME_SIZE
        self.connection.local_settings = plain.local_settings
        vars(plain).clear()  # it holds methods of its own: a circle, see `release`

    async def initiate(self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None) -> None:
        """Begin. Nothing runs on the connection yet, whatever the request was that it began with in HTTP/1.1."""
        await super().initiate(headers, settings)
        await self.send(Updated(idle=self.idle))

    async def handle(self, event: Event) -> None:
        """Take what came on the connection. What comes after its end was said is for another one."""
        if isinstance(event, RawData):
            await self._take(event.data)
            return
        await super().handle(event)
        if isinstance(event, Closed):
            for buffer in list(self.stream_buffers.values()):
                await buffer.close()  # nobody will take what waits in it

    async def _take(self, data: bytes) -> None:
        """Take it piece by piece: others have a turn in between, however many frames there are in it."""
        for start in range(0, len(data), _TURN):
            if start:
                await trio.lowlevel.checkpoint()
            if self._finished or self.closed:
                return
            try:
                events = self.connection.receive_data(data[start : start + _TURN])
            except ProtocolError as error:
                self._note(error)
                await self._flush()
                await self.send(Closed())
            else:
                await self._handle_events(events)

    def _note(self, error: ProtocolError) -> None:
        if isinstance(error, TooManyResetsError):
            self.counts.add(Count.CONNECTIONS_RESETTING)
            log.info("a connection was dropped: its client reset too many requests")

    async def stream_send(self, event: StreamEvent) -> None:
        """Send a part of an answer, if there is anybody to send it to, who takes it in time."""
        if self.closed:
            return
        if not isinstance(event, Body | EndBody | Trailers):
            await super().stream_send(event)
            return
        with trio.move_on_after(self.write_time) as scope:
            await super().stream_send(event)
        if scope.cancelled_caught:
            await self._give_up(event.stream_id)

    async def _give_up(self, stream_id: int) -> None:
        """Reset a stream whose client takes nothing. What else there is on the connection goes on."""
        self.counts.add(Count.CONNECTIONS_NOT_READ)
        log.info("an HTTP/2 stream was reset: its client did not read", seconds=self.write_time)
        with suppress(ProtocolError):  # it is closed already
            self.connection.reset_stream(stream_id, ErrorCodes.CANCEL)
        if (buffer := self.stream_buffers.get(stream_id)) is not None:
            await buffer.close()
            self.priority.unblock(stream_id)  # for the task that sends, which removes what is closed
        await self._close_stream(stream_id)
        await self._flush()
        await self.send(Updated(idle=self.idle))

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        self.keep_alive_requests = 0  # at the limit, Hypercorn ends the connection in the middle of a request
        gone = {event.stream_id for event in events if isinstance(event, h2.events.StreamReset)}
        # One by one: each may open or end a stream.
        admitted = (event for event in events if self._admit(event, gone))
        await super()._handle_events(cast("list[h2.events.Event]", admitted))
        if not self.closed and any(isinstance(event, h2.events.RequestReceived) for event in events):
            # Hypercorn takes each for one that is being served, also those that are over already.
            await self.send(Updated(idle=self.idle))

    def _admit(self, event: h2.events.Event, gone: set[int]) -> bool:
        if self.closed or isinstance(event, h2.events.PriorityUpdated):
            return False  # after the end of the connection, or deprecated (RFC 9113, section 5.3.2)
        if isinstance(event, h2.events.RequestReceived):
            return event.stream_id not in gone  # nobody waits for it any more
        if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
            # Sent before the client saw that it was answered already.
            with suppress(ProtocolError):  # or before it was reset
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            return False
        return True

    def _is_full(self) -> bool:
        """Whether as much is running as there may be streams: also for those that their client has reset."""
        tasks = self.task_group
        return isinstance(tasks, HardenedTaskGroup) and tasks.running >= self.config.h2_max_concurrent_streams

    def release(self) -> None:
        """Let go of what the connection holds, once it is over: circles, which would wait for the garbage collector."""
        self._frames.release()

    async def finish(self) -> None:
        """Say that the connection ends, after everything was written that is on its way.

        It names the last request that was taken (RFC 9113, section 6.8): a client may repeat those after it elsewhere.
        """
        while self.stream_buffers:  # noqa: ASYNC110 - Hypercorn has no event for it
            await trio.sleep(_LOOK)
        self._finished = True
        self.connection.close_connection()
        await self._flush()
