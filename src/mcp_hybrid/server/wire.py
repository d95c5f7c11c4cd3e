"""How bytes come from a connection and get onto it, in no more steps than it takes.

A request that is answered at once is one read and one write. Trio's streams try a read before they wait for something
to read, and give up a turn of the scheduler for every write; Hypercorn takes a lock and a cancel scope for each.
Plain sockets are read and written here by the system's calls; TLS, by its stream.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

import trio

READ_SIZE: Final = 65536
"""Bytes that are read at a time."""


class Wire(Protocol):
    """One connection's bytes."""

    async def read(self) -> bytes:
        """Return what came, once something has; nothing when the client has gone, however it went."""
        ...

    def write_some(self, data: bytes) -> bytes:
        """Write what the system takes at once, and return the rest. Who calls must be the only one that writes.

        Raises:
            OSError: The client has gone.
        """
        ...


class SocketWire:
    """A plain connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket

    async def read(self) -> bytes:
        """See `Wire`."""
        while self._socket.fileno() >= 0:  # below it is closed
            try:
                await trio.lowlevel.wait_readable(self._socket)
                return os.read(self._socket.fileno(), READ_SIZE)
            except BlockingIOError:
                continue  # the system was wrong about there being something
            except (OSError, trio.ClosedResourceError):
                break
        return b""

    def write_some(self, data: bytes) -> bytes:
        """See `Wire`."""
        try:
            return data[os.write(self._socket.fileno(), data) :] if data else b""
        except BlockingIOError:
            return data


class StreamWire:
    """A connection whose bytes are not the socket's own: TLS."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def read(self) -> bytes:
        """See `Wire`."""
        try:
            return bytes(await self._stream.receive_some(READ_SIZE))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    def write_some(self, data: bytes) -> bytes:
        """See `Wire`: nothing can be written without waiting."""
        return data


def wire_of(stream: trio.abc.Stream) -> Wire:
    """Return the shortest way to a stream's bytes. Only on Unix is a socket a file, which can be read as one."""
    if isinstance(stream, trio.SocketStream) and os.name == "posix":
        return SocketWire(stream)
    return StreamWire(stream)
