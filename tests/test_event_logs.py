"""What clients that come back find: large results, what was dropped, and what is let go because nobody needs it.

One suite for both backplanes; in memory the time is the test's.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest
from mcp.server import MCPServer
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPDeprecationWarning
from mcp_types import EmptyResult, SetLevelRequestParams
from pydantic_core import to_json

from harness import mcp
from harness.asgi import AsgiClient
from harness.mcp import Conversation
from harness.redis import RedisServer
from mcp_hybrid import HybridApp, Settings
from mcp_hybrid.backplane import Backplane, BackplaneUnavailableError, LogLimits, MemoryBackplane, StreamKey
from mcp_hybrid.backplane.redis import RedisBackplane
from mcp_hybrid.exchange import standalone
from mcp_hybrid.exchange.journal import RETRY, LateBytes, StreamJournal
from mcp_hybrid.routing.message import LONGEST_ID

Open = Callable[..., AbstractAsyncContextManager[Conversation]]


def make_server(*, logs: bool = True) -> MCPServer[Any]:
    server = MCPServer("logs", version="1")

    @server.tool()
    async def large(ctx: Context, size: int) -> str:
        await ctx.report_progress(1)
        await anyio.sleep(0.3)
        return "x" * size

    @server.tool()
    async def many(ctx: Context, values: int) -> str:
        for value in range(values):
            await ctx.report_progress(value)
            await anyio.lowlevel.checkpoint()
        return "all of them"

    @server.tool()
    async def burst(ctx: Context, count: int, size: int = 10) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MCPDeprecationWarning)
            for number in range(count):
                await ctx.session.send_log_message("info", f"{number} {'y' * size}")
        return "said"

    async def set_level(_ctx: ServerRequestContext, _params: SetLevelRequestParams) -> EmptyResult:
        return EmptyResult()

    if logs:
        server._lowlevel_server.add_request_handler("logging/setLevel", SetLevelRequestParams, set_level)
    return server


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def opened(request: pytest.FixtureRequest) -> Open:
    """Open a session with a server whose logs have these limits."""

    @asynccontextmanager
    async def open_one(limits: LogLimits | None = None, *, logs: bool = True) -> AsyncIterator[Conversation]:
        backplane: Backplane
        if request.param == "memory":
            request.getfixturevalue("autojump_clock")
            backplane = MemoryBackplane(limits)
        else:
            redis: RedisServer = request.getfixturevalue("shared_redis")
            backplane = RedisBackplane(redis.url, prefix=f"test-{secrets.token_hex(4)}:", limits=limits)
        app = HybridApp(make_server(logs=logs), Settings(), backplane=backplane)
        async with AsgiClient(app, patience=60) as client:
            yield await Conversation.open(client)

    return open_one


async def cut(talk: Conversation, message: Any) -> str:
    """Make a call, lose the connection after its first event, and return that event's id."""
    async with talk.stream(message) as call:
        first = (await call.event()).id
    assert first is not None
    return first


async def resumed(talk: Conversation, after: str) -> list[Any]:
    async with talk.get(last_event_id=after) as rest:
        assert (await rest.started())[0] == 200
        return await rest.messages()


async def test_a_result_larger_than_a_log_is_had_back(opened: Open) -> None:
    size = 600_000  # which is there twice in the answer
    async with opened() as talk:
        *_, result = await resumed(talk, await cut(talk, mcp.tool("large", {"size": size}, "c", token=1)))
        assert result["id"] == "c"
        assert len(result["result"]["content"][0]["text"]) == size


async def test_who_comes_back_for_what_is_too_large_is_told_so_at_once(opened: Open) -> None:
    async with opened(LogLimits(result_bytes=100_000)) as talk:
        *_, error = await resumed(talk, await cut(talk, mcp.tool("large", {"size": 100_000}, "c", token=1)))
        assert (error["id"], error["error"]["code"]) == ("c", -32603)
        assert "100000 bytes" in error["error"]["message"]
        whole = await talk.post(mcp.tool("large", {"size": 100_000}, "d", token=1))
        assert "result" in whole.events()[-1].json()  # on its own connection


async def test_what_was_dropped_from_the_front_keeps_nobody_from_the_rest(opened: Open) -> None:
    async with opened(LogLimits(events=20)) as talk:
        events = (await talk.post(mcp.tool("many", {"values": 100}, "c", token=1))).events()
        messages = await resumed(talk, str(events[0].id))
        assert messages[-1]["result"]["content"][0]["text"] == "all of them"
        values = [message["params"]["progress"] for message in messages[:-1]]
        assert len(values) <= 20
        assert values == sorted(values)
        assert values[-1] == 99


