"""What a client may write in more than one way, and values that are larger than what reads them can hold."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from harness import mcp
from harness.asgi import Answer
from harness.hybrid import Setup, running
from harness.mcp import Conversation
from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.program_pages import ProgramPages
from mcp_hybrid.routing.gates import check_post
from mcp_hybrid.routing.head import Head
from mcp_hybrid.routing.media import Form, accepted
from mcp_hybrid.routing.message import LONGEST_ID, LONGEST_METHOD
from mcp_hybrid.runtime.program import IN_PLACE

PING = mcp.body(mcp.request("ping"))


async def post(setup: Setup, *extra: tuple[str, str], body: bytes = PING) -> Answer:
    return await setup.client.request("POST", "/mcp", mcp.headers(None, None, *extra), body)


# Numbers


@pytest.mark.parametrize(
    ("length", "refused"),
    [
        ("10", False), ("11", True), ("0" * 5000 + "10", False), ("0" * 5000 + "11", True), ("9" * 5000, True),
        ("9" * 100_000, True), ("", False), ("-1", False), ("1e9", False), ("+11", False), ("\xb2", False),
        ("1_1", False), (" 11", False),
    ],
)  # fmt: skip
def test_a_content_length_of_any_length_is_read(length: str, refused: bool) -> None:
    fault = check_post(Head("POST", content_type="application/json", content_length=length), 10)
    assert (fault is not None and fault.cause is Cause.BODY_TOO_LARGE) is refused


@pytest.mark.parametrize(
    ("quality", "form"),
    [
        ("0", Form.SSE), ("0.0", Form.SSE), ("0.000", Form.SSE), (".0", Form.SSE), (" 0 ", Form.SSE),
        ("1", Form.EITHER), ("0.001", Form.EITHER), ("nan", Form.EITHER), ("-1", Form.EITHER), ("1e-999", Form.EITHER),
        ("inf", Form.EITHER), ("0_0", Form.EITHER), ("0x0", Form.EITHER), ("", Form.EITHER),
        ("9" * 5000, Form.EITHER), ("0." + "0" * 5000, Form.EITHER),
    ],
)  # fmt: skip
def test_a_quality_is_a_number_or_is_passed_over(quality: str, form: Form) -> None:
    assert accepted(f"application/json;q={quality}, text/event-stream") is form


def test_long_headers_are_read_and_not_remembered() -> None:
    header = f"application/json, text/x-{'y' * 20_000}"
    from mcp_hybrid.routing import media  # noqa: PLC0415 - its cache is looked at

    before = media._read.cache_info().currsize
    assert accepted(header) is Form.JSON
    assert media._read.cache_info().currsize == before


@pytest.mark.parametrize(("digits", "matches"), [(5, True), (5000, False)])
def test_a_route_is_no_match_for_a_number_without_end(digits: int, matches: bool) -> None:
    async def serve(_: Request) -> Response:
        raise AssertionError

    found = ProgramPages(None, [Route("/users/{number:int}", serve)], IN_PLACE, [])
    scope = {"type": "http", "method": "GET", "path": f"/users/{'9' * digits}", "headers": [], "root_path": ""}
    assert found.has(scope) is matches


# Ids


IDS: dict[str, tuple[Any, bool]] = {
    "the longest text": ("x" * LONGEST_ID, True),
    "longer text": ("x" * (LONGEST_ID + 1), False),
    "a megabyte": ("x" * 2**20, False),
    "empty text": ("", True),
    "zero": (0, True),
    "the largest integer": (2**64 - 1, True),
    "the smallest integer": (-(2**63), True),
    "a larger integer": (2**64, False),
    "an integer of 4000 digits": (10**4000, False),
}


@pytest.mark.parametrize("what", IDS)
@pytest.mark.parametrize("where", ["alone", "in a session", "modern", "batch"])
async def test_an_id_comes_back_as_it_was_or_is_refused(what: str, where: str) -> None:
    id_, good = IDS[what]
    async with running() as setup:
        message: Any = mcp.request("ping", id=id_)
        if where == "in a session":
            answer = await (await Conversation.open(setup.client)).post(message)
        elif where == "modern":
            message = mcp.modern(mcp.tool("add", {"a": 1, "b": 2}, id=id_))
            answer = await setup.client.request("POST", "/mcp", mcp.modern_headers(message), mcp.body(message))
        elif where == "batch":
            version = ("mcp-protocol-version", "2025-03-26")
            answer = await post(setup, version, body=mcp.body([message]))
        else:
            answer = await post(setup, body=mcp.body(message))
        (found,) = answer.json() if where == "batch" and good else [answer.json()]
        assert (answer.status, found["id"]) == ((200, id_) if good else (400, None))
        assert len(answer.body) < 4000


@pytest.mark.parametrize("what", IDS)
async def test_a_progress_token_is_an_id_or_is_refused(what: str) -> None:
    token, good = IDS[what]
    async with running() as setup:
        talk = await Conversation.open(setup.client)
        answer = await talk.post(mcp.tool("count", {"steps": 2}, id=5, token=token))
        if good:
            progress = [event.json() for event in answer.events() if event.data and "progress" in event.data]
            assert {one["params"]["progressToken"] for one in progress} == {token}
        else:
            assert (answer.status, answer.json()["id"]) == (400, 5)
            assert "progressToken" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("length", "status"), [(LONGEST_METHOD, 404), (LONGEST_METHOD + 1, 400), (2**20, 400)])
async def test_a_method_has_a_bound(length: int, status: int) -> None:
    async with running() as setup:
        message = mcp.modern(mcp.request("m" * length))
        headers = [*mcp.headers(), ("mcp-protocol-version", "2026-07-28"), ("mcp-method", "m" * min(length, 300))]
        answer = await setup.client.request("POST", "/mcp", headers, mcp.body(message))
        assert answer.status == status
        notified = await post(setup, body=mcp.body(mcp.notification("m" * length)))
        assert notified.status == (202 if length <= LONGEST_METHOD else 400)


# What is as good as nothing


@pytest.mark.parametrize("mode", ["hybrid", "stateless", "stateful"])
@pytest.mark.parametrize("empty", ["", " ", "\t "])
async def test_an_empty_session_id_counts_as_none(mode: str, empty: str) -> None:
    async with running(mode=mode) as setup:
        for verb in ("POST", "GET", "DELETE"):
            headers = mcp.headers(None, None) if verb == "POST" else [("accept", "text/event-stream")]
            body = PING if verb == "POST" else b""
            without = await setup.client.request(verb, "/mcp", headers, body)
            with_it = await setup.client.request(verb, "/mcp", [*headers, ("mcp-session-id", empty)], body)
            assert (with_it.status, with_it.body) == (without.status, without.body)
            assert with_it.header("mcp-hybrid-route") == without.header("mcp-hybrid-route")


@pytest.mark.parametrize("first", [True, False])
async def test_an_empty_session_id_beside_another_is_a_duplicate(first: bool) -> None:
    async with running() as setup:
        talk = await Conversation.open(setup.client)
        both = [("mcp-session-id", ""), ("mcp-session-id", talk.session)]
        answer = await post(setup, *(both if first else both[::-1]))
        assert answer.json()["error"]["message"] == "The header mcp-session-id was sent more than once."


async def test_an_empty_event_id_counts_as_none() -> None:
    async with running() as setup:
        talk = await Conversation.open(setup.client)
        async with talk.get("") as stream:
            assert (await stream.started())[0] == 200


# How a body is written


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"\xef\xbb\xbf" + PING, 200, id="UTF-8 with its mark"),
        pytest.param(b"\xef\xbb\xbf\xef\xbb\xbf" + PING, 400, id="two marks"),
        pytest.param(PING + b"\xef\xbb\xbf", 400, id="a mark behind it"),
        pytest.param(b"\xef\xbb\xbf", 400, id="a mark alone"),
        pytest.param(PING.decode().encode("utf-16"), 400, id="UTF-16"),
        pytest.param(b"\xef\xbb\xbf[" + PING + b"]", 200, id="a batch"),
    ],
)
async def test_a_mark_before_the_json_is_passed_over(body: bytes, status: int) -> None:
    async with running() as setup:
        assert (await post(setup, ("mcp-protocol-version", "2025-03-26"), body=body)).status == status


@pytest.mark.parametrize(
    ("encodings", "status"),
    [
        (["identity"], 200), (["Identity"], 200), ([""], 200), (["identity, identity"], 200), (["gzip"], 415),
        (["br"], 415), (["deflate"], 415), (["zstd"], 415), (["identity, gzip"], 415), (["identity", "gzip"], 415),
        (["gzip", "identity"], 415), (["x" * 5000], 415),
    ],
)  # fmt: skip
async def test_a_body_that_is_encoded_is_415_with_what_would_do(encodings: list[str], status: int) -> None:
    async with running() as setup:
        answer = await post(setup, *[("content-encoding", one) for one in encodings])
        assert answer.status == status
        if status == 415:
            assert answer.header("accept-encoding") == "identity"
            assert "Content-Encoding" in answer.json()["error"]["message"]


async def test_a_body_of_another_type_is_415_without_it() -> None:
    async with running() as setup:
        headers = mcp.headers(content_type="text/plain")
        answer = await setup.client.request("POST", "/mcp", headers, PING)
        assert (answer.status, answer.header("accept-encoding")) == (415, None)


def test_an_encoding_is_judged_before_the_body_is_read() -> None:
    fault = check_post(Head("POST", content_type="application/json", content_encoding="gzip"), 10)
    assert isinstance(fault, Fault)
    assert fault.cause is Cause.UNSUPPORTED_MEDIA_TYPE
