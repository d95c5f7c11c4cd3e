"""The demo server, and tools that say which process answers and what it holds: as much after a load as before."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator

import trio
from mcp.server.mcpserver import Context
from pydantic import BaseModel
from vitals import add_vitals, frames, place

from mcp_hybrid.demo import server

__all__ = ["server"]

faulthandler.register(signal.SIGUSR1)  # a process that does not answer is asked where it is

add_vitals(server)


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
async def connections() -> list[Connection]:
    """Tell of each connection what its tasks wait for."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    served = [task for task in _below(root) if task.name.endswith("serve_listeners._run_handler")]
    return [Connection(port=_port(task), waits=[place(each) for each in (task, *_below(task))]) for task in served]


def _port(connection: trio.lowlevel.Task) -> int:
    """Find the client's port in what the connection's tasks are busy with; 0 if it is not there."""
    for task in (connection, *_below(connection)):
        for frame in frames(task.coro):
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
