"""One worker process, as its master sees it."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Self

import trio

START_TIMEOUT: Final = 120.0
"""Seconds for a worker to start."""
READY: Final = b"ready\n"
"""What a worker says once it serves. Anything else is why it cannot."""
RETIRE: Final = b"retire\n"
"""What a worker is told when others have taken its place."""


class WorkerFailedError(Exception):
    """A worker that did not come up. Its text says why."""


class WorkerRefusedError(WorkerFailedError):
    """A worker that could not use its settings or its target: trying again would not help."""


class Worker:
    """One worker process."""

    def __init__(self, process: trio.Process, control: trio.SocketStream) -> None:
        self.process = process
        self.control = control
        self.ready = False
        """Whether it came up."""
        self.since = 0.0
        """`trio.current_time()` of when it did."""
        self._told = False

    @classmethod
    async def start(cls, listeners: Sequence[socket.socket], start: dict[str, Any]) -> Self:
        """Start a process that tells later whether it could.

        Raises:
            WorkerFailedError: The system has no room for one.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            fds = [theirs.fileno(), *(listener.fileno() for listener in listeners)]
            # -P: modules of ours must not be looked for in the directory where the server happens to be started.
            command = [sys.executable, "-P", "-m", "mcp_hybrid.server.child", *map(str, fds)]
            try:
                process = await trio.lowlevel.open_process(command, pass_fds=fds)
            except OSError as error:
                ours.close()
                raise WorkerFailedError(f"no process could be started: {error.strerror}") from None
        worker = cls(process, trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        await worker._say(json.dumps(start).encode() + b"\n")
        return worker

    async def until_ready(self) -> None:
        """Wait until it serves.

        Raises:
            WorkerRefusedError: It cannot use what it was given.
            WorkerFailedError: It died, or took too long.
        """
        said = b""
        with trio.move_on_after(START_TIMEOUT) as scope, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while not said.endswith(b"\n") and (piece := await self.control.receive_some()):
                said += piece
        if said == READY:
            self.ready, self.since = True, trio.current_time()
            return
        if said.endswith(b"\n"):
            raise WorkerRefusedError(said.decode().strip())
        if self._told:
            raise WorkerFailedError("it was told to end")
        if scope.cancelled_caught:
            self.process.kill()
            raise WorkerFailedError(f"not ready after {START_TIMEOUT:g} s")
        raise WorkerFailedError(f"it ended with exit code {await self.process.wait()}")

    async def retire(self) -> None:
        """Tell it to end because others have taken its place."""
        await self._say(RETIRE)

    async def stop(self) -> None:
        """Tell it to end."""
        self._told = True
        await self.control.aclose()

    async def _say(self, data: bytes) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.control.send_all(data)
