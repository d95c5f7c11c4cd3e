"""Any worker serves any request: applications, then processes, that share nothing but a key and a Redis."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
import trio
from one_owner import ENVIRON
from pydantic_core import from_json

from harness import mcp
from harness.balancer import Balancer, Passed
from harness.clients import on_trio_and_asyncio
from harness.hybrid import KEY, Fleet, fleet
from harness.mcp import Conversation
from harness.numbered import Tally, Together, converse_by_sdk
from harness.process import ServerProcess, program, serve
from harness.raw import RawClient
from harness.redis import RedisServer, redis_server
from mcp_hybrid.backplane import Signal, StreamKey
from mcp_hybrid.backplane.redis import RedisBackplane
from mcp_hybrid.exchange.standalone import STANDALONE
from mcp_hybrid.server.master import UNSHARED
from mcp_hybrid.sessions.questions import CannotAskError
from mcp_hybrid.sessions.registry import hash_of

Json = dict[str, Any]

ROOT = Path(__file__).parent.parent
SCALING = ROOT / "docs" / "scaling.md"

CAN_ANSWER: Json = {"elicitation": {}, "sampling": {}}
ADD = mcp.tool("add", {"a": 1, "b": 2})
ADA: Json = {"action": "accept", "content": {"name": "Ada"}}
SOON = 60.0

LONGEST = 1200.0
"""Seconds until they are given up: far more than they take, also on a machine that does much else."""
DONE_BY_THE_SDK = {
    "notifications/initialized": 1,
    "GET": 2,  # the standalone stream, and the rest of the stream that `poll` ended
    "tools/list": 1,  # its own look at the output schema
    "tools/call": 4,
    "answer": 2,
    "resources/subscribe": 1,
    "notifications/cancelled": 1,
    "DELETE": 1,
}


@pytest.fixture
async def four(shared_redis: RedisServer) -> AsyncIterator[Fleet]:
    async with fleet(shared_redis.url, 4) as workers:
        yield workers


async def opened(workers: Fleet) -> Conversation:
    """Open a session on the first worker."""
    return await Conversation.open(workers.workers[0].client, capabilities=CAN_ANSWER)


# Several applications in one process


async def test_a_session_opened_on_one_worker_is_served_by_every_other(four: Fleet) -> None:
    conversation = await opened(four)
    for worker in (1, 2, 3):
        there = four.at(conversation, worker)
        answer = await there.post(mcp.tool("add", {"a": worker, "b": 1}))
        assert answer.header("mcp-hybrid-route") == "session"
        assert answer.json()["result"]["structuredContent"] == {"result": worker + 1}


async def test_a_question_asked_on_one_worker_may_be_answered_on_another(four: Fleet) -> None:
    conversation = await opened(four)
    async with four.at(conversation, 1).stream(mcp.tool("ask")) as call:
        question = await call.message()
        assert question["method"] == "elicitation/create"
        answer = await four.at(conversation, 2).post(mcp.result(question["id"], ADA))
        assert answer.status == 202
        assert (await conversation.answers(call))["result"]["content"][0]["text"] == "hello Ada"


async def test_the_second_answer_to_a_question_is_dropped_wherever_it_arrives(four: Fleet) -> None:
    conversation = await opened(four)
    async with four.at(conversation, 1).stream(mcp.tool("ask")) as call:
        question = await call.message()
        for worker, name in ((2, "Ada"), (3, "Eve")):
            content = {"action": "accept", "content": {"name": name}}
            assert (await four.at(conversation, worker).post(mcp.result(question["id"], content))).status == 202
        assert (await conversation.answers(call))["result"]["content"][0]["text"] == "hello Ada"


async def test_progress_on_a_question_reaches_the_worker_that_asked(four: Fleet) -> None:
    """The asker's progress callback is run there, by the token that the question went out with."""
    conversation = await opened(four)
    seen: list[tuple[float, float | None, str | None]] = []
    heard = anyio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))
        heard.set()

    asker = four.workers[1]
    async with four.at(conversation, 1).stream(mcp.tool("wait")) as call:
        await asker.example.until_started("wait")
        session = asker.registry.sessions()[0]
        context: Any = next(iter(session.calls.values()))
        async with anyio.create_task_group() as tasks:
            options = {"on_progress": on_progress, "timeout": SOON}
            tasks.start_soon(context.send_raw_request, "elicitation/create", {"message": "?"}, options)
            question = await call.message()
            token = question["params"]["_meta"]["progressToken"]
            params = {"progressToken": token, "progress": 1, "total": 2, "message": "half"}
            await four.at(conversation, 2).post(mcp.notification("notifications/progress", params))
            with anyio.fail_after(SOON):
                await heard.wait()
            await four.at(conversation, 3).post(mcp.result(question["id"], ADA))
        assert seen == [(1.0, 2.0, "half")]
        asker.example.release()
        await conversation.answers(call)


