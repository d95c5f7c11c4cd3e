"""Has the application drain on Hypercorn's asyncio worker as soon as that stops taking connections.

The worker tells an application nothing before it cuts its connections: GET streams would cost the whole graceful time,
and calls that run would get no last event. `worker` does the same for the Trio worker, and more.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import hypercorn.asyncio.run
import structlog
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import EventWrapper, WorkerContext

from mcp_hybrid.server.draining import Drain

log = structlog.get_logger("mcp_hybrid")


class _Context(WorkerContext):
    """One worker, and the graceful time that its connections have."""

    graceful_timeout = 0.0

    def __init__(self, max_requests: int | None, *, drain: Drain) -> None:
        super().__init__(max_requests)
        self.terminated = _Terminated(self._drain_application)
        self._drain = drain

    async def _drain_application(self) -> None:
        try:
            await self._drain(self.graceful_timeout)
        except Exception:
            log.exception("draining failed; connections are cut when the time is over")


class _Terminated(EventWrapper):
    """Set by Hypercorn when it stops taking connections."""

    def __init__(self, drain: Any) -> None:
        super().__init__()
        self._drain = drain
        self._task: asyncio.Task[None] | None = None
        """Held until it has ended: the event loop keeps no hold of it."""

    async def set(self) -> None:
        await super().set()
        self._task = asyncio.get_running_loop().create_task(self._drain())


class _TCPServer(TCPServer):
    """A connection."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if isinstance(self.context, _Context):
            self.context.graceful_timeout = self.config.graceful_timeout


def drain_asyncio_workers(drain: Drain) -> None:
    """Have Hypercorn's asyncio workers of this process drain by `drain`, which is given the graceful time."""
    # Where `worker_serve` looks them up, when it starts.
    hypercorn.asyncio.run.WorkerContext = partial(_Context, drain=drain)  # type: ignore[attr-defined,assignment]
    hypercorn.asyncio.run.TCPServer = _TCPServer  # type: ignore[attr-defined,assignment]
