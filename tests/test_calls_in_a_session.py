"""What a call in a session can do, and what it is told it cannot."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError
from mcp_types import ClientCapabilities, EmptyResult, RequestParams

from harness import mcp
from harness.example import SECRET
from harness.hybrid import Setup, running
from mcp_hybrid.sessions.questions import CannotAskError, check_capability

Json = dict[str, Any]

CANNOT: dict[str, tuple[str, str, Json]] = {
    "ask": ("elicitation/create", "elicitation", {"elicitation": {}}),
    "sample": ("sampling/createMessage", "sampling", {"sampling": {}}),
    "roots": ("roots/list", "roots", {"roots": {}}),
}
ANSWERS: dict[str, Any] = {
    "ask": ({"action": "accept", "content": {"name": "Ada"}}, "hello Ada"),
    "sample": ({"role": "assistant", "content": {"type": "text", "text": "well"}, "model": "m"}, "well"),
    "roots": ({"roots": [{"uri": "file:///a"}]}, "file:///a"),
}


async def call_alone(setup: Setup, name: str) -> Any:
    answer = await setup.client.request("POST", "/mcp", mcp.headers(), mcp.body(mcp.tool(name)))
    return answer.json()


@pytest.mark.parametrize("tool", CANNOT)
async def test_a_declared_question_is_asked_on_the_calls_own_stream_and_answered(
    tool: str, autojump_clock: object
) -> None:
    async with running() as setup:
        method, _, capabilities = CANNOT[tool]
        talk = await mcp.Conversation.open(setup.client, capabilities=capabilities)
        async with talk.stream(mcp.tool(tool)) as call:
            question = await call.message()
            assert question["method"] == method
            result, text = ANSWERS[tool]
            await talk.post(mcp.result(question["id"], result))
            assert (await talk.answers(call))["result"]["content"][0]["text"] == text


@pytest.mark.parametrize("tool", CANNOT)
async def test_a_question_the_client_never_declared_is_refused_at_once(tool: str, autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        answer = await talk.post(mcp.tool(tool))
        assert f"did not declare the capability '{CANNOT[tool][1]}'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("tool", CANNOT)
async def test_without_a_session_a_question_is_refused_at_once(tool: str, autojump_clock: object) -> None:
    async with running() as setup:
        assert "served without a session" in (await call_alone(setup, tool))["error"]["message"]


@pytest.mark.parametrize("tool", CANNOT)
async def test_at_2026_07_28_a_question_is_refused_at_once(tool: str, autojump_clock: object) -> None:
    async with running() as setup:
        message = mcp.tool(tool)
        enveloped = mcp.body(mcp.modern(message, capabilities=CANNOT[tool][2]))
        answer = await setup.client.request("POST", "/mcp", mcp.modern_headers(message), enveloped)
        assert "2026-07-28" in answer.json()["error"]["message"]


async def test_a_client_that_takes_json_only_cannot_be_asked(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client, capabilities={"elicitation": {}})
        answer = await talk.post(mcp.tool("ask"), accept="application/json")
        assert "text/event-stream" in answer.json()["error"]["message"]


async def test_a_url_is_asked_only_of_clients_that_declared_urls(autojump_clock: object) -> None:
    def check(params: Json, declared: Json) -> None:
        check_capability("elicitation/create", params, ClientCapabilities.model_validate({"elicitation": declared}))

    check({"mode": "url"}, {"url": {}})
    check({}, {})
    check({"mode": "form"}, {"form": {}})
    refused: list[tuple[Json, Json]] = [({"mode": "url"}, {}), ({"mode": "url"}, {"form": {}}), ({}, {"url": {}})]
    for params, declared in refused:
        with pytest.raises(CannotAskError):
            check(params, declared)


async def test_an_error_in_answer_to_a_question_reaches_the_tool(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client, capabilities={"roots": {}})
        async with talk.stream(mcp.tool("roots")) as call:
            question = await call.message()
            await talk.post({"jsonrpc": "2.0", "id": question["id"], "error": {"code": -1, "message": "no roots"}})
            assert (await talk.answers(call))["error"] == {"code": -1, "message": "no roots"}


async def test_another_sessions_answer_is_not_taken(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client, capabilities={"roots": {}})
        stranger = await mcp.Conversation.open(setup.client, capabilities={"roots": {}})
        async with talk.stream(mcp.tool("roots")) as call:
            question = await call.message()
            wrong = mcp.result(question["id"], {"roots": [{"uri": "file:///stolen"}]})
            assert (await stranger.post(wrong)).status == 202
            await talk.post(mcp.result(question["id"], {"roots": []}))
            assert (await talk.answers(call))["result"]["content"] == []


async def test_a_cancelled_call_withdraws_its_question(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client, capabilities={"elicitation": {}})
        async with talk.stream(mcp.tool("ask", id=5)) as call:
            question = await call.message()
            await talk.post(mcp.cancelled(5))
            withdrawn = await call.message()
            assert withdrawn["method"] == "notifications/cancelled"
            assert withdrawn["params"]["requestId"] == question["id"]
            assert (await call.message())["error"]["code"] == -32800
        assert not setup.registry.sessions()[0].busy


async def test_ids_of_different_types_are_different_calls(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.stream(mcp.tool("wait", id=7)) as number, talk.stream(mcp.tool("wait", id="7")) as text:
            await setup.example.until_started("wait", times=2)
            await talk.post(mcp.cancelled("7"))
            assert (await talk.answers(text))["error"]["code"] == -32800
            assert number.running
            setup.example.release()
            assert (await talk.answers(number))["id"] == 7


async def test_an_id_that_is_in_flight_is_refused_and_the_first_call_goes_on(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.stream(mcp.tool("wait", id=7)) as first:
            await setup.example.until_started("wait")
            again = await talk.post(mcp.tool("add", {"a": 1, "b": 2}, id=7))
            assert (again.status, again.json()["id"]) == (400, 7)
            setup.example.release()
            assert "result" in await talk.answers(first)


async def test_what_a_crash_says_stays_inside(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        for answer in [(await talk.post(mcp.tool("crash"))).body, mcp.body(await call_alone(setup, "crash"))]:
            assert b'"isError":true' in answer.replace(b" ", b"")
            assert SECRET.encode() not in answer


@pytest.mark.parametrize("masked", [True, False])
async def test_a_fastmcp_tells_what_a_crash_says_unless_it_is_told_to_mask_it(
    masked: bool, autojump_clock: object
) -> None:
    from fastmcp import FastMCP  # noqa: PLC0415 - the other tests run without it

    server: FastMCP[None] = FastMCP("crashing", mask_error_details=masked)

    @server.tool
    async def crash() -> str:
        raise RuntimeError(SECRET)

    async with running(server=server) as setup:
        talk = await mcp.Conversation.open(setup.client)
        for answer in [(await talk.post(mcp.tool("crash"))).body, mcp.body(await call_alone(setup, "crash"))]:
            assert b'"isError":true' in answer.replace(b" ", b"")
            assert (SECRET.encode() in answer) is not masked


async def explode(ctx: object, params: object) -> EmptyResult:
    raise ExceptionGroup("several", [ValueError(SECRET), KeyError(SECRET)])


async def refuse(ctx: object, params: object) -> EmptyResult:
    raise ExceptionGroup("a nursery's", [MCPError(-32001, "not today", {"try": "tomorrow"})])


async def unspeakable(ctx: object, params: object) -> dict[str, object]:
    return {"object": object()}


@pytest.mark.parametrize("route", ["stateless", "session", "modern"])
@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (explode, {"code": -32603, "message": "Internal server error"}),
        (unspeakable, {"code": -32603, "message": "Internal server error"}),
        (refuse, {"code": -32001, "message": "not today", "data": {"try": "tomorrow"}}),
    ],
)
async def test_a_handler_that_fails_is_a_clean_error_on_every_route(
    route: str, handler: Any, error: Json, autojump_clock: object
) -> None:
    server: Server[Any] = Server("failing")
    server.add_request_handler("x/fail", RequestParams, handler)
    async with running(server=server) as setup:
        message = mcp.request("x/fail", {})
        if route == "session":
            answer = await (await mcp.Conversation.open(setup.client)).post(message)
        elif route == "modern":
            headers = mcp.modern_headers(message)
            answer = await setup.client.request("POST", "/mcp", headers, mcp.body(mcp.modern(message)))
        else:
            answer = await setup.client.request("POST", "/mcp", mcp.headers(), mcp.body(message))
        assert (answer.status, answer.json()["error"], answer.json()["id"]) == (200, error, 1)


async def test_a_call_beyond_the_time_limit_is_stopped_and_says_so(autojump_clock: object) -> None:
    async with running(request_timeout=10) as setup:
        talk = await mcp.Conversation.open(setup.client)
        answer = await talk.post(mcp.tool("wait"))
        error = answer.events()[-1].json()["error"]
        assert error["code"] == -32603
        assert "10 s" in error["message"]
        assert (await call_alone(setup, "wait"))["error"] == error
        assert setup.example.cancelled == ["wait", "wait"]


async def test_a_quick_call_is_one_json_body_and_a_long_one_becomes_a_stream(autojump_clock: object) -> None:
    async with running(stream_after=1) as setup:
        talk = await mcp.Conversation.open(setup.client)
        quick = await talk.post(mcp.tool("wait", {"seconds": 0.9}))
        assert quick.header("content-type") == "application/json"
        long = await talk.post(mcp.tool("wait", {"seconds": 1.1}))
        assert long.header("content-type") == "text/event-stream"
        assert long.events()[-1].json()["result"]["content"][0]["text"] == "let go"


async def test_a_silent_stream_is_kept_alive(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        answer = await talk.post(mcp.tool("wait", {"seconds": 50}))
        assert answer.body.count(b": keep-alive") == 3


async def test_log_messages_go_with_the_call_in_order(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        answer = await talk.post(mcp.tool("log", {"n": 300}))
        lines = [event.json()["params"]["data"] for event in answer.events() if event.data and "params" in event.json()]
        assert lines == [f"line {n}" for n in range(1, 301)]


async def test_a_notice_sent_without_a_get_stream_goes_with_the_running_call(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        answer = await talk.post(mcp.tool("notify_changed"))
        assert [event.json().get("method") for event in answer.events() if event.data] == [
            "notifications/tools/list_changed",
            None,
        ]


async def test_a_client_that_goes_does_not_cancel_a_handshake_era_call(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.stream(mcp.tool("wait", {"name": "a"})):
            await setup.example.until_started("wait")
        async with setup.client.stream("POST", "/mcp", mcp.headers(), mcp.body(mcp.tool("wait", {"name": "a"}))):
            await setup.example.until_started("wait", times=2)
        await anyio.sleep(5)
        assert setup.example.cancelled == []
        setup.example.release("a")
        await setup.example.until_over("wait", times=2)
        assert setup.example.finished == ["wait", "wait"]
        await anyio.sleep(1)
        assert not setup.registry.sessions()[0].busy


@pytest.mark.parametrize("accept", [mcp.BOTH, "application/json"])
async def test_a_client_that_goes_cancels_a_modern_call(accept: str, autojump_clock: object) -> None:
    async with running() as setup:
        message = mcp.tool("wait")
        headers = mcp.modern_headers(message, accept=accept)
        async with setup.client.stream("POST", "/mcp", headers, mcp.body(mcp.modern(message))):
            await setup.example.until_started("wait")
        await setup.example.until_over("wait")
        assert setup.example.cancelled == ["wait"]


async def test_deleting_a_session_stops_its_calls_and_its_stream(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.stream(mcp.tool("wait")) as call, talk.get() as stream:
            await stream.started()
            await setup.example.until_started("wait")
            assert (await talk.delete()).status == 204
            error = (await call.answer()).json()["error"]
            assert "session was ended" in error["message"]
            assert await stream.messages() == []
        assert len(setup.registry) == 0
