"""The server as processes: how they start, share their work, tell what they do, and end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from harness.mcp import headers, initialize, notification, request, tool
from harness.process import POLL, ServerProcess, command, free_port, hypercorn, program, serve
from harness.process import run_to_its_end as run
from harness.sse import EventReader
from mcp_hybrid.sessions.seal import fresh_key

pytestmark = pytest.mark.process

LAUNCHED = program("launched")
Start = Callable[[dict[str, str]], ServerProcess]
KEY = {"MCP_HYBRID_SESSIONS__KEYS": fresh_key()}
"""For Hypercorn's own workers, which nobody else gives a common one."""

GRACEFUL = ("--graceful-timeout", "60")
"""Hypercorn's own time for draining is 3 s, which a busy machine needs for other things."""

ONE: Start = lambda env: serve(LAUNCHED, env=env)  # noqa: E731 - a table of ways to start reads better in lines
TWO: Start = lambda env: serve(LAUNCHED, "--workers", "2", env=env)  # noqa: E731 - as above
BY_NAME: Start = lambda env: hypercorn(*GRACEFUL, env={**env, "MCP_HYBRID_TARGET": LAUNCHED})  # noqa: E731 - as above
TWO_BY_NAME: Start = lambda env: hypercorn(  # noqa: E731 - as above
    *GRACEFUL, "-w", "2", env={**env, **KEY, "MCP_HYBRID_TARGET": LAUNCHED}
)


def post(url: str, message: Any, session: str | None = None) -> httpx2.Response:
    """Send one message on a connection of its own."""
    return httpx2.post(url, headers=headers(session), json=message, timeout=120)


def open_session(url: str) -> str:
    return post(url, initialize()).headers["mcp-session-id"]


def text(answer: httpx2.Response) -> str:
    result: str = answer.json()["result"]["content"][0]["text"]
    return result


