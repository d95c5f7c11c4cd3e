"""Hypercorn's connection handler, hardened: what one client does to its connection stays with that connection.

Hypercorn 0.18 on Trio runs all connections of a worker in one nursery. An exception out of any of them ends the worker,
and with it the whole server: a frame that HTTP/2 forbids, a path that is not ASCII, a stray byte after a websocket
upgrade (each is one packet from anybody). A write that the client never takes cannot be cancelled, so that one client
that stops reading keeps a process from ever ending. And a connection that was reset during a call is kept, once the
call has ended, for as long as an idle one.

The handler is replaced where Hypercorn looks it up, so that `mcp-hybrid serve` and `hypercorn -k trio` both get it.
`tests/test_hypercorn_defects.py` shows what for, and pins the seams.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final

import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.protocol.h11
import hypercorn.trio.run
import hypercorn.trio.tcp_server
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import AppWrapper, LifespanState

from mcp_hybrid.counts import Count, Counts
from mcp_hybrid.server.accepting import EagerTrio
from mcp_hybrid.server.connections import Connections, allowed_by_files
from mcp_hybrid.server.draining import Drain, DrainingContext, Linger
from mcp_hybrid.server.failures import Failures
from mcp_hybrid.server.http1 import PlainHTTP1Protocol
from mcp_hybrid.server.http2 import HardenedH2Protocol
from mcp_hybrid.server.idle import IdleDeadline
from mcp_hybrid.server.protocols import HardenedH11Protocol, HardenedHTTPStream, HardenedWSStream
from mcp_hybrid.server.tasks import HardenedTaskGroup
from mcp_hybrid.server.turns import first_come_first_served
from mcp_hybrid.server.wire import wire_of
from mcp_hybrid.settings import LimitSettings

log = structlog.get_logger("mcp_hybrid")

_TOLD_EVERY: Final = 60.0
"""Seconds between two log lines about connections that are closed because there are too many."""

_failures: Final = Failures()
_connections: Final = Connections()

_GOODBYE: Final = 1.0
"""Seconds for the end of an HTTP/2 connection to be written, and to be heard."""


class HardenedTCPServer(TCPServer):
    """One connection, which can neither take the worker down nor hold it up."""

    limits: ClassVar[LimitSettings] = LimitSettings()
    """`write_time` is kept here. Who is resumed later gets the rest of its streams by event id."""
    most: ClassVar[int] = 0
    """Connections that may be open. 0: any number."""
    count: ClassVar[int] = 0
    """Connections that are open."""
    counts: ClassVar[Counts] = Counts()
    """Counts the connections that were closed for a limit."""

    context: DrainingContext
    _told: ClassVar[float] = float("-inf")

    def __init__(self, app: AppWrapper, config: Config, context: Any, state: LifespanState, stream: Any) -> None:
        super().__init__(app, config, context, state, stream)
        self._wire = wire_of(stream)
        self._reading = trio.CancelScope()
        self._idle = IdleDeadline(
            self._reading, context.idle_line(config.keep_alive_timeout), context.terminated.is_set
        )
        self.idle_task = self._idle  # type: ignore[assignment]  # in the place of a task of Hypercorn's

    async def run(self) -> None:
        """Serve the connection until it ends, however it ends; or close it at once where there are too many."""
        self._idle.note(idle=True)  # from the start: a TLS handshake takes its time as well
        admitted, evicted = _connections.admit(self, self._address(), self.most)
        if not admitted:
            self._idle.note(idle=False)
            await self._turn_away()
            return
        HardenedTCPServer.count += 1
        self.context.connections.add(self)
        try:
            if isinstance(evicted, HardenedTCPServer):
                self._note_too_many()
                await evicted.cut()
            await super().run()
        except Exception as exc:  # noqa: BLE001 - the boundary between one client and all others
            _failures.note(exc)
        finally:
            HardenedTCPServer.count -= 1
            _connections.remove(self)
            self._idle.note(idle=False)
            self.context.connections.discard(self)
            self._release()

    def _release(self) -> None:
        """Break the circles that would wait for the garbage collector: the protocol holds this, and parts of itself."""
        wrapper = vars(self).pop("protocol", None)
        if wrapper is not None and isinstance(wrapper.protocol, HardenedH2Protocol):
            wrapper.protocol.release()

    async def cut(self) -> None:
        """Close the connection at once, whatever is being written."""
        await trio.aclose_forcefully(self.stream)

    def leave_if_idle(self) -> None:
        """Close the connection in order, if nothing runs on it."""
        self._idle.expire()

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs on the connection."""
        return self._idle.is_idle

    def _address(self) -> str:
        stream: Any = self.stream
        try:
            address: str = getattr(stream, "transport_stream", stream).socket.getpeername()[0]
        except (OSError, IndexError):  # it is gone already, or is no socket of the internet's
            return ""
        return address

    async def _turn_away(self) -> None:
        self._note_too_many()
        await trio.aclose_forcefully(self.stream)

    def _note_too_many(self) -> None:
        self.counts.add(Count.CONNECTIONS_TURNED_AWAY)
        if trio.current_time() - self._told >= _TOLD_EVERY:
            HardenedTCPServer._told = trio.current_time()
            log.warning("connections are closed at once: there are too many", limit=self.most)

    async def _read_data(self) -> None:
        """Read until the client has gone, or until the connection was idle for too long."""
        try:
            with self._reading:
                await self._read()
        except Exception:
            await trio.aclose_forcefully(self.stream)  # of what its tasks are about to say half would be missing
            raise
        if self._idle.expired:
            await self._initiate_server_close()

    async def _read(self) -> None:
        while data := await self._wire.read():
            await self.protocol.handle(RawData(data))
        await self.protocol.handle(RawData(b""))
        protocol = self.protocol.protocol
        if not (isinstance(protocol, HardenedH11Protocol) and await protocol.half_close()):
            await self.protocol.handle(Closed())

    async def protocol_send(self, event: Event) -> None:
        """Write to the connection, or give it up when a write is not taken in `limits.write_time` seconds."""
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Updated):
            self._idle.note(idle=event.idle)
        else:
            async with self.send_lock:  # what is being written is written first; it has its time limit
                pass
            await super().protocol_send(event)

    async def _write(self, data: bytes) -> None:
        """Write: at once, where the system takes it all."""
        if self.send_lock.locked():
            await self.send_lock.acquire()
        else:
            self.send_lock.acquire_nowait()  # which takes no turn of the scheduler
        in_time = True
        try:
            rest = self._wire.write_some(data)
            if rest:
                in_time = await self._write_rest(rest)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            in_time = False  # busy: with ending the connection
        finally:
            self.send_lock.release()
        if not in_time:
            await self._lose_client()

    async def _write_rest(self, data: bytes) -> bool:
        """Wait until the client has taken the rest. Returns whether it did, in time."""
        with trio.move_on_after(self.limits.write_time, shield=True) as scope:
            await self.stream.send_all(data)
        if scope.cancelled_caught:
            self.counts.add(Count.CONNECTIONS_NOT_READ)
            log.info("a connection was dropped: its client did not read", seconds=self.limits.write_time)
            await trio.aclose_forcefully(self.stream)
        return not scope.cancelled_caught

    async def _lose_client(self) -> None:
        """End what serves a client that is gone. Who reads may be waiting for an answer that nobody will give now."""
        await self.protocol.handle(Closed())
        self._reading.cancel()

    async def _initiate_server_close(self) -> None:
        """End an idle connection. A client of HTTP/2 may be sending just now: it is told, and not cut off meanwhile."""
        protocol = self.protocol.protocol
        if isinstance(protocol, HardenedH2Protocol):
            with trio.move_on_after(_GOODBYE):
                await protocol.finish()
                while await self._wire.read():
                    pass
        await super()._initiate_server_close()