async def test_a_batch_of_large_results_is_had_back_whole(opened: Open) -> None:
    async with opened() as talk:
        old = await Conversation.open(talk.client, "2025-03-26")
        calls = [mcp.tool("large", {"size": 400_000}, number, token=number) for number in range(3)]
        after = await cut(old, mcp.batch(*calls))
        answers = [message for message in await resumed(old, after) if "result" in message]
        assert sorted(message["id"] for message in answers) == [0, 1, 2]


async def test_a_large_message_is_written_in_pieces(opened: Open) -> None:
    async with opened() as talk:
        after = await cut(talk, mcp.tool("large", {"size": 600_000}, "c", token=1))
        async with talk.get(last_event_id=after) as rest:
            sizes = [len(chunk) async for chunk in rest]
        assert sum(sizes) > 600_000
        assert max(sizes) <= standalone.PIECE


async def test_a_log_is_let_go_soon_once_its_client_has_it_all(opened: Open) -> None:
    async with opened(LogLimits(delivered_age=0.1)) as talk:
        events = (await talk.post(mcp.tool("large", {"size": 10}, token=1))).events()
        await until_gone(talk, str(events[0].id))


async def test_a_log_is_let_go_soon_once_it_was_resumed_to_its_end(opened: Open) -> None:
    async with opened(LogLimits(delivered_age=0.1)) as talk:
        after = await cut(talk, mcp.tool("large", {"size": 10}, token=1))
        await resumed(talk, after)
        await until_gone(talk, after)


async def until_gone(talk: Conversation, after: str) -> None:
    """Wait until a stream cannot be resumed any more."""
    backplane = talk.client._app._backplane  # type: ignore[attr-defined]  # the application that is served
    name, _, _ = after.partition(".")
    (session,) = [session.hash for session in talk.client._app.registry.sessions()]  # type: ignore[attr-defined]
    with anyio.fail_after(60):
        while await backplane.is_open(StreamKey(session, name)):
            await backplane.prune()
            await anyio.sleep(0.05)
    async with talk.get(last_event_id=after) as rest:
        assert (await rest.started())[0] == 400


async def test_a_log_is_kept_for_a_client_that_left(opened: Open) -> None:
    async with opened(LogLimits(delivered_age=0.1)) as talk:
        after = await cut(talk, mcp.tool("large", {"size": 10}, "c", token=1))
        await anyio.sleep(1)
        await talk.client._app._backplane.prune()  # type: ignore[attr-defined]
        assert (await resumed(talk, after))[-1]["id"] == "c"


# ---- bursts on the GET stream


@pytest.mark.parametrize(("count", "size"), [(1500, 10), (5, 400_000)])
async def test_a_burst_reaches_a_client_that_reads(opened: Open, count: int, size: int) -> None:
    async with opened() as talk, talk.get() as stream:
        await stream.event()
        seen: list[int] = []

        async def read() -> None:
            while len(seen) < count:
                seen.append(int((await stream.message())["params"]["data"].split()[0]))

        with anyio.fail_after(600):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                answer = await talk.post(mcp.tool("burst", {"count": count, "size": size}))
                assert answer.status == 200
        assert seen == [*range(count)]