@contextmanager
def streaming(url: str, message: Any, session: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Send a message and hand over what precedes its result, and the result, as they come."""

    def messages(chunks: Iterator[bytes]) -> Iterator[dict[str, Any]]:
        reader = EventReader()
        for chunk in chunks:
            yield from (event.json() for event in reader.feed(chunk) if event.data)

    with httpx2.stream("POST", url, headers=headers(session), json=message, timeout=120) as answer:
        assert answer.status_code == 200
        yield messages(answer.iter_bytes())


def end(server: ServerProcess, number: int = signal.SIGTERM, *, within: float = 120) -> int:
    """Send a signal, wait for the process to end and give its exit code."""
    os.kill(server.pid, number)
    return ended(server, within=within)


def ended(server: ServerProcess, *, within: float = 120) -> int:
    """Wait for the process to end and give its exit code."""
    code = server._running().wait(within)
    server.kill()
    return code


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "record"


# Stopping


@pytest.mark.parametrize(
    ("start", "workers"),
    [(ONE, 1), (TWO, 2), (BY_NAME, 1), (TWO_BY_NAME, 2)],
    ids=["serve", "serve --workers 2", "hypercorn", "hypercorn -w 2"],
)
def test_sigterm_lets_a_request_in_flight_finish_and_the_exit_code_is_0(
    start: Start, workers: int, record: Path
) -> None:
    # One key for all: `hypercorn -w` has nobody who would give its workers one, and either may take the call.
    with start({"RECORD_FILE": str(record), "MCP_HYBRID_SESSIONS__KEYS": fresh_key()}) as server:
        session = open_session(server.url)
        wait_for_all(record, workers)
        with streaming(server.url, tool("steps", {"count": 3, "delay": 0.3}, token="t"), session) as messages:
            first = next(messages)
            os.kill(server.pid, signal.SIGTERM)
            rest = list(messages)
        assert ended(server) == 0
    assert [message["params"]["progress"] for message in (first, *rest[:-1])] == [1, 2, 3]
    assert rest[-1]["result"]["content"][0]["text"] == "3 steps"
    assert sorted(record.read_text().split()) == ["enter"] * workers + ["exit"] * workers


def wait_for_all(record: Path, workers: int) -> None:
    """Wait until every worker serves: the first one answers while the others still start."""
    until = time.monotonic() + 60
    while record.read_text().split().count("enter") < workers:
        assert time.monotonic() < until
        time.sleep(POLL)


def test_ctrl_c_ends_it_just_as_well(record: Path) -> None:
    with ONE({"RECORD_FILE": str(record)}) as server:
        assert post(server.url, request("ping")).status_code == 200
        assert end(server, signal.SIGINT) == 0
    assert record.read_text().split() == ["enter", "exit"]
    assert "Traceback" not in server.log


@pytest.mark.parametrize(("start", "workers"), [(ONE, 1), (TWO, 2), (BY_NAME, 1)])
def test_a_request_that_outlives_the_time_for_draining_is_answered_with_an_error_and_the_exit_code_is_0(
    start: Start, workers: int, record: Path
) -> None:
    with start({"RECORD_FILE": str(record), "MCP_HYBRID_SERVER__DRAIN_TIMEOUT": "500ms"}) as server:
        session = open_session(server.url)
        wait_for_all(record, workers)
        with streaming(server.url, tool("steps", {"count": 2, "delay": 60}, token="t"), session) as messages:
            next(messages)
            os.kill(server.pid, signal.SIGTERM)
            (last,) = messages
        assert last["error"]["code"] == -32000
        assert "stopping" in last["error"]["message"]
        assert ended(server) == 0
    assert sorted(record.read_text().split()) == ["enter"] * workers + ["exit"] * workers


@pytest.mark.parametrize("start", [ONE, TWO])
def test_a_lifespan_that_fails_at_its_end_is_exit_code_1_and_the_log_says_why(start: Start) -> None:
    with start({"FAIL_AT_STOP": "1"}) as server:
        server.wait_for_log('"serving"', within=60)
        assert end(server, within=60) == 1
    assert "RuntimeError: no disk" in server.log
    assert "the server did not end in order" in server.log


@pytest.mark.parametrize("start", [ONE, TWO])
def test_a_second_signal_does_not_wait(start: Start) -> None:
    with start({}) as server:
        session = open_session(server.url)
        with streaming(server.url, tool("steps", {"count": 2, "delay": 60}, token="t"), session) as messages:
            next(messages)
            os.kill(server.pid, signal.SIGTERM)
            server.wait_for_log('"stopping"')
            until = time.monotonic() + 25  # of the 30 s that requests in flight have
            while server._running().poll() is None and time.monotonic() < until:
                os.kill(server.pid, signal.SIGTERM)  # one that comes with the first counts as the first
                time.sleep(0.05)
            with pytest.raises(httpx2.RemoteProtocolError):  # no worker lives on
                list(messages)
            assert ended(server, within=60) == -signal.SIGTERM


# Several workers


def test_two_workers_share_the_key_that_was_made_at_start() -> None:
    with TWO({}) as server, ThreadPoolExecutor(4) as pool:
        session = open_session(server.url)
        seen: set[str] = set()
        until = time.monotonic() + 120
        while len(seen) < 2 and time.monotonic() < until:
            call = tool("pid", {"hold": 0.1})
            calls = [pool.submit(post, server.url, {**call, "id": number}, session) for number in range(4)]
            answers = [each.result() for each in calls]
            assert {answer.status_code for answer in answers} == {200}
            assert {answer.headers["mcp-hybrid-route"] for answer in answers} == {"session"}
            seen |= {text(answer) for answer in answers}
        assert len(seen) == 2
    assert server.log.count("sessions end with this process") == 1


def test_workers_are_given_the_settings_of_the_file(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('path = "/here"\n[server]\nworkers = 2\n', encoding="utf-8")
    with serve(LAUNCHED, "--config", str(config), path="/here") as server:
        assert post(server.url, request("ping")).status_code == 200
        assert post(server.url.replace("/here", "/mcp"), request("ping")).status_code == 404


# Starting


def test_a_port_in_use_is_one_line_and_exit_code_2() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        for more in ([], ["--workers", "2"]):
            done = run("mcp-hybrid", "serve", LAUNCHED, "--port", port, *more)
            assert done.returncode == 2
            (line,) = done.stderr.splitlines()
            assert line == f"mcp-hybrid: cannot listen on 127.0.0.1:{port}: Address already in use"


def test_port_0_takes_a_free_one_and_says_which() -> None:
    with serve(LAUNCHED) as other:  # the harness wants a port that it knows
        server = subprocess.Popen(
            [*command("mcp-hybrid"), "serve", LAUNCHED, "--port", "0"], stderr=subprocess.PIPE, text=True
        )
        try:
            assert server.stderr is not None
            url = next(found[0] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+/mcp", line)))
            assert url != other.url
            assert post(url, request("ping")).status_code == 200
        finally:
            server.terminate()
            rest = server.communicate(timeout=60)[1]
    assert server.returncode == 0, rest


@pytest.mark.parametrize(
    "arguments", [["hypercorn", "-k", "trio"], ["hypercorn", "-k", "trio", "-w", "0"], ["uvicorn"]]
)
def test_a_bad_setting_is_one_line_whichever_server_starts_the_app(arguments: list[str]) -> None:
    bind = ["--port", str(free_port())] if arguments == ["uvicorn"] else ["-b", f"127.0.0.1:{free_port()}"]
    done = run(*arguments, *bind, "mcp_hybrid.asgi:app", MCP_HYBRID_MOOD="x")
    (line,) = done.stderr.splitlines()
    assert line == "mcp-hybrid: unknown environment variable MCP_HYBRID_MOOD; the nearest is MCP_HYBRID_MODE"
    # Hypercorn 0.18 ends with 0 whatever became of its workers; without any (-w 0) it is our own code.
    assert done.returncode == (0 if arguments == ["hypercorn", "-k", "trio"] else 2)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_lifespan_that_fails_is_exit_code_2_and_the_log_says_why(workers: str) -> None:
    port = str(free_port())
    done = run("mcp-hybrid", "serve", LAUNCHED, "--port", port, "--workers", workers, FAIL_AT_START="1")
    assert done.returncode == 2
    *logged, last = done.stderr.splitlines()
    assert any("RuntimeError: no database" in json.loads(line).get("exception", "") for line in logged)
    assert last.startswith("mcp-hybrid: the server could not start: ")
    assert '"serving"' not in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_target_that_cannot_be_served_is_exit_code_2_and_the_last_line_says_why(workers: str) -> None:
    done = run("mcp-hybrid", "serve", "nowhere:server", "--port", str(free_port()), "--workers", workers)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith('mcp-hybrid: module "nowhere" was not found from ')


# Telling


def test_each_request_is_one_json_line_without_the_session_id_or_an_argument() -> None:
    with ONE({}) as server:
        post(server.url, request("tools/list"))
        session = open_session(server.url)
        post(server.url, notification("notifications/initialized"), session)
        post(
            server.url,
            tool("repeat", {"text": "my-secret-argument"}, id="my-secret-id", token="my-secret-token"),
            session,
        )
        post(server.url, tool("crash", {"text": "my-secret-crash"}), session)
        post(server.url, request("no/such"), session)
        httpx2.get(server.url)
        httpx2.delete(server.url, headers=headers(session, content_type=None))
        post(server.url, request("ping"), session)
    lines = [json.loads(line) for line in server.log.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    shown = ("http", "method", "tool", "route", "status", "error", "refused")
    assert [tuple(line[name] for name in shown if name in line) for line in requests] == [
        ("POST", "tools/list", "stateless", 200),
        ("POST", "initialize", "session", 200),
        ("POST", "notifications/initialized", "session", 202),
        ("POST", "tools/call", "repeat", "session", 200),
        ("POST", "tools/call", "crash", "session", 200),
        ("POST", "no/such", "session", 200, -32601),
        ("GET", 405, "method_not_allowed"),
        ("DELETE", "session", 204),
        ("POST", "ping", 404, "session_unknown"),
    ]
    assert all(line["level"] == "info" and line["duration_ms"] > 0 for line in requests)
    assert all(line["owner"] == "anonymous" for line in requests)
    in_session = [line for line in requests if line.get("route") == "session" and line.get("method") != "initialize"]
    (hashed,) = {line["session"] for line in in_session}
    assert re.fullmatch(r"[0-9a-f]{12}", hashed)
    assert session not in server.log
    assert "my-secret" not in server.log
    (fault,) = [line for line in lines if line["level"] == "error"]
    assert "RuntimeError: crashed on 15 characters" in fault["exception"]


def test_hypercorns_own_lines_are_in_the_same_form() -> None:
    with BY_NAME({}) as server:
        post(server.url, request("ping"))
    assert [json.loads(line)["level"] for line in server.log.splitlines()]
