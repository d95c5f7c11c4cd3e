"""What a served program raises is the error of that one request, whatever it is, and nobody else notices."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trio
from mcp.server import MCPServer
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    NotificationParams,
    PaginatedRequestParams,
    RootsCapability,
    TextContent,
)

from harness import mcp
from harness.asgi import Answer
from harness.hybrid import Setup, running
from harness.logged import errors_logged
from harness.mcp import Conversation
from harness.programs import load_program
from mcp_hybrid import HybridApp, Settings
from mcp_hybrid.containment import must_pass
from mcp_hybrid.counts import Count
from mcp_hybrid.exchange.context import ask
from mcp_hybrid.runtime.names import RuntimeName
from mcp_hybrid.sessions.questions import CannotAskError
from mcp_hybrid.sessions.registry import hash_of

hostile = load_program("hostile_tools")
KINDS = [*hostile.EXCEPTIONS, "argparse"]


@asynccontextmanager
async def hostile_session(**settings: Any) -> AsyncIterator[tuple[Setup, Conversation]]:
    async with running(server=hostile.server, **settings) as setup:
        yield setup, await Conversation.open(setup.client)


def failed(answer: Answer) -> bool:
    """Whether an answer is a JSON-RPC error, or a tool's own, for the request it answers."""
    message = answer.json() if answer.header("content-type") == "application/json" else answer.events()[-1].json()
    assert message["jsonrpc"] == "2.0"
    assert message["id"] == 7
    return "error" in message or message["result"].get("isError") is True


async def assert_serves(conversation: Conversation) -> None:
    answer = await conversation.post(mcp.tool("add", {"a": 1, "b": 2}, id="after"))
    assert answer.json()["result"]["structuredContent"] == {"result": 3}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tool", ["raises", "raises_in_thread"])
async def test_whatever_a_tool_raises_is_its_own_calls_error(tool: str, kind: str) -> None:
    with errors_logged() as errors:
        async with hostile_session() as (setup, conversation):
            call = mcp.tool(tool, {"kind": kind}, id=7)
            for answer in (
                await conversation.post(call),
                await setup.client.request("POST", "/mcp", mcp.headers(), mcp.body(call)),
                await setup.client.request("POST", "/mcp", mcp.modern_headers(call), mcp.body(mcp.modern(call))),
            ):
                assert failed(answer)
            await assert_serves(conversation)
    assert len(errors) == 3


async def test_each_of_pythons_own_exceptions_is_its_own_calls_error() -> None:
    with errors_logged() as errors:
        async with hostile_session() as (_, conversation):
            for kind in hostile.BUILTIN:
                assert failed(await conversation.post(mcp.tool("raises", {"kind": kind}, id=7))), kind
            await assert_serves(conversation)
    assert len(errors) == len(hostile.BUILTIN) > 60


def test_whatever_a_tool_raises_is_its_own_calls_error_on_asyncio() -> None:
    async def scenario() -> None:
        async with hostile_session() as (_, conversation):
            for kind in KINDS:
                assert failed(await conversation.post(mcp.tool("raises", {"kind": kind}, id=7)))
                assert failed(await conversation.post(mcp.tool("raises_in_thread", {"kind": kind}, id=7)))
            assert failed(await conversation.post(mcp.tool("cancel_self", id=7)))
            await assert_serves(conversation)

    with errors_logged():
        anyio.run(scenario, backend="asyncio")


@pytest.mark.parametrize(
    "message",
    [
        mcp.request("prompts/get", {"name": "raising_prompt", "arguments": {"kind": "exit"}}, 7),
        mcp.request("resources/read", {"uri": "raising://exit"}, 7),
        mcp.request(
            "completion/complete",
            {"ref": {"type": "ref/prompt", "name": "greet"}, "argument": {"name": "name", "value": "exit"}},
            7,
        ),
        mcp.tool("cancel_self", id=7),
        mcp.tool("leave_scope_open", id=7),
        mcp.tool("leave_tasks_behind", id=7),
        mcp.tool("other_loop", id=7, token=1),
        mcp.tool("other_loop_outside_of_the_call", id=7),
    ],
    ids=["prompt", "resource", "completion", "cancelled itself", "scope", "nursery", "other loop", "outside"],
)
async def test_what_any_handler_does_to_itself_stays_its_own(message: Any) -> None:
    with errors_logged() as errors:
        async with hostile_session() as (_, conversation):
            assert failed(await conversation.post(message))
            await assert_serves(conversation)
    assert errors


