"""The backplane protocol: revocations, event logs, signals and session state, wherever they are kept.

A *stream* is one SSE stream of one session: a call's answer, or the standalone GET stream. Its log is what a client
that lost the connection is replayed from. Entry ids grow within a log and are opaque to everybody else.

A *worker* is one process that serves the endpoint. A *signal* is a word from one worker to another: somebody's answer
to a question that was asked elsewhere, a cancellation, the end of a session.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

import anyio
from anyio.abc import TaskStatus


class StreamKey(NamedTuple):
    """Names a stream. The session is part of the name, so that no stream is ever read from another session (R5)."""

    session: str
    """The session's hash."""
    name: str


class Holder(NamedTuple):
    """Who serves a standalone stream."""

    worker: str
    name: str
    """What the worker calls the request that it is served by."""


class Entry(NamedTuple):
    """One entry of a stream's log."""

    id: str
    """`<log>-<number>`. The entries of a log are numbered from 1, so that a gap shows how many are missing."""
    data: bytes | None
    """A JSON-RPC message; empty for a priming event; None for the end of the stream."""


def number_of(entry_id: str) -> int:
    """Return the number of an entry within its log. The id must come from a backplane, not from a client."""
    return int(entry_id.rpartition("-")[2])


class SignalKind(StrEnum):
    """What a signal is about."""

    ANSWER = "answer"
    """The client's response to a question that was asked elsewhere; the body is the response."""
    PROGRESS = "progress"
    """The client's progress on such a question; the body is the notification's parameters."""
    CANCEL = "cancel"
    """A cancellation of a call that runs elsewhere; the body is the request id."""
    END = "end"
    """The session was ended."""
    CLOSE_STREAM = "close"
    """Another worker has taken the standalone stream over; the body is the name of the request that had it."""
    CHANGE = "change"
    """A server event for whoever listens (2026-07-28); the body is the event."""
    ROLL_CALL = "roll"
    """An operator wants to know which sessions are live; the body says whom to tell, and of which sessions."""
    PRESENT = "present"
    """The sessions that are live on one worker, for the one that asked."""


class Signal(NamedTuple):
    """A word from one worker to another."""

    kind: SignalKind
    session: str
    """The session's hash; empty where none is meant."""
    body: bytes = b""


Handler = Callable[[Signal], Awaitable[None]]
"""What a worker does about a signal. Must not raise."""


class UnknownEventError(Exception):
    """The id names no entry of this log: it never did, or the log is gone."""


class BackplaneUnavailableError(Exception):
    """The backplane cannot be reached, and without it this cannot be done truthfully."""


class StateTooLargeError(Exception):
    """A session's state would be larger than it may be."""


@dataclass(frozen=True, slots=True)
class LogLimits:
    """What the logs of streams may hold, and for how long. Sizes are in bytes, times in seconds."""

    events: int = 1000
    """Entries of one log that are no results. Beyond it, and beyond `bytes`, the oldest are dropped."""
    bytes: int = 1024 * 1024
    """Bytes of one log's entries that are no results."""
    result_bytes: int = 8 * 1024 * 1024
    """Bytes of one log's results, which are never dropped from it. The writer keeps to this bound."""
    total_bytes: int = 64 * 1024 * 1024
    """Bytes of all logs together, with what they take beside their messages: of one process in memory, of a whole
    deployment in Redis. Beyond it finished logs are evicted, those that were delivered first, then those used least
    recently; then the logs of running streams are cut down to their last entry."""
    age: float = 300.0
    """How long a log is kept after its last entry, unless somebody is reading it."""
    delivered_age: float = 10.0
    """The same for a finished log whose client was sent all of it: one that lost the last of it comes back soon."""


PAGE_BYTES: Final = 256 * 1024
"""Bytes of the entries that one `read` returns; a single entry may have more."""

MOST_ENDED: Final = 200_000
"""Ended sessions that are remembered one by one, where the settings say nothing else."""

STATE_LIMIT = 64 * 1024
"""Bytes of JSON that a session's state may have in all."""


