"""Sessions outlive the process: the id contains the session, and whoever has the key can open it, nobody else."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from functools import partial
from uuid import uuid4

import anyio
import pytest
from anyio import to_thread
from mcp import Client
from mcp.client import ClientRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitRequestParams, ElicitResult

from harness.asgi import Answer
from harness.clients import (
    PATIENCE,
    Progress,
    Wire,
    call,
    connected,
    following,
    on_trio_and_asyncio,
)
from harness.hybrid import Setup, running
from harness.mcp import LEGACY, Conversation, body, headers, initialize, request, tool
from harness.process import ServerProcess, program, serve
from harness.raw import RawClient
from mcp_hybrid.sessions.seal import fresh_key

KEYS = "MCP_HYBRID_SESSIONS__KEYS"
OLD, NEW = fresh_key(), fresh_key()


# Real processes that end and come back


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with serve(program("gated"), env={KEYS: OLD}) as process:
        yield process


async def again(server: ServerProcess, *wires: Wire, key: str = OLD, crash: bool = False) -> None:
    """Restart the server while its clients run on, but not between a request and its answer."""
    for wire in wires:
        await wire.quiet()
    await to_thread.run_sync(partial(server.restart, {KEYS: key}, crash=crash))


async def elicit(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": "Ada"})


async def use(client: Client) -> None:
    """Have a call followed while it runs, and a question answered: what only a session can do."""
    name = str(uuid4())
    async with following(client, "steps", name=name, count=2) as running:
        for step in (1, 2):
            await running.reported(step)
            await call(client, "release", gate=f"{name}/{step}")
    assert (running.values, running.result) == ([1, 2], "2 steps")
    assert await call(client, "ask") == "hello Ada"


def assert_one_session(wire: Wire) -> None:
    """Check that the client was never told to start again, nor did by itself."""
    assert [one.rpc for one in wire.seen].count("initialize") == 1
    posts = [one for one in wire.seen if one.http == "POST"]
    assert {one.sent_session for one in posts[1:]} == {wire.session}
    assert {one.status for one in posts} == {200, 202}
    assert {one.route for one in posts[1:]} == {"session"}


@pytest.mark.process
@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "killed"])
@on_trio_and_asyncio
async def test_an_open_session_goes_on_in_the_next_process(server: ServerProcess, crash: bool) -> None:
    wire = Wire()
    async with connected(server.url, "legacy", wire, elicitation_callback=elicit) as client:
        await use(client)
        await again(server, wire, crash=crash)
        await use(client)
    assert_one_session(wire)


@pytest.mark.process
async def test_a_session_that_was_never_used_before_the_restart_goes_on(server: ServerProcess) -> None:
    wire = Wire()
    with anyio.fail_after(PATIENCE):
        async with connected(server.url, "legacy", wire, elicitation_callback=elicit) as client:
            await again(server, wire)
            await use(client)
    assert_one_session(wire)


@pytest.mark.process
async def test_a_call_that_was_cut_by_a_crash_fails_and_the_session_goes_on(server: ServerProcess) -> None:
    wire, progress = Wire(), Progress()

    async def cut(client: Client) -> None:
        with pytest.raises(MCPError):
            await client.call_tool("steps", {"name": "cut", "count": 1}, progress_callback=progress)

    with anyio.fail_after(PATIENCE):
        async with connected(server.url, "legacy", wire, elicitation_callback=elicit) as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cut, client)
                await progress.until(1)
                await again(server, wire, crash=True)
            await use(client)
    assert_one_session(wire)


@pytest.mark.process
async def test_a_session_goes_on_while_its_key_stands_behind_a_new_one_and_no_longer(server: ServerProcess) -> None:
    wire, later = Wire(), Wire()
    with anyio.fail_after(PATIENCE):
        async with connected(server.url, "legacy", wire, elicitation_callback=elicit) as client:
            await use(client)
            await again(server, wire, key=f"{NEW},{OLD}")
            await use(client)
            assert_one_session(wire)
            async with connected(server.url, "legacy", later, elicitation_callback=elicit) as newcomer:
                await use(newcomer)
                await again(server, wire, later, key=NEW)
                with pytest.raises(MCPError):
                    await client.call_tool("add", {"a": 1, "b": 2})
                assert wire.seen[-1].status == 404
                await use(newcomer)
            assert_one_session(later)


@pytest.mark.process
async def test_without_a_configured_key_a_session_ends_with_its_process() -> None:
    wire = Wire()
    with anyio.fail_after(PATIENCE), serve(program("gated")) as server:
        async with connected(server.url, "legacy", wire) as client:
            await call(client, "add", a=1, b=2)
            await wire.quiet()
            await to_thread.run_sync(server.restart)
            with pytest.raises(MCPError):
                await client.call_tool("add", {"a": 1, "b": 2})
            assert wire.seen[-1].status == 404
        assert "no sessions.keys configured" in server.log


@pytest.mark.process
async def test_a_get_stream_taken_up_again_after_a_restart_hears_what_is_told_from_then_on(
    server: ServerProcess,
) -> None:
    with anyio.fail_after(PATIENCE):
        async with RawClient.open(server.port) as client:
            await client.post(initialize())
            session = (await client.answer_head()).headers["mcp-session-id"]
        get = headers(session, LEGACY, accept="text/event-stream", content_type=None)
        async with RawClient.open(server.port) as client:
            await client.send("GET", get)
            assert (await client.answer_head()).status == 200
            event_id = (await client.any_event()).id
            assert event_id is not None
        await again(server)
        await plain_call(server, "remember", session)
        async with RawClient.open(server.port) as client:
            await client.send("GET", [*get, ("last-event-id", event_id)])
            assert (await client.answer_head()).status == 200
            await plain_call(server, "tell")
            assert (await client.event()).json()["method"] == "notifications/tools/list_changed"


async def plain_call(server: ServerProcess, name: str, session: str | None = None) -> None:
    async with RawClient.open(server.port) as client:
        await client.post(tool(name, {"name": "listener"}), session)
        assert (await client.answer_head()).status == 200
        assert "result" in await client.answer_json()


# Ids that are not the server's, or not the caller's: in-process, as there are thousands of them


def flipped(text: str) -> Iterator[str]:
    """Give every text that differs from `text` by one bit of one character."""
    for place, character in enumerate(text):
        for bit in range(8):
            yield text[:place] + chr(ord(character) ^ 1 << bit) + text[place + 1 :]


def flipped_inside(text: str) -> Iterator[str]:
    """Give every id whose sealed bytes differ from those in `text` by one bit."""
    sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    for place in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[place] ^= 1 << bit
            yield base64.urlsafe_b64encode(changed).decode().rstrip("=")


async def ask_with(setup: Setup, session: str, *extra: tuple[str, str]) -> Answer:
    message = body(tool("add", {"a": 1, "b": 2}, id=7))
    return await setup.client.request("POST", "/mcp", headers(session, LEGACY, *extra), message)


@pytest.mark.parametrize("flip", [flipped, flipped_inside])
async def test_an_id_with_any_one_bit_changed_is_unknown(flip: Callable[[str], Iterator[str]]) -> None:
    async with running(sessions={"keys": [OLD]}) as setup:
        conversation = await Conversation.open(setup.client)
        unknown = await ask_with(setup, "never-was-one")
        assert unknown.status == 404
        live = len(setup.registry)
        for changed in flip(conversation.session):
            answer = await ask_with(setup, changed)
            if all(0x21 <= ord(character) <= 0x7E for character in changed):
                assert (answer.status, answer.body, answer.headers) == (404, unknown.body, unknown.headers), changed
            else:  # no character that an id may have
                assert answer.status == 400, changed
        assert len(setup.registry) == live
        assert setup.example.started == []
        assert (await conversation.post(request("ping"))).status == 200


async def test_an_id_cut_short_or_lengthened_anywhere_is_unknown() -> None:
    async with running(sessions={"keys": [OLD]}) as setup:
        good = (await Conversation.open(setup.client)).session
        for place in range(1, len(good)):
            for changed in (good[:place], good[place:], good[:place] + "A" + good[place:], good + good[:place]):
                assert (await ask_with(setup, changed)).status == 404, changed
        for changed in (good + "=", good + "==", good + "A", good + "AA", good + "."):
            assert (await ask_with(setup, changed)).status == 404, changed


async def test_an_id_of_another_owner_is_answered_like_an_unknown_one() -> None:
    async with running(users=True, sessions={"keys": [OLD]}) as setup:
        offered = await setup.client.request("POST", "/mcp", headers(None, None), body(initialize()))
        session = offered.header("mcp-session-id")
        assert session is not None
        unknown = await ask_with(setup, "never-was-one", ("x-user", "bob"))
        foreign = await ask_with(setup, session, ("x-user", "bob"))
        assert foreign.status == 404
        assert (foreign.status, foreign.headers, foreign.body) == (unknown.status, unknown.headers, unknown.body)
        assert len(setup.registry) == 0

        own = await ask_with(setup, session, ("x-user", "alice"))
        assert own.status == 200
        # The same when the session is live, and when it has ended.
        assert (await ask_with(setup, session, ("x-user", "bob"))).body == unknown.body
        for method in ("GET", "DELETE"):
            foreign = await bodiless(setup, method, session, "bob")
            unknown_too = await bodiless(setup, method, "never-was-one", "bob")
            assert foreign.status == 404
            assert (foreign.headers, foreign.body) == (unknown_too.headers, unknown_too.body)
        assert (await bodiless(setup, "DELETE", session, "alice")).status == 204
        for user in ("alice", "bob"):
            ended = await ask_with(setup, session, ("x-user", user))
            assert (ended.status, ended.headers, ended.body) == (404, unknown.headers, unknown.body)


async def bodiless(setup: Setup, method: str, session: str, user: str) -> Answer:
    wanted = headers(session, LEGACY, ("x-user", user), accept="text/event-stream", content_type=None)
    return await setup.client.request(method, "/mcp", wanted)
