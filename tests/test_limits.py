"""Limits: what is beyond one is refused with the right words and keeps nothing; what is within never notices."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.server import MCPServer
from mcp_types import ElicitResult
from structlog.testing import capture_logs

from harness import mcp
from harness.asgi import Answer, AsgiClient, Exchange, at_address
from harness.hybrid import Setup, running
from harness.mcp import Conversation
from harness.properties import examples
from mcp_hybrid import HybridApp, Settings
from mcp_hybrid.errors import Cause
from mcp_hybrid.routing.gates import HEADER_COST
from mcp_hybrid.routing.message import parse_body
from mcp_hybrid.settings import LimitSettings, SessionSettings, load

QUICK = examples(40)
HEAD = 32 * 2**10


def idle(setup: Setup) -> bool:
    """Whether nobody holds a place."""
    door = setup.app._door
    return door is None or door.admission.idle


def refused(answer: Answer, cause: Cause, retry: str | None = None) -> Any:
    """Check that an answer is the refusal for that cause, whole, and give its JSON-RPC error."""
    assert (answer.status, answer.header("retry-after")) == (cause.status, retry), answer.body
    assert answer.header("content-type") == "application/json"
    assert answer.header("mcp-hybrid-route") is None
    body = answer.json()
    assert (body["jsonrpc"], body["error"]["code"]) == ("2.0", cause.code)
    return body


async def post(setup: Setup, message: Any, *extra: tuple[str, str]) -> Answer:
    """Send a message without a session."""
    return await setup.client.request("POST", "/mcp", mcp.headers(None, None, *extra), mcp.body(message))


async def ping(setup: Setup, *extra: tuple[str, str]) -> int:
    return (await post(setup, mcp.request("ping"), *extra)).status


def user(name: str) -> tuple[str, str]:
    return ("x-user", name)


# The head


USUAL = len("host" + "127.0.0.1:8000" + "/mcp") + HEADER_COST


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        pytest.param("/mcp", [("x-long", "x" * HEAD)], id="one long header"),
        pytest.param("/mcp", [(f"x-{number}", "") for number in range(HEAD // HEADER_COST)], id="many short headers"),
        pytest.param("/mcp?" + "q" * HEAD, [], id="a long query"),
        pytest.param("/" + "p" * HEAD, [], id="a long path, before anybody asks where it leads"),
    ],
)
@pytest.mark.parametrize("verb", ["POST", "GET", "DELETE", "OPTIONS", "PUT"])
async def test_a_head_beyond_the_limit_is_refused_before_all_else(
    verb: str, path: str, extra: list[tuple[str, str]]
) -> None:
    async with running(users=True) as setup:
        answer = await setup.client.request(verb, path, [user("nobody"), ("origin", "http://evil.example"), *extra])
        assert "32768 bytes" in refused(answer, Cause.HEAD_TOO_LARGE)["error"]["message"]


@pytest.mark.parametrize(("spare", "status"), [(0, 405), (-1, 431)])
async def test_a_head_at_the_limit_is_served(spare: int, status: int) -> None:
    async with running(limits={"headers": 1000}) as setup:
        padding = "x" * (1000 - USUAL - HEADER_COST - len("x-pad") - spare)
        assert (await setup.client.request("GET", "/mcp", [("x-pad", padding)])).status == status


# Depth


def nested(depth: int, kind: str = "[") -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "[" else {"a": value}
    return value


@pytest.mark.parametrize("kind", ["[", "{"])
@pytest.mark.parametrize(
    ("message", "around"),
    [
        pytest.param(lambda deep: mcp.request("ping", {"x": deep}), 2, id="params"),
        pytest.param(lambda deep: mcp.tool("add", {"a": 1, "b": 2, "c": deep}), 3, id="arguments"),
        pytest.param(lambda deep: mcp.request("ping", {"_meta": {"x": deep}}), 3, id="_meta"),
        pytest.param(lambda deep: mcp.notification("notifications/x", {"x": deep}), 2, id="a notification"),
        pytest.param(lambda deep: mcp.result(1, {"x": deep}), 2, id="an answer"),
        pytest.param(lambda deep: [mcp.request("ping"), mcp.request("ping", {"x": deep}, 2)], 3, id="a batch"),
        pytest.param(
            lambda deep: mcp.initialize(capabilities={"experimental": {"x": {"y": deep}}}), 5, id="initialize"
        ),
    ],
)
async def test_a_body_nested_beyond_the_limit_is_refused_and_one_at_the_limit_is_served(
    message: Any, around: int, kind: str
) -> None:
    async with running(limits={"depth": 20}) as setup:
        talk = await Conversation.open(setup.client, "2025-03-26")
        assert (await talk.post(message(nested(20 - around, kind)))).status in {200, 202}
        said = refused(await talk.post(message(nested(21 - around, kind))), Cause.TOO_DEEP)["error"]["message"]
        assert "deeper than 20 levels" in said


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 1000, id="in a string"),
        pytest.param('"[{' * 200 + "\\" * 9, id="behind quotes and backslashes"),
    ],
)
async def test_brackets_in_strings_are_not_levels(text: str) -> None:
    async with running(limits={"depth": 3}) as setup:
        assert (await post(setup, mcp.request("ping", {"x": text}))).status == 200


async def test_many_shallow_values_are_not_deep() -> None:
    async with running(limits={"depth": 4}) as setup:
        assert (await post(setup, mcp.request("ping", {"x": [[], {}] * 10_000}))).status == 200


@pytest.mark.parametrize("kind", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [150, 250, 90_000])
def test_what_the_parser_itself_gives_up_on_is_told_as_too_deep(kind: str, depth: int) -> None:
    closing = "]" if kind == "[" else "}"
    whole = f'{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"x":{kind * depth}1{closing * depth}}}}}'
    for text in (whole, kind * max(depth, 250)):
        refusal = parse_body(text.encode(), 128)
        assert getattr(refusal, "cause", None) is Cause.TOO_DEEP, refusal


@pytest.mark.parametrize("number", ["1" * 5000, "-" + "9" * 100_000, "NaN", "Infinity"])
def test_a_number_that_cannot_be_held_is_no_json(number: str) -> None:
    refusal = parse_body(b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":%s}}' % number.encode(), 64)
    assert getattr(refusal, "cause", None) is Cause.NOT_JSON


json_values = st.recursive(
    st.none() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=30,
)


def levels(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(levels, inner), default=0)


@given(value=json_values, depth=st.integers(1, 8))
def test_the_depth_that_is_found_is_the_depth(value: object, depth: int) -> None:
    read = parse_body(mcp.body({"jsonrpc": "2.0", "id": 1, "method": "m", "params": {"v": value}}), depth)
    assert (getattr(read, "cause", None) is Cause.TOO_DEEP) == (2 + levels(value) > depth)


@pytest.mark.parametrize("kind", ["[", "{"])
async def test_the_deepest_that_can_be_allowed_goes_all_the_way_to_a_tool_and_back(kind: str) -> None:
    server = MCPServer("deep")

    @server.tool()
    async def echo(value: Any) -> Any:
        return value

    async with running(server=server, limits={"depth": 128}) as setup:
        talk = await Conversation.open(setup.client)
        deep = nested(125, kind)
        answer = await talk.post(mcp.tool("echo", {"value": deep}))
        assert answer.status == 200
        assert answer.json()["result"]["isError"] is False
        refused(await talk.post(mcp.tool("echo", {"value": [deep]})), Cause.TOO_DEEP)


async def test_json_in_a_string_that_the_sdk_parses_by_itself_is_an_error_of_that_call_alone() -> None:
    server = MCPServer("strings")

    @server.tool()
    async def total(values: list[int]) -> int:
        return sum(values)

    async with running(server=server) as setup:
        answer = await post(setup, mcp.tool("total", {"values": "[" * 200_000}))
        assert (answer.status, answer.json()["result"]["isError"]) == (200, True)


# How much there is to read


@pytest.mark.parametrize(
    ("inner", "good"),
    [
        pytest.param("[" + "[]," * 99_996 + "[]]", True, id="as many arrays as may be"),
        pytest.param("[" + "[]," * 100_000 + "[]]", False, id="more arrays"),
        pytest.param("[" + "{}," * 100_000 + "{}]", False, id="more objects"),
        pytest.param("[" + ("[" * 50 + "]" * 50 + ",") * 2001 + "1]", False, id="more, nested"),
        pytest.param('"' + "[{" * 200_000 + '"', True, id="brackets in a string"),
        pytest.param('"' + '\\"[' * 200_000 + '"', True, id="brackets behind quotes in a string"),
        pytest.param("[" + '"\\\\",[],' * 100_001 + "1]", False, id="arrays behind backslashes"),
        pytest.param("[" + "1," * 500_000 + "1]", True, id="many numbers"),
    ],
)
def test_arrays_and_objects_are_bounded_in_number(inner: str, good: bool) -> None:
    body = f'{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"x":{inner}}}}}'.encode()
    assert (getattr(parse_body(body, 64), "cause", None) is Cause.BODY_TOO_LARGE) is not good


async def test_bodies_that_are_much_work_use_up_the_rate(autojump_clock: object) -> None:
    heavy = mcp.request("ping", {"x": [[]] * 90_000})
    async with running(users=True, limits={"rate_per_owner": "100/s"}) as setup:
        assert (await post(setup, heavy, user("alice"))).status == 200
        refused(await post(setup, heavy, user("alice")), Cause.RATE_EXCEEDED, "1")
        assert (await post(setup, heavy, user("bob"))).status == 200
        assert await ping(setup, user("alice")) == 200, "small ones still pass"
        await anyio.sleep(1)
        assert (await post(setup, heavy, user("alice"))).status == 200


@pytest.mark.parametrize("rate", ["1/s", "1/h", "2/m", "3/h"])
async def test_a_body_that_is_much_work_is_read_at_any_rate(rate: str, autojump_clock: object) -> None:
    async with running(limits={"rate_per_owner": rate}) as setup:
        assert (await post(setup, mcp.request("ping", {"x": [1] * 100_000}))).status == 200


# The time for a body


class Slow:
    """A request whose body the test sends piece by piece."""

    def __init__(self, setup: Setup, session: str | None = None) -> None:
        self.stream = setup.client.stream("POST", "/mcp", mcp.headers(session), body=None)


@pytest.mark.parametrize("pieces", [[], [b"{"], [b"{", b'"jsonrpc"', b":"]], ids=["nothing", "a piece", "pieces"])
async def test_a_body_that_does_not_arrive_in_time_is_refused_and_hung_up_on(
    pieces: list[bytes], autojump_clock: object
) -> None:
    with capture_logs() as logs:
        async with running(limits={"body_time": 7, "requests": 1}) as setup:
            began = anyio.current_time()
            async with Slow(setup).stream as exchange:
                for piece in pieces:
                    await exchange.feed(piece, more=True)
                    await anyio.sleep(1)
                answer = await exchange.answer()
                assert anyio.current_time() - began == pytest.approx(7)
                assert "7 seconds" in refused(answer, Cause.BODY_TOO_SLOW)["error"]["message"]
                assert answer.header("connection") == "close"
                await exchange.finished()
            assert idle(setup)
            assert await ping(setup) == 200
    assert [line.get("refused") for line in logs if line["event"] == "request"] == ["body_too_slow", None]


async def test_a_body_that_dribbles_but_is_in_time_is_served(autojump_clock: object) -> None:
    async with running(limits={"body_time": 7}) as setup, Slow(setup).stream as exchange:
        message = mcp.body(mcp.request("ping"))
        for at in range(6):
            await exchange.feed(message[at : at + 1], more=True)
            await anyio.sleep(1)
        await exchange.feed(message[6:], more=False)
        assert (await exchange.answer()).status == 200


async def test_a_client_that_goes_while_it_sends_is_told_nothing_and_waited_for_no_more(autojump_clock: object) -> None:
    with capture_logs() as logs:
        async with running(limits={"body_time": 7, "requests": 1}) as setup:
            async with Slow(setup).stream as exchange:
                await exchange.feed(b"{", more=True)
                await exchange.disconnect()
                await exchange.finished()
            await anyio.sleep(10)
            assert exchange.status == 0
            assert idle(setup)
    assert [line.get("client") for line in logs if line["event"] == "request"] == ["gone"]


async def test_one_whose_last_piece_comes_when_it_was_given_up_is_not_served(autojump_clock: object) -> None:
    async with running(limits={"body_time": 7}) as setup, Slow(setup).stream as exchange:
        await exchange.feed(b"", more=True)
        exchange.pause()  # the refusal is on its way, but has not got through
        await anyio.sleep(8)
        await exchange.feed(mcp.body(mcp.tool("add", {"a": 1, "b": 2})), more=False)
        await anyio.sleep(1)
        exchange.resume()
        refused(await exchange.answer(), Cause.BODY_TOO_SLOW)
        await exchange.finished()
        assert setup.example.started == []


async def test_nothing_is_left_waiting_for_a_body_that_has_come() -> None:
    async with running() as setup:
        for _ in range(3):
            assert await ping(setup) == 200
        patience = setup.app._patience
        assert patience is not None
        assert not patience._late._line


# Requests at a time


async def waiting(stack: AsyncExitStack, setup: Setup, *extra: tuple[str, str]) -> Exchange:
    """Start a call without a session that waits for `Example.release()`."""
    before = setup.example.started.count("wait")
    stream = setup.client.stream("POST", "/mcp", mcp.headers(None, None, *extra), mcp.body(mcp.tool("wait")))
    exchange = await stack.enter_async_context(stream)
    await setup.example.until_started("wait", before + 1)
    return exchange


async def test_more_requests_than_run_at_a_time_are_refused_until_one_is_done(autojump_clock: object) -> None:
    async with running(limits={"requests": 2}) as setup, AsyncExitStack() as stack:
        calls = [await waiting(stack, setup) for _ in range(2)]
        refused(await post(setup, mcp.request("ping", id=9)), Cause.REQUESTS_BUSY, "1")
        setup.example.release()
        assert [(await call.answer()).status for call in calls] == [200, 200]
        assert await ping(setup) == 200
        assert idle(setup)


async def test_one_owners_requests_leave_the_others_theirs(autojump_clock: object) -> None:
    async with running(users=True, limits={"requests_per_owner": 1}) as setup, AsyncExitStack() as stack:
        await waiting(stack, setup, user("alice"))
        refused(await post(setup, mcp.request("ping"), user("alice")), Cause.OWNER_BUSY, "1")
        assert await ping(setup, user("bob")) == 200
        setup.example.release()


async def test_what_is_refused_without_a_session_is_not_read(autojump_clock: object) -> None:
    async with running(limits={"requests": 1}) as setup, AsyncExitStack() as stack:
        await waiting(stack, setup)
        answer = await post(setup, b"no json at all")
        assert refused(answer, Cause.REQUESTS_BUSY, "1")["id"] is None
        setup.example.release()


async def test_a_refused_request_in_a_session_is_told_its_id(autojump_clock: object) -> None:
    async with running(limits={"requests_per_owner": 1}) as setup, AsyncExitStack() as stack:
        talk = await Conversation.open(setup.client)
        await waiting(stack, setup)
        assert refused(await talk.post(mcp.request("ping", id="seven")), Cause.OWNER_BUSY, "1")["id"] == "seven"
        setup.example.release()


async def test_a_batch_counts_as_many_as_it_asks(autojump_clock: object) -> None:
    async with running(limits={"requests": 3}) as setup, AsyncExitStack() as stack:
        three = mcp.batch(*(mcp.request("ping", id=number) for number in range(3)))
        four = mcp.batch(*three, mcp.request("ping", id=3), mcp.notification("notifications/x"))
        version = ("mcp-protocol-version", "2025-03-26")
        assert (await post(setup, three, version)).status == 200
        never = refused(await post(setup, four, version), Cause.REQUESTS_BUSY)
        assert "smaller batches" in never["error"]["message"]
        await waiting(stack, setup)
        refused(await post(setup, three, version), Cause.REQUESTS_BUSY, "1")
        setup.example.release()


@pytest.mark.parametrize("limits", [{"requests_per_owner": 1}, {"requests": 1}], ids=["owner", "all"])
async def test_a_session_at_its_limit_can_always_get_to_the_end_of_its_call(
    limits: dict[str, int], autojump_clock: object
) -> None:
    async with running(limits=limits) as setup:
        talk = await Conversation.open(setup.client, capabilities={"elicitation": {}})
        async with talk.stream(mcp.tool("ask", id=5)) as call:
            question = await call.message()
            cause = Cause.OWNER_BUSY if "requests_per_owner" in limits else Cause.REQUESTS_BUSY
            refused(await talk.post(mcp.tool("add", {"a": 1, "b": 2}, id=6)), cause, "1")
            answer = ElicitResult(action="accept", content={"name": "Ada"}).model_dump(mode="json", by_alias=True)
            assert (await talk.post(mcp.result(question["id"], answer))).status == 202
            assert (await talk.answers(call))["result"]["content"][0]["text"] == "hello Ada"
        async with talk.stream(mcp.tool("ask", id=7)) as call:
            await call.message()
            assert (await talk.post(mcp.cancelled(7))).status == 202
            assert (await talk.answers(call))["error"]["code"] == -32800
        async with talk.stream(mcp.tool("ask", id=8)) as call:
            await call.message()
            assert (await talk.delete()).status == 204
            assert "error" in await talk.answers(call)
        assert idle(setup)


async def test_an_answer_gets_through_while_others_are_still_being_sent(autojump_clock: object) -> None:
    async with running(limits={"requests_per_owner": 1}) as setup, AsyncExitStack() as stack:
        talk = await Conversation.open(setup.client, capabilities={"elicitation": {}})
        call = await stack.enter_async_context(talk.stream(mcp.tool("ask", id=5)))
        question = await call.message()
        for _ in range(10):
            slow = await stack.enter_async_context(Slow(setup, talk.session).stream)
            await slow.feed(b"{", more=True)
        assert (await talk.post(mcp.result(question["id"], {"action": "decline"}))).status == 202
        assert (await talk.answers(call))["result"]["content"][0]["text"] == "decline"


async def test_bodies_that_are_being_read_are_bounded_too(autojump_clock: object) -> None:
    async with running(limits={"requests_per_owner": 1}) as setup, AsyncExitStack() as stack:
        talk = await Conversation.open(setup.client)
        for _ in range(16):
            slow = await stack.enter_async_context(Slow(setup, talk.session).stream)
            await slow.feed(b"{", more=True)
        refused(await talk.post(mcp.request("ping")), Cause.OWNER_BUSY, "1")
        await anyio.sleep(31)
        assert (await talk.post(mcp.request("ping"))).status == 200


@pytest.mark.parametrize("tool", ["crash", "fail", "no such tool"])
async def test_a_call_that_fails_gives_its_place_back(tool: str) -> None:
    async with running(limits={"requests": 1, "requests_per_owner": 1}) as setup:
        for _ in range(3):
            assert (await post(setup, mcp.tool(tool))).status == 200
        assert idle(setup)


async def test_a_call_whose_client_went_keeps_its_place_until_it_ends(autojump_clock: object) -> None:
    async with running(limits={"requests": 1}, request_timeout=60) as setup:
        async with AsyncExitStack() as stack:
            await waiting(stack, setup)
        assert not idle(setup), "a legacy call runs on"
        refused(await post(setup, mcp.request("ping")), Cause.REQUESTS_BUSY, "1")
        await setup.example.until_over("wait")
        await anyio.sleep(1)
        assert idle(setup)


async def test_a_cancelled_modern_call_gives_its_place_back(autojump_clock: object) -> None:
    async with running(limits={"requests": 1}) as setup:
        message = mcp.modern(mcp.tool("wait"))
        async with setup.client.stream("POST", "/mcp", mcp.modern_headers(message), mcp.body(message)):
            await setup.example.until_started("wait")
        await setup.example.until_over("wait")
        await anyio.sleep(1)
        assert idle(setup)


async def test_a_failure_of_our_own_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(limits={"requests": 1}) as setup:
        service = setup.app._service
        with monkeypatch.context() as patch:
            patch.setattr(service, "serve", None)
            refused(await post(setup, mcp.request("ping")), Cause.INTERNAL)
        assert idle(setup)
        assert await ping(setup) == 200


async def test_a_stopped_server_has_no_places_taken(autojump_clock: object) -> None:
    async with running(limits={"requests": 5, "streams_per_owner": 5}) as setup, AsyncExitStack() as stack:
        talk = await Conversation.open(setup.client)
        await waiting(stack, setup)
        stream = await stack.enter_async_context(talk.get())
        await stream.started()
        assert not idle(setup)
    assert idle(setup)


# Streams


async def opened(stack: AsyncExitStack, talk: Conversation, last_event_id: str | None = None) -> Exchange:
    exchange = await stack.enter_async_context(talk.get(last_event_id))
    assert (await exchange.started())[0] == 200
    return exchange


async def test_more_streams_than_an_owner_may_have_are_refused_until_one_ends(autojump_clock: object) -> None:
    async with running(limits={"streams_per_owner": 2}) as setup, AsyncExitStack() as stack:
        first, second, third = [await Conversation.open(setup.client) for _ in range(3)]
        one = await opened(stack, first)
        await opened(stack, second)
        async with third.get() as over:
            refused(await over.answer(), Cause.TOO_MANY_STREAMS, "10")
        assert (await first.post(mcp.request("ping"))).status == 200, "streams are not requests"
        await one.disconnect()
        await one.finished()
        await opened(stack, third)


async def test_a_get_that_replaces_its_sessions_own_is_not_one_more(autojump_clock: object) -> None:
    async with running(limits={"streams_per_owner": 1}) as setup, AsyncExitStack() as stack:
        talk = await Conversation.open(setup.client)
        for _ in range(2):
            await opened(stack, talk)
        seen = (await (await opened(stack, talk)).event()).id
        assert seen is not None
        await opened(stack, talk, seen)
        other = await Conversation.open(setup.client)
        async with other.get() as over:
            refused(await over.answer(), Cause.TOO_MANY_STREAMS, "10")


async def test_each_resumed_stream_of_a_call_is_one_more(autojump_clock: object) -> None:
    async with running(limits={"streams_per_owner": 2}) as setup, AsyncExitStack() as stack:
        talk = await Conversation.open(setup.client)
        async with talk.stream(mcp.tool("wait")) as call:
            await call.started()
            seen = (await call.event()).id
        assert seen is not None
        for _ in range(2):
            await opened(stack, talk, seen)
        async with talk.get(seen) as over:
            refused(await over.answer(), Cause.TOO_MANY_STREAMS, "10")
        setup.example.release()


async def test_listening_is_a_stream_and_no_request(autojump_clock: object) -> None:
    async with running(limits={"streams_per_owner": 1, "requests_per_owner": 1}) as setup:
        message = mcp.modern(mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, id="l"))
        fields, text = mcp.modern_headers(message), mcp.body(message)
        async with setup.client.stream("POST", "/mcp", fields, text) as listening:
            assert (await listening.started())[0] == 200
            answer = await setup.client.request("POST", "/mcp", fields, text)
            assert refused(answer, Cause.TOO_MANY_STREAMS, "10")["id"] == "l"
            assert await ping(setup) == 200
        await listening.finished()
        assert idle(setup)


# The rate


async def test_asking_too_often_is_refused_with_the_time_after_which_it_is_not(autojump_clock: object) -> None:
    async with running(users=True, limits={"rate_per_owner": "2/m"}) as setup:
        assert [await ping(setup, user("alice")) for _ in range(2)] == [200, 200]
        refused(await post(setup, mcp.request("ping"), user("alice")), Cause.RATE_EXCEEDED, "30")
        assert await ping(setup, user("bob")) == 200, "another owner has a rate of its own"
        await anyio.sleep(29.5)
        refused(await post(setup, mcp.request("ping"), user("alice")), Cause.RATE_EXCEEDED, "1")
        await anyio.sleep(1)
        assert await ping(setup, user("alice")) == 200


async def test_every_method_counts_but_a_preflight(autojump_clock: object) -> None:
    async with running(limits={"rate_per_owner": "3/h"}) as setup:
        for verb in ("GET", "DELETE", "POST"):
            assert (await setup.client.request(verb, "/mcp")).status in {405, 415}
        for _ in range(3):
            assert (await setup.client.request("OPTIONS", "/mcp")).status == 204
        refused(await setup.client.request("DELETE", "/mcp"), Cause.RATE_EXCEEDED, "1200")


async def test_a_batch_uses_as_much_of_the_rate_as_it_asks(autojump_clock: object) -> None:
    async with running(limits={"rate_per_owner": "4/m"}) as setup:
        version = ("mcp-protocol-version", "2025-03-26")
        three = mcp.batch(*(mcp.request("ping", id=number) for number in range(3)))
        assert (await post(setup, three, version)).status == 200
        refused(await post(setup, three, version), Cause.RATE_EXCEEDED, "30")
        six = mcp.batch(*(mcp.request("ping", id=number) for number in range(6)))
        await anyio.sleep(60)
        assert "smaller" in refused(await post(setup, six, version), Cause.RATE_EXCEEDED)["error"]["message"]


async def test_a_caller_that_keeps_asking_is_let_in_at_its_rate(autojump_clock: object) -> None:
    async with running(limits={"rate_per_owner": "10/s"}) as setup:
        served = 0
        for _ in range(100):
            served += await ping(setup) == 200
            await anyio.sleep(0.02)
        assert served == pytest.approx(10 + 20, abs=1)


# Whatever comes


@QUICK
@given(data=st.data())
async def test_whatever_becomes_of_requests_they_give_their_places_back(data: st.DataObject) -> None:
    bounds = {"requests": 3, "requests_per_owner": 2, "streams_per_owner": 1, "body_time": "1s"}
    async with running(users=True, limits=bounds, request_timeout=5) as setup:
        talks = {name: await Conversation.open(setup.client) for name in ("a", "b")}
        async with AsyncExitStack() as stack:
            for _ in range(data.draw(st.integers(1, 8))):
                await step(stack, setup, data, talks[data.draw(st.sampled_from("ab"))])
        setup.example.release()
        with anyio.fail_after(10):
            while not idle(setup):  # noqa: ASYNC110 - nothing tells that the last of them has returned
                await anyio.sleep(0.01)
        assert await ping(setup) == 200


async def step(stack: AsyncExitStack, setup: Setup, data: st.DataObject, talk: Conversation) -> None:
    message = data.draw(
        st.sampled_from(
            [
                mcp.request("ping"), mcp.tool("wait", id=1), mcp.tool("wait", {"seconds": 0}, id=2), mcp.tool("crash"),
                mcp.cancelled(1), mcp.result("q", {}), mcp.batch(mcp.request("ping")), b"{", None,
            ]
        )
    )  # fmt: skip
    verb = data.draw(st.sampled_from(["POST", "POST", "POST", "GET", "DELETE"]))
    who = user(data.draw(st.sampled_from(["alice", "bob"])))
    fields = mcp.headers(talk.session if data.draw(st.booleans()) else None, None, who)
    text = None if message is None and verb == "POST" else mcp.body(message or b"")
    exchange = await stack.enter_async_context(setup.client.stream(verb, "/mcp", fields, text))
    await anyio.lowlevel.checkpoint()
    if data.draw(st.booleans()):
        await exchange.disconnect()


# The documentation


def test_the_documentation_names_each_limit_with_its_default_and_each_cause() -> None:
    text = (Path(__file__).parent.parent / "docs" / "limits.md").read_text(encoding="utf-8")
    written = dict(re.findall(r"^\| `limits\.(\w+)` \| ([^|]+) \|", text, re.MULTILINE))
    assert set(written) == set(LimitSettings.model_fields)
    for name, default in written.items():
        given = 0 if default == "off" else default.strip('"`')
        plain = given.replace(" ", "") if isinstance(given, str) else given
        read = load({f"limits.{name}": plain}, environ={}).settings.limits
        assert getattr(read, name) == getattr(LimitSettings(), name), name
    causes = dict.fromkeys(re.findall(r"^\| `limits.*?\| `(\w+)` \|", text, re.MULTILINE))
    assert set(causes) <= {cause.label for cause in Cause}
    assert len(causes) == 8


def test_the_start_that_is_proposed_is_accepted(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "limits.md").read_text(encoding="utf-8")
    proposed = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert proposed is not None
    file = tmp_path / "start.toml"
    file.write_text(proposed[1], encoding="utf-8")
    assert load(environ={}, config=file).settings.limits != LimitSettings()


# All off


OFF: dict[str, Any] = dict.fromkeys(
    ("requests", "requests_per_owner", "streams_per_owner", "bodies", "bodies_per_owner"), 0
)


def test_with_nothing_limited_nothing_is_kept() -> None:
    app = HybridApp(MCPServer("plain"), Settings(limits={**OFF, "rate_per_owner": ""}))
    assert app._door is None


# What is on by default


def test_one_caller_leaves_most_of_each_limit_to_the_others() -> None:
    limits, sessions = LimitSettings(), SessionSettings()
    assert 0 < limits.requests_per_owner <= limits.requests / 4
    assert 0 < limits.bodies_per_owner <= limits.bodies / 4
    assert 0 < limits.requests_per_owner + limits.streams_per_owner <= sessions.max_live / 10
    assert 0 < sessions.max_live_per_owner <= sessions.max_live / 10
    assert limits.bodies_per_owner >= limits.body
    assert limits.rate_per_owner


async def test_one_busy_client_on_64_connections_is_not_refused(autojump_clock: object) -> None:
    async with running() as setup, AsyncExitStack() as stack:
        calls = [await waiting(stack, setup) for _ in range(64)]
        talks = [await Conversation.open(setup.client) for _ in range(64)]
        for talk in talks:
            await opened(stack, talk)
        setup.example.release()
        assert {(await call.answer()).status for call in calls} == {200}
        assert {await ping(setup) for _ in range(500)} == {200}


async def test_one_address_is_refused_where_another_is_served(autojump_clock: object) -> None:
    async with running(limits={"requests_per_owner": 3, "streams_per_owner": 3}) as setup, AsyncExitStack() as stack:
        hostile = Setup(AsgiClient(at_address(setup.app, "192.0.2.1"), lifespan=False), setup.app, setup.example)
        await stack.enter_async_context(hostile.client)
        message = mcp.modern(mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}))
        for number in range(4):
            listening = hostile.client.stream("POST", "/mcp", mcp.modern_headers(message), mcp.body(message))
            exchange = await stack.enter_async_context(listening)
            assert (await exchange.started())[0] == (200 if number < 3 else 429)
        for _ in range(3):
            await waiting(stack, hostile)
        refused(await post(hostile, mcp.request("ping")), Cause.OWNER_BUSY, "1")
        assert await ping(setup) == 200
        talk = await Conversation.open(setup.client)
        await opened(stack, talk)


# The bytes of bodies

MIB = 2**20
BODIES = {"body": 4 * MIB, "bodies": 6 * MIB, "bodies_per_owner": 3 * MIB, "body_time": 30}


async def stalled(stack: AsyncExitStack, setup: Setup, size: int, *extra: tuple[str, str]) -> Exchange:
    """Send so many bytes of a body, and no more."""
    sending = setup.client.stream("POST", "/mcp", mcp.headers(None, None, *extra), body=None)
    exchange = await stack.enter_async_context(sending)
    await exchange.feed(b" " * size, more=True)
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
    return exchange


def held(setup: Setup) -> int:
    """Give the bytes of bodies that the server holds by its own account."""
    door = setup.app._door
    assert door is not None
    return door.admission._all.weight


async def test_stalled_bodies_of_one_owner_are_bounded_in_bytes(autojump_clock: object) -> None:
    async with running(users=True, limits=BODIES) as setup, AsyncExitStack() as stack:
        first = await stalled(stack, setup, 2 * MIB, user("alice"))
        over = await stalled(stack, setup, 2 * MIB, user("alice"))
        await over.feed(b" ", more=False)
        refused(await over.answer(), Cause.OWNER_BUSY, "1")
        assert held(setup) == 2 * MIB
        assert await ping(setup, user("alice")) == 200, "a small one still gets through"
        await stalled(stack, setup, 3 * MIB, user("bob"))
        other = await stalled(stack, setup, 2 * MIB, user("carol"))
        await other.feed(b" ", more=False)
        refused(await other.answer(), Cause.REQUESTS_BUSY, "1")
        await first.disconnect()
        await first.finished()
        assert held(setup) == 3 * MIB
    assert idle(setup)


async def test_a_large_body_counts_until_it_is_answered(autojump_clock: object) -> None:
    async with running(limits=BODIES) as setup, AsyncExitStack() as stack:
        large = mcp.body(mcp.tool("wait", {"ignored": "x" * 2 * MIB}))
        sending = setup.client.stream("POST", "/mcp", mcp.headers(), large)
        call = await stack.enter_async_context(sending)
        await setup.example.until_started("wait")
        assert held(setup) == len(large)
        refused(await post(setup, large), Cause.OWNER_BUSY, "1")
        setup.example.release()
        assert (await call.answer()).status == 200
        await call.finished()
        assert held(setup) == 0


async def test_one_body_passes_though_it_is_larger_than_all_may_be() -> None:
    async with running(limits={**BODIES, "bodies": 1, "bodies_per_owner": 1}) as setup:
        answer = await post(setup, mcp.request("ping", {"x": "x" * 3 * MIB}))
        assert answer.status == 200
        assert held(setup) == 0


async def test_a_body_that_stalls_for_too_long_gives_its_bytes_back(autojump_clock: object) -> None:
    async with running(limits=BODIES) as setup, AsyncExitStack() as stack:
        exchange = await stalled(stack, setup, 2 * MIB)
        refused(await exchange.answer(), Cause.BODY_TOO_SLOW)
        await exchange.finished()
        assert held(setup) == 0


async def test_a_server_that_is_not_running_still_says_so() -> None:
    app = HybridApp(MCPServer("plain"), Settings(limits={"requests": 1}))
    async with AsgiClient(app, lifespan=False) as client:
        for _ in range(3):
            answer = await client.request("POST", "/mcp", mcp.headers(), mcp.body(mcp.request("ping", id=4)))
            assert refused(answer, Cause.NOT_RUNNING, "5")["id"] == 4
