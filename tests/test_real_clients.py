"""The SDK's own client, unmodified, against a real server process over sockets: on Trio and on asyncio, old and new.

Nothing here is judged by the clock. A tool waits at a gate until the client has seen what it should see *while* the
call runs, and then lets it go on; a call that is answered too late waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client import ClientRequestContext
from mcp.client.session import IncomingMessage
from mcp.client.subscriptions import ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestParams,
    ElicitResult,
    ListRootsResult,
    LoggingMessageNotificationParams,
    Root,
    TextContent,
    ToolListChangedNotification,
)

from harness.clients import Following, Progress, Wire, call, connected, following, on_trio_and_asyncio
from harness.mcp import BOTH, LEGACY, MODERN, body, headers, request
from harness.process import ServerProcess, program, serve

pytestmark = pytest.mark.process

EVERY_MODE = pytest.mark.parametrize("mode", ["legacy", MODERN, "auto"])
BOTH_ERAS = pytest.mark.parametrize("mode", ["legacy", MODERN])


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serve(program("gated")) as process:
        yield process


@pytest.fixture(scope="module")
def demo() -> Iterator[ServerProcess]:
    with serve() as process:
        yield process


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for the calls and gates of this test, as the server is shared."""
    found: str = request.node.name
    return found


async def let_go_step_by_step(client: Client, running: Following, name: str, count: int) -> None:
    """Open each gate only when the progress before it has come."""
    for step in range(1, count + 1):
        await running.reported(step)
        assert running.values[-1] == step
        await call(client, "release", gate=f"{name}/{step}")


# The versions


@EVERY_MODE
@on_trio_and_asyncio
async def test_a_client_gets_the_revision_it_asks_for(server: ServerProcess, mode: str) -> None:
    async with connected(server.url, mode) as client:
        assert client.protocol_version == (LEGACY if mode == "legacy" else MODERN)
        assert await call(client, "add", a=1, b=2) == "3"


# Progress


@EVERY_MODE
@on_trio_and_asyncio
async def test_progress_arrives_value_by_value_while_the_call_runs(server: ServerProcess, mode: str, name: str) -> None:
    wire = Wire()
    async with connected(server.url, mode, wire) as client:
        async with following(client, "steps", name=name, count=4) as running:
            await let_go_step_by_step(client, running, name, 4)
            assert await running.finished() == "4 steps"
        assert running.values == [1, 2, 3, 4]
    (answer,) = [one for one in wire.calls() if one.content_type == "text/event-stream"]
    assert answer.route == ("session" if mode == "legacy" else "modern")


@on_trio_and_asyncio
async def test_a_modern_call_without_a_token_is_one_json_body(server: ServerProcess) -> None:
    wire = Wire()
    async with connected(server.url, MODERN, wire) as client:
        assert await call(client, "count", steps=3, delay=0) == "counted to 3"
    assert [(one.content_type, one.route) for one in wire.calls()] == [("application/json", "modern")]
    assert wire.session is None


@on_trio_and_asyncio
async def test_a_client_that_never_echoes_its_session_gets_the_result_alone(server: ServerProcess) -> None:
    wire = Wire(forgetful=True)
    progress = Progress()
    async with connected(server.url, "legacy", wire) as client:
        result = await client.call_tool("count", {"steps": 3, "delay": 0}, progress_callback=progress)
        assert await call(client, "add", a=1, b=2) == "3"
    assert result.content == [TextContent(type="text", text="counted to 3")]
    assert progress.values == []
    assert wire.session is not None
    assert {one.sent_session for one in wire.seen} == {None}
    with_token, without = wire.calls()
    assert (with_token.content_type, with_token.route) == ("application/json", "stateless; progress=withheld")
    assert (without.content_type, without.route) == ("application/json", "stateless")


# Questions to the client


