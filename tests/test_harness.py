"""The harness itself, against ASGI apps of a few lines and a process of a few more."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from mcp import Client

from harness import logs, process, redis
from harness.asgi import AsgiClient, Message, Receive, Send
from harness.example import Example
from harness.mcp import Conversation, body, headers, initialize, modern, modern_headers, notification, request, tool
from harness.process import ServerProcess, free_port
from harness.sse import Event, EventReader

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")

Handler = Callable[[Any, Receive, Send], Awaitable[None]]


def only(handler: Handler) -> Handler:
    """Make an app with a lifespan that has nothing to do."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                scope["state"][step] = True
                await send({"type": f"lifespan.{step}.complete"})
        else:
            await handler(scope, receive, send)

    return app


async def start(send: Send, status: int = 200, kind: bytes = b"text/event-stream") -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})


async def write(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def whole_body(receive: Receive) -> bytes:
    data, more = b"", True
    while more:
        message = await receive()
        data, more = data + message["body"], message["more_body"]
    return data


async def echo(scope: Any, receive: Receive, send: Send) -> None:
    assert scope["state"] == {"startup": True}
    data = await whole_body(receive)
    await start(send, 201, b"application/json")
    await write(send, b'{"size": %d, "path": "%s"}' % (len(data), scope["path"].encode()), more=False)


@pytest.mark.parametrize("sent", [b"abc", [b"a", b"b", b"c"], (b"abc"[n : n + 1] for n in range(3))])
async def test_a_request_is_answered_whole(sent: bytes | list[bytes]) -> None:
    async with AsgiClient(only(echo)) as client:
        answer = await client.request("POST", "/x%20y?q=1", [("X-A", "1")], sent)
    assert (answer.status, answer.headers) == (201, [("content-type", "application/json")])
    assert answer.json() == {"size": 3, "path": "/x y"}


async def test_headers_reach_the_app_in_order_with_repetitions_and_a_host() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: Any, _receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])
        await start(send)
        await write(send, b"", more=False)

    async with AsgiClient(only(app)) as client:
        await client.request("GET", "/", [("A", "1"), ("a", "2")])
        await client.request("GET", "/", [("Host", "evil.example")])
    assert seen == [(b"host", b"127.0.0.1:8000"), (b"a", b"1"), (b"a", b"2"), (b"host", b"evil.example")]


async def test_the_test_feeds_the_body_piece_by_piece() -> None:
    async with AsgiClient(only(echo)) as client, client.stream("POST", "/", body=None) as exchange:
        await exchange.feed(b"12", more=True)
        await anyio.wait_all_tasks_blocked()
        assert exchange.status == 0
        await exchange.feed(b"3", more=False)
        assert (await exchange.answer()).json()["size"] == 3


async def test_events_come_one_by_one_while_the_app_still_runs() -> None:
    go = anyio.Event()

    async def app(_scope: Any, _receive: Receive, send: Send) -> None:
        await start(send)
        await write(send, b": hi\n\nid: 1\nda")
        await write(send, b'ta: {"n": 1}\n\n')
        await go.wait()
        await write(send, b"id: 2\nretry: 5\nevent: message\ndata:\n\n")
        await write(send, b'data: {"n": 2}\n\n', more=False)

    async with AsgiClient(only(app)) as client, client.stream("GET", "/") as exchange:
        assert (await exchange.started())[0] == 200
        assert await exchange.event() == Event(comment="hi")
        assert await exchange.message() == {"n": 1}
        assert exchange.running
        go.set()
        assert await exchange.event() == Event(id="2", retry=5, event="message", data="")
        assert await exchange.messages() == [{"n": 2}]
        with pytest.raises(anyio.EndOfStream):
            await exchange.event()


async def test_a_client_that_does_not_read_makes_the_app_wait_once_the_buffer_is_full() -> None:
    sent: list[int] = []

    async def app(_scope: Any, _receive: Receive, send: Send) -> None:
        await start(send)
        for number in range(5):
            await write(send, b"xx")
            sent.append(number)
        await write(send, b"", more=False)

    async with AsgiClient(only(app)) as client, client.stream("GET", "/", body=None) as exchange:
        exchange.pause(room=5)
        await exchange.feed(b"", more=False)
        await anyio.wait_all_tasks_blocked()
        assert sent == [0, 1]
        exchange.resume()
        assert (await exchange.answer()).body == b"x" * 10


