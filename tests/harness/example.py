"""A server with one tool for each thing that can happen during a call, for in-process tests.

Every call is recorded, and calls that wait are let go by the test, so that no test needs to sleep.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import anyio
import anyio.abc
from mcp.server import MCPServer
from mcp.server.elicitation import AcceptedElicitation
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPDeprecationWarning
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ListRootsRequest,
    ListRootsResult,
    SamplingMessage,
    TextContent,
)
from pydantic import BaseModel

SECRET = "hunter2-in-an-exception"
"""Stands in the text of the exception that `crash` raises."""


_TOOLS: Final[dict[str, Tool]] = {}
"""The tools of the first `Example`, by name."""


class Person(BaseModel):
    name: str


class Example:
    """An `MCPServer` as `server`, and what its calls did: `started`, `finished`, `cancelled` hold tool names."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.finished: list[str] = []
        self.cancelled: list[str] = []
        self.lifespans: list[str] = []
        """"enter" and "exit", as often as the server's own lifespan ran."""
        self._gates: dict[str, anyio.Event] = {}
        self._changed = anyio.Event()
        self._tools: list[Tool] = []
        for add_tools in (self._add_plain, self._add_progress, self._add_questions, self._add_notices):
            add_tools()
        self.server = MCPServer("example", version="1", lifespan=self._lifespan, tools=self._tools)

    def release(self, name: str = "wait") -> None:
        """Let go the calls that wait under this name, and all that come later."""
        self._gate(name).set()

    async def until_started(self, tool: str, times: int = 1) -> None:
        """Wait until the tool was called that often."""
        while self.started.count(tool) < times:
            await self._changed.wait()

    async def until_over(self, tool: str, times: int = 1) -> None:
        """Wait until that many calls of the tool have finished or were cancelled."""
        while self.finished.count(tool) + self.cancelled.count(tool) < times:
            await self._changed.wait()

    @asynccontextmanager
    async def _lifespan(self, _server: MCPServer[None]) -> AsyncIterator[None]:
        async with anyio.create_task_group() as self._tasks:
            self.lifespans.append("enter")
            yield
            self.lifespans.append("exit")
            self._tasks.cancel_scope.cancel()

    def _gate(self, name: str) -> anyio.Event:
        return self._gates.setdefault(name, anyio.Event())

    @contextmanager
    def _recorded(self, tool: str) -> Iterator[None]:
        self._note(self.started, tool)
        try:
            yield
        except anyio.get_cancelled_exc_class():
            self._note(self.cancelled, tool)
            raise
        else:
            self._note(self.finished, tool)

    def _note(self, where: list[str], tool: str) -> None:
        where.append(tool)
        self._changed.set()
        self._changed = anyio.Event()

    def _tool(self, function: Callable[..., Any]) -> None:
        """Add a tool. What its signature says is worked out once in a run, as it takes ten times as long as a test."""
        known = _TOOLS.get(function.__name__)
        if known is None:
            known = _TOOLS[function.__name__] = Tool.from_function(function)
        self._tools.append(known.model_copy(update={"fn": function}))

    def _add_plain(self) -> None:
        @self._tool
        async def add(a: int, b: int) -> int:
            with self._recorded("add"):
                return a + b

        @self._tool
        async def wait(name: str = "wait", seconds: float = 3600) -> str:
            """Wait for `Example.release(name)`, at most so long."""
            with self._recorded("wait"):
                with anyio.move_on_after(seconds):
                    await self._gate(name).wait()
                return "let go"

        @self._tool
        async def fail() -> str:
            with self._recorded("fail"):
                raise ToolError("it failed, as it should")

        @self._tool
        async def crash() -> str:
            with self._recorded("crash"):
                raise RuntimeError(SECRET)

    def _add_progress(self) -> None:
        @self._tool
        async def count(ctx: Context, steps: int = 3, delay: float = 0.1) -> str:
            with self._recorded("count"):
                for step in range(1, steps + 1):
                    await anyio.sleep(delay)
                    await ctx.report_progress(step, steps, f"step {step}")
                return f"counted to {steps}"

        @self._tool
        async def burst(ctx: Context, steps: int = 1000) -> str:
            """Report as fast as it goes."""
            with self._recorded("burst"):
                for step in range(1, steps + 1):
                    await ctx.report_progress(step, steps)
                return f"burst of {steps}"

        @self._tool
        async def backwards(ctx: Context) -> str:
            """Report values that do not increase, which must not reach the client."""
            with self._recorded("backwards"):
                for value in (3, 2, 1, 4):
                    await ctx.report_progress(value, 4)
                return "went backwards"

        @self._tool
        async def late_progress(ctx: Context) -> str:
            """Leave a task behind that reports once the test says `release("late")`; it is recorded as "late"."""
            with self._recorded("late_progress"):
                self._tasks.start_soon(self._report_late, ctx)
                await ctx.report_progress(1)
                return "more to come"

        @self._tool
        async def close_stream(ctx: Context, delay: float = 0) -> str:
            """Report, close the answer's stream so that the client must resume, report and finish."""
            with self._recorded("close_stream"):
                await ctx.report_progress(1, 2)
                await ctx.close_sse_stream()
                await anyio.sleep(delay)
                await ctx.report_progress(2, 2)
                return "finished without a stream"

    async def _report_late(self, ctx: Context) -> None:
        with self._recorded("late"):
            await self._gate("late").wait()
            await ctx.report_progress(2)

    def _add_questions(self) -> None:
        @self._tool
        async def ask(ctx: Context) -> str:
            with self._recorded("ask"):
                answer = await ctx.elicit("Who is there?", Person)
                return f"hello {answer.data.name}" if isinstance(answer, AcceptedElicitation) else answer.action

        @self._tool
        async def sample(ctx: Context) -> str:
            with self._recorded("sample"):
                question = SamplingMessage(role="user", content=TextContent(type="text", text="Say something"))
                params = CreateMessageRequestParams(messages=[question], max_tokens=10)
                related = ServerMessageMetadata(related_request_id=ctx.request_id)
                answer = await ctx.session.send_request(
                    CreateMessageRequest(params=params), CreateMessageResult, metadata=related
                )
                return answer.content.text if isinstance(answer.content, TextContent) else answer.content.type

        @self._tool
        async def roots(ctx: Context) -> list[str]:
            with self._recorded("roots"):
                related = ServerMessageMetadata(related_request_id=ctx.request_id)
                answer = await ctx.session.send_request(ListRootsRequest(), ListRootsResult, metadata=related)
                return [str(root.uri) for root in answer.roots]

    def _add_notices(self) -> None:
        @self._tool
        async def log(ctx: Context, n: int = 1) -> str:
            """Send log messages, numbered from 1, on this call's own answer."""
            with self._recorded("log"):
                for number in range(1, n + 1):
                    with warnings.catch_warnings():  # logging is deprecated from 2026-07-28 on
                        warnings.simplefilter("ignore", MCPDeprecationWarning)
                        sending = ctx.session.send_log_message(
                            "info", f"line {number}", related_request_id=ctx.request_id
                        )
                    await sending
                return f"{n} lines"

        @self._tool
        async def notify_changed(ctx: Context) -> str:
            """Tell the client, on its session's standalone stream or where it listens, that the tools changed."""
            with self._recorded("notify_changed"):
                await ctx.session.send_tool_list_changed()
                await ctx.notify_tools_changed()
                return "told"
