"""How connections are taken: the more of them a worker serves, the more it takes each time that it comes to it.

Trio takes one connection and gives up its turn. In a busy worker a turn is as long as all the requests that have come
meanwhile: of a thousand clients that come back after a restart, those that were taken first are served over and over,
and the last one waits for seconds before it is let in. Whoever took all that wait, on the other hand, would leave none
to the other workers, which may have nothing to do.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any, Final

import trio

BACKLOG: Final = 2048
"""Connections that wait to be taken, while workers are busy or being replaced; the system may allow fewer.

Hypercorn's own hundred is less than may come back after a restart. Who finds no room tries again a second later.
"""
SHARE: Final = 2
"""For so many connections that are open, one more is taken at a time: a thousand are let in in some fifteen turns."""


class EagerListener(trio.abc.Listener[trio.SocketStream]):
    """A listener that has taken more connections than it was asked for, and gives those without waiting."""

    def __init__(self, listening: trio.socket.SocketType, count: Callable[[], int]) -> None:
        """Listen. `count` tells how many connections are open."""
        self.socket = listening
        self._count = count
        self._listener = trio.SocketListener(listening)
        self._taken: deque[trio.SocketStream] = deque()

    async def accept(self) -> trio.SocketStream:
        """Return a connection. Takes a turn of the scheduler, and may be cancelled, only when none is there yet.

        Raises:
            OSError: The system has no more descriptors, or the like.
            trio.ClosedResourceError: It was closed.
        """
        if not self._taken:
            self._taken.append(await self._accept())
            self._take_more(self._count() // SHARE)
        return self._taken.popleft()

    async def _accept(self) -> trio.SocketStream:
        try:
            return await self._listener.accept()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # It was shut down, as the master has died (`parent`): the worker drains, and closes it.
            await trio.sleep_forever()
            raise AssertionError from None

    async def aclose(self) -> None:
        """Take no more connections. None is left: whoever takes them takes all before it can be told to stop."""
        await self._listener.aclose()

    def _take_more(self, most: int) -> None:
        waiting = socket.socket(fileno=self.socket.fileno())
        try:
            waiting.setblocking(False)
            with suppress(OSError):  # none waits; or what is wrong will be wrong with the next one, too
                for _ in range(most):
                    connection, _ = waiting.accept()
                    self._taken.append(trio.SocketStream(trio.socket.from_stdlib_socket(connection)))
        finally:
            waiting.detach()


class EagerTrio(ModuleType):
    """Trio, for a module that is to take connections eagerly."""

    def __init__(self, count: Callable[[], int]) -> None:
        """Have its listeners know how many connections are open."""
        super().__init__("trio")
        self.SocketListener = partial(EagerListener, count=count)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)
