"""Faults that others cause: clients that do not behave, on connections of their own, and workers that die."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Final

import trio
from fuzzing import http1, http2
from fuzzing.script import Known

from disorder.callers import CUT, Load
from harness import mcp
from harness.raw import RawClient

RESET: Final = struct.pack("ii", 1, 0)
HELD: Final = 15.0
"""Seconds for which a client keeps hold of a connection that it does not use."""
PATIENCE: Final = 20.0
"""Seconds that a fault waits for what it wants to disturb; the server may end it first."""


class Faults:
    """Causes one fault at a time; those that last go on in the background."""

    def __init__(self, load: Load, rng: Random, nursery: trio.Nursery, sessions: list[str]) -> None:
        self._load = load
        self._rng = rng
        self._nursery = nursery
        self._known = Known(sessions)

    async def cause(self, name: str) -> None:
        """Cause the fault of that name, without waiting for what becomes of it."""
        if name == KILL:
            self._kill()
        else:
            self._nursery.start_soon(self._contained, FAULTS[name])

    async def _contained(self, fault: Callable[[Faults], Awaitable[None]]) -> None:
        try:
            with trio.move_on_after(PATIENCE):
                await fault(self)
        except CUT:
            pass  # the server has had enough of it

    def _kill(self) -> None:
        alive = sorted(self._load.workers - self._load.killed)
        if alive:
            worker = self._rng.choice(alive)
            self._load.killed.add(worker)
            self._load.last_kill = trio.current_time()
            os.kill(worker, signal.SIGKILL)

    async def _leave_during_the_head(self) -> None:
        async with RawClient.open(self._load.port) as client:
            await client.write(b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Ty")

    async def _reset_during_the_body(self) -> None:
        async with RawClient.open(self._load.port) as client:
            await client.write(client.head("POST", mcp.headers(), 5000), client.piece(b'{"jsonrpc":"2.0",'))
            await trio.sleep(0.05)  # so that the server is waiting for the rest
            client.reset()

    async def _leave_during_a_call(self, *, reset: bool = False) -> None:
        async with RawClient.open(self._load.port) as client:
            await client.post(mcp.tool("slow_echo", {"text": "x", "seconds": 1}))
            await trio.sleep(0.1)  # so that the call is running
            if reset:
                client.reset()

    async def _reset_during_a_call(self) -> None:
        await self._leave_during_a_call(reset=True)

    async def _leave_a_stream(self, *, reset: bool = False) -> None:
        session = self._rng.choice(self._known.sessions)
        token = f"fault/{self._rng.random()}"
        async with RawClient.open(self._load.port) as client:
            message = mcp.tool("countdown", {"steps": 50, "delay": 0.05}, token, token=token)
            await client.post(message, session, mcp.LEGACY)
            if (await client.answer_head()).status != 200:
                return  # 503, while Redis stands still
            await client.event()
            if reset:
                client.reset()

    async def _reset_a_stream(self) -> None:
        await self._leave_a_stream(reset=True)

    async def _hold_half_a_body(self) -> None:
        async with RawClient.open(self._load.port) as client:
            await client.write(client.head("POST", mcp.headers(), 5000), client.piece(b'{"jsonrpc":"2.0",'))
            await trio.sleep(HELD)

    async def _read_nothing(self) -> None:
        """Ask for far more than the buffers hold, and read nothing of it."""
        async with RawClient.open(self._load.port, receive_buffer=4096) as client:
            body = mcp.body(mcp.request("tools/list"))
            head = (
                b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            )
            await client.write((head % len(body) + body) * 500)
            await trio.sleep(HELD)

    async def _read_nothing_of_a_stream(self) -> None:
        """Open a standalone stream, and read nothing of it."""
        session = self._rng.choice(self._known.sessions)
        async with RawClient.open(self._load.port, receive_buffer=4096) as client:
            wanted = mcp.headers(session, mcp.LEGACY, accept="text/event-stream", content_type=None)
            await client.send("GET", wanted)
            await trio.sleep(HELD)

    async def _send_garbage(self) -> None:
        await self._send(http1.last_item(self._rng, self._known).data)

    async def _send_garbage_over_http2(self) -> None:
        await self._send(http2.PREFACE + b"".join(http2.frames(self._rng, self._known, 20)))

    async def _send(self, data: bytes) -> None:
        async with RawClient.open(self._load.port) as client:
            await client.write(data)
            with trio.move_on_after(1):
                while await client.stream.receive_some(65536):
                    pass
            if self._rng.random() < 0.5:
                client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


KILL: Final = "a worker is killed"
FAULTS: Final[Mapping[str, Callable[[Faults], Awaitable[None]]]] = {
    "left during the head": Faults._leave_during_the_head,  # noqa: SLF001 - the table of its own methods
    "reset during the body": Faults._reset_during_the_body,  # noqa: SLF001 - as above
    "left during a call": Faults._leave_during_a_call,  # noqa: SLF001 - as above
    "reset during a call": Faults._reset_during_a_call,  # noqa: SLF001 - as above
    "a stream is left": Faults._leave_a_stream,  # noqa: SLF001 - as above
    "a stream is reset": Faults._reset_a_stream,  # noqa: SLF001 - as above
    "half a body, and then nothing": Faults._hold_half_a_body,  # noqa: SLF001 - as above
    "nothing is read of many answers": Faults._read_nothing,  # noqa: SLF001 - as above
    "nothing is read of a stream": Faults._read_nothing_of_a_stream,  # noqa: SLF001 - as above
    "garbage on HTTP/1": Faults._send_garbage,  # noqa: SLF001 - as above
    "garbage on HTTP/2": Faults._send_garbage_over_http2,  # noqa: SLF001 - as above
}
