"""The failures of LiteLLM 1.109.1's header routing, each a test by its own name, each right here."""

from __future__ import annotations

import anyio
import pytest

from harness import mcp
from harness.hybrid import running


async def test_an_initialize_over_4096_bytes_gets_a_session(autojump_clock: object) -> None:
    async with running() as setup:
        message = mcp.initialize()
        params = {"_meta": {"padding": "x" * 10_000}, **message.pop("params")}
        body = mcp.body({"params": params, **message})
        assert b'"initialize"' not in body[:10_000]  # whoever looks at the beginning does not see what it is
        answer = await setup.client.request("POST", "/mcp", mcp.headers(), body)
        assert answer.status == 200
        session = answer.header("mcp-session-id")
        assert session is not None
        call = mcp.body(mcp.tool("count", {"delay": 0}, token=1))
        called = await setup.client.request("POST", "/mcp", mcp.headers(session, mcp.LEGACY), call)
        assert called.header("mcp-hybrid-route") == "session"
        assert [event.json()["method"] for event in called.events()[1:4]] == ["notifications/progress"] * 3


@pytest.mark.parametrize("session", ["A" * 120, "0123456789abcdef0123456789abcdef"])
async def test_a_stale_id_on_a_call_is_told_instead_of_being_dropped(session: str, autojump_clock: object) -> None:
    async with running() as setup:
        call = mcp.body(mcp.tool("add", {"a": 1, "b": 2}, id=7))
        answer = await setup.client.request("POST", "/mcp", mcp.headers(session, mcp.LEGACY), call)
        assert answer.status == 404
        assert (answer.json()["id"], answer.json()["error"]["code"]) == (7, -32001)
        assert setup.example.started == []


