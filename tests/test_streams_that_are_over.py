"""Coming back for a call's stream when nothing of it is left.

The TypeScript SDK 1 takes a stream that ended with an error for one that was cut, and comes back with the last event
id. An empty stream would have it come back again, this time without an id: for a second standalone stream, which ends
the first, for which it comes back as well. 405 is the one refusal that it takes for an answer.
"""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS

from harness.asgi import AsgiClient
from harness.hybrid import running
from harness.mcp import Conversation, tool
from harness.redis import RedisServer
from mcp_hybrid import HybridApp, Settings
from mcp_hybrid.backplane.redis import RedisBackplane

server = MCPServer("over")


@server.tool()
async def fail(ctx: Context) -> str:
    await ctx.report_progress(1, 2)
    raise MCPError(INVALID_PARAMS, "no such luck")


async def test_a_stream_of_which_nothing_is_left_is_405(autojump_clock: object) -> None:
    async with running(server=server) as setup:
        talk = await Conversation.open(setup.client)
        events = (await talk.post(tool("fail", token=1))).events()
        assert events[-1].json()["error"]["message"] == "no such luck"
        async with talk.get(events[-1].id) as stream:
            answer = await stream.answer()
        assert (answer.status, answer.header("allow")) == (405, "POST")


async def test_with_a_slow_redis_it_is_405_as_well(shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        backplane = RedisBackplane(shared_redis.url, prefix=f"test-{secrets.token_hex(4)}:")
        client = await stack.enter_async_context(AsgiClient(HybridApp(server, Settings(), backplane=backplane)))
        talk = await Conversation.open(client)
        events = (await talk.post(tool("fail", token=1))).events()
        run = backplane._connection.run

        async def slowly(*command: Any, **options: Any) -> Any:
            await anyio.sleep(0.2)
            return await run(*command, **options)

        monkeypatch.setattr(backplane._connection, "run", slowly)
        async with talk.get(events[-1].id) as stream:
            assert (await stream.answer()).status == 405


async def test_a_stream_of_which_something_is_left_is_replayed(autojump_clock: object) -> None:
    async with running(server=server) as setup:
        talk = await Conversation.open(setup.client)
        events = (await talk.post(tool("fail", token=1))).events()
        async with talk.get(events[-2].id) as stream:
            answer = await stream.answer()
        assert answer.status == 200
        (last,) = [event for event in answer.events() if event.data]
        assert (last.id, last.data) == (events[-1].id, events[-1].data)