def set_limits(limits: LimitSettings, counts: Counts) -> None:
    """Have all connections of this process keep `limits`, and `counts` count what was closed for them."""
    HardenedTCPServer.limits, HardenedTCPServer.counts = limits, counts
    HardenedTCPServer.most = allowed_by_files(limits.connections)
    if HardenedTCPServer.most < limits.connections:
        log.info(
            "fewer connections are served than limits.connections says: open files are too few",
            connections=HardenedTCPServer.most,
        )
    HardenedH2Protocol.write_time, HardenedH2Protocol.counts = limits.write_time, counts


def harden(drain: Drain | None = None, linger: Linger | None = None) -> None:
    """Have Hypercorn's Trio workers of this process use what is hardened here, and drain by `drain`."""
    first_come_first_served()
    # Each is put where Hypercorn looks it up: the modules of `worker_serve`, `TCPServer`, `ProtocolWrapper` and of both
    # protocols.
    hypercorn.trio.run.trio = EagerTrio(lambda: HardenedTCPServer.count)  # type: ignore[attr-defined]
    hypercorn.trio.run.TCPServer = HardenedTCPServer  # type: ignore[attr-defined]
    hypercorn.trio.tcp_server.TaskGroup = HardenedTaskGroup  # type: ignore[attr-defined]
    context = partial(DrainingContext, drain=drain, linger=linger)
    hypercorn.trio.run.WorkerContext = context  # type: ignore[attr-defined,assignment]
    http_stream = _on_trio(HardenedHTTPStream, HTTPStream)
    ws_stream = _on_trio(HardenedWSStream, WSStream)
    hypercorn.protocol.h11.HTTPStream = http_stream  # type: ignore[attr-defined,assignment]
    hypercorn.protocol.h11.WSStream = ws_stream  # type: ignore[attr-defined,assignment]
    hypercorn.protocol.h2.WSStream = ws_stream  # type: ignore[attr-defined,assignment]
    hypercorn.protocol.H11Protocol = _on_trio(PlainHTTP1Protocol, H11Protocol)  # type: ignore[attr-defined,assignment]
    hypercorn.protocol.H2Protocol = _on_trio(HardenedH2Protocol, H2Protocol)  # type: ignore[attr-defined,assignment]


def _on_trio(hardened: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Make what is hardened for the Trio worker, and the original for Hypercorn's asyncio worker, which shares them."""

    def make(app: AppWrapper, config: Config, context: object, *arguments: Any) -> Any:
        kind = hardened if isinstance(context, DrainingContext) else original
        return kind(app, config, context, *arguments)

    return make
