"""Connections to the HTTP server in this process: no socket, no process, and a clock that tests may turn.

Bytes go in at one end and come out at the other, as on a socket; Hypercorn's parts are replaced as `harden` does it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from socket import AF_INET
from types import SimpleNamespace
from typing import Any, cast

import h2.config
import h2.connection
import h2.events
import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.protocol.h11
import hypercorn.trio.tcp_server
import pytest
import trio
import trio.testing
from h2.settings import SettingCodes
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.typing import ConnectionState

from mcp_hybrid.server.draining import DrainingContext
from mcp_hybrid.server.http1 import PlainHTTP1Protocol
from mcp_hybrid.server.http2 import HardenedH2Protocol
from mcp_hybrid.server.protocols import HardenedHTTPStream, HardenedWSStream
from mcp_hybrid.server.tasks import HardenedTaskGroup
from mcp_hybrid.server.worker import HardenedTCPServer

Stream = trio.StapledStream[Any, Any]
Connect = Callable[..., Awaitable[Stream]]
App = Callable[[Any, Any, Any], Awaitable[None]]


def config(**values: Any) -> Config:
    """Make a configuration like the one that `mcp-hybrid serve` makes."""
    made = Config()
    made.keep_alive_timeout, made.read_timeout, made.accesslog = 75.0, None, None
    made.h11_max_incomplete_size = made.h2_max_header_list_size = 32 * 1024
    for name, value in values.items():
        setattr(made, name, value)
    return made


@asynccontextmanager
async def serving(app: App, settings: Config | None = None) -> AsyncIterator[Connect]:
    """Serve an application. What is given connects to it, from an address if one is passed; it returns a stream."""
    settings = settings or config()
    context = DrainingContext(None, drain=None, linger=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hypercorn.protocol, "H11Protocol", PlainHTTP1Protocol)
        patch.setattr(hypercorn.protocol, "H2Protocol", HardenedH2Protocol)
        patch.setattr(hypercorn.protocol.h11, "HTTPStream", HardenedHTTPStream)
        patch.setattr(hypercorn.protocol.h11, "WSStream", HardenedWSStream)
        patch.setattr(hypercorn.protocol.h2, "WSStream", HardenedWSStream)
        patch.setattr(hypercorn.trio.tcp_server, "TaskGroup", HardenedTaskGroup)
        async with trio.open_nursery() as nursery:

            async def connect(address: str = "192.0.2.1") -> Stream:
                client, server = trio.testing.memory_stream_pair()
                names = {"getpeername": lambda: (address, 50000), "getsockname": lambda: ("192.0.2.99", 80)}
                server.socket = SimpleNamespace(family=AF_INET, **names)  # type: ignore[attr-defined]
                wrapped = ASGIWrapper(cast("Any", app))
                nursery.start_soon(HardenedTCPServer(wrapped, settings, context, ConnectionState({}), server).run)
                await trio.testing.wait_all_tasks_blocked()
                return client

            yield connect
            nursery.cancel_scope.cancel()


async def everything(stream: Stream) -> bytes:
    """Read until the server closes the connection."""
    read = b""
    try:
        while piece := await stream.receive_some():
            read += piece
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    return read


class Http2Client:
    """A client of HTTP/2 that may send whatever it likes."""

    def __init__(self, stream: Stream, **settings: int) -> None:
        self.stream = stream
        lenient = h2.config.H2Configuration(
            header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.http = h2.connection.H2Connection(lenient)
        self.http.initiate_connection()
        self.http.update_settings({SettingCodes[name.upper()]: value for name, value in settings.items()})
        self.status: dict[int, int] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        """The error codes of streams that were reset."""
        self.goaway: int | None = None
        """The error code with which the connection was ended."""

    def ask(
        self, stream: int, path: str = "/", *headers: tuple[Any, Any], method: Any = "GET", end: bool = True
    ) -> None:
        """Write the head of a request; `flush` sends it."""
        fields = [(":method", method), (":scheme", "http"), (":authority", "localhost"), (":path", path)]
        self.http.send_headers(stream, [*fields, *headers], end_stream=end)

    async def flush(self) -> None:
        """Send what was written."""
        await self.stream.send_all(self.http.data_to_send())

    async def until(self, happened: Callable[[], bool]) -> None:
        """Read until something has happened, or the connection ends."""
        while not happened():
            data = await self._receive()
            if not data:
                return
            for event in self.http.receive_data(data):
                self._note(event)
            if out := self.http.data_to_send():
                await self.stream.send_all(out)

    async def _receive(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some())
        except trio.BrokenResourceError:
            return b""

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.status[event.stream_id] = int(dict(cast("Sequence[Any]", event.headers))[b":status"])
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
            self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.reset[event.stream_id] = event.error_code
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = event.error_code
