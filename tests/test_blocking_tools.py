"""Tools that block: a limit on their call is a limit, though nothing can stop their thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import trio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from harness import mcp
from harness.asgi import AsgiClient, at_address
from harness.hybrid import Setup, running
from harness.mcp import Conversation
from harness.routes import Ask, ask_alone, ask_in_session, ask_modern
from mcp_hybrid.counts import Count

PATIENCE = 20.0


class Blocking:
    """A server whose blocking tools hang until the test lets them go. Whatever happens, they end."""

    def __init__(self) -> None:
        self.server: MCPServer[None] = MCPServer("blocking")
        self.go = threading.Event()
        self.started = threading.Semaphore(0)
        self.unwound: list[str] = []

        @self.server.tool()
        def hang() -> str:
            self.started.release()
            self.go.wait(PATIENCE)
            return "too late"

        @self.server.tool()
        async def hang_aside() -> str:
            try:
                await anyio.to_thread.run_sync(hang)
            finally:
                self.unwound.append("hang_aside")
            return "too late"

        @self.server.tool()
        def quick() -> str:
            return "quick"

        @self.server.tool()
        async def on_the_loop() -> str:
            return trio.lowlevel.current_task().name

        @self.server.tool()
        def report(ctx: Context) -> str:
            anyio.from_thread.run(ctx.report_progress, 1)
            return "reported"

    async def has_started(self, calls: int = 1) -> None:
        for _ in range(calls):
            while not self.started.acquire(blocking=False):  # noqa: ASYNC110 - a thread does it
                await anyio.sleep(0.005)


@contextmanager
def blocking() -> Iterator[Blocking]:
    program = Blocking()
    try:
        yield program
    finally:
        program.go.set()


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not holds():  # noqa: ASYNC110 - a thread does it
            await anyio.sleep(0.005)


def error_of(answer: Any) -> Any:
    message = answer.json() if answer.header("content-type") == "application/json" else answer.events()[-1].json()
    return message["error"]


@pytest.mark.parametrize("ask", [ask_alone, ask_in_session, ask_modern])
@pytest.mark.parametrize("tool", ["hang", "hang_aside"])
async def test_the_limit_answers_a_blocking_call_at_once(tool: str, ask: Ask) -> None:
    with blocking() as program:
        async with running(server=program.server, request_timeout=0.3) as setup:
            began = trio.current_time()
            answer = await ask(setup, mcp.tool(tool))
            assert trio.current_time() - began < PATIENCE / 2
            assert error_of(answer)["code"] == -32603
            counts = setup.app.counts
            assert (counts[Count.CALLS_ABANDONED], counts[Count.ABANDONED_THREADS_NOW]) == (1, 1)
            assert program.unwound == [], "nothing is unwound while its thread runs"
            program.go.set()
            await until(lambda: counts[Count.ABANDONED_THREADS_NOW] == 0)
            await until(lambda: setup.app.abandoned_calls == 0)


async def cancel(_: Setup, conversation: Conversation) -> None:
    await conversation.post(mcp.cancelled(7))


async def end_the_session(_: Setup, conversation: Conversation) -> None:
    assert (await conversation.delete()).status == 204


async def drain(setup: Setup, _: Conversation) -> None:
    with trio.fail_after(PATIENCE / 2):
        await setup.app.drain(0.1)


@pytest.mark.parametrize(("interrupt", "code"), [(cancel, -32800), (end_the_session, -32000), (drain, -32000)])
async def test_an_interrupted_blocking_call_is_answered_at_once(
    interrupt: Callable[[Setup, Conversation], Awaitable[None]], code: int
) -> None:
    with blocking() as program:
        async with running(server=program.server) as setup:
            conversation = await Conversation.open(setup.client)
            async with conversation.stream(mcp.tool("hang", id=7)) as exchange:
                await program.has_started()
                await interrupt(setup, conversation)
                assert (await conversation.answers(exchange))["error"]["code"] == code


async def test_a_call_that_gets_no_thread_in_time_is_told_that_all_are_busy() -> None:
    with blocking() as program:
        async with running(server=program.server, request_timeout=0.5, limits={"tool_threads": 2}) as setup:
            async with trio.open_nursery() as nursery:
                for number in range(2):
                    nursery.start_soon(ask_alone, setup, mcp.tool("hang", id=number))
                await program.has_started(2)
                answer = await ask_alone(setup, mcp.tool("quick"))
                assert error_of(answer)["code"] == -32000
                assert "No thread" in error_of(answer)["message"]
            program.go.set()
            await until(lambda: setup.app.abandoned_calls == 0)
            answer = await ask_alone(setup, mcp.tool("quick"))
            assert answer.json()["result"]["structuredContent"] == {"result": "quick"}


@pytest.mark.parametrize("ask", [ask_alone, ask_in_session, ask_modern])
async def test_one_client_that_hangs_leaves_threads_to_others(ask: Ask) -> None:
    with blocking() as program:
        async with running(server=program.server, limits={"tool_threads": 8}) as setup:
            async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
                other = Setup(AsgiClient(at_address(setup.app, "192.0.2.1"), lifespan=False), setup.app, setup.example)
                await stack.enter_async_context(other.client)
                for number in range(20):
                    nursery.start_soon(ask, setup, mcp.tool("hang", id=number))
                await program.has_started(6)
                with trio.fail_after(PATIENCE / 2):
                    answer = await ask(other, mcp.tool("quick"))
                assert answer.json()["result"]["structuredContent"] == {"result": "quick"}
                assert not program.started.acquire(blocking=False), "two of eight are for others"
                program.go.set()
            assert program.unwound == []


async def test_a_program_that_changes_its_scope_loses_no_thread() -> None:
    server: MCPServer[None] = MCPServer("changing")

    @server.tool()
    def change(ctx: Context) -> str:
        request: Any = ctx.request_context.request
        request.scope["client"] = ("192.0.2.7", 1)
        return "changed"

    async with running(server=server, request_timeout=5, limits={"tool_threads": 2}) as setup:
        for number in range(5):
            answer = await ask_alone(setup, mcp.tool("change", id=number))
            assert answer.json()["result"]["structuredContent"] == {"result": "changed"}


async def test_hanging_tools_leave_the_servers_own_threads_alone() -> None:
    own = trio.to_thread.current_default_thread_limiter()
    with blocking() as program:
        async with running(server=program.server, request_timeout=0.3, limits={"tool_threads": 2}) as setup:
            limiter = trio.to_thread.current_default_thread_limiter()
            assert limiter.total_tokens == own.total_tokens
            for number in range(2):
                await ask_alone(setup, mcp.tool("hang", id=number))
            assert limiter.borrowed_tokens == 0
            assert await anyio.to_thread.run_sync(time.monotonic) > 0
    assert trio.to_thread.current_default_thread_limiter() is own, "what the host has is put back"


async def test_a_tool_that_blocks_nothing_has_no_task_of_its_own() -> None:
    with blocking() as program:
        async with running(server=program.server) as setup:
            conversation = await Conversation.open(setup.client)
            names = [
                (await conversation.post(mcp.tool("on_the_loop", id=n))).json()["result"]["structuredContent"]["result"]
                for n in range(3)
            ]
    of_its_own = ["HandlerTask" in name for name in names]
    assert of_its_own == [True, False, False], "of the first call nobody could know it"


async def test_a_blocking_tool_reports_progress_from_its_thread() -> None:
    with blocking() as program:
        async with running(server=program.server) as setup:
            conversation = await Conversation.open(setup.client)
            for number in range(2):
                answer = await conversation.post(mcp.tool("report", id=number, token=number))
                first = next(event.json() for event in answer.events() if event.data)
                assert first["method"] == "notifications/progress"


def test_the_limit_answers_a_blocking_call_at_once_on_asyncio() -> None:
    async def scenario(program: Blocking) -> None:
        async with running(server=program.server, request_timeout=0.3) as setup:
            assert error_of(await ask_in_session(setup, mcp.tool("hang")))["code"] == -32603
            assert setup.app.abandoned_calls == 1
            program.go.set()
            await until(lambda: setup.app.abandoned_calls == 0)

    with blocking() as program:
        anyio.run(scenario, program, backend="asyncio")
