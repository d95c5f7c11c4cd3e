"""What the servers are given to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from comparing.plans import ADD, NUMBER, SUM, Plan, call, plan, progress_of
from harness import mcp

VALUES = 10
"""Values of progress in one call."""
LISTED = 100
"""Tools in a list."""


class Can(Enum):
    """What a workload asks of a server."""

    HELLO = auto()
    """Answer a POST."""
    STATELESS = auto()
    """Serve requests that belong to no session."""
    SESSION = auto()
    """Serve requests in a session."""
    SESSION_PROGRESS = auto()
    """Send progress in a session."""
    MODERN = auto()
    """Serve 2026-07-28."""
    MODERN_PROGRESS = auto()
    """Send progress at 2026-07-28."""
    MCP = auto()
    """Serve MCP at all, in sessions or without."""
    BROADCAST = auto()
    """Send messages on a session's standalone stream."""
    FLOOD = auto()
    """Bear sessions without number that nobody comes back to."""


class Kind(Enum):
    """How a workload is measured."""

    LOAD = auto()
    """Requests on a few connections, as many as the server answers."""
    BROADCAST = auto()
    """Many open streams on which a message is sent."""
    MEMORY = auto()
    """Many sessions, one after another."""
    FLOOD = auto()
    """Many sessions that nobody comes back to."""


Planner = Callable[[Sequence[str]], Plan]
"""Makes a plan for some sessions; for none if there are none."""


@dataclass(frozen=True)
class Workload:
    """One kind of work."""

    name: str
    title: str
    needs: Can
    kind: Kind = Kind.LOAD
    plan: Planner | None = None
    """What is sent, for loads."""
    tools: int = 0
    """Tools that the server has beside the usual ones."""
    longest: float | None = None
    """Seconds that it may be measured for at most."""

    @property
    def kernel(self) -> str:
        """The workload whose cost to the SDK's kernel is this one's, too: to it a session makes no difference."""
        return CALL.name if self is SESSION_CALL else self.name

    def planned(self, sessions: Sequence[str]) -> Plan:
        """Return what is sent in these sessions, or outside of any where there are none."""
        assert self.plan is not None, f"{self.name} is no load"
        return self.plan(sessions)


def _add(sessions: Sequence[str]) -> Plan:
    return plan(call("add", ADD), {SUM: 1}, sessions=sessions)


def _add_sync(sessions: Sequence[str]) -> Plan:
    return plan(call("add_sync", ADD), {SUM: 1}, sessions=sessions)


def reporting(values: int) -> Planner:
    """Return what plans calls that report so many values of progress."""

    def planner(sessions: Sequence[str]) -> Plan:
        return plan(call("progress", {"n": values}, progress=True), progress_of(values), sessions=sessions)

    return planner


def _modern(_: Sequence[str]) -> Plan:
    return plan(call("add", ADD), {SUM: 1}, modern=True)


def _modern_progress(_: Sequence[str]) -> Plan:
    return plan(call("progress", {"n": VALUES}, progress=True), progress_of(VALUES), modern=True)


def _initialize(_: Sequence[str]) -> Plan:
    expected = {f'"protocolVersion":"{mcp.LEGACY}"': 1, '"serverInfo"': 1}
    return plan(mcp.initialize(id=NUMBER), expected)


def _list(sessions: Sequence[str]) -> Plan:
    return plan(mcp.request("tools/list", id=NUMBER), {'"name":"tool_': LISTED}, sessions=sessions)


CALL = Workload("call", "tools/call without a session", Can.STATELESS, plan=_add)
HELLO = Workload("floor", "a POST that is answered with a constant", Can.HELLO, plan=_add)
SESSION_CALL = Workload("session-call", "tools/call in a session", Can.SESSION, plan=_add)
SESSION_PROGRESS = Workload(
    "session-progress",
    f"tools/call in a session, with {VALUES} progress values",
    Can.SESSION_PROGRESS,
    plan=reporting(VALUES),
)
MODERN_CALL = Workload("modern-call", "tools/call at 2026-07-28", Can.MODERN, plan=_modern)
MODERN_PROGRESS = Workload(
    "modern-progress",
    f"tools/call at 2026-07-28, with {VALUES} progress values",
    Can.MODERN_PROGRESS,
    plan=_modern_progress,
)
# A peer that holds a session for each `initialize` refuses the next after 10 000.
INITIALIZE = Workload("initialize", "initialize", Can.MCP, plan=_initialize, longest=4.0)
LIST = Workload("tools-list", f"tools/list with {LISTED} tools", Can.MCP, plan=_list, tools=LISTED)
SYNC = Workload("sync-call", "tools/call of a tool that is not async", Can.MCP, plan=_add_sync)
BROADCAST = Workload("broadcast", "a message to many open GET streams", Can.BROADCAST, Kind.BROADCAST)
MEMORY = Workload("memory", "memory for each live session", Can.SESSION, Kind.MEMORY)
FLOOD = Workload("flood", "initialize without an echo", Can.FLOOD, Kind.FLOOD, plan=_initialize)

WORKLOADS = (
    HELLO,
    CALL,
    SESSION_CALL,
    SESSION_PROGRESS,
    MODERN_CALL,
    MODERN_PROGRESS,
    INITIALIZE,
    LIST,
    SYNC,
    BROADCAST,
    MEMORY,
    FLOOD,
)
