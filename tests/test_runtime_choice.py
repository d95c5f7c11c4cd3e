"""Which runtime a program is given, and why: by what its own modules import."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mcp_hybrid.cli import app
from mcp_hybrid.runtime.choice import choose
from mcp_hybrid.runtime.names import RuntimeName
from mcp_hybrid.targets import load_target

MCPSERVER = "from mcp.server import MCPServer\nserver = MCPServer('x')\n"
LOWLEVEL = "from mcp.server.lowlevel import Server\nserver = Server('x')\n"
FASTMCP = "from fastmcp import FastMCP\nserver = FastMCP('x')\n"

TRIO, ASYNCIO = RuntimeName.TRIO, RuntimeName.ASYNCIO

CASES = {
    "nothing": (MCPSERVER, TRIO, "nothing in its code needs asyncio"),
    "a low-level server": (LOWLEVEL, TRIO, "nothing in its code needs asyncio"),
    "anyio": ("import anyio\n" + MCPSERVER, TRIO, "nothing in its code needs asyncio"),
    "asyncio": ("import asyncio\n" + MCPSERVER, ASYNCIO, "program.py imports asyncio"),
    "a low-level server with asyncio": ("import asyncio\n" + LOWLEVEL, ASYNCIO, "program.py imports asyncio"),
    "by name": ("from asyncio import sleep\n" + MCPSERVER, ASYNCIO, "program.py imports asyncio"),
    "in a function": (
        MCPSERVER + "@server.tool()\nasync def t() -> None:\n    import aiohttp\n",
        ASYNCIO,
        "program.py imports aiohttp",
    ),
    "a part of a library": (
        MCPSERVER + "def f():\n    from redis import asyncio as r\n",
        ASYNCIO,
        "program.py imports redis.asyncio",
    ),
    "another part of it": (MCPSERVER + "def f():\n    import redis\n", TRIO, "nothing in its code needs asyncio"),
    "when it is the program": (
        MCPSERVER + "if __name__ == '__main__':\n    import asyncio\n    asyncio.run(server.run_stdio_async())\n",
        TRIO,
        "nothing in its code needs asyncio",
    ),
    "for type checkers": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import asyncio\n" + MCPSERVER,
        TRIO,
        "nothing in its code needs asyncio",
    ),
    "trio": ("import trio\n" + MCPSERVER, TRIO, "program.py imports trio"),
    "both": ("import asyncio, trio\n" + MCPSERVER, TRIO, "program.py imports trio"),
    "FastMCP": (FASTMCP, ASYNCIO, "FastMCP is made for asyncio"),
    "FastMCP and trio": ("import trio\n" + FASTMCP, TRIO, "program.py imports trio"),
    "a module beside it": ("import beside\n" + MCPSERVER, ASYNCIO, "beside.py imports asyncio"),
    "a package beside it": ("import package.part\n" + MCPSERVER, ASYNCIO, "other.py imports asyncpg"),
    "a library": (
        "import anyio, mcp.client, starlette.concurrency\n" + MCPSERVER,
        TRIO,
        "nothing in its code needs asyncio",
    ),
    "where its tools are": (
        "from tools import tool\n" + MCPSERVER + "server.tool()(tool)\n",
        ASYNCIO,
        "tools.py imports asyncio",
    ),
}


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "beside.py").write_text("import asyncio\n")
    (tmp_path / "tools.py").write_text("import asyncio\nasync def tool() -> str:\n    return ''\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("")
    (tmp_path / "package/part.py").write_text("from . import other\n")
    (tmp_path / "package/other.py").write_text("def f() -> None:\n    from asyncpg.pool import Pool\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("case", CASES)
def test_auto_is_decided_by_what_the_program_imports(case: str) -> None:
    source, name, reason = CASES[case]
    Path("program.py").write_text(source)
    chosen = choose(load_target("program.py:server"), RuntimeName.AUTO)
    assert (chosen.name, chosen.reason) == (name, reason)


def test_a_server_that_is_mounted_counts() -> None:
    Path("program.py").write_text(MCPSERVER)
    load_target("program.py:server")
    Path("outer.py").write_text(
        "from mcp_hybrid import HybridApp\nimport beside\nfrom mcp.server import MCPServer\nserver = MCPServer('o')\n"
    )
    assert choose(load_target("outer.py:server"), RuntimeName.AUTO).name is ASYNCIO


@pytest.mark.parametrize("name", [TRIO, ASYNCIO])
def test_what_is_set_is_not_decided(name: RuntimeName) -> None:
    Path("program.py").write_text(FASTMCP)
    chosen = choose(load_target("program.py:server"), name)
    assert (chosen.name, chosen.reason) == (name, "runtime is set")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "runtime: asyncio (program.py imports asyncio)"),
        (["--runtime", "trio"], "runtime: trio (runtime is set)"),
    ],
)
def test_check_says_which_and_why(options: list[str], words: str) -> None:
    Path("program.py").write_text("import asyncio\n" + MCPSERVER)
    shown = CliRunner().invoke(app, ["check", "program.py", *options])
    assert shown.exit_code == 0, shown.output
    assert words in shown.stdout.splitlines()


def test_a_runtime_that_there_is_not_is_one_line() -> None:
    shown = CliRunner().invoke(app, ["check", "--runtime", "curio"])
    assert shown.exit_code == 2
    assert "expected auto, trio or asyncio" in shown.stderr
