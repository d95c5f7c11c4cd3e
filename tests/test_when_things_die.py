"""A worker, Redis, or the network between them goes: what still works, what is refused, and that all of it heals."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest
import trio
from anyio import to_thread
from mcp.shared.exceptions import MCPError

from harness import mcp
from harness.asgi import Answer, Exchange
from harness.balancer import Balancer
from harness.clients import PATIENCE, Progress, Wire, call, connected
from harness.hybrid import KEY, Fleet, Setup, fleet
from harness.mcp import Conversation
from harness.process import ServerProcess, program, serve
from harness.raw import RawClient
from harness.redis import RedisServer, redis_server
from mcp_hybrid.backplane.redis import BEAT, FRESH, LEASE, OPERATION, RedisBackplane

Json = dict[str, Any]

BOUND = 5 * (OPERATION + 1.0)
"""Seconds a request may take that is the first to find Redis away; on a busy machine, five times that."""
ADA: Json = {"action": "accept", "content": {"name": "Ada"}}
ADD = mcp.tool("add", {"a": 1, "b": 2})


# A worker is killed


@pytest.fixture
def servers(shared_redis: RedisServer) -> Iterator[list[ServerProcess]]:
    shared = {"BACKPLANE": shared_redis.url, "SESSIONS__KEYS": KEY}
    environ = {f"MCP_HYBRID_{name}": value for name, value in shared.items()}
    with ExitStack() as stack:
        yield [stack.enter_context(serve(program("gated"), env=environ)) for _ in range(2)]


async def open_session(port: int) -> str:
    async with RawClient.open(port) as client:
        await client.post(mcp.initialize())
        session = (await client.answer_head()).headers["mcp-session-id"]
        await client.answer_body()
        return session


@pytest.mark.process
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_client_that_resumes_a_call_of_a_killed_worker_gets_an_error_within_seconds(
    servers: list[ServerProcess], when: str
) -> None:
    """Whether it comes back before the worker is killed, and waits, or after."""
    dies, lives = servers
    session = await open_session(lives.port)
    async with RawClient.open(dies.port) as client:
        await client.post(
            mcp.tool("steps", {"name": f"killed {when}", "count": 1}, "c", token="t"), session, mcp.LEGACY
        )
        await client.answer_head()
        last = (await client.event()).id
        assert last is not None
    if when == "after":
        dies.kill()
    async with RawClient.open(lives.port) as client:
        await client.send("GET", mcp.headers(session, mcp.LEGACY, ("last-event-id", last), content_type=None))
        assert (await client.answer_head()).status == 200
        if when == "before":
            dies.kill()
        with trio.fail_after(5 * (LEASE + 2 * BEAT)):
            answer = (await client.event()).json()
            assert (answer["id"], answer["error"]["code"]) == ("c", -32000)
            assert "died" in answer["error"]["message"]
            assert await client.event_or_end() is None
    async with RawClient.open(lives.port) as client:
        await client.post(ADD, session, mcp.LEGACY)
        assert (await client.answer_head()).status == 200


@pytest.mark.process
async def test_a_worker_that_stood_still_for_longer_than_its_lease_gives_no_second_answer(
    servers: list[ServerProcess],
) -> None:
    """Meanwhile a DELETE elsewhere waits for it only until it is sure to ask Redis before it serves anything."""
    stands, lives = servers
    session, ended = await open_session(lives.port), await open_session(stands.port)
    async with RawClient.open(stands.port) as client:
        await client.post(mcp.tool("steps", {"name": "still", "count": 1}, "c", token="t"), session, mcp.LEGACY)
        await client.answer_head()
        last = (await client.event()).id
        assert last is not None
    assert await ping(stands.port, ended) == 200
    os.kill(stands.pid, signal.SIGSTOP)
    try:
        started = trio.current_time()
        async with RawClient.open(lives.port) as client:
            await client.send("DELETE", mcp.headers(ended, mcp.LEGACY, content_type=None))
            assert (await client.answer_head()).status == 204
        assert trio.current_time() - started < 5 * FRESH
        told = await resumed(lives.port, session, last)
    finally:
        os.kill(stands.pid, signal.SIGCONT)
    (error,) = told
    assert (error["id"], error["error"]["code"]) == ("c", -32000)
    assert await ping(stands.port, ended) == 404
    for tool in (mcp.tool("release", {"gate": "still/1"}), mcp.tool("reached", {"name": "still", "stage": "finished"})):
        async with RawClient.open(stands.port) as client:
            await client.post(tool)
            assert (await client.answer_head()).status == 200
            await client.answer_body()
    assert await resumed(lives.port, session, last) == told


async def ping(port: int, session: str) -> int:
    async with RawClient.open(port) as client:
        await client.post(mcp.request("ping"), session, mcp.LEGACY)
        return (await client.answer_head()).status


async def resumed(port: int, session: str, last: str) -> list[Json]:
    """Give what comes of a stream after that event, to its end."""
    messages = []
    with trio.fail_after(PATIENCE):
        async with RawClient.open(port) as client:
            await client.send("GET", mcp.headers(session, mcp.LEGACY, ("last-event-id", last), content_type=None))
            assert (await client.answer_head()).status == 200
            while (event := await client.event_or_end()) is not None:
                messages += [event.json()] if event.data else []
    return messages


@pytest.mark.process
async def test_the_sdks_client_is_told_of_the_death_and_its_session_goes_on(servers: list[ServerProcess]) -> None:
    wire, progress, errors = Wire(), Progress(), []
    with anyio.fail_after(PATIENCE), Balancer([server.port for server in servers]) as balancer:
        async with connected(balancer.url, "legacy", wire) as client:

            async def cut() -> None:
                with pytest.raises(MCPError) as caught:
                    await client.call_tool("steps", {"name": "sdk", "count": 1}, progress_callback=progress)
                errors.append(caught.value.error)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cut)
                await progress.until(1)
                (worker,) = {one.worker for one in balancer.passed() if one.rpc == "tools/call"}
                await to_thread.run_sync(servers[worker].kill)
            assert "died" in errors[0].message
            assert await call(client, "add", a=1, b=2) == "3"
    assert [one.rpc for one in wire.seen].count("initialize") == 1


# Redis goes


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def pair(redis: RedisServer) -> AsyncIterator[Fleet]:
    async with fleet(redis.url, 2) as workers:
        yield workers


async def opened(workers: Fleet, worker: int = 0) -> Conversation:
    return await Conversation.open(workers.workers[worker].client, capabilities={"elicitation": {}})


@asynccontextmanager
async def away(redis: RedisServer, how: str) -> AsyncIterator[None]:
    """Have Redis away for the block: gone, or silent."""
    if how == "killed":
        redis.kill()
        yield
        redis.start()
    else:
        redis.stall()
        try:
            yield
        finally:
            redis.resume()


AWAY = pytest.mark.parametrize("how", ["killed", "stalled"])


def assert_later(answer: Answer) -> None:
    """Check that a client is told to come back."""
    assert (answer.status, answer.header("retry-after")) == (503, "1")
    assert "error" in answer.json()


async def until_healed(workers: Fleet) -> None:
    """Wait until every worker has found Redis back."""
    await until_known(workers, available=True)


async def until_known(workers: Fleet, *, available: bool) -> None:
    with anyio.fail_after(PATIENCE):
        for worker in workers.workers:
            while worker.app._backplane.available is not available:  # noqa: ASYNC110 - nobody announces it
                await anyio.sleep(0.05)


@contextmanager
def unasked(worker: Setup) -> Iterator[None]:
    """Check that a worker asks Redis for nothing in the block."""
    backplane = worker.app._backplane
    assert isinstance(backplane, RedisBackplane)
    asked: list[bytes] = []

    async def note(command: bytes, *arguments: object, **options: object) -> None:
        asked.append(command)
        raise TimeoutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backplane._connection, "run", note)
        yield
    assert asked == []


async def restart(redis: RedisServer, workers: Fleet, *, forget: bool) -> None:
    redis.kill()
    await until_known(workers, available=False)
    if forget:
        redis.forget()
    redis.start()
    await until_healed(workers)


@AWAY
async def test_requests_without_a_session_go_on_as_if_nothing_had_happened(
    pair: Fleet, redis: RedisServer, how: str
) -> None:
    client, modern = pair.workers[0].client, mcp.modern(ADD)
    async with away(redis, how):
        with unasked(pair.workers[0]):
            for _ in range(3):
                assert (await client.request("POST", "/mcp", mcp.headers(), mcp.body(mcp.initialize()))).status == 200
                assert (await client.request("POST", "/mcp", mcp.headers(), mcp.body(ADD))).status == 200
                answer = await client.request("POST", "/mcp", mcp.modern_headers(modern), mcp.body(modern))
                assert answer.json()["result"]["structuredContent"] == {"result": 3}


@AWAY
async def test_a_session_goes_on_and_only_the_first_to_notice_waits(pair: Fleet, redis: RedisServer, how: str) -> None:
    conversation = await opened(pair)
    async with away(redis, how):
        with anyio.fail_after(BOUND):
            assert (await conversation.post(ADD)).status == 200
        await until_known(pair, available=False)
        with unasked(pair.workers[0]):
            for _ in range(5):
                assert (await conversation.post(ADD)).json()["result"]["structuredContent"] == {"result": 3}


@AWAY
async def test_a_call_that_runs_is_followed_asked_and_answered_to_its_end(
    pair: Fleet, redis: RedisServer, how: str
) -> None:
    """On the worker that runs it; nothing of that needs Redis but resuming."""
    conversation = await opened(pair)
    async with conversation.stream(mcp.tool("ask", id=8)) as running:
        question = await running.message()
        async with away(redis, how):
            with anyio.fail_after(BOUND):
                assert (await conversation.post(mcp.result(question["id"], ADA))).status == 202
            with anyio.fail_after(BOUND):
                assert (await conversation.answers(running))["result"]["content"][0]["text"] == "hello Ada"
            with anyio.fail_after(BOUND):
                answer = await conversation.post(mcp.tool("count", {"steps": 2, "delay": 0.01}, 9, token="t"))
            assert answer.events()[-1].json()["result"]["content"][0]["text"] == "counted to 2"


@AWAY
async def test_what_cannot_be_done_truthfully_is_503_and_done_once_redis_is_back(
    pair: Fleet, redis: RedisServer, how: str
) -> None:
    conversation = await opened(pair)
    elsewhere = pair.at(conversation, 1)
    async with conversation.stream(mcp.tool("ask")) as asking, conversation.stream(mcp.tool("wait", id=2)) as cut:
        question = await asking.message()
        last = (await cut.event()).id
        async with away(redis, how):
            for refused in (
                elsewhere.post(mcp.result(question["id"], ADA)),
                elsewhere.post(mcp.cancelled(2)),
                resume(elsewhere, last),
                resume(elsewhere, None),
                conversation.delete(),
                elsewhere.delete(),
            ):
                with anyio.fail_after(BOUND):
                    assert_later(await refused)
        await until_healed(pair)
        assert (await elsewhere.post(mcp.result(question["id"], ADA))).status == 202
        assert (await conversation.answers(asking))["result"]["content"][0]["text"] == "hello Ada"
        assert (await elsewhere.post(mcp.cancelled(2))).status == 202
        async with elsewhere.get(last) as resumed:
            assert (await conversation.answers(resumed))["error"]["code"] == -32800
    assert (await elsewhere.delete()).status == 204
    assert (await conversation.post(ADD)).status == 404


async def resume(conversation: Conversation, last: str | None) -> Answer:
    async with conversation.get(last) as exchange:
        return await exchange.answer()


@AWAY
async def test_a_call_that_ended_while_redis_was_away_can_be_resumed_once_it_is_back(
    pair: Fleet, redis: RedisServer, how: str
) -> None:
    conversation = await opened(pair)
    async with conversation.stream(mcp.tool("wait", id="w")) as cut:
        last = (await cut.event()).id
    async with away(redis, how):
        pair.workers[0].example.release()
        await pair.workers[0].example.until_over("wait")
        await until_known(pair, available=False)
    await until_healed(pair)
    with anyio.fail_after(PATIENCE):
        async with pair.at(conversation, 1).get(last) as resumed:
            assert (await conversation.answers(resumed))["result"]["content"][0]["text"] == "let go"


@AWAY
async def test_an_open_get_stream_outlives_it(pair: Fleet, redis: RedisServer, how: str) -> None:
    conversation = await opened(pair)
    async with conversation.get() as stream:
        await stream.event()
        async with away(redis, how):
            await until_known(pair, available=False)
        await until_healed(pair)
        await pair.at(conversation, 1).post(mcp.tool("notify_changed"))
        assert (await changes(stream))["method"] == "notifications/tools/list_changed"


@AWAY
async def test_a_get_that_is_refused_leaves_the_stream_that_is_open(pair: Fleet, redis: RedisServer, how: str) -> None:
    conversation = await opened(pair)
    async with conversation.get() as stream:
        await stream.event()
        async with away(redis, how):
            assert_later(await resume(conversation, None))
        await until_healed(pair)
        await pair.at(conversation, 1).post(mcp.tool("notify_changed"))
        assert (await changes(stream))["method"] == "notifications/tools/list_changed"


async def changes(stream: Exchange) -> Json:
    with anyio.fail_after(PATIENCE):
        message: Json = await stream.message()
        return message


@AWAY
async def test_a_live_call_is_not_taken_for_dead_after_an_outage_longer_than_a_lease(
    pair: Fleet, redis: RedisServer, how: str
) -> None:
    conversation = await opened(pair)
    async with conversation.stream(mcp.tool("wait", id="w")) as cut:
        last = (await cut.event()).id
    async with pair.at(conversation, 1).get(last) as resumed:
        await resumed.started()
        async with away(redis, how):
            await anyio.sleep(LEASE + 1)
        await until_healed(pair)
        await anyio.sleep(2 * BEAT)
        pair.workers[0].example.release()
        with anyio.fail_after(PATIENCE):
            assert (await conversation.answers(resumed))["result"]["content"][0]["text"] == "let go"


# Redis is restarted


async def test_a_redis_restarted_with_its_data_has_forgotten_nothing(redis: RedisServer) -> None:
    async with fleet(redis.url, 2) as workers:
        ended, kept = await opened(workers), await opened(workers)
        assert (await ended.delete()).status == 204
        async with kept.stream(mcp.tool("wait", id="w")) as cut:
            last = (await cut.event()).id
        await restart(redis, workers, forget=False)
        workers.workers[0].example.release()
        for worker in (0, 1):
            assert (await workers.at(ended, worker).post(ADD)).status == 404
        with anyio.fail_after(PATIENCE):
            async with workers.at(kept, 1).get(last) as resumed:
                assert (await kept.answers(resumed))["result"]["content"][0]["text"] == "let go"


async def test_a_redis_restarted_without_its_data_costs_no_session(redis: RedisServer) -> None:
    """What workers know they go on knowing: who was ended. What only Redis knew, the logs, is truthfully unknown."""
    async with fleet(redis.url, 2) as workers:
        ended, kept = await opened(workers), await opened(workers)
        for worker in (0, 1):
            await workers.at(ended, worker).post(ADD)
        assert (await ended.delete()).status == 204
        async with kept.stream(mcp.tool("wait", id="w")) as cut:
            last = (await cut.event()).id
            await restart(redis, workers, forget=True)
            for worker in (0, 1):
                assert (await workers.at(ended, worker).post(ADD)).status == 404
                assert (await workers.at(kept, worker).post(ADD)).status == 200
            assert (await resume(workers.at(kept, 1), last)).status == 400
            workers.workers[0].example.release()
            assert (await kept.answers(cut))["result"]["content"][0]["text"] == "let go"
        assert (await workers.at(kept, 1).delete()).status == 204
        assert (await kept.post(ADD)).status == 404
