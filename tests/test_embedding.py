"""`HybridApp` inside other programs: under Starlette and FastAPI, and on asyncio."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
import uvicorn
from fastapi import FastAPI
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from structlog.testing import capture_logs

from harness.asgi import App, AsgiClient
from harness.example import Example
from harness.mcp import Conversation, body, headers, initialize, modern, modern_headers, request, tool
from harness.process import POLL, ServerProcess, command, hypercorn, program
from harness.sse import EventReader
from mcp_hybrid import HybridApp, Settings


async def hello(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def mounted_at_the_root(app: HybridApp) -> App:
    return Starlette(lifespan=app.lifespan, routes=[Route("/hello", hello), Mount("/", app)])


def mounted_below(app: HybridApp) -> App:
    return Starlette(lifespan=app.lifespan, routes=[Route("/hello", hello), Mount("/tools", app)])


def routed(app: HybridApp) -> App:
    return Starlette(lifespan=app.lifespan, routes=[Route("/hello", hello), Route("/mcp", app)])


def under_fastapi(app: HybridApp) -> App:
    host = FastAPI(lifespan=app.lifespan)
    host.add_api_route("/hello", hello, response_class=PlainTextResponse)
    host.mount("/", app)
    return host


HOSTS = pytest.mark.parametrize(
    ("embed", "path"),
    [
        (mounted_at_the_root, "/mcp"),
        (mounted_below, "/tools/mcp"),
        (mounted_below, "/tools/"),
        (routed, "/mcp"),
        (under_fastapi, "/mcp"),
    ],
    ids=["Mount at the root", "Mount below", "the place it is mounted at", "Route", "FastAPI"],
)


# Under a framework


@HOSTS
async def test_all_three_routes_are_served_under_a_framework(embed: Any, path: str) -> None:
    example = Example()
    async with AsgiClient(embed(HybridApp(example.server))) as client:
        add = tool("add", {"a": 1, "b": 2})
        alone = await client.request("POST", path, headers(), body(add))
        assert (alone.status, alone.header("mcp-hybrid-route")) == (200, "stateless")
        conversation = await Conversation.open(client, path=path)
        inside = await conversation.post(add)
        assert (inside.status, inside.header("mcp-hybrid-route")) == (200, "session")
        enveloped = modern(add)
        new = await client.request("POST", path, modern_headers(enveloped), body(enveloped))
        assert (new.status, new.header("mcp-hybrid-route")) == (200, "modern")
        assert (await conversation.delete()).status == 204
        assert (await client.request("GET", "/hello")).body == b"hello"
    assert example.lifespans == ["enter", "exit"]


@HOSTS
async def test_progress_comes_while_the_call_runs_under_a_framework(embed: Any, path: str) -> None:
    example = Example()
    async with AsgiClient(embed(HybridApp(example.server))) as client:
        conversation = await Conversation.open(client, path=path)
        async with conversation.stream(tool("late_progress", token="t")) as exchange:
            assert (await exchange.message())["params"]["progress"] == 1
            assert (await exchange.message())["result"]["content"][0]["text"] == "more to come"
        async with conversation.stream(tool("count", {"steps": 2, "delay": 0.01}, id=2, token="t")) as exchange:
            assert (await exchange.message())["params"]["progress"] == 1
            assert exchange.running
            assert (await exchange.message())["params"]["progress"] == 2
            assert "result" in await exchange.message()


async def test_the_setting_path_says_where_a_route_leads() -> None:
    app = HybridApp(Example().server, Settings(path="/elsewhere"))
    host = Starlette(lifespan=app.lifespan, routes=[Route("/elsewhere", app)])
    async with AsgiClient(host) as client:
        assert (await client.request("POST", "/elsewhere", headers(), body(request("ping")))).status == 200
        assert (await client.request("POST", "/mcp", headers(), body(request("ping")))).status == 404


async def test_a_path_that_is_not_the_endpoint_is_told_which_one_is() -> None:
    async with AsgiClient(HybridApp(Example().server)) as client:
        answer = await client.request("POST", "/other", headers(), body(request("ping")))
    assert answer.status == 404
    assert "/mcp" in answer.json()["error"]["message"]


async def test_a_hosts_own_lifespan_runs_around_that_of_the_app() -> None:
    example = Example()
    app = HybridApp(example.server)

    @asynccontextmanager
    async def lifespan(host: Starlette) -> AsyncIterator[None]:
        example.lifespans.append("host enters")
        async with app.lifespan(host):
            yield
        example.lifespans.append("host exits")

    async with AsgiClient(Starlette(lifespan=lifespan, routes=[Mount("/", app)])) as client:
        assert (await client.request("POST", "/mcp", headers(), body(request("ping")))).status == 200
    assert example.lifespans == ["host enters", "enter", "exit", "host exits"]


async def test_two_apps_live_in_one_host() -> None:
    first, second = Example(), Example()
    apps = [HybridApp(first.server), HybridApp(second.server)]

    @asynccontextmanager
    async def lifespan(_host: Starlette) -> AsyncIterator[None]:
        async with apps[0].lifespan(), apps[1].lifespan():
            yield

    routes = [Mount("/one", apps[0]), Mount("/two", apps[1])]
    async with AsgiClient(Starlette(lifespan=lifespan, routes=routes)) as client:
        conversation = await Conversation.open(client, path="/one/mcp")
        assert (await conversation.post(tool("add", {"a": 1, "b": 2}))).status == 200
        conversation.path = "/two/mcp"
        assert (await conversation.post(tool("add", {"a": 1, "b": 2}))).status == 404
    assert (first.started, second.started) == (["add"], [])


# Its own lifespan


async def test_the_servers_lifespan_is_entered_once_for_all_requests() -> None:
    example = Example()
    async with AsgiClient(HybridApp(example.server)) as client:
        for _ in range(3):
            await Conversation.open(client)
        assert example.lifespans == ["enter"]
    assert example.lifespans == ["enter", "exit"]


async def test_a_request_before_the_lifespan_is_503_and_says_why() -> None:
    app = HybridApp(Example().server)
    with capture_logs() as logs:
        async with AsgiClient(app, lifespan=False) as client:
            answer = await client.request("POST", "/mcp", headers(), body(request("ping", id="p")))
    assert (answer.status, answer.header("retry-after")) == (503, "5")
    error = {"code": -32000, "message": "The server is not running."}
    assert answer.json() == {"jsonrpc": "2.0", "id": "p", "error": error}
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert "its lifespan was not entered" in line["event"]


async def test_a_mounted_app_whose_host_was_not_told_is_503() -> None:
    host = Starlette(routes=[Mount("/", HybridApp(Example().server))])
    async with AsgiClient(host) as client:
        assert (await client.request("POST", "/mcp", headers(), body(initialize()))).status == 503


async def test_starting_twice_is_an_error_and_the_first_goes_on() -> None:
    example = Example()
    app = HybridApp(example.server)
    async with AsgiClient(app) as client:
        with pytest.raises(RuntimeError, match="running already"):
            async with app.lifespan():
                pass
        assert (await client.request("POST", "/mcp", headers(), body(request("ping")))).status == 200
    assert example.lifespans == ["enter", "exit"]


async def test_it_starts_again_after_it_has_stopped() -> None:
    example = Example()
    app = HybridApp(example.server)
    for _ in range(2):
        async with app.lifespan():
            assert len(app.registry) == 0
        with pytest.raises(RuntimeError, match="not running"):
            _ = app.registry
    assert example.lifespans == ["enter", "exit"] * 2


# On asyncio


class AsyncioOnly:
    """A server whose tools use asyncio itself, and cannot run on Trio."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.server = MCPServer("asyncio-only")

        @self.server.tool()
        async def count(ctx: Context, steps: int) -> str:
            async with asyncio.timeout(10):
                for step in range(1, steps + 1):
                    await ctx.report_progress(step, steps)
                    await asyncio.sleep(0.05)
            return f"counted to {steps}"

        @self.server.tool()
        async def wait(ctx: Context) -> str:
            await ctx.report_progress(1)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            return "waited"


