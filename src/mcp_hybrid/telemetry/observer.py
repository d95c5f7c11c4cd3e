"""What is told of every request, in one place: its log line, its metrics, and its span where there is tracing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import structlog
from mcp.server.lowlevel.server import Server
from starlette.types import Scope

from mcp_hybrid.counts import Count
from mcp_hybrid.routing.head import Head
from mcp_hybrid.routing.message import Batch, Message, Notification, Request
from mcp_hybrid.telemetry.labels import Labels, calls_in, is_timed
from mcp_hybrid.telemetry.metrics import NO_ROUTE, Metrics
from mcp_hybrid.telemetry.tracing import RequestSpan, Tracing, make_tracing
from mcp_hybrid.text import short

log = structlog.get_logger("mcp_hybrid")


class Visit(Protocol):
    """One HTTP request, as far as anything is told of it."""

    scope: Scope
    head: Head
    started: float
    """`time.perf_counter()` at its first byte."""
    status: int | None
    owner: Any
    message: Message | Batch | None
    session: str | None
    route: str | None
    page: str | None
    """The operator's page that was asked for, if it was one."""
    span: RequestSpan | None
    facts: dict[str, Any]


class Observer:
    """Tells of the requests of one application."""

    def __init__(self, server: Server[Any], metrics: Metrics, path: str) -> None:
        """Tell of requests to `server`, whose endpoint is at `path`."""
        self._metrics = metrics
        self._labels = Labels(server)
        self._path = path
        self._tracing: Tracing | None = None

    def start(self) -> None:
        """Note that the application runs. Whether there is tracing is settled here."""
        self._metrics.start()
        self._tracing = make_tracing(self._path)

    @property
    def traced(self) -> bool:
        """Whether anybody takes spans."""
        return self._tracing is not None

    def stop(self) -> None:
        """Note that the application has ended."""
        self._metrics.stop()

    def begin(self, visit: Visit) -> None:
        """Note that a request is being served from now on, by this task and those it starts."""
        message = visit.message
        if calls := calls_in(message):
            self._metrics.add(Count.CALLS_NOW, calls)
        if self._tracing is not None:
            params = message.params if isinstance(message, Request | Notification) else None
            visit.span = self._tracing.begin(visit.scope, params, visit.started)
            visit.span.enter()

    def end(self, visit: Visit) -> None:
        """Note that it no longer is. Called in the task that began."""
        if calls := calls_in(visit.message):
            self._metrics.add(Count.CALLS_NOW, -calls)
        if visit.span is not None:
            visit.span.leave()

    def finish(self, visit: Visit) -> None:
        """Tell of a request that is over, refused or served."""
        seconds = time.perf_counter() - visit.started
        _write_line(visit, seconds)
        http, message = visit.head.method, visit.message
        method = visit.page or self._labels.method(http, message)
        timed = visit.page is not None or is_timed(http, message)
        self._metrics.request(visit.route or NO_ROUTE, method, visit.status, seconds, timed=timed)
        if self._tracing is not None and visit.page is None:
            span = visit.span or self._tracing.begin(visit.scope, None, visit.started)
            span.end(visit.status, visit.facts.get("refused"), _attributes(visit, method))


def method_of(message: Message | Batch | None) -> str | None:
    """Return a message's method for a log line, or what it is where it has none."""
    if isinstance(message, Request | Notification):
        return short(message.method)
    return type(message).__name__.lower() if message is not None else None


def _attributes(visit: Visit, method: str) -> Mapping[str, str | None]:
    return {
        "mcp.method.name": method if visit.message is not None else None,
        "mcp_hybrid.route": visit.route,
        "mcp_hybrid.session": visit.session,
    }


def _write_line(visit: Visit, seconds: float) -> None:
    """Write the one line of a request. Nothing of its arguments, and of its session only a hash."""
    message = visit.message
    line = {
        "http": short(visit.head.method),
        "method": method_of(message),
        "page": visit.page,
        "tool": short(message.name or "") or None
        if isinstance(message, Request) and message.method == "tools/call"
        else None,
        "route": visit.route,
        "status": visit.status,
        "session": visit.session,
        "owner": short(str(visit.owner)) if visit.owner is not None else None,
        **visit.facts,
    }
    # A probe every few seconds is not what the log is read for; one that is answered "no" is.
    write = log.debug if visit.page is not None and visit.status == 200 else log.info
    told = {key: value for key, value in line.items() if value is not None}
    write("request", duration_ms=round(seconds * 1000, 3), **told)
