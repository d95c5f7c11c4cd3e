"""What a server process holds, told by a tool of its own; and where its tasks are.

Test programs add the tool to their server. `benchmarks/watching.py` asks for it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from types import CoroutineType, FrameType, GeneratorType
from typing import Any

import trio
from mcp.server import MCPServer
from pydantic import BaseModel

from mcp_hybrid.sessions.registry import Registry


class Vitals(BaseModel):
    """What one process holds."""

    pid: int
    tasks: int
    """Trio tasks that are living."""
    sessions: int
    """Sessions that are live, which includes the caller's."""


def add_vitals(server: MCPServer[Any]) -> None:
    """Give a server the tool `vitals`."""
    server.add_tool(vitals)


async def vitals() -> Vitals:
    """Collect garbage, and count what is left."""
    gc.unfreeze()  # the server has frozen what was there when it started, which hides it from the collector
    gc.collect()
    # No object of this program's leads to the application that serves it.
    (registry,) = (found for found in gc.get_objects() if isinstance(found, Registry))
    sessions, tasks = len(registry), trio.lowlevel.current_statistics().tasks_living
    return Vitals(pid=os.getpid(), tasks=tasks, sessions=sessions)


def place(task: trio.lowlevel.Task) -> str:
    """Say where a task is, from its outermost function to its innermost."""
    return " > ".join(f"{frame.f_code.co_name}:{frame.f_lineno}" for frame in frames(task.coro))


def frames(awaited: object) -> Iterator[FrameType]:
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
