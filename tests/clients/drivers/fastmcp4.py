"""Drives the client of FastMCP 4: `python -m clients.drivers.fastmcp4 legacy|auto`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal, cast

import anyio
import httpx2
from anyio.abc import TaskGroup, TaskStatus
from fastmcp import Client
from fastmcp.client.logging import LogMessage
from fastmcp.client.messages import MessageHandler
from fastmcp.client.transports import StreamableHttpTransport
from mcp.client.subscriptions import ResourceUpdated, SubscriptionLost, listen
from mcp_types import (
    ElicitRequestFormParams,
    ElicitRequestParams,
    EmptyResult,
    LoggingLevel,
    ResourceUpdatedNotification,
    SubscribeRequest,
    SubscribeRequestParams,
)

from clients.drivers.protocol import Json, filled, joined, run, tell, tell_http

MODERN = "2026-07-28"
Mode = Literal["legacy", "auto"]


class FastMcp4:
    """The client, once it is connected."""

    def __init__(self, client: Client[Any], tasks: TaskGroup) -> None:
        self._client = client
        self._tasks = tasks

    @property
    def version(self) -> str:
        return self._client.protocol_version or ""

    async def list_tools(self) -> list[str]:
        return [tool.name for tool in await self._client.list_tools()]

    async def call(self, tool: str, arguments: Json, report: Callable[[float], None] | None) -> Json:
        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            assert report is not None
            report(progress)

        handler = on_progress if report is not None else None
        result = await self._client.call_tool(tool, arguments, progress_handler=handler, raise_on_error=False)
        return {"text": joined(result.content), "is_error": result.is_error}

    async def log_level(self, level: str) -> None:
        # At 2026-07-28 each request carries it: this client always asks for everything.
        if self.version != MODERN:
            await self._client.set_logging_level(cast("LoggingLevel", level))

    async def subscribe(self, uri: str) -> None:
        # The client has no method of its own for either: this is its session, which is the SDK's.
        if self.version == MODERN:
            await self._tasks.start(self._listen, uri)
        else:
            request = SubscribeRequest(params=SubscribeRequestParams(uri=uri))
            await self._client.session.send_request(request, EmptyResult)

    async def _listen(self, uri: str, *, task_status: TaskStatus[None]) -> None:
        async with listen(self._client.session, resource_subscriptions=[uri]) as events:
            task_status.started()
            try:
                async for event in events:
                    if isinstance(event, ResourceUpdated):
                        tell("updated", uri=event.uri)
            except SubscriptionLost:
                tell("subscription lost")


class Hear(MessageHandler):
    async def on_resource_updated(self, message: ResourceUpdatedNotification) -> None:
        tell("updated", uri=str(message.params.uri))


async def elicit(_message: str, _kind: type | None, params: ElicitRequestParams, _context: Any) -> Json:
    tell("asked", method="elicitation/create")
    assert isinstance(params, ElicitRequestFormParams)
    return filled(params.requested_schema)


async def sample(_messages: Any, _params: Any, _context: Any) -> str:
    tell("asked", method="sampling/createMessage")
    return "Ada"


async def log(message: LogMessage) -> None:
    data = message.data
    tell("log", data=data.get("msg") if isinstance(data, dict) else data)


async def look(response: httpx2.Response) -> None:
    tell_http(response.request.method, response.status_code, response.request.headers, response.headers)


def http_client(
    headers: dict[str, str] | None = None,
    timeout: httpx2.Timeout | None = None,
    auth: httpx2.Auth | None = None,
    **options: Any,
) -> httpx2.AsyncClient:
    timeout = timeout or httpx2.Timeout(30, read=None)
    hooks: dict[str, list[Callable[..., Any]]] = {"response": [look]}
    return httpx2.AsyncClient(event_hooks=hooks, headers=headers, timeout=timeout, auth=auth, **options)


@asynccontextmanager
async def connect(mode: Mode, url: str) -> AsyncIterator[FastMcp4]:
    client = Client(
        StreamableHttpTransport(url, httpx_client_factory=http_client),
        mode=mode,
        elicitation_handler=elicit,
        sampling_handler=sample,
        log_handler=log,
        message_handler=Hear(),
    )
    async with client, anyio.create_task_group() as tasks:
        yield FastMcp4(client, tasks)
        tasks.cancel_scope.cancel()


def main() -> None:
    (mode,) = sys.argv[1:]
    run(partial(connect, cast("Mode", mode)))


if __name__ == "__main__":
    main()
