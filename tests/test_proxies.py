"""A real nginx and a real Caddy in front of a real server, with the configuration that is shipped.

Whether a proxy passes things on as they come is not judged by the clock: a tool waits at a gate until its client has
seen the value before, so behind a proxy that holds values back a test does not come to its end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import h11
import httpx2
import pytest
import trio
from mcp.client.session import IncomingMessage
from mcp_types import ElicitRequestParams, ElicitResult, ToolListChangedNotification

from harness.clients import Wire, call, connected, following
from harness.mcp import LEGACY, MODERN, Json, body, headers, initialize, modern, modern_headers, request, tool
from harness.process import ServerProcess, free_port, program, serve
from harness.proxies import CADDYFILE, NGINX_SNIPPET, caddy, nginx
from harness.raw import RawClient
from mcp_hybrid.exchange import sse
from mcp_hybrid.server.running import KEEP_ALIVE_TIMEOUT
from mcp_hybrid.sessions.seal import fresh_key
from mcp_hybrid.settings import Settings

pytestmark = pytest.mark.outside

PROXIES: dict[str, Callable[..., AbstractContextManager[ServerProcess]]] = {"nginx": nginx, "caddy": caddy}
BOTH_ERAS = pytest.mark.parametrize("mode", ["legacy", MODERN])
NOTHING_CAME = 1.0
"""Seconds without a word that show that a proxy holds something back. A slow machine only makes it more certain."""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serve(program("gated"), env={"MCP_HYBRID_OPERATOR__ADMIN_KEY": fresh_key()}) as process:
        yield process


@pytest.fixture(scope="module", params=list(PROXIES))
def proxy(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[ServerProcess]:
    with PROXIES[request.param](server.port) as process:
        yield process


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for the calls and gates of this test, as the server is shared."""
    found: str = request.node.name
    return found


# What comes as it comes


@BOTH_ERAS
async def test_progress_passes_value_by_value_while_the_call_runs(proxy: ServerProcess, mode: str, name: str) -> None:
    wire = Wire()
    with anyio.fail_after(60):
        async with (
            connected(proxy.url, mode, wire) as client,
            following(client, "steps", name=name, count=4) as running,
        ):
            for step in (1, 2, 3, 4):
                await running.reported(step)
                assert running.values[-1] == step
                await call(client, "release", gate=f"{name}/{step}")
            assert await running.finished() == "4 steps"
    (answer,) = [one for one in wire.calls() if one.content_type == "text/event-stream"]
    assert answer.route == ("session" if mode == "legacy" else "modern")


async def test_the_get_stream_passes_what_happens_outside_of_calls(proxy: ServerProcess, name: str) -> None:
    heard, wire = anyio.Event(), Wire()

    async def handler(message: IncomingMessage) -> None:
        assert isinstance(message, ToolListChangedNotification)
        heard.set()

    with anyio.fail_after(60):
        async with (
            connected(proxy.url, "legacy", wire, message_handler=handler) as listener,
            connected(proxy.url, "legacy") as other,
        ):
            await call(listener, "remember", name=name)
            stream = await wire.until("GET")
            assert (stream.status, stream.content_type) == (200, "text/event-stream")
            await call(other, "tell", name=name)
            await heard.wait()


async def test_a_question_reaches_the_client_and_its_answer_the_tool(proxy: ServerProcess) -> None:
    async def elicit(context: object, params: ElicitRequestParams) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": "Ada"})

    with anyio.fail_after(60):
        async with connected(proxy.url, "legacy", elicitation_callback=elicit) as client:
            assert await call(client, "ask") == "hello Ada"


async def test_a_modern_client_that_goes_has_its_call_cancelled(proxy: ServerProcess, name: str) -> None:
    message = modern(tool("hold", {"name": name}))
    with anyio.fail_after(60):
        async with RawClient.open(proxy.port) as raw:
            await raw.send("POST", modern_headers(message), body(message))
            async with connected(proxy.url, MODERN) as client:
                await call(client, "reached", name=name, stage="started")
        async with connected(proxy.url, MODERN) as client:
            assert await call(client, "outcome", name=name) == "cancelled"


