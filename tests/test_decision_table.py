"""Every cell of the design's decision table, in every mode, over ASGI.

The tables below are written out a second time on purpose, as the design words them; the code's own table is not read.

A cell is the HTTP status and what else must be so:

    -32600            the JSON-RPC error code of the body
    json, sse, empty  the form of the answer
    +id, -            an mcp-session-id comes with it, or none does (the default)
    @session          the route header begins with this
    allow=POST        the Allow header
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from harness import mcp
from harness.asgi import Answer, AsgiClient, Exchange
from harness.hybrid import KEY, Setup, running
from mcp_hybrid.sessions.registry import hash_of

MODES = ("stateless", "hybrid", "stateful")

LEGACY = """
request            | id       | stateless                 | hybrid                     | stateful
GET                | none     | 405 -32600 allow=POST     | 405 -32600 allow=POST      | 400 -32600
GET                | valid    | 405 -32600 allow=POST     | 200 sse @session           | 200 sse @session
GET json           | valid    | 405 -32600 allow=POST     | 406 -32600                 | 406 -32600
GET json           | none     | 405 -32600 allow=POST     | 405 -32600 allow=POST      | 400 -32600
GET json           | wrong    | 405 -32600 allow=POST     | 404 -32001                 | 404 -32001
GET                | wrong    | 405 -32600 allow=POST     | 404 -32001                 | 404 -32001
GET resume         | none     | 405 -32600 allow=POST     | 405 -32600 allow=POST      | 400 -32600
GET resume         | valid    | 405 -32600 allow=POST     | 200 sse @session           | 200 sse @session
GET resume unknown | valid    | 405 -32600 allow=POST     | 400 -32600                 | 400 -32600
GET resume unknown | none     | 405 -32600 allow=POST     | 405 -32600 allow=POST      | 400 -32600
GET resume unknown | wrong    | 405 -32600 allow=POST     | 404 -32001                 | 404 -32001
GET resume         | wrong    | 405 -32600 allow=POST     | 404 -32001                 | 404 -32001
DELETE             | none     | 405 -32600 allow=POST     | 405 -32600 allow=POST      | 400 -32600
DELETE             | valid    | 405 -32600 allow=POST     | 204 empty @session         | 204 empty @session
DELETE             | wrong    | 405 -32600 allow=POST     | 404 -32001                 | 404 -32001
initialize         | none     | 200 json @stateless       | 200 json +id @session      | 200 json +id @session
initialize         | valid    | 200 json @stateless       | 200 json +id @session      | 200 json +id @session
initialize         | wrong    | 200 json @stateless       | 200 json +id @session      | 200 json +id @session
initialize failing | none     | 200 -32602 @stateless     | 200 -32602 @session        | 200 -32602 @session
initialize failing | valid    | 200 -32602 @stateless     | 200 -32602 @session        | 200 -32602 @session
initialize failing | wrong    | 200 -32602 @stateless     | 200 -32602 @session        | 200 -32602 @session
request            | none     | 200 json @stateless       | 200 json @stateless        | 400 -32600
request            | valid    | 200 json @stateless       | 200 json @session          | 200 json @session
request            | wrong    | 200 json @stateless       | 404 -32001                 | 404 -32001
request progress   | none     | 200 json @stateless       | 200 json @stateless        | 400 -32600
request progress   | valid    | 200 json @stateless       | 200 sse @session           | 200 sse @session
request progress   | wrong    | 200 json @stateless       | 404 -32001                 | 404 -32001
request json       | valid    | 200 json @stateless       | 200 json @session          | 200 json @session
request json       | none     | 200 json @stateless       | 200 json @stateless        | 400 -32600
request json       | wrong    | 200 json @stateless       | 404 -32001                 | 404 -32001
request sse        | none     | 200 sse @stateless        | 200 sse @stateless         | 400 -32600
request sse        | valid    | 200 sse @stateless        | 200 sse @session           | 200 sse @session
request sse        | wrong    | 200 sse @stateless        | 404 -32001                 | 404 -32001
notification       | none     | 202 empty @stateless      | 202 empty @stateless       | 400 -32600
notification       | valid    | 202 empty @stateless      | 202 empty @session         | 202 empty @session
notification       | wrong    | 202 empty @stateless      | 404 -32001                 | 404 -32001
cancelled          | none     | 202 empty @stateless      | 202 empty @stateless       | 400 -32600
cancelled          | valid    | 202 empty @stateless      | 202 empty @session         | 202 empty @session
cancelled          | wrong    | 202 empty @stateless      | 404 -32001                 | 404 -32001
response           | none     | 400 -32600                | 400 -32600                 | 400 -32600
response           | valid    | 400 -32600                | 202 empty @session         | 202 empty @session
response           | wrong    | 400 -32600                | 404 -32001                 | 404 -32001
batch              | none     | 200 json @stateless       | 200 json @stateless        | 400 -32600
batch              | valid    | 200 json @stateless       | 200 json @session          | 200 json @session
batch              | wrong    | 200 json @stateless       | 404 -32001                 | 404 -32001
batch quiet        | none     | 202 empty @stateless      | 202 empty @stateless       | 400 -32600
batch quiet        | valid    | 202 empty @stateless      | 202 empty @session         | 202 empty @session
batch quiet        | wrong    | 202 empty @stateless      | 404 -32001                 | 404 -32001
batch responses    | none     | 400 -32600                | 400 -32600                 | 400 -32600
batch responses    | valid    | 400 -32600                | 202 empty @session         | 202 empty @session
batch responses    | wrong    | 400 -32600                | 404 -32001                 | 404 -32001
batch progress     | none     | 200 json @stateless       | 200 json @stateless        | 400 -32600
batch progress     | valid    | 200 json @stateless       | 200 sse @session           | 200 sse @session
batch progress     | wrong    | 200 json @stateless       | 404 -32001                 | 404 -32001
batch initialize   | none     | 400 -32600                | 400 -32600                 | 400 -32600
batch initialize   | valid    | 400 -32600                | 400 -32600                 | 400 -32600
batch initialize   | wrong    | 400 -32600                | 400 -32600                 | 400 -32600
batch later        | none     | 400 -32600                | 400 -32600                 | 400 -32600
batch later        | valid    | 400 -32600                | 400 -32600                 | 400 -32600
batch later        | wrong    | 400 -32600                | 404 -32001                 | 404 -32001
"""

WRONG_IDS = ("unknown", "expired", "ended", "foreign")

MODERN = """
request            | id       | any mode
GET                | none     | 405 -32600 allow=POST
GET                | valid    | 405 -32600 allow=POST
DELETE             | none     | 405 -32600 allow=POST
DELETE             | valid    | 405 -32600 allow=POST
notification       | none     | 202 empty @modern
cancelled          | none     | 202 empty @modern
response           | none     | 400 -32600
batch              | none     | 400 -32600
request            | none     | 200 json @modern
request            | valid    | 200 json @modern
request            | unknown  | 200 json @modern
request progress   | none     | 200 sse @modern
request sse        | none     | 200 sse @modern
request json       | none     | 200 json @modern
unknown method     | none     | 404 -32601 @modern
removed method     | none     | 404 -32601 @modern
initialize         | none     | 404 -32601 @modern
no envelope        | none     | 400 -32602
wrong mcp-method   | none     | 400 -32020
wrong mcp-name     | none     | 400 -32020
listen             | none     | 200 sse @modern
listen json        | none     | 406 -32600
"""

ERA = """
PV          | ENV         | method     | outcome
2026-07-28  | 2026-07-28  | tools/list | 200 json @modern
2026-07-28  | 2025-11-25  | tools/list | 400 -32020
2026-07-28  | 2099-01-01  | tools/list | 400 -32020
2099-01-01  | -           | tools/list | 400 -32022
2099-01-01  | 2099-01-01  | tools/list | 400 -32022
2099-01-01  | 2026-07-28  | tools/list | 400 -32020
2099-01-01  | 2025-11-25  | tools/list | 400 -32020
2099-01-01  | -           | initialize | 400 -32022
2099-01-01  | 2026-07-28  | initialize | 400 -32022
-           | 2026-07-28  | tools/list | 400 -32020
-           | 2099-01-01  | tools/list | 400 -32020
-           | 2026-07-28  | initialize | 200 json @legacy
-           | -           | tools/list | 200 json @legacy
-           | -           | initialize | 200 json @legacy
2025-11-25  | 2026-07-28  | tools/list | 400 -32020
2025-11-25  | 2025-06-18  | tools/list | 400 -32020
2025-11-25  | 2099-01-01  | tools/list | 400 -32020
2025-11-25  | 2026-07-28  | initialize | 200 json @legacy
2025-11-25  | 2025-11-25  | tools/list | 200 json @legacy
-           | 2025-11-25  | tools/list | 200 json @legacy
-           | 2099-01-01  | initialize | 200 json @legacy
-           | null        | initialize | 200 json @legacy
-           | null        | tools/list | 400 -32020
-           | 7           | tools/list | 400 -32020
2025-11-25  | null        | tools/list | 400 -32020
2025-11-25  | 7           | tools/list | 400 -32020
2025-11-25  | 7           | initialize | 200 json @legacy
2025-11-25  | 2025-06-18  | initialize | 200 json @legacy
2025-11-25  | 2099-01-01  | initialize | 200 json @legacy
2026-07-28  | null        | tools/list | 400 -32020
2026-07-28  | 7           | tools/list | 400 -32020
2099-01-01  | null        | tools/list | 400 -32020
2099-01-01  | 7           | tools/list | 400 -32020
2099-01-01  | 2099-01-01  | initialize | 400 -32022
2025-11-25  | -           | tools/list | 200 json @legacy
2025-06-18  | -           | tools/list | 200 json @legacy
2025-03-26  | -           | tools/list | 200 json @legacy
2024-11-05  | -           | tools/list | 200 json @legacy
"""

NO_VERSIONS: dict[str, Any] = {"null": None, "7": 7}
"""What stands in an envelope where a version should, and is none."""


@dataclass(frozen=True)
class Expected:
    """One cell."""

    text: str

    def check(self, answer: Answer) -> None:
        status, *wants = self.text.split()
        seen = f"{answer.status} {answer.headers} {answer.body[:300]!r}"
        assert answer.status == int(status), seen
        for want in wants:
            assert self._holds(want, answer), f"{want}: {seen}"
        assert ("+id" in wants) == (answer.header("mcp-session-id") is not None), seen
        if not 200 <= answer.status < 300:
            assert answer.json()["jsonrpc"] == "2.0", seen

    @staticmethod
    def _holds(want: str, answer: Answer) -> bool:
        if want.startswith("-3"):
            return bool(answer.json()["error"]["code"] == int(want))
        if want.startswith("@"):
            return _route_is(want[1:], answer.header("mcp-hybrid-route") or "")
        if want.startswith("allow="):
            return answer.header("allow") == want.removeprefix("allow=")
        forms = {"json": "application/json", "sse": "text/event-stream"}
        if want in forms:
            return answer.header("content-type") == forms[want]
        return want == "+id" or (want == "empty" and answer.body == b"")


def _route_is(want: str, route: str) -> bool:
    return not route.startswith("modern") if want == "legacy" else route.partition(";")[0] == want


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()[1:]]


def legacy_cases() -> list[Any]:
    cases = []
    for kind, sent, *cells in rows(LEGACY):
        for id_ in WRONG_IDS if sent == "wrong" else (sent,):
            for mode, cell in zip(MODES, cells, strict=True):
                cases.append(pytest.param(mode, kind, id_, Expected(cell), id=f"{mode}-{kind}-{id_}"))
    return cases


async def make_id(setup: Setup, sent: str) -> str | None:
    """Make a session id of each sort. In stateless mode, where none are offered, one sealed with the same key."""
    if sent == "none":
        return None
    if sent == "unknown":
        return "A" * 120
    user = [("x-user", "mallory")] if sent == "foreign" else []
    if setup.app.settings.mode == "stateless":
        async with running(users=True, sessions={"keys": [KEY]}) as other:
            session = await offered(other, user)
    else:
        session = await offered(setup, user)
    if sent == "expired":
        setup.clock.now += setup.app.settings.sessions.max_age
    if sent == "ended" and setup.app.settings.mode == "stateless":
        await setup.registry.end_by_hash(hash_of(session))
    elif sent == "ended":
        assert (await setup.client.request("DELETE", "/mcp", mcp.headers(session))).status == 204
    return session


async def offered(setup: Setup, user: list[tuple[str, str]]) -> str:
    headers = mcp.headers(None, None, *user)
    answer = await setup.client.request("POST", "/mcp", headers, mcp.body(mcp.initialize()))
    session = answer.header("mcp-session-id")
    assert session is not None
    return session


ACCEPT = {"json": "application/json", "sse": "text/event-stream"}

MESSAGES: dict[str, Any] = {
    "initialize": mcp.initialize(),
    "initialize failing": mcp.request("initialize", {"protocolVersion": 7}),
    "request": mcp.tool("add", {"a": 1, "b": 2}),
    "request json": mcp.tool("count", {"delay": 0}, token=0),
    "request sse": mcp.tool("add", {"a": 1, "b": 2}),
    "request progress": mcp.tool("count", {"delay": 0}, token=""),
    "notification": mcp.notification("notifications/roots/list_changed"),
    "cancelled": mcp.cancelled(99),
    "response": mcp.result("nobody-asked", {}),
    "batch": mcp.batch(mcp.tool("add", {"a": 1, "b": 2}, id=1), mcp.request("ping", id="1")),
    "batch quiet": mcp.batch(mcp.notification("notifications/initialized"), mcp.cancelled(99)),
    "batch responses": mcp.batch(mcp.result("nobody-asked", {}), mcp.result("nor-this", {})),
    "batch progress": mcp.batch(
        mcp.tool("count", {"delay": 0}, id=1, token=1), mcp.tool("count", {"delay": 0}, id=2, token=2)
    ),
    "batch initialize": mcp.batch(mcp.initialize()),
    "batch later": mcp.batch(mcp.request("ping")),
    "unknown method": mcp.request("tools/nothing"),
    "removed method": mcp.request("ping"),
    "wrong mcp-method": mcp.request("tools/list"),
    "wrong mcp-name": mcp.tool("add", {"a": 1, "b": 2}),
    "no envelope": mcp.request("tools/list"),
    "listen": mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}),
    "listen json": mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}),
}


async def send_legacy(setup: Setup, kind: str, session: str | None) -> Answer:
    method, *details = kind.split()
    form = next((ACCEPT[detail] for detail in details if detail in ACCEPT), mcp.BOTH)
    if method not in ("GET", "DELETE"):
        version = None if method == "batch" and "later" not in details else mcp.LEGACY
        if kind.startswith("batch") and session is not None and version is None:
            session = await old_session(setup, session)
        return await setup.client.request(
            "POST", "/mcp", mcp.headers(session, version, accept=form), mcp.body(MESSAGES[kind])
        )
    resume = (
        [("last-event-id", await event_id(setup, session, known="unknown" not in details))]
        if "resume" in details
        else []
    )
    headers = mcp.headers(session, mcp.LEGACY, *resume, accept=form, content_type=None)
    return await first_answer(setup.client, method, headers)


async def old_session(setup: Setup, session: str) -> str:
    """Batches exist at 2025-03-26 only: a valid session for them is one of that version."""
    if session not in await valid_ids(setup, session):
        return session
    opened = await mcp.Conversation.open(setup.client, version="2025-03-26")
    return opened.session


async def valid_ids(setup: Setup, session: str) -> set[str]:
    ping = await setup.client.request("POST", "/mcp", mcp.headers(session), mcp.body(mcp.request("ping")))
    return {session} if (ping.header("mcp-hybrid-route") or "").startswith("session") else set()


async def event_id(setup: Setup, session: str | None, *, known: bool) -> str:
    """Return an event id of the session, of a call that streamed progress."""
    if not known or session is None or session not in await valid_ids(setup, session):
        return "c000000000000.00000000-1"
    call = mcp.body(mcp.tool("count", {"delay": 0}, id=50, token=1))
    answer = await setup.client.request("POST", "/mcp", mcp.headers(session), call)
    found = answer.events()[0].id
    assert found is not None
    return found


async def first_answer(client: AsgiClient, method: str, headers: list[tuple[str, str]]) -> Answer:
    """Send a request that may be answered by a stream without end: a GET stream is left after its head."""
    async with client.stream(method, "/mcp", headers) as exchange:
        status, answered = await exchange.started()
        if exchange.header("content-type") == "text/event-stream" and "last-event-id" not in dict(headers):
            return Answer(status, answered, b"")
        return await exchange.answer()


@pytest.mark.parametrize(("mode", "kind", "sent", "expected"), legacy_cases())
async def test_legacy_requests_are_served_as_the_table_says(
    mode: str, kind: str, sent: str, expected: Expected, autojump_clock: object
) -> None:
    async with running(users=True, mode=mode, sessions={"keys": [KEY]}) as setup:
        session = await make_id(setup, sent)
        expected.check(await send_legacy(setup, kind, session))
        if sent != "valid" or mode == "stateless":
            assert len(setup.registry) == 0, "something is kept of a request without a session"


@pytest.mark.parametrize(
    ("sent", "user"), [("valid", "alice"), ("expired", "alice"), ("ended", "alice"), ("foreign", "mallory")]
)
async def test_an_id_that_a_stateless_server_ignores_is_a_real_one(sent: str, user: str) -> None:
    # Elsewhere, with the same key, each of them opens its session: for its owner, in its time, where it was not ended.
    async with (
        running(users=True, mode="stateless", sessions={"keys": [KEY]}) as stateless,
        running(users=True, sessions={"keys": [KEY]}) as elsewhere,
    ):
        session = await make_id(stateless, sent)
        headers = mcp.headers(session, None, ("x-user", user))
        Expected("200 json @session").check(await elsewhere.client.request("POST", "/mcp", headers, PING))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "sent", "cell"), rows(MODERN))
async def test_modern_requests_are_served_alike_in_all_modes(mode: str, kind: str, sent: str, cell: str) -> None:
    async with running(users=True, mode=mode, sessions={"keys": [KEY]}) as setup:
        session = await make_id(setup, sent)
        extra = [("mcp-session-id", session)] if session is not None else []
        form = next((ACCEPT[word] for word in kind.split() if word in ACCEPT), mcp.BOTH)
        if kind in ("GET", "DELETE"):
            headers = mcp.headers(None, mcp.MODERN, *extra, content_type=None)
            Expected(cell).check(await setup.client.request(kind, "/mcp", headers))
            return
        message = MESSAGES[kind]
        if isinstance(message, list) or kind == "response":
            Expected(cell).check(
                await setup.client.request("POST", "/mcp", mcp.headers(None, mcp.MODERN, *extra), mcp.body(message))
            )
            return
        headers = mcp.modern_headers(message, *extra, accept=form)
        if kind.startswith("wrong"):
            wrong = kind.removeprefix("wrong ")
            headers = [(name, "tools/other" if name == wrong else value) for name, value in headers]
        body = mcp.body(message if kind == "no envelope" else mcp.modern(message))
        async with setup.client.stream("POST", "/mcp", headers, body) as exchange:
            status, answered = await exchange.started()
            endless = kind == "listen"
            answer = Answer(status, answered, b"") if endless else await exchange.answer()
        Expected(cell).check(answer)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("header", "envelope", "method", "cell"), rows(ERA))
async def test_the_era_is_decided_by_header_and_envelope_together(
    mode: str, header: str, envelope: str, method: str, cell: str
) -> None:
    async with running(mode=mode) as setup:
        message = mcp.initialize() if method == "initialize" else mcp.request(method)
        if envelope != "-":
            message = mcp.modern(message, version=NO_VERSIONS.get(envelope, envelope))
        session = await make_id(setup, "valid" if mode == "stateful" else "none")  # else stateful serves nothing
        sent = mcp.headers(session, None if header == "-" else header, ("mcp-method", method))
        answer = await setup.client.request("POST", "/mcp", sent, mcp.body(message))
        offered = method == "initialize" and cell.startswith("200") and mode != "stateless"
        Expected(cell + " +id" if offered else cell).check(answer)
        if "-32022" in cell:
            data = answer.json()["error"]["data"]
            served = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"]
            assert data == {"supported": served, "requested": header}


OVERLOOKED = """
request      | id      | stateless            | hybrid               | stateful
request      | unknown | 200 json @stateless  | 200 json @stateless  | 404 -32001
request      | expired | 200 json @stateless  | 200 json @stateless  | 404 -32001
request      | ended   | 200 json @stateless  | 404 -32001           | 404 -32001
request      | foreign | 200 json @stateless  | 404 -32001           | 404 -32001
notification | unknown | 202 empty @stateless | 202 empty @stateless | 404 -32001
notification | expired | 202 empty @stateless | 202 empty @stateless | 404 -32001
notification | ended   | 202 empty @stateless | 404 -32001           | 404 -32001
batch        | unknown | 200 json @stateless  | 200 json @stateless  | 404 -32001
batch        | expired | 200 json @stateless  | 200 json @stateless  | 404 -32001
batch        | foreign | 200 json @stateless  | 404 -32001           | 404 -32001
response     | unknown | 400 -32600           | 400 -32600           | 404 -32001
response     | expired | 400 -32600           | 400 -32600           | 404 -32001
GET          | unknown | 405 -32600           | 404 -32001           | 404 -32001
GET resume   | expired | 405 -32600           | 404 -32001           | 404 -32001
DELETE       | unknown | 405 -32600           | 404 -32001           | 404 -32001
"""
"""What becomes of wrong ids with `unknown_session = "stateless"`."""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "sent", "stateless", "hybrid", "stateful"), rows(OVERLOOKED))
async def test_a_lost_session_can_be_overlooked_but_never_an_ended_one_or_anothers(
    mode: str, kind: str, sent: str, stateless: str, hybrid: str, stateful: str
) -> None:
    cells = {"stateless": stateless, "hybrid": hybrid, "stateful": stateful}
    async with running(users=True, mode=mode, unknown_session="stateless", sessions={"keys": [KEY]}) as setup:
        session = await make_id(setup, sent)
        answer = await send_legacy(setup, kind, session)
        Expected(cells[mode]).check(answer)
        assert len(setup.registry) == 0
        if answer.status in (200, 202):  # a stateless server reads no id, so none is unknown to it
            said = "stateless; session=unknown" if mode == "hybrid" else "stateless"
            assert answer.header("mcp-hybrid-route") == said


async def test_all_wrong_ids_get_the_very_same_answer() -> None:
    bodies = set()
    for sent in WRONG_IDS:
        async with running(users=True) as setup:
            session = await make_id(setup, sent)
            answer = await send_legacy(setup, "request", session)
            bodies.add((answer.status, tuple(answer.headers), answer.body))
    assert len(bodies) == 1


GATES = """
what                          | cell
host                          | 421 -32600
origin                        | 403 -32600
credential                    | 401 -32600
method                        | 405 -32600 allow=GET, POST, DELETE, OPTIONS
twice mcp-session-id          | 400 -32020
twice mcp-protocol-version    | 400 -32020
twice mcp-method              | 400 -32020
twice mcp-name                | 400 -32020
id with a space               | 400 -32600
id not ASCII                  | 400 -32600
blank in an id                | 400 -32600
encoded body                  | 415 -32600
body over the limit           | 413 -32600
body over the limit, chunked  | 413 -32600
content type                  | 415 -32600
no content type               | 415 -32600
accept html                   | 406 -32600
accept nothing by quality     | 406 -32600
not JSON                      | 400 -32700
not UTF-8                     | 400 -32700
too deep                      | 400 -32600
an empty body                 | 400 -32700
a string                      | 400 -32600
no version                    | 400 -32600
an empty batch                | 400 -32600
id null                       | 400 -32600
params a list                 | 400 -32600
another path                  | 404 -32600
"""

PING = mcp.body(mcp.request("ping"))
JSON = ("content-type", "application/json")
GATE_REQUESTS: dict[str, tuple[str, list[tuple[str, str]], bytes | list[bytes]]] = {
    "host": ("POST", [("host", "evil.example.com"), JSON], PING),
    "origin": ("POST", [("origin", "http://evil.example.com"), JSON], PING),
    "credential": ("POST", [("x-user", "nobody"), JSON], PING),
    "method": ("PUT", [JSON], PING),
    "twice mcp-session-id": ("POST", [("mcp-session-id", "a"), ("mcp-session-id", "a"), JSON], PING),
    "twice mcp-protocol-version": (
        "POST",
        [("mcp-protocol-version", mcp.LEGACY), ("mcp-protocol-version", mcp.LEGACY), JSON],
        PING,
    ),
    "twice mcp-method": ("POST", [("mcp-method", "ping"), ("mcp-method", "ping"), JSON], PING),
    "twice mcp-name": ("POST", [("mcp-name", "add"), ("mcp-name", "add"), JSON], PING),
    "id with a space": ("POST", [("mcp-session-id", "a b"), JSON], PING),
    "id not ASCII": ("POST", [("mcp-session-id", "caf\xe9"), JSON], PING),
    "blank in an id": ("POST", [("mcp-session-id", "a b"), JSON], PING),
    "encoded body": ("POST", [JSON, ("content-encoding", "gzip")], PING),
    "body over the limit": ("POST", [JSON], b" " * 2000),
    "body over the limit, chunked": ("POST", [JSON, ("content-length", "1")], [b" " * 500] * 4),
    "content type": ("POST", [("content-type", "application/json-seq")], PING),
    "no content type": ("POST", [], PING),
    "accept html": ("POST", [JSON, ("accept", "text/html")], PING),
    "accept nothing by quality": ("POST", [JSON, ("accept", "application/json;q=0, */*;q=0")], PING),
    "not JSON": ("POST", [JSON], b"{"),
    "not UTF-8": ("POST", [JSON], b'{"jsonrpc":"2.0","id":"\xff","method":"ping"}'),
    "too deep": ("POST", [JSON], b"[" * 900),
    "an empty body": ("POST", [JSON], b""),
    "a string": ("POST", [JSON], b'"ping"'),
    "no version": ("POST", [JSON], b'{"id":1,"method":"ping"}'),
    "an empty batch": ("POST", [JSON], b"[]"),
    "id null": ("POST", [JSON], b'{"jsonrpc":"2.0","id":null,"method":"ping"}'),
    "params a list": ("POST", [JSON], b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}'),
    "another path": ("POST /other", [JSON], PING),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("what", "cell"), rows(GATES))
async def test_the_gates_refuse_alike_in_every_mode_and_keep_nothing(mode: str, what: str, cell: str) -> None:
    method, headers, body = GATE_REQUESTS[what]
    method, _, path = method.partition(" ")
    async with running(users=True, mode=mode, limits={"body": 1000}) as setup:
        answer = await setup.client.request(method, path or "/mcp", headers, body)
        cell, _, allowed = cell.partition(" allow=")
        Expected(cell).check(answer)
        assert not allowed or answer.header("allow") == allowed
        assert answer.header("mcp-hybrid-route") is None
        assert len(setup.registry) == 0


ORDER = [
    ("host", 421, -32600),
    ("origin", 403, -32600),
    ("credential", 401, -32600),
    ("method", 405, -32600),
    ("routing header twice", 400, -32020),
    ("size", 413, -32600),
    ("content type", 415, -32600),
    ("accept", 406, -32600),
    ("JSON", 400, -32700),
    ("message", 400, -32600),
]


@pytest.mark.parametrize("first", range(len(ORDER)), ids=[gate for gate, _, _ in ORDER])
async def test_gates_are_passed_in_their_order(first: int) -> None:
    # The request breaks all gates from one on; the first broken one answers.
    broken = {gate for gate, _, _ in ORDER[first:]}
    headers = [
        ("content-type", "text/plain" if "content type" in broken else "application/json"),
        *([("host", "evil.example.com")] if "host" in broken else []),
        *([("origin", "http://evil.example.com")] if "origin" in broken else []),
        *([("x-user", "nobody")] if "credential" in broken else []),
        *([("mcp-name", "a"), ("mcp-name", "a")] if "routing header twice" in broken else []),
        *([("accept", "text/html")] if "accept" in broken else []),
    ]
    body = b"{" * 20 if "size" in broken else b"{" if "JSON" in broken else b"7"
    _, status, code = ORDER[first]
    async with running(users=True, limits={"body": 10}) as setup:
        answer = await setup.client.request("PUT" if "method" in broken else "POST", "/mcp", headers, body)
        assert (answer.status, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("accept", [None, "*/*", "application/*", "application/json, text/event-stream;q=0"])
async def test_a_client_that_takes_json_is_answered_in_json(accept: str | None) -> None:
    async with running() as setup:
        answer = await setup.client.request("POST", "/mcp", mcp.headers(accept=accept), PING)
        Expected("200 json @stateless").check(answer)


async def test_options_is_answered_with_what_the_endpoint_serves() -> None:
    async with running() as setup:
        answer = await setup.client.request("OPTIONS", "/mcp")
        assert (answer.status, answer.header("allow")) == (204, "GET, POST, DELETE, OPTIONS")


LEFT = pytest.mark.parametrize(
    ("mode", "sent"),
    [("stateless", "none"), ("stateless", "valid"), ("hybrid", "none"), ("hybrid", "valid"), ("stateful", "valid")],
)


@LEFT
async def test_a_call_whose_client_has_gone_runs_on_to_its_end(mode: str, sent: str, autojump_clock: object) -> None:
    async with running(users=True, mode=mode, sessions={"keys": [KEY]}) as setup:
        async with left_waiting(setup, await make_id(setup, sent)) as exchange:
            await anyio.sleep(60)
            assert exchange.running
            setup.example.release()
            await exchange.finished()
        assert (setup.example.finished, setup.example.cancelled) == (["wait"], [])


@LEFT
async def test_a_call_whose_client_has_gone_is_stopped_when_its_time_is_over(
    mode: str, sent: str, autojump_clock: object
) -> None:
    async with running(users=True, mode=mode, sessions={"keys": [KEY]}, request_timeout=100) as setup:
        started = anyio.current_time()
        async with left_waiting(setup, await make_id(setup, sent)) as exchange:
            await setup.example.until_over("wait")
            assert anyio.current_time() - started == pytest.approx(100, abs=1)
            await exchange.finished()
        assert setup.example.cancelled == ["wait"]
        assert not any(live.busy for live in setup.registry.sessions())


@asynccontextmanager
async def left_waiting(setup: Setup, session: str | None) -> AsyncIterator[Exchange]:
    """Call a tool that waits, and go as soon as it does."""
    headers = mcp.headers(session, mcp.LEGACY)
    async with setup.client.stream("POST", "/mcp", headers, mcp.body(mcp.tool("wait"))) as exchange:
        await setup.example.until_started("wait")
        await exchange.disconnect()
        yield exchange
