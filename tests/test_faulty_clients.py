"""Clients that go away, stop reading, dribble, or send too much: what they get, and what is left of them.

After each of them the server is as it was before: no descriptor, task or live session more, and serving.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from harness.mcp import LEGACY, body, headers, initialize, modern, modern_headers, request, tool
from harness.process import ServerProcess, program, serve
from harness.raw import RawClient

pytestmark = pytest.mark.process

PATIENCE = 60.0
"""Seconds after which a server has failed to do what it should."""

FIVE_MB = 5 * 1024 * 1024
SMALL = 4096
"""Bytes of the receive buffer of a client that will not read."""

GOING = pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])


# What the server holds


@dataclass(frozen=True)
class Figures:
    descriptors: int
    sessions: int
    tasks: int


def descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


class Watched:
    """A server process, and what it held before anything happened to it."""

    def __init__(self, process: ServerProcess) -> None:
        self.process = process
        self.before = trio.run(self._settled)

    @property
    def port(self) -> int:
        return self.process.port

    async def call(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool as a client without a session does, on a connection of its own."""
        async with RawClient.open(self.port) as client:
            message = tool(name, arguments)
            await client.send("POST", headers(None, None, ("connection", "close")), body(message))
            head, answer = await client.answer_head(), await client.answer_json()
            assert (head.status, await client.hung_up()) == (200, True)
        assert "result" in answer, answer
        return answer["result"]["structuredContent"]

    async def open_session(self) -> str:
        """Make a session that nobody has used."""
        async with RawClient.open(self.port) as client:
            await client.post(initialize())
            head = await client.answer_head()
            await client.answer_body()
        return head.headers["mcp-session-id"]

    async def outcome(self, name: str) -> str:
        """Wait until a call is over."""
        found: str = (await self.call("outcome", name=name))["result"]
        return found

    async def started(self, name: str) -> None:
        """Wait until a call has reached its tool."""
        await self.call("reached", name=name, stage="started")

    async def is_as_before(self) -> None:
        """Wait until the server holds what it held at first; being asked, it also shows that it still serves."""
        found = None
        with trio.move_on_after(PATIENCE):
            while (found := await self._figures()) != self.before:  # noqa: ASYNC110 - another process sets no event
                await trio.sleep(0.05)
        assert found == self.before, self.process.log[-2000:]
        assert await self.call("add", a=1, b=2) == {"result": 3}

    async def _figures(self) -> Figures:
        held = await self.call("held")
        return Figures(descriptors(self.process.pid), **held)

    async def _settled(self) -> Figures:
        """Look until nothing changes any more; a descriptor is closed a moment after its client sees the end."""
        looks = [await self._figures()]
        while looks[-3:] != looks[-1:] * 3:
            await trio.sleep(0.05)
            looks.append(await self._figures())
        return looks[-1]


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with serve(program("gated"), env={"MCP_HYBRID_SESSIONS__IDLE_TIMEOUT": "1s"}) as process:
        yield Watched(process)


