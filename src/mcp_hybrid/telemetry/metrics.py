"""The metrics: which there are, and the object that counts them as things happen.

One table says what each `Count` of the rooms below is called. With one process an application has figures of its own;
with several, each adds to files of its own in a directory that all of them see, and whichever worker is asked adds the
files up (`telemetry.directory`).

What a request costs here was measured: about 5 us, with several workers two to three times that.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from anyio import to_thread
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from mcp_hybrid.counts import Count, Counts
from mcp_hybrid.errors import Cause
from mcp_hybrid.routing.table import RouteName
from mcp_hybrid.telemetry.directory import VARIABLE, forget_the_gone

PREFIX: Final = "mcp_hybrid_"

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"

OPERATOR: Final = "operator"
"""The route of the operator's own pages."""
NO_ROUTE: Final = "none"
"""The route of requests that were refused before they had one."""
OTHER: Final = "other"
"""Stands for methods that are unknown here: their number is up to strangers."""
GONE: Final = "gone"
"""The status of a request whose client left before there was one."""

DURATIONS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
LATENCIES: Final = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)

_SHARED: Final = values.ValueClass is not values.MutexValue
"""Whether prometheus-client found a directory to share when it was imported."""


class _Family(NamedTuple):
    """A metric that is moved by the rooms below, with the label value that each of its counts has."""

    name: str
    help: str
    counts: Mapping[Count, str]
    label: str = ""
    """Empty where there is one count only."""
    goes_down: bool = False


_FAMILIES: Final = (
    _Family("sessions_offered", "Session ids that were sent to clients", {Count.OFFERED: ""}),
    _Family("sessions_claimed", "Sessions whose client confirmed the handshake with the id", {Count.CLAIMED: ""}),
    _Family(
        "sessions_brought_back",
        "Times that a session was made live again: after it hibernated, a restart, or on another worker",
        {Count.BROUGHT_BACK: ""},
    ),
    _Family("sessions_hibernated", "Times that a session gave its memory back", {Count.HIBERNATED: ""}),
    _Family(
        "sessions_ended",
        "Sessions that ended",
        {Count.DELETED: "deleted", Count.EXPIRED: "expired", Count.ENDED_BY_OPERATOR: "operator"},
        "cause",
    ),
    _Family("sessions_live", "Sessions that hold memory now", {Count.SESSIONS_NOW: ""}, goes_down=True),
    _Family("calls_in_flight", "Requests that are being answered now", {Count.CALLS_NOW: ""}, goes_down=True),
    _Family(
        "streams_open",
        "Event streams that are open now",
        {Count.POST_STREAMS_NOW: "POST", Count.GET_STREAMS_NOW: "GET"},
        "http",
        goes_down=True,
    ),
    _Family(
        "calls_abandoned",
        "Calls that were answered at their limit, or when they were cancelled, while their function ran on",
        {Count.CALLS_ABANDONED: ""},
    ),
    _Family(
        "abandoned_threads",
        "Threads that tools of abandoned calls hold now",
        {Count.ABANDONED_THREADS_NOW: ""},
        goes_down=True,
    ),
    _Family("progress_sent", "Progress values that were sent", {Count.PROGRESS_SENT: ""}),
    _Family(
        "progress_coalesced",
        "Progress values that gave way to a newer one, as the client read slowly",
        {Count.PROGRESS_COALESCED: ""},
    ),
    _Family(
        "progress_withheld",
        "Requests that asked for progress and did not get any, by the policy or their own Accept",
        {Count.PROGRESS_WITHHELD: ""},
    ),
    _Family(
        "messages_dropped",
        "Messages for GET streams that were dropped, as the client read too slowly",
        {Count.MESSAGES_DROPPED: ""},
    ),
    _Family(
        "connections_closed",
        "Connections that were closed for a limit",
        {
            Count.CONNECTIONS_TURNED_AWAY: "connections",
            Count.CONNECTIONS_NOT_READ: "write_time",
            Count.CONNECTIONS_RESETTING: "resets",
        },
        "limit",
    ),
    _Family(
        "log_lines_dropped",
        "Lines of the log that were dropped, as nobody read those before them",
        {Count.LOG_LINES_DROPPED: ""},
    ),
)

_Add = Callable[[float], None]


