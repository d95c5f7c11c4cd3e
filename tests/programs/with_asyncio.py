"""An `MCPServer` that is an asyncio program, to be served by name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

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

lock = asyncio.Lock()
"""Made at import, where no event loop runs."""

cancelled: list[str] = []
"""The tools whose calls were cancelled; also appended, a line each, to the file that $RECORD_FILE names."""


class Person(BaseModel):
    name: str


def record(what: str) -> None:
    """Note something where a test can see it."""
    cancelled.append(what)
    if name := os.environ.get("RECORD_FILE"):
        with Path(name).open("a") as file:
            file.write(f"{what}\n")


@asynccontextmanager
async def lifespan(_: MCPServer[asyncio.Queue[str]]) -> AsyncIterator[asyncio.Queue[str]]:
    queue: asyncio.Queue[str] = asyncio.Queue()
    worker = asyncio.create_task(_work(queue))
    entered = asyncio.current_task()
    try:
        yield queue
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        assert asyncio.current_task() is entered
        await asyncio.sleep(0.01)
        record("lifespan")


async def _work(queue: asyncio.Queue[str]) -> None:
    while True:
        await queue.get()


server: MCPServer[asyncio.Queue[str]] = MCPServer("with-asyncio", version="1", lifespan=lifespan)


@server.tool()
async def add(a: int, b: int) -> int:
    return sum(await asyncio.gather(_later(a), _later(b)))


async def _later(value: int) -> int:
    async with lock:  # which is contended
        await asyncio.sleep(0)
        return value


@server.tool()
async def count(ctx: Context, steps: int = 3, delay: float = 0.1) -> str:
    for step in range(1, steps + 1):
        await asyncio.wait_for(asyncio.sleep(delay), 60)
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
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        record("wait")
        raise
    return "waited"


@server.tool()
async def block(seconds: float) -> str:
    """Block the event loop."""
    import time  # noqa: PLC0415 - what nobody should do

    time.sleep(seconds)  # noqa: ASYNC251 - this is what the tool is for
    return "blocked"


@server.tool()
async def spin(seconds: float) -> str:
    """Keep the interpreter busy, and never yield."""
    import time  # noqa: PLC0415 - as above

    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return "spun"


@server.tool()
async def linger(seconds: float) -> str:
    """Wait for a thread that asyncio leaves behind when the call is cancelled."""
    import time  # noqa: PLC0415 - as above

    await asyncio.to_thread(time.sleep, seconds)
    return "lingered"


@server.tool()
async def background() -> str:
    """Start a task that outlives the call."""
    asyncio.get_running_loop().create_task(asyncio.sleep(3600), name="left")
    return await asyncio.to_thread(lambda: "started")
