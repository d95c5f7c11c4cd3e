"""Each kind of server, served by name, by our own command and by Hypercorn's, to a real client in a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import anyio
import pytest
from mcp import Client
from mcp.client import ClientRequestContext
from mcp_types import ElicitRequestParams, ElicitResult

from harness.clients import Progress, Wire, call, connected, on_trio_and_asyncio
from harness.process import PROGRAMS, ServerProcess, free_port, hypercorn, program, run_to_its_end, serve

pytestmark = pytest.mark.process

KINDS = ["with_mcpserver", "with_lowlevel", "with_fastmcp", "with_asyncio"]

ENDLESS = 10**6
"""Steps of a call that reports and does not come to its end in the life of a test."""


def by_our_command(target: str) -> ServerProcess:
    return serve(target)


def by_hypercorn(target: str) -> ServerProcess:
    return hypercorn(env={"MCP_HYBRID_TARGET": target})


WAYS = [by_our_command, by_hypercorn]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way.__name__)
def server(request: pytest.FixtureRequest, kind: str) -> Iterator[ServerProcess]:
    way: Callable[[str], ServerProcess] = request.param
    with way(program(kind)) as process:
        yield process


async def elicit(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": "Ada"})


def name_of(client: Client) -> str | None:
    return client.server_info.name if client.server_info is not None else None


async def see_progress_and_cancel(client: Client) -> None:
    """Follow a call that would go on for hours: what is seen of it was sent while it runs."""
    progress = Progress()
    async with anyio.create_task_group() as tasks:
        arguments = {"steps": ENDLESS, "delay": 0.01}
        tasks.start_soon(lambda: client.call_tool("count", arguments, progress_callback=progress))
        for value in (1, 2, 3):
            await progress.until(value)
        tasks.cancel_scope.cancel()


@on_trio_and_asyncio
async def test_each_kind_of_server_has_progress_in_a_session(server: ServerProcess, kind: str) -> None:
    wire, progress = Wire(), Progress()
    async with connected(server.url, "legacy", wire) as client:
        assert name_of(client) == kind.replace("_", "-")
        await see_progress_and_cancel(client)
        result = await client.call_tool("count", {"steps": 3, "delay": 0.01}, progress_callback=progress)
        assert not result.is_error
        await progress.until(3)
        assert sorted(progress.values) == [1, 2, 3]  # the client runs callbacks in no certain order
        assert await call(client, "add", a=1, b=2) == "3"
    assert {one.route for one in wire.calls()} == {"session"}


@on_trio_and_asyncio
async def test_each_kind_of_server_asks_in_a_session(server: ServerProcess) -> None:
    async with connected(server.url, "legacy", elicitation_callback=elicit) as client:
        assert await call(client, "ask") == "hello Ada"


@on_trio_and_asyncio
async def test_each_kind_of_server_has_progress_at_2026_07_28(server: ServerProcess) -> None:
    async with connected(server.url, "2026-07-28") as client:
        await see_progress_and_cancel(client)
        assert await call(client, "add", a=1, b=2) == "3"


# The ways to name one


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "target",
    [f"{PROGRAMS}/with_mcpserver.py:server", f"{PROGRAMS}/with_mcpserver.py", "with_mcpserver:server"],
    ids=["file and name", "file", "module"],
)
async def test_a_target_is_found_by_file_and_by_module(
    target: str, way: Callable[[str], ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not target.partition(":")[0].endswith(".py"):
        monkeypatch.setenv("PYTHONPATH", str(PROGRAMS), prepend=":")
    with way(target) as server:
        async with connected(server.url, "legacy") as client:
            assert name_of(client) == "with-mcpserver"


BAD = {
    "no such file": ("nowhere.py", "file nowhere.py does not exist"),
    "no such module": ("nowhere_at_all:server", 'module "nowhere_at_all" was not found'),
    "no such name": ("empty.py:server", 'empty.py has no "server"'),
    "no server in it": ("empty.py", "empty.py holds no server"),
    "no server": ("empty.py:nothing", "empty.py:nothing is an object of type builtins.int"),
    "of no known form": ("just-a-word", 'target "just-a-word" is not of the form'),
    "that fails": ("broken.py", "importing broken.py raised ZeroDivisionError: division by zero"),
    "that exits": ("leaves.py", "importing leaves.py raised SystemExit"),
}


BY_OURS = [("mcp-hybrid serve", which) for which in BAD]
BY_THEIRS = [(way, which) for way in ("hypercorn", "hypercorn -w 0") for which in ("no such file", "that fails")]


@pytest.mark.parametrize(("way", "which"), BY_OURS + BY_THEIRS)
def test_a_bad_target_is_one_line_and_exit_code_2(way: str, which: str, tmp_path: Path) -> None:
    target, words = BAD[which]
    (tmp_path / "empty.py").write_text("nothing = 0\n")
    (tmp_path / "broken.py").write_text("nothing = 1 / 0\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(7)\n")
    name, *options = way.split()
    port = str(free_port())
    if name == "mcp-hybrid":
        arguments, variables = [*options, target, "--port", port], {}
    else:
        arguments = [*options, "-k", "trio", "-b", f"127.0.0.1:{port}", "mcp_hybrid.asgi:app"]
        variables = {"MCP_HYBRID_TARGET": target}
    with chdir(tmp_path):
        done = run_to_its_end(name, *arguments, **variables)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mcp-hybrid: {words}")
    assert done.stdout == ""
    # Hypercorn 0.18 itself ends with 0 whatever became of its workers.
    assert done.returncode == (0 if way == "hypercorn" else 2)
