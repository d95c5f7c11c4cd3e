"""Random heads, bodies and orders of requests: whatever comes, it is answered as meant, and a refusal keeps nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from harness import mcp
from harness.asgi import Answer
from harness.hybrid import Setup, running
from harness.logged import errors_logged
from harness.properties import examples

QUICK = examples(60)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ids = st.one_of(st.integers(), st.text(max_size=5), st.none(), st.booleans(), st.floats(allow_nan=False))
versions = st.sampled_from(["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28", "2099-01-01", ""])
methods = st.sampled_from(
    [
        "initialize", "ping", "tools/list", "tools/call", "resources/read", "prompts/get", "logging/setLevel",
        "server/discover", "notifications/initialized", "notifications/cancelled", "notifications/progress",
        "completion/complete", "no/such", "",
    ]
)  # fmt: skip
metas = st.fixed_dictionaries(
    {},
    optional={
        "progressToken": ids,
        f"{mcp.META}protocolVersion": versions | json_values,
        f"{mcp.META}clientCapabilities": json_values,
        f"{mcp.META}clientInfo": json_values,
        f"{mcp.META}logLevel": json_values,
    },
)
params = st.one_of(
    json_values,
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["add", "count", "crash", "fail", "nothing"]) | json_values,
            "arguments": st.just({"a": 1, "b": 2}) | json_values,
            "uri": st.text(max_size=5),
            "requestId": ids,
            "protocolVersion": versions,
            "capabilities": json_values,
            "clientInfo": st.just({"name": "h", "version": "1"}) | json_values,
            "_meta": metas | json_values,
        },
    ),
)
messages = st.fixed_dictionaries(
    {"jsonrpc": st.sampled_from(["2.0", "2.0", "2.0", "1.0"])},
    optional={"id": ids, "method": methods, "params": params, "result": json_values, "error": json_values},
)
bodies = st.one_of(
    messages.map(mcp.body),
    messages.map(mcp.body),
    st.lists(messages, max_size=4).map(mcp.body),
    json_values.map(mcp.body),
    st.binary(max_size=60),
)
header_texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)
accepts = st.sampled_from([mcp.BOTH, "application/json", "text/event-stream"])
heads = st.lists(
    st.one_of(
        st.tuples(st.just("mcp-protocol-version"), versions | header_texts),
        st.tuples(st.just("mcp-method"), methods | header_texts),
        st.tuples(st.just("mcp-name"), st.just("add") | header_texts),
        st.tuples(st.just("mcp-session-id"), header_texts),
        st.tuples(st.just("last-event-id"), header_texts),
        st.tuples(st.just("content-type"), st.just("application/json") | header_texts),
        st.tuples(
            st.just("accept"), st.sampled_from([mcp.BOTH, "application/json", "text/event-stream"]) | header_texts
        ),
        st.tuples(st.just("origin"), st.just("http://localhost:1") | header_texts),
    ),
    max_size=5,
)
verbs = st.sampled_from(["POST", "POST", "POST", "POST", "GET", "DELETE", "OPTIONS", "PUT"])
usual = st.just([("content-type", "application/json"), ("accept", mcp.BOTH)])


CRASHED = "mcp.server.mcpserver.server: Tool 'crash' raised an unexpected exception"
"""What the SDK logs of the one tool that crashes on purpose."""


@asynccontextmanager
async def quietly_running(**settings: Any) -> AsyncIterator[Setup]:
    """Run the example server: whatever it is sent, no fault of its own comes up in the log."""
    with errors_logged() as errors:
        async with running(**settings) as setup:
            yield setup
    assert set(errors) <= {CRASHED}


def check(answer: Answer) -> None:
    """Every answer is one this server means to give: never a 5xx, and a refusal is a JSON-RPC error."""
    assert answer.status < 500, answer
    if answer.status >= 400:
        error = answer.json()
        assert error["jsonrpc"] == "2.0"
        assert isinstance(error["error"]["code"], int)


async def send(setup: Setup, verb: str, headers: list[tuple[str, str]], body: bytes) -> Answer:
    """Send a request; of a stream without end, read the head only."""
    async with setup.client.stream(verb, "/mcp", headers, body) as exchange:
        status, answered = await exchange.started()
        if verb == "GET" and status == 200:
            await exchange.disconnect()
            await exchange.finished()
            return Answer(status, answered, b"")
        return await exchange.answer()


@QUICK
@given(mode=st.sampled_from(["stateless", "hybrid", "stateful"]), verb=verbs, usual=usual, head=heads, body=bodies)
async def test_no_request_brings_a_5xx_or_leaves_anything_behind(
    mode: str, verb: str, usual: list[tuple[str, str]], head: list[tuple[str, str]], body: bytes
) -> None:
    async with quietly_running(mode=mode) as setup:
        named = {name for name, _ in head}
        headers = [header for header in usual if header[0] not in named] + head
        answer = await send(setup, verb, headers, body)
        check(answer)
        assert len(setup.registry) == 0, "a request without a valid session made one live"


@QUICK
@given(data=st.data())
async def test_no_order_of_requests_in_sessions_brings_a_5xx_or_a_call_left_over(data: st.DataObject) -> None:
    async with quietly_running(sessions={"max_live": 2}) as setup:
        opened: list[str] = []
        refused = 0
        for _ in range(data.draw(st.integers(1, 8))):
            step = data.draw(st.sampled_from(["open", "post", "post", "delete", "get"]))
            session = data.draw(st.sampled_from(opened)) if opened else None
            before = {live.id for live in setup.registry.sessions()}
            answer = await do(setup, step, session, data)
            check(answer)
            if step == "open" and (made := answer.header("mcp-session-id")) is not None:
                opened.append(made)
                assert {live.id for live in setup.registry.sessions()} == before, "an offer must cost nothing"
            if answer.status >= 400:
                refused += 1
                assert {live.id for live in setup.registry.sessions()} - before <= {session}
        for live in setup.registry.sessions():
            assert not live.busy
        assert len(setup.registry) <= 2


async def do(setup: Setup, step: str, session: str | None, data: st.DataObject) -> Answer:
    headers: list[tuple[str, str]] = mcp.headers(session)
    if step == "open":
        return await send(setup, "POST", headers, mcp.body(mcp.initialize(data.draw(versions))))
    if step == "delete":
        return await send(setup, "DELETE", headers, b"")
    if step == "get":
        return await send(setup, "GET", headers + data.draw(heads.map(last_event_only)), b"")
    return await send(setup, "POST", headers, data.draw(bodies))


def last_event_only(head: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [header for header in head if header[0] == "last-event-id"][:1]


@QUICK
@given(text=st.text(alphabet="ABCabc019-_", max_size=300) | st.text(st.characters(min_codepoint=33, max_codepoint=126)))
async def test_no_made_up_session_id_is_taken_for_a_real_one(text: str) -> None:
    async with quietly_running() as setup:
        headers: list[tuple[str, str]] = mcp.headers(text)
        answer = await send(setup, "POST", headers, mcp.body(mcp.request("ping")))
        assert answer.status == (404 if text else 200), "an empty id is none"
