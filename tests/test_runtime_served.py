"""Processes that serve an asyncio program: one and several workers, their end, and a program that never yields."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client import ClientRequestContext
from mcp_types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestParams,
    ElicitResult,
    TextContent,
)
from pydantic_core import from_json

from harness.clients import Progress, Wire, call, connected, on_trio_and_asyncio
from harness.mcp import body, headers, tool
from harness.process import POLL, ServerProcess, program, run_to_its_end, serve
from harness.redis import RedisServer
from mcp_hybrid.sessions.seal import fresh_key

pytestmark = pytest.mark.process

TARGET = program("with_asyncio")


async def elicit(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": "Ada"})


async def sample(context: ClientRequestContext, params: CreateMessageRequestParams) -> CreateMessageResult:
    return CreateMessageResult(role="assistant", content=TextContent(type="text", text="something"), model="m")


@pytest.fixture(scope="module", params=[1, pytest.param(3, marks=pytest.mark.redis)], ids=["one", "three"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    env = {"MCP_HYBRID_SESSIONS__KEYS": fresh_key()}
    if request.param > 1:
        redis: RedisServer = request.getfixturevalue("shared_redis")
        env["MCP_HYBRID_BACKPLANE"] = redis.url
    with serve(TARGET, "--workers", str(request.param), env=env) as process:
        yield process


@on_trio_and_asyncio
async def test_a_client_in_a_session_has_all_it_has_with_trio(server: ServerProcess) -> None:
    wire, progress = Wire(), Progress()
    options = {"elicitation_callback": elicit, "sampling_callback": sample}
    async with connected(server.url, "legacy", wire, **options) as client:
        assert "add" in {each.name for each in (await client.list_tools()).tools}
        assert await call(client, "add", a=1, b=2) == "3"
        assert await call(client, "ask") == "hello Ada"
        assert await call(client, "sample") == "something"
        result = await client.call_tool("count", {"steps": 3, "delay": 0.01}, progress_callback=progress)
        assert not result.is_error
        await progress.until(3)
        with anyio.move_on_after(0.2):
            await client.call_tool("wait", {"seconds": 3600})
        assert await call(client, "background") == "started"
    assert {one.route for one in wire.calls()} == {"session"}


@on_trio_and_asyncio
async def test_a_modern_client_has_progress(server: ServerProcess) -> None:
    progress = Progress()
    async with connected(server.url, "2026-07-28") as client:
        await client.call_tool("count", {"steps": 3, "delay": 0.01}, progress_callback=progress)
        await progress.until(3)
        assert await call(client, "add", a=1, b=2) == "3"


def post(server: ServerProcess, message: Any) -> Any:
    request = urllib.request.Request(server.url, body(message), dict(headers()))
    with urllib.request.urlopen(request, timeout=60) as answer:
        return from_json(answer.read())


@pytest.mark.parametrize("workers", [1, 2])
def test_the_line_that_announces_says_what_runs_the_program(workers: int) -> None:
    with serve(TARGET, "--workers", str(workers)) as server:
        server.wait_for_log('"serving"')
        (line,) = [line for line in server.log.splitlines() if '"event":"serving"' in line]
        told = from_json(line)
        assert (told["runtime"], told["runtime_reason"]) == ("asyncio", "with_asyncio.py imports asyncio")


@pytest.mark.parametrize("line", ["await asyncio.sleep(1)", "await asyncio.gather(anyio.sleep(0))"])
def test_the_log_says_what_to_set_for_a_program_on_trio(line: str, tmp_path: Path) -> None:
    source = "import anyio, asyncio\nfrom mcp.server import MCPServer\nserver = MCPServer('x')\n"
    source += f"@server.tool()\nasync def nap() -> None:\n    {line}\n"
    (tmp_path / "napping.py").write_text(source)
    with serve(str(tmp_path / "napping.py"), "--runtime", "trio") as server:
        assert post(server, tool("nap"))["result"]["isError"]
        server.wait_for_log('set runtime = \\"asyncio\\"')


def test_what_a_program_wants_of_a_loop_at_import_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text("import asyncio\nloop = asyncio.get_running_loop()\n")
    done = run_to_its_end("mcp-hybrid", "check", str(tmp_path / "early.py"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no running event loop" in line
    assert "do this in the server's lifespan" in line


LOGGING = """
import logging
import sys
import warnings
from contextlib import asynccontextmanager
from pathlib import Path

from fastmcp import Context, FastMCP
from fastmcp.utilities.logging import get_logger

logging.basicConfig(stream=sys.stderr, force=True)
file = logging.FileHandler(Path(__file__).with_name("own.log"))
logging.getLogger("own").addHandler(file)


@asynccontextmanager
async def lifespan(_):
    logging.getLogger("late").addHandler(logging.StreamHandler())
    yield


mcp = FastMCP("logging", lifespan=lifespan)


@mcp.tool
async def say(ctx: Context) -> str:
    logging.getLogger("own").warning("own words")
    logging.getLogger("late").warning("late words")
    get_logger("tool").warning("words of FastMCP's")
    warnings.warn("a warning")
    print("printed", flush=True)
    raise ValueError("words of an error's")
