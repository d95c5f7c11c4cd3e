"""Drives the client of the Python SDK 2: `python -m clients.drivers.sdk2 trio|asyncio legacy|auto [forgetful]`.

A forgetful one never sees a session id, so it echoes none.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal, cast

import anyio
import httpx2
from anyio.abc import TaskGroup, TaskStatus
from mcp import Client
from mcp.client import ClientRequestContext
from mcp.client.session import IncomingMessage
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ResourceUpdated, SubscriptionLost
from mcp_types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestFormParams,
    ElicitRequestParams,
    ElicitResult,
    EmptyResult,
    LoggingLevel,
    LoggingMessageNotificationParams,
    ResourceUpdatedNotification,
    SetLevelRequest,
    SetLevelRequestParams,
    SubscribeRequest,
    SubscribeRequestParams,
    TextContent,
)

from clients.drivers.protocol import Json, filled, joined, run, tell, tell_http

MODERN = "2026-07-28"
Mode = Literal["legacy", "auto"]


class Sdk2:
    """The client, once it is connected."""

    def __init__(self, client: Client, tasks: TaskGroup) -> None:
        self._client = client
        self._tasks = tasks

    @property
    def version(self) -> str:
        return self._client.protocol_version

    async def list_tools(self) -> list[str]:
        return [tool.name for tool in (await self._client.list_tools(cache_mode="refresh")).tools]

    async def call(self, tool: str, arguments: Json, report: Callable[[float], None] | None) -> Json:
        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            assert report is not None
            report(progress)

        callback = on_progress if report is not None else None
        result = await self._client.call_tool(tool, arguments, progress_callback=callback)
        return {"text": joined(result.content), "is_error": result.is_error}

    async def log_level(self, level: str) -> None:
        # At 2026-07-28 each request carries it: the client was made with it.
        if self.version != MODERN:
            request = SetLevelRequest(params=SetLevelRequestParams(level=cast("LoggingLevel", level)))
            await self._client.session.send_request(request, EmptyResult)

    async def subscribe(self, uri: str) -> None:
        if self.version == MODERN:
            await self._tasks.start(self._listen, uri)
        else:
            request = SubscribeRequest(params=SubscribeRequestParams(uri=uri))
            await self._client.session.send_request(request, EmptyResult)

    async def _listen(self, uri: str, *, task_status: TaskStatus[None]) -> None:
        async with self._client.listen(resource_subscriptions=[uri]) as events:
            task_status.started()
            try:
                async for event in events:
                    if isinstance(event, ResourceUpdated):
                        tell("updated", uri=event.uri)
            except SubscriptionLost:
                tell("subscription lost")


async def elicit(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    tell("asked", method="elicitation/create")
    assert isinstance(params, ElicitRequestFormParams)
    return ElicitResult(action="accept", content=filled(params.requested_schema))


async def sample(context: ClientRequestContext, params: CreateMessageRequestParams) -> CreateMessageResult:
    tell("asked", method="sampling/createMessage")
    return CreateMessageResult(role="assistant", content=TextContent(text="Ada"), model="parrot")


async def hear(message: IncomingMessage) -> None:
    if isinstance(message, ResourceUpdatedNotification):
        tell("updated", uri=str(message.params.uri))


async def log(params: LoggingMessageNotificationParams) -> None:
    tell("log", data=params.data)


async def look(response: httpx2.Response, *, forgetful: bool) -> None:
    tell_http(response.request.method, response.status_code, response.request.headers, response.headers)
    if forgetful:
        response.headers.pop("mcp-session-id", None)


@asynccontextmanager
async def connect(mode: Mode, forgetful: bool, url: str) -> AsyncIterator[Sdk2]:
    hooks: dict[str, list[Callable[..., Any]]] = {"response": [partial(look, forgetful=forgetful)]}
    async with (
        httpx2.AsyncClient(event_hooks=hooks, timeout=httpx2.Timeout(30, read=None)) as http,
        Client(
            streamable_http_client(url, http_client=http),
            mode=mode,
            log_level="info" if mode == "auto" else None,
            elicitation_callback=elicit,
            sampling_callback=sample,
            logging_callback=log,
            message_handler=hear,
        ) as client,
        anyio.create_task_group() as tasks,
    ):
        yield Sdk2(client, tasks)
        tasks.cancel_scope.cancel()


def main() -> None:
    backend, mode, *rest = sys.argv[1:]
    run(partial(connect, cast("Mode", mode), "forgetful" in rest), backend)


if __name__ == "__main__":
    main()