async def test_what_a_notification_handler_raises_is_logged(autojump_clock: object) -> None:
    server: Server[Any] = Server("notified")

    async def handle(_ctx: Any, _params: Any) -> None:
        raise SystemExit(3)

    server.add_notification_handler("notifications/roots/list_changed", NotificationParams, handle)
    with errors_logged() as errors:
        async with running(server=server) as setup:
            conversation = await Conversation.open(setup.client)
            for _ in range(2):
                answer = await conversation.post(mcp.notification("notifications/roots/list_changed"))
                assert answer.status == 202
            alone = await setup.client.request(
                "POST", "/mcp", mcp.headers(), mcp.body(mcp.notification("notifications/roots/list_changed"))
            )
            assert alone.status == 202
            assert (await conversation.post(mcp.request("ping"))).status == 200
    assert len(errors) == 3
    assert all("notification handler raised" in error for error in errors)


async def test_what_a_clean_up_raises_is_logged(autojump_clock: object) -> None:
    with errors_logged() as errors:
        async with hostile_session() as (setup, conversation):
            await conversation.post(mcp.tool("leave_clean_up", {"kind": "exit"}))
            assert (await conversation.delete()).status == 204
            alone = mcp.tool("leave_clean_up", {"kind": "keyboard"}, id=7)
            answer = await setup.client.request("POST", "/mcp", mcp.headers(), mcp.body(alone))
            assert not failed(answer), "the call itself succeeded"
    assert len(errors) == 2


async def test_what_a_progress_callback_raises_is_logged(autojump_clock: object) -> None:
    server: MCPServer[None] = MCPServer("asking")

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        raise SystemExit(3)

    @server.tool()
    async def ask(ctx: Context) -> str:
        dispatch = ctx.request_context.session._request_outbound
        await dispatch.send_raw_request("roots/list", None, {"on_progress": on_progress})
        return "answered"

    with errors_logged() as errors:
        async with running(server=server) as setup:
            capabilities = {"roots": RootsCapability().model_dump(by_alias=True)}
            conversation = await Conversation.open(setup.client, capabilities=capabilities)
            async with conversation.stream(mcp.tool("ask", id=7)) as exchange:
                question = await exchange.message()
                token = question["params"]["_meta"]["progressToken"]
                said = mcp.notification("notifications/progress", {"progressToken": token, "progress": 1})
                assert (await conversation.post(said)).status == 202
                assert (await conversation.post(mcp.result(question["id"], {"roots": []}))).status == 202
                assert (await exchange.message())["result"]["isError"] is False
    (error,) = errors
    assert "a background task failed" in error


