"""Offered, live, hibernating, ended: what each costs, and how each is told from the other."""

from __future__ import annotations

import base64

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import mcp
from harness.hybrid import running
from mcp_hybrid.backplane import MemoryBackplane
from mcp_hybrid.counts import Count
from mcp_hybrid.security.owner import ANONYMOUS, Owner
from mcp_hybrid.sessions.record import SessionRecord
from mcp_hybrid.sessions.seal import ID_LIMIT, KEY_BYTES, KeyRing, TooLargeToSealError, fresh_key

OLD, NEW = b"o" * KEY_BYTES, b"n" * KEY_BYTES
RECORD = SessionRecord(b'["2025-11-25","client","1",{"elicitation":{}}]', "", 1_800_000_000)


def test_a_sealed_record_comes_back_as_it_was() -> None:
    ring = KeyRing([OLD])
    packed = ring.open(ring.seal(RECORD.pack()))
    assert packed is not None
    assert SessionRecord.unpack(packed) == RECORD


def test_an_id_is_visible_ascii_and_never_the_same_twice() -> None:
    ring = KeyRing([OLD])
    ids = {ring.seal(RECORD.pack()) for _ in range(100)}
    assert len(ids) == 100
    assert all(0x21 <= ord(char) <= 0x7E for id_ in ids for char in id_)
    assert max(map(len, ids)) < 200


def test_no_bit_of_an_id_can_be_changed() -> None:
    ring = KeyRing([OLD])
    sealed = ring.seal(RECORD.pack())
    for position, char in enumerate(sealed):
        for bit in range(7):
            changed = sealed[:position] + chr(ord(char) ^ (1 << bit)) + sealed[position + 1 :]
            assert ring.open(changed) is None, (position, bit)


def test_the_first_key_seals_and_all_open() -> None:
    before, rotated, after = KeyRing([OLD]), KeyRing([NEW, OLD]), KeyRing([NEW])
    sealed = before.seal(b"x")
    assert rotated.open(sealed) == b"x"
    assert after.open(sealed) is None
    assert after.open(rotated.seal(b"y")) == b"y"


@given(st.text(max_size=300))
def test_no_made_up_text_opens(text: str) -> None:
    assert KeyRing([OLD]).open(text) is None


def test_an_id_that_would_be_too_long_is_not_made() -> None:
    with pytest.raises(TooLargeToSealError):
        KeyRing([OLD]).seal(b"x" * ID_LIMIT)


def test_a_fresh_key_is_one_the_settings_take() -> None:
    assert len(base64.b64decode(fresh_key())) == KEY_BYTES


@pytest.mark.parametrize(
    "packed",
    [b"", b"{}", b"[]", b"[1]", b'[["v","n","1",7],"",1]', b'[["v","n","1"],"",1]', b'[["v","n","1",{}],1,""]'],
)
def test_a_record_of_another_shape_is_no_record(packed: bytes) -> None:
    assert SessionRecord.unpack(packed) is None


def test_owners_are_told_apart_by_all_they_are() -> None:
    owners = [ANONYMOUS, Owner("a", "b", "c"), Owner("ab", "", "c"), Owner("a", "bc", ""), Owner("a", "b", "")]
    assert len({owner.fingerprint for owner in owners}) == len(owners)
    assert ANONYMOUS.fingerprint == ""
    assert str(ANONYMOUS) == "anonymous"


async def test_an_offered_session_costs_nothing() -> None:
    async with running() as setup:
        for _ in range(50):
            await setup.client.request("POST", "/mcp", mcp.headers(), mcp.body(mcp.initialize()))
        assert len(setup.registry) == 0
        assert setup.registry.counts[Count.OFFERED] == 50


async def test_the_first_echo_makes_a_session_live() -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        (live,) = setup.registry.sessions()
        assert live.id == talk.session
        assert live.connection.client_params is not None
        assert live.connection.protocol_version == mcp.LEGACY


