"""A server that says which process it runs in, and notes in the file $RECORD_FILE how its lifespan went."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from mcp_hybrid.server import stopping


@asynccontextmanager
async def lifespan(_server: MCPServer[None]) -> AsyncIterator[None]:
    if "FAIL_AT_START" in os.environ:
        raise RuntimeError("no database")
    note("enter")
    yield
    note("exit")
    if "HANG_AT_STOP" in os.environ:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(3600)
    if "FAIL_AT_STOP" in os.environ:
        raise RuntimeError("no disk")


def note(what: str) -> None:
    if name := os.environ.get("RECORD_FILE"):
        with Path(name).open("a") as file:
            file.write(f"{what}\n")


if "DIE_AT_IMPORT" in os.environ:
    os._exit(3)

if "FORCE_AFTER" in os.environ:
    stopping.FORCE_AFTER = float(os.environ["FORCE_AFTER"])  # type: ignore[misc]  # Final, but for this

server: MCPServer[None] = MCPServer("launched", lifespan=lifespan)


@server.tool()
async def steps(ctx: Context, count: int, delay: float) -> str:
    for step in range(1, count + 1):
        await ctx.report_progress(step, count)
        await anyio.sleep(delay)
    return f"{count} steps"


@server.tool()
async def gated_steps(ctx: Context, count: int, gate: str) -> str:
    """Report each step, and wait after it until there is a file of that name."""
    for step in range(1, count + 1):
        await ctx.report_progress(step, count)
        while not Path(gate).exists():  # noqa: ASYNC110, ASYNC240 - it is another process that is waited for
            await anyio.sleep(0.02)
    return f"{count} steps"


@server.tool()
async def pid(hold: float = 0) -> int:
    """Give the worker's process id, after holding all of it up, so that other requests go to another worker."""
    time.sleep(hold)  # noqa: ASYNC251 - on purpose
    return os.getpid()


@server.tool()
async def unstoppable(ctx: Context, how: str) -> str:
    """Take an hour, in a way that cannot be cancelled."""
    await ctx.report_progress(1)
    await anyio.sleep(0.5)  # the report is on its way, also where nothing else is any more
    note("stuck")
    match how:
        case "shielded":
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3600)
        case "in a thread":
            await anyio.to_thread.run_sync(time.sleep, 3600)
        case _:
            time.sleep(3600)  # noqa: ASYNC251 - on purpose
    return "unlikely"


@server.tool()
async def flood(ctx: Context) -> str:
    """Report, at length, faster than anybody reads."""
    for number in range(1, 1_000_000):
        await ctx.report_progress(number, message="x" * 10_000)
        await ctx.info("x" * 100_000)
    return "unlikely"


@server.tool()
async def repeat(text: str) -> str:
    return text


@server.tool()
async def crash(text: str) -> str:
    raise RuntimeError(f"crashed on {len(text)} characters")
