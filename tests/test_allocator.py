"""What a process has freed is the system's again, also where results are large."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import httpx2
import pytest
import trio

from harness import mcp
from harness.logged import errors_logged
from harness.process import ServerProcess, program, serve
from mcp_hybrid.server import allocator
from mcp_hybrid.server.allocator import GROWN, LONGEST, SHORTEST, WORTHWHILE, find_trim, keep_trimming

KEPT = 24
"""MiB that a process may keep in the end. Untrimmed it keeps 60 to 150."""
PATIENCE = 60.0


class Process:
    """A process whose size is said; a trim takes off what is free."""

    def __init__(self) -> None:
        self.size = 100 * GROWN
        self.free = 0
        self.trims: list[float] = []

    async def trim(self) -> None:
        self.trims.append(trio.current_time())
        self.size -= self.free
        self.free = 0


@pytest.fixture
async def process(nursery: trio.Nursery) -> Process:
    made = Process()
    nursery.start_soon(keep_trimming, made.trim, lambda: made.size)
    await trio.sleep(0.1)  # it has looked once
    return made


async def test_a_process_that_has_not_grown_is_left_alone(process: Process, autojump_clock: object) -> None:
    process.size += GROWN - 1
    await trio.sleep(100 * SHORTEST)
    assert process.trims == []


async def test_freed_memory_is_given_back_again_and_again(process: Process, autojump_clock: object) -> None:
    small = process.size
    for trims in (1, 2, 3):
        process.size, process.free = process.size + GROWN, GROWN
        await trio.sleep(1.5 * SHORTEST)
        assert len(process.trims) == trims
        assert process.size == small


async def test_memory_in_use_is_looked_for_less_and_less_often(process: Process, autojump_clock: object) -> None:
    process.size += GROWN
    process.free = WORTHWHILE - 1
    process.size += process.free
    await trio.sleep(1000 * SHORTEST)
    gaps = [b - a for a, b in zip(process.trims, process.trims[1:], strict=False)]
    assert gaps == sorted(gaps)
    assert gaps[0] == 2 * SHORTEST
    assert set(gaps[5:]) == {LONGEST}
    process.free = WORTHWHILE
    await trio.sleep(LONGEST + 1)
    process.size, process.free, before = process.size + WORTHWHILE, WORTHWHILE, len(process.trims)
    await trio.sleep(1.5 * SHORTEST)
    assert len(process.trims) == before + 1, "one that was worth it is followed by another soon"


async def test_a_trim_that_fails_does_not_end_the_server(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    def fail() -> int:
        raise OSError("no such file")

    monkeypatch.setattr(allocator, "find_trim", lambda: lambda: None)
    monkeypatch.setattr(allocator, "resident", fail)
    over = trio.Event()
    with errors_logged() as errors:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(allocator.give_back_until, over)
            await trio.sleep(10 * SHORTEST)
            over.set()
    (error,) = errors
    assert "giving memory back failed" in error


def resident(server: ServerProcess) -> float:
    """Give the resident memory in MiB."""
    (line,) = (line for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if "VmRSS" in line)
    return int(line.split()[1]) / 1024


async def call_many(url: str, calls: int) -> None:
    """Have large results made, several at a time, among small ones."""

    async def call(client: httpx2.AsyncClient) -> None:
        for number in range(calls):
            for size in (4_000_000 + number * 100_000, 1000):
                message = mcp.tool("large", {"size": size})
                answer = await client.post(url, headers=mcp.headers(), content=mcp.body(message))
                assert answer.status_code == 200

    async with httpx2.AsyncClient(timeout=60) as client, anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(call, client)


@pytest.mark.process
@pytest.mark.measures
@pytest.mark.skipif(find_trim() is None, reason="this C library has nothing to be asked")
def test_the_memory_of_large_results_is_given_back() -> None:
    """It waits for a look that the server takes every fifteen seconds."""
    with serve(program("hostile_tools"), env={"MCP_HYBRID_LOG__LEVEL": "warning"}) as server:
        before = resident(server)
        anyio.run(call_many, server.url, 6)
        until = time.monotonic() + PATIENCE
        while resident(server) > before + KEPT:
            assert time.monotonic() < until, f"{resident(server)} MiB after {before}"
            time.sleep(0.2)
