"""`mcp-hybrid sessions`: against a real server, as an operator types it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from harness.mcp import headers, initialize, notification, request
from harness.process import ServerProcess, command, free_port, program, run_to_its_end, serve

pytestmark = pytest.mark.process

KEY = "an-admin-key-of-some-length"
VARIABLE = "MCP_HYBRID_OPERATOR__ADMIN_KEY"
SLOW = 60.0
"""Seconds for an answer of a server that may still be starting its workers."""
DOCUMENT = (Path(__file__).parent.parent / "docs" / "operating.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serve(program("launched"), env={VARIABLE: KEY}) as running:
        yield running


@pytest.fixture
def session(server: ServerProcess) -> Iterator[str]:
    """Open a session, and end it afterwards."""
    opened: str = httpx2.post(server.url, headers=headers(), json=initialize(), timeout=SLOW).headers["mcp-session-id"]
    httpx2.post(server.url, headers=headers(opened), json=notification("notifications/initialized"), timeout=SLOW)
    yield opened
    httpx2.delete(server.url, headers=headers(opened), timeout=SLOW)


def base(server: ServerProcess) -> str:
    return server.url.removesuffix("/mcp")


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MCP_HYBRID_")} | more


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run_to_its_end("mcp-hybrid", "sessions", *arguments, **env)


def on_terminal(*arguments: str, **env: str) -> str:
    """Run the command on a terminal and give what it shows."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*command("mcp-hybrid"), "sessions", *arguments],
        env=environment(TERM="dumb", COLUMNS="160", **env), stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # EIO: nobody is left on the other side
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    assert process.wait(10) == 0
    return shown.decode()


def test_sessions_are_listed_one_to_a_line_with_tabs_between(server: ServerProcess, session: str) -> None:
    done = run("list", "--url", base(server), **{VARIABLE: KEY})
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    digest, owner, client, protocol, age, idle, now = line.split("\t")
    assert re.fullmatch(r"[0-9a-f]{32}", digest)
    assert (owner, client, protocol, now) == ("anonymous", "harness 1", "2025-11-25", "idle")
    assert re.fullmatch(r"\d+[sm]", age)
    assert re.fullmatch(r"\d+[sm]", idle)
    assert session not in done.stdout


def test_on_a_terminal_there_is_a_table(server: ServerProcess, session: str) -> None:
    lines = on_terminal("list", "--url", base(server), **{VARIABLE: KEY}).splitlines()
    assert lines[0].split() == ["session", "owner", "client", "protocol", "age", "idle", "now"]
    assert "harness 1" in lines[1]


def test_a_client_cannot_write_on_the_operators_terminal(server: ServerProcess) -> None:
    opening = initialize()
    opening["params"]["clientInfo"] = {"name": "\x1b[2J[red]\nx\ty", "version": "1"}
    opened = httpx2.post(server.url, headers=headers(), json=opening, timeout=SLOW).headers["mcp-session-id"]
    httpx2.post(server.url, headers=headers(opened), json=notification("notifications/initialized"), timeout=SLOW)
    try:
        done = run("list", "--url", base(server), **{VARIABLE: KEY})
        (line,) = done.stdout.splitlines()
        assert line.split("\t")[2] == "\N{REPLACEMENT CHARACTER}[2J[red] x y 1"
        shown = on_terminal("list", "--url", base(server), **{VARIABLE: KEY})
        assert "[red]" in shown
        assert "\x1b[2J" not in shown
    finally:
        httpx2.delete(server.url, headers=headers(opened), timeout=SLOW)


def test_a_session_is_ended_by_the_hash_that_the_log_has(server: ServerProcess, session: str) -> None:
    short = run("list", "--url", base(server), **{VARIABLE: KEY}).stdout[:12]
    server.wait_for_log(f'"session":"{short}"')
    done = run("end", short, "--url", base(server), **{VARIABLE: KEY})
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"ended {short}[0-9a-f]{{20}}\n", done.stdout)
    assert httpx2.post(server.url, headers=headers(session), json=request("ping"), timeout=SLOW).status_code == 404


def test_the_commands_of_the_document_work_as_printed(server: ServerProcess, session: str) -> None:
    export, asking = re.findall(r"^```sh\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    name = run("list", "--url", base(server), **{VARIABLE: KEY}).stdout[:12]
    asking = asking.replace("http://127.0.0.1:8000", base(server)).replace("282acbf3599a", name)
    folder = str(Path(command("mcp-hybrid")[0]).parent)
    env = environment(**{VARIABLE: KEY}, PATH=f"{folder}:{os.environ['PATH']}")
    done = subprocess.run(["sh", "-ec", asking], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1].startswith(f"ended {name}")
    shown = f"{export}mcp-hybrid check"
    made = subprocess.run(["sh", "-ec", shown], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert re.search(rf"operator\.admin_key +set +environment {VARIABLE}", made.stdout), made.stderr


def test_where_to_ask_and_the_key_come_from_the_settings(server: ServerProcess, session: str, tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text(f'[server]\nport = {server.port}\n[operator]\nadmin_key = "{KEY}"\n', encoding="utf-8")
    done = run("list", "--config", str(config))
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "env", "code", "says"),
    [
        pytest.param(["list"], {}, 2, "operator.admin_key is not set", id="no key"),
        pytest.param(["list"], {VARIABLE: "short"}, 2, "the key has 5 characters", id="a short key"),
        pytest.param(["list"], {VARIABLE: "x" * 24}, 1, "needs the operator's admin key", id="a wrong key"),
        pytest.param(["end", "0" * 12], {VARIABLE: KEY}, 1, "No live session's hash", id="an unknown hash"),
        pytest.param(["end", "../x"], {VARIABLE: KEY}, 2, "is no session's hash", id="no hash"),
        pytest.param(["list", "--url", "nowhere"], {VARIABLE: KEY}, 2, "--url: 'nowhere'", id="no URL"),
    ],
)
def test_what_goes_wrong_is_one_line(
    arguments: list[str], env: dict[str, str], code: int, says: str, server: ServerProcess
) -> None:
    where = [] if "--url" in arguments else ["--url", base(server)]
    done = run(*arguments, *where, **env)
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert says in line
    assert done.stdout == ""


def test_a_server_that_is_not_there_is_one_line() -> None:
    done = run("list", "--url", f"http://127.0.0.1:{free_port()}", **{VARIABLE: KEY})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "is a server running there?" in line


def test_a_server_without_the_page_is_told_apart_from_a_session_that_is_not_there() -> None:
    with serve(program("launched")) as without:
        done = run("list", "--url", base(without), **{VARIABLE: KEY})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "is operator.admin_key set there" in line