@pytest.mark.parametrize("told", ["yes", "it asked for errors only", "the server does not log"])
async def test_a_client_that_does_not_read_learns_how_many_it_missed(
    opened: Open, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setattr(standalone, "PATIENCE", 0.2)
    async with opened(LogLimits(events=20), logs=told != "the server does not log") as talk, talk.get() as stream:
        first = await stream.event()
        if told == "it asked for errors only":
            await talk.post(mcp.request("logging/setLevel", {"level": "error"}))
        stream.pause()
        await talk.post(mcp.tool("burst", {"count": 100}))
        stream.resume()
        numbers, notices = [], []
        while 99 not in numbers:
            message = await stream.message()
            assert message["method"] == "notifications/message"
            data = message["params"]["data"]
            if message["params"].get("logger") == "mcp-hybrid":
                notices.append((message["params"]["level"], int(data.split()[0])))
            else:
                numbers.append(int(data.split()[0]))
        assert numbers == sorted(numbers)
        assert len(numbers) >= 20
        assert notices == ([("warning", 100 - len(numbers))] if told == "yes" else [])
        await talk.post(mcp.tool("burst", {"count": 1}))  # the stream goes on
        assert (await stream.message())["params"]["data"].startswith("0 ")
        assert first.id is not None


# ---- what is late, as the backplane is away


class Flaky(MemoryBackplane):
    """A backplane that is away until it is told to be there, and slow."""

    away = True
    slow: anyio.Event | None = None

    async def append(self, *args: Any, **options: Any) -> str | None:
        if self.slow is not None:
            await self.slow.wait()
        if self.away:
            raise BackplaneUnavailableError
        return await super().append(*args, **options)


STREAM = StreamKey("5e", "c1")
ENDING = b'{"jsonrpc":"2.0","id":%d,"result":{}}'


@asynccontextmanager
async def journal(backplane: Backplane, late_bytes: int = 10**6) -> AsyncIterator[StreamJournal]:
    async with anyio.create_task_group() as tasks:

        def spawn(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
            tasks.start_soon(work)

        yield StreamJournal(backplane, STREAM, [1, 2], spawn, LateBytes(late_bytes))


async def kept(backplane: Backplane) -> list[bytes | None]:
    log = backplane._logs["5e"]["c1"]  # type: ignore[attr-defined]  # an id of before the first is not known
    return [*log.entries]


async def test_nothing_is_lost_when_the_queue_overflows_during_a_write(autojump_clock: object) -> None:
    backplane = Flaky(LogLimits(events=3))
    async with journal(backplane) as log:
        for number in range(3):
            await log.record(b"%d" % number)
        backplane.away, backplane.slow = False, anyio.Event()
        await anyio.sleep(2 * RETRY)  # the oldest is being written
        await log.record(b"3")
        backplane.slow.set()
        backplane.slow = None
    assert await kept(backplane) == [b"1", b"2", b"3"]


async def test_results_outlive_what_is_late(autojump_clock: object) -> None:
    backplane = Flaky(LogLimits(events=3))
    async with journal(backplane) as log:
        for number in range(10):
            await log.record(b"%d" % number)
        for number in (2, 1):
            await log.record(ENDING % number, result=True)
        await log.end(delivered=False)
        await anyio.sleep(10)
        backplane.away = False
    assert await kept(backplane) == [b"7", b"8", b"9", ENDING % 2, ENDING % 1, None]


async def test_what_is_late_is_bounded_and_says_so(autojump_clock: object) -> None:
    backplane = Flaky()
    async with journal(backplane, late_bytes=1000) as log:
        for _ in range(20):
            await log.record(b"x" * 100)
        await log.record(ENDING % 1 + b" " * 1000, result=True)
        await log.end(delivered=False)
        assert log._late_bytes.now < 2000
        backplane.away = False
    entries = await kept(backplane)
    assert b"Repeat the call" in (entries[-2] or b"")
    assert entries[-1] is None
    assert log._late_bytes.now == 0


# ---- what clients choose is bounded


@pytest.mark.parametrize("id_", ["x" * (LONGEST_ID + 1), 2**64, -(2**63) - 1])
async def test_a_request_id_beyond_its_bound_is_400(opened: Open, id_: str | int) -> None:
    async with opened() as talk:
        assert (await talk.post(mcp.request("ping", id=id_))).status == 400


@pytest.mark.parametrize("id_", ["x" * LONGEST_ID, 2**64 - 1, -(2**63)])
async def test_a_request_id_within_its_bound_is_echoed(opened: Open, id_: str | int) -> None:
    async with opened() as talk:
        answer = await talk.post(mcp.request("ping", id=id_))
        assert (answer.status, answer.json()["id"]) == (200, id_)


async def test_request_ids_are_written_to_redis_once(
    shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    backplane = RedisBackplane(shared_redis.url, prefix=f"test-{secrets.token_hex(4)}:")
    written: list[bytes] = []
    do = backplane._do

    async def note(command: bytes, *arguments: Any) -> Any:
        written.append(to_json([argument for argument in arguments if isinstance(argument, bytes)]))
        return await do(command, *arguments)

    monkeypatch.setattr(backplane, "_do", note)
    async with AsgiClient(HybridApp(make_server(), Settings(), backplane=backplane)) as client:
        talk = await Conversation.open(client)
        long = "i" * 200
        answer = await talk.post(mcp.tool("many", {"values": 50}, long, token=1))
        assert len(answer.events()) > 3  # progress is coalesced on a busy machine
    assert sum(long.encode() in each for each in written) == 2  # with the first entry, and in the result
