"""An `MCPServer`, to be served by name."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
from mcp.server import MCPServer
from mcp.server.elicitation import AcceptedElicitation
from mcp.server.mcpserver import Context
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    SamplingMessage,
    TextContent,
)
from pydantic import BaseModel

server = MCPServer("with-mcpserver", version="1")

cancelled: list[str] = []
"""The tools whose calls were cancelled; also appended, a line each, to the file that $RECORD_FILE names."""


class Person(BaseModel):
    name: str


@server.tool()
async def add(a: int, b: int) -> int:
    return a + b


@server.tool()
async def count(ctx: Context, steps: int = 3, delay: float = 0.1) -> str:
    for step in range(1, steps + 1):
        await anyio.sleep(delay)
        await ctx.report_progress(step, steps, f"step {step}")
    return f"counted to {steps}"


@server.tool()
async def ask(ctx: Context) -> str:
    answer = await ctx.elicit("Who is there?", Person)
    return f"hello {answer.data.name}" if isinstance(answer, AcceptedElicitation) else answer.action


@server.tool()
async def sample(ctx: Context) -> str:
    question = SamplingMessage(role="user", content=TextContent(type="text", text="Say something"))
    request = CreateMessageRequest(params=CreateMessageRequestParams(messages=[question], max_tokens=10))
    related = ServerMessageMetadata(related_request_id=ctx.request_id)
    answer = await ctx.session.send_request(request, CreateMessageResult, metadata=related)
    return answer.content.text if isinstance(answer.content, TextContent) else answer.content.type


@server.tool()
async def wait(seconds: float) -> str:
    try:
        await anyio.sleep(seconds)
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
