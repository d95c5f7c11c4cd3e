"""One worker process, as its master sees it."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from subprocess import SubprocessError
from typing import Any, Final, Self

import trio

START_TIMEOUT: Final = 120.0
"""Seconds for a worker to start."""
READY: Final = b"ready\t"
"""How the line begins that a worker says once it serves: what follows is its runtime, as JSON. Anything else is why it
cannot."""
RETIRE: Final = b"retire\n"
"""What the master writes when others have taken the worker's place."""
STOP: Final = b"stop\n"
"""What the master writes when the worker is to drain and end. The end of the stream means that the master has died."""
LONGEST_REASON: Final = 64 * 1024
"""Bytes that a worker may write before the end of its first line."""

_WRITE_TIMEOUT: Final = 1.0
"""Seconds for a write to a worker. It fits into the socket's buffer unless the worker has stopped reading."""


class WorkerFailedError(Exception):
    """A worker that did not come up. Its text says why."""


class WorkerEndedError(WorkerFailedError):
    """A worker that ended before it was ready, without a word."""


class WorkerRefusedError(WorkerFailedError):
    """A worker that could not use its settings or its target: trying again would not help."""


async def open_process(fds: Sequence[int]) -> trio.Process:
    """Start the process of a worker, which inherits these descriptors.

    Raises:
        OSError, ValueError, SubprocessError: The system has no room for one.
    """
    # -P: modules of ours must not be looked for in the directory where the server happens to be started.
    command = [sys.executable, "-P", "-m", "mcp_hybrid.server.child", *map(str, fds)]
    return await trio.lowlevel.open_process(command, pass_fds=fds)


class Worker:
    """One worker process."""

    def __init__(self, process: trio.Process, control: trio.SocketStream) -> None:
        self.process = process
        self.control = control
        self.runtime: list[str] = []
        """What runs the program in it, and why, once it is ready."""
        self.ready = False
        """Whether it came up."""
        self.since = 0.0
        """`trio.current_time()` of when it did."""

    @classmethod
    async def start(cls, listeners: Sequence[socket.socket], start: dict[str, Any]) -> Self:
        """Start a process that tells later whether it could.

        Raises:
            WorkerFailedError: The system has no room for one.
        """
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise WorkerFailedError(f"no socket for a process: {error.strerror}") from None
        with theirs:
            fds = [theirs.fileno(), *(listener.fileno() for listener in listeners)]
            try:
                process = await open_process(fds)
            except (OSError, ValueError, SubprocessError) as error:
                ours.close()
                raise WorkerFailedError(f"no process could be started: {error}") from None
        worker = cls(process, trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        await worker._write(json.dumps(start).encode() + b"\n")
        return worker

    async def until_ready(self) -> None:
        """Wait until it serves, at most `START_TIMEOUT` seconds.

        Raises:
            WorkerRefusedError: It cannot use its settings or its target.
            WorkerFailedError: It died, or took too long.
        """
        said = b""
        with trio.move_on_after(START_TIMEOUT) as scope, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while not said.endswith(b"\n") and len(said) < LONGEST_REASON and (piece := await self._receive()):
                said += piece
        if said.startswith(READY) and said.endswith(b"\n"):
            self.runtime = json.loads(said.removeprefix(READY))
            self.ready, self.since = True, trio.current_time()
            return
        if said.endswith(b"\n"):
            raise WorkerRefusedError(said.decode(errors="replace").strip())
        if scope.cancelled_caught:
            raise WorkerFailedError(f"not ready after {START_TIMEOUT:g} s")
        raise WorkerEndedError("it ended")

    async def retire(self) -> None:
        """Ask it to end because others have taken its place."""
        await self._write(RETIRE)

    async def stop(self) -> None:
        """Ask it to drain and end."""
        await self._write(STOP)
        if not self.ready and self.process.returncode is None:
            # While it imports its target it reads nothing. SIGTERM ends it then, and drains it if it serves by now.
            self.process.terminate()

    async def _receive(self) -> bytes:
        return bytes(await self.control.receive_some())

    async def _write(self, data: bytes) -> None:
        with (
            trio.move_on_after(_WRITE_TIMEOUT),
            suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            await self.control.send_all(data)
