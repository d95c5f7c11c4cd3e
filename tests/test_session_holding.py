"""What keeps a session in memory, and how many of them one owner may have there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from harness import mcp
from harness.asgi import Answer, AsgiClient
from harness.hybrid import Setup, running
from harness.mcp import Conversation
from mcp_hybrid import pin_session
from mcp_hybrid.sessions.live import LiveSession

IDLE: Any = {"idle_timeout": 10}


class Holder:
    """A server whose sessions hold something that only its process can hold."""

    def __init__(self) -> None:
        self.server = MCPServer("holder")
        self.held: list[str] = []
        self.releases: list[Callable[[], None]] = []

        @self.server.tool()
        async def take(ctx: Context, name: str) -> str:
            self.releases.append(pin_session(ctx))
            self.held.append(name)
            connection: Any = ctx.session._connection
            connection.exit_stack.callback(self.held.remove, name)
            return "taken"


async def take(conversation: Conversation, name: str = "it") -> Answer:
    return await conversation.post(mcp.tool("take", {"name": name}))


async def test_a_pinned_session_stays_until_it_is_let_go(autojump_clock: object) -> None:
    holder = Holder()
    async with running(server=holder.server, sessions=IDLE) as setup:
        conversation = await Conversation.open(setup.client)
        await take(conversation)
        await anyio.sleep(60)
        assert (len(setup.registry), holder.held) == (1, ["it"])
        holder.releases[0]()
        holder.releases[0]()
        await anyio.sleep(60)
        assert (len(setup.registry), holder.held) == (0, [])


async def test_a_session_pinned_twice_is_let_go_twice(autojump_clock: object) -> None:
    holder = Holder()
    async with running(server=holder.server, sessions=IDLE) as setup:
        conversation = await Conversation.open(setup.client)
        await take(conversation, "one")
        await take(conversation, "two")
        holder.releases[0]()
        holder.releases[0]()
        await anyio.sleep(60)
        assert len(setup.registry) == 1
        holder.releases[1]()
        await anyio.sleep(60)
        assert len(setup.registry) == 0


async def test_a_pinned_session_can_be_ended_and_is_cleaned_up() -> None:
    holder = Holder()
    async with running(server=holder.server) as setup:
        conversation = await Conversation.open(setup.client)
        await take(conversation)
        assert (await conversation.delete()).status == 204
        assert (len(setup.registry), holder.held) == (0, [])
        holder.releases[0]()


async def test_without_a_session_there_is_nothing_to_pin() -> None:
    async with running(server=Holder().server) as setup:
        message = mcp.tool("take", {"name": "it"})
        answer = await setup.client.request("POST", "/mcp", mcp.headers(), mcp.body(message))
        assert "no session that could be kept" in answer.json()["error"]["message"]


# Limits of one owner


class Owned:
    """A client of some owner's."""

    def __init__(self, client: AsgiClient, owner: str) -> None:
        self._client = client
        self._owner = ("x-user", owner)
        self.session = ""

    async def open(self) -> None:
        answer = await self._post(mcp.initialize())
        self.session = answer.header("mcp-session-id") or ""

    async def ping(self) -> int:
        return (await self._post(mcp.request("ping"))).status

    def wait(self) -> Any:
        message = mcp.body(mcp.tool("wait", id="w"))
        return self._client.stream("POST", "/mcp", mcp.headers(self.session, mcp.LEGACY, self._owner), message)

    async def _post(self, message: mcp.Json) -> Answer:
        headers = mcp.headers(self.session or None, None, self._owner)
        return await self._client.request("POST", "/mcp", headers, mcp.body(message))


async def opened(setup: Setup, *owners: str) -> list[Owned]:
    clients = [Owned(setup.client, owner) for owner in owners]
    for client in clients:
        await client.open()
        assert await client.ping() == 200
    return clients


def held(setup: Setup) -> list[str]:
    return sorted(session.record.owner for session in setup.registry.sessions())


async def test_an_owner_at_the_limit_makes_room_with_a_session_of_its_own() -> None:
    async with running(users=True, sessions={"max_live_per_owner": 2}) as setup:
        clients = await opened(setup, "alice", "bob", "alice", "alice", "alice")
        owners = held(setup)
        assert len(owners) == 3
        assert len(set(owners)) == 2
        for client in clients:  # those that were put away come back
            assert await client.ping() == 200
        assert held(setup) == owners


async def test_who_makes_room_does_not_look_through_the_sessions_of_others() -> None:
    async with running(users=True, sessions={"max_live_per_owner": 2}) as setup:
        await opened(setup, *(f"user {number}" for number in range(50)), "alice", "alice")

        class Private(dict[str, LiveSession]):
            def values(self) -> Any:
                raise AssertionError("the sessions of all were looked through")

            __iter__ = items = values

        held = setup.registry._held
        held._all = Private(held._all)
        assert len(await opened(setup, "alice")) == 1
        held._all = {digest: dict.__getitem__(held._all, digest) for digest in dict.keys(held._all)}


async def test_an_owner_whose_sessions_are_all_in_use_gets_503_and_nobody_else_does() -> None:
    async with running(users=True, sessions={"max_live_per_owner": 1}) as setup:
        (busy,) = await opened(setup, "alice")
        async with busy.wait():
            await setup.example.until_started("wait")
            another = Owned(setup.client, "alice")
            await another.open()
            assert await another.ping() == 503
            assert len(await opened(setup, "bob")) == 1
            setup.example.release()
            await setup.example.until_over("wait")
        assert await another.ping() == 200


@pytest.mark.parametrize("how", ["hibernated", "ended"])
async def test_a_session_that_is_no_longer_held_does_not_count(how: str, autojump_clock: object) -> None:
    async with running(users=True, sessions={"max_live_per_owner": 1, "idle_timeout": 10}) as setup:
        (first,) = await opened(setup, "alice")
        if how == "ended":
            (session,) = setup.registry.sessions()
            setup.registry.end_here(session.hash)
        else:
            await anyio.sleep(60)
        assert len(setup.registry) == 0
        (second,) = await opened(setup, "alice")
        assert len(setup.registry) == 1
        assert await first.ping() == await second.ping() == 200
        assert len(setup.registry._held._owners) == 1
