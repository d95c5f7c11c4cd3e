"""Limits over real sockets: heads that Hypercorn reads, bodies and answers that do not move, and connections."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h11
import httpx2
import pytest
import trio
from pydantic_core import from_json

from harness.mcp import LEGACY, body, headers, initialize, request, tool
from harness.process import ServerProcess, hypercorn, program, serve
from harness.raw import RawClient
from mcp_hybrid.errors import Cause

pytestmark = pytest.mark.process

PATIENCE = 120.0
"""Seconds after which a server has failed to do what it should."""

PING = body(request("ping", id=7))
KIB = 1024


def limits(**values: str) -> dict[str, str]:
    return {f"MCP_HYBRID_LIMITS__{name.upper()}": value for name, value in values.items()}


@pytest.fixture(scope="module")
def strict() -> Iterator[ServerProcess]:
    """A server with little patience, for those who try it."""
    with serve(program("gated"), env=limits(body_time="1s", write_time="1s")) as process:
        yield process


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server that has patience with a machine that does much else."""
    with serve(program("gated"), env=limits(body_time="60s", write_time="60s")) as process:
        yield process


async def serves(port: int) -> None:
    async with RawClient.open(port) as client:
        await client.send("POST", headers(), PING)
        assert (await client.answer_head()).status == 200
        assert (await client.answer_json())["id"] == 7


async def refused(client: RawClient, cause: Cause) -> None:
    """Read the refusal for that cause, whole."""
    head = await client.answer_head()
    assert (head.status, head.headers["content-type"]) == (cause.status, "application/json")
    assert (await client.answer_json())["error"]["code"] == cause.code


# HTTP/1.1 heads


async def test_a_head_that_comes_in_one_piece_is_refused_in_words(server: ServerProcess) -> None:
    with trio.fail_after(PATIENCE):
        async with RawClient.open(server.port) as client:
            fields = [*headers(), *((f"x-{number}", "x") for number in range(1000))]  # 14 KB, 47 KB as they are counted
            await client.send("POST", fields, PING)
            await refused(client, Cause.HEAD_TOO_LARGE)
        await serves(server.port)


