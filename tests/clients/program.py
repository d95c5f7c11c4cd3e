"""What the client matrix is run against: the everything server, with calls that can be held up and with updates.

A call that reports progress goes on only when it is let go, so that whoever sees a value knows that the tool is still
running. Calls have names and clients have resources of their own, so that those who share the server do not meet.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from weakref import WeakSet

import anyio
from mcp.server import ServerRequestContext
from mcp.server.connection import Connection
from mcp.server.mcpserver import Context
from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_REQUEST, EmptyResult, SubscribeRequestParams

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "conformance"))

from everything import server

__all__ = ["server"]

PATIENCE = 15.0
"""Seconds that a step waits to be let go. On a route without progress nobody could know that it waits."""

gates: defaultdict[str, anyio.Event] = defaultdict(anyio.Event)
subscribers: defaultdict[str, WeakSet[Connection]] = defaultdict(WeakSet)
"""By resource. In the memory of this process, as most programs have it."""


@server.tool()
async def steps(ctx: Context, name: str, count: int) -> str:
    """Report each step, and wait after it at the gate `name/step`."""
    for step in range(1, count + 1):
        await ctx.report_progress(step, count, f"step {step}")
        with anyio.move_on_after(PATIENCE) as patience:
            await gates[f"{name}/{step}"].wait()
        if patience.cancelled_caught:
            return f"nobody saw step {step}"
    return f"{count} steps"


@server.tool()
async def let_go(gate: str) -> str:
    """Open a gate, for good."""
    gates[gate].set()
    return "open"


@server.tool()
async def touch(ctx: Context, uri: str) -> int:
    """Tell everyone who subscribed to a resource that it changed, and say how many sessions those are."""
    told = list(subscribers[uri])
    for connection in told:
        await connection.send_resource_updated(uri)
    await ctx.notify_resource_updated(uri)
    return len(told)


async def subscribe(ctx: ServerRequestContext, params: SubscribeRequestParams) -> EmptyResult:
    """Remember the connection; a client that cannot be told is refused rather than left waiting."""
    connection = connection_of(ctx.session)
    if not connection.has_standalone_channel:
        raise MCPError(INVALID_REQUEST, "A subscription needs a session")
    subscribers[str(params.uri)].add(connection)
    return EmptyResult()


def connection_of(session: ServerSession) -> Connection:
    """Find the connection, which outlives the request; a `ServerSession` is made anew for each one."""
    return session._connection  # the SDK has no public way from the one to the other


server._lowlevel_server.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)