@contextmanager
def under_uvicorn(app: App) -> Iterator[str]:
    """Run uvicorn on an event loop in a thread, and give the URL of the endpoint."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, ws="none", log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 10
        while not server.started:
            assert thread.is_alive(), "uvicorn did not start"
            assert time.monotonic() < until, "uvicorn did not start in time"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive(), "uvicorn did not stop"


def messages(answer: httpx2.Response) -> Iterator[dict[str, Any]]:
    """Give the messages of an event stream as they come."""
    reader = EventReader()
    for chunk in answer.iter_bytes():
        for event in reader.feed(chunk):
            if event.data:
                yield event.json()


@contextmanager
def streaming(url: str, sent: list[tuple[str, str]], message: Any) -> Iterator[httpx2.Response]:
    with httpx2.stream("POST", url, headers=sent, json=message, timeout=20) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        yield answer


def initialized(url: str) -> list[tuple[str, str]]:
    """Open a session, and give the headers of its requests."""
    answer = httpx2.post(url, headers=headers(), json=initialize(), timeout=20)
    return headers(answer.headers["mcp-session-id"], "2025-11-25")


def told(received: list[dict[str, Any]]) -> list[Any]:
    """Give the progress values and, last, the text of the result."""
    *progress, last = received
    return [*(message["params"]["progress"] for message in progress), last["result"]["content"][0]["text"]]


@pytest.mark.parametrize("mounted", [False, True], ids=["by itself", "under FastAPI"])
def test_an_asyncio_only_tool_reports_progress_in_a_session_under_uvicorn(mounted: bool) -> None:
    app = HybridApp(AsyncioOnly().server)
    with under_uvicorn(under_fastapi(app) if mounted else app) as url:
        sent = initialized(url)
        with streaming(url, sent, tool("count", {"steps": 4}, token="t")) as answer:
            arrived = [(time.monotonic(), message) for message in messages(answer)]
    assert told([message for _, message in arrived]) == [1, 2, 3, 4, "counted to 4"]
    assert arrived[-1][0] - arrived[0][0] > 0.1  # one by one, not all at the end


def test_a_modern_call_is_cancelled_when_its_client_goes_under_uvicorn() -> None:
    example = AsyncioOnly()
    message = modern(tool("wait", token="t"))
    with under_uvicorn(HybridApp(example.server)) as url:
        with streaming(url, modern_headers(message), message) as answer:
            assert next(messages(answer))["params"]["progress"] == 1
        assert example.cancelled.wait(10)


def test_a_client_that_went_comes_back_for_the_rest_under_uvicorn() -> None:
    with under_uvicorn(HybridApp(AsyncioOnly().server)) as url:
        sent = initialized(url)
        reader = EventReader()
        with streaming(url, sent, tool("count", {"steps": 4}, token="t")) as answer:
            events = (event for chunk in answer.iter_bytes() for event in reader.feed(chunk))
            last = next(event.id for event in events if event.data)
        assert last is not None
        with httpx2.stream("GET", url, headers=[*sent, ("last-event-id", last)], timeout=20) as answer:
            rest = list(messages(answer))
    assert told(rest) == [2, 3, 4, "counted to 4"]


@pytest.mark.process
def test_uvicorns_command_serves_it_by_name_as_the_readme_says() -> None:
    assert "`uvicorn mcp_hybrid.asgi:app`" in (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")

    def argv(port: int) -> list[str]:
        return [*command("uvicorn"), "mcp_hybrid.asgi:app", "--port", str(port)]

    with ServerProcess(argv, {"MCP_HYBRID_TARGET": program("with_mcpserver")}) as server:
        alone = httpx2.post(server.url, headers=headers(), json=tool("add", {"a": 1, "b": 2}), timeout=20)
        assert alone.headers["mcp-hybrid-route"] == "stateless"
        assert alone.json()["result"]["content"][0]["text"] == "3"
        with streaming(server.url, initialized(server.url), tool("count", {"steps": 3}, token=0)) as answer:
            arrived = [(time.monotonic(), message) for message in messages(answer)]
        assert told([message for _, message in arrived]) == [1, 2, 3, "counted to 3"]
        assert arrived[-1][0] - arrived[0][0] > 0.1, "they came all at once"
        server.stop(exit_code=-signal.SIGTERM)  # uvicorn ends in order, then by the signal it was sent
        assert "Traceback" not in server.log


@pytest.mark.process
def test_hypercorns_asyncio_worker_serves_it_too() -> None:
    with (
        hypercorn("-k", "asyncio", env={"MCP_HYBRID_TARGET": program("with_mcpserver")}) as server,
        streaming(server.url, initialized(server.url), tool("count", {"steps": 3}, token=0)) as answer,
    ):
        received = list(messages(answer))
    assert told(received) == [1, 2, 3, "counted to 3"]


# How a host ends


COMMANDS = re.compile(r"^<!-- runs: (\w+) -->\n```sh\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def commands_of_the_document() -> dict[str, str]:
    return dict(COMMANDS.findall((Path(__file__).parent.parent / "docs" / "hosts.md").read_text(encoding="utf-8")))


def on(host: str, **env: str) -> ServerProcess:
    """Run a command of docs/hosts.md, on a free port and with a server that is there."""
    target, name, *arguments = shlex.split(commands_of_the_document()[host])
    assert target == "MCP_HYBRID_TARGET=server.py"

    def argv(port: int) -> list[str]:
        return [*command(name), *(argument.replace("8000", str(port)) for argument in arguments)]

    return ServerProcess(argv, {"MCP_HYBRID_TARGET": program("with_mcpserver"), **env})


@contextmanager
def following(url: str, sent: list[tuple[str, str]]) -> Iterator[Iterator[bytes]]:
    """Read a session's GET stream, from its first event on."""
    with httpx2.stream("GET", url, headers=sent, timeout=60) as answer:
        pieces = answer.iter_bytes()
        assert next(pieces)
        yield pieces


