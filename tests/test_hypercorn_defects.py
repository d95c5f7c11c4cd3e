"""What Hypercorn 0.18 does wrong on Trio, each shown on plain Hypercorn and not on the one that is hardened.

The numbers are those of `docs/server.md`. Both serve the same application, `programs/plain.py`; what only an
application can do something about (11, 12) is shown on ours.
"""

from __future__ import annotations

import inspect
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from uuid import uuid4

import httpx2
import hypercorn.protocol as hypercorn_protocol
import hypercorn.trio.run as hypercorn_run
import pytest
from h2.connection import H2Connection
from hypercorn.protocol import h2 as hypercorn_h2
from hypercorn.protocol import h11 as hypercorn_h11
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio import task_group
from hypercorn.trio import tcp_server as hypercorn_tcp
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import TrioSingleTask, WorkerContext

from harness import http2
from harness.mcp import LEGACY, body, headers, initialize, modern, modern_headers, request
from harness.process import PROGRAMS, ServerProcess, command, hypercorn, serve

SOURCES = Path(__file__).parent.parent / "src"
PATIENCE = 90
"""Seconds for what must happen."""
ATTEMPTS = 5
"""Servers that a defect of plain Hypercorn's may take to show: with some, which of two tasks comes first decides."""
LONG_ENOUGH = 6
"""Seconds after which what has not happened counts as not happening; the graceful time is a second in these tests."""


class Shown(ServerProcess):
    """A Hypercorn that serves the application of one of the programs, `plain` or `hardened`."""

    def __init__(self, program: str, *options: str) -> None:
        # What one of the two does and the other does not is waited for patiently only where it is to be seen.
        hardened = program == "hardened"
        self.until_good = PATIENCE if hardened else LONG_ENOUGH
        """Seconds for what only the hardened one does."""
        self.until_bad = 1 if hardened else PATIENCE
        """Seconds for what only the plain one does."""
        self._gate = Path(tempfile.gettempdir()) / f"gate-{uuid4().hex}"
        path = os.pathsep.join([str(PROGRAMS), str(SOURCES), os.environ.get("PYTHONPATH", "")])
        arguments = [*command("hypercorn"), "-k", "trio", "--graceful-timeout", "1", *options]
        env = {"PYTHONPATH": path, "GATE": str(self._gate)}
        super().__init__(lambda port: [*arguments, "-b", f"127.0.0.1:{port}", f"{program}:app"], env, path="")

    @contextmanager
    def opening(self) -> Iterator[Callable[[], None]]:
        """Give what lets go the requests that wait; they are let go in any case."""
        try:
            yield self._gate.touch
        finally:
            self._gate.touch()
            self.kill()
            self._gate.unlink()


# Clients


