"""The demo server, and tools that say which process answers and what it holds: as much after a load as before."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
from collections.abc import Iterator
from types import CoroutineType, FrameType, GeneratorType

import trio
from mcp.server.mcpserver import Context
from pydantic import BaseModel

from mcp_hybrid.demo import server
from mcp_hybrid.sessions.registry import Registry

__all__ = ["server"]

faulthandler.register(signal.SIGUSR1)  # a process that does not answer is asked where it is


class Vitals(BaseModel):
    """What one process holds."""

    pid: int
    tasks: int
    """Trio tasks that are living."""
    sessions: int
    """Sessions that are live, which includes the caller's."""


class Connection(BaseModel):
    """One connection that is being served."""

    port: int
    """The client's."""
    waits: list[str]
    """Where each of its tasks is."""


@server.tool()
async def worker() -> int:
    """Give the process id."""
    return os.getpid()


@server.tool()
async def tell(ctx: Context, text: str) -> str:
    """Tell the caller's session, on its standalone stream, that the resource of this name has changed."""
    await ctx.session.send_resource_updated(f"told://{text}")
    return text


@server.tool()
async def vitals() -> Vitals:
    """Collect garbage, and count what is left."""
    gc.unfreeze()  # the server has frozen what was there when it started, which hides it from the collector
    gc.collect()
    # No object of this program's leads to the application that serves it.
    (registry,) = (found for found in gc.get_objects() if isinstance(found, Registry))
    sessions, tasks = len(registry), trio.lowlevel.current_statistics().tasks_living
    return Vitals(pid=os.getpid(), tasks=tasks, sessions=sessions)


@server.tool()
async def connections() -> list[Connection]:
    """Tell of each connection what its tasks wait for."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    served = [task for task in _below(root) if task.name.endswith("serve_listeners._run_handler")]
    return [Connection(port=_port(task), waits=[_place(each) for each in (task, *_below(task))]) for task in served]


def _port(connection: trio.lowlevel.Task) -> int:
    """Find the client's port in what the connection's tasks are busy with; 0 if it is not there."""
    for task in (connection, *_below(connection)):
        for frame in _frames(task.coro):
            client = frame.f_locals.get("scope", {}).get("client") or getattr(
                frame.f_locals.get("self"), "client", None
            )
            if isinstance(client, tuple):
                return int(client[1])
    return 0


def _below(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield child
            yield from _below(child)


def _place(task: trio.lowlevel.Task) -> str:
    """Say where a task is, from its outermost function to its innermost."""
    return " > ".join(f"{frame.f_code.co_name}:{frame.f_lineno}" for frame in _frames(task.coro))


def _frames(awaited: object) -> Iterator[FrameType]:
    """Give the frames of what is awaited. Trio's own way ends where an object's `__await__` does."""
    while awaited is not None:
        if isinstance(awaited, CoroutineType):
            if awaited.cr_frame is not None:
                yield awaited.cr_frame
            awaited = awaited.cr_await
        elif isinstance(awaited, GeneratorType):
            if awaited.gi_frame is not None:
                yield awaited.gi_frame
            awaited = awaited.gi_yieldfrom
        else:
            awaited = next((each for each in gc.get_referents(awaited) if isinstance(each, CoroutineType)), None)