async def test_a_call_is_cancelled_from_another_worker(four: Fleet) -> None:
    conversation = await opened(four)
    async with four.at(conversation, 1).stream(mcp.tool("wait", id=7)) as call:
        await four.workers[1].example.until_started("wait")
        assert (await four.at(conversation, 2).post(mcp.cancelled(7))).status == 202
        assert (await conversation.answers(call))["error"]["code"] == -32800
    assert four.workers[1].example.cancelled == ["wait"]


async def test_a_cancellation_reaches_no_call_of_another_session_with_the_same_id(four: Fleet) -> None:
    one, other = await opened(four), await opened(four)
    async with four.at(one, 1).stream(mcp.tool("wait", {"name": "one"}, id=7)) as call:
        async with four.at(other, 1).stream(mcp.tool("wait", {"name": "other"}, id=7)) as cancelled:
            await four.workers[1].example.until_started("wait", 2)
            await four.at(other, 3).post(mcp.cancelled(7))
            assert "error" in await other.answers(cancelled)
        four.workers[1].example.release("one")
        assert (await one.answers(call))["result"]["content"][0]["text"] == "let go"


async def test_what_is_told_outside_of_a_call_reaches_the_get_stream_on_another_worker(four: Fleet) -> None:
    conversation = await opened(four)
    async with four.at(conversation, 3).get() as stream:
        await stream.started()
        await four.at(conversation, 1).post(mcp.tool("notify_changed"))
        assert (await stream.message())["method"] == "notifications/tools/list_changed"


async def test_a_second_get_stream_elsewhere_takes_over_from_the_first(four: Fleet) -> None:
    conversation = await opened(four)
    async with four.at(conversation, 1).get() as first:
        await first.event()
        async with four.at(conversation, 2).get() as second:
            assert await first.messages() == []
            await four.at(conversation, 3).post(mcp.tool("notify_changed"))
            assert (await second.message())["method"] == "notifications/tools/list_changed"


