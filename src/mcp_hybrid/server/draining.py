"""What Hypercorn's worker keeps of itself, with an ear for the moment at which it stops taking connections.

Hypercorn tells an application nothing before it cancels it: streams that do not end by themselves cost the whole
graceful time and are cut in the middle of a chunk. Here the application drains from that moment on, and what is left
when the graceful time is over is closed even if a write is stuck in it.

Put where Hypercorn looks for it (`worker.harden`), so that `mcp-hybrid serve` and `hypercorn -k trio` both get it.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import EventWrapper, WorkerContext

from mcp_hybrid.exchange.timers import Delay

log = structlog.get_logger("mcp_hybrid")

Drain = Callable[[float], Awaitable[None]]
"""Drains the application; it is told the graceful time in seconds, after which connections are cut."""
Linger = Callable[[], Awaitable[None]]
"""Waits for as long as idle connections may stay once no new ones are taken, so that their clients hear with their
next answer that it is the last, instead of sending a request into a connection that closes."""


class Connection(Protocol):
    """An open connection, as far as draining needs to know it."""

    config: Config

    async def cut(self) -> None:
        """Close it at once, whatever is being written."""
        ...

    def leave_if_idle(self) -> None:
        """Close it in order, if nothing runs on it."""
        ...


class DrainingContext(WorkerContext):
    """One Hypercorn worker: its open connections, and how it ends."""

    def __init__(self, max_requests: int | None, *, drain: Drain | None, linger: Linger | None) -> None:
        super().__init__(max_requests)
        self.connections: set[Connection] = set()
        self.terminated = _Terminated(self._stopped_accepting, self._closing)
        self._drain = drain
        self._linger = linger
        self._idle: Delay | None = None
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._outlive_sigterm()

    def idle_line(self, seconds: float) -> Delay:
        """Return where connections wait that may be idle for so long: all of a worker may be so for the same time."""
        if self._idle is None:
            self._idle = Delay(seconds)
            trio.lowlevel.spawn_system_task(self._idle.run)
        return self._idle

    def _outlive_sigterm(self) -> None:
        """Drain on SIGTERM where Hypercorn's own command would let it end the process at once."""
        if multiprocessing.parent_process() is None:  # `-w 0`
            trio.lowlevel.spawn_system_task(self._terminate_on_signal)
        else:  # its master tells workers by an event; the signal it sends when the first of them has drained
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    async def _terminate_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            await anext(aiter(signals))
        await self.terminate.set()

    async def _stopped_accepting(self) -> None:
        trio.lowlevel.spawn_system_task(self._drain_application)
        if self._linger is not None:
            await self._linger()

    def _closing(self) -> None:
        for connection in list(self.connections):
            connection.leave_if_idle()
        trio.lowlevel.spawn_system_task(self._cut_what_is_left)

    @property
    def _graceful_timeout(self) -> float:
        return max((connection.config.graceful_timeout for connection in self.connections), default=0.0)

    async def _drain_application(self) -> None:
        if self._drain is None:
            return
        try:
            await self._drain(self._graceful_timeout)
        except Exception:
            log.exception("draining failed; connections are cut when the time is over")

    async def _cut_what_is_left(self) -> None:
        await trio.sleep(self._graceful_timeout)
        for connection in list(self.connections):
            await connection.cut()


class _Terminated(EventWrapper):
    """Set by Hypercorn as soon as it has stopped taking connections; from then on it closes those that are idle."""

    def __init__(self, before: Callable[[], Awaitable[None]], after: Callable[[], None]) -> None:
        super().__init__()
        self._before = before
        self._after = after

    async def set(self) -> None:
        await self._before()
        await super().set()
        self._after()
