"""Several workers: those that die are replaced, a reload fails no call, and all of them end in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from harness.mcp import LEGACY, headers, initialize, request, tool
from harness.process import PROGRAMS, ServerProcess, command, free_port, program, run_to_its_end, serve
from harness.raw import RawClient
from harness.redis import redis_server
from mcp_hybrid.sessions.seal import fresh_key

pytestmark = pytest.mark.process

LAUNCHED = program("launched")
PATIENCE = 180
"""Seconds for what must happen; workers take their time to start on a busy machine."""
KEY = {"MCP_HYBRID_SESSIONS__KEYS": fresh_key()}


def workers(server: ServerProcess) -> set[int]:
    """Give the process ids of a master's workers."""
    # A child belongs to the thread that started it.
    children = Path(f"/proc/{server.pid}/task").glob("*/children")
    return {int(pid) for each in children for pid in each.read_text().split()}


async def until(true: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    with trio.fail_after(PATIENCE):
        while not true():  # noqa: ASYNC110 - it is another process that is waited for
            await trio.sleep(0.02)


def logged(server: ServerProcess, text: str, times: int = 1) -> Callable[[], bool]:
    return lambda: server.log.count(text) >= times


async def ended(server: ServerProcess) -> int:
    """Wait for the process to end and give its exit code."""
    await until(lambda: server._running().poll() is not None)
    code = server._running().wait()
    server.kill()
    return code


async def session(port: int) -> str:
    async with RawClient.open(port) as client:
        await client.post(initialize())
        return (await client.answer_head()).headers["mcp-session-id"]


@asynccontextmanager
async def calling(port: int, call: Any) -> AsyncIterator[RawClient]:
    """Make a call in a session of its own, whose answer has begun to stream."""
    id_ = await session(port)
    async with RawClient.open(port) as client:
        await client.post(call, id_, LEGACY)
        assert (await client.answer_head()).status == 200
        await client.event()
        yield client


async def last_message(client: RawClient) -> Any:
    """Read an event stream to its end, which must be one in order, and give the message before it."""
    last = None
    while (event := await client.event_or_end()) is not None:
        last = event.json() if event.data else last
    return last


@pytest.fixture
def three() -> Iterator[ServerProcess]:
    with serve(LAUNCHED, "--workers", "3", env=KEY) as server:
        server.wait_for_log('"serving"', PATIENCE)
        yield server


# Workers that die


async def test_a_worker_that_was_killed_is_replaced_and_the_clients_of_others_see_nothing(three: ServerProcess) -> None:
    before = workers(three)
    assert len(before) == 3
    async with AsyncExitStack() as stack:
        # Their first reports tell nothing of where they run; the calls end long after the kill.
        call = tool("steps", {"count": 2, "delay": 3}, token="t")
        clients = [await stack.enter_async_context(calling(three.port, call)) for _ in range(12)]
        os.kill(min(before), signal.SIGKILL)
        await until(logged(three, "a worker died; another takes its place"))
        ends = []
        for client in clients:
            with trio.move_on_after(PATIENCE):
                try:
                    ends.append((await last_message(client))["result"]["content"][0]["text"])
                except Exception:  # noqa: BLE001 - h11's, of a stream that was cut
                    ends.append("cut")
    assert set(ends) <= {"2 steps", "cut"}
    assert "2 steps" in ends
    await until(lambda: len(workers(three)) == 3)
    assert before - workers(three) == {min(before)}


def test_workers_that_die_at_their_start_are_tried_again_more_slowly_and_then_given_up() -> None:
    done = run_to_its_end(
        "mcp-hybrid", "serve", LAUNCHED, "--workers", "2", "--port", str(free_port()), DIE_AT_IMPORT="1"
    )
    assert done.returncode == 1
    assert done.stderr.count("a worker could not start") >= 5
    assert "it ended with exit code 3" in done.stderr
    assert "giving up: no worker comes up" in done.stderr.splitlines()[-2]


async def test_a_worker_that_does_not_become_ready_writes_what_it_is_doing(tmp_path: Path) -> None:
    target = tmp_path / "slow.py"
    target.write_text("def connect_to_nothing():\n    import time\n    time.sleep(600)\nconnect_to_nothing()\n")
    ours, theirs = socket.socketpair()
    start = {"master": os.getpid(), "config": None, "key": None, "overrides": {"target": str(target)}}
    code = "from mcp_hybrid.server import child; import sys; child.REPORT_AFTER = 0.1; child.main(sys.argv[1])"
    with ours, theirs, (tmp_path / "errors").open("wb") as errors:
        worker = subprocess.Popen(  # noqa: ASYNC220 - it does not wait
            [sys.executable, "-c", code, str(theirs.fileno())], stderr=errors, pass_fds=[theirs.fileno()]
        )
        ours.sendall(json.dumps(start).encode() + b"\n")
        try:
            await until(lambda: "connect_to_nothing" in (tmp_path / "errors").read_text())
        finally:
            worker.kill()
            worker.wait()


async def test_workers_do_not_outlive_their_master(three: ServerProcess) -> None:
    orphans = workers(three)
    async with calling(three.port, tool("steps", {"count": 2, "delay": 1}, token="t")) as client:
        os.kill(three.pid, signal.SIGKILL)
        assert "result" in await last_message(client)
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans))
    three._running().wait()
    three.kill()