async def test_word_that_a_stream_was_taken_over_closes_no_later_one(
    four: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word may be late: by then the client may have come back to the worker that it is meant for."""
    conversation = await opened(four)
    held_up: list[Any] = []
    between = four.workers[2].registry._backplane
    send = between.send

    async def hold_up(*word: Any) -> None:
        held_up.append(word)

    async with four.at(conversation, 1).get() as first:
        await first.event()
        monkeypatch.setattr(between, "send", hold_up)
        async with four.at(conversation, 2).get() as second:
            await second.event()
            async with four.at(conversation, 1).get() as third:
                await third.event()
                assert await first.messages() == []
                assert await second.messages() == []
                (word,) = held_up
                await send(*word)
                await four.at(conversation, 3).post(mcp.tool("notify_changed"))
                assert (await third.message())["method"] == "notifications/tools/list_changed"


@pytest.mark.parametrize("asker", ["live", "hibernating"])
async def test_a_question_of_no_call_is_asked_on_the_get_stream_of_another_worker(four: Fleet, asker: str) -> None:
    conversation = await opened(four)
    await four.at(conversation, 1).post(ADD)
    channel = four.workers[1].registry.sessions()[0].connection.outbound
    if asker == "hibernating":
        await four.workers[1].registry.close()
    answers: list[Json] = []

    async def ask() -> None:
        answers.append(await channel.send_raw_request("elicitation/create", {"message": "?"}))

    async with four.at(conversation, 3).get() as stream:
        await stream.event()
        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                question = await stream.message()
                assert question["method"] == "elicitation/create"
                assert (await four.at(conversation, 2).post(mcp.result(question["id"], ADA))).status == 202
    assert answers == [ADA]


async def test_a_question_of_no_call_is_refused_at_once_where_no_worker_has_the_get_stream(four: Fleet) -> None:
    conversation = await opened(four)
    await four.at(conversation, 1).post(ADD)
    channel = four.workers[1].registry.sessions()[0].connection.outbound
    async with four.at(conversation, 3).get() as stream:
        await stream.event()
    backplane = four.workers[1].registry._backplane
    with anyio.fail_after(SOON):
        while await backplane.is_held(StreamKey(hash_of(conversation.session or ""), STANDALONE)):  # noqa: ASYNC110 - nobody announces it
            await anyio.sleep(0.01)
        with pytest.raises(CannotAskError, match="no GET stream"):
            await channel.send_raw_request("elicitation/create", {"message": "?"})


async def test_the_get_stream_is_resumed_elsewhere_without_a_gap(four: Fleet) -> None:
    conversation = await opened(four)
    async with four.at(conversation, 1).get() as stream:
        seen = await stream.event()
    await four.at(conversation, 2).post(mcp.tool("notify_changed"))
    async with four.at(conversation, 3).get(seen.id) as stream:
        assert (await stream.message())["method"] == "notifications/tools/list_changed"


async def test_a_call_whose_stream_was_cut_is_resumed_on_another_worker(four: Fleet) -> None:
    conversation = await opened(four)
    async with four.at(conversation, 1).stream(mcp.tool("wait", id="w")) as call:
        primed = await call.event()
    assert primed.id is not None
    four.workers[1].example.release()
    async with four.at(conversation, 2).get(primed.id) as stream:
        (answer,) = await stream.messages()
    assert (answer["id"], answer["result"]["content"][0]["text"]) == ("w", "let go")


async def test_a_tool_that_closes_its_stream_finishes_on_one_resumed_elsewhere(four: Fleet) -> None:
    conversation = await opened(four)
    async with four.at(conversation, 1).stream(mcp.tool("close_stream", id=5, token="t")) as call:
        ids = [event.id for event in (await call.answer()).events() if event.id]
    async with four.at(conversation, 2).get(ids[-1]) as stream:
        progress, answer = await stream.messages()
    assert progress["params"]["progress"] == 2
    assert answer["result"]["content"][0]["text"] == "finished without a stream"


async def test_no_request_of_a_live_session_asks_redis_whether_it_was_ended(
    trusting: None, four: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = await opened(four)
    backplane = four.workers[1].app._backplane
    assert isinstance(backplane, RedisBackplane)
    with anyio.fail_after(SOON):
        while backplane.watch == 0:  # noqa: ASYNC110 - nobody announces it
            await anyio.sleep(0.01)
    assert (await four.at(conversation, 1).post(ADD)).status == 200

    async def unwanted(*command: object, **options: object) -> None:
        raise AssertionError(f"Redis was asked: {command}")

    monkeypatch.setattr(backplane._connection, "run", unwanted)
    for _ in range(3):
        assert (await four.at(conversation, 1).post(ADD)).status == 200


@pytest.mark.redis
async def test_fifty_get_streams_on_two_workers_are_two_blocking_readers() -> None:
    with redis_server() as redis:
        async with fleet(redis.url, 2) as two, AsyncExitStack() as stack:
            for number in range(50):
                conversation = two.at(await opened(two), number % 2)
                stream = await stack.enter_async_context(conversation.get())
                await stream.event()
            backplane = two.workers[0].app._backplane
            assert isinstance(backplane, RedisBackplane)
            readers: list[int] = []
            with anyio.fail_after(SOON):
                while readers.count(2) < 20:  # now and then one is about to read again
                    found = (await backplane._do(b"INFO", b"clients")).decode()
                    seen = dict(re.findall(r"^(\w+_clients):(\d+)", found, re.MULTILINE))
                    readers.append(int(seen["blocked_clients"]))
                    assert seen["connected_clients"] == "4"  # each has one more, for everything else
            assert max(readers) == 2


async def test_a_session_ended_on_any_worker_is_404_on_all(four: Fleet) -> None:
    conversation = await opened(four)
    async with four.at(conversation, 1).stream(mcp.tool("wait")) as call, four.at(conversation, 2).get() as stream:
        await stream.started()
        await four.workers[1].example.until_started("wait")
        assert (await four.at(conversation, 3).delete()).status == 204
        for worker in range(4):
            assert (await four.at(conversation, worker).post(mcp.tool("add", {"a": 1, "b": 2}))).status == 404
        assert "error" in await conversation.answers(call)
        assert await stream.messages() == []
    assert four.workers[1].example.cancelled == ["wait"]


async def test_a_session_whose_end_is_heard_of_while_redis_is_asked_for_it_is_not_brought_back(
    four: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis may have said that it goes on just before it was ended."""
    conversation = await opened(four)
    between = four.workers[1].registry._backplane
    is_revoked = between.is_revoked

    async def ended_meanwhile(session: str, until: float) -> bool:
        said = await is_revoked(session, until)
        assert (await four.at(conversation, 0).delete()).status == 204
        return said

    monkeypatch.setattr(between, "is_revoked", ended_meanwhile)
    late = await four.at(conversation, 1).post(ADD)
    monkeypatch.undo()
    assert late.status == 404
    assert late.json() == (await four.at(conversation, 1).post(ADD)).json()
    assert len(four.workers[1].registry) == 0


@pytest.mark.parametrize(
    "word",
    [
        mcp.result("anything.x", {"x": "x" * 1000}),
        mcp.result(f"{'0' * 12}.{'x' * 12}", {"x": "x" * 1000}),
        mcp.result(7, {"x": "x" * 1000}),
        mcp.notification("notifications/progress", {"progressToken": f"{'0' * 12}.{'x' * 12}", "progress": 1}),
        mcp.notification("notifications/progress", {"progressToken": ["x"], "progress": 1}),
    ],
    ids=["no question's", "a worker's that never was", "a number", "progress of that worker", "progress of nothing"],
)
async def test_what_clients_make_up_is_kept_for_nobody(four: Fleet, word: Json) -> None:
    conversation = await opened(four)
    assert (await four.at(conversation, 1).post(word)).status == 202
    backplane = four.workers[0].app._backplane
    assert isinstance(backplane, RedisBackplane)
    inboxes = await backplane._do(b"KEYS", backplane._key("inbox", "*"))
    real = {backplane._key("inbox", each.app._backplane.worker).encode() for each in four.workers}
    assert set(inboxes) <= real


@pytest.mark.parametrize(
    ("request_id", "told"),
    [(7, True), ("seven", True), ("x" * 2000, False), ([7], False), ({"x": "y"}, False), (True, False), (None, False)],
)
async def test_a_cancellation_is_passed_on_only_where_it_may_name_a_call(
    trusting: None, four: Fleet, monkeypatch: pytest.MonkeyPatch, request_id: Any, told: bool
) -> None:
    conversation = await opened(four)
    passed_on: list[Signal] = []

    async def note(signal: Signal) -> None:
        passed_on.append(signal)

    monkeypatch.setattr(four.workers[1].registry._backplane, "broadcast", note)
    message = mcp.notification("notifications/cancelled", {"requestId": request_id})
    assert (await four.at(conversation, 1).post(message)).status == 202
    assert len(passed_on) == told


async def test_progress_is_passed_on_without_what_else_the_client_put_there(
    four: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = await opened(four)
    passed_on: list[Signal] = []

    async def note(_worker: str, signal: Signal) -> None:
        passed_on.append(signal)

    monkeypatch.setattr(four.workers[1].registry._backplane, "send", note)
    token = f"{four.workers[0].app._backplane.worker}.{'x' * 12}"
    for progress in (1, "much", None, 10**400):
        params = {"progressToken": token, "progress": progress, "total": 2, "more": "x" * 1000}
        await four.at(conversation, 1).post(mcp.notification("notifications/progress", params))
    (signal,) = passed_on
    assert from_json(signal.body) == {"progressToken": token, "progress": 1.0, "total": 2.0, "message": None}


async def test_an_answer_as_large_as_a_body_may_be_reaches_the_worker_that_asked(four: Fleet) -> None:
    conversation = await opened(four)
    name = "x" * (4 * 2**20 - 1000)
    async with four.at(conversation, 1).stream(mcp.tool("ask")) as call:
        question = await call.message()
        answer: Json = {"action": "accept", "content": {"name": name}}
        assert (await four.at(conversation, 2).post(mcp.result(question["id"], answer))).status == 202
        assert (await conversation.answers(call))["result"]["content"][0]["text"] == f"hello {name}"


async def test_a_listener_hears_a_change_published_on_another_worker(four: Fleet) -> None:
    listen = mcp.modern(mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}))
    change = mcp.modern(mcp.tool("notify_changed"))
    listener, changer = four.workers[0].client, four.workers[3].client
    async with listener.stream("POST", "/mcp", mcp.modern_headers(listen), mcp.body(listen)) as stream:
        assert (await stream.message())["method"] == "notifications/subscriptions/acknowledged"
        answer = await changer.request("POST", "/mcp", mcp.modern_headers(change), mcp.body(change))
        assert answer.status == 200
        assert (await stream.message())["method"] == "notifications/tools/list_changed"