async def elicit(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": "Ada"})


async def sample(context: ClientRequestContext, params: CreateMessageRequestParams) -> CreateMessageResult:
    (message,) = params.messages
    assert isinstance(message.content, TextContent)
    echo = TextContent(type="text", text=f"You said: {message.content.text}")
    return CreateMessageResult(role="assistant", content=echo, model="parrot")


async def roots(context: ClientRequestContext) -> ListRootsResult:
    return ListRootsResult(roots=[Root(uri="file:///here"), Root(uri="file:///there")])


ANSWERS: dict[str, Any] = {
    "elicitation_callback": elicit,
    "sampling_callback": sample,
    "list_roots_callback": roots,
}


@on_trio_and_asyncio
async def test_questions_of_a_tool_are_answered_in_a_session(server: ServerProcess) -> None:
    async with connected(server.url, "legacy", **ANSWERS) as client:
        assert await call(client, "ask") == "hello Ada"
        assert await call(client, "sample") == "You said: Say something"
        found = await client.call_tool("roots")
        assert found.structured_content == {"result": ["file:///here", "file:///there"]}


@pytest.mark.parametrize("tool", ["ask", "sample", "roots"])
@on_trio_and_asyncio
async def test_a_client_that_cannot_be_asked_gets_an_error_at_once(server: ServerProcess, tool: str) -> None:
    async with connected(server.url, "legacy") as client:
        assert await refusal(client, tool)
        assert await call(client, "add", a=1, b=2) == "3"


@pytest.mark.parametrize("tool", ["ask", "sample", "roots"])
@pytest.mark.parametrize("mode", ["no session", MODERN])
@on_trio_and_asyncio
async def test_where_no_answer_could_come_nothing_is_asked(server: ServerProcess, mode: str, tool: str) -> None:
    wire = Wire(forgetful=mode == "no session")
    async with connected(server.url, "legacy" if mode == "no session" else mode, wire, **ANSWERS) as client:
        words = await refusal(client, tool)
        assert ("without a session" if mode == "no session" else MODERN) in words


async def refusal(client: Client, tool: str) -> str:
    """Call a tool that must fail, as a tool's error or as a protocol's, and give its words."""
    try:
        result = await client.call_tool(tool)
    except MCPError as error:
        return str(error)
    assert result.is_error, result
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


@BOTH_ERAS
@on_trio_and_asyncio
async def test_a_tool_that_asks_by_a_resolver_is_answered_in_both_eras(demo: ServerProcess, mode: str) -> None:
    async with connected(demo.url, mode, elicitation_callback=elicit) as client:
        assert await call(client, "ask_name") == "Hello, Ada."


# What the server says of its own accord


@on_trio_and_asyncio
async def test_a_change_is_told_on_the_get_stream(server: ServerProcess, name: str) -> None:
    heard, wire = anyio.Event(), Wire()

    async def handler(message: IncomingMessage) -> None:
        assert isinstance(message, ToolListChangedNotification)
        heard.set()

    async with (
        connected(server.url, "legacy", wire, message_handler=handler) as listener,
        connected(server.url, "legacy") as other,
    ):
        await call(listener, "remember", name=name)
        stream = await wire.until("GET")
        assert (stream.status, stream.content_type) == (200, "text/event-stream")
        # The listener has no call running that could carry it.
        await call(other, "tell", name=name)
        await heard.wait()


@on_trio_and_asyncio
async def test_a_modern_client_listens_for_changes(server: ServerProcess) -> None:
    async with (
        connected(server.url, MODERN) as client,
        client.listen(tools_list_changed=True) as events,
    ):
        await call(client, "notify_changed")
        assert await anext(aiter(events)) == ToolsListChanged()


@BOTH_ERAS
@on_trio_and_asyncio
async def test_log_messages_arrive_while_the_call_runs(server: ServerProcess, mode: str, name: str) -> None:
    news, heard = anyio.create_memory_object_stream[object](10)

    async def log(params: LoggingMessageNotificationParams) -> None:
        await news.send(params.data)

    with news, heard:
        async with (
            connected(server.url, mode, logging_callback=log, log_level="info") as client,
            following(client, "lines", name=name, count=3) as running,
        ):
            for line in (1, 2, 3):
                assert await heard.receive() == f"line {line}"
                assert running.result is None
                await call(client, "release", gate=f"{name}/{line}")
        assert running.result == "3 lines"


@on_trio_and_asyncio
async def test_a_modern_client_that_asked_for_no_log_is_sent_none(server: ServerProcess) -> None:
    wire, heard = Wire(), list[object]()

    async def log(params: LoggingMessageNotificationParams) -> None:
        heard.append(params.data)

    async with connected(server.url, MODERN, wire, logging_callback=log) as client:
        assert await call(client, "log", n=3) == "3 lines"
    assert heard == []
    assert [one.content_type for one in wire.calls()] == ["application/json"]


# Cancellation


@BOTH_ERAS
@pytest.mark.parametrize("streaming", [False, True])
@on_trio_and_asyncio
async def test_cancelling_a_call_stops_the_tool(server: ServerProcess, mode: str, streaming: bool, name: str) -> None:
    progress = Progress()

    async def run(client: Client) -> None:
        if streaming:
            await client.call_tool("steps", {"name": name, "count": 1}, progress_callback=progress)
        else:
            await client.call_tool("hold", {"name": name})

    async with connected(server.url, mode) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, client)
            await call(client, "reached", name=name, stage="started")
            if streaming:
                await progress.until(1)
            tasks.cancel_scope.cancel()
        assert await call(client, "outcome", name=name) == "cancelled"
        assert await call(client, "add", a=1, b=2) == "3"


