"""Hypercorn's HTTP/1.1 and its streams, hardened: what is wrong with one stays with it, and connections end in order.

**HTTP/1.1.** A connection that is to end with its answer (`Connection: close`) stays open if the application cancels
itself on hearing that the request is over: Hypercorn 0.18 is then cancelled between saying so and closing. It takes up
HTTP/2 in the middle of a connection, on which a proxy then sees nothing any more: only a connection that begins with it
has it here, and `Upgrade: h2c` is ignored (RFC 9110, section 7.8, allows that). A request with two lengths is refused
(RFC 9112, section 6.1). A client that has sent a whole request and closes its writing half is answered.

**Websockets**, none of which is served. A client that does not wait for the refusal is refused twice, and its
connection is neither closed nor idle from then on. Over HTTP/1.1 the second refusal ends the connection; over HTTP/2
the second head is encoded, found wrong and not sent, and from then on the client reads the headers of all other streams
by a table that is not the server's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import h11
import trio
from hypercorn.events import Closed, RawData
from hypercorn.protocol.events import Body, Data, Request, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.typing import ASGISendEvent, H11SendableEvent

from mcp_hybrid.server.tasks import HALF_CLOSED


class HardenedHTTPStream(HTTPStream):
    """One request and its answer, which tells a part of a body that is the last from others."""

    is_last = False
    is_half_closed = False
    """Whether its client has closed its writing half."""

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Take what the application says."""
        self.is_last = (
            message is not None and message["type"] == "http.response.body" and not message.get("more_body", False)
        )
        if message is None and self.is_half_closed and self.state is ASGIHTTPState.REQUEST and not self.closed:
            self.state = ASGIHTTPState.CLOSED  # for the application the client is gone: there is no answer
            await self.send(StreamClosed(self.stream_id))
            return
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

    async def half_close(self) -> bool:
        """Note that the client sends nothing more. Returns whether it has sent a whole request, and may be answered."""
        stream = self.stream
        if not isinstance(stream, HardenedHTTPStream) or stream.closed or not self._is_complete:
            return False
        stream.is_half_closed = True
        await stream.app_put(HALF_CLOSED)
        return True

    @property
    def _is_complete(self) -> bool:
        """Whether all of the current request has come."""
        return self.connection.their_state is h11.CLOSED

    async def _check_protocol(self, event: h11.Request) -> None:
        if self._is_preface(event) and not self.keep_alive_requests:
            await super()._check_protocol(event)

    async def _create_stream(self, request: h11.Request) -> None:
        if self._is_preface(request) or not _has_one_length(request):
            await self._send_error_response(400)
            await self.send(Closed())
            return
        await super()._create_stream(request)

    @staticmethod
    def _is_preface(request: h11.Request) -> bool:
        return (request.method, request.target, request.http_version) == (b"PRI", b"*", b"2.0")

    async def _maybe_recycle(self) -> None:
        with trio.CancelScope(shield=True):  # bounded: what it writes has a time limit of its own
            await super()._maybe_recycle()


def _has_one_length(request: h11.Request) -> bool:
    """Whether one header says where the body ends, and one that this version of HTTP has."""
    names = {name for name, _ in request.headers}
    return b"transfer-encoding" not in names or (b"content-length" not in names and request.http_version == b"1.1")


_ASCII_ONLY: Final = frozenset({b"connection", b"sec-websocket-extensions", b"sec-websocket-protocol"})
"""Headers of a websocket that are read as ASCII. One that is not would end the connection with an internal error."""


class HardenedWSStream(WSStream):
    """One websocket that is asked for, and refused once. It is over with that."""

    _is_refused = False

    async def handle(self, event: StreamEvent) -> None:
        """Take what comes on the stream. What comes before the answer breaks the upgrade."""
        if isinstance(event, Request):
            headers = [each for each in event.headers if each[0].lower() not in _ASCII_ONLY or each[1].isascii()]
            event = replace(event, headers=headers)
        elif isinstance(event, Body | Data) and not self.closed and not self.handshake.accepted:
            await self._send_error_response(400)
            await self.send(StreamClosed(self.stream_id))
            return
        await super().handle(event)
        if self.closed and isinstance(event, Request):  # refused by Hypercorn itself, which then forgets about it
            await self.send(StreamClosed(self.stream_id))

    async def _send_error_response(self, status_code: int) -> None:
        if not self._is_refused:
            self._is_refused = True
            await super()._send_error_response(status_code)
