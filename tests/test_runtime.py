"""Programs of asyncio's, on an event loop in a thread of their own: what crosses between them and the server.

All of it runs in real time: a clock that jumps would not wait for the other thread.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import trio
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.elicitation import AcceptedElicitation
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import Context
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ResourceUpdatedNotification,
    ResourceUpdatedNotificationParams,
    SamplingMessage,
    TextContent,
)
from pydantic import BaseModel
from structlog.testing import capture_logs

from harness import mcp
from harness.asgi import AsgiClient
from harness.hybrid import KEY, Setup, until_known
from harness.hybrid import running as running_on
from harness.mcp import Conversation
from harness.redis import RedisServer
from harness.routes import Ask, ask_alone, ask_in_session, ask_modern
from mcp_hybrid import ConfigurationError, HybridApp, Settings, pin_session, session_state
from mcp_hybrid.backplane import MemoryBackplane
from mcp_hybrid.backplane.redis import RedisBackplane
from mcp_hybrid.counts import Count
from mcp_hybrid.exchange.reply import BACKLOG
from mcp_hybrid.runtime.lane import IN_FLIGHT
from mcp_hybrid.runtime.life import LoopEndedError
from mcp_hybrid.runtime.loop import ProgramLoop
from mcp_hybrid.runtime.names import RuntimeName
from mcp_hybrid.runtime.piece import ProgramExitError

PATIENCE = 20.0

there: ContextVar[str] = ContextVar("there", default="")


class Person(BaseModel):
    name: str


class Program:
    """A server whose tools need asyncio, and what they did."""

    def __init__(self) -> None:
        self.server: MCPServer[str] = MCPServer("program", version="1", lifespan=self._lifespan)
        self.did: list[str] = []
        self.go = threading.Event()
        self.spoken = threading.Event()
        self.started = threading.Semaphore(0)
        self.sent = 0
        self.threads: set[int] = set()
        for tool in (
            self.add, self.count, self.burst, self.chatter, self.ask, self.order, self.wait, self.stubborn, self.leave,
            self.cancel_itself, self.hang, self.report, self.report_wrongly, self.block, self.whose, self.remember,
            self.hang_aside, self.clean_slowly, self.close_stream, self.sample,
            self.leave_behind, self.left_on_the_stack, self.announce,
        ):  # fmt: skip
            self.server.tool()(tool)

    @asynccontextmanager
    async def _lifespan(self, _: MCPServer[str]) -> AsyncIterator[str]:
        entered = asyncio.current_task()
        self.did.append("entered")
        yield "state"
        await asyncio.sleep(0)
        assert asyncio.current_task() is entered
        self.did.append("left")

    def note(self, what: str) -> None:
        self.did.append(what)
        self.started.release()

    async def has_started(self) -> None:
        while not self.started.acquire(blocking=False):  # noqa: ASYNC110 - a thread does it
            await anyio.sleep(0.005)

    async def add(self, a: int, b: int) -> int:
        self.threads.add(threading.get_ident())
        return sum(await asyncio.gather(asyncio.sleep(0, a), asyncio.sleep(0, b)))

    async def count(self, ctx: Context, steps: int = 3, delay: float = 0.01) -> str:
        for step in range(1, steps + 1):
            await asyncio.sleep(delay)
            await ctx.report_progress(step, steps)
        return "counted"

    async def burst(self, ctx: Context, steps: int = 1000) -> str:
        for step in range(1, steps + 1):
            await ctx.report_progress(step, steps)
        return "burst"

    async def chatter(self, ctx: Context, messages: int = 2000) -> str:
        self.note("chatter")
        for number in range(messages):
            said = ResourceUpdatedNotification(params=ResourceUpdatedNotificationParams(uri=f"x://{number}"))
            await ctx.request_context.session.send_notification(said, related_request_id=ctx.request_id)
            self.sent = number + 1
        return "said"

    async def ask(self, ctx: Context) -> str:
        answer = await ctx.elicit("Who is there?", Person)
        return f"hello {answer.data.name}" if isinstance(answer, AcceptedElicitation) else answer.action

    async def order(self, ctx: Context) -> str:
        """Ask, and meanwhile report: in this order, and before the server can have dealt with any of it."""
        self.note("order")
        await asyncio.to_thread(self.go.wait, PATIENCE)
        asking = asyncio.create_task(self.ask(ctx))
        await asyncio.sleep(0)
        await ctx.report_progress(1)
        await ctx.report_progress(2)
        self.spoken.set()
        return await asking

    async def wait(self) -> str:
        self.note("wait")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)  # a clean-up may wait
            self.did.append("cleaned up")
            raise
        return "waited"

    async def stubborn(self) -> str:
        self.note("stubborn")
        while not self.go.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                self.did.append("swallowed")
        return "at last"

    async def leave(self, kind: str) -> str:
        raise {"exit": SystemExit, "interrupt": KeyboardInterrupt, "closed": GeneratorExit}[kind]("bye")

    async def cancel_itself(self) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)
        return "no"

    def hang(self) -> str:
        self.note("hang")
        self.go.wait(PATIENCE)
        self.did.append("hung")
        return "too late"

    async def hang_aside(self) -> str:
        try:
            return await anyio.to_thread.run_sync(self.hang)
        finally:
            self.did.append("unwound")

    async def clean_slowly(self, ctx: Context) -> str:
        async def clean_up() -> None:
            self.note("cleaning up")
            await asyncio.sleep(0.5)
            self.did.append("cleaned up")

        ctx.request_context.session._connection.exit_stack.push_async_callback(clean_up)
        return "pushed"

    async def close_stream(self, ctx: Context) -> str:
        await ctx.report_progress(1)
        await ctx.close_sse_stream()
        await ctx.report_progress(2)
        return "closed"

    async def sample(self, ctx: Context) -> str:
        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            await asyncio.sleep(0)
            self.note(f"{progress} of {total}: {message}")

        question = SamplingMessage(role="user", content=TextContent(type="text", text="Say something"))
        request = CreateMessageRequest(params=CreateMessageRequestParams(messages=[question], max_tokens=10))
        related = ServerMessageMetadata(related_request_id=ctx.request_id)
        answer = await ctx.request_context.session.send_request(
            request, CreateMessageResult, metadata=related, progress_callback=on_progress
        )
        return answer.content.text if isinstance(answer.content, TextContent) else answer.content.type

    def report(self, ctx: Context) -> str:
        anyio.from_thread.run(ctx.report_progress, 1)
        return "reported"

    def report_wrongly(self, ctx: Context) -> str:
        asyncio.run(ctx.report_progress(1))
        return "reported"

    async def block(self) -> str:
        self.note("block")
        self.go.wait(PATIENCE)  # which blocks the event loop
        self.did.append("unblocked")
        return "let go"

    async def whose(self) -> str:
        token = get_access_token()
        return token.client_id if token is not None else "nobody"

    async def remember(self, ctx: Context, value: int | None = None) -> Any:
        state = session_state(ctx)
        if value is not None:
            pin_session(ctx)
            await state.set("value", value)
        return await state.get("value")

    async def leave_behind(self, how: str) -> str:
        async def task() -> None:
            if how == "exits":
                raise SystemExit(3)
            try:
                await asyncio.sleep(3600)
            finally:
                self.did.append("task ended")

        self.task = asyncio.create_task(task())
        return "left"

    async def left_on_the_stack(self, ctx: Context) -> str:
        async def clean_up() -> None:
            await asyncio.sleep(0)
            self.did.append("cleaned up")

        ctx.request_context.session._connection.exit_stack.push_async_callback(clean_up)
        return "pushed"

    async def announce(self, ctx: Context) -> str:
        await ctx.request_context.session.send_tool_list_changed()
        await ctx.notify_tools_changed()
        return "announced"


@asynccontextmanager
async def running(server: object = None, **settings: Any) -> AsyncIterator[tuple[Setup, Program]]:
    program = Program()
    try:
        async with running_on(server=server or program.server, runtime="asyncio", **settings) as setup:
            yield setup, program
    finally:
        program.go.set()


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not holds():  # noqa: ASYNC110 - a thread does it
            await anyio.sleep(0.005)


def said(answer: Any) -> Any:
    message = answer.json() if answer.header("content-type") == "application/json" else answer.events()[-1].json()
    return message["result"]["content"][0]["text"] if "result" in message else message["error"]["code"]


ROUTES = pytest.mark.parametrize("ask", [ask_alone, ask_in_session, ask_modern])


# Calls, and what they say


@ROUTES
async def test_a_tool_that_needs_asyncio_answers_on_every_route(ask: Ask) -> None:
    async with running() as (setup, program):
        assert said(await ask(setup, mcp.tool("add", {"a": 1, "b": 2}))) == "3"
        assert threading.get_ident() not in program.threads


async def test_two_calls_run_at_the_same_time() -> None:
    async with running() as (setup, _):
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for _number in range(20):
                tasks.start_soon(ask_alone, setup, mcp.tool("count", {"steps": 1, "delay": 0.2}))
        assert time.monotonic() - began < 20 * 0.2


async def test_progress_comes_while_the_tool_runs() -> None:
    async with running() as (setup, _):
        conversation = await Conversation.open(setup.client)
        async with conversation.stream(mcp.tool("count", {"steps": 100000}, token="t")) as exchange:
            for value in (1, 2, 3):
                assert (await exchange.message())["params"]["progress"] == value


@pytest.mark.parametrize("steps", [10, 1000])
async def test_a_reporter_that_never_pauses_is_heard(steps: int) -> None:
    async with running() as (setup, _):
        conversation = await Conversation.open(setup.client)
        async with conversation.stream(mcp.tool("burst", {"steps": steps}, token="t")) as exchange:
            *values, answer = await exchange.messages()
        progress = [each["params"]["progress"] for each in values]
        assert progress == sorted(set(progress))
        assert progress[-1] == steps
        assert len(progress) >= min(steps, 10)
        assert answer["result"]["content"][0]["text"] == "burst"


async def test_who_says_much_waits_for_a_client_that_does_not_read() -> None:
    async with running() as (setup, program):
        conversation = await Conversation.open(setup.client)
        async with conversation.stream(mcp.tool("chatter", {"messages": 1})) as exchange:
            await conversation.answers(exchange)
        program.sent = 0
        async with conversation.stream(mcp.tool("chatter", id=2)) as exchange:
            exchange.pause()
            await until(lambda: program.sent > 100)
            before = -1
            while before != program.sent:
                before = program.sent
                await anyio.sleep(0.2)
            assert program.sent <= BACKLOG + 2 * IN_FLIGHT
            exchange.resume()
            messages = await exchange.messages()
        uris = [each["params"]["uri"] for each in messages[:-1]]
        assert uris == [f"x://{number}" for number in range(2000)]


async def test_what_is_said_after_a_question_comes_after_it() -> None:
    async with running() as (setup, program):
        conversation = await Conversation.open(setup.client, capabilities={"elicitation": {}})
        async with conversation.stream(mcp.tool("order", token="t")) as exchange:
            await program.has_started()
            program.go.set()
            assert program.spoken.wait(PATIENCE), "which blocks the server: all of it has been said before it goes on"
            first, second, third = [await exchange.message() for _ in range(3)]
            assert first["method"] == "elicitation/create"
            assert [each["params"]["progress"] for each in (second, third)] == [1, 2]
            await conversation.post(mcp.result(first["id"], {"action": "accept", "content": {"name": "Ada"}}))
            assert said_in(await conversation.answers(exchange)) == "hello Ada"


def said_in(message: Any) -> Any:
    return message["result"]["content"][0]["text"]


async def test_nobody_is_asked_without_a_session() -> None:
    async with running() as (setup, _):
        assert said(await ask_alone(setup, mcp.tool("ask"))) == -32600


async def test_a_get_stream_hears_what_belongs_to_no_request() -> None:
    async with running() as (setup, _):
        conversation = await Conversation.open(setup.client)
        async with conversation.get() as stream:
            await stream.started()
            await until(lambda: setup.registry.sessions()[0].close_stream is not None)
            await conversation.post(mcp.tool("announce"))
            assert (await stream.message())["method"] == "notifications/tools/list_changed"


async def test_a_listener_hears_changes_and_the_end() -> None:
    async with running() as (setup, _):
        message = mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, id=5)
        sent, body = mcp.modern_headers(message), mcp.body(mcp.modern(message))
        async with setup.client.stream("POST", "/mcp", sent, body) as stream:
            assert (await stream.message())["method"] == "notifications/subscriptions/acknowledged"
            await ask_modern(setup, mcp.tool("announce"))
            assert (await stream.message())["method"] == "notifications/tools/list_changed"
            setup.app.close_streams()
            assert (await stream.message())["id"] == 5


async def test_a_stream_that_is_closed_early_goes_on_in_its_log() -> None:
    async with running() as (setup, _):
        conversation = await Conversation.open(setup.client)
        async with conversation.stream(mcp.tool("close_stream", token="t")) as exchange:
            events = []
            with suppress(anyio.EndOfStream):
                while True:
                    events.append(await exchange.event())
        last = [event for event in events if event.id][-1]
        assert last.json()["params"]["progress"] == 1
        async with conversation.get(last.id) as rest:
            assert (await rest.message())["params"]["progress"] == 2
            assert said_in(await rest.message()) == "closed"


async def test_progress_on_a_question_is_heard_where_the_program_runs() -> None:
    async with running() as (setup, program):
        conversation = await Conversation.open(setup.client, capabilities={"sampling": {}})
        async with conversation.stream(mcp.tool("sample")) as exchange:
            question = await exchange.message()
            token = question["params"]["_meta"]["progressToken"]
            report = {"progressToken": token, "progress": 1, "total": 2, "message": "half"}
            await conversation.post(mcp.notification("notifications/progress", report))
            await program.has_started()
            assert "1.0 of 2.0: half" in program.did
            content = {"role": "assistant", "content": {"type": "text", "text": "something"}, "model": "m"}
            await conversation.post(mcp.result(question["id"], content))
            assert said_in(await conversation.answers(exchange)) == "something"


@pytest.mark.redis
async def test_changes_are_heard_on_other_workers(shared_redis: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        workers, threads, programs = [], [], [Program(), Program()]
        prefix = f"test-{secrets.token_hex(4)}:"
        for program in programs:
            backplane = RedisBackplane(shared_redis.url, prefix=prefix)
            settings = Settings(runtime=RuntimeName.ASYNCIO, sessions={"keys": [KEY]})
            app = HybridApp(program.server, settings, backplane=backplane)
            workers.append(await stack.enter_async_context(AsgiClient(app, patience=PATIENCE)))
            await until_known(backplane)
        listening, other = workers
        bus = programs[0].server._subscriptions
        assert bus is not None
        bus.subscribe(lambda _: threads.append(threading.get_ident()))
        message = mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, id=5)
        sent, body = mcp.modern_headers(message), mcp.body(mcp.modern(message))
        async with listening.stream("POST", "/mcp", sent, body) as stream:
            assert (await stream.message())["method"] == "notifications/subscriptions/acknowledged"
            call = mcp.tool("announce")
            await other.request("POST", "/mcp", mcp.modern_headers(call), mcp.body(mcp.modern(call)))
            assert (await stream.message())["method"] == "notifications/tools/list_changed"
        assert threads
        assert threading.get_ident() not in threads


async def test_session_state_and_pins_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    load, threads = MemoryBackplane.load_state, set()

    async def load_state(self: MemoryBackplane, session: str) -> Any:
        threads.add(threading.get_ident())
        return await load(self, session)

    monkeypatch.setattr(MemoryBackplane, "load_state", load_state)
    async with running() as (setup, _):
        conversation = await Conversation.open(setup.client)
        assert said(await conversation.post(mcp.tool("remember", {"value": 7}))) == "7"
        assert [session.pins for session in setup.registry.sessions()] == [1]
        assert said(await conversation.post(mcp.tool("remember"))) == "7"
    assert threads == {threading.get_ident()}


# Credentials


class Verifier:
    """A verifier that needs asyncio."""

    async def verify_token(self, token: str) -> AccessToken | None:
        await asyncio.sleep(0)
        return AccessToken(token=token, client_id=token, scopes=[]) if token.startswith("good") else None


async def test_the_programs_verifier_runs_there_and_tools_see_the_token() -> None:
    program = Program()
    async with running_on(server=program.server, token_verifier=Verifier(), runtime="asyncio") as setup:
        message = mcp.tool("whose")
        for token, found in (("good-1", "good-1"), ("good-2", "good-2")):
            sent = mcp.headers(None, None, ("authorization", f"Bearer {token}"))
            assert said(await setup.client.request("POST", "/mcp", sent, mcp.body(message))) == found
        sent = mcp.headers(None, None, ("authorization", "Bearer bad"))
        assert (await setup.client.request("POST", "/mcp", sent, mcp.body(message))).status == 401


# Calls that do not end by themselves


async def cancel(setup: Setup, conversation: Conversation) -> int:
    await conversation.post(mcp.cancelled(7))
    return -32800


async def end(setup: Setup, conversation: Conversation) -> int:
    assert (await conversation.delete()).status == 204
    return -32000


async def drain(setup: Setup, conversation: Conversation) -> int:
    await setup.app.drain(0.05)
    return -32000


@pytest.mark.parametrize("interrupt", [cancel, end, drain])
async def test_an_interrupted_tool_is_cancelled_and_cleans_up(interrupt: Callable[..., Awaitable[int]]) -> None:
    async with running() as (setup, program):
        conversation = await Conversation.open(setup.client)
        async with conversation.stream(mcp.tool("wait", id=7)) as exchange:
            await program.has_started()
            code = await interrupt(setup, conversation)
            assert (await conversation.answers(exchange))["error"]["code"] == code
        assert "cleaned up" in program.did
        assert setup.app.abandoned_calls == 0


async def test_the_limit_cancels_a_tool() -> None:
    async with running(request_timeout=0.2) as (setup, program):
        assert said(await ask_alone(setup, mcp.tool("wait"))) == -32603
        assert "cleaned up" in program.did


async def test_a_tool_that_swallows_its_cancellation_is_abandoned() -> None:
    with capture_logs() as lines:
        async with running(request_timeout=0.2) as (setup, program):
            assert said(await ask_alone(setup, mcp.tool("stubborn"))) == -32603
            assert program.did.count("swallowed") == 1, "asyncio's programs are cancelled once"
            assert setup.app.abandoned_calls == 1
            assert setup.app.counts[Count.CALLS_ABANDONED] == 1
            assert said(await ask_alone(setup, mcp.tool("add", {"a": 1, "b": 2}))) == "3"
            program.go.set()
            await until(lambda: setup.app.abandoned_calls == 0)
    (line,) = [line for line in lines if line["event"].startswith("call abandoned")]
    assert line["tool"] == "stubborn"


async def test_an_interruption_does_not_cut_a_clean_up_short() -> None:
    async with running(request_timeout=0.2) as (setup, program):
        await ask_alone(setup, mcp.tool("clean_slowly"))
        assert program.did[-2:] == ["cleaning up", "cleaned up"]


async def test_a_question_whose_asker_is_cancelled_is_withdrawn() -> None:
    async with running() as (setup, _):
        conversation = await Conversation.open(setup.client, capabilities={"elicitation": {}})
        async with conversation.stream(mcp.tool("ask", id=7)) as exchange:
            question = await exchange.message()
            await conversation.post(mcp.cancelled(7))
            withdrawn = await exchange.message()
            assert withdrawn["method"] == "notifications/cancelled"
            assert withdrawn["params"]["requestId"] == question["id"]
            assert (await exchange.message())["error"]["code"] == -32800
        assert [len(session.questions) for session in setup.registry.sessions()] == [0]


# What a program raises


@pytest.mark.parametrize("kind", ["exit", "interrupt", "closed"])
@ROUTES
async def test_a_tool_that_would_end_the_process_fails_alone(ask: Ask, kind: str) -> None:
    async with running() as (setup, _):
        assert said(await ask(setup, mcp.tool("leave", {"kind": kind}))) == -32603
        assert said(await ask(setup, mcp.tool("add", {"a": 1, "b": 2}))) == "3"


async def test_a_tool_that_cancels_itself_fails_alone() -> None:
    async with running() as (setup, _):
        answer = await ask_alone(setup, mcp.tool("cancel_itself"))
        assert answer.json()["error"]["message"] == "Internal server error"
        assert said(await ask_alone(setup, mcp.tool("add", {"a": 1, "b": 2}))) == "3"


async def test_a_background_task_that_exits_does_not_stop_the_loop() -> None:
    with capture_logs() as lines:
        async with running() as (setup, program):
            await ask_alone(setup, mcp.tool("leave_behind", {"how": "exits"}))
            assert said(await ask_alone(setup, mcp.tool("add", {"a": 1, "b": 2}))) == "3"
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["a background task raised"]
    assert isinstance(program.task.exception(), SystemExit)  # or asyncio would log it in whatever test runs then


async def test_an_exception_crosses_with_its_traceback() -> None:
    async def fail(_ctx: Any, _params: CallToolRequestParams) -> CallToolResult:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    with capture_logs() as lines:
        async with running(Server("low", on_call_tool=fail)) as (setup, _):
            assert said(await ask_alone(setup, mcp.tool("x"))) == -32603
    (line,) = [line for line in lines if line["event"] == "handler raised"]
    frames, error = [], line["exc_info"]
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert frames[-1] == "fail"


# Blocking code


async def test_a_def_tool_runs_in_a_thread_and_may_be_left_there() -> None:
    async with running(request_timeout=0.3) as (setup, program):
        assert said(await ask_alone(setup, mcp.tool("hang"))) == -32603
        counts = setup.app.counts
        assert (counts[Count.CALLS_ABANDONED], counts[Count.ABANDONED_THREADS_NOW]) == (1, 1)
        assert "hung" not in program.did
        program.go.set()
        await until(lambda: counts[Count.ABANDONED_THREADS_NOW] == 0 and setup.app.abandoned_calls == 0)


async def test_nothing_is_unwound_while_its_thread_runs() -> None:
    async with running(request_timeout=0.3) as (setup, program):
        assert said(await ask_alone(setup, mcp.tool("hang_aside"))) == -32603
        await anyio.sleep(0.1)
        assert "unwound" not in program.did
        program.go.set()
        await until(lambda: setup.app.abandoned_calls == 0)
        assert program.did[-2:] == ["hung", "unwound"]


async def test_def_tools_have_so_many_threads() -> None:
    async with running(limits={"tool_threads": 2}, request_timeout=0.5) as (setup, program):
        codes = []

        async def call() -> None:
            codes.append(said(await ask_alone(setup, mcp.tool("hang"))))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(call)
        assert sorted(codes) == [-32603, -32603, -32000]
        assert program.did.count("hang") == 2


async def test_a_def_tool_reports_progress_by_anyio() -> None:
    async with running() as (setup, _):
        conversation = await Conversation.open(setup.client)
        async with conversation.stream(mcp.tool("report", token="t")) as exchange:
            first, second = await exchange.messages()
        assert first["params"]["progress"] == 1
        assert said_in(second) == "reported"


async def test_a_def_tool_with_a_loop_of_its_own_is_told_what_to_do() -> None:
    async with running() as (setup, _):
        conversation = await Conversation.open(setup.client)
        assert "Error executing tool" in said(await conversation.post(mcp.tool("report_wrongly", token="t")))


async def test_a_tool_that_blocks_the_loop_delays_only_the_program() -> None:
    with capture_logs() as lines:
        async with running(request_timeout=0.3) as (setup, program):
            async with anyio.create_task_group() as tasks:
                answers = []

                async def call(tool: str) -> None:
                    answers.append((tool, said(await ask_alone(setup, mcp.tool(tool, {"a": 1, "b": 2})))))

                tasks.start_soon(call, "block")
                await program.has_started()
                tasks.start_soon(call, "add")
                assert (await setup.client.request("GET", "/healthz")).status == 200
            # One that was not begun is not abandoned: it never begins.
            assert sorted(answers) == [("add", -32603), ("block", -32603)]
            assert setup.app.abandoned_calls == 1
            assert program.threads == set()
            program.go.set()
            await until(lambda: any("was blocked" in line["event"] for line in lines))
            assert said(await ask_alone(setup, mcp.tool("add", {"a": 1, "b": 2}))) == "3"
    first, second = [line for line in lines if "block" in line["event"] and line["log_level"] == "warning"]
    assert (first["tool"], second["tool"]) == ("block", "block")
    assert first["at"].endswith("in wait")
    assert second["seconds"] >= 0.5


# The ways across


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
async def test_what_is_no_exception_arrives_as_one(kind: type[BaseException]) -> None:
    async def fail() -> None:
        raise kind("no")

    loop = ProgramLoop(nullcontext, lambda _: "")
    async with loop.running():
        with pytest.raises(ProgramExitError, match=kind.__name__) as caught:
            await loop.run(fail)
        assert type(caught.value.__cause__) is kind
    with pytest.raises(LoopEndedError):
        await loop.run(fail)


class Late(deque[Any]):
    """A queue into which another thread puts something just after it was found empty."""

    def __init__(self, put: Callable[[], None]) -> None:
        super().__init__()
        self._put: Callable[[], None] | None = put

    def __len__(self) -> int:
        length = super().__len__()
        if not length and self._put is not None:
            put, self._put = self._put, None
            put()
        return length


@pytest.mark.parametrize("way", ["to the host", "to the loop"])
async def test_nothing_is_left_in_a_queue_that_is_being_emptied(way: str) -> None:
    loop, late = ProgramLoop(nullcontext, lambda _: ""), threading.Event()
    async with loop.running():
        if way == "to the host":
            loop._to_host = Late(lambda: loop.post(late.set))
            loop.call(loop.post, bool)
        else:
            loop._to_loop = Late(lambda: loop.call(late.set))
            loop.call(bool)
        await until(late.is_set)


# From the start to the end


async def test_the_lifespan_is_left_where_it_was_entered() -> None:
    async with running() as (setup, program):
        assert program.did == ["entered"]
        await ask_alone(setup, mcp.tool("leave_behind", {"how": "sleeps"}))
    assert program.did == ["entered", "left", "task ended"]
    await until(lambda: all(thread.name != "mcp-hybrid program" for thread in threading.enumerate()))


@ROUTES
async def test_what_is_left_on_the_exit_stack_is_run_there(ask: Ask) -> None:
    async with running() as (setup, program):
        assert said(await ask(setup, mcp.tool("left_on_the_stack"))) == "pushed"
    assert program.did.count("cleaned up") == 1


@contextmanager
def lifespan_of(what: Callable[[], Any]) -> Iterator[MCPServer[Any]]:
    @asynccontextmanager
    async def lifespan(_: MCPServer[Any]) -> AsyncIterator[None]:
        await what()
        yield
        await what()

    yield MCPServer("x", lifespan=lifespan)


@pytest.mark.parametrize("kind", [ValueError, SystemExit, asyncio.CancelledError])
async def test_a_lifespan_that_fails_fails_the_start(kind: type[BaseException]) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise kind("no")

    with lifespan_of(fail) as server:
        app = HybridApp(server, Settings(runtime=RuntimeName.ASYNCIO))
        with pytest.raises(BaseException):  # noqa: B017, PT011 - the harness's own, in groups
            async with AsgiClient(app):
                pass
        assert app.failed


async def test_a_lifespan_whose_end_hangs_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_hybrid.app._SHORTEST_CLEAN_UP", 0.2)
    begun: list[str] = []

    async def hang() -> None:
        if begun:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                begun.append("cancelled")
                raise
        begun.append("begun")

    with lifespan_of(hang) as server, capture_logs() as lines:
        app = HybridApp(server, Settings(runtime=RuntimeName.ASYNCIO, server={"drain_timeout": 0}))
        with pytest.raises(BaseException):  # noqa: B017, PT011 - as above
            async with AsgiClient(app):
                pass
    assert app.left_behind
    assert [line["seconds"] for line in lines if "is abandoned" in line["event"]] == [0.2]
    assert begun == ["begun", "cancelled"]


async def test_a_lifespan_whose_task_dies_ends_the_application() -> None:
    @asynccontextmanager
    async def lifespan(_: MCPServer[Any]) -> AsyncIterator[None]:
        async def die() -> None:
            await asyncio.sleep(0.1)
            raise ValueError("the worker died")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(die())
            yield

    app = HybridApp(MCPServer("x", lifespan=lifespan), Settings(runtime=RuntimeName.ASYNCIO))
    with pytest.raises(ExceptionGroup) as caught, trio.fail_after(PATIENCE):  # asyncio's own
        async with app.lifespan():
            await trio.sleep_forever()
    assert caught.group_contains(ValueError, match="the worker died", depth=1)


async def test_a_program_that_never_yields_does_not_keep_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_hybrid.app._SHORTEST_CLEAN_UP", 0.2)
    monkeypatch.setattr("mcp_hybrid.runtime.loop.STOP_TIME", 0.2)
    program = Program()
    app = HybridApp(program.server, Settings(runtime=RuntimeName.ASYNCIO, server={"drain_timeout": 0}))
    try:
        with trio.fail_after(PATIENCE), pytest.raises(BaseException):  # noqa: B017, PT011, PT012 - as above
            async with AsgiClient(app) as client, anyio.create_task_group() as tasks:
                sent, body = mcp.headers(), mcp.body(mcp.tool("block"))
                tasks.start_soon(client.request, "POST", "/mcp", sent, body)
                await program.has_started()
                await app.drain(0)
        assert app.left_behind
        assert "unblocked" not in program.did, "nobody has waited for it"
    finally:
        program.go.set()


def test_on_a_host_of_asyncios_the_program_runs_in_place() -> None:
    program = Program()

    async def main() -> str:
        async with running_on(server=program.server, runtime="asyncio") as setup:
            return str(said(await ask_alone(setup, mcp.tool("add", {"a": 1, "b": 2}))))

    assert anyio.run(main, backend="asyncio") == "3"
    assert program.threads == {threading.get_ident()}


def test_on_a_host_of_asyncios_trio_is_refused() -> None:
    async def main() -> None:
        async with HybridApp(MCPServer("x"), Settings(runtime=RuntimeName.TRIO)).lifespan():
            pass

    with pytest.raises(ConfigurationError, match="needs a host on Trio"):
        anyio.run(main, backend="asyncio")
