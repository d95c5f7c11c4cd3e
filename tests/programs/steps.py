"""Which steps of Trio's tasks take long, and how much of that is the program's own doing.

A step is what a task does between two checkpoints; all others wait for it meanwhile. What is measured on a busy machine
is judged by its CPU time: the time on the wall is others' doing, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio
from mcp.server import MCPServer
from pydantic import BaseModel
from vitals import place

LONG: Final = 0.01
"""Seconds of CPU time from which on a step is kept."""
STALLED: Final = 0.1
"""The same on the wall: where that is much more than the CPU time, something else had the processor or a lock."""
MOST: Final = 100_000
"""Steps, and times, that are kept."""


class Step(BaseModel):
    """One long step of the server's own."""

    began: float
    """Seconds of the system's monotonic clock, which all processes share."""
    wall: float
    cpu: float
    where: str


class Steps(BaseModel):
    """What has happened since the last time that somebody asked."""

    long: list[Step]
    blocked: list[tuple[float, float]]
    """From when to when the program itself kept the event loop to itself."""


class _Watch(trio.abc.Instrument):
    def __init__(self) -> None:
        self.seen = Steps(long=[], blocked=[])
        self.installed = False
        self._begin()

    def _begin(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.thread_time()
        self._own_wall = self._own_cpu = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - Trio's
        self._begin()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        cpu = time.thread_time() - self._cpu - self._own_cpu
        wall = time.monotonic() - self._wall - self._own_wall
        if (cpu >= LONG or wall >= STALLED) and len(self.seen.long) < MOST:
            where = place(task) or task.name
            self.seen.long.append(Step(began=self._wall, wall=wall, cpu=cpu, where=where))

    def blocked(self, began: float, cpu: float) -> None:
        self._own_cpu += cpu
        self._own_wall += time.monotonic() - began
        if len(self.seen.blocked) < MOST:
            self.seen.blocked.append((began, time.monotonic()))

    def install(self) -> None:
        """Begin in the middle of a step, of which only the rest counts."""
        if not self.installed:
            self.installed = True
            self._begin()
            trio.lowlevel.add_instrument(self)


_watch: Final = _Watch()


@contextmanager
def program_blocks() -> Iterator[None]:
    """Note that the program itself keeps the event loop to itself meanwhile."""
    began, cpu = time.monotonic(), time.thread_time()
    try:
        yield
    finally:
        _watch.blocked(began, time.thread_time() - cpu)


def add_steps(server: MCPServer[Any]) -> None:
    """Give a server the tool `steps`, which watches from its first call on."""
    server.add_tool(steps)


async def steps() -> Steps:
    """Give the long steps since the last call, and begin anew."""
    _watch.install()
    seen, _watch.seen = _watch.seen, Steps(long=[], blocked=[])
    return seen