class Metrics(Counts):
    """Everything that is counted, for one application or, with a shared directory, for one process."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = CollectorRegistry()
        self._adds: dict[Count, _Add] = {}
        self._levels: list[Gauge] = []
        for family in _FAMILIES:
            self._define(family)
        self._requests = self._counter("requests", "HTTP requests that were answered", ("route", "method", "status"))
        self._refused = self._counter("refused", "Requests that were refused", ("cause",))
        self._durations = self._histogram(
            "request_duration_seconds", "Time to the end of the answer, without streams of GET", ("route",), DURATIONS
        )
        self._operations = self._histogram(
            "backplane_operation_seconds", "Time of one operation on a shared backplane", ("operation",), LATENCIES
        )
        self._failures = self._counter(
            "backplane_failures", "Operations that a shared backplane could not do", ("operation",)
        )
        self._available = self._gauge(
            "backplane_available", "Whether every worker can reach the backplane", mode="livemin"
        )
        self._workers = self._gauge("workers", "Processes that serve the endpoint")
        self._build = self._gauge("build_info", "Versions in use", ("version", "mcp", "python"), mode="livemax")
        for cause in Cause:
            self._refused.labels(cause.label)
        for route in (*RouteName, OPERATOR, NO_ROUTE):
            self._durations.labels(route)
        self._observers: dict[tuple[str, str, int | None], tuple[_Add, _Add]] = {}

    # ---- what happens

    def start(self) -> None:
        """Note that this process serves. With nothing going on yet: another may have had its number before."""
        for level in self._levels:
            level.set(0)
        self._workers.set(1)
        self._available.set(1)
        self._build.labels(*_versions()).set(1)

    def stop(self) -> None:
        """Note that this process serves no more."""
        self._workers.set(0)

    def add(self, what: Count, amount: int = 1) -> None:
        """Note that something happened, or that there is more or less of it."""
        super().add(what, amount)
        self._adds[what](amount)

    def request(self, route: str, method: str, status: int | None, seconds: float, *, timed: bool) -> None:
        """Note an answered request. The caller bounds what may stand for route and method."""
        key = (route, method, status)
        observers = self._observers.get(key)
        if observers is None:
            counter = self._requests.labels(route, method, GONE if status is None else status)
            observers = self._observers[key] = (counter.inc, self._durations.labels(route).observe)
        count, observe = observers
        count(1)
        if timed:
            observe(seconds)

    def refused(self, cause: Cause) -> None:
        """Note a refusal."""
        self._refused.labels(cause.label).inc()

    def operation(self, name: str, seconds: float) -> None:
        """Note an operation on the backplane."""
        self._operations.labels(name).observe(seconds)

    def failure(self, name: str) -> None:
        """Note an operation that the backplane could not do."""
        self._failures.labels(name).inc()

    def expect(self, operation: str) -> None:
        """Show an operation on the backplane before it has happened for the first time."""
        self._operations.labels(operation)
        self._failures.labels(operation)

    def available(self, *, available: bool) -> None:
        """Note whether the backplane can be reached."""
        self._available.set(available)

    # ---- what is shown

    async def page(self) -> bytes:
        """Return all figures in Prometheus' text format, those of the other workers included.

        With them come the figures that the served application keeps with prometheus-client itself; and, with one
        process, those of the process.
        """
        if _SHARED:
            return await to_thread.run_sync(_added_up)  # it reads files, milliseconds for each worker
        return generate_latest(_WithoutCreated(self.registry)) + generate_latest(REGISTRY)

    # ---- pieces

    def _define(self, family: _Family) -> None:
        labels = (family.label,) if family.label else ()
        metric: Any = (self._gauge if family.goes_down else self._counter)(family.name, family.help, labels)
        for count, value in family.counts.items():
            child = metric.labels(value) if family.label else metric
            self._adds[count] = child.inc
            if family.goes_down:
                self._levels.append(child)

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Iterable[str] = (), mode: Any = "livesum") -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self.registry, multiprocess_mode=mode)

    def _histogram(self, name: str, text: str, labels: Iterable[str], buckets: Iterable[float]) -> Histogram:
        return Histogram(PREFIX + name, text, labels, registry=self.registry, buckets=tuple(buckets))


class _WithoutCreated(Collector):
    """A registry without the times at which its counters were made: files that are added up have none either."""

    def __init__(self, inner: CollectorRegistry) -> None:
        self._inner = inner

    def collect(self) -> Iterable[Metric]:
        for metric in self._inner.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


@cache
def _versions() -> tuple[str, str, str]:
    """Return the versions that the build metric has. Each is read from a file, which a process needs to do once."""
    return version("mcp-hybrid"), version("mcp"), platform.python_version()


def make_metrics() -> Metrics:
    """Return what an application counts with: figures of its own, or the process's where processes share them.

    Two objects that write one file would overwrite each other's figures, so there is one for a process then.
    """
    return _of_this_process() if _SHARED else Metrics()


def _added_up() -> bytes:
    folder = os.environ[VARIABLE]
    forget_the_gone(folder)
    together = CollectorRegistry()
    MultiProcessCollector(together, folder)  # type: ignore[no-untyped-call]  # the library's
    return generate_latest(together)


@cache
def _of_this_process() -> Metrics:
    Path(os.environ[VARIABLE]).mkdir(parents=True, exist_ok=True)
    return Metrics()