async def test_a_blocked_worker_gives_the_port_back_and_ends_with_its_master(tmp_path: Path) -> None:
    record = tmp_path / "record"
    with many(2, SERVER__DRAIN_TIMEOUT="100ms", RECORD_FILE=str(record)) as server:
        await until(logged(server, '"serving"'))
        orphans = workers(server)
        async with calling(server.port, tool("unstoppable", {"how": "in the loop"}, token="t")):
            await until(lambda: "stuck" in record.read_text())
            os.kill(server.pid, signal.SIGKILL)
            await until(lambda: can_be_bound(server.port))
            await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans))
        server._running().wait()
        server.kill()


def can_be_bound(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        probe.listen()
        return True


# Reloading


SERVER = """
from mcp.server import MCPServer

server = MCPServer("edited")


@server.tool()
async def edition() -> str:
    return "{edition}"
"""


class Load:
    """Calls without a pause, by clients that keep their connections and by one that does not."""

    def __init__(self, server: ServerProcess) -> None:
        self.failures: list[str] = []
        self.heard: list[str] = []
        self._server = server
        self._over = False

    async def run(self, session: str, number: int, *, keep: bool = True, http2: bool = False) -> None:
        message = tool("edition", id=number)  # of its own, as others call in the same session
        limits = httpx2.Limits(max_keepalive_connections=None if keep else 0)
        async with httpx2.AsyncClient(limits=limits, http1=not http2, http2=http2, timeout=PATIENCE) as client:
            while not self._over:
                try:
                    answer = await client.post(self._server.url, headers=headers(session), json=message)
                except httpx2.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if answer.status_code != 200:
                    self.failures.append(answer.text)
                else:
                    self.heard.append(answer.json()["result"]["content"][0]["text"])

    def stop(self) -> None:
        self._over = True


async def test_a_reload_under_load_fails_no_call_and_serves_what_was_edited(tmp_path: Path) -> None:
    target = tmp_path / "edited.py"
    target.write_text(SERVER.format(edition="first"))
    with serve(str(target), "--workers", "2") as server:
        await until(logged(server, '"serving"'))
        before = workers(server)
        load = Load(server)
        id_ = await session(server.port)
        async with trio.open_nursery() as nursery:
            for number, (keep, http2) in enumerate(((True, False), (True, False), (False, False), (True, True))):
                nursery.start_soon(partial(load.run, id_, number, keep=keep, http2=http2))
            await until(lambda: len(load.heard) > 20)
            target.write_text(SERVER.format(edition="second"))
            os.kill(server.pid, signal.SIGHUP)
            await until(logged(server, '"reloaded"'))
            heard = len(load.heard)
            async with RawClient.open(server.port) as client:  # whoever comes now is served by the new ones
                await client.post(tool("edition"))
                await client.answer_head()
                assert (await client.answer_json())["result"]["content"][0]["text"] == "second"
            await until(lambda: not before & workers(server))
            await until(lambda: len(load.heard) > heard + 20)
            load.stop()
        assert load.failures == []
        assert (load.heard[0], load.heard[-1]) == ("first", "second")
        assert len(workers(server)) == 2


async def test_a_reload_reads_the_file_again_and_one_that_fails_changes_nothing(tmp_path: Path) -> None:
    config, target = tmp_path / "settings.toml", tmp_path / "edited.py"
    config.write_text("[server]\nworkers = 2\n")
    target.write_text(SERVER.format(edition="first"))
    with serve(str(target), "--config", str(config)) as server:
        await until(logged(server, '"serving"'))
        before = workers(server)
        id_ = await session(server.port)

        target.write_text("a syntax error")
        os.kill(server.pid, signal.SIGHUP)
        await until(logged(server, "not reloaded; the workers there are stay"))
        assert "SyntaxError" in server.log
        target.write_text(SERVER.format(edition="second"))
        config.write_text("mood = 1")
        os.kill(server.pid, signal.SIGHUP)
        await until(logged(server, "not reloaded; the workers there are stay", 2))
        assert 'unknown setting \\"mood\\"' in server.log
        await until(lambda: workers(server) == before)

        config.write_text('[server]\nworkers = 3\n[limits]\nbody = "1KiB"\n')
        os.kill(server.pid, signal.SIGHUP)
        await until(logged(server, '"reloaded"'))
        await until(lambda: len(workers(server)) == 3 and not before & workers(server))
        async with RawClient.open(server.port) as client:
            await client.post({**tool("edition"), "x": "x" * 2000}, id_, LEGACY)
            assert (await client.answer_head()).status == 413
        async with RawClient.open(server.port) as client:  # the key that was made at start is still the same
            await client.post(tool("edition"), id_, LEGACY)
            assert (await client.answer_head()).status == 200
            assert (await client.answer_json())["result"]["content"][0]["text"] == "second"


async def test_one_process_says_that_it_cannot_reload_and_goes_on() -> None:
    with serve() as server:
        await until(logged(server, '"serving"'))
        os.kill(server.pid, signal.SIGHUP)
        await until(logged(server, "SIGHUP is ignored"))
        async with RawClient.open(server.port) as client:
            await client.post(request("ping"))
            assert (await client.answer_head()).status == 200


@pytest.mark.parametrize("options", [[], ["--workers", "2"]], ids=["one process", "two workers"])
async def test_a_terminal_that_is_closed_ends_what_was_started_on_it(options: list[str], tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    take_it = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY); os.execv(sys.argv[1], sys.argv[1:])"
    serving = [*command("mcp-hybrid"), "serve", "--port", str(free_port()), *options]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - it does not wait
            [sys.executable, "-c", take_it, *serving], stdin=theirs, stderr=log, start_new_session=True
        )
    os.close(theirs)
    await until(lambda: '"serving"' in (tmp_path / "log").read_text())
    os.close(ours)
    await until(lambda: process.poll() is not None)
    assert process.returncode == 0