async def test_an_idle_session_hibernates_and_the_client_never_notices(autojump_clock: object) -> None:
    async with running(sessions={"idle_timeout": 60}) as setup:
        talk = await mcp.Conversation.open(setup.client)
        await anyio.sleep(100)
        assert len(setup.registry) == 0
        answer = await talk.post(mcp.tool("count", {"delay": 0}, token="t"))
        assert answer.header("mcp-hybrid-route") == "session"
        assert len(answer.events()) == 5
        assert setup.registry.counts[Count.CLAIMED] == 1
        assert setup.registry.counts[Count.BROUGHT_BACK] == 1


@pytest.mark.parametrize("busy", ["call", "stream"])
async def test_a_session_in_use_does_not_hibernate(busy: str, autojump_clock: object) -> None:
    async with running(sessions={"idle_timeout": 60}) as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.stream(mcp.tool("wait")) if busy == "call" else talk.get() as exchange:
            await exchange.started() if busy == "stream" else await setup.example.until_started("wait")
            await anyio.sleep(250)
            assert len(setup.registry) == 1


async def test_what_an_application_left_to_clean_up_is_cleaned_up_on_hibernation(autojump_clock: object) -> None:
    async with running(sessions={"idle_timeout": 60}) as setup:
        await mcp.Conversation.open(setup.client)
        done: list[str] = []
        setup.registry.sessions()[0].connection.exit_stack.callback(done.append, "cleaned")
        await anyio.sleep(100)
        assert done == ["cleaned"]


async def test_when_every_session_is_in_use_another_gets_503_and_none_is_lost(autojump_clock: object) -> None:
    async with running(sessions={"max_live": 1}) as setup:
        first, second = [await mcp.Conversation.open(setup.client) for _ in range(2)]
        async with first.stream(mcp.tool("wait")) as call:
            await setup.example.until_started("wait")
            refused = await second.post(mcp.tool("add", {"a": 1, "b": 1}))
            assert (refused.status, refused.header("retry-after"), refused.json()["id"]) == (503, "1", 1)
            setup.example.release()
            assert "result" in await first.answers(call)
        assert (await second.post(mcp.tool("add", {"a": 1, "b": 1}))).status == 200


async def test_a_session_ends_when_it_is_too_old_even_in_use(autojump_clock: object) -> None:
    async with running(sessions={"max_age": 1000, "idle_timeout": 60}) as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.get() as stream:
            await stream.started()
            setup.clock.now += 1001
            await stream.messages()  # ended by the server
        assert (await talk.post(mcp.request("ping"))).status == 404
        assert len(setup.registry) == 0


async def test_a_revocation_is_remembered_only_as_long_as_the_id_would_have_lived() -> None:
    now = 0.0
    backplane = MemoryBackplane(clock=lambda: now)
    await backplane.revoke("a", until=10)
    await backplane.prune()
    assert await backplane.is_revoked("a")
    now = 20.0
    await backplane.prune()
    assert not await backplane.is_revoked("a")


async def test_a_client_too_large_for_an_id_is_told_so() -> None:
    async with running() as setup:
        opening = mcp.initialize(capabilities={"experimental": {"x": {"y": "z" * 5000}}})
        answer = await setup.client.request("POST", "/mcp", mcp.headers(), mcp.body(opening))
        assert (answer.status, answer.json()["error"]["code"], answer.header("mcp-session-id")) == (400, -32602, None)


async def test_the_tool_is_asked_on_behalf_of_the_client_it_was_even_after_hibernation(autojump_clock: object) -> None:
    async with running(sessions={"idle_timeout": 60}) as setup:
        talk = await mcp.Conversation.open(setup.client, capabilities={"roots": {}})
        await anyio.sleep(100)
        async with talk.stream(mcp.tool("roots")) as call:
            question = await call.message()
            await talk.post(mcp.result(question["id"], {"roots": []}))
            assert "result" in await talk.answers(call)


async def test_the_lifespan_of_the_server_is_entered_once_for_all_sessions() -> None:
    async with running() as setup:
        for _ in range(3):
            await mcp.Conversation.open(setup.client)
        assert setup.example.lifespans == ["enter"]
    assert setup.example.lifespans == ["enter", "exit"]
