"""`session_state(ctx)`: it follows the session, whichever kind of server asks, wherever and whenever it runs."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import fastmcp
import mcp_types
import pytest
from mcp.server import MCPServer, Server, ServerRequestContext
from mcp.server.mcpserver import Context
from mcp_types import CallToolRequestParams, CallToolResult, TextContent
from pydantic_core import to_json

from harness import mcp
from harness.asgi import AsgiClient
from harness.hybrid import KEY, running
from harness.mcp import Conversation
from harness.redis import RedisServer, redis_server
from mcp_hybrid import HybridApp, Settings, session_state
from mcp_hybrid.backplane import MemoryBackplane
from mcp_hybrid.backplane.redis import OPERATION, RedisBackplane
from mcp_hybrid.exchange.standalone import StandaloneChannel
from mcp_hybrid.sessions.state import SessionState, SessionStateError

Json = dict[str, Any]

DOCUMENT = Path(__file__).parent.parent / "docs" / "sessions.md"
UPDATED = "notifications/resources/updated"


async def use(ctx: object, name: str, value: Any, do: str) -> str:
    """Do one thing with the state; give what there is then, as JSON."""
    state = session_state(ctx)
    if do == "set":
        await state.set(name, value)
    elif do == "delete":
        await state.delete(name)
    elif do == "get":
        return to_json(await state.get(name, "not set")).decode()
    return to_json(await state.all()).decode()


def mcpserver() -> object:
    server = MCPServer("state")

    @server.tool()
    async def keep(ctx: Context, do: str, name: str = "", value: Any = None) -> str:
        return await use(ctx, name, value, do)

    return server


def fast() -> object:
    server: fastmcp.FastMCP[None] = fastmcp.FastMCP("state")

    @server.tool
    async def keep(ctx: fastmcp.Context, do: str, name: str = "", value: Any = None) -> str:
        return await use(ctx, name, value, do)

    return server


def lowlevel() -> object:
    async def keep(ctx: ServerRequestContext, params: CallToolRequestParams) -> CallToolResult:
        given = {"name": "", "value": None, **(params.arguments or {})}
        return CallToolResult(content=[TextContent(type="text", text=await use(ctx, **given))])

    return Server("state", on_call_tool=keep)


KINDS: dict[str, Callable[[], object]] = {"mcpserver": mcpserver, "fastmcp": fast, "lowlevel": lowlevel}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@asynccontextmanager
async def serving(server: object, redis: RedisServer | None = None, prefix: str = "") -> AsyncIterator[AsgiClient]:
    backplane = RedisBackplane(redis.url, prefix=prefix) if redis is not None else None
    # However slow the machine is, answers are JSON.
    shared = Settings.model_validate({"sessions": {"keys": [KEY]}, "stream_after": "1h"})
    async with AsgiClient(HybridApp(server, shared, backplane=backplane), patience=20) as client:
        yield client


async def keep(conversation: Conversation, do: str, name: str = "", value: Any = None) -> str:
    answer = await conversation.post(mcp.tool("keep", {"do": do, "name": name, "value": value}))
    return text(answer.json())


def text(message: Json) -> str:
    """Give what a tool said, or what it says went wrong."""
    if "error" in message:
        return str(message["error"]["message"])
    return str(message["result"]["content"][0]["text"])


@every_kind
async def test_what_was_set_is_there_for_the_sessions_next_call_and_no_others(make: Callable[[], object]) -> None:
    async with serving(make()) as client:
        one, other = await Conversation.open(client), await Conversation.open(client)
        assert await keep(one, "set", "basket", ["apple"]) == '{"basket":["apple"]}'
        assert await keep(one, "get", "basket") == '["apple"]'
        assert await keep(other, "get", "basket") == '"not set"'
        assert await keep(one, "delete", "basket") == "{}"
        assert await keep(one, "delete", "basket") == "{}"


@every_kind
async def test_it_survives_hibernation(make: Callable[[], object], autojump_clock: Any) -> None:
    app = HybridApp(make(), Settings.model_validate({"runtime": "trio", "sessions": {"idle_timeout": 10}}))
    async with AsgiClient(app) as client:
        conversation = await Conversation.open(client)
        await keep(conversation, "set", "n", 1)
        await anyio.sleep(60)
        assert len(app.registry) == 0
        assert await keep(conversation, "all") == '{"n":1}'


@every_kind
async def test_with_redis_it_is_the_same_on_every_worker_and_after_a_restart(
    make: Callable[[], object], shared_redis: RedisServer
) -> None:
    prefix = f"test-{secrets.token_hex(4)}:"
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(serving(make(), shared_redis, prefix)) for _ in range(2)]
        conversation = await Conversation.open(one)
        elsewhere = Conversation(other, conversation.session, conversation.version, conversation.path)
        await keep(conversation, "set", "a", 1)
        assert await keep(elsewhere, "set", "b", 2) in ('{"a":1,"b":2}', '{"b":2,"a":1}')
    async with serving(make(), shared_redis, prefix) as later:
        afterwards = Conversation(later, conversation.session, conversation.version, conversation.path)
        assert await keep(afterwards, "get", "b") == "2"


@every_kind
async def test_it_is_bounded_and_says_so(make: Callable[[], object]) -> None:
    async with serving(make()) as client:
        conversation = await Conversation.open(client)
        await keep(conversation, "set", "kept", 1)
        assert "at most 64 KiB" in await keep(conversation, "set", "large", "x" * 65536)
        assert await keep(conversation, "all") == '{"kept":1}'


@every_kind
@pytest.mark.parametrize("modern", [False, True], ids=["without a session", "2026-07-28"])
async def test_a_request_that_has_no_session_is_told_what_to_do_instead(
    make: Callable[[], object], modern: bool
) -> None:
    message = mcp.tool("keep", {"do": "all"})
    headers = mcp.headers()
    if modern:
        message = mcp.modern(message)
        headers = mcp.modern_headers(message)
    async with serving(make()) as client:
        answer = await client.request("POST", "/mcp", headers, mcp.body(message))
    assert "take an identifier as an argument of the tool" in text(answer.json())


async def test_a_value_that_is_no_json_is_refused_by_name() -> None:
    async def for_ever() -> float:
        return math.inf

    with pytest.raises(SessionStateError, match="the value of 'odd' is no JSON"):
        await SessionState(MemoryBackplane(), "session", for_ever).set("odd", object())


# A context that the application keeps for longer than the call


@asynccontextmanager
async def kept_context(redis: RedisServer | None) -> AsyncIterator[tuple[HybridApp, Conversation, Context]]:
    """Serve a session one of whose calls, over by now, has left its context behind; `n` is 1 in its state."""
    server, kept = mcpserver(), []
    assert isinstance(server, MCPServer)

    @server.tool()
    async def leave(ctx: Context) -> str:
        kept.append(ctx)
        return "left"

    backplane = RedisBackplane(redis.url, prefix=f"test-{secrets.token_hex(4)}:") if redis is not None else None
    app = HybridApp(server, Settings.model_validate({"sessions": {"keys": [KEY]}}), backplane=backplane)
    async with AsgiClient(app, patience=20) as client:
        conversation = await Conversation.open(client)
        await conversation.post(mcp.tool("leave"))
        await keep(conversation, "set", "n", 1)
        yield app, conversation, kept[0]


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def shared(request: pytest.FixtureRequest) -> RedisServer | None:
    return request.getfixturevalue("shared_redis") if request.param == "redis" else None


async def test_what_is_set_by_a_kept_context_while_the_session_hibernates_is_there_with_the_rest(
    shared: RedisServer | None,
) -> None:
    async with kept_context(shared) as (app, conversation, context):
        await app.registry.close()
        assert len(app.registry) == 0
        state = session_state(context)
        await state.set("m", 2)
        assert await state.all() == {"n": 1, "m": 2}
        assert len(app.registry) == 0, "it is not brought to life for that"
        assert await keep(conversation, "get", "n") == "1"
        assert await keep(conversation, "get", "m") == "2"


@pytest.mark.parametrize("was", ["live", "hibernating"])
async def test_a_kept_context_is_told_that_the_session_is_over_and_leaves_nothing_behind(
    shared: RedisServer | None, was: str
) -> None:
    async with kept_context(shared) as (app, conversation, context):
        (session,) = app.registry.sessions()
        if was == "hibernating":
            await app.registry.close()
        assert (await conversation.delete()).status == 204
        state = session_state(context)
        for step in (partial(state.set, "m", 2), partial(state.delete, "n"), state.all, partial(state.get, "n")):
            with pytest.raises(SessionStateError, match="the session is over"):
                await step()
        assert await app._backplane.load_state(session.hash) == {}


async def test_a_kept_context_is_told_that_the_session_has_become_too_old() -> None:
    async with running(server=mcpserver()) as setup:
        await Conversation.open(setup.client)
        (session,) = setup.registry.sessions()
        channel = session.connection.outbound
        assert isinstance(channel, StandaloneChannel)
        setup.clock.now += Settings().sessions.max_age - 1
        await channel.state.set("n", 1)
        setup.clock.now += 1
        with pytest.raises(SessionStateError, match="the session is over"):
            await channel.state.set("m", 2)


async def test_it_ends_with_the_session(shared_redis: RedisServer) -> None:
    prefix = f"test-{secrets.token_hex(4)}:"
    backplane = RedisBackplane(shared_redis.url, prefix=prefix)
    app = HybridApp(mcpserver(), Settings(), backplane=backplane)
    async with AsgiClient(app) as client:
        conversation = await Conversation.open(client)
        await keep(conversation, "set", "n", 1)
        (session,) = app.registry.sessions()
        assert await backplane.load_state(session.hash) == {"n": b"1"}
        await conversation.delete()
        assert await backplane.load_state(session.hash) == {}


@pytest.mark.redis
@pytest.mark.parametrize("how", ["killed", "stalled"])
async def test_while_redis_is_away_it_is_an_error_in_bounded_time_and_afterwards_it_is_there(how: str) -> None:
    with redis_server() as redis:
        backplane = RedisBackplane(redis.url)
        async with AsgiClient(HybridApp(mcpserver(), Settings(), backplane=backplane), patience=60) as client:
            conversation = await Conversation.open(client)
            await keep(conversation, "set", "n", 1)
            (redis.kill if how == "killed" else redis.stall)()
            for do in ("get", "set", "delete", "all"):
                with anyio.fail_after(5 * OPERATION):
                    assert "cannot be reached right now: try again" in await keep(conversation, do, "n", 2)
            (redis.start if how == "killed" else redis.resume)()
            with anyio.fail_after(60):
                while not backplane.available:  # noqa: ASYNC110 - nobody announces it
                    await anyio.sleep(0.05)
            # The first of them was on its way; it was to read only.
            assert await keep(conversation, "get", "n") == "1"
            await keep(conversation, "set", "n", 3)
            assert await keep(conversation, "get", "n") == "3"


# What the documentation says of subscriptions


def documented_server() -> object:
    """Make the server of the example in docs/sessions.md."""
    section = DOCUMENT.read_text().partition("## Subscriptions to resources")[2]
    code = section.partition("```python\n")[2].partition("```")[0]

    async def call_tool(ctx: ServerRequestContext, params: CallToolRequestParams) -> CallToolResult:
        await names["changed"](ctx, params.name)
        return CallToolResult(content=[])

    names: dict[str, Any] = {name: globals()[name] for name in ("Server", "session_state")}
    names |= {name: getattr(mcp_types, name) for name in ("EmptyResult", "SubscribeRequestParams")}
    names |= {"UnsubscribeRequestParams": mcp_types.UnsubscribeRequestParams}
    names |= {"ServerRequestContext": ServerRequestContext, "call_tool": call_tool}
    exec(code, names)  # the documentation's own words
    return names["server"]


async def test_a_subscription_kept_as_the_documentation_says_outlives_the_process(shared_redis: RedisServer) -> None:
    prefix, settings = f"test-{secrets.token_hex(4)}:", Settings.model_validate({"sessions": {"keys": [KEY]}})

    def worker() -> HybridApp:
        return HybridApp(documented_server(), settings, backplane=RedisBackplane(shared_redis.url, prefix=prefix))

    async def told(conversation: Conversation, uri: str) -> list[str]:
        answer = await conversation.post(mcp.tool(uri))
        streamed = answer.header("content-type") == "text/event-stream"
        messages = [event.json() for event in answer.events() if event.data] if streamed else []
        return [message["params"]["uri"] for message in messages if message.get("method") == UPDATED]

    async with AsgiClient(worker()) as client:
        conversation = await Conversation.open(client)
        for uri in ("price://tea", "price://milk"):
            await conversation.post(mcp.request("resources/subscribe", {"uri": uri}))
    async with AsgiClient(worker()) as client:  # after a restart
        conversation = Conversation(client, conversation.session, conversation.version, conversation.path)
        assert await told(conversation, "price://tea") == ["price://tea"]
        assert await told(conversation, "price://salt") == []
        await conversation.post(mcp.request("resources/unsubscribe", {"uri": "price://tea"}))
        assert await told(conversation, "price://tea") == []
        assert await told(conversation, "price://milk") == ["price://milk"]