@on_trio_and_asyncio
async def test_cancelling_one_call_leaves_the_others_of_the_session_alone(server: ServerProcess, name: str) -> None:
    async with connected(server.url, "legacy") as client:
        async with following(client, "steps", name=name, count=2) as running:
            await running.reported(1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.call_tool, "hold", {"name": f"{name}/other"})
                await call(client, "reached", name=f"{name}/other", stage="started")
                tasks.cancel_scope.cancel()
            assert await call(client, "outcome", name=f"{name}/other") == "cancelled"
            await let_go_step_by_step(client, running, name, 2)
        assert running.result == "2 steps"


@on_trio_and_asyncio
async def test_a_client_may_cancel_a_call_and_leave_at_once(server: ServerProcess, name: str) -> None:
    async with connected(server.url, "legacy") as other:
        for attempt in range(10):
            mine = f"{name}/{attempt}"
            async with connected(server.url, "legacy") as client, anyio.create_task_group() as tasks:
                tasks.start_soon(client.call_tool, "hold", {"name": mine})
                await call(client, "reached", name=mine, stage="started")
                tasks.cancel_scope.cancel()
            assert await call(other, "outcome", name=mine) == "cancelled"


# Several calls at once


@BOTH_ERAS
@on_trio_and_asyncio
async def test_calls_of_one_client_run_at_the_same_time(server: ServerProcess, mode: str, name: str) -> None:
    met: list[str] = []

    async def meet(client: Client) -> None:
        met.append(await call(client, "meet", name=name, parties=3))

    async with connected(server.url, mode) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meet, client)
            tasks.start_soon(meet, client)
            # Two are waiting for the third, and others are answered meanwhile.
            await call(client, "reached", name=name, stage="started", times=2)
            if mode == "legacy":
                await client.session.send_ping()
            await client.list_tools(cache_mode="refresh")
            assert met == []
            tasks.start_soon(meet, client)
        assert met == ["met"] * 3


@on_trio_and_asyncio
async def test_the_progress_of_calls_at_the_same_time_does_not_mix(server: ServerProcess, name: str) -> None:
    async with (
        connected(server.url, "legacy") as client,
        following(client, "steps", name=f"{name}/a", count=2) as a,
        following(client, "steps", name=f"{name}/b", count=3) as b,
    ):
        await a.reported(1)
        await let_go_step_by_step(client, b, f"{name}/b", 3)
        assert await b.finished() == "3 steps"
        await let_go_step_by_step(client, a, f"{name}/a", 2)
        assert await a.finished() == "2 steps"
    assert (a.values, b.values) == ([1, 2], [1, 2, 3])


# The end


@on_trio_and_asyncio
async def test_a_client_that_leaves_ends_its_session_and_the_id_is_unknown_from_then_on(server: ServerProcess) -> None:
    wire = Wire()
    async with connected(server.url, "legacy", wire) as client:
        await call(client, "add", a=1, b=2)
    assert [one.status for one in wire.seen if one.http == "DELETE"] == [204]
    assert wire.session is not None
    async with httpx2.AsyncClient() as http:
        for ended in (wire.session, "never-was-one"):
            sent = headers(ended, LEGACY, accept=BOTH)
            again = await http.post(server.url, headers=sent, content=body(request("ping", id=7)))
            gone = await http.delete(server.url, headers=sent)
            stream = await http.get(server.url, headers=headers(ended, LEGACY, accept="text/event-stream"))
            assert [again.status_code, gone.status_code, stream.status_code] == [404, 404, 404]
            assert again.json()["id"] == 7
            assert again.json()["error"]["code"] == -32001