async def test_the_rest_of_a_stream_that_was_cut_is_had_by_its_last_event_id(proxy: ServerProcess, name: str) -> None:
    session = httpx2.post(proxy.url, json=initialize(), headers=headers()).headers["mcp-session-id"]
    with anyio.fail_after(60):
        async with RawClient.open(proxy.port) as raw:
            await raw.post(tool("steps", {"name": name, "count": 1}, token="t"), session, LEGACY)
            assert (await raw.answer_head()).status == 200
            first = await raw.event()
            assert first.json()["params"]["progress"] == 1
        assert first.id is not None
        async with connected(proxy.url, MODERN) as client:
            await call(client, "release", gate=f"{name}/1")
        async with RawClient.open(proxy.port) as raw:
            since = headers(session, LEGACY, ("last-event-id", first.id), content_type=None)
            await raw.send("GET", since)
            assert (await raw.answer_head()).status == 200
            assert (await raw.event()).json()["result"]["content"][0]["text"] == "1 steps"


BUFFERING = ("proxy_buffering off;", "proxy_buffering on;")
DEAF = ("proxy_cache off;", "proxy_cache off; proxy_ignore_headers X-Accel-Buffering;")
OLD = ("proxy_http_version 1.1;", "")
GZIP = ("gzip off;", "gzip on; gzip_types *; gzip_min_length 0; gzip_proxied any;")


@pytest.mark.parametrize(
    ("changes", "held_back"),
    [
        pytest.param([BUFFERING, OLD, DEAF], True, id="as nginx is by default"),
        pytest.param([BUFFERING, OLD], False, id="unless it hears the header"),
        pytest.param([BUFFERING, GZIP, DEAF], True, id="if it compresses"),
        pytest.param([OLD, GZIP, DEAF], False, id="not without buffering"),
    ],
)
async def test_nginx_told_otherwise_holds_progress_back(
    server: ServerProcess, tmp_path: Path, name: str, changes: list[tuple[str, str]], held_back: bool
) -> None:
    text = NGINX_SNIPPET.read_text(encoding="utf-8")
    for shipped, instead in changes:
        assert text.count(shipped) == 1
        text = text.replace(shipped, instead)
    snippet = tmp_path / "nginx.conf"
    snippet.write_text(text, encoding="utf-8")
    with nginx(server.port, snippet=snippet) as changed:
        session = httpx2.post(changed.url, json=initialize(), headers=headers()).headers["mcp-session-id"]
        async with connected(server.url, MODERN) as beside:
            with anyio.move_on_after(NOTHING_CAME if held_back else 60) as waiting:
                async with lines_of(
                    changed.url, tool("steps", {"name": name, "count": 2}, token="t"), session
                ) as lines:
                    await until_progress(lines, 1)
                    await call(beside, "release", gate=f"{name}/1")
                    await until_progress(lines, 2)
            assert waiting.cancelled_caught is held_back
            await call(beside, "release", gate=f"{name}/1")
            await call(beside, "release", gate=f"{name}/2")


@asynccontextmanager
async def lines_of(url: str, message: Json, session: str) -> AsyncIterator[AsyncIterator[str]]:
    """Send a message and give the lines of the answer as they come; this client takes a compressed one, too."""
    async with (
        httpx2.AsyncClient(timeout=60) as client,
        client.stream("POST", url, json=message, headers=headers(session)) as answer,
    ):
        yield answer.aiter_lines()


async def until_progress(lines: AsyncIterator[str], value: int) -> None:
    while f'"progress":{value}' not in await anext(lines):
        pass


@pytest.mark.parametrize(("target", "kept"), [("lively", True), ("gated", False)])
async def test_an_idle_stream_is_kept_by_its_signs_of_life_for_longer_than_nginx_waits(
    tmp_path: Path, target: str, kept: bool
) -> None:
    text = NGINX_SNIPPET.read_text(encoding="utf-8")
    assert text.count("proxy_read_timeout 330s;") == 1
    impatient = tmp_path / "nginx.conf"
    impatient.write_text(text.replace("proxy_read_timeout 330s;", "proxy_read_timeout 10s;"), encoding="utf-8")
    with serve(program(target)) as server, nginx(server.port, snippet=impatient) as changed:
        session = httpx2.post(changed.url, json=initialize(), headers=headers()).headers["mcp-session-id"]
        async with RawClient.open(changed.port) as raw:
            with anyio.fail_after(120):
                await raw.send("GET", headers(session, LEGACY, content_type=None))
                assert (await raw.answer_head()).status == 200
                signs, enough = 0, 40  # 12 seconds of them
                with suppress(h11.RemoteProtocolError):  # nginx cuts it in the middle
                    while signs < enough:
                        signs += (await raw.any_event()).comment is not None
    assert (signs == enough) is kept


