"""What a client leaves behind on a connection is let go of: no task, no descriptor, nothing for the next request."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.protocol.events import Body, Data, EndBody, Request
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import StreamBuffer
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import EventWrapper, WorkerContext
from hypercorn.typing import ASGISendEvent, ConnectionState

from harness import mcp
from harness.http2 import DATA, frame, request
from harness.process import POLL, ServerProcess, program, serve
from harness.raw import RawClient
from mcp_hybrid.server.draining import DrainingContext
from mcp_hybrid.server.http2 import HardenedH2Protocol
from mcp_hybrid.server.protocols import HardenedWSStream
from mcp_hybrid.server.tasks import HardenedTaskGroup
from mcp_hybrid.server.worker import HardenedTCPServer

NO_WINDOW = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"\x00\x04" + bytes(4))
"""A preface with settings by which the server may send headers, but nothing of a body."""


def post(message: mcp.Json, more: bytes = b"") -> bytes:
    """Write a whole request in HTTP/1.1."""
    body = mcp.body(message)
    head = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    return head % len(body) + more + b"\r\n" + body


# Connections that are left


def wait_for_headers(client: socket.socket) -> None:
    """Read until the head of an answer has come; settings come before."""
    seen = b""
    while b"hypercorn" not in seen and b"\x89\x9f\xd5\x65" not in seen:  # the server header, plain or Huffman-coded
        piece = client.recv(4096)
        assert piece
        seen += piece


def take_no_body(client: socket.socket) -> None:
    client.sendall(NO_WINDOW + request(b"/mcp"))
    wait_for_headers(client)


def go_on_with_what_is_refused(client: socket.socket) -> None:
    client.sendall(NO_WINDOW + request(b"/mcp", body_follows=True))
    wait_for_headers(client)  # for which it takes a few seconds to have had enough of waiting for the body
    client.sendall(frame(DATA, 0, 1, b"x") * 30)


def reset_a_stream_with_more_waiting(client: socket.socket) -> None:
    follow = mcp.modern(mcp.tool("countdown", {"steps": 20, "delay": 0.05}, token="t"))
    named = "".join(f"{name}: {value}\r\n" for name, value in mcp.modern_headers(follow) if name != "content-type")
    client.sendall(post(follow, named.encode()) + post(mcp.request("ping")))
    while b"event-stream" not in client.recv(65536):
        pass
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def send_more_than_a_connection_takes(client: socket.socket) -> None:
    """Hypercorn ends a connection after a thousand requests."""
    client.sendall(post(mcp.request("ping")) * 1010)
    while client.recv(65536):
        pass


LEFT: dict[str, Callable[[socket.socket], None]] = {
    "an answer for which there is no room": take_no_body,
    "a body that nobody reads": go_on_with_what_is_refused,
    "a request behind a stream whose client resets": reset_a_stream_with_more_waiting,
    "requests behind the last one": send_more_than_a_connection_takes,
}


async def held(server: ServerProcess) -> tuple[int, int]:
    """Count the server's tasks and descriptors."""
    async with RawClient.open(server.port) as client:
        await client.post(mcp.tool("vitals"))
        assert (await client.answer_head()).status == 200
        vitals = (await client.answer_json())["result"]["structuredContent"]
        return vitals["tasks"], len(list(Path(f"/proc/{server.pid}/fd").iterdir()))  # noqa: ASYNC240 - no file, no wait


async def settled(server: ServerProcess) -> tuple[int, int]:
    """Count them once what the start has left is gone, too."""
    seen = [await held(server)]
    while len(seen) < 5 or len(set(seen[-5:])) > 1:
        await trio.sleep(POLL)
        seen.append(await held(server))
    return seen[-1]


def is_more(now: tuple[int, int], before: tuple[int, int]) -> bool:
    return any(each > then for each, then in zip(now, before, strict=True))


@pytest.mark.process
@pytest.mark.parametrize("deed", LEFT)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
async def test_a_connection_that_was_left_is_let_go_of(deed: str) -> None:
    with serve(program("watched")) as server:
        before = await settled(server)
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.settimeout(60)
            LEFT[deed](client)
        until = time.monotonic() + 60
        while is_more(now := await held(server), before):
            assert time.monotonic() < until, f"{now}, not {before} tasks and descriptors"
            await trio.sleep(POLL)
        assert "Traceback" not in server.log, server.log


