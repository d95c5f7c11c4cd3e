"""A plain round-robin HTTP balancer in a process of its own: every request of a conversation goes to another worker.

It does what any such proxy does and nothing more: one upstream for each request, answers passed on as they come, a
client that goes taken for gone, a worker that does not answer the telephone passed over. It knows a session only to
make sure that its requests go round all workers even while thousands of others do; nothing is sticky.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_SESSION = re.compile(rb"\r\nmcp-session-id: *([\x21-\x7e]+)", re.IGNORECASE)
_CONNECTION = re.compile(rb"\r\nconnection:[^\r]*", re.IGNORECASE)
_BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_CHUNK = 65536


@dataclass(frozen=True)
class Passed:
    """One request that the balancer passed on."""

    http: str
    session: str | None
    rpc: str | None
    """The method of the message; "answer" for a response; None where there is no message."""
    worker: int


# The test's side


class Balancer:
    """A balancer over the servers on these ports, as a context manager."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.port = 0
        self._ports = ports
        self._stack = ExitStack()
        self._record = Path()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def passed(self) -> list[Passed]:
        """Give what was passed on so far."""
        return [Passed(*json.loads(line)) for line in self._record.read_text().splitlines()]

    def __enter__(self) -> Self:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="balancer-"))
        self._record = Path(folder) / "record"
        command = [sys.executable, __file__, str(self._record), *map(str, self._ports)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        assert process.stdout is not None
        with process.stdout:
            self.port = int(process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


# The process


class _Proxy:
    def __init__(self, ports: Sequence[int], record: Any) -> None:
        self._ports = ports
        self._record = record
        self._others = 0
        self._next: defaultdict[bytes, int] = defaultdict(self._any)

    async def serve(self, client: trio.SocketStream) -> None:
        """Pass one request on, and its answer back; the connection ends with it."""
        async with client:
            try:
                await self._pass_on(client)
            except* (trio.BrokenResourceError, OSError):
                pass  # one of the two ends has gone, and the other is told by closing

    async def _pass_on(self, client: trio.SocketStream) -> None:
        data = await _read_head(client)
        if not data:
            return
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(found[1]) if (found := _LENGTH.search(head)) else 0
        while len(body) < length:
            if not (more := await client.receive_some(_CHUNK)):
                return
            body += more
        request = _CONNECTION.sub(b"", head) + b"\r\nconnection: close\r\n\r\n" + body
        session = found[1] if (found := _SESSION.search(head)) else None
        worker, upstream = await self._connect(session)
        async with upstream:
            method = head.partition(b" ")[0].decode()
            passed = [method, session.decode() if session else None, _method_of(body), worker]
            self._record.write(json.dumps(passed) + "\n")
            await upstream.send_all(request)
            await self._answer(client, upstream, worker)

    async def _answer(self, client: trio.SocketStream, upstream: trio.SocketStream, worker: int) -> None:
        data = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, client, nursery.cancel_scope)
            with suppress(trio.BrokenResourceError):
                data = await _read_head(upstream)
            data = data or _BAD_GATEWAY
            if found := _SESSION.search(data.partition(b"\r\n\r\n")[0]):
                self._next[found[1]] = worker + 1
            while data:
                await client.send_all(data)
                data = await upstream.receive_some(_CHUNK)
            nursery.cancel_scope.cancel()

    async def _connect(self, session: bytes | None) -> tuple[int, trio.SocketStream]:
        for _ in self._ports:
            turn = self._any() if session is None else self._next[session]
            if session is not None:
                self._next[session] = turn + 1
            worker = turn % len(self._ports)
            try:
                return worker, await trio.open_tcp_stream("127.0.0.1", self._ports[worker])
            except OSError:
                continue
        raise ConnectionRefusedError

    def _any(self) -> int:
        self._others += 1
        return self._others


async def _read_head(stream: trio.SocketStream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := await stream.receive_some(_CHUNK)):
            return data
        data += more
    return data


async def _cancel_when_gone(client: trio.SocketStream, scope: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError):
        await client.receive_some(1)
    scope.cancel()


def _method_of(body: bytes) -> str | None:
    message = json.loads(body) if body else None
    return message.get("method", "answer") if isinstance(message, dict) else None


async def _main(record: str, ports: Sequence[int]) -> None:
    with open(record, "w", buffering=1) as file:  # noqa: ASYNC230, PTH123 - a line for each request, at once
        proxy = _Proxy(ports, file)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=2048)
        sys.stdout.write(f"{listeners[0].socket.getsockname()[1]}\n")
        sys.stdout.flush()
        await trio.serve_listeners(proxy.serve, listeners)


if __name__ == "__main__":
    try:
        trio.run(_main, sys.argv[1], [int(port) for port in sys.argv[2:]])
    except* KeyboardInterrupt:
        pass
