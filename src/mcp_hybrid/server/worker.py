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

from functools import partial
from typing import ClassVar, Final

import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.protocol.h11
import hypercorn.trio.run
import hypercorn.trio.tcp_server
import structlog
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer

from mcp_hybrid.server.draining import Drain, DrainingContext, Linger
from mcp_hybrid.server.protocols import HardenedH2Protocol, HardenedH11Protocol, HardenedWSStream
from mcp_hybrid.server.tasks import HardenedTaskGroup
from mcp_hybrid.settings import LimitSettings

log = structlog.get_logger("mcp_hybrid")

_TOLD_EVERY: Final = 60.0
"""Seconds between two log lines about connections that are closed because there are too many."""

_GOODBYE: Final = 1.0
"""Seconds for the end of an HTTP/2 connection to be written, and to be heard."""


class HardenedTCPServer(TCPServer):
    """One connection, which can neither take the worker down nor hold it up."""

    limits: ClassVar[LimitSettings] = LimitSettings()
    """`write_time` and `connections` are kept here. Who is resumed later gets the rest of its streams by event id."""
    count: ClassVar[int] = 0
    """Connections that are open."""
    turned_away: ClassVar[int] = 0
    """Connections that were closed at once because there were too many."""

    context: DrainingContext
    _client_gone: trio.Event
    _reading: trio.CancelScope
    _told: ClassVar[float] = float("-inf")

    async def run(self) -> None:
        """Serve the connection until it ends, however it ends; or close it at once where there are too many."""
        if 0 < self.limits.connections <= HardenedTCPServer.count:
            await self._turn_away()
            return
        HardenedTCPServer.count += 1
        self._reading, self._client_gone = trio.CancelScope(), trio.Event()
        self.context.connections.add(self)
        try:
            await super().run()
        except Exception as exc:  # noqa: BLE001 - the boundary between one client and all others
            log.warning("a connection was dropped: what came on it could not be handled", why=_names(exc))
        finally:
            HardenedTCPServer.count -= 1
            self.context.connections.discard(self)

    async def cut(self) -> None:
        """Close the connection at once, whatever is being written."""
        await trio.aclose_forcefully(self.stream)

    async def _turn_away(self) -> None:
        HardenedTCPServer.turned_away += 1
        if trio.current_time() - self._told >= _TOLD_EVERY:
            HardenedTCPServer._told = trio.current_time()
            log.warning("connections are closed at once: there are too many", limit=self.limits.connections)
        await trio.aclose_forcefully(self.stream)

    async def _read_data(self) -> None:
        """Read until the client has gone. From then on nothing waits for it to send another request."""
        try:
            with self._reading:
                await super()._read_data()
        except Exception:
            await trio.aclose_forcefully(self.stream)  # of what its tasks are about to say half would be missing
            raise
        finally:
            self._client_gone.set()
            await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        """Write to the connection, or give it up when a write is not taken in `limits.write_time` seconds."""
        if isinstance(event, Updated) and self._client_gone.is_set():
            return  # a call that ran on has ended: Hypercorn would keep the connection for as long as an idle one
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                with trio.move_on_after(self.limits.write_time, shield=True) as scope:
                    await self.stream.send_all(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                await self._lose_client()  # busy: with ending the connection
                return
        if scope.cancelled_caught:
            log.info("a connection was dropped: its client did not read", seconds=self.limits.write_time)
            await trio.aclose_forcefully(self.stream)
            await self._lose_client()

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
                await self._client_gone.wait()
        await super()._initiate_server_close()


def harden(drain: Drain | None = None, linger: Linger | None = None) -> None:
    """Have Hypercorn's Trio workers of this process use what is hardened here, and drain by `drain`."""
    # Each is put where Hypercorn looks it up: the modules of `worker_serve`, `TCPServer`, `ProtocolWrapper` and of both
    # protocols.
    hypercorn.trio.run.TCPServer = HardenedTCPServer  # type: ignore[attr-defined]
    hypercorn.trio.tcp_server.TaskGroup = HardenedTaskGroup  # type: ignore[attr-defined]
    context = partial(DrainingContext, drain=drain, linger=linger)
    hypercorn.trio.run.WorkerContext = context  # type: ignore[attr-defined,assignment]
    hypercorn.protocol.h11.WSStream = HardenedWSStream  # type: ignore[attr-defined]
    hypercorn.protocol.h2.WSStream = HardenedWSStream  # type: ignore[attr-defined]
    hypercorn.protocol.H11Protocol = HardenedH11Protocol  # type: ignore[attr-defined]
    hypercorn.protocol.H2Protocol = HardenedH2Protocol  # type: ignore[attr-defined]


def _names(exc: BaseException) -> str:
    """Return the names of the exceptions in a group: their texts may quote what the client sent."""
    if isinstance(exc, BaseExceptionGroup):
        return ", ".join(sorted({_names(each) for each in exc.exceptions}))
    return type(exc).__name__