async def test_caddy_told_to_flush_at_once_keeps_calls_of_clients_that_have_gone(
    server: ServerProcess, tmp_path: Path, name: str
) -> None:
    text = CADDYFILE.read_text(encoding="utf-8")
    assert text.count("lb_policy round_robin") == 1
    told = tmp_path / "Caddyfile"
    told.write_text(text.replace("lb_policy round_robin", "flush_interval -1"), encoding="utf-8")
    message = modern(tool("hold", {"name": name}))
    with caddy(server.port, caddyfile=told) as changed:
        async with connected(server.url, MODERN) as beside:
            async with RawClient.open(changed.port) as raw:
                await raw.send("POST", modern_headers(message), body(message))
                await call(beside, "reached", name=name, stage="started")
            with anyio.move_on_after(NOTHING_CAME) as waiting:
                await call(beside, "outcome", name=name)
            assert waiting.cancelled_caught
            await call(beside, "release", gate=name)
            assert await call(beside, "outcome", name=name) == "finished"


# Bodies


def sized(size: int) -> bytes:
    """Make a message of so many bytes."""
    empty = len(body(tool("add", {"a": 1, "b": 2}) | {"_": ""}))
    return body(tool("add", {"a": 1, "b": 2}) | {"_": "x" * (size - empty)})


def test_a_body_of_the_size_that_is_allowed_passes(proxy: ServerProcess) -> None:
    answer = post(proxy.url, sized(Settings().limits.body))
    assert answer.json()["result"]["content"][0]["text"] == "3"


@pytest.mark.parametrize("size", [Settings().limits.body + 1, 8 * 2**20], ids=["the server refuses", "the proxy"])
def test_a_larger_body_is_refused_in_json_rpc_whoever_refuses_it(proxy: ServerProcess, size: int) -> None:
    answer = post(proxy.url, sized(size))
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/json")
    assert answer.json()["error"]["code"] == -32600


