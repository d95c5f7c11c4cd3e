"""One connection to Redis that carries any number of commands at a time, and is made anew when it breaks.

What is used of `coredis` is its connection, not the client around it. That takes twice the CPU time for a command, and
its pool loses a place for good with each connection that breaks under a blocking command: after 64 outages a worker
would never read its inbox again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from coredis.connection import BaseConnection
from coredis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from coredis.pool import ConnectionPool

OPERATION: Final = 2.0
"""Seconds that Redis has for one operation before it counts as away."""

_TURNS: Final = 5
"""Turns of the scheduler in which an answer that has arrived is read."""

REFUSED: Final = ("OOM", "MISCONF", "NOREPLICAS", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "The cluster is down")
"""How the errors begin by which a Redis that can be reached refuses to do something for now."""

FAILURES: Final = (RedisError, OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, TimeoutError)
"""What an operation raises where Redis cannot be reached."""


def refuses(error: ResponseError) -> bool:
    """Whether Redis refuses for now what it would do otherwise: it is full, read-only, or lets nobody in.

    What else it answers with an error is malformed, and so a fault of ours.
    """
    lasting = (ReadOnlyError, AuthenticationError, AuthorizationError, ClusterDownError, TryAgainError)
    return isinstance(error, lasting) or str(error).startswith(REFUSED)


class RedisConnection:
    """The connection, as a context manager: inside it connects when it is first needed."""

    def __init__(self, url: str) -> None:
        # Reads the address; no connection of its own is ever made.
        self._address = ConnectionPool.from_url(url, decode_components=True, connect_timeout=OPERATION)
        self._stack = AsyncExitStack()
        self._connecting = anyio.Lock()
        self._tasks: TaskGroup
        self._connection: BaseConnection | None = None

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        await self._stack.aclose()

    async def run(self, command: bytes, *arguments: bytes | str | float, within: float | None = None) -> Any:
        """Run one command; strings in its answer are bytes. `within` is in seconds, `OPERATION` where not given.

        Raises:
            One of `FAILURES`: It failed, or took longer than that. It may have been carried out
            nevertheless, or be so later.
        """
        connection, request = self._connection, None
        with anyio.move_on_after(OPERATION if within is None else within):
            if connection is None or not connection.usable:
                connection = await self._connect()
            request = connection.create_request(command, *arguments, decode=False)
            return await request
        # It may have been this process that was slow, and the answer lies here unread.
        for _ in range(_TURNS):
            await anyio.lowlevel.checkpoint()
        if request is not None and request.complete:
            return await request
        if connection is not None:
            connection.invalidate()  # the next command is not to wait behind those that this one has waited behind
        raise TimeoutError

    async def _connect(self) -> BaseConnection:
        async with self._connecting:
            if self._connection is None or not self._connection.usable:
                make: Callable[..., BaseConnection] = self._address.connection_class
                connection = make(self._address.location, **self._address.connection_kwargs)
                await self._tasks.start(connection.run)
                self._connection = connection
            return self._connection
