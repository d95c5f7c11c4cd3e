"""A low-level `Server`, to be served by name."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
from mcp.server import Server, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ListToolsResult,
    PaginatedRequestParams,
    SamplingMessage,
    TextContent,
    Tool,
)

cancelled: list[str] = []
"""The tools whose calls were cancelled; also appended, a line each, to the file that $RECORD_FILE names."""

Arguments = dict[str, Any]
NUMBER = {"type": "number"}
INTEGER = {"type": "integer"}


async def add(_ctx: ServerRequestContext, arguments: Arguments) -> str:
    return str(arguments["a"] + arguments["b"])


async def count(ctx: ServerRequestContext, arguments: Arguments) -> str:
    steps = arguments.get("steps", 3)
    for step in range(1, steps + 1):
        await anyio.sleep(arguments.get("delay", 0.1))
        await ctx.session.report_progress(step, steps, f"step {step}")
    return f"counted to {steps}"


async def ask(ctx: ServerRequestContext, _arguments: Arguments) -> str:
    form = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    answer = await ctx.session.elicit_form("Who is there?", form, related_request_id=ctx.request_id)
    return f"hello {answer.content['name']}" if answer.content else answer.action


async def sample(ctx: ServerRequestContext, _arguments: Arguments) -> str:
    question = SamplingMessage(role="user", content=TextContent(type="text", text="Say something"))
    request = CreateMessageRequest(params=CreateMessageRequestParams(messages=[question], max_tokens=10))
    related = ServerMessageMetadata(related_request_id=ctx.request_id)
    answer = await ctx.session.send_request(request, CreateMessageResult, metadata=related)
    return answer.content.text if isinstance(answer.content, TextContent) else answer.content.type


async def wait(_ctx: ServerRequestContext, arguments: Arguments) -> str:
    try:
        await anyio.sleep(arguments["seconds"])
    except anyio.get_cancelled_exc_class():
        record("wait")
        raise
    return "waited"


def record(tool: str) -> None:
    """Note a cancellation where a test can see it."""
    cancelled.append(tool)
    if name := os.environ.get("RECORD_FILE"):
        with Path(name).open("a") as file:
            file.write(f"{tool}\n")


TOOLS: dict[str, tuple[Callable[[ServerRequestContext, Arguments], Awaitable[str]], Arguments, list[str]]] = {
    "add": (add, {"a": INTEGER, "b": INTEGER}, ["a", "b"]),
    "count": (count, {"steps": INTEGER, "delay": NUMBER}, []),
    "ask": (ask, {}, []),
    "sample": (sample, {}, []),
    "wait": (wait, {"seconds": NUMBER}, ["seconds"]),
}


async def list_tools(_ctx: ServerRequestContext, _params: PaginatedRequestParams | None) -> ListToolsResult:
    return ListToolsResult(
        tools=[
            Tool(name=name, input_schema={"type": "object", "properties": properties, "required": required})
            for name, (_, properties, required) in TOOLS.items()
        ]
    )


async def call_tool(ctx: ServerRequestContext, params: CallToolRequestParams) -> CallToolResult:
    if params.name not in TOOLS:
        raise MCPError(INVALID_PARAMS, f"Unknown tool: {params.name}")
    run, _, _ = TOOLS[params.name]
    text = await run(ctx, params.arguments or {})
    return CallToolResult(content=[TextContent(type="text", text=text)])


server: Server[dict[str, Any]] = Server("with-lowlevel", version="1", on_list_tools=list_tools, on_call_tool=call_tool)