EXIT_CODES = {"uvicorn": -signal.SIGTERM, "granian": 0, "hypercorn": 0}
"""uvicorn ends in order, then by the signal it was sent."""
END_IN_ORDER = pytest.mark.parametrize(("host", "code"), EXIT_CODES.items())


def test_every_command_of_the_document_is_tried() -> None:
    assert commands_of_the_document().keys() == EXIT_CODES.keys()


@pytest.mark.process
@END_IN_ORDER
def test_a_host_that_is_told_to_stop_ends_streams_and_finishes_calls(host: str, code: int) -> None:
    with on(host) as server:
        sent = initialized(server.url)
        call = tool("count", {"steps": 5}, token="t")
        with following(server.url, sent) as pieces, streaming(server.url, sent, call) as answer:
            received = messages(answer)
            first = next(received)
            server._running().send_signal(signal.SIGTERM)
            assert list(pieces), "the stream tells when to come back, and ends"
            assert told([first, *received]) == [1, 2, 3, 4, 5, "counted to 5"]
        server.wait(exit_code=code)
        assert "Traceback" not in server.log


@pytest.mark.process
@END_IN_ORDER
def test_a_host_that_stops_has_calls_that_take_too_long_told_so(host: str, code: int) -> None:
    with on(host, MCP_HYBRID_SERVER__DRAIN_TIMEOUT="0.1") as server:
        sent = initialized(server.url)
        with streaming(server.url, sent, tool("count", {"steps": 6000}, token="t")) as answer:
            received = messages(answer)
            next(received)
            server._running().send_signal(signal.SIGTERM)
            *_, last = received
        assert "The server is stopping" in last["error"]["message"]
        server.wait(exit_code=code)
        assert "Traceback" not in server.log


