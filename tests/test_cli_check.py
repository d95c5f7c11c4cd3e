"""`mcp-hybrid check` and the small commands: what is shown, and what a mistake is told."""

from __future__ import annotations

import base64
import os
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mcp_hybrid.cli import app

KEY = base64.b64encode(bytes(range(224, 256))).decode()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("MCP_HYBRID_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(app, arguments, env=environ)


def row(result: Result, key: str) -> list[str]:
    (line,) = [line for line in result.stdout.splitlines() if line.split()[:1] == [key]]
    return line.rstrip().split(maxsplit=2)


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("mcp-hybrid: ")
    for part in parts:
        assert part in line


def test_check_shows_every_setting_its_value_and_where_it_came_from() -> None:
    Path("settings.toml").write_text('path = "/here"', encoding="utf-8")
    result = run(
        "check", "--config", "settings.toml", "--port", "81", "--log-level", "debug", MCP_HYBRID_MODE="stateless"
    )
    assert result.exit_code == 0, result.output
    assert row(result, "path") == ["path", "/here", "file settings.toml"]
    assert row(result, "server.port") == ["server.port", "81", "command line"]
    assert row(result, "log.level") == ["log.level", "debug", "command line"]
    assert row(result, "mode") == ["mode", "stateless", "environment MCP_HYBRID_MODE"]
    assert row(result, "target") == ["target", "none", "default"]
    assert row(result, "security.allowed_hosts")[1] == "127.0.0.1,localhost,[::1]"


def test_check_names_the_server_it_would_serve() -> None:
    assert "serves mcp-hybrid-demo (MCPServer)" in run("check").stdout
    Path("mine.py").write_text("from mcp.server.lowlevel import Server\nx = Server('low')", encoding="utf-8")
    assert "serves low (low-level Server)" in run("check", "mine.py").stdout


def test_check_counts_session_keys_and_shows_none() -> None:
    result = run("check", MCP_HYBRID_SESSIONS__KEYS=f"{KEY},{KEY}")
    assert row(result, "sessions.keys") == ["sessions.keys", "2", "environment MCP_HYBRID_SESSIONS__KEYS"]
    assert KEY not in result.output


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_bad_target_is_one_line_and_exit_code_2(command: str) -> None:
    assert_one_line(run(command, "nowhere.py"), "file nowhere.py does not exist")


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_bad_setting_is_one_line_and_exit_code_2(command: str) -> None:
    assert_one_line(run(command, "--mode", "x"), "mode (command line): 'x'", "hybrid, stateless or stateful")
    assert_one_line(run(command, MCP_HYBRID_MOD="x"), "MCP_HYBRID_MOD", "MCP_HYBRID_MODE")
    assert_one_line(run(command, "--config", "none.toml"), "none.toml")


def test_a_bad_session_key_is_not_shown() -> None:
    result = run("check", MCP_HYBRID_SESSIONS__KEYS="c2VjcmV0")
    assert_one_line(result, "key 1 of 1")
    assert "c2VjcmV0" not in result.output


def test_an_unknown_option_is_exit_code_2() -> None:
    result = run("check", "--nonsense")
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_an_unknown_protocol_is_one_line_and_exit_code_2() -> None:
    assert_one_line(run("call", "http://127.0.0.1:1/mcp", "add", "--protocol", "old"), "legacy, modern or auto")


def test_a_session_key_is_32_bytes_of_base64_and_a_fresh_one_each_time() -> None:
    first, second = (run("session-key").stdout.strip() for _ in range(2))
    assert len(base64.b64decode(first, validate=True)) == 32
    assert first != second
    assert run("check", MCP_HYBRID_SESSIONS__KEYS=first).exit_code == 0


def test_the_version_is_the_packages() -> None:
    assert run("version").stdout.strip() == version("mcp-hybrid")