async def test_after_a_disconnect_receive_tells_and_send_succeeds_silently() -> None:
    seen: list[Message] = []

    async def app(_scope: Any, receive: Receive, send: Send) -> None:
        await start(send)
        await write(send, b"before")
        await whole_body(receive)
        seen.append(await receive())
        await write(send, b"after")

    async with AsgiClient(only(app)) as client, client.stream("POST", "/") as exchange:
        assert await exchange.chunk() == b"before"
        await exchange.disconnect()
        await exchange.finished()
        assert [chunk async for chunk in exchange] == []
    assert seen == [{"type": "http.disconnect"}]


async def test_a_disconnect_frees_an_app_that_waits_for_the_reader() -> None:
    async def app(_scope: Any, _receive: Receive, send: Send) -> None:
        await start(send)
        await write(send, b"stuck")

    async with AsgiClient(only(app)) as client, client.stream("GET", "/", body=None) as exchange:
        exchange.pause()
        await exchange.started()
        await anyio.wait_all_tasks_blocked()
        assert exchange.running
        await exchange.disconnect()
        await exchange.finished()


async def test_an_exception_out_of_the_app_fails_the_test() -> None:
    async def app(_scope: Any, _receive: Receive, _send: Send) -> None:
        raise ValueError("boom")

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="boom"), flatten_subgroups=True):
        async with AsgiClient(only(app)) as client:
            await client.request("GET", "/")


async def test_an_app_that_does_not_finish_its_answer_fails_the_test() -> None:
    async def app(_scope: Any, _receive: Receive, send: Send) -> None:
        await start(send)

    with pytest.RaisesGroup(pytest.RaisesExc(AssertionError, match="without completing"), flatten_subgroups=True):
        async with AsgiClient(only(app)) as client:
            await client.request("GET", "/")


async def test_a_failing_start_fails_the_test_with_its_own_message() -> None:
    async def app(_scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no key"})

    with pytest.RaisesGroup(pytest.RaisesExc(AssertionError, match="no key"), flatten_subgroups=True):
        async with AsgiClient(app):
            pass


async def test_requests_still_running_at_the_end_are_cancelled_and_named(autojump_clock: object) -> None:
    async def app(_scope: Any, _receive: Receive, send: Send) -> None:
        await start(send)
        await anyio.sleep_forever()

    assert autojump_clock is not None
    async with AsgiClient(only(app)) as client:
        async with client.stream("GET", "/stuck") as exchange:
            await exchange.started()
        assert exchange.running
    assert client.left_running == ["GET /stuck"]


def test_an_event_is_read_however_its_bytes_are_cut() -> None:
    stream = b"id: 7\r\ndata: a\r\ndata: b\r\n\r\n: ping\n\ndata: \xc3\xa9\n\n"
    reader = EventReader()
    events = [event for n in range(len(stream)) for event in reader.feed(stream[n : n + 1])]
    assert events == [Event(id="7", data="a\nb"), Event(comment="ping"), Event(data="é")]
    assert reader.rest == b""


def test_messages_are_built_as_clients_write_them() -> None:
    assert tool("add", {"a": 1}, 7, 0) == {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "tools/call",
        "params": {"name": "add", "arguments": {"a": 1}, "_meta": {"progressToken": 0}},
    }
    assert request("ping") == {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert "id" not in notification("x")
    assert body(b"not json") == b"not json"
    enveloped = modern(tool("add", token="t"), capabilities={"elicitation": {}}, log_level="info")
    assert enveloped["params"]["_meta"] == {
        "progressToken": "t",
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "harness", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}},
        "io.modelcontextprotocol/logLevel": "info",
    }
    assert dict(modern_headers(enveloped))["mcp-name"] == "add"
    assert headers(accept=None, content_type=None) == []


async def test_a_conversation_holds_with_the_sdks_own_server() -> None:
    example = Example()
    app = example.server.streamable_http_app(stateless_http=False)
    async with AsgiClient(app) as client:
        conversation = await Conversation.open(client, capabilities={"roots": {}})
        assert conversation.initialized["serverInfo"]["name"] == "example"
        async with conversation.stream(tool("count", {"steps": 2, "delay": 0}, id=5, token="t")) as exchange:
            *progress, last = await exchange.messages()
        assert [message["params"]["progress"] for message in progress] == [1, 2]
        assert last["id"] == 5
        assert (await conversation.delete()).status == 200
        assert (await conversation.post(request("ping"))).status == 404
    assert example.started == example.finished == ["count"]


async def test_a_modern_message_is_understood_by_the_sdks_own_server() -> None:
    example = Example()
    message = modern(tool("add", {"a": 1, "b": 2}))
    async with AsgiClient(example.server.streamable_http_app()) as client:
        answer = await client.request("POST", "/mcp", modern_headers(message), body(message))
    assert answer.status == 200, answer.body
    assert b'"3"' in answer.body
    assert initialize()["params"]["protocolVersion"] == "2025-11-25"