async def test_a_head_that_goes_on_beyond_the_limit_is_cut_off(server: ServerProcess) -> None:
    with trio.fail_after(PATIENCE):
        async with RawClient.open(server.port) as client:
            await client.write(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nX-Long: ", b"x" * 40 * KIB)
            # Hypercorn's own answer, as the request never got as far as the application.
            answer = b""
            while piece := await client.stream.receive_some():
                answer += piece
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert b"content-length: 0\r\nconnection: close\r\n" in answer
        await serves(server.port)


# HTTP/2 heads


class Http2:
    """One HTTP/2 connection, in the clear."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.http.initiate_connection()

    @classmethod
    @asynccontextmanager
    async def open(cls, port: int) -> AsyncIterator[Self]:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            yield cls(stream)

    async def send(self, *extra: tuple[str, str], data: bytes = PING, end: bool = True) -> None:
        fields = [(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", "/mcp")]
        self.http.send_headers(1, [*fields, *headers(), *extra])
        self.http.send_data(1, data, end_stream=end)
        await self.flush()

    async def flush(self) -> None:
        await self.stream.send_all(self.http.data_to_send())

    async def answer(self) -> tuple[int, Any] | None:
        """Wait for the whole answer; None where the connection ends instead."""
        status, found = 0, b""
        while data := await self._receive():
            for event in self.http.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(dict(event.headers)[b":status"])
                elif isinstance(event, h2.events.DataReceived):
                    found += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    return status, from_json(found)
            await self.flush()
        return None

    async def _receive(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some())
        except trio.BrokenResourceError:
            return b""


@pytest.mark.parametrize(("size", "status"), [(20, 200), (40, 431), (80, None)])
async def test_http_2_heads_are_refused_in_words_and_beyond_64_kib_by_the_end_of_the_connection(
    server: ServerProcess, size: int, status: int | None
) -> None:
    with trio.fail_after(PATIENCE):
        async with Http2.open(server.port) as client:
            await client.send(*((f"x-{number}", "x" * KIB) for number in range(size)))
            answer = await client.answer()
            assert (answer[0] if answer is not None else None) == status
            if status == 431:
                assert answer is not None
                assert answer[1]["error"]["code"] == Cause.HEAD_TOO_LARGE.code
        await serves(server.port)


# Bodies that do not come


@pytest.mark.parametrize("sent", [b"", PING[:1], PING[:-1]], ids=["nothing", "a byte", "all but a byte"])
async def test_a_body_that_stops_coming_is_answered_and_hung_up_on(strict: ServerProcess, sent: bytes) -> None:
    with trio.fail_after(PATIENCE):
        async with RawClient.open(strict.port) as client:
            await client.write(client.head("POST", headers(), len(PING)), sent)
            await refused(client, Cause.BODY_TOO_SLOW)
            assert await client.hung_up()
        await serves(strict.port)


async def test_a_body_that_trickles_for_ever_is_answered_and_hung_up_on(strict: ServerProcess) -> None:
    async def trickle(client: RawClient) -> None:
        try:
            while True:
                await client.write(client.piece(b" "))
                await trio.sleep(0.02)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    with trio.fail_after(PATIENCE):
        async with RawClient.open(strict.port) as client, trio.open_nursery() as nursery:
            await client.write(client.head("POST", headers(), None))
            nursery.start_soon(trickle, client)
            await refused(client, Cause.BODY_TOO_SLOW)
        await serves(strict.port)


async def test_a_body_that_stops_coming_over_http_2_is_answered(strict: ServerProcess) -> None:
    with trio.fail_after(PATIENCE):
        async with Http2.open(strict.port) as client:
            await client.send(data=PING[:5], end=False)
            answer = await client.answer()
            assert answer is not None
            assert (answer[0], answer[1]["error"]["code"]) == (408, Cause.BODY_TOO_SLOW.code)
        await serves(strict.port)


# Answers that are not taken


@pytest.mark.parametrize("launched", ["mcp-hybrid", "hypercorn"])
async def test_a_connection_whose_client_takes_nothing_is_closed_after_the_time_for_a_write(launched: str) -> None:
    env = {**limits(write_time="400ms"), "MCP_HYBRID_TARGET": program("gated")}
    with serve(env=env) if launched == "mcp-hybrid" else hypercorn(env=env) as process, trio.fail_after(PATIENCE):
        async with RawClient.open(process.port) as client:
            await client.post(initialize())
            session = (await client.answer_head()).headers["mcp-session-id"]
        async with RawClient.open(process.port, receive_buffer=4096) as client:
            flood = tool("flood", {"name": "f", "count": 600, "size": 65536}, token="t")
            await client.post(flood, session, LEGACY)
            await trio.to_thread.run_sync(process.wait_for_log, "its client did not read")
        assert "0.4" in process.log
        assert await closed_for(process, "write_time") == 1
        await serves(process.port)


async def closed_for(process: ServerProcess, limit: str) -> int:
    """Give how many connections the metrics say were closed for a limit."""
    async with httpx2.AsyncClient(timeout=PATIENCE) as client:
        while True:
            with suppress(httpx2.TransportError):  # there may still be too many
                page = await client.get(process.url.replace("/mcp", "/metrics"))
                (found,) = re.findall(rf'connections_closed_total{{limit="{limit}"}} (\d+)', page.text)
                return int(found)


# Connections


@pytest.mark.parametrize("launched", ["mcp-hybrid", "hypercorn"])
async def test_connections_beyond_the_limit_are_closed_at_once_and_those_within_go_on(launched: str) -> None:
    env = limits(connections="2")
    with serve(env=env) if launched == "mcp-hybrid" else hypercorn(env=env) as process, trio.fail_after(PATIENCE):
        async with served(process.port) as one:
            async with served(process.port):
                for _ in range(5):
                    async with RawClient.open(process.port) as third:
                        assert await closed(third)
            async with served(process.port):
                pass
            await one.answer_body()
            one.next_request()
            await one.post(request("ping"))
            assert (await one.answer_head()).status == 200
        assert await closed_for(process, "connections") >= 5
        assert process.log.count("there are too many") == 1, "a flood of them is no flood of lines"


async def closed(client: RawClient) -> bool:
    try:
        return await client.stream.receive_some() == b""
    except trio.BrokenResourceError:
        return True


@asynccontextmanager
async def served(port: int) -> AsyncIterator[RawClient]:
    """Open a connection that is served; it may take a while, as the server has to see that earlier clients are gone."""
    while True:
        async with RawClient.open(port) as client:
            try:
                await client.post(request("ping"))
                await client.answer_head()
            except (trio.BrokenResourceError, h11.RemoteProtocolError):
                await trio.sleep(0.02)
                continue
            yield client
            return
