"""The demo, with the SDK's client straight against it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import anyio
import pytest
import trio.testing
from mcp import Client
from mcp.client import ClientRequestContext
from mcp.client.session import IncomingMessage
from mcp.client.subscriptions import ResourceUpdated
from mcp.shared.exceptions import MCPError
from mcp_types import (
    ElicitRequestParams,
    ElicitResult,
    LoggingMessageNotificationParams,
    ResourceUpdatedNotification,
    TextContent,
    TextResourceContents,
)

from mcp_hybrid.demo import COUNTER_URI, counter, server

# The SDK's client warns that these methods are gone in 2026-07-28; up to 2025-11-25 they are what there is.
HANDSHAKE_ERA = pytest.mark.filterwarnings("ignore:(resources|The logging):mcp.shared.exceptions.MCPDeprecationWarning")
ERAS = pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])


async def text(client: Client, tool: str, /, **arguments: object) -> str:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


@pytest.mark.process
def test_importing_the_demo_warns_of_nothing() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", "import mcp_hybrid.demo"], check=True, env=dict(os.environ))


@ERAS
async def test_add_adds(mode: str) -> None:
    async with Client(server, mode=mode) as client:
        assert await text(client, "add", a=1, b=2) == "3"


@ERAS
async def test_countdown_reports_every_step(mode: str, autojump_clock: trio.testing.MockClock) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))

    async with Client(server, mode=mode) as client:
        result = await client.call_tool("countdown", {"steps": 3, "delay": 1}, progress_callback=on_progress)
    assert not result.is_error
    assert autojump_clock.current_time() >= 3
    assert seen == [(1, 3, "2 to go"), (2, 3, "1 to go"), (3, 3, "0 to go")]


async def test_countdown_refuses_more_steps_than_it_allows() -> None:
    async with Client(server, mode="legacy") as client:
        assert (await client.call_tool("countdown", {"steps": 1001})).is_error


@ERAS
async def test_slow_echo_takes_its_time(mode: str, autojump_clock: trio.testing.MockClock) -> None:
    async with Client(server, mode=mode) as client:
        before = autojump_clock.current_time()
        assert await text(client, "slow_echo", text="5", seconds=30) == "5"
        assert autojump_clock.current_time() - before >= 30


@ERAS
@pytest.mark.parametrize(
    ("answer", "greeting"),
    [
        (ElicitResult(action="accept", content={"name": "Ada"}), "Hello, Ada."),
        (ElicitResult(action="decline"), "Hello, whoever you are."),
        (ElicitResult(action="cancel"), "You left without a word."),
    ],
)
async def test_ask_name_takes_every_kind_of_answer(mode: str, answer: ElicitResult, greeting: str) -> None:
    async def elicit(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:  # the SDK's names
        return answer

    async with Client(server, mode=mode, elicitation_callback=elicit) as client:
        assert await text(client, "ask_name") == greeting


@ERAS
async def test_ask_name_tells_a_client_that_cannot_be_asked(mode: str) -> None:
    async with Client(server, mode=mode) as client:
        with pytest.raises(MCPError, match="elicitation"):
            await client.call_tool("ask_name")


@HANDSHAKE_ERA
async def test_a_subscriber_hears_of_every_bump_until_it_unsubscribes() -> None:
    heard: list[str] = []
    came = anyio.Event()

    async def handler(message: IncomingMessage) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            heard.append(str(message.params.uri))
            came.set()

    async with Client(server, mode="legacy", message_handler=handler) as client:
        assert client.server_capabilities.resources is not None
        assert client.server_capabilities.resources.subscribe
        await client.subscribe_resource(COUNTER_URI)
        value = await text(client, "bump")
        await came.wait()
        assert await read_counter(client) == value
        await client.unsubscribe_resource(COUNTER_URI)
        await client.call_tool("bump")
        await trio.testing.wait_all_tasks_blocked()
    assert heard == [COUNTER_URI]


async def test_a_listener_of_2026_07_28_hears_of_a_bump() -> None:
    async with (
        Client(server, mode="2026-07-28") as client,
        client.listen(resource_subscriptions=[COUNTER_URI]) as events,
    ):
        await client.call_tool("bump")
        assert await anext(aiter(events)) == ResourceUpdated(uri=COUNTER_URI)


@HANDSHAKE_ERA
async def test_only_the_counter_can_be_subscribed_to() -> None:
    async with Client(server, mode="legacy") as client:
        with pytest.raises(MCPError, match="Only demo://counter"):
            await client.subscribe_resource("demo://other")


@HANDSHAKE_ERA
async def test_a_subscription_ends_with_its_connection() -> None:
    async with Client(server, mode="legacy") as client:
        await client.subscribe_resource(COUNTER_URI)
        assert len(counter.subscribers) == 1
    gc.collect()
    assert len(counter.subscribers) == 0


@HANDSHAKE_ERA
async def test_the_log_level_asked_for_holds_back_what_is_below() -> None:
    logged: list[object] = []

    async def logging(params: LoggingMessageNotificationParams) -> None:
        logged.append(params.data)

    async with Client(server, mode="legacy", logging_callback=logging) as client:
        await client.set_logging_level("warning")
        assert await text(client, "log", text="quiet", level="info") == "held back: below the level asked for"
        assert await text(client, "log", text="loud", level="error") == "logged"
        await trio.testing.wait_all_tasks_blocked()
    assert logged == ["loud"]


@ERAS
async def test_the_prompt_names_whom_to_greet(mode: str) -> None:
    async with Client(server, mode=mode) as client:
        (message,) = (await client.get_prompt("greeting", {"name": "Ada"})).messages
    assert isinstance(message.content, TextContent)
    assert "Ada" in message.content.text


def test_the_demo_runs_on_asyncio_too() -> None:
    async def main() -> str:
        async with Client(server, mode="legacy") as client:
            return await text(client, "slow_echo", text="hi", seconds=0)

    assert anyio.run(main, backend="asyncio") == "hi"


async def read_counter(client: Client) -> str:
    (content,) = (await client.read_resource(COUNTER_URI)).contents
    assert isinstance(content, TextResourceContents)
    return content.text
