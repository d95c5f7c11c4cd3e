"""The SDK's own client against a server process, on Trio and on asyncio, with a look at what goes over the wire."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent
from pydantic_core import from_json

PATIENCE = 60.0
"""Seconds after which a scenario against a real process has failed."""

SESSION_HEADER = "mcp-session-id"


def on_trio_and_asyncio(scenario: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make two tests of an async one: the client's side runs on Trio in the first, on asyncio in the second."""

    async def bounded(**fixtures: Any) -> None:
        with anyio.fail_after(PATIENCE):
            await scenario(**fixtures)

    @wraps(scenario)
    def test(backend: str, **fixtures: Any) -> None:
        anyio.run(partial(bounded, **fixtures), backend=backend)

    signature = inspect.signature(scenario)
    backend = inspect.Parameter("backend", inspect.Parameter.KEYWORD_ONLY)
    # What pytest reads to know the fixtures.
    test.__dict__["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), backend])
    both: Callable[..., None] = pytest.mark.parametrize("backend", ["trio", "asyncio"])(test)
    return both


@dataclass(frozen=True)
class Seen:
    """One HTTP request of the client's and the head of its answer."""

    http: str
    rpc: str | None
    sent_session: str | None
    status: int
    headers: httpx2.Headers = field(repr=False)

    @property
    def route(self) -> str | None:
        return self.headers.get("mcp-hybrid-route")

    @property
    def content_type(self) -> str | None:
        return self.headers.get("content-type")


class Wire(httpx2.AsyncBaseTransport):
    """An HTTP transport that keeps note of what passes; a `forgetful` one takes the session id off every answer."""

    def __init__(
        self, *, forgetful: bool = False, verify: ssl.SSLContext | bool = True, local_address: str | None = None
    ) -> None:
        self.seen: list[Seen] = []
        self.session: str | None = None
        """The id that the server gave."""
        self._posting = 0
        self._forgetful = forgetful
        self._inner = httpx2.AsyncHTTPTransport(verify=verify, local_address=local_address)
        self._changed = anyio.Event()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        posting = request.method == "POST"
        self._posting += posting
        try:
            answer = await self._inner.handle_async_request(request)
            self._note(request, answer)
        finally:
            self._posting -= posting
            self._changed.set()
            self._changed = anyio.Event()
        return answer

    async def aclose(self) -> None:
        await self._inner.aclose()

    def calls(self) -> list[Seen]:
        """Give the exchanges that were `tools/call`."""
        return [one for one in self.seen if one.rpc == "tools/call"]

    async def until(self, http: str, rpc: str | None = None) -> Seen:
        """Wait until such a request has been answered (a stream: begun to be)."""
        while True:
            for one in self.seen:
                if (one.http, one.rpc) == (http, rpc):
                    return one
            await self._changed.wait()

    async def quiet(self) -> None:
        """Wait until no POST is without an answer: the SDK's client sends its notifications and answers by the way."""
        await self.until("POST", "notifications/initialized")
        while self._posting:
            await self._changed.wait()

    def _note(self, request: httpx2.Request, answer: httpx2.Response) -> None:
        self.session = answer.headers.get(SESSION_HEADER, self.session)
        if self._forgetful:
            answer.headers.pop(SESSION_HEADER, None)
        # A client that logs in by the way sends forms.
        is_json = request.headers.get("content-type") == "application/json"
        message = from_json(request.content) if request.method == "POST" and is_json else {}
        sent = request.headers.get(SESSION_HEADER)
        self.seen.append(Seen(request.method, message.get("method"), sent, answer.status_code, answer.headers))


@asynccontextmanager
async def connected(url: str, mode: str, wire: Wire | None = None, **options: Any) -> AsyncIterator[Client]:
    """Connect the SDK's client by way of a `Wire`; the options are the client's."""
    timeout = httpx2.Timeout(PATIENCE, read=None)
    async with (
        httpx2.AsyncClient(transport=wire or Wire(), timeout=timeout) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode, **options) as client,
    ):
        yield client


async def call(client: Client, tool: str, /, **arguments: Any) -> str:
    """Call a tool that must not fail, and give its text."""
    return text_of(await client.call_tool(tool, arguments))


def text_of(result: CallToolResult) -> str:
    assert not result.is_error, result
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


class Progress:
    """A progress callback that keeps what it is given."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._changed = anyio.Event()

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:  # noqa: ARG002 - the SDK's names
        self.values.append(progress)
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, value: float) -> None:
        """Wait until a value has come."""
        while value not in self.values:
            await self._changed.wait()


class Following:
    """A call that is followed while it runs."""

    def __init__(self) -> None:
        self.progress = Progress()
        self.result: str | None = None
        self._over = anyio.Event()

    @property
    def values(self) -> list[float]:
        """The progress so far."""
        return self.progress.values

    async def reported(self, value: float) -> None:
        """Wait until a progress value has come, which must be before the result is there."""
        await self.progress.until(value)
        assert self.result is None, f"the call was over when {value} had come"

    async def finished(self) -> str:
        """Wait for the result."""
        await self._over.wait()
        assert self.result is not None
        return self.result

    async def run(self, client: Client, tool: str, arguments: dict[str, Any]) -> None:
        self.result = text_of(await client.call_tool(tool, arguments, progress_callback=self.progress))
        self._over.set()


@asynccontextmanager
async def following(client: Client, tool: str, /, **arguments: Any) -> AsyncIterator[Following]:
    """Call a tool, asking for progress; the call runs beside the block, and is over when that is left."""
    call = Following()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call.run, client, tool, arguments)
        yield call