async def test_every_key_in_redis_is_documented_and_has_a_lifetime(four: Fleet) -> None:
    conversation = await opened(four)
    ended = await opened(four)
    await ended.delete()
    backplane = four.workers[0].app._backplane
    assert isinstance(backplane, RedisBackplane)
    prefix = backplane._prefix
    async with four.at(conversation, 1).get() as stream, four.at(conversation, 2).stream(mcp.tool("wait")) as call:
        await stream.event()
        cut = (await call.event()).id
        async with four.at(conversation, 3).get(cut) as resumed:
            await resumed.started()
            await four.at(conversation, 3).post(mcp.cancelled(99))
            await backplane.save_state("0" * 32, {"name": b"1"}, time.time() + 60)
            found: dict[str, int] = {}
            for key in await backplane._do(b"KEYS", f"{prefix}*"):
                found[key.decode().removeprefix(prefix)] = await backplane._do(b"PTTL", key)
    assert {name: left for name, left in found.items() if left <= 0} == {}
    rows = re.findall(r"^\| `([^`]+)` \|", SCALING.read_text().partition("## The keys")[2], re.MULTILINE)
    documented = {re.sub(r"<\w+>", r"[0-9a-z]+", row) for row in rows}
    for name in found:
        assert any(re.fullmatch(row, name) for row in documented), name
    for row in documented:
        assert any(re.fullmatch(row, name) for name in found), row