async def test_calls_in_one_session_run_at_the_same_time_and_a_ping_does_not_wait(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with (
            talk.stream(mcp.tool("wait", {"name": "a"}, id=1)) as first,
            talk.stream(mcp.tool("wait", {"name": "b"}, id=2)) as second,
        ):
            await setup.example.until_started("wait", times=2)
            ping = await talk.post(mcp.request("ping", id=3))
            assert ping.json()["result"] == {}
            assert first.running
            setup.example.release("b")
            assert (await talk.answers(second))["id"] == 2
            assert setup.example.finished == ["wait"]
            setup.example.release("a")
            assert (await talk.answers(first))["id"] == 1


@pytest.mark.parametrize("session", [None, "A" * 120])
async def test_a_get_without_or_with_a_stale_id_is_refused_instead_of_an_endless_empty_stream(
    session: str | None, autojump_clock: object
) -> None:
    async with running() as setup:
        answer = await setup.client.request("GET", "/mcp", mcp.headers(session, content_type=None))
        assert answer.status == (405 if session is None else 404)


async def test_a_deleted_id_is_404_and_a_second_delete_too(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        assert (await talk.delete()).status == 204
        assert (await talk.post(mcp.request("tools/list"))).status == 404
        assert (await talk.delete()).status == 404


async def test_at_the_cap_the_longest_idle_session_hibernates_and_comes_back(autojump_clock: object) -> None:
    async with running(sessions={"max_live": 100}) as setup:
        talks = [await mcp.Conversation.open(setup.client) for _ in range(150)]
        assert len(setup.registry) == 100
        for talk in talks:
            assert (await talk.post(mcp.tool("add", {"a": 1, "b": 1}))).header("mcp-hybrid-route") == "session"


async def test_a_session_made_by_one_worker_is_served_by_another(autojump_clock: object) -> None:
    key = "A" * 43 + "="
    async with running(sessions={"keys": [key]}) as one, running(sessions={"keys": [key]}) as other:
        talk = await mcp.Conversation.open(one.client)
        elsewhere = mcp.Conversation(other.client, talk.session, talk.version, "/mcp")
        answer = await elsewhere.post(mcp.tool("count", {"delay": 0}, token=1))
        assert [event.json()["method"] for event in answer.events()[1:4]] == ["notifications/progress"] * 3


async def test_a_refreshed_token_keeps_its_session_since_the_owner_is_a_principal(autojump_clock: object) -> None:
    # The stub authenticator's principal is the user; everything else about the credential may change.
    async with running(users=True) as setup:
        talk = await mcp.Conversation.open(setup.client)
        refreshed = [("x-user", "alice"), ("authorization", "Bearer another")]
        answer = await setup.client.request(
            "POST", "/mcp", [*talk.headers(), *refreshed], mcp.body(mcp.request("ping"))
        )
        assert answer.header("mcp-hybrid-route") == "session"


async def test_protocol_2026_07_28_is_served_without_being_turned_on(autojump_clock: object) -> None:
    async with running() as setup:
        message = mcp.request("server/discover")
        answer = await setup.client.request("POST", "/mcp", mcp.modern_headers(message), mcp.body(mcp.modern(message)))
        assert answer.status == 200
        assert answer.json()["result"]["supportedVersions"][-1] == "2026-07-28"


async def test_a_batch_that_is_refused_says_so_without_internals(autojump_clock: object) -> None:
    async with running() as setup:
        messages = mcp.body([mcp.request("ping")])
        answer = await setup.client.request("POST", "/mcp", mcp.headers(None, mcp.LEGACY), messages)
        assert answer.status == 400
        assert answer.json()["error"] == {
            "code": -32600,
            "message": "Protocol 2025-11-25 has no batches: send one message a request.",
        }


async def test_accept_json_alone_is_served(autojump_clock: object) -> None:
    async with running() as setup:
        message = mcp.body(mcp.tool("add", {"a": 1, "b": 2}))
        answer = await setup.client.request("POST", "/mcp", mcp.headers(accept="application/json"), message)
        assert answer.status == 200
        assert answer.json()["result"]["structuredContent"] == {"result": 3}


async def test_a_page_on_an_allowed_origin_may_read_the_session_id_on_refusals_too(autojump_clock: object) -> None:
    origin = ("origin", "https://app.example.com")
    async with running(cors={"allowed_origins": ["https://app.example.com"]}) as setup:
        offered = await setup.client.request(
            "POST", "/mcp", mcp.headers(None, None, origin), mcp.body(mcp.initialize())
        )
        refused = await setup.client.request("GET", "/mcp", mcp.headers(None, None, origin))
        for answer in (offered, refused):
            assert answer.header("access-control-allow-origin") == "https://app.example.com"
            exposed = (answer.header("access-control-expose-headers") or "").split(", ")
            assert {"mcp-session-id", "mcp-hybrid-route"} <= set(exposed)
        asks = [origin, ("access-control-request-method", "POST"), ("access-control-request-headers", "mcp-session-id")]
        preflight = await setup.client.request("OPTIONS", "/mcp", asks)
        assert preflight.status == 204
        assert preflight.header("access-control-allow-headers") == "mcp-session-id"
        elsewhere = await setup.client.request("OPTIONS", "/mcp", [("origin", "https://evil.example.com"), *asks[1:]])
        assert elsewhere.status == 403


async def test_elicitation_reaches_the_client_and_its_answer_the_tool(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client, capabilities={"elicitation": {}})
        async with talk.stream(mcp.tool("ask")) as call:
            question = await call.message()
            assert question["method"] == "elicitation/create"
            answer = mcp.result(question["id"], {"action": "accept", "content": {"name": "Ada"}})
            assert (await talk.post(answer)).status == 202
            final = await talk.answers(call)
            assert final["result"]["content"][0]["text"] == "hello Ada"


async def test_an_answer_or_a_cancellation_never_waits_behind_a_running_call(autojump_clock: object) -> None:
    # What LiteLLM does right, and worth keeping.
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.stream(mcp.tool("wait", id="a")) as call:
            await setup.example.until_started("wait")
            with anyio.fail_after(1):
                assert (await talk.post(mcp.cancelled("a"))).status == 202
            assert (await talk.answers(call))["error"]["code"] == -32800
            assert setup.example.cancelled == ["wait"]
