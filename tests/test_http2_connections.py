"""HTTP/2: what is wrong with one stream ends that stream, and no connection costs more than it may.

The sections are those of RFC 9113.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from harness.connections import Http2Client, config, everything, serving
from harness.http2 import END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, WINDOW_UPDATE, frame, request
from mcp_hybrid.counts import Count
from mcp_hybrid.server.http2 import HardenedH2Protocol
from mcp_hybrid.server.http2_frames import HEADER_TABLE, RESETS, ServerConnection

Clock = trio.testing.MockClock


class Gated:
    """An application that answers when it is let. It does not care whether its client is still there."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.begun = 0
        self.told = 0
        """Requests whose sending failed, as their client was gone."""

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        self.begun += 1
        if scope["path"] != "/now":
            await self.gate.wait()
        size = int(scope["query_string"] or b"2")
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x" * size, "more_body": False})
        except OSError:
            self.told += 1


# 5.1.2, 8.1.1: stream errors


async def test_a_stream_too_many_is_refused_and_the_others_go_on(autojump_clock: Clock) -> None:
    app = Gated()
    async with serving(app) as connect:
        client = Http2Client(await connect())
        client.http.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1000  # which it has not heard of yet
        client.http.remote_settings.acknowledge()
        streams = range(1, 201, 2)
        for stream in (*streams, 201):
            client.ask(stream)
        await client.flush()
        await client.until(lambda: bool(client.reset))
        app.gate.set()
        await client.until(lambda: client.ended.issuperset(streams))
        assert client.reset == {201: ErrorCodes.REFUSED_STREAM}
        assert [client.status[stream] for stream in streams] == [200] * 100
        client.ask(203)
        await client.flush()
        await client.until(lambda: 203 in client.ended)
        assert client.status[203] == 200
        assert app.begun == 101


def odd(*headers: tuple[Any, Any], method: Any = "GET", path: Any = "/") -> Callable[[Http2Client], None]:
    return lambda client: client.ask(3, path, *headers, method=method)


def with_another_length(client: Http2Client) -> None:
    client.ask(3, "/", ("content-length", "3"), method="POST", end=False)
    client.http.send_data(3, b"four", end_stream=True)


def without_a_path(client: Http2Client) -> None:
    fields = [(":method", "CONNECT"), (":authority", "localhost")]
    client.http.send_headers(3, fields, end_stream=True)


MALFORMED = {
    "a method that is not ASCII": odd(method=b"G\xc9T"),
    "a path that is not ASCII": odd(path=b"/caf\xc3\xa9"),
    "a name with a capital": odd((b"X-Capital", b"1")),
    "a header of the connection": odd((b"connection", b"keep-alive")),
    "a line break": odd((b"x", b"a\r\nb: c")),
    "a pseudo-header that is none": odd((b":x", b"1")),
    "a status": odd((b":status", b"200")),
    "a length that is no number": odd((b"content-length", b"many")),
    "a body of another length": with_another_length,
    "a tunnel": without_a_path,
    "a websocket's protocol that is not ASCII": odd(
        (b":protocol", b"websocket"), (b"sec-websocket-protocol", b"\xff"), method="CONNECT"
    ),
}