class Backplane(Protocol):
    """What the workers of one deployment share. Every method may do I/O, and may be cancelled while it does.

    Raises:
        BackplaneUnavailableError: From any method that says nothing else about a backplane that is away.
    """

    worker: str
    """This worker's name, unlike any other's and any earlier one's."""
    limits: LogLimits
    shared: bool
    """Whether other workers may be there. If not, no signal can have anybody to reach."""

    @property
    def available(self) -> bool:
        """Whether it could be reached when it was last needed."""
        ...

    async def run(self, handler: Handler, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep this worker known and hand it its signals, until cancelled. Outlives every failure of the backplane.

        Everything else may be called once `task_status` says that this has started.
        """
        ...

    async def workers(self) -> list[str]:
        """Return the names of the workers that showed signs of life lately, this one among them."""
        ...

    async def send(self, worker: str, signal: Signal) -> None:
        """Say something to one worker. One that is gone does not hear it.

        Raises:
            BackplaneUnavailableError: Also where it has more to hear already than is kept for a worker.
        """
        ...

    async def broadcast(self, signal: Signal) -> None:
        """Say something to all other workers."""
        ...

    @property
    def watch(self) -> int:
        """The number of the time since when this worker has heard of every end; 0 where it may have missed one."""
        ...

    async def revoke(self, session: str, until: float) -> None:
        """Remember that a session ended, until its id would have expired by itself (wall clock, seconds).

        When this returns `is_revoked` is true of the session on every worker that can reach the backplane. So many
        ends are remembered one by one; beyond that number the sessions that were issued first are over, all of them,
        so that an ended id never becomes valid again.
        """
        ...

    def has_heard(self, session: str, watch: int, until: float = math.inf) -> bool | None:
        """Whether a session was ended, as far as this worker has heard; None where the backplane has to be asked.

        A session that was found not to have ended during a `watch` need not be asked for again while that lasts.
        `until` is when its id expires by itself (wall clock, seconds).
        """
        ...

    async def is_revoked(self, session: str, until: float = math.inf) -> bool:
        """Whether a session was ended; with the backplane away, whether this worker knows that it was."""
        ...

    async def tail(self, stream: StreamKey) -> str:
        """Open a stream's log where it does not exist, and return the id after which the next entry will come."""
        ...

    async def append(
        self,
        stream: StreamKey,
        data: bytes | None,
        calls: bytes | None = None,
        number: int | None = None,
        *,
        result: bool = False,
        delivered: bool = False,
        patience: float = 0.0,
    ) -> str | None:
        """Add an entry, opening the log where it does not exist, and return its id.

        Nothing comes after the end: then None is returned. `calls` is what this worker still owes the stream: a JSON
        array of the ids of the requests that have no answer in the log yet. Should it die first, whoever reads the
        stream receives an error for each. Where a stream has one writer, `number` counts its entries, from 1: one that
        may have been added already is not added again.

        A `result` is never dropped from the log. `delivered` says with the end that the client was sent everything.
        While a standalone stream has a reader, and that has so much to read still that an unread entry would be
        dropped, this waits, for `patience` seconds at most; then the oldest entries are dropped.
        """
        ...

    async def is_open(self, stream: StreamKey) -> bool:
        """Whether a stream has a log, which means that somebody reads it or may come back for it."""
        ...

    async def holds(self, stream: StreamKey, after: str) -> bool:
        """Whether `after`, which may be anything a client sends, is an id of this log.

        Then the log can be read from there, though entries after it may have been dropped.
        """
        ...

    async def settle(self, stream: StreamKey) -> None:
        """Note that a client was sent a finished log to its end: it is not kept for long any more."""
        ...

    async def take_over(self, stream: StreamKey, name: str) -> Holder | None:
        """Become the worker that serves a standalone stream, by the request `name`; return the one that did so far.

        That is None where nobody did, or this worker.
        """
        ...

    async def release(self, stream: StreamKey, name: str) -> None:
        """Stop being the worker that serves a standalone stream, unless another request has taken over from `name`."""
        ...

    async def is_held(self, stream: StreamKey) -> bool:
        """Whether another worker, and one that lives, serves a standalone stream."""
        ...

    async def read(self, stream: StreamKey, after: str) -> list[Entry]:
        """Wait until there are entries after `after`, and return the first of them, some `PAGE_BYTES` at most.

        What was dropped meanwhile is passed over; the numbers of the entries show it. Asking for what comes after an
        entry says that it was delivered. Waits out a backplane that is away.

        Raises:
            UnknownEventError: `after` is no id of this log, or the log is gone.
        """
        ...

    async def peek(self, stream: StreamKey, after: str) -> list[Entry]:
        """Return the first of the entries after `after` that are there already, as `read` does.

        Raises:
            UnknownEventError: As from `read`.
        """
        ...

    async def forget(self, session: str) -> None:
        """Drop all logs and the state of a session that ended; whoever reads a log is told `UnknownEventError`."""
        ...

    async def load_state(self, session: str) -> Mapping[str, bytes]:
        """Return a session's state: JSON values by name."""
        ...

    async def save_state(self, session: str, changes: Mapping[str, bytes | None], until: float) -> None:
        """Change a session's state; None removes a name. It is kept until `until` (wall clock, seconds).

        Nothing is kept for a session that was ended.

        Raises:
            StateTooLargeError: It would be larger than `STATE_LIMIT`; nothing is changed.
        """
        ...

    async def prune(self) -> None:
        """Drop what is past its time. Called now and then by the server."""
        ...


def size_of(state: Mapping[str, bytes]) -> int:
    """Return how much of `STATE_LIMIT` a state takes."""
    return sum(len(name.encode()) + len(value) for name, value in state.items())
