"""Conversations of the SDK's client with `programs/numbered.py`, whose every message has a number to be counted by."""

from __future__ import annotations

import ssl
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
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

from harness.clients import Wire, connected, text_of

Json = dict[str, Any]


NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For all clients: each would make one of its own, which costs more than what it says."""


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


class Together:
    """Where so many conversations wait for one another, so that all of them are held at once."""

    def __init__(self, count: int) -> None:
        self._missing = count
        self._all = anyio.Event()

    async def wait(self) -> None:
        """Wait until as many wait."""
        self._missing -= 1
        if self._missing == 0:
            self._all.set()
        await self._all.wait()


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


async def converse_by_sdk(url: str, n: str, together: Together | None = None) -> tuple[list[str], Wire]:
    """Hold one conversation, with those it is held `together` with; give what was told, and what went over the wire."""
    told, wire = _Callbacks(n), Wire(verify=NO_TLS)
    async with connected(
        url, "legacy", wire, elicitation_callback=told.elicit, sampling_callback=told.sample,
        logging_callback=told.log, message_handler=told.message,
    ) as client:  # fmt: skip
        call = partial(_call, client, told)
        await wire.until("GET")
        if together is not None:
            await together.wait()
        await call("converse")
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
