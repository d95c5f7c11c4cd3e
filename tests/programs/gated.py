"""A server whose calls wait at gates that other calls open, and that tells what its calls and its process did.

A test that drives it over a socket needs no sleep: it lets a call go on when it has seen what it waits for. Gates and
calls have names, so that tests which share the process do not meet.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import trio
from mcp.server.mcpserver import Context
from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPDeprecationWarning
from pydantic import BaseModel

from mcp_hybrid.sessions.registry import Registry

sys.path.insert(0, str(Path(__file__).parent.parent))  # a program that is served by name finds only its own directory

from harness.example import Example

server = Example().server
"""The example server; what follows is added to it."""

gates: defaultdict[str, anyio.Event] = defaultdict(anyio.Event)
told: defaultdict[str, anyio.Event] = defaultdict(anyio.Event)
calls: defaultdict[str, list[str]] = defaultdict(list)
"""What became of each call: "started", then "finished" or "cancelled"."""
sessions: dict[str, ServerSession] = {}


@contextmanager
def recorded(name: str) -> Iterator[None]:
    note(name, "started")
    try:
        yield
    except anyio.get_cancelled_exc_class():
        note(name, "cancelled")
        raise
    else:
        note(name, "finished")


def note(name: str, stage: str) -> None:
    calls[name].append(stage)
    told.pop(name, anyio.Event()).set()


@server.tool()
async def release(gate: str) -> str:
    """Open a gate, for good."""
    gates[gate].set()
    return "open"


@server.tool()
async def reached(name: str, stage: str, times: int = 1) -> str:
    """Wait until the calls of that name have got so far."""
    while calls[name].count(stage) < times:
        await told[name].wait()
    return stage


@server.tool()
async def outcome(name: str) -> str:
    """Wait until the call of that name is over, and say how it ended."""
    while len(calls[name]) < 2:
        await told[name].wait()
    return calls[name][1]


@server.tool()
async def hold(name: str) -> str:
    """Wait at the gate of the same name."""
    with recorded(name):
        await gates[name].wait()
        return "let go"


@server.tool()
async def steps(ctx: Context, name: str, count: int) -> str:
    """Report each step, and wait after it at the gate `name/step`."""
    with recorded(name):
        for step in range(1, count + 1):
            await ctx.report_progress(step, count, f"step {step}")
            await gates[f"{name}/{step}"].wait()
        return f"{count} steps"


@server.tool()
async def lines(ctx: Context, name: str, count: int) -> str:
    """Send log messages, and wait after each as `steps` does."""
    with recorded(name):
        for line in range(1, count + 1):
            with warnings.catch_warnings():  # logging is deprecated from 2026-07-28 on
                warnings.simplefilter("ignore", MCPDeprecationWarning)
                sending = ctx.session.send_log_message("info", f"line {line}", related_request_id=ctx.request_id)
            await sending
            await gates[f"{name}/{line}"].wait()
        return f"{count} lines"


@server.tool()
async def meet(name: str, parties: int) -> str:
    """Return once so many calls of this name are running at the same time."""
    with recorded(name):
        await reached(name, "started", parties)
        return "met"


@server.tool()
async def flood(ctx: Context, name: str, count: int, size: int) -> str:
    """Report `count` values with messages of `size` characters, as fast as it goes."""
    with recorded(name):
        for value in range(1, count + 1):
            await ctx.report_progress(value, count, "x" * size)
        return f"flooded {count} times"


@server.tool()
async def remember(ctx: Context, name: str) -> str:
    """Keep hold of the caller's session."""
    sessions[name] = ctx.session
    return "remembered"


@server.tool()
async def tell(name: str) -> str:
    """Tell a client that was remembered, which has no call running, that the tools changed."""
    await sessions[name].send_tool_list_changed()
    return "told"


class Held(BaseModel):
    """What the process holds."""

    sessions: int
    tasks: int


@server.tool()
async def held() -> Held:
    """Say how many sessions are live and how many tasks are running."""
    # No object of this program's leads to the application that serves it; and the server has frozen what was there when
    # it started, which hides it from the collector.
    gc.unfreeze()
    (registry,) = (found for found in gc.get_objects() if isinstance(found, Registry))
    return Held(sessions=len(registry), tasks=trio.lowlevel.current_statistics().tasks_living)