@pytest.fixture
async def server(watched: Watched) -> AsyncIterator[Watched]:
    """The server; whatever a test has done to it, it must be as before at the end."""
    with trio.fail_after(2 * PATIENCE):
        yield watched
        await watched.is_as_before()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for the calls and gates of this test, as the server is shared."""
    found: str = request.node.name
    return found


@asynccontextmanager
async def modern_call(
    server: Watched, message: Any, accept: str | None = None, receive_buffer: int | None = None
) -> AsyncIterator[RawClient]:
    """Send a request of 2026-07-28 and hand over the connection."""
    message = modern(message)
    fields = modern_headers(message, **({} if accept is None else {"accept": accept}))
    async with RawClient.open(server.port, receive_buffer=receive_buffer) as client:
        await client.send("POST", fields, body(message))
        yield client


# Clients that go away in the middle of a call


@GOING
@pytest.mark.parametrize("form", ["json only", "nothing said yet", "streaming"])
async def test_a_modern_call_is_cancelled_when_its_client_goes(
    server: Watched, form: str, reset: bool, name: str
) -> None:
    streaming = form == "streaming"
    message = tool("steps", {"name": name, "count": 1}, token="t") if streaming else tool("hold", {"name": name})
    async with modern_call(server, message, "application/json" if form == "json only" else None) as client:
        await server.started(name)
        if streaming:
            assert (await client.answer_head()).headers["content-type"] == "text/event-stream"
            assert (await client.event()).json()["params"]["progress"] == 1
        if reset:
            client.reset()
    assert await server.outcome(name) == "cancelled"


@GOING
@pytest.mark.parametrize("form", ["no session", "nothing said yet", "streaming"])
async def test_a_legacy_call_runs_on_when_its_client_goes(server: Watched, form: str, reset: bool, name: str) -> None:
    session = None if form == "no session" else await server.open_session()
    message = tool("steps", {"name": name, "count": 1}, token="t")
    if form != "streaming":
        message = tool("hold", {"name": name})
    async with RawClient.open(server.port) as client, modern_call(server, tool("hold", {"name": f"{name}/m"})) as other:
        await client.post(message, session)
        await server.started(name)
        await server.started(f"{name}/m")
        if form == "streaming":
            await client.answer_head()
            await client.event()
        if reset:
            client.reset()
        await client.stream.aclose()
        await other.stream.aclose()
    # The server has noticed the one that went later, and is done with it: so it has noticed the other.
    assert await server.outcome(f"{name}/m") == "cancelled"
    await server.call("release", gate=name)
    await server.call("release", gate=f"{name}/1")
    assert await server.outcome(name) == "finished"


async def test_a_client_whose_stream_was_cut_gets_the_rest_by_its_last_event_id(server: Watched, name: str) -> None:
    session = await server.open_session()
    async with RawClient.open(server.port) as client:
        await client.post(tool("steps", {"name": name, "count": 3}, token="t"), session, LEGACY)
        await client.answer_head()
        seen = await client.event()
        client.reset()
    for step in (1, 2, 3):
        await server.call("release", gate=f"{name}/{step}")
    assert await server.outcome(name) == "finished"
    assert seen.json()["params"]["progress"] == 1
    assert seen.id is not None
    async with RawClient.open(server.port) as client:
        since = ("last-event-id", seen.id)
        await client.send("GET", headers(session, LEGACY, since, accept="text/event-stream", content_type=None))
        assert (await client.answer_head()).status == 200
        two, three, result = [message async for message in client.messages()]
        assert (two["params"]["progress"], three["params"]["progress"]) == (2, 3)
        assert result["result"]["structuredContent"] == {"result": "3 steps"}


@GOING
async def test_a_get_stream_whose_client_goes_is_let_go(server: Watched, reset: bool) -> None:
    session = await server.open_session()
    async with RawClient.open(server.port) as client:
        await client.send("GET", headers(session, LEGACY, accept="text/event-stream", content_type=None))
        assert (await client.answer_head()).status == 200
        assert (await server.call("held"))["sessions"] == server.before.sessions + 1
        if reset:
            client.reset()


@GOING
@pytest.mark.parametrize("sent", ["half a head", "half a body", "half a chunk", "half of what is too large"])
async def test_a_client_that_goes_in_the_middle_of_its_request_leaves_nothing(
    server: Watched, sent: str, reset: bool
) -> None:
    message = body(tool("add", {"a": 1, "b": 2}))
    async with RawClient.open(server.port) as client:
        if sent == "half a head":
            head = client.head("POST", headers(), len(message))
            await client.write(head[: len(head) // 2])
        elif sent == "half a body":
            await client.write(client.head("POST", headers(), len(message)), message[: len(message) // 2])
        elif sent == "half a chunk":
            await client.write(client.head("POST", headers(), None), client.piece(message)[: len(message) // 2])
        else:
            await client.write(client.head("POST", headers(), FIVE_MB), b" " * (FIVE_MB // 2))
        if reset:
            client.reset()


# Clients that stop reading


COUNT, SIZE = 600, 65536
"""Values and characters of each: far more than all the socket buffers in between take."""


@asynccontextmanager
async def not_reading(server: Watched, era: str, name: str) -> AsyncIterator[RawClient]:
    """Call a tool that reports more than the connection takes, and do not read a byte of it."""
    message = tool("flood", {"name": name, "count": COUNT, "size": SIZE}, token="t")
    if era == "modern":
        async with modern_call(server, message, receive_buffer=SMALL) as client:
            yield client
    else:
        session = await server.open_session()
        async with RawClient.open(server.port, receive_buffer=SMALL) as client:
            await client.post(message, session, LEGACY)
            yield client


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_client_that_stops_reading_costs_the_tool_nothing_and_misses_no_end(
    server: Watched, era: str, name: str
) -> None:
    async with not_reading(server, era, name) as client:
        # The tool gets to its end, and others are served, while nobody reads.
        assert await server.outcome(name) == "finished"
        assert await server.call("add", a=1, b=2) == {"result": 3}
        assert (await client.answer_head()).status == 200
        *progress, result = [message async for message in client.messages()]
    values = [message["params"]["progress"] for message in progress]
    assert values == sorted(set(values))
    assert values[-1] == COUNT
    assert len(values) < COUNT, "nothing was left out: all was queued, or fitted into the buffers"
    assert result["result"]["structuredContent"] == {"result": f"flooded {COUNT} times"}


@GOING
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_client_that_stops_reading_and_then_goes_is_let_go(
    server: Watched, era: str, reset: bool, name: str
) -> None:
    async with not_reading(server, era, name) as client:
        assert await server.outcome(name) == "finished"
        if reset:
            client.reset()


# Clients that dribble


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
@pytest.mark.parametrize("in_session", [False, True], ids=["no session", "session"])
async def test_a_body_that_comes_a_byte_at_a_time_is_read_whole(
    server: Watched, in_session: bool, chunked: bool
) -> None:
    session = await server.open_session() if in_session else None
    message = body(tool("add", {"a": 1, "b": 2}, id=7))
    async with RawClient.open(server.port) as client:
        await client.write(client.head("POST", headers(session), None if chunked else len(message)))
        pieces = [client.piece(message[at : at + 1]) for at in range(len(message))]
        await client.trickle(pieces[:50])
        assert await server.call("add", a=2, b=3) == {"result": 5}  # nobody waits for it
        await client.trickle([*pieces[50:], client.end()])
        assert (await client.answer_head()).status == 200
        answer = await client.answer_json()
        assert (answer["id"], answer["result"]["structuredContent"]) == (7, {"result": 3})


async def test_a_whole_request_that_comes_a_byte_at_a_time_is_served(server: Watched) -> None:
    message = body(request("ping", id=7))
    async with RawClient.open(server.port) as client:
        sent = client.head("POST", headers(), len(message)) + client.piece(message)
        await client.trickle(sent[at : at + 1] for at in range(len(sent)))
        assert (await client.answer_head()).status == 200
        assert (await client.answer_json()) == {"jsonrpc": "2.0", "id": 7, "result": {}}


# Clients that send too much


def too_large() -> bytes:
    """Build a message of 5 MB that would be a good one if it were smaller."""
    return body(tool("add", {"a": 1, "b": 2, "padding": "x" * FIVE_MB}, id=7))


async def assert_refused(client: RawClient, connection: str | None = None) -> None:
    head = await client.answer_head()
    assert (head.status, head.headers["content-type"]) == (413, "application/json")
    assert head.headers.get("connection") == connection
    assert "mcp-hybrid-route" not in head.headers
    answer = await client.answer_json()
    assert (answer["jsonrpc"], answer["id"], answer["error"]["code"]) == ("2.0", None, -32600)
    assert "4194304" in answer["error"]["message"]


@pytest.mark.parametrize("in_session", [False, True], ids=["no session", "session"])
@pytest.mark.parametrize("how", ["with a length", "in chunks", "expecting 100"])
async def test_five_megabytes_are_refused_and_the_connection_goes_on(
    server: Watched, how: str, in_session: bool
) -> None:
    session = await server.open_session() if in_session else None
    message = too_large()
    fields = headers(session, None, *([("expect", "100-continue")] if how == "expecting 100" else []))
    async with RawClient.open(server.port) as client:
        await client.write(client.head("POST", fields, None if how == "in chunks" else len(message)))
        for at in range(0, len(message), 100_000):
            await client.write(client.piece(message[at : at + 100_000]))
        await client.write(client.end())
        await assert_refused(client)
        client.next_request()
        await client.post(tool("add", {"a": 1, "b": 2}), session)
        assert (await client.answer_head()).status == 200
        assert (await client.answer_json())["result"]["structuredContent"] == {"result": 3}


async def test_one_that_announces_five_megabytes_and_says_no_more_is_refused_and_hung_up_on(server: Watched) -> None:
    async with RawClient.open(server.port) as client:
        await client.write(client.head("POST", headers(), FIVE_MB), b"{")
        await assert_refused(client, "close")
        assert await client.hung_up()


async def test_one_that_never_stops_sending_is_hung_up_on(server: Watched) -> None:
    async with RawClient.open(server.port) as client:
        await client.write(client.head("POST", headers(), None))
        with pytest.raises(trio.BrokenResourceError):
            await send_for_ever(client)


async def send_for_ever(client: RawClient) -> None:
    while True:
        await client.write(client.piece(b" " * 1_000_000))
