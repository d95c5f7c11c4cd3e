"""Connections that end by an exception: what the log says, what is left of them, and when the process goes, too."""

from __future__ import annotations

import gc
import os
import shlex
import socket
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import h11
import pytest
import structlog.testing
import trio
import trio.testing

from harness.connections import Http2Client, everything, serving
from harness.http2 import PREFACE, request
from harness.process import ServerProcess, command
from mcp_hybrid.server.failures import OUT_OF_MEMORY, Failures, release
from mcp_hybrid.server.http1 import PlainHTTP1Protocol
from mcp_hybrid.server.http2 import HardenedH2Protocol
from mcp_hybrid.server.http2_frames import ServerConnection
from mcp_hybrid.server.worker import HardenedTCPServer

Clock = trio.testing.MockClock

KIB_OF_ADDRESSES = 170_000
"""What a process may have of them: more than it needs to start, less than 20 bodies."""
GET = b"GET /now HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def app(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def fail_with(error: Exception, times: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have so many connections end by an exception; give what is logged. Others are served all the same."""

    async def taken(self: Any, data: bytes) -> bytes:
        raise error

    with structlog.testing.capture_logs() as logged:
        async with serving(app) as connect:
            with monkeypatch.context() as patch:
                patch.setattr(PlainHTTP1Protocol, "_take_head", taken)
                for _ in range(times):
                    stream = await connect()
                    await stream.send_all(GET)
                    assert await everything(stream) == b""
            stream = await connect()
            await stream.send_all(GET[:-2] + b"Connection: close\r\n\r\n")
            assert b" 200 " in await everything(stream)
    return logged


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_hybrid.server.worker._failures", Failures())


@pytest.mark.parametrize("error", [h11.RemoteProtocolError("what was sent"), OSError("gone")])
async def test_what_a_client_does_wrong_is_a_short_line_now_and_then(
    error: Exception, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = await fail_with(error, 5, monkeypatch)
    assert (line["log_level"], line["why"], line.get("exc_info")) == ("warning", type(error).__name__, None)
    assert "what was sent" not in str(line)


async def test_an_error_of_ours_is_logged_with_its_traceback(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = AttributeError("ours")
    (line,) = await fail_with(error, 5, monkeypatch)
    assert (line["log_level"], line["why"]) == ("error", "AttributeError")
    assert line["exc_info"].exceptions[0] is error


def test_an_error_among_those_of_clients_is_still_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio, "current_time", lambda: 0.0)
    with structlog.testing.capture_logs() as logged:
        Failures().note(ExceptionGroup("", [OSError(), ExceptionGroup("", [KeyError("ours")])]))
    assert [line["why"] for line in logged] == ["KeyError, OSError"]
    assert logged[0]["log_level"] == "error"


# What is left


class Body(bytearray):
    """A body whose end can be seen."""


@contextmanager
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def test_a_connection_that_fails_leaves_nothing_to_the_collector(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests whose bodies have come in part hang on a connection that ends by an error of ours."""
    bodies: list[weakref.ref[Body]] = []

    async def reading(_scope: Any, receive: Any, send: Any) -> None:
        held = Body((await receive())["body"])
        bodies.append(weakref.ref(held))
        await receive()
        await app(_scope, receive, send)

    async def failing(self: Any, events: Any) -> None:
        try:
            dict[int, int]()[len(events)]
        except KeyError as error:
            caught = error
            raise AttributeError("ours") from caught

    with uncollected():
        async with serving(reading) as connect:
            client = Http2Client(await connect())
            for stream in range(1, 11, 2):
                client.ask(stream, method="POST", end=False)
                client.http.send_data(stream, b"x" * 1000)
            await client.flush()
            await trio.testing.wait_all_tasks_blocked()
            assert len(bodies) == 5
            assert all(ref() for ref in bodies)
            with monkeypatch.context() as patch:
                patch.setattr(HardenedH2Protocol, "_handle_events", failing)
                await client.stream.send_all(b"\x00" * 9)
                await everything(client.stream)
            await trio.testing.wait_all_tasks_blocked()
            assert not any(ref() for ref in bodies)
            assert connections() == []


@pytest.mark.parametrize(
    "opened", [b"", PREFACE, PREFACE + request(b"/now")], ids=["HTTP/1.1", "HTTP/2", "HTTP/2 with a request"]
)
async def test_a_connection_that_ends_leaves_nothing_to_the_collector(opened: bytes, autojump_clock: Clock) -> None:
    with uncollected():
        async with serving(app) as connect:
            async with await connect() as stream:
                await stream.send_all(opened)
                await trio.testing.wait_all_tasks_blocked()
                assert len(connections()) == (3 if opened else 2)
            await trio.testing.wait_all_tasks_blocked()
            assert connections() == []


def connections() -> list[object]:
    """Return what there is of connections on the server's side."""
    kinds = HardenedTCPServer, PlainHTTP1Protocol, HardenedH2Protocol, ServerConnection
    return [each for each in gc.get_objects() if isinstance(each, kinds)]


def test_exceptions_are_let_go_of_in_whatever_way_they_hang_together() -> None:
    def fail(body: Body) -> None:
        caught: list[Exception] = []
        try:
            dict[int, int]()[len(body)]
        except KeyError as error:
            caught.append(error)
            try:
                int("none")
            except ValueError as second:
                caught.append(second)
        raise ExceptionGroup("", [*caught, ExceptionGroup("", [RuntimeError()])]) from caught[0]

    with uncollected():
        body = Body(1000)
        ref = weakref.ref(body)
        try:
            fail(body)
        except ExceptionGroup as error:
            release(error)
        del body
        assert ref() is None


# Memory


class EndedError(Exception):
    """In place of the process's end."""


async def test_a_process_without_memory_ends(autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = []

    def end(code: int) -> None:
        codes.append(code)
        raise EndedError

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(ExceptionGroup):
        await fail_with(MemoryError(), 1, monkeypatch)
    assert codes == [OUT_OF_MEMORY]


async def test_an_application_that_runs_out_of_memory_ends_nothing_but_its_request(autojump_clock: Clock) -> None:
    async def greedy(_scope: Any, _receive: Any, _send: Any) -> None:
        raise MemoryError

    async with serving(greedy) as connect:
        stream = await connect()
        await stream.send_all(GET[:-2] + b"Connection: close\r\n\r\n")
        assert (await everything(stream)).startswith(b"HTTP/1.1 500 ")


@pytest.mark.process
def test_a_server_whose_address_space_is_used_up_ends_instead_of_hanging() -> None:
    """Bodies of which all but a byte has come, until there is no room for more."""
    head = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 4000000\r\n\r\n"

    def argv(port: int) -> list[str]:
        serving = [*command("mcp-hybrid"), "serve", "--port", str(port)]
        return ["sh", "-c", f"ulimit -v {KIB_OF_ADDRESSES} && exec {shlex.join(serving)}"]

    # With these at their defaults no client gets that far.
    unlimited = {f"MCP_HYBRID_LIMITS__{name}": "0" for name in ("BODIES", "BODIES_PER_OWNER", "REQUESTS_PER_OWNER")}
    with ServerProcess(argv, unlimited) as server, ExitStack() as stack:
        for _ in range(200):
            if server._running().poll() is not None:
                break
            with suppress(OSError):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
                client.sendall(head + b"x" * 3_999_999)
        assert server._running().wait(60) == OUT_OF_MEMORY, server.log
        assert "out of memory" in server.log
        server.kill()
