"""The built-in server: what `mcp-hybrid serve` runs when it is given no target, and an example of how to write one.

Every handler is `async` and waits with `anyio`, so the same server runs on Trio and on asyncio. A plain `def` works
too, but the SDK runs it in a worker thread, which costs more than the work done here.
"""

from __future__ import annotations

import warnings
from typing import Annotated, get_args
from weakref import WeakSet

import anyio
from mcp.server import MCPServer, ServerRequestContext
from mcp.server.connection import Connection
from mcp.server.elicitation import AcceptedElicitation, ElicitationResult
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp_types import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    EmptyResult,
    LoggingLevel,
    SetLevelRequestParams,
    SubscribeRequestParams,
    UnsubscribeRequestParams,
)
from pydantic import BaseModel, Field

COUNTER_URI = "demo://counter"

Seconds = Annotated[float, Field(ge=0, le=60)]

server = MCPServer(
    "mcp-hybrid-demo",
    title="mcp-hybrid demo",
    instructions="Small tools that show progress, elicitation, logging and resource subscriptions.",
    version="1",
)


# Tools: an answer, progress, and time that passes.


@server.tool()
async def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


@server.tool()
async def countdown(ctx: Context, steps: Annotated[int, Field(ge=1, le=1000)] = 5, delay: Seconds = 0.5) -> str:
    """Count down, reporting progress after each step; `delay` is in seconds."""
    for step in range(1, steps + 1):
        await anyio.sleep(delay)
        await ctx.report_progress(step, steps, f"{steps - step} to go")
    return "lift-off"


@server.tool()
async def slow_echo(text: str, seconds: Seconds = 1) -> str:
    """Give the text back after a while."""
    await anyio.sleep(seconds)
    return text


# A tool that asks. The resolver runs before the tool: up to 2025-11-25 the SDK sends the question while the call
# waits; from 2026-07-28 the call is answered with the question, and the client repeats it with the answer.


class Name(BaseModel):
    """The form that `ask_name` puts to the person at the client."""

    name: str = Field(description="What should I call you?", min_length=1, max_length=100)


async def question() -> Elicit[Name]:
    """Ask for the name."""
    return Elicit("Who is there?", Name)


@server.tool()
async def ask_name(answer: Annotated[ElicitationResult[Name], Resolve(question)]) -> str:
    """Ask the person at the client for a name, and greet them."""
    if isinstance(answer, AcceptedElicitation):
        return f"Hello, {answer.data.name}."
    return "Hello, whoever you are." if answer.action == "decline" else "You left without a word."


# A resource that changes. Up to 2025-11-25 a client subscribes with `resources/subscribe`, which MCPServer leaves to
# the application, and is told on its session's own stream. From 2026-07-28 it listens, which MCPServer does itself.


class Counter:
    """A number, and the connections whose clients want to know when it changes.

    The connections are held weakly: a session that ends takes its subscription with it.
    """

    def __init__(self) -> None:
        self.value = 0
        self.subscribers: WeakSet[Connection] = WeakSet()


counter = Counter()


@server.resource(COUNTER_URI, mime_type="text/plain")
async def current_count() -> str:
    """How often `bump` was called."""
    return str(counter.value)


@server.tool()
async def bump(ctx: Context) -> int:
    """Raise the counter by one, and tell everyone who subscribed to it."""
    counter.value += 1
    value = counter.value
    for connection in list(counter.subscribers):
        await connection.send_resource_updated(COUNTER_URI)  # dropped, not raised, if that client has gone
    await ctx.notify_resource_updated(COUNTER_URI)
    return value


async def subscribe(ctx: ServerRequestContext, params: SubscribeRequestParams) -> EmptyResult:
    """Remember the connection; a client that cannot be told is refused rather than left waiting."""
    connection = _connection(ctx.session)
    if str(params.uri) != COUNTER_URI:
        raise MCPError(INVALID_PARAMS, f"Only {COUNTER_URI} can be subscribed to")
    if not connection.has_standalone_channel:
        raise MCPError(INVALID_REQUEST, "A subscription needs a session: send initialize, then echo mcp-session-id")
    counter.subscribers.add(connection)
    return EmptyResult()


async def unsubscribe(ctx: ServerRequestContext, _params: UnsubscribeRequestParams) -> EmptyResult:
    """Forget the connection; forgetting an unknown one is no error."""
    counter.subscribers.discard(_connection(ctx.session))
    return EmptyResult()


# Log messages to the client. The level asked for lasts as long as the connection; from 2026-07-28 each request
# carries its own level, which the SDK applies.

LEVELS: tuple[LoggingLevel, ...] = get_args(LoggingLevel)


@server.tool()
async def log(ctx: Context, text: str, level: LoggingLevel = "info") -> str:
    """Send the text to the client as a log message, if the client asked for that level."""
    wanted = _connection(ctx.session).state.get("log_level", "debug")
    if LEVELS.index(level) < LEVELS.index(wanted):
        return "held back: below the level asked for"
    with warnings.catch_warnings():
        # The SDK marks logging as deprecated from 2026-07-28 on; older clients still use it.
        warnings.simplefilter("ignore", MCPDeprecationWarning)
        sending = ctx.session.send_log_message(level, text, logger="demo", related_request_id=ctx.request_id)
    await sending
    return "logged"


async def set_level(ctx: ServerRequestContext, params: SetLevelRequestParams) -> EmptyResult:
    """Remember from which level on this client wants log messages."""
    _connection(ctx.session).state["log_level"] = params.level
    return EmptyResult()


def _connection(session: ServerSession) -> Connection:
    """Find the connection, which outlives the request; a `ServerSession` is made anew for each one."""
    return session._connection  # noqa: SLF001  # the SDK has no public way from the one to the other


_handlers = server._lowlevel_server  # noqa: SLF001  # MCPServer has no public way to add these three
_handlers.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)
_handlers.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, unsubscribe)
_handlers.add_request_handler("logging/setLevel", SetLevelRequestParams, set_level)


# A prompt.


@server.prompt()
async def greeting(name: str, style: str = "friendly") -> str:
    """Ask the model to greet someone."""
    return f"Write a {style} greeting, one sentence long, for {name}."