# What one stream does to another


@pytest.mark.parametrize(
    ("kind", "refused"), [pytest.param(WSStream, 2, id="Hypercorn's"), pytest.param(HardenedWSStream, 1, id="ours")]
)
async def test_a_websocket_whose_client_does_not_wait_is_refused_once(kind: type[WSStream], refused: int) -> None:
    """A second head on an HTTP/2 stream is not sent, but leaves the header table of the connection wrong."""
    sent: list[str] = []
    over = trio.Event()

    async def send(event: StreamEvent) -> None:
        sent.append(type(event).__name__)
        await trio.testing.wait_all_tasks_blocked()  # which is when the other one gets a word in

    async def app(scope: Any, receive: Any, send: Any, *_: Any) -> None:
        await receive()
        await send({"type": "websocket.close"})
        over.set()

    async with TaskGroup() as tasks:
        stream = kind(cast("Any", app), Config(), WorkerContext(None), tasks, False, None, None, send, 1)
        asked = Request(1, [(b"sec-websocket-version", b"13")], "2", "CONNECT", b"/mcp", ConnectionState({}))
        await stream.handle(asked)
        await stream.handle(Data(1, b"not waiting"))
        await over.wait()
    assert sent.count("Response") == refused


@pytest.mark.process
@pytest.mark.parametrize("method", ["PUT", "OPTIONS", "DELETE", "GET"])
async def test_a_body_that_means_nothing_does_not_end_the_connection(method: str) -> None:
    with serve() as server:
        async with RawClient.open(server.port) as client, client.stream:
            await client.write(client.head(method, [], 5))
            async with RawClient.open(server.port) as other:  # by its answer the request has been looked at
                await other.post(mcp.request("ping"))
                await other.answer_head()
            await client.trickle([client.piece(b"ab"), client.piece(b"cde"), client.end()])
            first = await client.answer_head()
            await client.answer_body()
            client.next_request()
            await client.post(mcp.request("ping"))
            assert first.status == (204 if method == "OPTIONS" else 405)
            assert (await client.answer_head()).status == 200


# What is sent to a connection that has ended


async def test_an_answer_to_a_connection_that_has_ended_waits_for_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def send(_event: object) -> None:
        pass

    arguments = (None, Config(), WorkerContext(None), TaskGroup(), ConnectionState({}), False, None, None, send)
    protocol = HardenedH2Protocol(*cast("Any", arguments))
    await protocol.handle(Closed())
    protocol.priority.insert_stream(1)
    protocol.stream_buffers[1] = StreamBuffer(EventWrapper)  # as when the end comes while a request is looked at
    with trio.fail_after(5):
        for event in (Body(1, b"x"), EndBody(1)):
            await protocol.stream_send(event)


# What an application is told


async def test_nobody_waits_for_an_application_that_is_about_its_last_words(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """They may take long to write, and what comes meanwhile must not hold up who reads the connection."""
    writing = trio.Event()

    async def app(_scope: Any, _receive: Any, send: Any, *_: Any) -> None:
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send(event: ASGISendEvent | None) -> None:
        if event is not None:
            writing.set()
            await trio.sleep_forever()

    with trio.fail_after(5):
        async with HardenedTaskGroup() as tasks:
            put = await tasks.spawn_app(cast("Any", app), Config(), cast("Any", {"type": "http"}), send)
            await writing.wait()
            for _ in range(50):
                await put(cast("Any", {"type": "http.request", "body": b"x", "more_body": True}))
            assert tasks._nursery is not None
            tasks._nursery.cancel_scope.cancel()


# What is written while the connection ends


async def test_a_write_while_the_connection_is_being_ended_is_the_end_of_it() -> None:
    handled = []

    class Stream:
        async def send_all(self, _data: bytes) -> None:
            raise trio.BusyResourceError("another task is using this stream")

    class Protocol:
        async def handle(self, event: object) -> None:
            handled.append(type(event).__name__)

    context = DrainingContext(None, drain=None, linger=None)
    connection = HardenedTCPServer(cast("Any", None), Config(), context, {}, cast("Any", Stream()))
    connection.protocol = cast("Any", Protocol())
    await connection.protocol_send(RawData(data=b"x"))
    assert handled == ["Closed"]
    assert connection._reading.cancel_called