# Four processes behind a balancer


@dataclass
class Cluster:
    """Worker processes that share a key and a Redis, and the balancer in front of them."""

    servers: list[ServerProcess]
    balancer: Balancer


@pytest.fixture(scope="module")
def cluster(shared_redis: RedisServer) -> Iterator[Cluster]:
    shared = {"BACKPLANE": shared_redis.url, "SESSIONS__KEYS": KEY, "LOG__LEVEL": "warning"}
    environ = {f"MCP_HYBRID_{name}": value for name, value in shared.items()} | ENVIRON
    with ExitStack() as stack:
        servers = [stack.enter_context(serve(program("numbered"), env=environ)) for _ in range(4)]
        balancer = stack.enter_context(Balancer([server.port for server in servers]))
        yield Cluster(servers, balancer)


def assert_never_twice_in_a_row(passed: list[Passed]) -> None:
    """Check that no session's request went to the worker that its last one went to, and that all four had some."""
    by_session: defaultdict[str, list[Passed]] = defaultdict(list)
    for one in passed:
        if one.session is not None:
            by_session[one.session].append(one)
    for requests in by_session.values():
        assert all(one.worker != next_.worker for one, next_ in pairwise(requests)), requests
        assert {one.worker for one in requests} == {0, 1, 2, 3}