@pytest.mark.process
def test_uvicorn_reloads_while_a_client_reads_a_stream(tmp_path: Path) -> None:
    file = tmp_path / "edited.py"
    source = "from mcp.server import MCPServer\nmcp = MCPServer('edited', version='{version}')\n"
    file.write_text(source.format(version="first"))

    def argv(port: int) -> list[str]:
        watched = ["--reload", "--reload-dir", str(tmp_path), "--port", str(port)]
        return [*command("uvicorn"), "mcp_hybrid.asgi:app", *watched]

    def serves(server: ServerProcess, version: str) -> bool:
        with suppress(httpx2.TransportError):  # the old process may take a connection that it does not serve any more
            answer = httpx2.post(server.url, headers=headers(), json=initialize(), timeout=60)
            return bool(answer.json()["result"]["serverInfo"]["version"] == version)
        return False

    with ServerProcess(argv, {"MCP_HYBRID_TARGET": str(file)}) as server:
        assert serves(server, "first")
        with following(server.url, initialized(server.url)) as pieces:
            file.write_text(source.format(version="another"))
            assert list(pieces), "the stream tells when to come back, and ends"
        until = time.monotonic() + 60
        while not serves(server, "another"):
            assert time.monotonic() < until
            time.sleep(POLL)
        server.stop()
        assert "Traceback" not in server.log


@pytest.mark.process
def test_two_applications_in_one_process_both_end_in_order(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)

    def argv(port: int) -> list[str]:
        return [*command("uvicorn"), "two:app", "--app-dir", str(tmp_path), "--port", str(port)]

    with ServerProcess(argv, path="/a/mcp") as server:
        urls = [server.url, server.url.replace("/a/", "/b/")]
        with ExitStack() as stack:
            streams = [stack.enter_context(following(url, initialized(url))) for url in urls]
            server._running().send_signal(signal.SIGTERM)
            assert all(list(pieces) for pieces in streams)
        server.wait(exit_code=-signal.SIGTERM)
        assert "Traceback" not in server.log


TWO = """\
from contextlib import asynccontextmanager
from mcp.server import MCPServer
from mcp_hybrid import HybridApp
from starlette.applications import Starlette
from starlette.routing import Mount

a, b = HybridApp(MCPServer("a")), HybridApp(MCPServer("b"))

@asynccontextmanager
async def lifespan(app):
    async with a.lifespan(), b.lifespan():
        yield

app = Starlette(lifespan=lifespan, routes=[Mount("/a", a), Mount("/b", b)])
"""


async def test_a_lifespan_leaves_the_signal_handlers_that_it_found() -> None:
    def found() -> list[Any]:
        return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    async def lives() -> list[Any]:
        async with HybridApp(Example().server).lifespan():
            return found()

    before = found()
    assert await lives() == before, "on Trio nothing is changed"
    during = await trio.to_thread.run_sync(asyncio.run, lives())
    assert during == before, "nor outside of the main thread"
