"""Hypercorn's two protocols, hardened: what is wrong with one stream stays with it, and connections end in order.

**HTTP/1.1.** A connection that is to end with its answer (`Connection: close`) stays open if the application cancels
itself on hearing that the request is over: Hypercorn 0.18 is then cancelled between saying so and closing.

**HTTP/2.** Hypercorn ends a whole connection for a DATA frame that comes after its stream was answered, and for a path
that is not ASCII. When it stops, or has served `keep_alive_max_requests` on a connection, it declares the connection
closed before the last answer's end is written, which then never is, and resets requests that come in meanwhile. It
closes idle connections without a word, under clients that are sending their next request. And a client that goes while
an answer waits for it to take more leaves the application waiting for ever. A few PRIORITY frames that make streams
depend on one another in a circle have the whole worker search for the next stream for ever.

**Websockets**, none of which is served. A client that does not wait for the refusal is refused twice. Over HTTP/1.1
that ends the connection; over HTTP/2 the second head is encoded, found wrong and not sent, and from then on the client
reads the headers of all other streams by a table that is not the server's.
"""

from __future__ import annotations

import copy
from typing import Any, Final, cast

import h2.events
import h11
import trio
from h2.errors import ErrorCodes
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.worker_context import EventWrapper
from hypercorn.typing import ASGISendEvent, H11SendableEvent

_LOOK: Final = 0.01
"""Seconds between two looks at whether everything has been written."""


class HardenedHTTPStream(HTTPStream):
    """One request and its answer, which tells a part of a body that is the last from others."""

    is_last = False

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Take what the application says."""
        self.is_last = (
            message is not None and message["type"] == "http.response.body" and not message.get("more_body", False)
        )
        await super().app_send(message)


class HardenedH11Protocol(H11Protocol):
    """One HTTP/1.1 connection.

    What belongs together is written together: the head of an answer with the first part of its body (before which, by
    ASGI, nothing of it may be sent), and the last part with the end. One write for most answers, where Hypercorn makes
    three.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = b""
        """What is written with what follows it."""

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        hold = isinstance(event, h11.Response) or (isinstance(event, h11.Data) and self._is_last)
        await self._say(data or b"", hold=hold)

    async def _say(self, data: bytes, *, hold: bool = False) -> None:
        """Write to the connection; what is to `hold` is written together with what comes next."""
        self._held += data
        if self._held and not hold:
            data, self._held = self._held, b""
            await self.send(RawData(data))

    @property
    def _is_last(self) -> bool:
        return isinstance(self.stream, HardenedHTTPStream) and self.stream.is_last

    async def _maybe_recycle(self) -> None:
        with trio.CancelScope(shield=True):  # bounded: what it writes has a time limit of its own
            await super()._maybe_recycle()


class HardenedH2Protocol(H2Protocol):
    """One HTTP/2 connection. It serves until it is idle, and only then does it go."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What it is told of the worker's end makes it cut its last answers; the connection around it ends it instead.
        context = copy.copy(self.context)
        context.terminated = EventWrapper()
        context.mark_request = self.context.mark_request  # type: ignore[method-assign]  # the worker counts, not the copy
        self.context = context
        self._finished = False

    async def handle(self, event: Event) -> None:
        """Take what came on the connection. What comes after its end was said is for another one."""
        if self._finished and isinstance(event, RawData):
            return
        await super().handle(event)
        if isinstance(event, Closed):
            for buffer in list(self.stream_buffers.values()):
                await buffer.close()  # nobody will take what waits in it

    async def stream_send(self, event: StreamEvent) -> None:
        """Send a part of an answer, if there is anybody to send it to."""
        if not self.closed:
            await super().stream_send(event)

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        self.keep_alive_requests = 0  # at the limit, Hypercorn ends the connection in the middle of a request
        admitted = (event for event in events if self._admit(event))  # one by one: each may open or end a stream
        await super()._handle_events(cast("list[h2.events.Event]", admitted))

    def _admit(self, event: h2.events.Event) -> bool:
        if self.closed or isinstance(event, h2.events.PriorityUpdated):
            return False  # after the end of the connection, or deprecated (RFC 9113, section 5.3.2)
        if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
            # Sent before the client saw that it was answered already.
            self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            return False
        if isinstance(event, h2.events.RequestReceived) and not _path(event).isascii():
            self.connection.reset_stream(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            return False
        return True

    async def finish(self) -> None:
        """Say that the connection ends, after everything was written that is on its way.

        It names the last request that was taken (RFC 9113, section 6.8): a client may repeat those after it elsewhere.
        """
        while self.stream_buffers:  # noqa: ASYNC110 - Hypercorn has no event for it
            await trio.sleep(_LOOK)
        self._finished = True
        self.connection.close_connection()
        await self._flush()


def _path(request: h2.events.RequestReceived) -> bytes:
    """Return the path. One that is missing, which only a tunnel's may, is none that is served."""
    return next((bytes(value) for name, value in request.headers if name == b":path"), b"\xff")


class HardenedWSStream(WSStream):
    """One websocket that is asked for, and refused once."""

    _is_refused = False

    async def _send_error_response(self, status_code: int) -> None:
        if not self._is_refused:
            self._is_refused = True
            await super()._send_error_response(status_code)
