"""What a served program sees of a request: the headers that its route has read, and no one else's session."""

from __future__ import annotations

from typing import Any

import pytest
from fastmcp import Context as FastContext
from fastmcp import FastMCP
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from harness import mcp
from harness.hybrid import Setup, running
from harness.mcp import Conversation
from harness.spans import recorded_spans
from mcp_hybrid.sessions.registry import hash_of

ROUTING = ("mcp-session-id", "last-event-id", "mcp-method", "mcp-name")
SENT = [("last-event-id", "s.1-1"), ("mcp-method", "tools/call"), ("mcp-name", "headers"), ("x-own", "kept")]


def server() -> MCPServer[None]:
    program: MCPServer[None] = MCPServer("headers")

    @program.tool()
    async def headers(ctx: Context) -> dict[str, str]:
        request: Any = ctx.request_context.request
        seen = {name: request.headers[name] for name in (*ROUTING, "x-own") if name in request.headers}
        raw = {name.decode(): value.decode() for name, value in request.scope["headers"]}
        assert seen == {name: raw[name] for name in (*ROUTING, "x-own") if name in raw}
        assert dict(ctx.headers or {}).get("mcp-session-id") == seen.get("mcp-session-id")
        return seen

    return program


def seen(answer: Any) -> dict[str, str]:
    result: dict[str, str] = answer.json()["result"]["structuredContent"]
    return result


async def alone(setup: Setup, session: str | None, message: Any) -> Any:
    return await setup.client.request("POST", "/mcp", mcp.headers(session, None, *SENT), mcp.body(message))


async def modern(setup: Setup, session: str, message: Any) -> Any:
    sent = mcp.modern_headers(message, ("mcp-session-id", session), ("last-event-id", "s.1-1"), ("x-own", "kept"))
    return await setup.client.request("POST", "/mcp", sent, mcp.body(mcp.modern(message)))


async def test_in_a_session_the_header_is_the_validated_id() -> None:
    async with running(server=server()) as setup:
        conversation = await Conversation.open(setup.client)
        answer = await conversation.post(mcp.tool("headers"), *SENT)
        assert seen(answer) == {"mcp-session-id": conversation.session, "x-own": "kept"}


@pytest.mark.parametrize("own", [True, False], ids=["a session's", "made up"])
async def test_a_modern_request_shows_no_session_id(own: bool) -> None:
    async with running(server=server()) as setup:
        session = (await Conversation.open(setup.client)).session if own else "made-up"
        answer = await modern(setup, session, mcp.tool("headers"))
        assert seen(answer) == {"mcp-method": "tools/call", "mcp-name": "headers", "x-own": "kept"}


async def test_a_stateless_server_shows_no_session_id() -> None:
    async with running(server=server(), mode="stateless") as setup:
        assert seen(await alone(setup, "made-up", mcp.tool("headers"))) == {"x-own": "kept"}


async def test_an_overlooked_session_id_is_not_shown() -> None:
    async with running(server=server(), unknown_session="stateless") as setup:
        assert seen(await alone(setup, "made-up", mcp.tool("headers"))) == {"x-own": "kept"}


async def test_a_batch_without_a_session_shows_no_session_id() -> None:
    async with running(server=server(), mode="stateless") as setup:
        sent = mcp.headers("made-up", "2025-03-26", *SENT)
        body = mcp.body(mcp.batch(mcp.tool("headers"), mcp.tool("headers", id=2)))
        answer = await setup.client.request("POST", "/mcp", sent, body)
        assert [part["result"]["structuredContent"] for part in answer.json()] == [{"x-own": "kept"}] * 2


# FastMCP


def remembering() -> FastMCP[None]:
    program: FastMCP[None] = FastMCP("remembering")

    @program.tool
    async def remember(ctx: FastContext, value: str) -> str:
        await ctx.set_state("secret", value)
        return ctx.session_id

    @program.tool
    async def recall(ctx: FastContext) -> str:
        return str(await ctx.get_state("secret"))

    return program


def text(answer: Any) -> str:
    message = answer.json() if answer.header("content-type") == "application/json" else answer.events()[-1].json()
    said: str = message["result"]["content"][0]["text"]
    return said


async def test_fastmcps_state_of_a_session_is_out_of_reach_elsewhere() -> None:
    async with running(server=remembering()) as setup:
        conversation = await Conversation.open(setup.client)
        await conversation.post(mcp.tool("remember", {"value": "mine"}))
        for session in (conversation.session, hash_of(conversation.session)):
            assert text(await modern(setup, session, mcp.tool("recall"))) == "None"
            await modern(setup, session, mcp.tool("remember", {"value": "yours"}))
        assert text(await conversation.post(mcp.tool("recall"))) == "mine"


async def test_fastmcps_state_of_a_session_outlives_hibernation(autojump_clock: object) -> None:
    async with running(server=remembering()) as setup:
        conversation = await Conversation.open(setup.client)
        await conversation.post(mcp.tool("remember", {"value": "mine"}))
        await setup.registry.close()
        assert text(await conversation.post(mcp.tool("recall"))) == "mine"


spans = recorded_spans


def everything_in(span: ReadableSpan) -> str:
    events = [(event.name, dict(event.attributes or {})) for event in span.events]
    return repr((span.name, dict(span.attributes or {}), events, span.status.description))


@pytest.mark.parametrize("program", [remembering, server], ids=["FastMCP", "MCPServer"])
async def test_no_span_has_a_session_id(program: Any, spans: InMemorySpanExporter) -> None:
    async with running(server=program()) as setup:
        conversation = await Conversation.open(setup.client)
        for message in (
            mcp.tool("remember", {"value": "x"}),
            mcp.tool("headers"),
            mcp.tool("unknown"),
            mcp.request("tools/list"),
            mcp.request("prompts/get", {"name": "unknown"}),
            mcp.request("resources/read", {"uri": "unknown://it"}),
        ):
            await conversation.post(message)
        await conversation.delete()
    found = [everything_in(span) for span in spans.get_finished_spans()]
    assert len(found) > 10
    assert not [each for each in found if conversation.session in each]
