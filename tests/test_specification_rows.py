"""Requirements of the specification that no other file shows (docs/specification.md names the rows)."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import anyio.abc
import pytest
from mcp.server import MCPServer
from mcp.server.connection import Connection
from mcp.server.elicitation import ElicitationResult
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver import Context, RequestStateSecurity
from mcp.server.mcpserver.exceptions import InvalidSignature
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    EmptyResult,
    InputRequiredResult,
    ListRootsRequest,
    ListRootsResult,
    ListToolsResult,
    RequestParams,
    TextContent,
    Tool,
)
from pydantic import BaseModel, Field

from harness import mcp
from harness.asgi import Answer
from harness.hybrid import Setup, running
from mcp_hybrid.demo import server as demo

Json = dict[str, Any]

SECRET = "a key that all processes of the deployment have"
SERVER_INFO = f"{mcp.META}serverInfo"
SUBSCRIPTION = f"{mcp.META}subscriptionId"


class Name(BaseModel):
    name: str


async def who() -> Elicit[Name]:
    return Elicit("Who is there?", Name)


def make_server(key: str | None = None) -> MCPServer[Any]:
    """Make a server with a tool that asks by a resolver, one that wants headers, a resource and a prompt."""
    security = None if key is None else RequestStateSecurity(keys=[key])
    server = MCPServer("rows", version="1", request_state_security=security)

    @server.tool()
    async def greet(answer: Annotated[ElicitationResult[Name], Resolve(who)]) -> str:
        return f"hello {answer.data.name}" if answer.action == "accept" else answer.action

    @server.tool()
    async def look(ctx: Context) -> str | InputRequiredResult:
        return InputRequiredResult(input_requests={"where": ListRootsRequest()})

    @server.tool()
    async def place(
        region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})],
        number: Annotated[int, Field(json_schema_extra={"x-mcp-header": "Number"})] = 1,
    ) -> str:
        return f"{region} {number}"

    @server.resource("rows://one", mime_type="text/plain")
    async def one() -> str:
        return "one"

    @server.prompt()
    async def hello() -> str:
        return "Say hello."

    return server


async def send_modern(
    setup: Setup, message: Json, *extra: tuple[str, str], capabilities: Json | None = None, log_level: str | None = None
) -> Answer:
    enveloped = mcp.body(mcp.modern(message, capabilities, log_level))
    return await setup.client.request("POST", "/mcp", mcp.modern_headers(message, *extra), enveloped)


async def send_alone(setup: Setup, message: Any, version: str | None = None) -> Answer:
    return await setup.client.request("POST", "/mcp", mcp.headers(None, version), mcp.body(message))


# The revision


@pytest.mark.parametrize(
    ("asked", "agreed"),
    [
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2030-01-01", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
    ],
)
async def test_initialize_agrees_to_what_was_asked_or_offers_the_latest(asked: str, agreed: str) -> None:
    async with running() as setup:
        answer = await send_alone(setup, mcp.initialize(asked))
        assert answer.json()["result"]["protocolVersion"] == agreed


async def test_a_session_keeps_to_its_own_revision_whatever_the_header_says() -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client, version="2025-06-18")
        later = mcp.Conversation(setup.client, talk.session, mcp.LEGACY, "/mcp")
        answer = await later.post(mcp.tool("count", {"delay": 0}, token=1))
        assert all(event.data for event in answer.events())  # a priming event would be the later revision's


async def test_a_result_has_nothing_of_a_later_revision() -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        listing = mcp.request("tools/list")
        for answer in (await send_alone(setup, listing), await talk.post(listing)):
            assert set(answer.json()["result"]) == {"tools"}
        assert set((await send_modern(setup, listing)).json()["result"]) > {"tools", "resultType"}


@pytest.mark.parametrize(
    ("envelope", "status"), [(None, 202), ("2026-07-28", 202), ("2025-11-25", 400), ("2099-01-01", 400)]
)
async def test_a_modern_notification_does_not_name_two_revisions(envelope: str | None, status: int) -> None:
    async with running() as setup:
        message = mcp.notification("notifications/roots/list_changed")
        body = message if envelope is None else mcp.modern(message, version=envelope)
        answer = await setup.client.request("POST", "/mcp", mcp.modern_headers(message), mcp.body(body))
        assert answer.status == status
        assert status == 202 or answer.json()["error"]["code"] == -32020


# JSON-RPC


@pytest.mark.parametrize(
    ("version", "session", "message"),
    [
        ("2099-01-01", None, mcp.request("ping", id="q")),
        (mcp.MODERN, None, mcp.request("ping", id="q")),
        (mcp.LEGACY, "A" * 120, mcp.request("ping", id="q")),
        (mcp.LEGACY, None, mcp.request("no/such", id="q")),
        (mcp.LEGACY, None, {"jsonrpc": "2.0", "id": "q", "method": "ping", "params": []}),
    ],
)
async def test_a_refusal_carries_the_id_of_the_request(version: str, session: str | None, message: Json) -> None:
    async with running() as setup:
        answer = await setup.client.request("POST", "/mcp", mcp.headers(session, version), mcp.body(message))
        assert answer.json()["id"] == "q"
        assert "error" in answer.json()


@pytest.mark.parametrize(
    ("raised", "sent", "status"),
    [
        (-32002, -32602, 400),
        (-32042, -32603, 200),
        (-32050, -32603, 200),
        (-32099, -32603, 200),
        (-32021, -32021, 400),
        (-32100, -32100, 200),
        (7, 7, 200),
    ],
)
async def test_codes_that_2026_07_28_forbids_are_not_sent_at_it(raised: int, sent: int, status: int) -> None:
    async def refuse(ctx: object, params: object) -> EmptyResult:
        raise MCPError(raised, "no", {"why": "not"})

    server: Server[Any] = Server("refusing")
    server.add_request_handler("x/refuse", RequestParams, refuse)
    async with running(server=server) as setup:
        answer = await send_modern(setup, mcp.request("x/refuse", {}))
        assert (answer.status, answer.json()["error"]) == (
            status,
            {"code": sent, "message": "no", "data": {"why": "not"}},
        )
        assert (await send_alone(setup, mcp.request("x/refuse", {}))).json()["error"]["code"] == raised


async def test_a_call_that_wants_a_task_is_an_ordinary_call() -> None:
    async with running() as setup:
        message = mcp.tool("add", {"a": 1, "b": 2})
        message["params"]["task"] = {"ttl": 1000}
        talk = await mcp.Conversation.open(setup.client)
        assert "tasks" not in talk.initialized["capabilities"]
        for answer in (await talk.post(message), await send_modern(setup, message)):
            assert answer.json()["result"]["structuredContent"] == {"result": 3}


# Streams


async def test_what_a_modern_stream_says_can_pass_proxies_and_cannot_be_resumed(autojump_clock: object) -> None:
    async with running() as setup:
        answer = await send_modern(setup, mcp.tool("wait", {"seconds": 50}), ("last-event-id", "c1.1-1"))
        assert answer.header("content-type") == "text/event-stream"
        assert answer.header("x-accel-buffering") == "no"
        assert answer.body.count(b": keep-alive") >= 2
        assert [event.id for event in answer.events()] == [None] * len(answer.events())
        assert "result" in answer.events()[-1].json()


async def test_a_modern_request_ignores_what_only_sessions_know() -> None:
    async with running() as setup:
        ignored = [("last-event-id", "c1.1-1"), ("mcp-session-id", "of-another-server")]
        answer = await send_modern(setup, mcp.tool("add", {"a": 1, "b": 2}), *ignored)
        assert (answer.status, answer.header("mcp-session-id")) == (200, None)


async def test_a_client_is_told_when_to_come_back_before_its_stream_is_closed(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.stream(mcp.tool("close_stream", token=1)) as call:
            first = await call.event()
            assert first.retry is not None
            assert first.id is not None
        async with talk.get() as stream:
            assert (await stream.event()).retry is not None


async def test_event_ids_are_unique_in_a_session_and_name_their_stream(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        answers = [await talk.post(mcp.tool("count", {"delay": 0}, id=n, token=n)) for n in (1, 2)]
        async with talk.get() as stream:
            standalone = (await stream.event()).id
        ids = [[event.id or "" for event in answer.events()] for answer in answers]
        every = [*ids[0], *ids[1], standalone]
        assert len(set(every)) == len(every)
        streams = [{id_.partition(".")[0] for id_ in of_one} for of_one in ids]
        assert [len(names) for names in streams] == [1, 1]
        assert streams[0] != streams[1]


# Progress, logging, cancellation


async def test_progress_of_a_call_never_goes_to_a_listener(autojump_clock: object) -> None:
    listen = mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, id="l")
    async with running() as setup:
        wanted = mcp.body(mcp.modern(listen))
        async with setup.client.stream("POST", "/mcp", mcp.modern_headers(listen), wanted) as stream:
            await stream.message()
            counted = await send_modern(setup, mcp.tool("count", {"delay": 0}, token="t"))
            assert len(counted.events()) == 4
            await send_modern(setup, mcp.tool("notify_changed"))
            assert (await stream.message())["method"] == "notifications/tools/list_changed"


@pytest.mark.parametrize(("level", "lines"), [(None, 0), ("warning", 0), ("info", 1), ("debug", 1)])
async def test_a_modern_request_gets_the_log_messages_it_asks_for(level: str | None, lines: int) -> None:
    async with running() as setup:
        answer = await send_modern(setup, mcp.tool("log"), log_level=level)
        assert answer.body.count(b"notifications/message") == lines


def make_logging_server() -> MCPServer[Any]:
    server = make_server()

    async def set_level(ctx: object, params: object) -> EmptyResult:
        return EmptyResult()

    server._lowlevel_server.add_request_handler("logging/setLevel", RequestParams, set_level)
    return server


@pytest.mark.parametrize(("server", "declared"), [(make_logging_server(), True), (demo, True), (make_server(), False)])
async def test_logging_is_declared_where_a_level_can_be_set(server: MCPServer[Any], declared: bool) -> None:
    async with running(server=server) as setup:
        talk = await mcp.Conversation.open(setup.client)
        assert ("logging" in talk.initialized["capabilities"]) is declared
        discovered = await send_modern(setup, mcp.request("server/discover"))
        assert ("logging" in discovered.json()["result"]["capabilities"]) is declared


async def test_a_log_level_that_does_not_exist_is_refused() -> None:
    async with running(server=make_logging_server()) as setup:
        talk = await mcp.Conversation.open(setup.client)
        answer = await talk.post(mcp.request("logging/setLevel", {"level": "loud"}))
        assert answer.json()["error"]["code"] == -32602
        modern = await send_modern(setup, mcp.request("tools/list"), log_level="loud")
        assert (modern.status, modern.json()["error"]["code"]) == (400, -32602)


async def test_a_modern_call_is_not_cancelled_by_a_message(autojump_clock: object) -> None:
    async with running() as setup:
        message = mcp.tool("wait", {"seconds": 5}, id=3)
        wanted = mcp.body(mcp.modern(message))
        async with setup.client.stream("POST", "/mcp", mcp.modern_headers(message), wanted) as call:
            await setup.example.until_started("wait")
            assert (await send_modern(setup, mcp.cancelled(3))).status == 202
            assert (await call.answer()).json()["result"]["content"][0]["text"] == "let go"


@pytest.mark.parametrize("unknown", [99, "99", None, True, [], {}])
async def test_cancelling_what_does_not_run_is_ignored(unknown: Any, autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.stream(mcp.tool("wait", {"seconds": 5}, id=1)) as call:
            await setup.example.until_started("wait")
            assert (await talk.post(mcp.cancelled(unknown))).status == 202
            assert "result" in await talk.answers(call)
        assert (await talk.post(mcp.cancelled(1))).status == 202  # it has finished


# Questions outside of any call


class Asking:
    """A server with a task of its own that asks the client for its roots."""

    def __init__(self) -> None:
        self.server = MCPServer("asking", lifespan=self._lifespan)
        self.outcome: object = None
        self._ask = anyio.Event()
        self._asked = anyio.Event()

        @self.server.tool()
        async def start(ctx: Context) -> str:
            self._connection: Connection = ctx.session._connection
            self._ask.set()
            return "it asks"

    async def over(self) -> object:
        await self._asked.wait()
        return self.outcome

    @asynccontextmanager
    async def _lifespan(self, _server: MCPServer[None]) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._run)
            yield
            tasks.cancel_scope.cancel()

    async def _run(self) -> None:
        await self._ask.wait()
        try:
            self.outcome = await self._connection.send_request(ListRootsRequest())
        except MCPError as error:
            self.outcome = error
        self._asked.set()


async def answer_it(talk: mcp.Conversation, question: Json) -> None:
    await talk.post(mcp.result(question["id"], {"roots": []}))


async def end_the_session(talk: mcp.Conversation, question: Json) -> None:
    await talk.delete()


async def say_nothing(talk: mcp.Conversation, question: Json) -> None:
    pass


@pytest.mark.parametrize(
    ("react", "words"), [(answer_it, ""), (end_the_session, "session was ended"), (say_nothing, "in time")]
)
async def test_a_question_outside_of_any_call_does_not_wait_for_ever(
    react: Callable[[mcp.Conversation, Json], Awaitable[None]], words: str, autojump_clock: object
) -> None:
    asking = Asking()
    async with running(server=asking.server, request_timeout=300) as setup:
        talk = await mcp.Conversation.open(setup.client, capabilities={"roots": {}})
        async with talk.get() as stream:
            await talk.post(mcp.tool("start"))
            question = await stream.message()
            assert question["method"] == "roots/list"
            await react(talk, question)
            with anyio.fail_after(301):
                outcome = await asking.over()
        assert isinstance(outcome, MCPError if words else ListRootsResult)
        assert words in str(outcome)
        assert not any(session.questions for session in setup.registry.sessions())


# 2026-07-28: results


CACHEABLE = ["server/discover", "tools/list", "prompts/list", "resources/list", "resources/templates/list"]


@pytest.mark.parametrize("method", CACHEABLE)
async def test_a_modern_result_says_what_it_is_who_sends_it_and_how_long_it_is_good(method: str) -> None:
    async with running(server=make_server()) as setup:
        result = (await send_modern(setup, mcp.request(method))).json()["result"]
        assert result["resultType"] == "complete"
        assert result["_meta"][SERVER_INFO] == {"name": "rows", "version": "1"}
        assert result["ttlMs"] >= 0
        assert result["cacheScope"] in ("private", "public")


async def test_discover_names_every_revision_and_what_the_server_can_do() -> None:
    async with running(server=make_server()) as setup:
        result = (await send_modern(setup, mcp.request("server/discover"))).json()["result"]
        assert {"2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"} <= set(result["supportedVersions"])
        assert set(result["capabilities"]) >= {"tools", "prompts", "resources"}


async def test_tools_are_listed_in_the_same_order_on_every_route() -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        listing = mcp.request("tools/list")
        answers = [await send_alone(setup, listing), await talk.post(listing), await send_modern(setup, listing)]
        orders = [[tool["name"] for tool in answer.json()["result"]["tools"]] for answer in answers * 2]
        assert orders[0][:2] == ["add", "wait"]
        assert orders == [orders[0]] * 6


async def test_an_unknown_resource_is_an_error_and_never_an_empty_answer() -> None:
    async with running(server=make_server()) as setup:
        known = await send_modern(setup, mcp.request("resources/read", {"uri": "rows://one"}))
        assert known.json()["result"]["contents"][0]["text"] == "one"
        unknown = await send_modern(setup, mcp.request("resources/read", {"uri": "rows://two"}))
        assert (unknown.status, unknown.json()["error"]["code"]) == (400, -32602)


# 2026-07-28: headers


def sentinel(text: str) -> str:
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


@pytest.mark.parametrize(
    ("name", "status"), [("add", 200), (sentinel("add"), 200), (sentinel("wait"), 400), ("ADD", 400), (None, 400)]
)
async def test_the_name_in_the_header_is_the_one_in_the_body(name: str | None, status: int) -> None:
    async with running() as setup:
        message = mcp.tool("add", {"a": 1, "b": 2})
        named = [] if name is None else [("Mcp-Name", name)]
        headers = mcp.headers(None, mcp.MODERN, ("Mcp-Method", "tools/call"), *named)
        answer = await setup.client.request("POST", "/mcp", headers, mcp.body(mcp.modern(message)))
        assert answer.status == status
        assert status == 200 or answer.json()["error"]["code"] == -32020


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"region": "north", "number": "7"}, 200),
        ({"region": sentinel("north"), "number": "7"}, 200),
        ({"region": "north", "number": "7.0"}, 200),
        ({"region": "north", "number": "8"}, 400),
        ({"region": "south", "number": "7"}, 400),
        ({"region": "=?base64?!?=", "number": "7"}, 400),
        ({"region": "north"}, 400),
        ({}, 400),
    ],
)
async def test_parameters_in_headers_are_those_of_the_body(sent: dict[str, str], status: int) -> None:
    async with running(server=make_server()) as setup:
        message = mcp.tool("place", {"region": "north", "number": 7})
        answer = await send_modern(setup, message, *[(f"mcp-param-{name}", value) for name, value in sent.items()])
        assert answer.status == status
        assert status == 200 or answer.json()["error"]["code"] == -32020


async def test_a_parameter_in_a_header_twice_is_refused() -> None:
    async with running(server=make_server()) as setup:
        twice = [("mcp-param-region", "north"), ("mcp-param-region", "north")]
        answer = await send_modern(setup, mcp.tool("place", {"region": "north"}), *twice)
        assert (answer.status, answer.json()["error"]["code"]) == (400, -32020)


async def no_token(place: Annotated[str, Field(json_schema_extra={"x-mcp-header": "two words"})]) -> str:
    return place


async def no_text(place: Annotated[str, Field(json_schema_extra={"x-mcp-header": 7})]) -> str:
    return place


async def no_scalar(place: Annotated[list[str], Field(json_schema_extra={"x-mcp-header": "Place"})]) -> str:
    return str(place)


async def no_number(place: Annotated[float, Field(json_schema_extra={"x-mcp-header": "Place"})]) -> str:
    return str(place)


async def twice_the_same(
    one: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Place"})],
    other: Annotated[str, Field(json_schema_extra={"x-mcp-header": "PLACE"})],
) -> str:
    return one + other


@pytest.mark.parametrize("tool", [no_token, no_text, no_scalar, no_number, twice_the_same])
def test_a_wrong_annotation_for_a_header_is_refused_when_the_tool_is_added(tool: Callable[..., Awaitable[str]]) -> None:
    with pytest.raises(InvalidSignature, match="x-mcp-header"):
        make_server().tool()(tool)


async def test_a_low_level_tool_with_a_wrong_annotation_is_served_without_its_headers() -> None:
    schema = {"type": "object", "properties": {"place": {"type": "string", "x-mcp-header": "two words"}}}

    async def list_tools(_ctx: object, _params: object) -> ListToolsResult:
        return ListToolsResult(tools=[Tool(name="place", input_schema=schema)])

    async def call_tool(_ctx: object, params: CallToolRequestParams) -> CallToolResult:
        return CallToolResult(content=[TextContent(type="text", text=str((params.arguments or {})["place"]))])

    server: Server[Any] = Server("low", on_list_tools=list_tools, on_call_tool=call_tool)
    async with running(server=server) as setup:
        answer = await send_modern(setup, mcp.tool("place", {"place": "north"}), ("mcp-param-two", "south"))
        assert answer.json()["result"]["content"][0]["text"] == "north"


# 2026-07-28: questions


async def test_a_question_is_an_answer_and_nothing_is_remembered_of_the_client() -> None:
    async with running(server=make_server()) as setup:
        able = await send_modern(setup, mcp.tool("greet"), capabilities={"elicitation": {}})
        result = able.json()["result"]
        assert result["resultType"] == "input_required"
        assert result["inputRequests"]
        assert "ttlMs" not in result
        # The same client, if it does not say again what it can do, cannot do it.
        unable = await send_modern(setup, mcp.tool("greet"))
        assert (unable.status, unable.json()["error"]["code"]) == (400, -32021)
        assert unable.json()["error"]["data"]["requiredCapabilities"] == {"elicitation": {"form": {}}}


async def test_a_question_that_a_tool_returns_is_one_that_was_declared() -> None:
    async with running(server=make_server()) as setup:
        able = await send_modern(setup, mcp.tool("look"), capabilities={"roots": {}})
        assert able.json()["result"]["inputRequests"] == {"where": {"method": "roots/list"}}
        unable = await send_modern(setup, mcp.tool("look"), capabilities={"elicitation": {}})
        assert (unable.status, unable.json()["error"]["code"]) == (400, -32021)
        assert unable.json()["error"]["data"] == {"requiredCapabilities": {"roots": {}}}


async def ask_here_and_answer_there(one: Setup, other: Setup, change: str = "") -> Answer:
    asked = (await send_modern(one, mcp.tool("greet"), capabilities={"elicitation": {}})).json()["result"]
    (key,) = asked["inputRequests"]
    again = mcp.tool("greet", id=2)
    again["params"] |= {
        "inputResponses": {key: {"action": "accept", "content": {"name": "Ada"}}},
        "requestState": asked["requestState"] + change,
    }
    return await send_modern(other, again, capabilities={"elicitation": {}})


async def test_the_answer_to_a_question_may_go_to_another_process() -> None:
    async with running(server=make_server(SECRET)) as one, running(server=make_server(SECRET)) as other:
        answer = await ask_here_and_answer_there(one, other)
        assert answer.json()["result"]["content"][0]["text"] == "hello Ada"


@pytest.mark.parametrize(("there", "change"), [(SECRET, "x"), (SECRET[::-1], "")])
async def test_a_state_that_was_changed_or_is_anothers_is_refused(there: str, change: str) -> None:
    async with running(server=make_server(SECRET)) as one, running(server=make_server(there)) as other:
        answer = await ask_here_and_answer_there(one, other, change)
        assert (answer.status, answer.json()["error"]["code"]) == (400, -32602)


# 2026-07-28: listening


@asynccontextmanager
async def listening(setup: Setup, wanted: Json, id_: str = "l") -> AsyncIterator[Any]:
    message = mcp.request("subscriptions/listen", {"notifications": wanted}, id=id_)
    body = mcp.body(mcp.modern(message))
    async with setup.client.stream("POST", "/mcp", mcp.modern_headers(message), body) as stream:
        yield stream


async def test_a_listener_is_told_first_what_it_will_be_told(autojump_clock: object) -> None:
    async with running() as setup:
        wanted = {"toolsListChanged": True, "promptsListChanged": False, "resourceSubscriptions": [], "noSuch": True}
        async with listening(setup, wanted) as stream:
            first = await stream.message()
            assert first["method"] == "notifications/subscriptions/acknowledged"
            assert first["params"]["notifications"] == {"toolsListChanged": True}
            await send_modern(setup, mcp.tool("notify_changed"))
            second = await stream.message()
            assert second["method"] == "notifications/tools/list_changed"
            assert [message["params"]["_meta"][SUBSCRIPTION] for message in (first, second)] == ["l", "l"]


async def test_a_listener_hears_of_nothing_it_did_not_ask_for(autojump_clock: object) -> None:
    async with running() as setup, listening(setup, {"promptsListChanged": True}) as stream:
        await stream.message()
        await send_modern(setup, mcp.tool("notify_changed"))
        setup.app.close_streams()
        assert [message.get("method") for message in await stream.messages()] == [None]


async def test_a_server_that_stops_ends_listening_with_a_result(autojump_clock: object) -> None:
    async with running() as setup, listening(setup, {"toolsListChanged": True}) as stream:
        await stream.message()
        setup.app.close_streams()
        (last,) = await stream.messages()
        assert last["id"] == "l"
        assert last["result"]["_meta"][SUBSCRIPTION] == "l"
