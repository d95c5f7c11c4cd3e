"""HTTP/1.1 where nothing about it is rare, in few steps; and Hypercorn's where something is.

A connection starts here. One plain request after another is read by `plain_head` and answered by `plain_stream`. With
the first that is not plain (a websocket, HTTP/2 in the clear, a body in chunks, `Expect`, another version, a method
that is not known, anything wrong) the connection goes over to h11 for good, together with every byte of that request.

What is refused, and how, is therefore what it was before. What waits is bounded as before, too: a head by
`h11_max_incomplete_size`, and nothing is read on while a request waits for the answer to the one before it.
"""

from __future__ import annotations

import re
from typing import Any, Final

import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID

from mcp_hybrid.server.plain_answer import PlainAnswer
from mcp_hybrid.server.plain_head import PlainHead, read_plain_head
from mcp_hybrid.server.plain_stream import PlainStream, server_headers
from mcp_hybrid.server.protocols import HardenedH11Protocol

_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
"""As h11 has it. A line that ends without a carriage return is h11's to judge."""


class PlainHTTP1Protocol(HardenedH11Protocol):
    """One HTTP/1.1 connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plain = not self.config.h11_pass_raw_headers
        self._head = b""
        """What there is of the next request's head."""
        self._missing = 0
        """Bytes of the current request's body that are still to come."""
        self._answer = PlainAnswer(ends=False)
        self._closed = False

    async def handle(self, event: Event) -> None:
        """Take what came on the connection."""
        if not self._plain:
            await super().handle(event)
        elif isinstance(event, RawData):
            await self._take(event.data)
        else:
            self._closed = True
            await self.can_read.set()
            await super().handle(event)

    async def _take(self, data: bytes) -> None:
        if not data:
            await self._take_end()
            return
        if self._missing:
            part, data = data[: self._missing], data[self._missing :]
            self._missing -= len(part)
            if isinstance(self.stream, PlainStream):
                await self.stream.take_body(part, more=self._missing > 0)
        while data and not self._closed:
            if self.stream is not None:  # this request waits for the answer to the one before it
                await self.can_read.clear()
                await self.can_read.wait()
                continue
            if not self._plain:
                await super().handle(RawData(data))
                return
            data = await self._take_head(self._head + data)

    async def _take_head(self, data: bytes) -> bytes:
        """Take a request's head, with what came of its body. Returns what is left for the next."""
        end = _END_OF_HEAD.search(data)
        if end is None:
            if len(data) > self.config.h11_max_incomplete_size or not data[:1].isupper():
                return self._go_over(data)
            self._head = data
            return b""
        read = read_plain_head(data[: end.end()]) if end.end() <= self.config.h11_max_incomplete_size else None
        if read is None:
            return self._go_over(data)
        self._head = b""
        head, length, ends = read
        body = data[end.end() : end.end() + length]
        self._missing = length - len(body)
        stream = await self._begin(head, ends)
        await stream.take_body(body, more=self._missing > 0)
        if stream.closed:  # refused by Hypercorn itself: it was meant for another server
            await self._maybe_recycle()
        return data[end.end() + length :]

    def _go_over(self, data: bytes) -> bytes:
        self._plain, self._head = False, b""
        return data

    async def _begin(self, head: PlainHead, ends: bool) -> PlainStream:
        await self.send(Updated(idle=False))
        self._answer = PlainAnswer(ends=ends or self.keep_alive_requests + 1 >= self.config.keep_alive_max_requests)
        self.stream = stream = PlainStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await stream.begin(head, self.connection_state, self._answer, self._say)
        self.keep_alive_requests += 1
        await self.context.mark_request()
        return stream

    async def _take_end(self) -> None:
        """Take it that the client sends no more. Who has sent a whole request may still wait for its answer."""
        if self._head:
            await super().handle(RawData(self._go_over(self._head)))
            await super().handle(RawData(b""))
        elif self._missing and not self._closed:
            if not self._answer.begun:
                headers = [(b"content-length", b"0"), (b"connection", b"close")]
                await self.stream_send(Response(STREAM_ID, headers, 400))
                await self.stream_send(EndBody(STREAM_ID))
            await self.send(Closed())

    async def half_close(self) -> bool:
        """See `HardenedH11Protocol`."""
        self._answer.ends = True
        return await super().half_close()

    @property
    def _is_complete(self) -> bool:
        return not self._missing if self._plain else super()._is_complete

    # ---- the answer

    async def stream_send(self, event: StreamEvent) -> None:
        """Take what Hypercorn's stream says of its own accord, or for an application that says something rare."""
        if not self._plain:
            await super().stream_send(event)
        elif isinstance(event, StreamClosed):
            await self._maybe_recycle()
        elif isinstance(event, Body):
            await self._say(self._answer.body(event.data))
        elif isinstance(event, EndBody):
            await self._say(self._answer.end())
        elif isinstance(event, Response):
            headers = [*event.headers, *server_headers(self.config)]
            await self._say(self._answer.head(event.status_code, headers), hold=True)

    async def _maybe_recycle(self) -> None:
        """Be ready for the next request, or end the connection."""
        if not self._plain:
            await super()._maybe_recycle()
            return
        await self._close_stream()
        answer = self._answer
        if answer.done and not answer.ends and not self._missing and not self.context.terminated.is_set():
            await self.can_read.set()
            await self.send(Updated(idle=True))
            return
        self._closed = True
        await self.can_read.set()
        with trio.CancelScope(shield=True):  # bounded: what it writes has a time limit of its own
            await self.send(Closed())