@pytest.mark.parametrize("start", PROXIES.values(), ids=PROXIES)
async def test_a_request_is_taken_in_whole_before_it_is_passed_on(start: Any) -> None:
    """Caddy 2.6.2 otherwise may still be reading it when the answer comes, and then cuts it off now and then."""
    (upstream,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with upstream:
        with start(upstream.socket.getsockname()[1]) as proxy:
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as client:
                head = ("POST /mcp HTTP/1.1", f"Host: 127.0.0.1:{proxy.port}", "Content-Length: 9", "", "half,")
                await client.send_all("\r\n".join(head).encode())
                with trio.move_on_after(NOTHING_CAME) as waiting:
                    await upstream.accept()
                assert waiting.cancelled_caught
                await client.send_all(b"rest")
                with trio.fail_after(60):
                    behind, came = await upstream.accept(), b""
                    async with behind:
                        while not came.endswith(b"half,rest"):
                            came += await behind.receive_some()


def post(url: str, content: bytes, *more: tuple[str, str]) -> httpx2.Response:
    return httpx2.post(url, content=content, headers=headers(None, None, *more), timeout=60)


# What does not pass, and what is said then


OTHER_PATHS = ("/", "/healthz", "/readyz", "/metrics", "/admin/sessions", "/mcp/x", "/mcpx", "/x/mcp")


def test_nothing_but_the_endpoint_is_to_be_had_from_outside(proxy: ServerProcess, server: ServerProcess) -> None:
    foreign = '"refused":"origin_not_allowed"'
    before = len(server.log)
    for path in OTHER_PATHS:
        assert httpx2.get(f"http://127.0.0.1:{proxy.port}{path}").status_code == 404, path
    post(proxy.url, body(request("ping")), ("origin", "http://evil.example"))  # the log has this, and not those before
    server.wait_for_log(foreign, since=before)
    assert '"refused":"not_found"' not in server.log


ODD_PATHS = (
    "/metrics/../mcp",
    "/mcp/../metrics",
    "/mcp/../admin/sessions",
    "/admin/sessions/../../mcp",
    "/admin/sessions/..%2f..%2fmcp",
    "/admin/sessions/%2e%2e/%2e%2e/mcp",
    "/healthz%2f..%2fmcp",
    "/mcp%2f..%2fmetrics",
    "/mcp%2f..%2fadmin%2fsessions",
    "/mcp/..%5cmetrics",
    "//metrics",
    "/mcp%0a",
    "/metrics%3f/../mcp",
    "/metrics%23/../mcp",
)


@pytest.mark.parametrize("start", PROXIES.values(), ids=PROXIES)
async def test_what_a_proxy_takes_for_the_endpoint_is_passed_on_as_that(start: Any) -> None:
    passed = []

    async def upstream(stream: trio.SocketStream) -> None:
        async with stream:
            passed.append((await stream.receive_some()).split()[1].decode())
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, upstream, [listener])
        with start(listener.socket.getsockname()[1]) as proxy, anyio.fail_after(60):
            for target in ("/mcp?x=..%2f", "/mcp/", *ODD_PATHS):
                async with RawClient.open(proxy.port) as raw:
                    head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{proxy.port}\r\nConnection: close\r\n\r\n"
                    await raw.write(head.encode())
                    await raw.stream.receive_some()
        nursery.cancel_scope.cancel()
    assert passed[:2] == ["/mcp?x=..%2f", "/mcp/"]
    assert set(passed[2:]) <= {"/mcp"}, passed


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "anything"])
async def test_a_proxy_passes_no_other_protocol_on(protocol: str) -> None:
    (upstream,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with upstream:
        for start in PROXIES.values():
            with start(upstream.socket.getsockname()[1]) as front, anyio.fail_after(60):
                async with await trio.open_tcp_stream("127.0.0.1", front.port) as client:
                    fields = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {protocol}", "HTTP2-Settings: AAMAAABk")
                    head = ("GET /mcp HTTP/1.1", f"Host: 127.0.0.1:{front.port}", *fields, "", "")
                    await client.send_all("\r\n".join(head).encode())
                    behind, came = await upstream.accept(), b""
                    async with behind:
                        while b"\r\n\r\n" not in came:
                            came += await behind.receive_some()
            assert came.startswith(b"GET /mcp HTTP/1.1\r\n")
            assert b"upgrade" not in came.lower()
            assert b"settings" not in came.lower()


def test_a_host_that_is_not_allowed_is_refused_by_the_server_behind(server: ServerProcess) -> None:
    with nginx(server.port) as process:
        answer = post(process.url, body(request("ping")), ("host", "attacker.example"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, -32600)


@pytest.mark.parametrize("start", PROXIES.values(), ids=PROXIES)
def test_a_server_that_is_away_is_told_in_json_rpc(start: Any) -> None:
    with start(free_port()) as process:
        answer = post(process.url, body(request("ping")))
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/json")
    assert (answer.headers["retry-after"], answer.json()["error"]["code"]) == ("5", -32000)


# Several workers behind it


@pytest.mark.parametrize("start", PROXIES.values(), ids=PROXIES)
def test_requests_go_round_all_servers_and_a_session_with_them(start: Any) -> None:
    key = {"MCP_HYBRID_SESSIONS__KEYS": fresh_key()}
    with serve(env=key) as one, serve(env=key) as two, start(one.port, two.port) as process:
        session = httpx2.post(process.url, json=initialize(), headers=headers()).headers["mcp-session-id"]
        for number in range(4):
            answer = httpx2.post(process.url, json=request("ping", id=number), headers=headers(session, LEGACY))
            assert (answer.status_code, answer.headers["mcp-hybrid-route"]) == (200, "session")
        for each in (one, two):
            each.wait_for_log('"method":"ping"')


# What the files say


def test_the_times_and_sizes_of_both_leave_room_for_what_the_server_allows() -> None:
    settings = Settings()
    nginx_text, caddy_text = NGINX_SNIPPET.read_text(encoding="utf-8"), CADDYFILE.read_text(encoding="utf-8")
    assert "proxy_read_timeout 330s;" in nginx_text
    assert "response_header_timeout 330s" in caddy_text
    assert settings.request_timeout < 330
    assert sse.KEEP_ALIVE_INTERVAL < 60  # what proxies cut at that were told nothing
    # Whoever sends on an idle connection has to be the one who closes it; nginx does after 60 s.
    assert "keepalive 60s" in caddy_text
    assert KEEP_ALIVE_TIMEOUT > 60
    assert "client_max_body_size 5m;" in nginx_text
    assert settings.limits.body < 5 * 10**6
