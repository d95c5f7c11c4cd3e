"""One real server of a hostile program, and clients that behave: who else notices what its tools do."""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio
import httpx2
import pytest

from harness import mcp
from harness.process import ServerProcess, program, serve
from harness.programs import load_program
from harness.sse import EventReader

HOSTILE_CALLS: Final = 120
HOSTILE_CLIENTS: Final = 8
GOOD_CLIENTS: Final = 4
REQUEST_TIMEOUT: Final = 2
SETTINGS: Final = {
    "MCP_HYBRID_REQUEST_TIMEOUT": f"{REQUEST_TIMEOUT}s",
    "MCP_HYBRID_STREAM_AFTER": "200ms",
    "MCP_HYBRID_LIMITS__TOOL_THREADS": "16",
    "MCP_HYBRID_LOG__LEVEL": "warning",
}

KINDS: Final = [*load_program("hostile").EXCEPTIONS, "argparse"]

_GOOD: Final = mcp.tool("add", {"a": 1, "b": 2})


def hostile_call(chance: random.Random, number: int) -> dict[str, Any]:
    """Choose what a hostile client calls."""
    kind = chance.choice(KINDS)
    name, arguments = chance.choice(
        [
            ("raises", {"kind": kind}),
            ("raises", {"kind": kind}),
            ("raises_in_thread", {"kind": kind}),
            ("hang", {"seconds": REQUEST_TIMEOUT + 1}),
            ("hang", {"seconds": 0.1}),
            ("hang_in_thread", {"seconds": 0.1}),
            ("ignore_cancellation", {"seconds": 0.2}),
            ("hog", {}),
            ("large", {"size": 1_000_000}),
            ("burst", {"messages": 50}),
            ("cancel_self", {}),
            ("leave_scope_open", {}),
            ("leave_tasks_behind", {}),
            ("close_own_stream", {}),
            ("other_loop", {}),
            ("bad_progress", {}),
            ("leave_clean_up", {"kind": kind}),
        ]
    )
    return mcp.tool(name, arguments, id=number, token=number)


def read(answer: httpx2.Response) -> list[dict[str, Any]]:
    """Give the JSON-RPC messages of an answer."""
    if answer.headers["content-type"] == "application/json":
        return [answer.json()]
    return [event.json() for event in EventReader().feed(answer.content) if event.data]


async def call(client: httpx2.AsyncClient, url: str, how: str, session: str, message: Any) -> httpx2.Response:
    if how == "modern":
        return await client.post(url, headers=mcp.modern_headers(message), content=mcp.body(mcp.modern(message)))
    sent = mcp.headers(session, mcp.LEGACY) if how == "session" else mcp.headers()
    return await client.post(url, headers=sent, content=mcp.body(message))


async def opened(client: httpx2.AsyncClient, url: str) -> str:
    answer = await client.post(url, headers=mcp.headers(), content=mcp.body(mcp.initialize()))
    session: str = answer.headers["mcp-session-id"]
    return session


async def be_hostile(url: str, chance: random.Random, calls: int, faults: list[str]) -> None:
    async with httpx2.AsyncClient(timeout=60) as client:
        session = await opened(client, url)
        for number in range(calls):
            message = hostile_call(chance, number)
            how = chance.choice(["session", "modern", "stateless"])
            answer = await call(client, url, how, session, message)
            ends = [each for each in read(answer) if "id" in each]
            closed_early = message["params"]["name"] == "close_own_stream" and how == "session"
            if not closed_early and (len(ends) != 1 or ends[0]["jsonrpc"] != "2.0" or ends[0]["id"] != number):
                faults.append(f"{message['params']} by {how}: {answer.status_code} {answer.content[:200]!r}")


async def be_good(url: str, done: anyio.Event, faults: list[str]) -> None:
    async with httpx2.AsyncClient(timeout=60) as client:
        session = await opened(client, url)
        while not done.is_set():
            for how in ("session", "modern", "stateless"):
                answer = await call(client, url, how, session, _GOOD)
                if answer.status_code != 200 or read(answer)[-1]["result"]["structuredContent"] != {"result": 3}:
                    faults.append(f"{how}: {answer.status_code} {answer.content[:200]!r}")


async def mix(url: str, seed: int) -> list[str]:
    """Run hostile and good clients at the same time, and give what went wrong."""
    faults: list[str] = []
    done = anyio.Event()

    async def all_hostile() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(HOSTILE_CLIENTS):
                chance = random.Random(seed * 100 + number)
                tasks.start_soon(be_hostile, url, chance, HOSTILE_CALLS // HOSTILE_CLIENTS, faults)
        done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(all_hostile)
        for _ in range(GOOD_CLIENTS):
            tasks.start_soon(be_good, url, done, faults)
    return faults


def descriptors(server: ServerProcess) -> int:
    return sum(1 for _ in Path(f"/proc/{server.pid}/fd").iterdir())


def memory(server: ServerProcess) -> int:
    """Give the resident memory in MiB."""
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def figure(server: ServerProcess, name: str) -> float:
    page = httpx2.get(server.url.replace("/mcp", "/metrics"), timeout=30).text
    (line,) = [line for line in page.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def settle(server: ServerProcess) -> None:
    """Wait until no abandoned thread is left."""
    until = time.monotonic() + 60
    while figure(server, "mcp_hybrid_abandoned_threads"):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.process
def test_nobody_else_notices_what_hostile_tools_do() -> None:
    with serve(program("hostile"), env=SETTINGS) as server:
        pid = server.pid
        assert anyio.run(mix, server.url, 1, backend="trio") == []
        settle(server)
        before = descriptors(server), memory(server)
        assert anyio.run(mix, server.url, 2, backend="trio") == []
        settle(server)
        assert server.pid == pid
        assert figure(server, "mcp_hybrid_calls_abandoned_total") > 0
        assert descriptors(server) <= before[0] + 5
        assert memory(server) <= before[1] + 40


@pytest.mark.process
def test_abandoned_threads_do_not_keep_the_process_from_ending() -> None:
    with serve(program("hostile"), env={**SETTINGS, "MCP_HYBRID_SERVER__DRAIN_TIMEOUT": "1s"}) as server:
        answer = httpx2.post(
            server.url, headers=mcp.headers(), content=mcp.body(mcp.tool("hang", {"seconds": 100})), timeout=60
        )
        assert answer.json()["error"]["code"] == -32603
        began = time.monotonic()
    assert time.monotonic() - began < 50, "it did not wait for the thread"
    assert "call abandoned" in server.log


@pytest.mark.process
def test_no_worker_is_lost_to_tools_that_exit() -> None:
    with serve(program("hostile"), "--workers", "2", env=SETTINGS) as server:
        before = children(server.pid)
        for number in range(5):
            for kind in ("exit", "keyboard", "generator"):
                message = mcp.tool("raises", {"kind": kind}, id=number)
                answer = httpx2.post(server.url, headers=mcp.headers(), content=mcp.body(message), timeout=60)
                assert answer.json()["error"]["code"] == -32603
        assert children(server.pid) == before


def children(pid: int) -> set[str]:
    """Give the workers. Any thread of the master may have started them, so /proc is asked for their parent."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "stat").read_text().rpartition(")")[2].split()[1] == str(pid):
                found.add(folder.name)
    return found
