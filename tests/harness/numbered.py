"""Conversations with `programs/numbered.py` in which every message has a number, so that each can be counted.

One is held by the SDK's own client; the other writes its requests out, and is cheap enough to be held a thousand times.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import trio
from mcp import Client
from mcp.shared.exceptions import MCPDeprecationWarning
from mcp_types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestParams,
    ElicitResult,
    LoggingMessageNotificationParams,
    ResourceUpdatedNotification,
    TextContent,
)

from harness import mcp
from harness.clients import Wire, connected, text_of
from harness.raw import Head, RawClient

Json = dict[str, Any]


def expected(n: str) -> list[str]:
    """Give everything that a client with this number must be told, once each."""
    steps = [f"{n}/{what}/{step}" for what in ("progress", "log") for step in (1, 2, 3)]
    answered = [f"{n}/elicit", f"{n}/sample", f"{n}/result {n}/elicited {n}/sampled"]
    told = [f"{n}/told", f"number://{n}", f"{n}/held"]
    return [*steps, *answered, *told, f"{n}/before", f"{n}/after", f"{n}/polled"]


@dataclass
class Tally:
    """What became of the messages of many conversations."""

    finished: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    misdelivered: list[str] = field(default_factory=list)

    def count(self, n: str, heard: list[str]) -> None:
        """Compare what one client heard with what it was to hear."""
        due, came = Counter(expected(n)), Counter(heard)
        self.lost += (due - came).keys()
        self.misdelivered += came.keys() - due.keys()
        self.doubled += [message for message in came & due if came[message] > 1]
        self.finished += 1


# The SDK's client


class _Callbacks:
    def __init__(self, n: str) -> None:
        self.n = n
        self.heard: list[str] = []
        self.updated = anyio.Event()

    async def elicit(self, _context: object, params: ElicitRequestParams) -> ElicitResult:
        self.heard.append(params.message)
        return ElicitResult(action="accept", content={"number": f"{self.n}/elicited"})

    async def sample(self, _context: object, params: CreateMessageRequestParams) -> CreateMessageResult:
        content = params.messages[0].content
        assert isinstance(content, TextContent)
        self.heard.append(content.text)
        return CreateMessageResult(
            role="assistant", content=TextContent(type="text", text=f"{self.n}/sampled"), model="m"
        )

    async def log(self, params: LoggingMessageNotificationParams) -> None:
        self.heard.append(str(params.data))

    async def message(self, message: object) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            self.heard.append(message.params.uri)
            self.updated.set()

    async def progress(self, progress: float, total: float | None, message: str | None) -> None:  # noqa: ARG002 - the SDK's
        self.heard.append(str(message))


async def converse_by_sdk(url: str, n: str) -> tuple[list[str], Wire]:
    """Hold one conversation with the SDK's client; give what it was told, and what went over the wire."""
    told, wire = _Callbacks(n), Wire()
    async with connected(
        url, "legacy", wire, elicitation_callback=told.elicit, sampling_callback=told.sample,
        logging_callback=told.log, message_handler=told.message,
    ) as client:  # fmt: skip
        call = partial(_call, client, told)
        await call("converse")
        await wire.until("GET")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MCPDeprecationWarning)  # what it calls is gone from 2026-07-28 on
            subscribing = client.session.subscribe_resource(f"number://{n}")
        await subscribing
        await call("change")
        await told.updated.wait()
        await _hold_and_cancel(client, told)
        await call("poll")
    return told.heard, wire


async def _call(client: Client, told: _Callbacks, tool: str) -> None:
    result = await client.call_tool(tool, {"n": told.n}, progress_callback=told.progress)
    told.heard.append(text_of(result))


async def _hold_and_cancel(client: Client, told: _Callbacks) -> None:
    async with anyio.create_task_group() as tasks:

        async def cancel(progress: float, total: float | None = None, message: str | None = None) -> None:
            await told.progress(progress, total, message)
            tasks.cancel_scope.cancel()

        tasks.start_soon(partial(client.call_tool, "hold", {"n": told.n}, progress_callback=cancel))


# Written out


