"""OpenTelemetry: one server span for each HTTP request, where the process has an exporter.

The SDK makes a span for each MCP message (its method, the tool, what went wrong); this is the one around it, for what
the SDK cannot know: the route, the session, the HTTP status, and requests that never became a message. Spans that a
tool makes are inside the SDK's.

Only the API is used here. A process without an exporter has no `Tracing`, and its requests pay nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import Token
from importlib.metadata import version
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, Span, SpanKind, StatusCode, Tracer
from starlette.types import Scope

from mcp_hybrid.routing.gates import METHODS

_OTHER: Final = "_OTHER"
"""What OpenTelemetry's conventions call an HTTP method that is none of the known ones."""


class Tracing:
    """Makes the spans of one application."""

    def __init__(self, tracer: Tracer, path: str) -> None:
        """Make spans by `tracer`, for an endpoint at `path`."""
        self._tracer = tracer
        self._path = path

    def begin(self, scope: Scope, params: Mapping[str, Any] | None, started: float) -> RequestSpan:
        """Begin the span of a request that came at `started` (`time.perf_counter()`)."""
        method = scope["method"] if scope["method"] in METHODS else _OTHER
        before = int((time.perf_counter() - started) * 1e9)
        span = self._tracer.start_span(
            f"{'HTTP' if method is _OTHER else method} {self._path}",
            context=_parent(scope, params),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "http.route": self._path,
                "network.protocol.version": scope.get("http_version", "1.1"),
            },
            start_time=time.time_ns() - before,
        )
        return RequestSpan(span)


class RequestSpan:
    """The span of one request that is under way."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token: Token[Context] | None = None

    def enter(self) -> None:
        """Make it the parent of what this task and those it starts make from now on."""
        self._token = contexts.attach(trace.set_span_in_context(self._span))

    def leave(self) -> None:
        """Make it the parent of nothing more. Called in the task that entered."""
        if self._token is not None:
            contexts.detach(self._token)
            self._token = None

    def end(self, status: int | None, error: str | None, facts: Mapping[str, str | None]) -> None:
        """End it. Only a fault of this server's makes it an error (OpenTelemetry's conventions for HTTP servers)."""
        span = self._span
        if span.is_recording():
            span.set_attributes({name: value for name, value in facts.items() if value is not None})
            if status is not None:
                span.set_attribute("http.response.status_code", status)
            if error is not None:
                span.set_attribute("error.type", error)
            if status is not None and status >= 500:
                span.set_status(StatusCode.ERROR)
        span.end()


def make_tracing(path: str) -> Tracing | None:
    """Return what makes spans, or None where the process has nobody to give them to.

    To be asked when the application starts to run: who wants spans has configured OpenTelemetry by then, at the latest
    in the server's own lifespan.
    """
    provider = trace.get_tracer_provider()
    if isinstance(provider, ProxyTracerProvider | NoOpTracerProvider):
        return None
    return Tracing(provider.get_tracer("mcp_hybrid", version("mcp-hybrid")), path)


def _parent(scope: Scope, params: Mapping[str, Any] | None) -> Context | None:
    """Return the client's span: from the headers (W3C Trace Context), else from the message's `_meta` (SEP-414)."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    if (context := _extract(headers)) is not None:
        return context
    meta = (params or {}).get("_meta")
    if not isinstance(meta, Mapping):
        return None
    return _extract({name: value for name, value in meta.items() if isinstance(name, str) and isinstance(value, str)})


def _extract(carrier: Mapping[str, str]) -> Context | None:
    context = extract(carrier)
    return context if trace.get_current_span(context).get_span_context().is_valid else None
