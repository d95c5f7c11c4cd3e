"""A backplane whose operations are timed. Only one that is shared: the others are this process's memory."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Final, cast

import anyio
from anyio.abc import TaskStatus

from mcp_hybrid.backplane import Backplane, BackplaneUnavailableError
from mcp_hybrid.backplane.protocol import Handler
from mcp_hybrid.telemetry.metrics import Metrics

TIMED: Final = (
    "workers", "send", "broadcast", "revoke", "is_revoked", "tail", "append", "is_open", "holds", "peek", "take_over",
    "release", "is_held", "settle", "forget", "load_state", "save_state",
)  # fmt: skip
"""The operations that are one exchange with the backplane. `read` waits for somebody else to write."""

LOOK: Final = 1.0
"""Seconds between two looks at whether the backplane can be reached."""


def timed(backplane: Backplane, metrics: Metrics) -> Backplane:
    """Return the backplane with its operations timed, where it is shared."""
    if not backplane.shared:
        return backplane
    for name in TIMED:
        metrics.expect(name)
    return cast("Backplane", _Timed(backplane, metrics))


class _Timed:
    """Does what the backplane inside does."""

    def __init__(self, inner: Backplane, metrics: Metrics) -> None:
        self._inner = inner
        self._metrics = metrics
        for name in TIMED:
            setattr(self, name, self._timing(name, getattr(inner, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def run(self, handler: Handler, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run the backplane, and keep saying whether it can be reached: a worker with nothing to do knows, too."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look)
            await self._inner.run(handler, task_status=task_status)

    async def _look(self) -> None:
        while True:
            self._metrics.available(available=self._inner.available)
            await anyio.sleep(LOOK)

    def _timing(self, name: str, operation: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(operation)
        async def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                result = await operation(*args, **kwargs)
            except BackplaneUnavailableError:
                self._metrics.failure(name)
                raise
            self._metrics.operation(name, time.perf_counter() - started)
            return result

        return run
