"""HTTP/1.1: how a connection may begin, go on, and end."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from harness.connections import Http2Client, everything, serving
from harness.http2 import PREFACE, request

Clock = trio.testing.MockClock

GET = b"GET /now HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"POST /%b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"


class App:
    """Answers when it is let, or, if it asks, stops as soon as its client is gone."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.told: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        while (event := await receive())["type"] == "http.request" and event["more_body"]:
            pass
        if scope["path"] == "/asking":
            self.told.append((await receive())["type"])
            return
        if scope["path"] != "/now":
            await self.gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})


# HTTP/2 in the clear


@pytest.mark.parametrize("settings", ["AAMAAABkAAQAoAAAAAIAAAAA", ""])
async def test_an_upgrade_to_http2_is_ignored(settings: str, autojump_clock: Clock) -> None:
    upgrade = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: {settings}\r\n".encode()
    async with serving(App()) as connect:
        stream = await connect()
        await stream.send_all(GET[:-2] + upgrade + b"\r\n")
        read = b""
        while b"ok" not in read:
            read += await stream.receive_some()
        assert read.startswith(b"HTTP/1.1 200 ")
        await stream.send_all(PREFACE + request(b"/now"))  # as a proxy would pass it on in a tunnel
        assert (await everything(stream)).startswith(b"HTTP/1.1 400 ")


async def test_a_connection_that_begins_with_http2_has_it(autojump_clock: Clock) -> None:
    async with serving(App()) as connect:
        client = Http2Client(await connect())
        client.ask(1, "/now")
        await client.flush()
        await client.until(lambda: 1 in client.ended)
        assert client.bodies[1] == b"ok"


@pytest.mark.parametrize("first", [GET, CHUNKED % b"now"], ids=["plain", "by h11"])
async def test_http2_does_not_begin_on_a_connection_that_was_used(first: bytes, autojump_clock: Clock) -> None:
    async with serving(App()) as connect:
        stream = await connect()
        await stream.send_all(first + PREFACE + request(b"/now"))
        answers = await everything(stream)
        assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"400"]


# Bodies of two lengths


TWO_LENGTHS = {
    "a length and chunks": (b"1.1", b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"),
    "chunks and a length": (b"1.1", b"Transfer-Encoding: chunked\r\nContent-Length: 12\r\n"),
    "chunks in HTTP/1.0": (b"1.0", b"Transfer-Encoding: chunked\r\n"),
}


@pytest.mark.parametrize(("version", "headers"), TWO_LENGTHS.values(), ids=TWO_LENGTHS)
async def test_a_body_of_two_lengths_is_refused_and_its_connection_closed(
    version: bytes, headers: bytes, autojump_clock: Clock
) -> None:
    async with serving(App()) as connect:
        stream = await connect()
        head = b"POST /now HTTP/%b\r\nHost: localhost\r\n%b\r\n" % (version, headers)
        await stream.send_all(head + b"2\r\nhi\r\n0\r\n\r\n" + GET)
        start = trio.current_time()
        answer = await everything(stream)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"connection: close\r\n" in answer.lower()
        assert trio.current_time() - start < 1


# Clients that close their writing half


@pytest.mark.parametrize("asked", [POST % b"late", CHUNKED % b"late"], ids=["plain", "by h11"])
async def test_a_client_that_says_no_more_is_answered(asked: bytes, autojump_clock: Clock) -> None:
    app = App()
    async with serving(app) as connect:
        stream = await connect()
        await stream.send_all(GET + asked)
        await half_close(stream)
        await trio.testing.wait_all_tasks_blocked()
        app.gate.set()
        start = trio.current_time()
        answers = await everything(stream)
        assert answers.count(b"HTTP/1.1 200 ") == 2
        assert answers.endswith(b"ok")
        assert trio.current_time() - start < 1, "and then the connection is closed, not idle"


@pytest.mark.parametrize("asked", [POST % b"asking", CHUNKED % b"asking"], ids=["plain", "by h11"])
async def test_an_application_that_asks_is_told_and_need_not_answer(asked: bytes, autojump_clock: Clock) -> None:
    app = App()
    async with serving(app) as connect:
        stream = await connect()
        await stream.send_all(asked)
        await half_close(stream)
        assert await everything(stream) == b""
        assert app.told == ["http.disconnect"]


@pytest.mark.parametrize("asked", [(POST % b"late")[:-1], (CHUNKED % b"late")[:-3]], ids=["plain", "by h11"])
async def test_half_a_request_is_answered_400_at_once(asked: bytes, autojump_clock: Clock) -> None:
    async with serving(App()) as connect:
        stream = await connect()
        await stream.send_all(asked)
        await half_close(stream)
        start = trio.current_time()
        assert (await everything(stream)).startswith(b"HTTP/1.1 400 ")
        assert trio.current_time() - start < 1


async def half_close(stream: trio.StapledStream[Any, Any]) -> None:
    await stream.send_stream.aclose()


# Idle connections


WEBSOCKET = (
    b"GET /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: %b\r\n%b\r\n"
)


async def nothing(_stream: Any) -> None:
    pass


async def half_a_head(stream: Any) -> None:
    await stream.send_all(GET[:-2])


async def what_is_answered(stream: Any) -> None:
    await stream.send_all(GET)


async def a_refused_websocket_with_a_byte_after_it(stream: Any) -> None:
    await stream.send_all(WEBSOCKET % (b"13", b"") + b"x")


async def a_websocket_of_another_version(stream: Any) -> None:
    await stream.send_all(WEBSOCKET % (b"12", b""))


async def a_websocket_with_a_protocol_that_is_not_ascii(stream: Any) -> None:
    await stream.send_all(WEBSOCKET % (b"13", b"Sec-WebSocket-Protocol: \xff\r\n"))


BEGINNINGS = [
    nothing,
    half_a_head,
    what_is_answered,
    a_refused_websocket_with_a_byte_after_it,
    a_websocket_of_another_version,
    a_websocket_with_a_protocol_that_is_not_ascii,
]


@pytest.mark.parametrize("begin", BEGINNINGS)
async def test_a_connection_on_which_nothing_runs_is_closed(
    begin: Callable[[Any], Awaitable[None]], autojump_clock: Clock
) -> None:
    async with serving(App()) as connect:
        stream = await connect()
        await begin(stream)
        with trio.fail_after(80):
            answer = await everything(stream)
    if "websocket" in begin.__name__:
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 "))
        assert answer.count(b"HTTP/1.1 ") == 1