@contextmanager
def connected(port: int, data: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(data)
        yield client


def get(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


def everything(client: socket.socket) -> bytes:
    """Read until the server hangs up, however it does."""
    read = b""
    try:
        while piece := client.recv(65536):
            read += piece
    except ConnectionResetError:
        pass
    return read


def answers(server: ServerProcess) -> bool:
    try:
        with connected(server.port, get("/")) as client:
            return client.recv(4096).startswith(b"HTTP/1.1 ")
    except OSError:
        return False


def soon(true: Callable[[], bool], within: float = PATIENCE) -> bool:
    """Wait for something to become true."""
    until = time.monotonic() + within
    while not (found := true()) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def descriptors(server: ServerProcess) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def ends(server: ServerProcess, within: float) -> int | None:
    """Wait for the process to end and give its exit code; None if it does not."""
    try:
        return server._running().wait(within)
    except subprocess.TimeoutExpired:
        return None


# The defects. Each takes a server whose process serves by itself, unless it is started otherwise below, and says
# whether the defect showed.


def data_after_an_early_answer(server: ServerProcess) -> bool:
    head = http2.request(b"/", method=b"POST", body_follows=True)
    with connected(server.port, http2.PREFACE + head) as client:
        while http2.frame(http2.DATA, http2.END_STREAM, 1, b"") not in (read := client.recv(4096)):
            assert read
        client.sendall(http2.frame(http2.DATA, 0, 1, b"x" * 1000) * 2)
        client.shutdown(socket.SHUT_WR)
        everything(client)
    return died(server)


def a_path_that_is_not_ascii(server: ServerProcess) -> bool:
    with connected(server.port, http2.PREFACE + http2.request(b"/caf\xc3\xa9")) as client:
        client.shutdown(socket.SHUT_WR)
        everything(client)
    return died(server)


def a_stray_byte_after_an_upgrade(server: ServerProcess) -> bool:
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    with connected(server.port, get("/", *upgrade, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==") + b"X") as client:
        client.shutdown(socket.SHUT_WR)
        everything(client)
    return died(server)


def died(server: ServerProcess) -> bool:
    # One that does not die answers at once, and goes on to.
    patience = server.until_bad if isinstance(server, Shown) else 1
    return not all(answers(server) for _ in range(5)) or ends(server, patience) is not None


def a_worker_that_has_drained_ends_the_others(server: Shown) -> bool:
    with connected(server.port, get("/three")) as client:
        read = client.recv(4096)
        os.kill(server.pid, signal.SIGTERM)
        read += everything(client)
    assert ends(server, PATIENCE) is not None
    return not read.endswith(b"0\r\n\r\n")


def sigterm_does_not_drain(server: Shown) -> bool:
    with connected(server.port, get("/three")) as client:
        read = client.recv(4096)
        os.kill(server.pid, signal.SIGTERM)
        read += everything(client)
    return ends(server, PATIENCE) == -signal.SIGTERM and not read.endswith(b"0\r\n\r\n")


def a_client_that_does_not_read_holds_the_process(server: Shown) -> bool:
    with connected(server.port, get("/big")) as client:
        client.recv(1)
        os.kill(server.pid, signal.SIGTERM)
        return ends(server, server.until_good) is None


def an_application_that_only_sends_is_never_told(server: Shown) -> bool:
    assert answers(server)
    before = descriptors(server)
    for _ in range(10):
        with connected(server.port, get("/only-send")) as client:
            client.recv(1)
    return not soon(lambda: descriptors(server) <= before, server.until_good)


def a_body_that_is_not_read_leaks_the_connection(server: Shown) -> bool:
    post = b"POST /refuse-later HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000000\r\n\r\n"
    assert answers(server)
    before = descriptors(server)
    for _ in range(10):
        with connected(server.port, post) as client:
            try:
                for _ in range(40):
                    client.sendall(b"x" * 65536)
            except OSError:
                pass
    return not soon(lambda: descriptors(server) <= before, server.until_good)


def a_client_that_is_gone_is_not_noticed_by_asking(server: Shown) -> bool:
    with connected(server.port, get("/asked")) as client:
        client.recv(1)
    assert soon(lambda: "noticed" in server.log)
    return "never-noticed" in server.log


def a_connection_that_must_close_stays_open(server: Shown) -> bool:
    with connected(server.port, get("/leave", "Connection: close")) as client:
        client.settimeout(server.until_good)
        try:
            assert everything(client).endswith(b"0\r\n\r\n")
        except TimeoutError:
            return True
    return False


def get_over_http2(url: str) -> bool:
    """Get a page over a connection of its own; false if the connection broke."""
    with httpx2.Client(http1=False, http2=True, timeout=PATIENCE) as client:
        try:
            return client.get(url).status_code == 200
        except httpx2.RemoteProtocolError:
            return False


def the_end_of_an_http2_answer_is_lost_when_the_server_stops(server: Shown) -> bool:
    # Which of two tasks comes first decides it for each connection, so there are many.
    with ThreadPoolExecutor(20) as pool, server.opening() as let_go:
        calls = [pool.submit(get_over_http2, server.url + "/wait") for _ in range(20)]
        assert soon(lambda: server.log.count("waiting") == 20)
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(2)  # it has stopped by then, but for these
        let_go()
        return not all(call.result() for call in calls)


def has_come(server: Shown, waiting: int) -> bool:
    return server.log.count("waiting") >= waiting


def an_http2_connection_breaks_after_a_thousand_requests(server: Shown) -> bool:
    with (
        httpx2.Client(http1=False, http2=True, timeout=PATIENCE) as client,
        ThreadPoolExecutor(16) as pool,
        server.opening() as let_go,
    ):
        assert {client.get(server.url).status_code for _ in range(990)} == {413}
        calls = []
        for number in range(1, 17):  # one by one: the client's threads may take the same number for their streams
            calls.append(pool.submit(client.get, server.url + "/wait"))
            soon(partial(has_come, server, number), server.until_good)
        let_go()  # they are answered after the thousandth
        return any(isinstance(call.exception(), httpx2.RemoteProtocolError) for call in calls)


def an_http2_client_that_goes_without_having_read_leaks_the_connection(server: Shown) -> bool:
    assert answers(server)
    before = descriptors(server)
    for _ in range(10):
        with connected(server.port, http2.PREFACE + http2.request(b"/big")) as client:
            left = 60_000  # of the 65 535 bytes that it lets the server send; then the application waits
            while left > 0:
                left -= len(client.recv(left))
    return not soon(lambda: descriptors(server) <= before, server.until_good)


def streams_in_a_circle_hang_the_worker(server: Shown) -> bool:
    only = 0x80000000
    depends = [(3, only | 5), (1, only | 3), (5, 3), (1, only | 3)]
    circle = b"".join(http2.frame(http2.PRIORITY, 0, stream, on.to_bytes(4, "big") + b"\x0f") for stream, on in depends)
    with connected(server.port, http2.PREFACE + circle + http2.request(b"/")) as client:
        while http2.frame(http2.DATA, http2.END_STREAM, 1, b"") not in (read := client.recv(4096)):
            assert read
    try:
        with connected(server.port, get("/")) as client:
            client.settimeout(server.until_good)
            return client.recv(4096) == b""
    except TimeoutError:
        return True


def an_idle_http2_connection_is_cut_off_under_its_client(server: Shown) -> bool:
    with connected(server.port, http2.PREFACE + http2.request(b"/")) as client:
        read = b""
        while http2.frame(http2.DATA, http2.END_STREAM, 1, b"") not in read:
            read += (piece := client.recv(4096))
            assert piece
        os.kill(server.pid, signal.SIGTERM)
        goaway = http2.frame(http2.GOAWAY, 0, 0, (1).to_bytes(4, "big") + bytes(4))
        while goaway not in read:
            try:
                piece = client.recv(4096)
            except ConnectionResetError:
                return True
            if not piece:
                return True
            read += piece
        try:  # what it sends now it may repeat elsewhere, once it has read why; so it must be able to read it
            client.sendall(http2.request(b"/", stream=3))
            client.shutdown(socket.SHUT_WR)
            return client.recv(4096) != b""
        except OSError:
            return True


def who_comes_late_is_let_in_one_by_one(server: Shown) -> bool:
    busy, late = 10, 300
    answered = 0
    over = Event()

    def call_on_and_on() -> None:
        nonlocal answered
        with connected(server.port) as client:
            while not over.is_set():
                client.sendall(get("/busy"))
                assert client.recv(4096).startswith(b"HTTP/1.1 413")
                answered += 1

    with ThreadPoolExecutor(busy) as pool, ExitStack() as stack:
        stack.callback(over.set)
        calling = [pool.submit(call_on_and_on) for _ in range(busy)]
        assert soon(lambda: answered > 10 * busy)
        os.kill(server.pid, signal.SIGSTOP)
        clients = [stack.enter_context(connected(server.port, get("/"))) for _ in range(late)]
        before = answered
        os.kill(server.pid, signal.SIGCONT)
        for client in clients:
            assert client.recv(4096).startswith(b"HTTP/1.1 413")
        meanwhile = answered - before
        over.set()
        for each in calling:
            each.result()
    return meanwhile > late / 2


DEFECTS: list[tuple[str, Callable[[Shown], bool], list[str]]] = [
    ("1", data_after_an_early_answer, ["-w", "0"]),
    ("2", a_path_that_is_not_ascii, ["-w", "0"]),
    ("3", a_stray_byte_after_an_upgrade, ["-w", "0"]),
    ("4", a_worker_that_has_drained_ends_the_others, ["-w", "2", "--graceful-timeout", "30"]),
    ("5", sigterm_does_not_drain, ["-w", "0", "--graceful-timeout", "30"]),
    ("6", a_client_that_does_not_read_holds_the_process, ["-w", "1"]),
    ("7", an_application_that_only_sends_is_never_told, ["-w", "0"]),
    ("8", a_body_that_is_not_read_leaks_the_connection, ["-w", "0"]),
    ("9", a_client_that_is_gone_is_not_noticed_by_asking, ["-w", "0"]),
    ("10", a_connection_that_must_close_stays_open, ["-w", "0"]),
    ("13", the_end_of_an_http2_answer_is_lost_when_the_server_stops, ["-w", "1", "--graceful-timeout", "30"]),
    ("14", an_http2_connection_breaks_after_a_thousand_requests, ["-w", "0"]),
    ("15", an_http2_client_that_goes_without_having_read_leaks_the_connection, ["-w", "0"]),
    ("16", streams_in_a_circle_hang_the_worker, ["-w", "0"]),
    ("20", an_idle_http2_connection_is_cut_off_under_its_client, ["-w", "1", "--graceful-timeout", "30"]),
    ("21", who_comes_late_is_let_in_one_by_one, ["-w", "0", "--backlog", "1000"]),
]
CASES = [pytest.param(show, options, id=f"{number} {show.__name__}") for number, show, options in DEFECTS]


@pytest.mark.process
@pytest.mark.plain_hypercorn
@pytest.mark.parametrize(("show", "options"), CASES)
def test_plain_hypercorn_has_the_defect(show: Callable[[Shown], bool], options: list[str]) -> None:
    logs = []
    for _ in range(ATTEMPTS):
        with Shown("plain", *options) as server:
            showed = show(server)
            logs.append(server.log)
            server.kill()
        if showed:
            return
    pytest.fail("gone? then what is done about it can go, too\n" + "\n".join(logs))


@pytest.mark.process
@pytest.mark.parametrize(("show", "options"), CASES)
def test_the_hardened_one_has_not(show: Callable[[Shown], bool], options: list[str]) -> None:
    with Shown("hardened", *options) as server:
        assert not show(server), server.log
        server.kill()


# 11, 12: an application is told nothing of the end, so that whoever streams is cut


@pytest.mark.process
@pytest.mark.plain_hypercorn
def test_plain_hypercorn_cuts_streams_and_says_nothing_before() -> None:
    with Shown("plain", "-w", "1") as server:
        with connected(server.port, get("/events")) as client:
            read = client.recv(4096)
            os.kill(server.pid, signal.SIGTERM)
            read += everything(client)
        assert ends(server, PATIENCE) == 0
    assert not read.endswith(b"0\r\n\r\n")
    assert [word for word in server.log.split() if word in {"stream-cancelled", "lifespan-ended"}] == [
        "stream-cancelled",
        "lifespan-ended",
    ]


@pytest.mark.process
def test_ours_ends_its_streams_as_soon_as_the_server_stops() -> None:
    # With Hypercorn's own master and its command line: with `mcp-hybrid serve`, test_master.py shows it.
    listen = modern(request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}))
    with hypercorn("--graceful-timeout", "600") as server:
        first = httpx2.post(server.url, headers=headers(), content=body(initialize()), timeout=PATIENCE)
        standing = headers(first.headers["mcp-session-id"], LEGACY, accept="text/event-stream", content_type=None)
        with (
            httpx2.stream("GET", server.url, headers=standing, timeout=PATIENCE) as stream,
            httpx2.stream(
                "POST", server.url, headers=modern_headers(listen), content=body(listen), timeout=PATIENCE
            ) as listener,
        ):
            ends_of = [answer.iter_lines() for answer in (stream, listener)]
            for lines in ends_of:
                next(lines)
            os.kill(server.pid, signal.SIGTERM)
            told, heard = ([line for line in lines if line] for lines in ends_of)
        assert told[-1].startswith("retry: ")
        assert '"result"' in heard[-1]
        assert ends(server, PATIENCE) == 0
        server.kill()


# All of it at once, on the process that is shipped


@pytest.mark.process
def test_mcp_hybrid_serve_outlives_the_packets_that_are_deadly() -> None:
    deadly = (data_after_an_early_answer, a_path_that_is_not_ascii, a_stray_byte_after_an_upgrade)
    with serve() as server:
        assert answers(server)
        assert not any(show(server) for show in deadly * 3)
        assert "Traceback" not in server.log, server.log


# The seams: names and parameters that server/ uses. What they do, the cases above show.


def test_what_is_replaced_has_the_names_that_hypercorn_uses() -> None:
    # server/worker.py: harden
    assert {"TCPServer", "WorkerContext", "trio", "TaskGroup"} <= set(vars(hypercorn_run)) | set(vars(hypercorn_tcp))
    assert {"H11Protocol", "H2Protocol"} <= set(vars(hypercorn_protocol))
    assert all("WSStream" in vars(module) for module in (hypercorn_h11, hypercorn_h2))


def test_a_connection_has_what_its_subclass_uses() -> None:
    # server/worker.py, server/idle.py, server/draining.py
    assert list(inspect.signature(TCPServer.protocol_send).parameters) == ["self", "event"]
    assert {"send_lock", "stream", "context", "idle_task"} <= set(vars(TCPServer(None, None, None, None, None)))  # type: ignore[arg-type]
    assert {name for name in vars(TrioSingleTask) if not name.startswith("_")} == {"restart", "stop"}
    assert {"terminate", "terminated", "requests"} <= set(vars(WorkerContext(None)))


def test_a_request_is_run_by_a_function_that_takes_what_it_is_given() -> None:
    # server/tasks.py
    given = ["app", "config", "scope", "receive", "send", "sync_spawn", "call_soon"]
    assert list(inspect.signature(task_group._handle).parameters) == given


def test_the_protocols_have_what_their_subclasses_use() -> None:
    # server/protocols.py
    assert inspect.iscoroutinefunction(H11Protocol._maybe_recycle)
    assert inspect.iscoroutinefunction(H11Protocol._close_stream)
    assert list(inspect.signature(H11Protocol._send_h11_event).parameters) == ["self", "event"]
    assert list(inspect.signature(H2Protocol._handle_events).parameters) == ["self", "events"]
    assert list(inspect.signature(H2Protocol.stream_send).parameters) == ["self", "event"]
    assert list(inspect.signature(WSStream._send_error_response).parameters) == ["self", "status_code"]
    assert list(inspect.signature(HTTPStream.app_send).parameters) == ["self", "message"]


def test_h2_handles_frames_by_the_methods_that_are_replaced() -> None:
    # server/http2_frames.py
    for method in ("headers", "data", "rst_stream", "window_update"):
        replaced = getattr(H2Connection, f"_receive_{method}_frame")
        assert list(inspect.signature(replaced).parameters) == ["self", "frame"]