async def test_the_example_waits_until_it_is_let_go_and_records_what_it_did() -> None:
    example = Example()
    async with Client(example.server, mode="legacy") as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "wait")
        await example.until_started("wait")
        assert example.finished == []
        example.release()
        await example.until_over("wait")
        assert (await client.call_tool("late_progress")).is_error is False
        example.release("late")
        await example.until_over("late")
    assert example.finished == ["wait", "late_progress", "late"]
    assert example.lifespans == ["enter", "exit"]


SERVER = """
import os, signal, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

# Not sys.exit: where the signal comes while a request is let in, socketserver would log that exception, and serve on.
signal.signal(signal.SIGTERM, lambda *_: os._exit(int(sys.argv[2])))
try:
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
except OSError as error:
    sys.exit(str(error))
print("ready", flush=True)
server.serve_forever()
"""


def small_server(exit_code: int = 0) -> ServerProcess:
    return ServerProcess(lambda port: [sys.executable, "-c", SERVER, str(port), str(exit_code)])


@pytest.mark.process
def test_a_process_is_started_asked_restarted_and_stopped() -> None:
    with small_server() as server:
        port = server.port
        server.wait_for_log("ready")
        server.restart()
        assert server.port == port
        with urllib.request.urlopen(server.url) as answer:
            assert answer.read() == b"hello"
    assert server.log.count("ready") == 2


@pytest.mark.process
def test_a_process_that_ends_badly_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="ended with 3, not 0"), small_server(exit_code=3):
        pass


@pytest.mark.process
def test_a_process_that_does_not_start_fails_with_its_log() -> None:
    server = ServerProcess(lambda _: [sys.executable, "-c", "import sys; sys.exit('no such setting')"])
    with pytest.raises(AssertionError, match="no such setting"), server:
        pass


@pytest.mark.process
def test_the_log_of_a_server_is_shown_once_its_files_are_gone(tmp_path: Path) -> None:
    """A proxy's command line is made together with its configuration, in a folder that a failing test leaves first."""
    folder = tmp_path / "configuration"
    folder.mkdir()

    def argv(port: int) -> list[str]:
        (folder / "server.py").write_text(SERVER)
        return [sys.executable, str(folder / "server.py"), str(port), "0"]

    with ServerProcess(argv) as server:
        server.wait_for_log("ready")
        shutil.rmtree(folder)
        shown = shown_of_a_failure()
    assert shown[f"Log of {Path(sys.executable).name} on {server.port}"].startswith("ready")


def shown_of_a_failure() -> dict[str, str]:
    """Give the sections that the report of a failing test has."""
    report = pytest.TestReport("a test", ("", 0, ""), {}, "failed", None, "call")
    hook = logs.pytest_runtest_makereport()
    next(hook)
    with pytest.raises(StopIteration):
        hook.send(report)
    return dict(report.sections)


@pytest.mark.process
def test_another_port_is_tried_when_the_first_is_taken() -> None:
    with small_server() as first:
        tried: list[int] = []

        def argv(port: int) -> list[str]:
            tried.append(port)
            return [sys.executable, "-c", SERVER, str(first.port if len(tried) == 1 else port), "0"]

        # The first attempt waits on a port of its own, where nothing answers, until its process has ended.
        with ServerProcess(argv) as second:
            assert second.port != first.port
    assert len(tried) == 2


def test_a_free_port_is_free() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass


@pytest.mark.skipif(not RANGE.exists(), reason="the range is read from /proc")
def test_no_port_is_given_twice_or_taken_for_a_connection_that_goes_out() -> None:
    ports = [free_port() for _ in range(100)]
    assert len(set(ports)) == 100
    assert max(ports) < int(RANGE.read_text().split()[0])


@pytest.mark.process
def test_a_port_is_given_to_one_run_of_the_tests_only() -> None:
    ports = [free_port(), free_port()]
    script = f"from harness.process import _Ports; ports = _Ports(); ports._left = {ports}; ports.take()"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert done.stderr.splitlines()[-1] == "IndexError: pop from empty list"


@pytest.mark.process
def test_a_port_that_somebody_takes_meanwhile_is_not_taken_for_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a Redis: a test that kills and stalls its own must not do it to another's."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        for module in (process, redis):
            ports = iter([taken])
            monkeypatch.setattr(module, "free_port", lambda ports=ports: next(ports, None) or free_port())
        with process.serve() as server, redis.redis_server() as database:
            assert taken not in (server.port, database.port)