class Numbered:
    """A client that writes its requests out, each on a connection of its own."""

    def __init__(self, port: int, n: str, at_once: trio.CapacityLimiter) -> None:
        """`at_once` bounds how many of all clients' calls are under way at a time."""
        self.n = n
        self.heard: list[str] = []
        self._port = port
        self._at_once = at_once
        self._session: str | None = None
        self._streaming = trio.Event()
        self._updated = trio.Event()

    async def converse(self) -> list[str]:
        """Hold the conversation, and give what was heard."""
        await self._open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await self._call("converse", 1)
            await self._streaming.wait()
            await self._send(mcp.request("resources/subscribe", {"uri": f"number://{self.n}"}, 2))
            await self._call("change", 3)
            await self._updated.wait()
            await self._call("hold", 4)
            await self._call("poll", 5)
            async with self._at_once:
                await self._end()
        async with self._at_once:
            await self._expect(404, "POST", mcp.tool("change", {"n": self.n}))
        return self.heard

    async def _open(self) -> None:
        opening = mcp.initialize(capabilities={"elicitation": {}, "sampling": {}})
        async with self._at_once:
            async with self._exchange("POST", opening) as (head, client):
                assert head.status == 200, head
                await client.answer_body()
            self._session = head.headers["mcp-session-id"]
            await self._expect(202, "POST", mcp.notification("notifications/initialized"))

    async def _end(self) -> None:
        await self._expect(204, "DELETE")

    async def _call(self, tool: str, id_: int) -> None:
        await self._send(mcp.tool(tool, {"n": self.n}, id_, token=f"{self.n}/{id_}"))

    async def _send(self, message: Json) -> None:
        """Send a request, and come back for the rest of the answer where its stream ends early."""
        id_ = message["id"]
        async with self._at_once:
            async with self._exchange("POST", message) as (head, client):
                assert head.status == 200, head
                if head.headers["content-type"] == "application/json":
                    self._finish(await client.answer_json(), id_)
                    return
                last = await self._read(client, id_)
            if last is not None:
                async with self._exchange("GET", last_event_id=last) as (head, client):
                    assert head.status == 200, head
                    assert await self._read(client, id_) is None

    async def _read(self, client: RawClient, id_: int) -> str | None:
        """Read an answer's stream; give the last event id if it ended before the result."""
        last = None
        while (event := await client.event_or_end()) is not None:
            last = event.id or last
            if event.data and await self._take(event.json(), id_):
                return None
        return last

    async def _take(self, message: Json, id_: int) -> bool:
        """Take one message of an answer's stream; whether it was the result."""
        method, params = message.get("method"), message.get("params", {})
        if method is None:
            self._finish(message, id_)
            return True
        if method == "notifications/progress":
            assert params["progressToken"] == f"{self.n}/{id_}"
            self.heard.append(params["message"])
            if params["message"].endswith("/held"):
                await self._expect(202, "POST", mcp.cancelled(id_))
        elif method == "notifications/message":
            self.heard.append(params["data"])
        elif method == "elicitation/create":
            self.heard.append(params["message"])
            await self._answer(message, {"action": "accept", "content": {"number": f"{self.n}/elicited"}})
        elif method == "sampling/createMessage":
            self.heard.append(params["messages"][0]["content"]["text"])
            content = {"type": "text", "text": f"{self.n}/sampled"}
            await self._answer(message, {"role": "assistant", "content": content, "model": "m"})
        else:
            self.heard.append(str(message))
        return False

    def _finish(self, message: Json, id_: int) -> None:
        assert message["id"] == id_, message
        if "error" in message:
            assert message["error"]["code"] == -32800, message
        elif message["result"]:
            self.heard.append(message["result"]["content"][0]["text"])

    async def _answer(self, question: Json, value: Json) -> None:
        await self._expect(202, "POST", mcp.result(question["id"], value))

    async def _listen(self) -> None:
        """Follow the GET stream until the session ends."""
        async with self._exchange("GET") as (head, client):
            assert head.status == 200, head
            while (event := await client.event_or_end()) is not None:
                self._streaming.set()
                if event.data:
                    self.heard.append(event.json()["params"]["uri"])
                    self._updated.set()

    async def _expect(self, status: int, http: str, message: Json | None = None) -> None:
        async with self._exchange(http, message) as (head, client):
            assert head.status == status, (http, message, head)
            await client.answer_body()

    @asynccontextmanager
    async def _exchange(
        self, http: str, message: Json | None = None, last_event_id: str | None = None
    ) -> AsyncIterator[tuple[Head, RawClient]]:
        since = [] if last_event_id is None else [("last-event-id", last_event_id)]
        version = mcp.LEGACY if self._session is not None else None
        fields = mcp.headers(self._session, version, *since, content_type="application/json" if message else None)
        async with RawClient.open(self._port) as client:
            await client.send(http, fields, mcp.body(message) if message is not None else b"")
            yield await client.answer_head(), client