@pytest.mark.parametrize("send", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_request_is_reset_and_the_others_go_on(
    send: Callable[[Http2Client], None], autojump_clock: Clock
) -> None:
    app = Gated()
    async with serving(app) as connect:
        client = Http2Client(await connect())
        client.ask(1)
        send(client)
        await client.flush()
        await client.until(lambda: bool(client.reset))
        app.gate.set()
        client.ask(5, "/now", ("x-indexed", "by a table that both still have"))
        await client.flush()
        await client.until(lambda: client.ended >= {1, 5})
        assert client.reset == {3: ErrorCodes.PROTOCOL_ERROR}
        assert (client.status[1], client.status[5], client.goaway) == (200, 200, None)


async def test_a_request_with_the_status_of_an_interim_answer_is_reset_as_well() -> None:
    server = server_connection()
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    client.initiate_connection()
    server.receive_data(client.data_to_send())
    block = client.encoder.encode([(":method", "GET"), (":status", "100")])
    server.clear_outbound_data_buffer()
    assert server.receive_data(frame(HEADERS, END_STREAM | END_HEADERS, 1, block)) == []
    assert server.data_to_send() == frame(RST_STREAM, 0, 1, ErrorCodes.PROTOCOL_ERROR.to_bytes(4, "big"))


def server_connection() -> ServerConnection:
    made = ServerConnection(h2.config.H2Configuration(client_side=False, header_encoding=None), lambda: False)
    made.initiate_connection()
    return made


# Resets


async def test_requests_that_are_reset_without_end_end_the_connection(autojump_clock: Clock) -> None:
    app = Gated()
    before = HardenedH2Protocol.counts[Count.CONNECTIONS_RESETTING]
    async with serving(app) as connect:
        client = Http2Client(await connect())
        for number in range(2 * RESETS):
            client.ask(2 * number + 1)
            client.http.reset_stream(2 * number + 1)
        await client.flush()
        await client.until(lambda: False)
        assert client.goaway == ErrorCodes.ENHANCE_YOUR_CALM
        assert app.begun == 0, "nobody waits for what was reset in the same packet"
    assert HardenedH2Protocol.counts[Count.CONNECTIONS_RESETTING] == before + 1


@pytest.mark.parametrize("kind", ["malformed", "refused", "window"])
async def test_streams_that_the_server_has_to_reset_count_as_well(kind: str, autojump_clock: Clock) -> None:
    async with serving(Gated()) as connect:
        client = Http2Client(await connect())
        client.http.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 10_000
        client.http.remote_settings.acknowledge()
        data = b""
        for number in range(2 * RESETS):
            client.ask(2 * number + 1, b"/\xff" if kind == "malformed" else "/")  # type: ignore[arg-type]
            data += client.http.data_to_send()
            if kind == "window":  # more than a window may have (6.9.1)
                data += frame(WINDOW_UPDATE, 0, 2 * number + 1, (2**31 - 1).to_bytes(4, "big"))
        await client.stream.send_all(data)
        await client.until(lambda: False)
        assert client.goaway == ErrorCodes.ENHANCE_YOUR_CALM


async def test_a_client_that_resets_now_and_then_keeps_its_connection(autojump_clock: Clock) -> None:
    async with serving(Gated()) as connect:
        client = Http2Client(await connect())
        for number in range(3 * RESETS):
            client.ask(2 * number + 1)
            client.http.reset_stream(2 * number + 1)
            await client.flush()
            await trio.sleep(0.1)
        last = 6 * RESETS + 1
        client.ask(last, "/now")
        await client.flush()
        await client.until(lambda: last in client.ended)
        assert client.status[last] == 200


async def test_a_client_that_stops_sending_what_was_answered_resets_nothing(autojump_clock: Clock) -> None:
    last = 4 * RESETS + 1
    async with serving(Gated()) as connect:
        client = Http2Client(await connect())
        for stream in range(1, last, 2):
            client.ask(stream, "/now", method="POST", end=False)
            await client.flush()
            await client.until(partial(client.ended.__contains__, stream))
            client.http.reset_stream(stream)
        client.ask(last, "/now")
        await client.flush()
        await client.until(lambda: last in client.ended)
        assert client.status[last] == 200


async def test_what_runs_on_after_its_reset_takes_the_place_of_a_stream(autojump_clock: Clock) -> None:
    app = Gated()
    async with serving(app, config(h2_max_concurrent_streams=5)) as connect:
        client = Http2Client(await connect())
        await client.flush()
        await client.until(lambda: client.http.remote_settings.max_concurrent_streams == 5)
        for stream in range(1, 11, 2):
            client.ask(stream)
            await client.flush()
            await trio.testing.wait_all_tasks_blocked()
            client.http.reset_stream(stream)
        assert app.begun == 5
        client.ask(11, "/now")
        await client.flush()
        await client.until(lambda: bool(client.reset))
        assert client.reset == {11: ErrorCodes.REFUSED_STREAM}
        app.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        client.ask(13, "/now")
        await client.flush()
        await client.until(lambda: 13 in client.ended)
        assert (client.status[13], app.told) == (200, 5)


# Answers that nobody takes


@pytest.mark.parametrize("size", [10, 100_000], ids=["that waits for its end", "that waits for room"])
async def test_an_answer_that_is_not_taken_in_time_ends_its_stream(
    size: int, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HardenedH2Protocol, "write_time", 3.0)
    app = Gated()
    app.gate.set()
    async with serving(app) as connect:
        client = Http2Client(await connect(), initial_window_size=0)
        for stream in range(1, 201, 2):
            client.ask(stream, f"/?{size}")
        await client.flush()
        start = trio.current_time()
        await client.until(lambda: len(client.reset) == 100)
        assert set(client.reset.values()) == {ErrorCodes.CANCEL}
        assert trio.current_time() - start == pytest.approx(3, abs=0.5)
        await trio.testing.wait_all_tasks_blocked()
        assert app.begun == 100
        client.http.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        await client.flush()
        client.ask(201, "/now")  # for nobody holds anything any more
        await client.flush()
        await client.until(lambda: 201 in client.ended)
        assert client.bodies[201] == b"xx"


# Idle connections


async def opening(stream: Any) -> None:
    await stream.send_all(PREFACE)


async def a_websocket_of_another_version(stream: Any) -> None:
    client = Http2Client(stream)
    client.ask(1, "/", (b":protocol", b"websocket"), (b"sec-websocket-version", b"12"), method="CONNECT")
    await client.flush()
    await client.until(lambda: 1 in client.ended)
    assert client.status[1] == 400


async def what_is_answered(stream: Any) -> None:
    client = Http2Client(stream)
    client.ask(1, "/now")
    await client.flush()
    await client.until(lambda: 1 in client.ended)


async def what_is_refused(stream: Any) -> None:
    await stream.send_all(PREFACE + request(b"/caf\xc3\xa9"))


@pytest.mark.parametrize("begin", [opening, a_websocket_of_another_version, what_is_answered, what_is_refused])
async def test_a_connection_on_which_nothing_runs_is_closed(
    begin: Callable[[Any], Awaitable[None]], autojump_clock: Clock
) -> None:
    async with serving(Gated()) as connect:
        stream = await connect()
        await begin(stream)
        with trio.fail_after(80):
            await everything(stream)
        assert trio.current_time() > 70


# The table of headers, and the turns of others


async def test_the_header_table_has_a_bound_whatever_the_client_allows() -> None:
    server = server_connection()
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    client.initiate_connection()
    client.update_settings({SettingCodes.HEADER_TABLE_SIZE: 2**32 - 1})
    client.receive_data(server.data_to_send())
    for number in range(100):
        stream = 2 * number + 1
        client.send_headers(
            stream, [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")], True
        )
        server.receive_data(client.data_to_send())
        server.send_headers(stream, [(":status", "200"), ("mcp-session-id", f"{number:0100}")], end_stream=True)
        (answered,) = (
            event
            for event in client.receive_data(server.data_to_send())
            if isinstance(event, h2.events.ResponseReceived)
        )
        assert dict(answered.headers)[b"mcp-session-id"] == b"%0100d" % number
    assert server.encoder.header_table_size == HEADER_TABLE
    assert server.encoder.header_table._current_size <= HEADER_TABLE


async def test_a_smaller_header_table_is_kept_to() -> None:
    server = server_connection()
    server.encoder.header_table_size = 100
    assert server.encoder.header_table_size == 100


async def test_many_frames_at_once_leave_others_their_turn(autojump_clock: Clock) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with serving(Gated()) as connect:
        client = Http2Client(await connect())
        await client.flush()
        await client.until(lambda: bool(client.http.remote_settings))
        await trio.testing.wait_all_tasks_blocked()
        flood = frame(WINDOW_UPDATE, 0, 0, (1).to_bytes(4, "big")) * (60 * 1024 // 13)  # which nobody answers
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await client.stream.send_all(flood + frame(PING, 0, 0, b"12345678"))
            read = b""
            while frame(PING, 1, 0, b"12345678") not in read:
                read += await client.stream.receive_some()
            nursery.cancel_scope.cancel()
        assert turns > 10
