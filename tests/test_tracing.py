"""Spans, where the process has an exporter: around each request, in the client's trace, around what tools do."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode

from harness import mcp
from harness.hybrid import running
from harness.spans import provider, recorded_spans
from mcp_hybrid.telemetry import tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"

spans = recorded_spans


def named(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    return found


def parent_of(span: ReadableSpan) -> str | None:
    return format(span.parent.span_id, "016x") if span.parent is not None else None


def id_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return format(context.span_id, "016x")


def trace_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return format(context.trace_id, "032x")


def traced_server() -> MCPServer[None]:
    """Give a server whose tool makes spans, also in a task of its own."""
    server: MCPServer[None] = MCPServer("traced")
    own = trace.get_tracer("tool")

    @server.tool()
    async def work(ctx: Context) -> str:
        async def aside() -> None:
            with own.start_as_current_span("aside"):
                await anyio.lowlevel.checkpoint()

        with own.start_as_current_span("inside"):
            await ctx.report_progress(1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(aside)
        return "done"

    return server


async def test_a_request_is_one_span_with_its_route_session_and_status(spans: InMemorySpanExporter) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        (live,) = setup.registry.sessions()
        spans.clear()
        await talk.post(mcp.tool("add", {"a": 1, "b": 2}))
    span = named(spans, "POST /mcp")
    assert span.kind is SpanKind.SERVER
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/mcp",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "mcp.method.name": "tools/call",
        "mcp_hybrid.route": "session",
        "mcp_hybrid.session": live.hash[:12],
    }
    assert span.status.status_code is StatusCode.UNSET
    assert span.parent is None
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time < span.end_time


async def test_the_sdks_span_and_those_of_the_tool_are_inside(spans: InMemorySpanExporter) -> None:
    async with running(server=traced_server()) as setup:
        talk = await mcp.Conversation.open(setup.client)
        spans.clear()
        await talk.post(mcp.tool("work", token=1))
    request, message = named(spans, "POST /mcp"), named(spans, "tools/call work")
    inside, aside = named(spans, "inside"), named(spans, "aside")
    assert [parent_of(each) for each in (message, inside, aside)] == [id_of(request), id_of(message), id_of(inside)]
    assert len(spans.get_finished_spans()) == 4


async def test_two_calls_at_once_are_two_traces(spans: InMemorySpanExporter) -> None:
    async with running(server=traced_server()) as setup:
        talk = await mcp.Conversation.open(setup.client)
        spans.clear()
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(talk.post, mcp.tool("work", id=number))
    found = spans.get_finished_spans()
    assert len({trace_of(each) for each in found}) == 5
    assert len(found) == 5 * 4


@pytest.mark.parametrize("where", ["header", "meta", "both"])
async def test_a_request_belongs_to_its_clients_trace(where: str, spans: InMemorySpanExporter) -> None:
    message = mcp.request("ping")
    extra = [("traceparent", TRACEPARENT)] if where != "meta" else []
    if where == "meta":
        message["params"] = {"_meta": {"traceparent": TRACEPARENT}}
    elif where == "both":
        message["params"] = {"_meta": {"traceparent": TRACEPARENT.replace(PARENT, "00f067aa0ba902b7")}}
    async with running() as setup:
        await setup.client.request("POST", "/mcp", mcp.headers(None, None, *extra), mcp.body(message))
    span = named(spans, "POST /mcp")
    assert (trace_of(span), parent_of(span)) == (TRACE, PARENT)


@pytest.mark.parametrize(
    "sent",
    ["nonsense", "00-" + "0" * 32 + "-" + PARENT + "-01", "", "\xff" * 55],
    ids=["words", "zero", "empty", "bytes"],
)
async def test_a_traceparent_that_is_none_is_passed_over(sent: str, spans: InMemorySpanExporter) -> None:
    message = mcp.request("ping", {"_meta": {"traceparent": 7, "tracestate": ["x"]}})
    async with running() as setup:
        answer = await setup.client.request(
            "POST", "/mcp", mcp.headers(None, None, ("traceparent", sent)), mcp.body(message)
        )
    assert answer.status == 200
    assert named(spans, "POST /mcp").parent is None


async def test_a_refused_request_has_a_span_that_says_why(spans: InMemorySpanExporter) -> None:
    async with running() as setup:
        headers = mcp.headers("made-up", None, ("traceparent", TRACEPARENT))
        await setup.client.request("POST", "/mcp", headers, mcp.body(mcp.request("ping")))
    span = named(spans, "POST /mcp")
    attributes: Any = span.attributes
    assert (attributes["http.response.status_code"], attributes["error.type"]) == (404, "session_unknown")
    assert span.status.status_code is StatusCode.UNSET  # the client's fault
    assert parent_of(span) == PARENT


async def test_a_fault_of_the_servers_is_an_error(spans: InMemorySpanExporter) -> None:
    async with running(sessions={"max_live": 1}) as setup:
        first, second = [await mcp.Conversation.open(setup.client) for _ in range(2)]
        async with first.stream(mcp.tool("wait")):
            await setup.example.until_started("wait")
            spans.clear()
            assert (await second.post(mcp.request("ping"))).status == 503
            span = named(spans, "POST /mcp")
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "server_busy"


async def test_a_method_that_was_made_up_makes_no_name(spans: InMemorySpanExporter) -> None:
    async with running() as setup:
        await setup.client.request("MADE-UP", "/mcp")
    span = named(spans, "HTTP /mcp")
    assert (span.attributes or {})["http.request.method"] == "_OTHER"


async def test_the_operators_pages_make_no_spans(spans: InMemorySpanExporter) -> None:
    async with running() as setup:
        await setup.client.request("GET", "/readyz")
    assert spans.get_finished_spans() == ()


async def test_no_secret_is_in_a_span(spans: InMemorySpanExporter) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        await talk.post(mcp.tool("add", {"a": 1234567, "b": 2}), ("authorization", "Bearer secret"))
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert talk.session not in told
    assert "1234567" not in told
    assert "secret" not in told


def test_without_an_exporter_there_is_no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.delenv("OTEL_PYTHON_TRACER_PROVIDER", raising=False)
    assert tracing.make_tracing("/mcp") is None
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", NoOpTracerProvider())
    assert tracing.make_tracing("/mcp") is None
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    assert tracing.make_tracing("/mcp") is not None
