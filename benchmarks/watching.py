"""What server processes hold, seen from outside and from within, and whether it is as much after a load as before.

The server must be `tests/programs/watched.py`, whose tool `vitals` tells what only the process itself can know.
Linux only: descriptors and memory are read from /proc.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import trio
from initialize_flood import memory

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the tests' raw client is the scripts', too

from harness import mcp
from harness.process import program
from harness.raw import RawClient

TARGET = program("watched")
ANSWER = 30.0
"""Seconds one look may take: the server is busy."""
POLL = 0.25
"""Seconds between two looks while a process is settling."""
LOOKS = 200
"""Connections that are opened to meet every worker: which of them takes one is the system's to say."""


@dataclass(frozen=True)
class Held:
    """What one process holds."""

    descriptors: int
    tasks: int
    sessions: int
    rss: int
    """Resident memory, in KiB."""

    def __str__(self) -> str:
        memory = f"{self.rss / 1024:.1f} MiB"
        return f"{self.descriptors} descriptors, {self.tasks} tasks, {self.sessions} sessions, {memory}"


async def look(port: int) -> tuple[int, Held]:
    """Ask whichever worker answers; give its process id and what it holds."""
    with trio.fail_after(ANSWER):
        async with RawClient.open(port) as client:
            await client.post(mcp.tool("vitals"))
            assert (await client.answer_head()).status == 200
            vitals = (await client.answer_json())["result"]["structuredContent"]
            pid = vitals["pid"]
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - and no wait: it is no file
    return pid, Held(descriptors, vitals["tasks"], vitals["sessions"], memory(pid)[0])


async def look_at_all(port: int, workers: int = 1) -> dict[int, Held]:
    """Ask until every worker has answered."""
    found: dict[int, Held] = {}
    for _ in range(LOOKS):
        pid, held = await look(port)
        found[pid] = held
        if len(found) == workers:
            break
    return found


async def settled(port: int, before: Mapping[int, Held], within: float) -> dict[int, Held]:
    """Wait until every worker holds no more than the most that one did before, memory aside, or time is over.

    Workers that were replaced meanwhile are compared like the others: they are all alike.
    """
    descriptors = max(held.descriptors for held in before.values())
    tasks = max(held.tasks for held in before.values())
    until = trio.current_time() + within
    while True:
        now = await look_at_all(port, len(before))
        over = [held for held in now.values() if held.descriptors > descriptors or held.tasks > tasks or held.sessions]
        if not over or trio.current_time() > until:
            return now
        await trio.sleep(POLL)


async def connections(port: int) -> dict[int, list[str]]:
    """Ask which connections are served, by the clients' ports, and where their tasks are; our own is left out."""
    with trio.fail_after(ANSWER):
        async with RawClient.open(port) as client:
            own = client.stream.socket.getsockname()[1]
            await client.post(mcp.tool("connections"))
            assert (await client.answer_head()).status == 200
            found = (await client.answer_json())["result"]["structuredContent"]["result"]
    return {each["port"]: each["waits"] for each in found if each["port"] != own}
