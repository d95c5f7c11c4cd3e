"""A server whose every message carries the number of the conversation it belongs to, and its own within that.

A test that runs many conversations at once can count what was lost, doubled or delivered to somebody else.
"""

from __future__ import annotations

import warnings

import anyio
from mcp.server import MCPServer, ServerRequestContext
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPDeprecationWarning
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    EmptyResult,
    SamplingMessage,
    SubscribeRequestParams,
    TextContent,
)
from pydantic import BaseModel

from mcp_hybrid import session_state
from mcp_hybrid.backplane.redis import connection, inbox, link

STEPS = 3

# A thousand conversations on a machine that does much else must not have Redis, or a worker, taken for dead.
for name, seconds, modules in (("OPERATION", 60.0, (connection, inbox)), ("LEASE", 120.0, (link, inbox))):
    for module in modules:
        assert hasattr(module, name)
        setattr(module, name, seconds)

server = MCPServer("numbered", version="1")


class Number(BaseModel):
    number: str


async def log(ctx: Context, text: str) -> None:
    """Send what nothing newer may replace, and by that keeps the progress before it, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MCPDeprecationWarning)  # logging is deprecated from 2026-07-28 on
        sending = ctx.session.send_log_message("info", text, related_request_id=ctx.request_id)
    await sending


@server.tool()
async def converse(ctx: Context, n: str) -> str:
    """Report progress, log, elicit and sample; the answers are in the result."""
    for step in range(1, STEPS + 1):
        await ctx.report_progress(step, STEPS, f"{n}/progress/{step}")
        await log(ctx, f"{n}/log/{step}")
    elicited = await ctx.elicit(f"{n}/elicit", Number)
    number = elicited.data.number if elicited.action == "accept" else elicited.action
    message = SamplingMessage(role="user", content=TextContent(type="text", text=f"{n}/sample"))
    request = CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=10))
    related = ServerMessageMetadata(related_request_id=ctx.request_id)
    sampled = await ctx.session.send_request(request, CreateMessageResult, metadata=related)
    assert isinstance(sampled.content, TextContent)
    return f"{n}/result {number} {sampled.content.text}"


@server.tool()
async def poll(ctx: Context, n: str) -> str:
    """End the answer's stream in the middle; the client comes back for the rest."""
    await log(ctx, f"{n}/before")
    await ctx.close_sse_stream()
    await log(ctx, f"{n}/after")
    return f"{n}/polled"


@server.tool()
async def hold(ctx: Context, n: str) -> str:
    """Report once and wait to be cancelled."""
    await ctx.report_progress(1, 1, f"{n}/held")
    await anyio.sleep_forever()
    return n


@server.tool()
async def change(ctx: Context, n: str) -> str:
    """Tell the client that the resource it subscribed to has changed, if this is the one."""
    uri = f"number://{n}"
    if uri == await session_state(ctx).get("subscribed"):
        await ctx.session.send_resource_updated(uri)
        return f"{n}/told"
    return f"{n}/not subscribed"


async def subscribe(ctx: ServerRequestContext, params: SubscribeRequestParams) -> EmptyResult:
    await session_state(ctx).set("subscribed", params.uri)
    return EmptyResult()


server._lowlevel_server.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)
