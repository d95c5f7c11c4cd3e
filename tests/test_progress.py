"""Progress: the policy, the gate, and a reader that does not keep up."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from harness import mcp
from harness.asgi import Answer
from harness.hybrid import Setup, running
from mcp_hybrid.exchange.progress import ProgressGate

POLICIES = """
policy  | stateless json | stateless both | stateless sse | session json | session both | modern json | modern both
session | withheld       | withheld       | withheld      | withheld     | served       | withheld    | served
always  | withheld       | served         | served        | withheld     | served       | withheld    | served
off     | withheld       | withheld       | withheld      | withheld     | withheld     | withheld    | withheld
"""
ACCEPT = {"json": "application/json", "both": mcp.BOTH, "sse": "text/event-stream"}


def policy_cases() -> list[Any]:
    head, *lines = [[cell.strip() for cell in line.split("|")] for line in POLICIES.strip().splitlines()]
    return [
        pytest.param(policy, *place.split(), verdict, id=f"{policy}-{place}")
        for policy, *verdicts in lines
        for place, verdict in zip(head[1:], verdicts, strict=True)
    ]


async def count(setup: Setup, route: str, form: str, token: str | int | None = "t") -> Answer:
    message = mcp.tool("count", {"delay": 0}, token=token)
    if route == "session":
        talk = await mcp.Conversation.open(setup.client)
        return await talk.post(message, accept=ACCEPT[form])
    if route == "modern":
        headers = mcp.modern_headers(message, accept=ACCEPT[form])
        return await setup.client.request("POST", "/mcp", headers, mcp.body(mcp.modern(message)))
    return await setup.client.request("POST", "/mcp", mcp.headers(accept=ACCEPT[form]), mcp.body(message))


def values(answer: Answer) -> list[Any]:
    return [
        event.json()["params"]["progress"]
        for event in answer.events()
        if event.data and event.json().get("method") == "notifications/progress"
    ]


@pytest.mark.parametrize(("policy", "route", "form", "verdict"), policy_cases())
async def test_the_policy_decides_and_withholding_is_said(policy: str, route: str, form: str, verdict: str) -> None:
    async with running(progress=policy) as setup:
        answer = await count(setup, route, form)
        served = verdict == "served"
        assert answer.header("mcp-hybrid-route") == (route if served else f"{route}; progress=withheld")
        assert (values(answer) if form != "json" else []) == ([1, 2, 3] if served else [])


@pytest.mark.parametrize("route", ["session", "modern"])
@pytest.mark.parametrize("token", [0, "", "0", 7, "a" * 1000])
async def test_a_token_keeps_its_type_and_every_token_is_one(route: str, token: str | int) -> None:
    async with running() as setup:
        answer = await count(setup, route, "both", token)
        sent = [
            event.json()["params"]["progressToken"]
            for event in answer.events()
            if "progressToken" in (event.data or "")
        ]
        assert sent == [token] * 3
        assert {type(one) for one in sent} == {type(token)}


@pytest.mark.parametrize("route", ["session", "modern", "stateless"])
async def test_without_a_token_there_is_no_progress_and_nothing_withheld(route: str) -> None:
    async with running() as setup:
        answer = await count(setup, route, "both", None)
        assert answer.header("content-type") == "application/json"
        assert answer.header("mcp-hybrid-route") == route


@given(st.lists(st.floats()), st.lists(st.floats()))
def test_the_gate_lets_through_only_what_increases_and_nothing_once_closed(
    before: list[float], after: list[float]
) -> None:
    gate = ProgressGate("t")
    sent = [from_json(m)["params"]["progress"] for value in before if (m := gate.admit(value)) is not None]
    assert all(low < high for low, high in pairwise(sent))
    finite = [value for value in before if abs(value) != float("inf") and value == value]  # noqa: PLR0124 - NaN
    assert not finite or sent[-1] == max(finite)
    gate.close()
    assert [gate.admit(value) for value in after] == [None] * len(after)


@pytest.mark.parametrize(
    ("params", "sent"),
    [
        ({"progressToken": 1, "progress": 1}, True),
        ({"progressToken": "1", "progress": 1}, False),
        ({"progressToken": 2, "progress": 1}, False),
        ({"progressToken": 1, "progress": "1"}, False),
        ({"progress": 1}, False),
        (None, False),
    ],
)
def test_progress_an_application_writes_itself_passes_the_same_gate(params: Any, sent: bool) -> None:
    assert (ProgressGate(1).admit_raw(params) is not None) is sent


async def test_values_that_do_not_increase_are_dropped() -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        assert values(await talk.post(mcp.tool("backwards", token=1))) == [3, 4]


async def test_a_client_that_keeps_up_is_sent_every_value_of_a_tool_that_never_pauses() -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        assert values(await talk.post(mcp.tool("burst", {"steps": 500}, token=1))) == list(range(1, 501))


async def test_a_client_that_does_not_read_costs_the_tool_nothing_and_gets_the_last_value(
    autojump_clock: object,
) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.stream(mcp.tool("burst", {"steps": 10_000}, token=1)) as call:
            call.pause(room=1000)
            await setup.example.until_over("burst")  # before anybody read on
            await anyio.sleep(10)
            call.resume()
            messages = await call.messages()
        sent = [message["params"]["progress"] for message in messages if "method" in message]
        assert sent == sorted(set(sent))
        assert sent[-1] == 10_000
        assert len(sent) < 50
        assert "result" in messages[-1]


async def test_log_messages_wait_for_a_client_that_does_not_read_and_none_is_lost(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.stream(mcp.tool("log", {"n": 1000})) as call:
            call.pause(room=1000)
            await setup.example.until_started("log")
            await anyio.sleep(10)
            assert setup.example.finished == []
            call.resume()
            assert len(await call.messages()) == 1001


async def test_nothing_follows_the_result(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.get() as stream:
            await stream.started()
            answer = await talk.post(mcp.tool("late_progress", token=1))
            assert "result" in answer.events()[-1].json()
            setup.example.release("late")
            await setup.example.until_over("late")
            await anyio.sleep(1)
            await talk.delete()
            assert await stream.messages() == []


async def test_progress_of_one_client_never_reaches_another(autojump_clock: object) -> None:
    async with running() as setup:
        one, other = [await mcp.Conversation.open(setup.client) for _ in range(2)]
        async with (
            one.stream(mcp.tool("count", {"steps": 5}, token="same")) as first,
            other.stream(mcp.tool("count", {"steps": 3}, token="same")) as second,
        ):
            firsts, seconds = await first.messages(), await second.messages()
        assert [m["params"]["total"] for m in firsts[:-1]] == [5] * 5
        assert [m["params"]["total"] for m in seconds[:-1]] == [3] * 3


@pytest.mark.parametrize(("policy", "lines"), [("session", 0), ("always", 3), ("off", 0)])
async def test_log_messages_precede_a_session_less_result_only_where_progress_always_does(
    policy: str, lines: int
) -> None:
    async with running(progress=policy) as setup:
        answer = await setup.client.request("POST", "/mcp", mcp.headers(), mcp.body(mcp.tool("log", {"n": 3})))
        streamed = answer.header("content-type") == "text/event-stream"
        assert (len(answer.events()) - 1 if streamed else 0) == lines
