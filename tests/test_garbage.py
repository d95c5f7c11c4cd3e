"""A request is gone when it was answered: nothing waits for the garbage collector, whose pauses all would feel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx2
import pytest

from harness import mcp
from harness.mcp import LEGACY, body, headers, initialize, modern, modern_headers, request, tool
from harness.process import ServerProcess, program, serve

Json = dict[str, Any]

pytestmark = [pytest.mark.process, pytest.mark.measures]

TIMES = 50
FEW = 25
"""Objects that all of them together may leave, far less than one each: what the rest of the process did meanwhile."""

ADD = tool("add", {"a": 1, "b": 2})
COUNT = tool("count", {"steps": 3, "delay": 0}, token="t")
SLOWLY = tool("count", {"steps": 2, "delay": 0.01}, token="t")
MESSAGES = {
    "a call": ADD,
    "progress": COUNT,
    "progress with pauses": SLOWLY,
    "an error result": tool("fail"),
    "an error that is nobody's": tool("crash"),
    "a tool that is none": tool("unknown"),
    "a list": request("tools/list"),
    "a method that is none": request("x/y"),
    "ping": request("ping"),
    "a handshake": initialize(),
    "a notification": mcp.notification("notifications/initialized"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serve(program("collected")) as process:
        yield process


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("route", ["stateless", "session", "modern"])
def test_a_request_leaves_nothing_to_the_garbage_collector(server: ServerProcess, route: str, message: Json) -> None:
    with httpx2.Client() as client:
        session = open_session(client, server) if route == "session" else None
        send = partial(post, client, server, message, session, is_modern=route == "modern")
        assert left_by(server, send) < FEW


@pytest.mark.parametrize("message", [ADD, COUNT], ids=["a call", "progress"])
def test_a_request_over_http2_leaves_nothing_to_it(server: ServerProcess, message: Json) -> None:
    with httpx2.Client(http1=False, http2=True) as client:
        session = open_session(client, server)
        assert left_by(server, partial(post, client, server, message, session)) < FEW


@pytest.mark.parametrize("message", [ADD, COUNT], ids=["a call", "progress"])
def test_a_connection_leaves_nothing_to_it(server: ServerProcess, message: Json) -> None:
    with httpx2.Client() as opening:
        session = open_session(opening, server)

    def send() -> None:
        with httpx2.Client() as client:
            post(client, server, message, session)

    assert left_by(server, send) < FEW


def test_what_is_refused_leaves_nothing_to_it(server: ServerProcess) -> None:
    with httpx2.Client() as client:

        def send() -> None:
            for content in (b"{", b'{"jsonrpc": "2.0"}', b"[" * 200):
                assert client.post(server.url, content=content, headers=headers(None, LEGACY)).status_code == 400
            assert client.post(server.url, json=ADD, headers=headers("none", LEGACY)).status_code == 404
            assert client.put(server.url).status_code == 405

        assert left_by(server, send) < FEW


def open_session(client: httpx2.Client, server: ServerProcess) -> str:
    session: str = client.post(server.url, json=initialize(), headers=headers()).headers["mcp-session-id"]
    return session


def post(
    client: httpx2.Client, server: ServerProcess, message: Json, session: str | None, *, is_modern: bool = False
) -> None:
    sent = modern(message) if is_modern else message
    fields = modern_headers(sent) if is_modern else headers(session, LEGACY)
    assert client.post(server.url, content=body(sent), headers=fields).status_code in {200, 202, 400, 404}


def left_by(server: ServerProcess, send: Callable[[], None]) -> int:
    """Send time and again; give how many objects only a collection has found."""
    with httpx2.Client() as client:
        for _ in range(5):  # what the first of a kind fills stays
            send()
        found(client, server)
        for _ in range(TIMES):
            send()
        return found(client, server)


def found(client: httpx2.Client, server: ServerProcess) -> int:
    answer = client.post(server.url, json=tool("garbage"), headers=headers(None, LEGACY))
    count: int = answer.json()["result"]["structuredContent"]["result"]
    return count
