"""What every driver speaks: one JSON object a line, commands on standard input, answers and events on standard output.

    {"id": 1, "do": "open", "url": "http://…"}              {"id": 1, "result": {"version": "2025-11-25"}}
    {"id": 2, "do": "call", "tool": "…", "arguments": {}}   {"event": "progress", "call": 2, "value": 1}
                                                            {"id": 2, "result": {"text": "…", "is_error": false}}

`open` comes first and `close` last; what is between runs at the same time, as it comes. A failure is an answer with
"error" instead of "result". The client stays open in between, whatever becomes of the server.

Nothing but AnyIO is imported: each driver runs in the environment of its client.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol

import anyio
import anyio.to_thread

Json = dict[str, Any]


class Face(Protocol):
    """A connected client, whichever it is."""

    @property
    def version(self) -> str:
        """The protocol revision that was agreed on."""
        ...

    async def list_tools(self) -> list[str]: ...

    async def call(self, tool: str, arguments: Json, report: Callable[[float], None] | None) -> Json:
        """Call a tool; `report` is given each progress value, and progress is asked for where there is one."""
        ...

    async def log_level(self, level: str) -> None: ...

    async def subscribe(self, uri: str) -> None: ...


Connect = Callable[[str], AbstractAsyncContextManager[Face, bool | None]]


def tell(event: str, **facts: object) -> None:
    """Tell of something that happened."""
    write({"event": event, **facts})


def write(line: Json) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def run(connect: Connect, backend: str = "asyncio") -> None:
    """Be a driver, to the end."""
    anyio.run(partial(drive, connect), backend=backend)


async def drive(connect: Connect) -> None:
    """Do what is commanded, until `close` or the end of the input."""
    incoming = commands()
    opening = await anext(incoming)
    try:
        async with connect(opening["url"]) as face:
            write({"id": opening["id"], "result": {"version": face.version}})
            async with anyio.create_task_group() as tasks:
                async for command in incoming:
                    opening = command
                    if command["do"] == "close":
                        break
                    tasks.start_soon(answer, face, command)
                tasks.cancel_scope.cancel()
    except Exception as error:  # noqa: BLE001 - told to whoever steers
        write({"id": opening["id"], "error": words(error)})
    else:
        write({"id": opening["id"], "result": None})


async def commands() -> AsyncIterator[Json]:
    while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        yield json.loads(line)


async def answer(face: Face, command: Json) -> None:
    try:
        result = await act(face, command)
    except Exception as error:  # noqa: BLE001 - told to whoever steers
        write({"id": command["id"], "error": words(error)})
    else:
        write({"id": command["id"], "result": result})


def act(face: Face, command: Json) -> Awaitable[Any]:
    def report(value: float) -> None:
        tell("progress", call=command["id"], value=value)

    match command["do"]:
        case "list":
            return face.list_tools()
        case "call":
            wanted = report if command["progress"] else None
            return face.call(command["tool"], command["arguments"], wanted)
        case "log_level":
            return face.log_level(command["level"])
        case "subscribe":
            return face.subscribe(command["uri"])
        case unknown:
            raise ValueError(f"no such command: {unknown}")


def words(error: BaseException) -> str:
    """Say what an error says; of a group, what its first member does."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def filled(schema: Json) -> Json:
    """Fill in a form: every field with the same name."""
    return dict.fromkeys(schema.get("properties", {}), "Ada")


def joined(blocks: list[Any]) -> str:
    """Give the text of a result's blocks."""
    return "".join(block.text for block in blocks)


def tell_http(method: str, status: int, asked: Any, answered: Any) -> None:
    """Tell of an HTTP exchange, by its headers."""
    tell(
        "http",
        method=method,
        status=status,
        resumes=asked.get("last-event-id"),
        session=asked.get("mcp-session-id"),
        given=answered.get("mcp-session-id"),
        route=answered.get("mcp-hybrid-route"),
    )
