"""A server whose tools do everything that a tool must not: for tests that look at who else notices.

`add`, `add_in_thread`, `count`, `tell` and `ask` behave. Nothing here is bounded by itself but in time: what hangs
ends after the seconds it was given. `vitals` and `steps` tell what the process holds, and what
keeps its event loop busy.
"""

from __future__ import annotations

import argparse
import asyncio
import builtins
import time
from collections.abc import Callable
from typing import NoReturn

import anyio
import trio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import Completion, CompletionArgument, CompletionContext, PromptReference, ResourceTemplateReference
from pydantic import BaseModel
from steps import add_steps, program_blocks
from vitals import add_vitals


class UnspeakableError(Exception):
    """An exception that cannot be written down."""

    def __str__(self) -> str:
        raise RuntimeError("it has no text")

    __repr__ = __str__


class OwnBaseError(BaseException):
    """What is no `Exception`, and of a kind that no library knows."""


def _parse_arguments() -> NoReturn:
    argparse.ArgumentParser(exit_on_error=True).parse_args(["--unknown"])
    raise AssertionError("argparse did not exit")


def _cancelled_by_hand() -> trio.Cancelled:
    return trio.Cancelled._create(source="unknown")


EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "value": lambda: ValueError("a value"),
    "exit": lambda: SystemExit(3),
    "keyboard": KeyboardInterrupt,
    "generator": GeneratorExit,
    "asyncio": asyncio.CancelledError,
    "trio": _cancelled_by_hand,
    "own": lambda: OwnBaseError("own"),
    "unspeakable": UnspeakableError,
    "stop": lambda: StopIteration(1),
    "stop_async": lambda: StopAsyncIteration(1),
    "group": lambda: BaseExceptionGroup("group", [SystemExit(1), KeyboardInterrupt(), ValueError("x")]),
    "mixed": lambda: BaseExceptionGroup("mixed", [_cancelled_by_hand(), ValueError("x")]),
    "large": lambda: ValueError("x" * 1_000_000),
    "memory": MemoryError,
    "recursion": RecursionError,
}


_MADE_OF: dict[str, tuple[object, ...]] = {
    "BaseExceptionGroup": ("a group", [SystemExit(1), ValueError("inside")]),
    "ExceptionGroup": ("a group", [ValueError("inside")]),
    "UnicodeDecodeError": ("utf-8", b"x", 0, 1, "a reason"),
    "UnicodeEncodeError": ("utf-8", "x", 0, 1, "a reason"),
    "UnicodeTranslateError": ("x", 0, 1, "a reason"),
}
"""What those of Python's own exceptions are made of that want more than a text."""

BUILTIN = sorted(
    name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
)
"""The names of Python's own exceptions."""

server = MCPServer("hostile", version="1")
add_vitals(server)
add_steps(server)


def raise_one(kind: str) -> NoReturn:
    if kind == "argparse":
        _parse_arguments()
    if kind in BUILTIN:
        raise getattr(builtins, kind)(*_MADE_OF.get(kind, ("made",)))
    make = EXCEPTIONS[kind]
    raise make()


# What behaves


@server.tool()
async def add(a: int, b: int) -> int:
    return a + b


@server.tool()
def add_in_thread(a: int, b: int) -> int:
    return a + b


@server.tool()
async def tell(ctx: Context, text: str) -> str:
    await ctx.session.send_resource_updated(f"told://{text}")
    return text


class Name(BaseModel):
    name: str


@server.tool()
async def ask(ctx: Context) -> str:
    answer = await ctx.elicit("Who is there?", Name)
    return answer.data.name if answer.action == "accept" else answer.action


@server.tool()
async def count(ctx: Context, steps: int = 3) -> str:
    for step in range(steps):
        await anyio.sleep(0.01)
        await ctx.report_progress(step + 1, steps)
    return f"counted to {steps}"


# What does not


@server.tool()
async def raises(kind: str) -> str:
    raise_one(kind)