@pytest.mark.process
@on_trio_and_asyncio
async def test_the_sdks_client_never_notices_that_every_request_goes_to_another_worker(cluster: Cluster) -> None:
    n, tally = str(uuid4()), Tally()
    heard, wire = await converse_by_sdk(cluster.balancer.url, n)
    tally.count(n, heard)
    assert tally == Tally(finished=1)
    assert {one.status for one in wire.seen} <= {200, 202, 204}
    assert wire.seen[-1].http == "DELETE"
    passed = [one for one in cluster.balancer.passed() if one.session == wire.session]
    assert Counter(one.rpc or one.http for one in passed) == DONE_BY_THE_SDK
    assert_never_twice_in_a_row(passed)


@pytest.mark.process
@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.release)])
async def test_conversations_at_once_lose_double_and_misdeliver_nothing(cluster: Cluster, count: int) -> None:
    tally, together = Tally(), Together(count)
    before = len(cluster.balancer.passed())

    async def converse(n: str) -> None:
        heard, _ = await converse_by_sdk(cluster.balancer.url, n, together)
        tally.count(n, heard)

    with trio.fail_after(LONGEST):
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(converse, f"conversation-{number}")
    assert tally == Tally(finished=count)
    assert_never_twice_in_a_row(cluster.balancer.passed()[before:])
    assert [server.log for server in cluster.servers] == [""] * 4


# Workers of one command


@pytest.mark.process
async def test_the_example_configuration_serves_with_two_workers_that_share_a_redis(shared_redis: RedisServer) -> None:
    example = ROOT / "config" / "redis-two-workers.toml"
    environ = {"MCP_HYBRID_BACKPLANE": shared_redis.url, "MCP_HYBRID_SESSIONS__KEYS": KEY}
    tally = Tally()
    with serve(program("numbered"), "--config", str(example), env=environ) as server:
        server.wait_for_log('"serving"')  # which is said when all workers are up
        with trio.fail_after(LONGEST):
            for number in range(4):
                heard, _ = await converse_by_sdk(server.url, f"two-{number}")
                tally.count(f"two-{number}", heard)
        assert '"workers":2' in server.log
        assert UNSHARED not in server.log
    assert tally == Tally(finished=4)


@pytest.mark.process
async def test_without_a_shared_backplane_workers_share_sessions_and_one_line_says_what_they_do_not() -> None:
    with serve(program("numbered"), "--workers", "2") as server:
        server.wait_for_log('"serving"')  # which is said when all workers are up
        with trio.fail_after(LONGEST):
            for _ in range(20):  # on connections of their own, so that both workers get some
                session = await open_session(server.port)
                assert await change(server.port, session) == (200, "x/not subscribed")
    assert server.log.count(UNSHARED) == 1


async def open_session(port: int) -> str:
    async with RawClient.open(port) as client:
        await client.post(mcp.initialize())
        session = (await client.answer_head()).headers["mcp-session-id"]
        await client.answer_body()
        return session


async def change(port: int, session: str) -> tuple[int, str]:
    async with RawClient.open(port) as client:
        await client.post(mcp.tool("change", {"n": "x"}), session, mcp.LEGACY)
        head = await client.answer_head()
        return head.status, (await client.answer_json())["result"]["content"][0]["text"]
