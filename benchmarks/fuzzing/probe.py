"""A client that behaves, and knows what it must be answered."""

from __future__ import annotations

import json
from typing import Any

import h2.config
import h2.connection
import h2.events
import trio

from fuzzing.answers import WrongAnswerError
from harness import mcp
from harness.raw import RawClient

PATIENCE = 30.0
"""Seconds a right request may take on a server that is under fire."""
SUM = {"a": 20, "b": 22}
CAPABLE: mcp.Json = {"elicitation": {}, "sampling": {}, "roots": {}}


class Probe:
    """Asks in every way there is to ask; each answer is compared with what it must be."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.asked = 0
        self.slowest = 0.0
        """Seconds that the slowest answer took."""

    async def ask(self) -> tuple[str, list[str]]:
        """Ask in every way once; give a session id that is valid, and event ids of a stream in it.

        Raises:
            WrongAnswerError: An answer is not what it must be, or does not come.
        """
        try:
            with trio.fail_after(6 * PATIENCE):
                session = await self._opened()
                for message, name in ((mcp.tool("add", SUM), None), (mcp.tool("add", SUM), session)):
                    await self._timed(self._added, message, name)
                await self._timed(self._added, mcp.modern(mcp.tool("add", SUM)), None)
                await self._timed(add_over_http2, self._port)
                return session, await self._counted(session)
        except (trio.TooSlowError, OSError, trio.BrokenResourceError, AssertionError, LookupError) as exc:
            raise WrongAnswerError(f"a client that behaves got {exc!r}") from exc

    async def _timed(self, way: Any, *arguments: Any) -> None:
        started = trio.current_time()
        with trio.fail_after(PATIENCE):
            await way(*arguments)
        self.asked += 1
        self.slowest = max(self.slowest, trio.current_time() - started)

    async def _opened(self) -> str:
        async with RawClient.open(self._port) as client:
            await client.post(mcp.initialize(capabilities=CAPABLE))
            head = await client.answer_head()
            assert head.status == 200, head
            assert (await client.answer_json())["result"]["protocolVersion"] == mcp.LEGACY
            return head.headers["mcp-session-id"]

    async def _added(self, message: mcp.Json, session: str | None) -> None:
        async with RawClient.open(self._port) as client:
            if session is None and "_meta" in message["params"]:
                await client.send("POST", mcp.modern_headers(message), mcp.body(message))
            else:
                await client.post(message, session)
            head = await client.answer_head()
            assert head.status == 200, head
            _check(await client.answer_json())

    async def _counted(self, session: str) -> list[str]:
        """Follow a call's progress; give the ids of its events."""
        ids = []
        async with RawClient.open(self._port) as client:
            await client.post(mcp.tool("countdown", {"steps": 3, "delay": 0.01}, token="probe"), session, mcp.LEGACY)
            assert (await client.answer_head()).status == 200
            values = []
            while (event := await client.event_or_end()) is not None:
                if event.id:
                    ids.append(event.id)
                if event.data:
                    message = event.json()
                    values.append(message["params"]["progress"] if "method" in message else message["result"])
            assert values[-2:-1] == [3], values  # the last one before the result; others may have been overtaken
            assert values[-1]["content"][0]["text"] == "lift-off", values
        return ids


async def add_over_http2(port: int) -> None:
    """Add two numbers on an HTTP/2 connection of its own.

    Raises:
        AssertionError: The answer is not what it must be.
    """
    body = mcp.body(mcp.tool("add", SUM))
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    connection.initiate_connection()
    authority = f"127.0.0.1:{port}"
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", authority),
        (":path", "/mcp"),
        *mcp.headers(),
    ]
    connection.send_headers(1, fields)
    connection.send_data(1, body, end_stream=True)
    found: list[h2.events.Event] = []
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        while not any(isinstance(event, h2.events.StreamEnded) for event in found):
            await stream.send_all(connection.data_to_send())
            data = await stream.receive_some(65536)
            assert data, "the server closed an HTTP/2 connection in the middle of an answer"
            found += connection.receive_data(data)
    (head,) = [event for event in found if isinstance(event, h2.events.ResponseReceived)]
    assert (b":status", b"200") in head.headers, head
    _check(json.loads(b"".join(event.data for event in found if isinstance(event, h2.events.DataReceived))))


def _check(answer: mcp.Json) -> None:
    assert answer["id"] == 1, answer
    assert answer["result"]["structuredContent"] == {"result": 42}, answer
