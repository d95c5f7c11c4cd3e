"""Drives the client of the Python SDK 1, in an environment of its own: `python -m clients.drivers.sdk1`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from clients.drivers.protocol import Json, filled, joined, run, tell, tell_http

# Imported by name: the type checker's environment has another SDK, and not this HTTP client.
httpx: Any = import_module("httpx")
mcp: Any = import_module("mcp")
streamable_http: Any = import_module("mcp.client.streamable_http")
types: Any = import_module("mcp.types")


class Sdk1:
    """The client, once it is connected."""

    def __init__(self, session: Any, version: str) -> None:
        self._session = session
        self.version = version

    async def list_tools(self) -> list[str]:
        return [tool.name for tool in (await self._session.list_tools()).tools]

    async def call(self, tool: str, arguments: Json, report: Callable[[float], None] | None) -> Json:
        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            assert report is not None
            report(progress)

        callback = on_progress if report is not None else None
        result = await self._session.call_tool(tool, arguments, progress_callback=callback)
        return {"text": joined(result.content), "is_error": result.isError}

    async def log_level(self, level: str) -> None:
        await self._session.set_logging_level(level)

    async def subscribe(self, uri: str) -> None:
        await self._session.subscribe_resource(uri)


async def elicit(_context: Any, params: Any) -> Any:
    tell("asked", method="elicitation/create")
    return types.ElicitResult(action="accept", content=filled(params.requestedSchema))


async def sample(_context: Any, _params: Any) -> Any:
    tell("asked", method="sampling/createMessage")
    content = types.TextContent(type="text", text="Ada")
    return types.CreateMessageResult(role="assistant", content=content, model="parrot")


async def hear(message: Any) -> None:
    notification = getattr(message, "root", None)
    if isinstance(notification, types.ResourceUpdatedNotification):
        tell("updated", uri=str(notification.params.uri))


async def log(params: Any) -> None:
    tell("log", data=params.data)


async def look(response: Any) -> None:
    tell_http(response.request.method, response.status_code, response.request.headers, response.headers)


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Sdk1]:
    hooks = {"response": [look]}
    async with (
        httpx.AsyncClient(event_hooks=hooks, timeout=httpx.Timeout(30, read=None)) as http,
        streamable_http.streamable_http_client(url, http_client=http) as (read, write, _),
        mcp.ClientSession(
            read,
            write,
            elicitation_callback=elicit,
            sampling_callback=sample,
            logging_callback=log,
            message_handler=hear,
        ) as session,
    ):
        agreed = await session.initialize()
        yield Sdk1(session, agreed.protocolVersion)


if __name__ == "__main__":
    run(connect)