"""


def test_what_a_program_logs_is_json_and_what_it_prints_is_not(tmp_path: Path) -> None:
    (tmp_path / "talking.py").write_text(LOGGING)
    with serve(str(tmp_path / "talking.py"), "--log-format", "json") as server:
        assert post(server, tool("say"))["result"]["isError"]
        server.wait_for_log('"tool":"say"')
    lines = server.log.splitlines()
    assert [line for line in lines if not line.startswith("{")] == ["printed"]
    events = " ".join(str(from_json(line)["event"]) for line in lines if line.startswith("{"))
    for words in ("own words", "late words", "of FastMCP's", "UserWarning: a warning", "Error calling tool 'say'"):
        assert events.count(words) == 1
    assert "own words" in (tmp_path / "own.log").read_text()


# A program that never yields


@pytest.mark.parametrize("how", ["block", "spin"])
def test_the_server_answers_while_a_tool_never_yields(how: str) -> None:
    with serve(TARGET) as server, ThreadPoolExecutor() as pool:
        call = pool.submit(post, server, tool(how, {"seconds": 6}))
        server.wait_for_log(f'"tool":"{how}"')  # it blocks by now
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz") as answer:
            assert answer.status == 200
        assert not call.done()
        assert not call.result()["result"]["isError"]
        server.wait_for_log("was blocked")
        lines = [from_json(line) for line in server.log.splitlines() if "event loop" in line]
        assert [line["tool"] for line in lines] == [how, how]
        assert lines[0]["at"].endswith(f"in {how}")


# The end


def send(server: ServerProcess, name: str, arguments: dict[str, Any]) -> socket.socket:
    """Send a call, and give the connection."""
    message = body(tool(name, arguments))
    named = [*headers(), ("host", "localhost"), ("content-length", str(len(message)))]
    head = ["POST /mcp HTTP/1.1", *(f"{key}: {value}" for key, value in named), "", ""]
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall("\r\n".join(head).encode() + message)
    return connection


def started(server: ServerProcess, name: str, arguments: dict[str, Any]) -> socket.socket:
    """Send a call, and wait until it must have begun; give the connection."""
    connection = send(server, name, arguments)
    post(server, tool("add", {"a": 1, "b": 1}))
    return connection


def read(connection: socket.socket) -> bytes:
    connection.settimeout(60)
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def test_a_running_call_is_finished_and_the_lifespan_left(tmp_path: Path) -> None:
    record = tmp_path / "record"
    with (
        serve(TARGET, env={"RECORD_FILE": str(record)}) as server,
        started(server, "wait", {"seconds": 0.5}) as connection,
    ):
        server.stop()
        assert b"waited" in read(connection)
    assert record.read_text().split() == ["lifespan"]


def test_a_call_that_takes_too_long_is_cancelled_and_the_lifespan_left(tmp_path: Path) -> None:
    record = tmp_path / "record"
    env = {"RECORD_FILE": str(record), "MCP_HYBRID_SERVER__DRAIN_TIMEOUT": "0.2"}
    with serve(TARGET, env=env) as server, started(server, "wait", {"seconds": 3600}) as connection:
        server.stop()
        assert b"-32000" in read(connection)
    assert record.read_text().split() == ["wait", "lifespan"]


def test_a_thread_that_a_call_has_left_behind_does_not_keep_the_process() -> None:
    env = {"MCP_HYBRID_SERVER__DRAIN_TIMEOUT": "0.2"}
    with serve(TARGET, env=env) as server, started(server, "linger", {"seconds": 40}) as connection:
        server.stop()
        assert b"-32000" in read(connection)


def test_a_second_signal_ends_it_at_once() -> None:
    with serve(TARGET) as server, started(server, "wait", {"seconds": 3600}):
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for_log('"stopping"')
        server.stop(-signal.SIGTERM)


@pytest.mark.parametrize("how", ["block", "spin"])
def test_a_program_that_never_yields_does_not_keep_the_process(how: str) -> None:
    with serve(TARGET, env={"MCP_HYBRID_SERVER__DRAIN_TIMEOUT": "0.2"}) as server:
        with started_blocking(server, how) as connection:
            server.stop(1, within=30)
            assert b"-32000" in read(connection)
        assert "is abandoned" in server.log or "ended by force" in server.log


def started_blocking(server: ServerProcess, how: str) -> socket.socket:
    """Send a call that never yields, and wait until it has begun; give the connection."""
    connection = send(server, how, {"seconds": 40})
    server.wait_for_log(f'"tool":"{how}"')
    return connection


def test_workers_are_reloaded(tmp_path: Path) -> None:
    record = tmp_path / "record"
    with serve(TARGET, "--workers", "2", env={"RECORD_FILE": str(record)}) as server:
        assert post(server, tool("add", {"a": 1, "b": 2}))["result"]["content"][0]["text"] == "3"
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for_log('"reloaded"')
        assert post(server, tool("add", {"a": 1, "b": 2}))["result"]["content"][0]["text"] == "3"
        until = time.monotonic() + 60
        while not record.exists() or len(record.read_text().split()) < 2:
            assert time.monotonic() < until
            time.sleep(POLL)
    assert re.fullmatch(r"(lifespan\n){4}", record.read_text())