# Stopping


SIZES = pytest.mark.parametrize("size", [1, 3])


def many(size: int, **env: str) -> ServerProcess:
    return serve(LAUNCHED, "--workers", str(size), env=KEY | variables(env))


def patient(size: int, **env: str) -> ServerProcess:
    """Do as `many`, with all the time that ending in order takes on a busy machine."""
    start = [sys.executable, str(PROGRAMS / "patient.py"), "serve", LAUNCHED, "--workers", str(size)]
    return ServerProcess(lambda port: [*start, "--port", str(port)], KEY | variables(env) | {"FORCE_AFTER": "60"})


def variables(env: dict[str, str]) -> dict[str, str]:
    return {name if name == "RECORD_FILE" else f"MCP_HYBRID_{name}": value for name, value in env.items()}


@SIZES
async def test_fifty_clients_in_the_middle_of_their_streams_get_their_results(size: int, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with patient(size, SERVER__DRAIN_TIMEOUT="120s") as server:
        await until(logged(server, '"serving"'))
        async with AsyncExitStack() as stack:
            call = tool("gated_steps", {"count": 3, "gate": str(gate)}, token="t")
            clients = [await stack.enter_async_context(calling(server.port, call)) for _ in range(50)]
            os.kill(server.pid, signal.SIGTERM)
            await until(logged(server, '"stopping"', size + (size > 1)))
            gate.touch()
            for client in clients:
                assert (await last_message(client))["result"]["content"][0]["text"] == "3 steps"
        assert await ended(server) == 0
    assert server.log.count('"stopped"') == (1 if size == 1 else size + 1)


async def asked(probe: httpx2.AsyncClient, path: str) -> httpx2.Response:
    """Ask until there is an answer: a worker that had nothing to finish may be ending just when it is asked."""
    with trio.fail_after(PATIENCE):
        while True:
            with suppress(httpx2.TransportError):
                return await probe.get(path, headers={"connection": "close"})


@SIZES
async def test_probes_on_a_port_of_their_own_are_told_until_the_end_that_it_drains(size: int, tmp_path: Path) -> None:
    probes, gate = free_port(), tmp_path / "gate"
    with patient(size, OPERATOR__PORT=str(probes), SERVER__DRAIN_TIMEOUT="120s") as server:
        await until(logged(server, '"serving"'))
        async with (
            calling(server.port, tool("gated_steps", {"count": 2, "gate": str(gate)}, token="t")) as client,
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{probes}", timeout=PATIENCE) as probe,
        ):
            assert (await asked(probe, "/readyz")).status_code == 200
            os.kill(server.pid, signal.SIGTERM)
            await until(logged(server, '"stopping"', size + (size > 1)))
            with trio.fail_after(PATIENCE):
                while (ready := await asked(probe, "/readyz")).status_code == 200:
                    pass
            assert (ready.status_code, ready.json()["reasons"]) == (503, ["draining"])
            assert (await asked(probe, "/healthz")).status_code == 200
            gate.touch()
            assert "result" in await last_message(client)
        assert await ended(server) == 0


@SIZES
async def test_fifty_clients_whose_calls_take_too_long_are_told_so(size: int) -> None:
    with patient(size, SERVER__DRAIN_TIMEOUT="1s") as server:
        await until(logged(server, '"serving"'))
        async with AsyncExitStack() as stack:
            call = tool("steps", {"count": 2, "delay": 3600}, token="t")
            clients = [await stack.enter_async_context(calling(server.port, call)) for _ in range(50)]
            os.kill(server.pid, signal.SIGTERM)
            for client in clients:
                assert (await last_message(client))["error"]["code"] == -32000
        assert await ended(server) == 0
    assert "by force" not in server.log


@SIZES
async def test_clients_that_were_cut_off_resume_on_the_restarted_server_and_learn_the_end(
    size: int, tmp_path: Path
) -> None:
    done, never = tmp_path / "done", tmp_path / "never"
    with redis_server() as redis, patient(size, BACKPLANE=redis.url, SERVER__DRAIN_TIMEOUT="1s") as server:
        await until(logged(server, '"serving"'))
        left: list[tuple[str, str]] = []
        for gate in (done, never):
            call = tool("gated_steps", {"count": 2, "gate": str(gate)}, token="t")
            for _ in range(5):
                id_ = await session(server.port)
                async with RawClient.open(server.port) as client:
                    await client.post(call, id_, LEGACY)
                    await client.answer_head()
                    last = (await client.event()).id
                    assert last is not None
                    left.append((id_, last))
        done.touch()
        await until(logged(server, '"tool":"gated_steps"', 5))  # those are over
        await trio.to_thread.run_sync(server.restart)
        ends = []
        for id_, last in left:
            async with RawClient.open(server.port) as client:
                get = headers(id_, LEGACY, ("last-event-id", last), accept="text/event-stream", content_type=None)
                await client.send("GET", get)
                assert (await client.answer_head()).status == 200
                ends.append(await last_message(client))
        assert all("result" in end for end in ends[:5])
        assert all(end["error"]["code"] == -32000 for end in ends[5:])


@pytest.mark.parametrize("how", ["shielded", "in a thread", "in the loop"])
@pytest.mark.parametrize("size", [1, 2])
async def test_a_tool_that_cannot_be_cancelled_does_not_hold_the_process(size: int, how: str, tmp_path: Path) -> None:
    record = tmp_path / "record"
    with many(size, SERVER__DRAIN_TIMEOUT="100ms", RECORD_FILE=str(record)) as server:
        await until(logged(server, '"serving"'))
        async with calling(server.port, tool("unstoppable", {"how": how}, token="t")):
            await until(lambda: "stuck" in record.read_text())
            os.kill(server.pid, signal.SIGTERM)
            assert await ended(server) == (1 if how == "in the loop" else 0)
    # Only what blocks the loop keeps a worker from ending in order; its master waits a little longer.
    blocked = "had to be killed" if size == 2 else "ended by force"
    assert (blocked if how == "in the loop" else "call abandoned") in server.log


@pytest.mark.parametrize("size", [1, 2])
async def test_a_clean_up_that_hangs_does_not_hold_the_process(size: int) -> None:
    environ = KEY | variables({"SERVER__DRAIN_TIMEOUT": "100ms"}) | {"HANG_AT_STOP": "1"}
    with serve(LAUNCHED, "--workers", str(size), env=environ) as server:
        await until(logged(server, '"serving"'))
        os.kill(server.pid, signal.SIGTERM)
        assert await ended(server) == 1
    assert "ended by force" in server.log


@pytest.mark.parametrize("size", [1, 2])
async def test_a_client_that_does_not_read_does_not_hold_the_process(size: int) -> None:
    with patient(size, SERVER__DRAIN_TIMEOUT="100ms") as server:
        await until(logged(server, '"serving"'))
        id_ = await session(server.port)
        async with RawClient.open(server.port, receive_buffer=4096) as client:
            await client.post(tool("flood", token="t"), id_, LEGACY)
            await client.answer_head()
            os.kill(server.pid, signal.SIGTERM)
            assert await ended(server) == 0
    assert "by force" not in server.log


async def test_ctrl_c_which_everybody_gets_ends_all_workers_in_order(three: ServerProcess) -> None:
    async with calling(three.port, tool("steps", {"count": 2, "delay": 1}, token="t")) as client:
        os.killpg(three.pid, signal.SIGINT)
        assert "result" in await last_message(client)
    assert await ended(three) == 0
    assert "Traceback" not in three.log