@server.tool()
def raises_in_thread(kind: str) -> str:
    raise_one(kind)


@server.tool()
def hang(seconds: float) -> str:
    time.sleep(seconds)
    return "too late"


@server.tool()
async def hang_in_thread(seconds: float) -> str:
    await anyio.to_thread.run_sync(time.sleep, seconds)
    return "too late"


@server.tool()
async def ignore_cancellation(seconds: float) -> str:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(seconds)
    return "too late"


@server.tool()
async def hog(milliseconds: int = 50, compute: bool = False) -> str:
    with program_blocks():
        until = time.monotonic() + milliseconds / 1000
        while compute and time.monotonic() < until:
            pass
        time.sleep(max(0, until - time.monotonic()))  # noqa: ASYNC251 - what it is here for
    return "done"


@server.tool()
async def large(ctx: Context, size: int = 5_000_000, report: bool = False) -> str:
    if report:
        await ctx.report_progress(1)
    return "x" * size


@server.tool()
async def burst(ctx: Context, messages: int = 500) -> str:
    for number in range(messages):
        await ctx.report_progress(number + 1)
        await ctx.session.send_log_message("info", f"message {number}", logger="hostile")
    return "done"


@server.tool()
async def burst_everywhere(ctx: Context, messages: int = 500) -> str:
    """Send on the call's stream, the session's GET stream and all that listen, without a pause."""
    for number in range(messages):
        await ctx.report_progress(number + 1)
        await ctx.session.send_log_message("info", f"message {number}", related_request_id=ctx.request_id)
        await ctx.session.send_resource_updated(f"burst://{number}")
        await ctx.notify_tools_changed()
    return "done"


@server.tool()
async def cancel_self() -> str:
    try:
        nursery = trio.lowlevel.current_task().parent_nursery
    except RuntimeError:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
    else:
        assert nursery is not None
        nursery.cancel_scope.cancel()
    await anyio.sleep(1)
    return "not cancelled"


@server.tool()
async def leave_scope_open() -> str:
    anyio.CancelScope().__enter__()
    return "left open"


@server.tool()
async def leave_tasks_behind() -> str:
    await anyio.create_task_group().__aenter__()
    return "left open"


@server.tool()
async def close_own_stream(ctx: Context) -> str:
    await ctx.report_progress(1)
    await ctx.close_sse_stream()
    await ctx.report_progress(2)
    return "closed"


@server.tool()
async def close_get_stream(ctx: Context) -> str:
    await ctx.close_standalone_sse_stream()
    await ctx.session.send_resource_updated("closed://")
    return "closed"


@server.tool()
def other_loop(ctx: Context) -> str:
    asyncio.run(ctx.report_progress(1))
    return "reported"


@server.tool()
def other_loop_outside_of_the_call(ctx: Context) -> str:
    asyncio.run(ctx.session.send_tool_list_changed())
    return "sent"


@server.tool()
async def bad_progress(ctx: Context) -> str:
    for value in (10**400, float("nan"), float("inf"), "7", None, [1], True):
        await ctx.report_progress(value, total=value, message=value)  # type: ignore[arg-type]  # what it is here for
    await ctx.report_progress(10, total=10**400, message="last")
    return "done"


@server.tool()
async def leave_clean_up(ctx: Context, kind: str) -> str:
    ctx.session._connection.exit_stack.callback(raise_one, kind)
    return "left"


@server.prompt()
def greet(name: str, times: int = 1) -> str:
    return f"hello {name}" * times


@server.prompt()
async def raising_prompt(kind: str) -> str:
    raise_one(kind)


@server.resource("raising://{kind}")
def raising_resource(kind: str) -> str:
    raise_one(kind)


@server.completion()  # type: ignore[no-untyped-call,untyped-decorator]  # the SDK leaves it untyped
async def complete(
    ref: PromptReference | ResourceTemplateReference, argument: CompletionArgument, context: CompletionContext | None
) -> Completion | None:
    raise_one(argument.value)