async def test_a_lifespan_that_exits_at_its_end_fails_in_order(autojump_clock: object) -> None:
    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        yield
        raise SystemExit(3)

    app = HybridApp(Server("ending", lifespan=lifespan), Settings(runtime=RuntimeName.TRIO))
    sent: list[Any] = []
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(events)

    async def send(event: Any) -> None:
        sent.append(event["type"])

    with errors_logged() as errors, pytest.raises(RuntimeError, match="SystemExit"):
        await app({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.failed"]
    assert app.failed
    (error,) = errors
    assert "the server's lifespan failed" in error


async def test_a_listing_that_raises_does_not_break_calls(autojump_clock: object) -> None:
    server: Server[Any] = Server("listing")

    async def list_tools(_ctx: Any, _params: Any) -> Any:
        raise SystemExit(3)

    async def call(_ctx: Any, _params: Any) -> Any:
        return CallToolResult(content=[TextContent(type="text", text="called")])

    server.add_request_handler("tools/list", PaginatedRequestParams, list_tools)
    server.add_request_handler("tools/call", CallToolRequestParams, call)
    message = mcp.tool("any", {"a": 1}, id=7)
    with errors_logged():
        async with running(server=server) as setup:
            answer = await setup.client.request(
                "POST", "/mcp", mcp.modern_headers(message), mcp.body(mcp.modern(message))
            )
    assert answer.json()["result"]["content"][0]["text"] == "called"


# What passes


async def test_cancellation_that_was_asked_for_passes() -> None:
    passed: list[BaseException | None] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except BaseException as error:
            passed.append(must_pass(error))
            raise
    assert isinstance(passed[0], trio.Cancelled)


async def test_of_a_group_only_what_was_asked_for_passes() -> None:
    passing: BaseException | None = None
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                hostile.raise_one("exit")
        except BaseException as error:  # noqa: BLE001 - what is looked at
            passing = must_pass(error)
    assert isinstance(passing, BaseExceptionGroup)
    assert passing.subgroup(SystemExit) is None


def test_an_interrupt_of_a_signal_passes_on_trio() -> None:
    async def main() -> BaseException | None:
        try:
            signal.raise_signal(signal.SIGINT)
            await trio.sleep(5)
        except KeyboardInterrupt as error:
            return must_pass(error)
        return None

    assert isinstance(trio.run(main), KeyboardInterrupt)


def test_an_interrupt_that_no_signal_made_does_not_pass() -> None:
    async def main() -> BaseException | None:
        try:
            hostile.raise_one("keyboard")
        except KeyboardInterrupt as error:
            return must_pass(error)
        return KeyboardInterrupt()

    assert trio.run(main) is None
    assert asyncio.run(main()) is None


def test_cancellation_by_the_host_passes_on_asyncio() -> None:
    passed: list[BaseException | None] = []

    async def cancelled() -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError as error:
            passed.append(must_pass(error))
            raise

    async def main() -> None:
        task = asyncio.create_task(cancelled())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert isinstance(passed[0], asyncio.CancelledError)


class Yields:
    def __await__(self) -> Generator[None, None, None]:
        yield


def test_closing_a_coroutine_whose_loop_has_ended_passes() -> None:
    passed: list[BaseException | None] = []

    async def waiting() -> None:
        try:
            await Yields()
        except BaseException as error:
            passed.append(must_pass(error))
            raise

    coroutine = waiting()
    coroutine.send(None)
    coroutine.close()
    assert isinstance(passed[0], GeneratorExit)


# Progress


async def test_progress_that_is_no_number_is_not_sent(autojump_clock: object) -> None:
    async with (
        hostile_session() as (setup, conversation),
        conversation.stream(mcp.tool("bad_progress", id=7, token=1)) as exchange,
    ):
        *sent, last = await exchange.messages()
    assert last["result"]["isError"] is False
    assert [message["params"]["progress"] for message in sent][-1] == 10
    assert "total" not in sent[-1]["params"]
    assert setup.app.counts[Count.PROGRESS_SENT] == len(sent)


# Questions


@pytest.mark.parametrize("timeout", [None, 1.0])
async def test_a_question_that_cannot_be_withdrawn_ends_as_it_would(
    timeout: float | None,  # noqa: ASYNC109 - what is looked at
    autojump_clock: object,
) -> None:
    async with running() as setup:
        conversation = await Conversation.open(setup.client, capabilities={"roots": {}})
        session = setup.registry.live(hash_of(conversation.session))
        assert session is not None
        sent: list[bytes] = []

        async def put(message: bytes) -> None:
            sent.append(message)
            if len(sent) > 1:
                raise CannotAskError("", "the backplane is away.")

        asking = ask(session, put, "roots/list", None, {} if timeout is None else {"timeout": timeout})
        with trio.move_on_after(5) as scope:
            if timeout is None:
                await asking
            else:
                with pytest.raises(MCPError, match="in time"):
                    await asking
    assert scope.cancelled_caught is (timeout is None)
    assert len(sent) == 2
    assert session.questions == {}
